/**
 * Opens 1,000 sessions of a server that counts, with 20 calls each, through a gateway in a process of its own:
 * `npm run load [-- --sessions 1000 --at-once 10]`. Exits with 1 if a call fails or gets another session's count, or if a process is left.
 */
import { readFileSync } from "node:fs"
import { parseArgs } from "node:util"
import * as Kit from "./kit/gateway/gateway.ts"
import * as Progress from "./kit/progress.ts"

const { values } = parseArgs({
  options: {
    "sessions": { type: "string", default: "1000" },
    "calls": { type: "string", default: "20" },
    "at-once": { type: "string", default: "10" }
  }
})
const [sessions, calls, atOnce] = [values.sessions, values.calls, values["at-once"]].map(Number)
const gateway = Kit.run(["--port", "0", "--", Kit.counter().command, ...Kit.counter().args])
const url = await Kit.urlOf(gateway)
const millis: Array<number> = []
let errors = 0
let crossings = 0
let peak = 0
const started = performance.now()

const session = async (): Promise<void> => {
  const id = await Kit.open(url)
  const seen = await Promise.all(Array.from({ length: calls ?? 0 }, async (_, i) => {
    const at = performance.now()
    const response = await Kit.post(url, id, Kit.toolCall(i + 1, "count"))
    const body = await response.json()
    millis.push(performance.now() - at)
    if (body.id !== i + 1) crossings++
    return Number(body.result?.content[0].text)
  }))
  // Each process counts its own calls: 1 to 20, in any order.
  for (const [i, count] of seen.toSorted((a, b) => a - b).entries()) if (count !== i + 1) crossings++
  const ended = await fetch(url, { method: "DELETE", headers: { "mcp-session-id": id } })
  if (ended.status !== 204) errors++
}

let next = 0
const worker = async (): Promise<void> => {
  while (next++ < (sessions ?? 0)) {
    await session().catch(() => errors++)
    Progress.tick(`${millis.length} calls, ${errors} errors`)
    const status = readFileSync(`/proc/${gateway.child.pid}/status`, "utf8")
    peak = Math.max(peak, Number(/VmRSS:\s+(\d+)/.exec(status)?.[1]) / 1024)
  }
}
await Promise.all(Array.from({ length: atOnce ?? 0 }, worker))
Progress.clear()
const seconds = (performance.now() - started) / 1000
const left = Kit.descendants(gateway.child.pid ?? 0)
gateway.child.kill("SIGTERM")
await gateway.exit
const sorted = millis.toSorted((a, b) => a - b)
const quantile = (q: number) => sorted[Math.floor(sorted.length * q)]?.toFixed(1)
console.log(
  `${sessions} sessions, ${millis.length} calls in ${seconds.toFixed(0)} s (${
    (millis.length / seconds).toFixed(0)
  } a second): ` +
    `${errors} errors, ${crossings} crossings, ${left.length} processes left; ` +
    `a call took ${quantile(0.5)} ms (median), ${quantile(0.99)} ms (99 %); the gateway used at most ${
      peak.toFixed(0)
    } MiB`
)
const good = errors + crossings + left.length === 0 && millis.length === (sessions ?? 0) * (calls ?? 0)
process.exitCode = good ? 0 : 1
