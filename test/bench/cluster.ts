/**
 * Measures what replicas cost: `npm run bench:cluster [-- --rounds 1]`. The script starts two replicas and a PostgreSQL of its own. A shell
 * answers the calls, so the gateway is what costs.
 *
 * - A call of a pinned session, at its own replica and at the other.
 * - A call of a movable session.
 * - A call at a gateway that is alone.
 * - The floors: a call at a bridge of `effect/http` without features, and at one that forwards it by `effect/rpc`.
 * - Sessions started in a second, and the time until the sessions of a killed replica are gone or answer elsewhere.
 *
 * CPU is that of all gateway processes, without their back ends.
 */
import { readFileSync } from "node:fs"
import { availableParallelism } from "node:os"
import { parseArgs } from "node:util"
import * as Counting from "../kit/cluster/counting.ts"
import * as Replicas from "../kit/cluster/replicas.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Gateways from "./gateways.ts"
import * as Caller from "./mcpCaller.ts"
import { format, spreadOf } from "./spread.ts"

const { values } = parseArgs({
  options: { rounds: { type: "string", default: "5" }, calls: { type: "string", default: "1000" } }
})
const rounds = Number(values.rounds)
const calls = Number(values.calls)
const sessions = 10
/** Rounds before the measurement. Until its code is compiled, a call takes at least twice the CPU. */
const warmUps = 2

/** CPU of a process in microseconds. The kernel counts in hundredths of a second. */
const cpuOf = (pid: number): number => {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? []
  return (Number(fields[11]) + Number(fields[12])) * 10_000
}

interface Figure {
  readonly cpuMicros: number
  readonly p50: number
  readonly p99: number
}

/** Calls in all sessions at once, in each one call after another. Measures what all gateway processes used. */
const measure = async (
  opened: ReadonlyArray<Caller.Session>,
  url: string | undefined,
  used: () => number
): Promise<Figure> => {
  const before = used()
  const times = await Promise.all(opened.map(async (session) => {
    const own: Array<number> = []
    for (let i = 0; i < calls; i++) {
      const reply = await session.exchange(Kit.toolCall(`c${i}`, "count"), url)
      if (reply.status !== 200) throw new Error(`a call was answered ${reply.status} ${reply.messages.join()}`)
      own.push(reply.millis)
    }
    return own
  }))
  const sorted = times.flat().toSorted((a, b) => a - b)
  const at = (q: number) => sorted[Math.floor(sorted.length * q)] ?? Number.NaN
  return { cpuMicros: (used() - before) / sorted.length, p50: at(0.5), p99: at(0.99) }
}

const row = (name: string, figures: ReadonlyArray<Figure>, local: ReadonlyArray<Figure>) => {
  const spread = (of: (figure: Figure) => number) => format(spreadOf(figures.map(of)))
  const ratio = format(spreadOf(figures.map(({ cpuMicros }, i) => cpuMicros / (local[i]?.cpuMicros ?? Number.NaN))))
  const more = format(spreadOf(figures.map(({ p50 }, i) => p50 - (local[i]?.p50 ?? Number.NaN))))
  const cells = [
    name,
    spread(({ cpuMicros }) => cpuMicros),
    ratio,
    spread(({ p50 }) => p50),
    more,
    spread(({ p99 }) => p99)
  ]
  return `| ${cells.join(" | ")} |`
}

const backends = { pinned: Counting.backend(), sleepy: { ...Counting.backend(), stateless: true } }
const agent = Caller.connections()
const openAll = (url: string) => Promise.all(Array.from({ length: sessions }, () => Caller.open(agent, url)))

console.log(
  `Node ${process.version}, ${availableParallelism()} cores, ${rounds} rounds of ${sessions} sessions × ${calls} calls\n`
)

const alone = await Replicas.start({ backends, count: 1, alone: true })
const cluster = await Replicas.start({ backends, count: 2 })
process.on("exit", Gateways.endAll)
const floor = await Gateways.start(Gateways.floor, Counting.backend())
const back = await Gateways.start(Gateways.forwardingFloor.back, Counting.backend())
const front = await Gateways.start(Gateways.forwardingFloor.front(back), Counting.backend())
try {
  const [single] = alone.replicas
  const [first, second] = cluster.replicas
  if (single === undefined || first === undefined || second === undefined) throw new Error("a replica is missing")
  const pids = [first.pid(), second.pid()]
  const both = () => pids.reduce((sum, pid) => sum + cpuOf(pid), 0)
  const inAlone = await openAll(`${single.origin}/mcp/pinned`)
  const pinned = await openAll(`${first.origin}/mcp/pinned`)
  const movable = await openAll(`${first.origin}/mcp/sleepy`)
  const inFloor = await openAll(floor.url)
  const forwarded = await openAll(front.url)
  const at = {
    alone: () => measure(inAlone, undefined, () => cpuOf(single.pid())),
    "cluster, at its replica": () => measure(pinned, undefined, both),
    "cluster, at the other": () => measure(pinned, `${second.origin}/mcp/pinned`, both),
    "cluster, can move": () => measure(movable, undefined, both),
    "floor, alone": () => measure(inFloor, undefined, floor.cpuMicros),
    "floor, forwarded": () => measure(forwarded, undefined, () => front.cpuMicros() + back.cpuMicros())
  }
  const figures = new Map<string, Array<Figure>>(Object.keys(at).map((name) => [name, []]))
  for (let round = 1 - warmUps; round <= rounds; round++) {
    for (const [name, run] of Object.entries(at)) {
      process.stderr.write(`round ${round}: ${name}\n`)
      const figure = await run()
      if (round > 0) figures.get(name)?.push(figure)
    }
  }
  console.log("| a call | CPU, µs | of alone | p50, ms | more than alone | p99, ms |")
  console.log("|---|---|---|---|---|---|")
  const base = figures.get("alone") ?? []
  for (const [name, own] of figures) console.log(row(name, own, base))

  const started = performance.now()
  const many = 100
  const others = await Promise.all(
    Array.from({ length: many }, (_, i) => Caller.open(agent, `${[first, second][i % 2]?.origin}/mcp/pinned`))
  )
  const seconds = (performance.now() - started) / 1000
  console.log(`\n${(many / seconds).toFixed(0)} sessions started a second, ${many} at once, a shell each`)
  await Promise.all(others.map((session) => session.end()))

  // The pinned sessions of the killed replica must be gone. Its movable sessions must answer at the other replica.
  const killed = performance.now()
  await first.stop("SIGKILL")
  const after = async (session: Caller.Session, path: string, wanted: number) => {
    while (true) {
      const reply = await session.exchange(Kit.toolCall("after", "count"), second.origin + path)
      if (reply.status === wanted) return (performance.now() - killed) / 1000
      if (performance.now() - killed > 120_000) throw new Error(`still ${reply.status} after 2 minutes`)
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
  }
  const gone = await Promise.all(pinned.map((session) => after(session, "/mcp/pinned", 404)))
  console.log(`a replica killed, locks that expire after ${Replicas.lockExpirationSeconds} s:`)
  console.log(`  its sessions that stay with their process are 404 after ${format(spreadOf(gone))} s`)
  const on = await Promise.all(movable.map((session) => after(session, "/mcp/sleepy", 200)))
  console.log(`  sessions that can move answer at the other replica after ${format(spreadOf(on))} s, at most`)
} finally {
  agent.destroy()
  for (const each of [front, back, floor]) await each.stop()
  await cluster.stop().catch((error: unknown) => console.error(error))
  await alone.stop()
}
