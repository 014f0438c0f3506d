/**
 * Attacks a gateway for minutes: kills back ends, cuts sockets, abandons sessions and drops streams, by a seed:
 * `npm run soak:gateway [-- --minutes 10 --seed 1]`. Exits with 1 if an answer is lost or goes to another call, if a process or a
 * file handle is left, or if the memory grows.
 */
import { readdirSync, readFileSync } from "node:fs"
import { request } from "node:http"
import { parseArgs } from "node:util"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Heap from "../kit/heap.ts"
import * as Line from "../kit/line.ts"
import * as Progress from "../kit/progress.ts"
import * as Random from "../kit/random.ts"

const { values } = parseArgs({
  options: { minutes: { type: "string", default: "10" }, seed: { type: "string", default: String(Date.now() % 1e6) } }
})
const minutes = Number(values.minutes)
console.log(`${minutes} minutes with seed ${values.seed}`)

const { below, next: random } = Random.make(Number(values.seed))
const wait = (millis: number) => new Promise((resolve) => setTimeout(resolve, millis))

const gateway = Kit.run(
  ["--port", "0", "--idle-time-to-live", "3 seconds", "--stream-lost-time-to-live", "2 seconds"].concat(
    ["--cleanup-interval", "500 millis", "--spares", "1", "--request-timeout", "5 seconds", "--"],
    [Kit.counter().command, ...Kit.counter().args]
  ),
  // Back ends do not get this variable: the gateway passes them the safe part of its environment only.
  { NODE_OPTIONS: "--inspect=127.0.0.1:0" }
)
await Kit.eventually("the gateway is up", () => gateway.output().includes("Stop it with"))
const url = /http:\S+/.exec(gateway.output())?.[0] ?? ""
const pid = gateway.child.pid ?? 0
const handles = () => readdirSync(`/proc/${pid}/fd`).length
const resident = () => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) / 1024

const inspector = await Heap.inspect(gateway.output())
/** The live heap in MiB, after a collection. */
const heap = async (): Promise<number> => (await inspector.heapUsed()) / 2 ** 20

const tally = { sessions: 0, answers: 0, refused: 0, unknown: 0, killed: 0, cut: 0, abandoned: 0, resumed: 0 }
const faults: Array<string> = []

/** A call whose connection is cut at a random byte and time. It expects no answer. */
const cut = (session: string) =>
  new Promise<void>((resolve) => {
    tally.cut++
    const body = Kit.toolCall(`cut ${random()}`, "steps", { count: 5, every: 20 })
    const headers = { ...Kit.headers, "mcp-session-id": session, "content-length": String(body.length) }
    const sent = request(url, { method: "POST", headers }, (response) => response.on("error", () => undefined).resume())
    sent.on("error", () => resolve()).on("close", () => resolve())
    sent.write(body.slice(0, below(body.length + 1)))
    setTimeout(() => sent.destroy(), below(100))
  })

/** A call that must get an answer with its own id: a result, an error with a reason, or 404. */
const call = async (session: string, mark: string): Promise<boolean> => {
  const id = `${mark} ${tally.answers}`
  const stop = AbortSignal.timeout(15_000)
  const response = await fetch(url, {
    method: "POST",
    headers: { ...Kit.headers, "mcp-session-id": session },
    body: Kit.toolCall(id, ["count", "progress", "slow", "garbage"][below(4)] ?? "count"),
    signal: stop
  })
  const text = await response.text()
  const [last = ""] = text.startsWith("{")
    ? [text]
    : text.split("\n").filter((line) => line.startsWith("data: ")).slice(-1)
  const message = JSON.parse(last.replace(/^data: /, ""))
  if (message.id !== id) faults.push(`${id} got the answer to ${message.id} (${response.status})`)
  if (response.status === 404) tally.unknown++
  else if (message.result !== undefined) tally.answers++
  else if (message.error !== undefined) tally.refused++
  else faults.push(`${id} got neither a result nor an error: ${text.slice(0, 200)}`)
  return message.result !== undefined
}

/** Drops a stream and resumes it. Every progress message must arrive once and in order, and then the answer. */
const resume = async (session: string) => {
  const stop = new AbortController()
  const body = Kit.toolCall("resumed", "steps", { count: 8, every: 10 })
  const headers = { ...Kit.headers, "mcp-session-id": session }
  const response = await fetch(url, { method: "POST", headers, body, signal: stop.signal })
  if (response.headers.get("content-type") !== "text/event-stream") return void await response.text()
  const events: Array<Kit.Event> = []
  const wanted = 1 + below(6)
  await Kit.readEvents(response, (event) => events.push(event) === wanted).catch(() => undefined)
  stop.abort()
  const again = await Kit.listen(
    url,
    session,
    { "last-event-id": events.at(-1)?.id ?? "" },
    AbortSignal.timeout(15_000)
  )
  if (again.status !== 200) return void await again.text()
  await Kit.readEvents(again, (event) => events.push(event) < 0)
  const got = events.map(({ data }) => JSON.parse(data)).map(({ error, params }) =>
    params?.progress ?? (error ? "error" : "answer")
  )
  if (got.at(-1) === "answer" && got.join() !== "1,2,3,4,5,6,7,8,answer") faults.push(`resumed: ${got.join()}`)
  tally.resumed++
}

const client = async (mark: string): Promise<void> => {
  const session = await Kit.open(url)
  if (session === "null") return
  tally.sessions++
  const stop = new AbortController()
  if (below(3) === 0) {
    Kit.listen(url, session, {}, stop.signal).then((response) => response.text()).catch(() => undefined)
  }
  const steps = 3 + below(10)
  for (let i = 0; i < steps; i++) {
    const what = below(20)
    if (what < 2) await cut(session)
    else if (what === 2) await resume(session)
    else if (what === 3) {
      const victim = await Kit.pidOf(url, session).catch(() => 0)
      if (victim > 1) {
        tally.killed++
        try {
          process.kill(victim, "SIGKILL")
        } catch {
          // The process has already ended.
        }
      }
    } else await call(session, mark)
  }
  stop.abort()
  if (below(2) === 0) await (await fetch(url, { method: "DELETE", headers: { "mcp-session-id": session } })).text()
  else tally.abandoned++
}

await wait(1500)
await heap()
const [handlesBefore, samples] = [handles(), [] as Array<readonly [number, number]>]
let peak = 0
const started = Date.now()
const until = started + minutes * 60_000
const sampling = setInterval(() => {
  Progress.step(`${tally.sessions} sessions, ${tally.answers} answers, ${faults.length} faults`)
  peak = Math.max(peak, resident())
  void heap().then((used) => samples.push([(Date.now() - started) / 3_600_000, used]))
}, 5000)
const worker = async (number: number): Promise<void> => {
  for (let i = 0; Date.now() < until; i++) {
    await client(`${number}/${i}`).catch((error: unknown) => faults.push(`client ${number}/${i}: ${String(error)}`))
    await wait(below(50))
  }
}
await Promise.all(Array.from({ length: 8 }, (_, i) => worker(i)))
clearInterval(sampling)

/** The samples of the second half, without the start. */
const half = samples.slice(samples.length / 2)
const { mean, slope } = Line.fit(half)
const spread = Math.max(...half.map(([, b]) => b)) - Math.min(...half.map(([, b]) => b))

await wait(7000)
const heapLeft = await heap()
const { sessions } = await (await fetch(new URL("/sessions", url))).json()
// One spare process stays.
const left = Kit.descendants(pid).length - 1
const handlesLeft = handles() - handlesBefore
Progress.clear()
console.log(JSON.stringify(tally))
console.log(
  `heap: ${mean.toFixed(1)} MiB alive in the second half, spread ${spread.toFixed(1)} MiB, slope ${
    slope.toFixed(1)
  } MiB an hour, ` +
    `${heapLeft.toFixed(1)} MiB in the end; resident at most ${peak.toFixed(0)} MiB; ` +
    `left after the idle time: ${sessions.length} sessions, ${left} processes, ${handlesLeft} handles`
)
for (const fault of faults.slice(0, 20)) console.log(`FAULT ${fault}`)
inspector.close()
gateway.child.kill("SIGTERM")
await gateway.exit
// Eight clients hold some megabytes at most, so growth shows only after minutes.
// Below, up to four handles may be keep-alive sockets of this client.
const grown = minutes >= 5 && slope > 30
process.exitCode = grown || faults.length > 0 || sessions.length > 0 || left > 0 || handlesLeft > 4 ? 1 : 0
process.exit()
