/**
 * Measures how long a call of an open session waits while many other sessions start:
 * `npm run bench:burst [-- --sessions 300 --ballast 100 --server counter|light]`. `--ballast` is memory in MiB that the gateway holds on
 * top, as after hours of work. The more memory a process has, the longer the system takes to start a child for it.
 */
import { parseArgs } from "node:util"
import * as Kit from "../kit/gateway/gateway.ts"
import * as McpCaller from "./mcpCaller.ts"

const { values } = parseArgs({
  options: {
    sessions: { type: "string", default: "300" },
    ballast: { type: "string", default: "100" },
    server: { type: "string", default: "counter" }
  }
})
const light = { command: "sh", args: [new URL("light-server.sh", import.meta.url).pathname] }
const { args, command } = values.server === "light" ? light : Kit.counter()
const ballast = `globalThis.ballast = Buffer.alloc(${values.ballast} * 1024 * 1024, 1)`
const gateway = Kit.run(["--port", "0", "--log-level", "error", "--", command, ...args], {
  NODE_OPTIONS: `--import=data:text/javascript,${encodeURIComponent(ballast)}`
})
const url = await Kit.urlOf(gateway)
const agent = McpCaller.connections()

/** Makes one call after another until `over` has completed, and returns how long each took. */
const callUntil = async (session: McpCaller.Session, over: Promise<unknown>): Promise<ReadonlyArray<number>> => {
  const millis: Array<number> = []
  const state = { isOver: false }
  over.finally(() => {
    state.isOver = true
  })
  for (let id = 1; !state.isOver; id++) {
    millis.push((await session.exchange(Kit.toolCall(`call ${id}`, "count"))).millis)
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  return millis
}

const told = (millis: ReadonlyArray<number>): string => {
  const sorted = millis.toSorted((a, b) => a - b)
  const at = (q: number) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))]?.toFixed(1)
  return `${millis.length} calls took ${at(0.5)} ms (median), ${at(0.99)} ms (99 %), ${at(1)} ms (longest)`
}

const session = await McpCaller.open(agent, url)
console.log(`alone: ${told(await callUntil(session, new Promise((resolve) => setTimeout(resolve, 2000))))}`)
const started = performance.now()
const burst = Promise.all(Array.from({ length: Number(values.sessions) }, () => McpCaller.open(agent, url)))
const during = await callUntil(session, burst)
const seconds = (performance.now() - started) / 1000
const startMillis = (await burst).map((each) => each.startMillis)
console.log(`while ${values.sessions} sessions start: ${told(during)}`)
console.log(
  `all have started in ${seconds.toFixed(1)} s, each within ${(Math.max(...startMillis) / 1000).toFixed(1)} s`
)
gateway.child.kill("SIGTERM")
await gateway.exit
process.exit()
