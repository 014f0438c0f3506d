/** A gateway on a free port, requests to it, and processes. */
import { NodeHttpServer } from "@effect/platform-node"
import { Clock, Context, Effect, Exit, Layer, Logger, Metric, Scheduler, Scope } from "effect"
import { HttpRouter, HttpServer } from "effect/http"
import type { ChildProcess } from "node:child_process"
import { spawn } from "node:child_process"
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { createServer } from "node:http"
import type { Server } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Gateway from "../../../src/gateway/Gateway.ts"
import type { StillClock } from "./stillClock.ts"

/** The path of a program in `test/fixtures`. A full path stays as it is. */
export const fixture = (name: string): string => new URL(name, new URL("../../fixtures/", import.meta.url)).pathname

/** A back end in Node. It gets the compile cache, because a gateway does not pass that on: with it, a start takes a third of the time. */
export const node = (program: string, ...args: ReadonlyArray<string>) => ({
  command: process.execPath,
  args: [fixture(program), ...args],
  env: { NODE_COMPILE_CACHE: process.env["NODE_COMPILE_CACHE"] ?? "" }
})

export const counter = (...args: ReadonlyArray<string>) => node("counter-server.ts", ...args)

export interface Running {
  readonly origin: string
  readonly stop: () => Promise<void>
}

/** Starts a gateway in this process, on the machine's clock or on one of `stillClock.ts` or `aheadClock.ts`. */
export const start = async (
  options: Gateway.GatewayOptions,
  clock?: Clock.Clock | StillClock,
  authenticator?: Gateway.Authenticator
): Promise<Running> => {
  const scope = Effect.runSync(Scope.make())
  const gatewayLayer = Layer.provide(
    Gateway.layer({ environment: process.env, drainTimeout: "0 seconds", ...options }),
    Layer.succeed(Gateway.ClientAuthenticator, authenticator)
  )
  const address = Layer.provideMerge(
    HttpRouter.serve(gatewayLayer, { disableLogger: true, disableListenLog: true }),
    NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0, gracefulShutdownTimeout: "1 second" })
  )
  // Its own metrics: gateways of other tests may run in this process.
  const metrics = new Map()
  const run = <A, E>(asked: Effect.Effect<A, E>) => {
    const effect = Effect.provideService(asked, Metric.MetricRegistry, metrics)
    if (clock === undefined) return Effect.runPromise(effect)
    const onClock = Effect.provideService(effect, Clock.Clock, clock)
    return Effect.runPromise(
      "scheduler" in clock ? Effect.provideService(onClock, Scheduler.Scheduler, clock.scheduler) : onClock
    )
  }
  const context = await run(Layer.buildWithScope(Layer.provide(address, Logger.layer([])), scope))
  const { address: bound } = Context.get(context, HttpServer.HttpServer)
  const gateway = Context.get(context, Gateway.Gateway)
  const port = bound._tag === "UnixPathAddress" ? 0 : bound.port
  return {
    origin: `http://127.0.0.1:${port}`,
    stop: () => {
      // The command stops in the same way at a signal.
      const stopped = run(Effect.andThen(gateway.drain, Scope.close(scope, Exit.void)))
      return clock !== undefined && "scheduler" in clock
        ? clock.passUntilSettled("the gateway has stopped", stopped)
        : stopped
    }
  }
}

/** A port that was free a moment ago. */
export const freePort = async (): Promise<number> => {
  const server = createServer().listen(0, "127.0.0.1")
  await new Promise((resolve) => server.on("listening", resolve))
  const port = portOf(server)
  await new Promise((resolve) => server.close(resolve))
  return port
}

export const portOf = (server: Server): number => {
  const address = server.address()
  return typeof address === "object" && address !== null ? address.port : 0
}

export const initializeBody = JSON.stringify({
  jsonrpc: "2.0",
  id: 0,
  method: "initialize",
  params: { protocolVersion: "2025-06-18", capabilities: {}, clientInfo: { name: "raw", version: "1.0.0" } }
})

export const headers = { "content-type": "application/json", "accept": "application/json, text/event-stream" }

/** Opens a session. Returns its id. */
export const open = async (url: string, capabilities: object = {}, extra = {}): Promise<string> => {
  const body = initializeBody.replace("\"capabilities\":{}", `"capabilities":${JSON.stringify(capabilities)}`)
  const response = await initialize(url, extra, body)
  await response.text()
  return String(response.headers.get("mcp-session-id"))
}

/** Asks for a session, without reading the answer. */
export const initialize = (url: string, extra: Record<string, string> = {}, body = initializeBody) =>
  fetch(url, { method: "POST", headers: { ...headers, ...extra }, body })

export const bearer = (key: string) => ({ authorization: `Bearer ${key}` })

let unread: ReadonlyArray<Response> = []

/** Keeps the response while it is unread: `fetch` disconnects when an unread response is garbage-collected. */
const keep = async (coming: Promise<Response>): Promise<Response> => {
  const response = await coming
  unread = [...unread.filter(({ bodyUsed }) => !bodyUsed), response]
  return response
}

/** Posts one message to a session. */
export const post = (
  url: string,
  session: string,
  body: string,
  extra: Record<string, string> = {},
  signal: AbortSignal | null = null
) => keep(fetch(url, { method: "POST", headers: { ...headers, "mcp-session-id": session, ...extra }, body, signal }))

/** The JSON of a tool call. Its progress token is its id. */
export const toolCall = (id: string | number, name: string, args: Record<string, unknown> = {}): string =>
  JSON.stringify({
    jsonrpc: "2.0",
    id,
    method: "tools/call",
    params: { name, arguments: args, _meta: { progressToken: id } }
  })

export const notify = async (url: string, session: string, method: string, params: object = {}): Promise<void> => {
  await (await post(url, session, JSON.stringify({ jsonrpc: "2.0", method, params }))).text()
}

/**
 * Sends releases: each makes a call of `held` report progress once. The one after the last progress makes it answer. A release
 * may arrive before its call.
 */
export const release = async (url: string, session: string, requestId: string | number, steps = 1): Promise<void> => {
  for (let i = 0; i < steps; i++) await notify(url, session, "notifications/release", { requestId })
}

/** The answer in a response: its JSON, or the last event of its stream. */
export const answerOf = async (response: Response) => {
  const body = await response.text()
  return JSON.parse(body.startsWith("{") ? body : body.trimEnd().split("\n").at(-1)?.replace("data: ", "") ?? "")
}

/** Calls a tool in a session. Returns the text of its result. */
export const toolText = async (url: string, session: string, name: string, args = {}): Promise<string> => {
  const { result } = await answerOf(await post(url, session, toolCall(`${name} ${Math.random()}`, name, args)))
  return result.content[0].text
}

export const pidOf = async (url: string, session: string): Promise<number> =>
  JSON.parse(await toolText(url, session, "pids"))[0]

export interface Event {
  readonly id: string | undefined
  readonly data: string
}

/** Reads the events of a response until `onEvent` returns true. */
export const readEvents = async (
  response: Response,
  onEvent: (event: Event, comments: number) => boolean
): Promise<void> => {
  const decoder = new TextDecoder()
  let text = ""
  let comments = 0
  for await (const chunk of response.body ?? []) {
    text += decoder.decode(chunk, { stream: true })
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const lines = text.slice(0, end).split("\n")
      text = text.slice(end + 2)
      if (lines.every((line) => line.startsWith(":"))) {
        comments++
        continue
      }
      const field = (name: string) => lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2)
      if (onEvent({ id: field("id"), data: field("data") ?? "" }, comments)) return
    }
  }
}

/** A GET stream of a session. */
export const listen = (url: string, session: string, extra: Record<string, string> = {}, signal?: AbortSignal) =>
  keep(fetch(url, {
    headers: { "accept": "text/event-stream", "mcp-session-id": session, ...extra },
    ...(signal === undefined ? {} : { signal })
  }))

/** The fields of `/proc/PID/stat`, from the state on. `undefined` if there is no such process. */
const stat = (pid: number): ReadonlyArray<string> | undefined => {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "utf8")
    return text.slice(text.lastIndexOf(")") + 2).split(" ")
  } catch {
    return undefined
  }
}

/** True if a process exists and is no zombie. */
export const alive = (pid: number): boolean => {
  const [state = "X"] = stat(pid) ?? []
  return !["Z", "X"].includes(state)
}

/** True if a process handles a signal, by its number. */
export const catches = (pid: number, signal: number): boolean => {
  const caught = /^SigCgt:\s*(\w+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? "0"
  return ((BigInt(`0x${caught}`) >> BigInt(signal - 1)) & 1n) === 1n
}

/** Sends a signal to a process if it exists. */
export const kill = (pid: number, signal: NodeJS.Signals): void => {
  if (pid > 1 && alive(pid)) process.kill(pid, signal)
}

/** Waits until a condition holds. Fails after some seconds, before the time-out of most tests. */
export const eventually = async (
  what: string,
  condition: () => boolean | Promise<boolean>,
  seconds = 25
): Promise<void> => {
  const until = Date.now() + seconds * 1000
  while (!(await condition())) {
    if (Date.now() > until) throw new Error(`not within ${seconds} seconds: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 25))
  }
}

/**
 * Waits until a growing number is unchanged for 15 checks (0.4 s). If it returns too early on a busy machine, the test may miss a
 * fault, but it never fails for that.
 */
export const standstill = async (value: () => number) => {
  let [last, still] = [0, 0]
  await eventually("it stands still", () => {
    const now = value()
    still = now > 0 && now === last ? still + 1 : 0
    last = now
    return still >= 15
  })
}

interface Session {
  readonly pid: number
  readonly state: string
  readonly inFlight: number
  readonly streams: number
}

const sessionsOf = async (origin: string): Promise<ReadonlyArray<Session>> =>
  (await (await fetch(`${origin}/sessions`)).json()).sessions

/** The live session on a process, as `/sessions` lists it. */
export const sessionOn = async (origin: string, pid: number): Promise<Session | undefined> =>
  (await sessionsOf(origin)).find((session) => session.pid === pid)

/** Waits until `count` requests run in the session on a process. */
export const untilRunning = (origin: string, pid: number, count = 1): Promise<void> =>
  eventually(`${count} requests run`, async () => (await sessionOn(origin, pid))?.inFlight === count)

/** The number of running requests in all sessions of a gateway. */
export const inFlight = async (origin: string): Promise<number> =>
  (await sessionsOf(origin)).reduce((sum, { inFlight }) => sum + inFlight, 0)

/** The ids of a process's children. */
export const children = (pid: number): ReadonlyArray<number> =>
  readdirSync("/proc").filter((name) => /^\d+$/.test(name) && parent(Number(name)) === pid).map(Number)

/** The ids of all descendants of a process. */
export const descendants = (pid: number): ReadonlyArray<number> =>
  children(pid).flatMap((child) => [child, ...descendants(child)])

const parent = (pid: number): number => Number(stat(pid)?.[1] ?? 0)

const main = new URL("../../../src/gateway/bin.ts", import.meta.url).pathname

export interface Run {
  readonly child: ChildProcess
  readonly output: () => string
  readonly exit: Promise<number | null>
}

const runs: Array<ChildProcess> = []
process.on("exit", () => {
  for (const child of runs) child.kill("SIGKILL")
})

/** Collects a process's output. */
export const follow = (child: ChildProcess): Run => {
  let output = ""
  for (const stream of [child.stdout, child.stderr]) {
    stream?.on("data", (chunk) => {
      output += chunk
    })
  }
  return { child, output: () => output, exit: new Promise((resolve) => child.on("close", resolve)) }
}

/** Runs the gateway's command, with at most `descriptors` file descriptors. */
export const run = (args: ReadonlyArray<string>, env: Record<string, string> = {}, descriptors?: number): Run => {
  const command = [process.execPath, main, ...args]
  const limited = ["sh", "-c", `ulimit -n ${descriptors}; exec "$0" "$@"`, ...command]
  const [program = "", ...rest] = descriptors === undefined ? command : limited
  const child = spawn(program, rest, { env: { ...process.env, ...env } })
  runs.push(child)
  return follow(child)
}

/** Runs the gateway's command with these servers in its file, which is removed once the command listens. */
export const runServers = async (mcpServers: object, args: ReadonlyArray<string>, env = {}, descriptors?: number) => {
  const directory = mkdtempSync(join(tmpdir(), "gateway-"))
  const file = join(directory, "servers.json")
  writeFileSync(file, JSON.stringify({ mcpServers }))
  const gateway = run(["--port", "0", "--config", file, ...args], env, descriptors)
  const url = await urlOf(gateway)
  rmSync(directory, { recursive: true })
  return { ...gateway, url }
}

/** The first line of a log with a defect, an error or a stack trace. */
export const wrongIn = (output: string): string | undefined =>
  /.*(A request failed with a defect|"level":"(ERROR|FATAL)"|[Uu]nhandled|Warning:|\n {4}at ).*/.exec(output)?.[0]
    .slice(0, 1000)

/** The first URL that the command prints. */
export const urlOf = async (gateway: Run): Promise<string> => {
  const url = () => /https?:\S+/.exec(gateway.output())?.[0]
  await eventually(`the gateway says where it listens: ${gateway.output()}`, () => url() !== undefined, 80)
  return url() ?? ""
}
