/** Sessions of the counting fixture: what each of their calls must bring, wherever it is carried out, and what may go wrong. */
import { readFileSync } from "node:fs"
import * as Kit from "../gateway/gateway.ts"
import * as Balancer from "./balancer.ts"

const script = new URL("../../fixtures/counting.sh", import.meta.url).pathname

/** The back end. Its processes append each answer to `notes`, if given. */
export const backend = (...notes: ReadonlyArray<string>) => ({ command: "/bin/sh", args: [script, ...notes] })

export type Outcome = { readonly at: number; readonly millis: number } & Said

type Said =
  | { readonly _tag: "Counted"; readonly pid: number; readonly count: number }
  /** 404: the session is no more. */
  | { readonly _tag: "Gone" }
  /** 503 with a time after which to come again. */
  | { readonly _tag: "Later" }
  /** The call's own JSON-RPC error. */
  | { readonly _tag: "Failed"; readonly message: string }
  /** No answer of a replica: it does not listen, or the connection broke. */
  | { readonly _tag: "Unreachable"; readonly message: string }
  /** What no client should ever see. */
  | { readonly _tag: "Wrong"; readonly message: string }

export interface Session {
  readonly name: string
  readonly id: string
  /** The path of its back end. */
  readonly path: string
  /** What its calls have brought, in order. */
  readonly outcomes: Array<Outcome>
}

let opened = 0

/** Opens a session at an origin; fails when it is refused. */
export const open = async (origin: string, path: string): Promise<Session> => {
  const name = `client-${++opened}`
  const response = await fetch(origin + path, {
    method: "POST",
    headers: Kit.headers,
    body: Kit.initializeBody.replace("\"name\":\"raw\"", `"name":"${name}"`)
  })
  const text = await response.text()
  const id = response.headers.get("mcp-session-id")
  if (response.status !== 200 || id === null) {
    const reason = response.headers.get("x-balancer-error") ?? text.slice(0, 500)
    throw new Error(`initialize: ${response.status} ${reason}`)
  }
  return { name, id, path, outcomes: [] }
}

export const openMany = (origin: string, path: string, count: number): Promise<ReadonlyArray<Session>> =>
  Promise.all(Array.from({ length: count }, () => open(origin, path)))

let calls = 0

/** Calls in a session at an origin, and notes what came of it. */
export const call = async (origin: string, session: Session): Promise<Outcome> => {
  const at = Date.now()
  const said = await ask(origin, session, `call-${++calls}`).catch((error: unknown): Said => ({
    _tag: "Unreachable",
    message: String(error)
  }))
  const outcome = { ...said, at, millis: Date.now() - at }
  session.outcomes.push(outcome)
  return outcome
}

const ask = async (origin: string, session: Session, id: string): Promise<Said> => {
  const response = await Kit.post(origin + session.path, session.id, Kit.toolCall(id, "count"))
  const text = await response.text()
  const failed = response.headers.get(Balancer.balancerError)
  if (failed !== null) return { _tag: "Unreachable", message: failed }
  const wrong = (why: string): Said => ({
    _tag: "Wrong",
    message: `${session.name}: ${why}: ${response.status} ${text.slice(0, 300)}`
  })
  if (response.status === 404) return { _tag: "Gone" }
  if (response.status === 503) {
    return response.headers.get("retry-after") === null ? wrong("no Retry-After") : { _tag: "Later" }
  }
  // That of a call which was cut off on its way to the session's replica has a status that says so.
  if (response.status !== 200 && response.status !== 502) return wrong("status")
  const line = text.startsWith("{") ? text : text.split("\n").findLast((line) => line.startsWith("data: {"))?.slice(6)
  if (line === undefined) return wrong("no answer")
  const message = JSON.parse(line)
  if (message.id !== id) return wrong(`not the id ${id}`)
  if (response.status === 502 && message.error === undefined) return wrong("no error")
  if (message.error !== undefined) return { _tag: "Failed", message: String(message.error.message) }
  const [name, pid, count] = String(message.result?.content?.[0]?.text).split(" ")
  if (name !== session.name) return wrong("another session's answer")
  return { _tag: "Counted", pid: Number(pid), count: Number(count) }
}

/**
 * What is wrong with the answers of a session whose calls were made one after the other: each process must count on from what
 * it has counted, but for calls whose answers were lost; none comes back after another; a session that was gone stays so; one
 * that is pinned has one process.
 */
export const faults = (session: Session, kind: "pinned" | "stateless"): ReadonlyArray<string> => {
  const faults: Array<string> = []
  const fault = (text: string) => faults.push(`${session.name}: ${text}`)
  const pids: Array<number> = []
  let last = 0
  let lost = 0
  let gone = false
  for (const outcome of session.outcomes) {
    switch (outcome._tag) {
      case "Wrong":
        fault(outcome.message)
        break
      case "Gone":
        gone = true
        break
      case "Counted": {
        const { count, pid } = outcome
        if (gone) fault(`answers ${count} after it was gone`)
        if (pid !== pids.at(-1)) {
          if (pids.includes(pid)) fault(`process ${pid} serves again after another did`)
          pids.push(pid)
          last = 0
        }
        const skipped = count - last - 1
        if (skipped < 0 || skipped > lost) fault(`process ${pid} counts ${count} after ${last}`)
        lost = Math.max(0, lost - skipped)
        last = count
        break
      }
      default:
        lost++
    }
  }
  if (kind === "pinned" && pids.length > 1) fault(`has had the processes ${pids.join(", ")}`)
  return faults
}

/** The sessions of which, by what the processes noted, one served after another had taken its place. */
export const overlaps = (file: string): ReadonlyArray<string> => {
  const served = new Map<string, Array<string>>()
  for (const line of readFileSync(file, "utf8").trimEnd().split("\n")) {
    const [name = "", pid = ""] = line.split(" ")
    const pids = served.get(name) ?? []
    served.set(name, pids)
    if (pids.at(-1) !== pid) pids.push(pid)
  }
  return [...served].filter(([, pids]) => new Set(pids).size < pids.length)
    .map(([name, pids]) => `${name} was served by ${pids.join(", then ")}`)
}

/** Of the outcomes of some sessions since a time, how many there are of each kind. */
export const tally = (sessions: ReadonlyArray<Session>, since = 0): Partial<Record<Outcome["_tag"], number>> => {
  const counts: Partial<Record<Outcome["_tag"], number>> = {}
  for (const { _tag, at } of sessions.flatMap(({ outcomes }) => outcomes)) {
    if (at >= since) counts[_tag] = (counts[_tag] ?? 0) + 1
  }
  return counts
}

export interface Traffic {
  /** Ends it when the calls that run are answered. */
  readonly stop: () => Promise<void>
}

/** Each session calls again and again, one call after the other, at what `pick` says, until it is gone or all are stopped. */
export const traffic = (sessions: ReadonlyArray<Session>, pick: () => string, pauseMillis = 200): Traffic => {
  const stop = new AbortController()
  const running = sessions.map(async (session) => {
    while (!stop.signal.aborted) {
      const { _tag } = await call(pick(), session)
      if (_tag === "Gone") return
      await new Promise((resolve) => setTimeout(resolve, pauseMillis))
    }
  })
  return {
    stop: async () => {
      stop.abort()
      await Promise.all(running)
    }
  }
}

/**
 * Waits until every session has had four more calls, or is gone. The first may have begun before the wait. The
 * other three are, on average, one at each of three replicas.
 */
export const calledAgain = (sessions: ReadonlyArray<Session>) => {
  const before = sessions.map(({ outcomes }) => outcomes.length)
  return Kit.eventually(
    "all are called again",
    () =>
      sessions.every(({ outcomes }, i) => outcomes.at(-1)?._tag === "Gone" || outcomes.length >= (before[i] ?? 0) + 4),
    60
  )
}
