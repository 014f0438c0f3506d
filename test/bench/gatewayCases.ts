/** The cases of the gateway's benchmark. Each starts a gateway, drives it, and returns its figures. */
import { spawn } from "node:child_process"
import { createInterface } from "node:readline"
import * as Kit from "../kit/gateway/gateway.ts"
import type { Backend, Subject } from "./gateways.ts"
import * as Gateways from "./gateways.ts"
import type { Session } from "./mcpCaller.ts"
import * as McpCaller from "./mcpCaller.ts"

/** The columns of the tables, in order. A case leaves out those that it does not measure. */
export const measures = {
  cpu: "CPU per call, µs",
  rate: "calls/s",
  rateOfBytes: "MB/s",
  p50: "p50, ms",
  p99: "p99, ms",
  resident: "RSS, MiB",
  residentPerSession: "RSS per session, KiB",
  errors: "errors",
  crossings: "crossings"
} as const

export type Figures = { readonly [Name in keyof typeof measures]?: number }

export interface Case {
  readonly name: string
  readonly description: string
  /** The gateways of this case, if not `Gateways.subjects`. */
  readonly subjects?: ReadonlyArray<Subject>
  readonly run: (subject: Subject) => Promise<Figures>
}

interface Load {
  readonly sessions: number
  readonly calls: number
  /** Calls of each session before the measurement, 10,000 in all for small answers. A gateway runs for days, so its code is compiled. */
  readonly warmUp: number
  readonly tool: string
  readonly args?: Record<string, unknown>
  /** Judges the messages that answered the `number`th call of a session. */
  readonly check: (messages: ReadonlyArray<string>, number: number) => "ok" | "error" | "crossing"
}

/** All sessions call at the same time. Each makes one call after another. */
const load = (options: Load) => async (subject: Subject): Promise<Figures> => {
  const gateway = await Gateways.start(subject, Kit.counter())
  const agent = McpCaller.connections()
  const sessions = await openAll(agent, gateway.url, options.sessions)
  const millis: Array<number> = []
  let [errors, crossings, bytes] = [0, 0, 0]
  const calls = async (session: Session, from: number, count: number) => {
    for (let i = from; i < from + count; i++) {
      const reply = await session.exchange(Kit.toolCall(i, options.tool, options.args))
      const verdict = reply.status === 200 ? options.check(reply.messages, i) : "error"
      if (verdict === "error") errors++
      if (verdict === "crossing") crossings++
      bytes += reply.messages.reduce((sum, text) => sum + text.length, 0)
      millis.push(reply.millis)
    }
  }
  await Promise.all(sessions.map((session) => calls(session, 1, options.warmUp)))
  millis.length = bytes = 0
  const [cpuBefore, before] = [gateway.cpuMicros(), performance.now()]
  await Promise.all(sessions.map((session) => calls(session, options.warmUp + 1, options.calls)))
  const seconds = (performance.now() - before) / 1000
  const cpu = (gateway.cpuMicros() - cpuBefore) / millis.length
  const resident = gateway.residentMiB()
  agent.destroy()
  await gateway.stop()
  const rates = {
    rate: millis.length / seconds,
    ...(options.tool === "big" ? { rateOfBytes: bytes / 1e6 / seconds } : {})
  }
  return { cpu, ...rates, ...quantiles(millis), resident, errors, crossings }
}

/** Opens four sessions at a time, because the start of a process takes a core for a while. */
const openAll = async (agent: ReturnType<typeof McpCaller.connections>, url: string, count: number) => {
  const sessions: Array<Session> = []
  const worker = async (): Promise<void> => {
    while (sessions.length + opening < count) {
      opening++
      const session = await McpCaller.open(agent, url)
      opening--
      sessions.push(session)
    }
  }
  let opening = 0
  await Promise.all(Array.from({ length: 4 }, worker))
  return sessions
}

const quantiles = (values: ReadonlyArray<number>) => {
  const sorted = values.toSorted((a, b) => a - b)
  const at = (q: number) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))] ?? Number.NaN
  return { p50: at(0.5), p99: at(0.99) }
}

/** Every process counts its own calls, so a wrong count comes from the process of another session. */
const counted: Load["check"] = (messages, number) => {
  const { id, result } = JSON.parse(messages.at(-1) ?? "{}")
  if (result === undefined) return "error"
  return id === number && result.content[0].text === String(number) ? "ok" : "crossing"
}

const progressSteps = 3

const progressed: Load["check"] = (messages, number) => {
  const seen = messages.slice(0, -1).map((text) => JSON.parse(text).params)
  const { id, result } = JSON.parse(messages.at(-1) ?? "{}")
  if (id !== number || seen.some(({ progressToken }) => progressToken !== number)) return "crossing"
  const complete = seen.length === progressSteps && seen.every(({ progress }, i) => progress === i + 1)
  return result !== undefined && complete ? "ok" : "error"
}

const bigSize = 1_000_000

const big: Load["check"] = (messages, number) => {
  const { id, result } = JSON.parse(messages.at(-1) ?? "{}")
  return id !== number ? "crossing" : result?.content[0].text.length === bigSize ? "ok" : "error"
}

/** Opens and ends sessions one after another. With spares, each start waits until there is one. */
const starts = (count: number, spares: number) => async (subject: Subject): Promise<Figures> => {
  if (subject === alone) return quantiles(await times(count, () => startAlone(spares > 0)))
  const gateway = await Gateways.start(subject, Kit.counter(), spares)
  const agent = McpCaller.connections()
  const rest = () => new Promise((resolve) => setTimeout(resolve, spares > 0 ? 1000 : 100))
  await rest()
  // The first starts make the gateway load its modules.
  for (let i = 0; i < 3; i++) {
    await rest().then(() => McpCaller.open(agent, gateway.url)).then((session) => session.end())
  }
  const cpuBefore = gateway.cpuMicros()
  const millis = await times(count, async () => {
    await rest()
    const session = await McpCaller.open(agent, gateway.url)
    await session.end()
    return session.startMillis
  })
  const cpu = (gateway.cpuMicros() - cpuBefore) / count
  agent.destroy()
  await gateway.stop()
  return { cpu, ...quantiles(millis) }
}

const times = async (count: number, measure: () => Promise<number>): Promise<ReadonlyArray<number>> => {
  const values: Array<number> = []
  while (values.length < count) values.push(await measure())
  return values
}

/** No gateway: how long the process itself takes to start. With spares, how long its first answer takes. */
const alone: Subject = { name: "the process alone", arguments: () => [], path: "" }

const startAlone = async (spare: boolean): Promise<number> => {
  let at = performance.now()
  const { args, command } = Kit.counter()
  const child = spawn(command, args, { stdio: ["pipe", "pipe", "inherit"] })
  if (spare) {
    await new Promise((resolve) => setTimeout(resolve, 1000))
    at = performance.now()
  }
  child.stdin.write(`${Kit.initializeBody}\n`)
  await new Promise((resolve) => createInterface(child.stdout).once("line", resolve))
  const millis = performance.now() - at
  const closed = new Promise((resolve) => child.once("close", resolve))
  child.stdin.end()
  await closed
  return millis
}

const light: Backend = { command: "/bin/sh", args: [new URL("light-server.sh", import.meta.url).pathname] }

/** Opens sessions that stay silent. The memory of a session is the growth, without the gateway's own memory before. */
const idle = (count: number) => async (subject: Subject): Promise<Figures> => {
  const gateway = await Gateways.start(subject, light)
  const agent = McpCaller.connections()
  await openAll(agent, gateway.url, 1)
  await settled()
  const before = gateway.residentMiB()
  await openAll(agent, gateway.url, count)
  agent.destroy()
  await settled()
  const resident = gateway.residentMiB()
  await gateway.stop()
  return { resident, residentPerSession: (resident - before) * 1024 / count }
}

const settled = () => new Promise((resolve) => setTimeout(resolve, 5000))

export const cases: ReadonlyArray<Case> = [
  {
    name: "json-10",
    description: "10 sessions × 200 calls, JSON answers",
    subjects: Gateways.callSubjects,
    run: load({ sessions: 10, calls: 200, warmUp: 1000, tool: "count", check: counted })
  },
  {
    name: "json-100",
    description: "100 sessions × 200 calls, JSON answers",
    subjects: Gateways.callSubjects,
    run: load({ sessions: 100, calls: 200, warmUp: 100, tool: "count", check: counted })
  },
  {
    name: "progress",
    description: `10 sessions × 200 calls, event streams with ${progressSteps} notifications of progress`,
    subjects: Gateways.callSubjects,
    run: load({
      sessions: 10,
      calls: 200,
      warmUp: 1000,
      tool: "burst",
      args: { count: progressSteps, size: 1 },
      check: progressed
    })
  },
  {
    name: "progress-apart",
    description: `10 sessions × 200 calls, the ${progressSteps} notifications and the answer 2 ms apart`,
    subjects: Gateways.callSubjects,
    run: load({
      sessions: 10,
      calls: 200,
      warmUp: 500,
      tool: "steps",
      args: { count: progressSteps, every: 2 },
      check: progressed
    })
  },
  {
    name: "big",
    description: "4 sessions × 50 calls, results of 1 MB",
    run: load({ sessions: 4, calls: 50, warmUp: 50, tool: "big", args: { size: bigSize }, check: big })
  },
  {
    name: "start-cold",
    description: "20 session starts, one after another",
    subjects: [...Gateways.subjects, alone],
    run: starts(20, 0)
  },
  {
    name: "start-warm",
    description: "20 session starts with two warm spares, a second apart (the peers have none)",
    subjects: [Gateways.ours, alone],
    run: starts(20, 2)
  },
  { name: "idle", description: "1,000 idle sessions of a server that is a shell script", run: idle(1000) }
]
