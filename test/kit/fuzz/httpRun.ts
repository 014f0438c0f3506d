/** Sends the cases of the HTTP fuzz to a real gateway, checks what comes back, and what is left behind. */
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Kit from "../gateway/gateway.ts"
import type { RawConnection } from "../gateway/rawHttp.ts"
import * as Raw from "../gateway/rawHttp.ts"
import * as Answers from "./answers.ts"
import * as FuzzHttp from "./http.ts"
import type { Case } from "./parts.ts"
import { finishedCall, limits, listedOrigin } from "./parts.ts"

const keys = { ours: "our-key-0123456789", theirs: "their-key-0123456789", admin: "admin-key-0123456789" }
const bearer = (key: string) => ({ authorization: `Bearer ${key}` })
const workers = 4
/** After so many cases the control session is asked. */
const between = 250

export interface Report {
  readonly cases: number
  readonly failures: ReadonlyArray<string>
  readonly statuses: Readonly<Record<string, number>>
  readonly kinds: number
}

export interface Options {
  readonly seed: number
  readonly from: number
  readonly count: number
  /** Called after every 250 cases. */
  readonly onProgress?: (done: number) => void
}

export const run = async ({ count, from, onProgress, seed }: Options): Promise<Report> => {
  const target = await start()
  const { failures, gateway } = target
  const before = await state(target)
  const statuses: Record<string, number> = {}
  const kinds = new Set<string>()
  let next = from
  let done = 0
  const work = async () => {
    let worker: Worker = {
      ...await openForWorker(target),
      connection: await Raw.open(target.port),
      before: undefined,
      count: 0
    }
    for (let index = next++; index < from + count; index = next++) {
      const test = FuzzHttp.make(seed, index)
      kinds.add(test.kind)
      const { status, worker: after } = await attempt(target, worker, test)
      statuses[status] = (statuses[status] ?? 0) + 1
      worker = after
      if (++done % between === 0) {
        onProgress?.(done)
        await control(target)
      }
      if (failures.length > 20 || gateway.child.exitCode !== null) break
    }
    await end(target, worker.session)
    worker.connection.socket.destroy()
  }
  await Promise.all(Array.from({ length: workers }, work))
  await control(target)
  await finish(target, before)
  return { cases: done, failures, statuses, kinds: kinds.size }
}

// -----------------------------------------------------------------------------
// The gateway, and the sessions in it
// -----------------------------------------------------------------------------

interface Target {
  readonly gateway: Kit.Run
  readonly directory: string
  readonly url: string
  readonly port: number
  readonly failures: Array<string>
  /** Sessions that no case may reach: of another key, of another back end; one that is over; one to ask in between. */
  readonly theirs: string
  readonly elsewhere: string
  readonly ended: string
  readonly control: { readonly session: string; count: number }
}

const at = ({ url }: { readonly url: string }, backend: "a" | "b"): string => url.replace("/mcp/a", `/mcp/${backend}`)

const open = async (target: { readonly url: string }, backend: "a" | "b", key = keys.ours): Promise<string> => {
  const headers = { ...Kit.headers, ...bearer(key) }
  const response = await fetch(at(target, backend), { method: "POST", headers, body: Kit.initializeBody })
  await response.text()
  return String(response.headers.get("mcp-session-id"))
}

/** A session with a stream that has ended. */
const openForWorker = async (target: { readonly url: string }) => {
  const session = await open(target, "a")
  const call = Kit.toolCall(finishedCall, "progress")
  const events: Array<string> = []
  await Kit.readEvents(await Kit.post(target.url, session, call, bearer(keys.ours)), ({ id = "" }) => {
    events.push(id)
    return false
  })
  const [lastButOne = "", last = ""] = events.slice(-2)
  return { session, last, lastButOne }
}

const end = async ({ url }: { readonly url: string }, session: string): Promise<void> => {
  await (await fetch(url, { method: "DELETE", headers: { "mcp-session-id": session, ...bearer(keys.ours) } })).text()
}

const start = async (): Promise<Target> => {
  const directory = mkdtempSync(join(tmpdir(), "gateway-"))
  const file = join(directory, "fuzz.json")
  writeFileSync(file, JSON.stringify({ mcpServers: { a: Kit.counter(), b: Kit.counter() } }))
  const gateway = Kit.run(
    ["--port", "0", "--config", file, "--allowed-origins", listedOrigin].concat(
      ["--max-body-bytes", String(limits.bodyBytes), "--max-header-bytes", String(limits.headerBytes)],
      ["--stream-lost-time-to-live", "1 day", "--idle-time-to-live", "1 day"],
      // The handles that are left in the end are not those of connections that wait for a next request.
      ["--keep-alive-timeout", "1 second"]
    ),
    { GATEWAY_KEYS: `${keys.ours},${keys.theirs}`, GATEWAY_ADMIN_KEYS: keys.admin }
  )
  const url = await Kit.urlOf(gateway)
  const ended = await open({ url }, "a")
  await end({ url }, ended)
  return {
    gateway,
    directory,
    url,
    port: Number(new URL(url).port),
    failures: [],
    theirs: await open({ url }, "a", keys.theirs),
    elsewhere: await open({ url }, "b"),
    ended,
    control: { session: await open({ url }, "a"), count: 0 }
  }
}

const countOf = async (url: string, session: string, key: string): Promise<string> => {
  const { result } = await (await Kit.post(url, session, Kit.toolCall(1, "count"), bearer(key))).json()
  return result.content[0].text
}

/** A session beside the attack goes on counting by one. */
const control = async ({ control, failures, url }: Target): Promise<void> => {
  const expected = String(++control.count)
  const found = await countOf(url, control.session, keys.ours).catch(String)
  if (found !== expected) failures.push(`the control session counted ${found}, not ${expected}`)
}

const state = async ({ gateway, url }: Target) => {
  const { sessions } = await (await fetch(new URL("/sessions", url), { headers: bearer(keys.admin) })).json()
  const busy = ({ inFlight, streams }: { readonly inFlight: number; readonly streams: number }) =>
    inFlight + streams > 0
  const pid = gateway.child.pid ?? 0
  return {
    sessions: sessions.length,
    busy: sessions.filter(busy).length,
    processes: Kit.descendants(pid).length,
    handles: readdirSync(`/proc/${pid}/fd`).length
  }
}

/** What must hold when all cases are over. */
const finish = async (target: Target, before: Awaited<ReturnType<typeof state>>): Promise<void> => {
  const { directory, elsewhere, failures, gateway, theirs } = target
  for (const [url, session, key] of [[at(target, "a"), theirs, keys.theirs], [at(target, "b"), elsewhere, keys.ours]]) {
    const found = await countOf(url ?? "", session ?? "", key ?? "").catch(String)
    if (found !== "1") failures.push(`a session that no case may reach counted ${found}`)
  }
  let after = before
  await Kit.eventually("nothing is left", async () => {
    after = await state(target)
    return after.sessions === before.sessions && after.busy === 0 && after.processes === before.processes &&
      after.handles <= before.handles
  }).catch(() => failures.push(`left: ${JSON.stringify(after)}, before: ${JSON.stringify(before)}`))
  if (gateway.child.exitCode !== null) failures.push(`the gateway has ended with ${gateway.child.exitCode}`)
  gateway.child.kill("SIGTERM")
  await gateway.exit
  rmSync(directory, { recursive: true })
  const wrong = /.*(A request failed with a defect|"level":"(ERROR|FATAL)"|[Uu]nhandled|Warning:|\n {4}at ).*/.exec(
    gateway.output()
  )
  if (wrong !== null) failures.push(`the gateway has logged: ${wrong[0].slice(0, 1000)}`)
}

// -----------------------------------------------------------------------------
// One case
// -----------------------------------------------------------------------------

interface Worker {
  readonly session: string
  /** Events of its stream that has ended. */
  readonly last: string
  readonly lastButOne: string
  readonly connection: RawConnection
  /** The case before on this connection. */
  readonly before: Case | undefined
  /** What the session's process has counted at least. */
  readonly count: number
}

/** Sends a case, and checks what comes. */
const attempt = async (target: Target, worker: Worker, test: Case) => {
  const { failures } = target
  const reused = worker.connection.usable()
  let connection = reused ? worker.connection : await Raw.open(target.port)
  const { elsewhere, ended, theirs } = target
  const ours = { ours: worker.session, OURS: worker.session.toUpperCase() }
  const { last, lastButOne } = worker
  const words = { theirs, elsewhere, ended, ...ours, last, lastButOne, key: keys.ours, admin: keys.admin }
  const events = test.outcomes.some(({ body }) => body.is === "events")
  const send = (test: Case) =>
    connection.exchange(bytesOf(test, words), {
      head: test.method === "HEAD",
      firstBytes: test.outcomes.some(({ body }) => body.is === "events"),
      end: test.end
    }).catch((error: unknown) => {
      failures.push(Answers.describe(test, undefined, String(error)))
      connection.socket.destroy()
      return undefined
    })
  let said = await send(test)
  const mayClose = test.outcomes.some(({ status }) => status === "closed")
  if (said === undefined && reused && !mayClose && worker.before !== undefined) {
    // A starved server finds its keep-alive time over before it finds the request. If it was the case before that made it
    // close, it does so again.
    connection = await Raw.open(target.port)
    await send(worker.before)
    if (!connection.usable()) connection = await Raw.open(target.port)
    said = await send(test)
  }
  const reason = Answers.breaks(test.outcomes, said, worker.count) ??
    [...Object.values(keys), theirs, elsewhere, target.control.session, "    at "]
      .filter((secret) => said?.body.includes(secret) === true).map((secret) => `it holds ${secret}`)[0]
  if (reason !== undefined) failures.push(Answers.describe(test, said, reason))
  if (events || test.end) connection.socket.destroy()
  const opened = said?.headers.get("mcp-session-id")
  if (opened !== undefined) await end(target, opened)
  const status = said?.status ?? "closed"
  if (status === 400 && test.outcomes.some((outcome) => outcome.status === 200)) await settle(target, worker, test)
  const counted = status === 200 && test.outcomes.some(({ body }) => body.is === "answers" && body.count === true)
  const next: Worker = test.ends && status === 204
    ? { ...await openForWorker(target), connection, before: test, count: 0 }
    : { ...worker, connection, before: test, count: worker.count + (counted ? 1 : 0) }
  return { status, worker: next }
}

/** Of a batch that was refused in the middle some requests run; they must not meet the ids of the next case. */
const settle = async ({ url }: Target, { session }: Worker, { index }: Case): Promise<void> => {
  await (await Kit.post(url, session, Kit.toolCall(`after ${index}`, "pids"), bearer(keys.ours))).text()
}

/** The writes of a case, with the words filled in. */
const bytesOf = (test: Case, words: Readonly<Record<string, string>>): ReadonlyArray<Buffer> => {
  const head = Buffer.from(test.head.replace(/\{(\w+)\}/g, (text, word: string) => words[word] ?? text), "latin1")
  const cuts = [0, ...test.cuts, test.body.length]
  const [first = Buffer.alloc(0), ...rest] = cuts.slice(1).map((to, i) => test.body.subarray(cuts[i], to))
  return [Buffer.concat([head, first]), ...rest]
}
