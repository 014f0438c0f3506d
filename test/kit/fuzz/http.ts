/**
 * Random requests to a real gateway. Each request says which statuses are allowed: those of its wrong parts, or of success if
 * no part is wrong. Its number and the seed alone make a request, so one can be sent again.
 */
import { readdirSync } from "node:fs"
import * as Kit from "../gateway/gateway.ts"
import type { RawResponse } from "../gateway/rawHttp.ts"
import * as Raw from "../gateway/rawHttp.ts"
import * as Serving from "../gateway/serving.ts"
import type { Random } from "../random.ts"
import * as Random_ from "../random.ts"
import * as Bodies from "./bodies.ts"
import * as Parts from "./parts.ts"

/** Sessions and keys stand in braces in `head`, because only a running gateway knows them. */
export interface Case {
  readonly kind: string
  readonly method: string
  readonly head: string
  readonly body: Buffer
  /** Half-closes the connection afterwards, because the request is not whole. */
  readonly end?: boolean
  /** Whether the answer may open a session. */
  readonly opens?: boolean
  readonly statuses: ReadonlyArray<number | "closed">
}

/** Picks a value of each part, most often only good ones, and the statuses of the bad ones. */
const choose = (random: Random, parts: ReadonlyArray<Parts.Part>) => {
  const wrong = new Set(Array.from({ length: random.pick([0, 0, 0, 1, 1, 2]) }, () => random.pick(parts)))
  return {
    texts: parts.map((part) => random.pick(wrong.has(part) ? part.bad : part.good)),
    wrong: [...wrong]
  }
}

const methods = "POST POST POST POST POST GET DELETE PUT OPTIONS HEAD QUERY".split(" ")

const mcp = (random: Random): Case => {
  const method = random.pick(methods)
  const { session } = Parts
  const { texts: [path = "", ...headers], wrong } = choose(random, [
    Parts.path,
    ...Parts.outer,
    Parts.version,
    Parts.accept,
    ...(method === "POST" ? [Parts.contentType] : []),
    // The only part of DELETE that is always bad: to end sessions and start others takes long.
    method === "DELETE" ? { ...session, good: session.bad } : session
  ])
  const body = method !== "POST"
    ? Buffer.alloc(0)
    : random.chance(0.03)
    ? Buffer.alloc(Parts.limits.bodyBytes + 1, "[")
    : Bodies.body(random)
  const isPost = method === "POST"
  const length = random.chance(0.8) ? `Content-Length: ${body.length}\r\n` : "Transfer-Encoding: chunked\r\n"
  const extra = random.chance(0.3) ? random.pick(Parts.others) : ""
  const outer = wrong.filter((part) => Parts.outer.includes(part))
  const found = (outer.length > 0 ? outer : wrong).map(({ status }) => status)
  return {
    kind: `${method} ${[...new Set(found)].join("+")}`,
    method,
    head: `${method} ${path} HTTP/1.1\r\n${headers.join("")}${extra}${isPost ? length : ""}\r\n`,
    body: length.startsWith("T") && isPost ? chunked(random, body) : body,
    opens: body.includes("initialize"),
    statuses: [...(found.length > 0 ? found : success[method] ?? []), ...inside(method, body, outer.length > 0)]
  }
}

const success: Record<string, ReadonlyArray<number>> = { POST: [200, 202], GET: [200] }

/** The further statuses that the method and the body allow. `isOutside`: the host, the origin or the key is wrong. */
const inside = (method: string, body: Buffer, isOutside: boolean): ReadonlyArray<number> => {
  // Every preflight is answered, but grants no page access.
  if (method === "OPTIONS") return [204, 405]
  if (isOutside) return []
  if (method === "DELETE") return [404]
  if (method === "GET") return []
  if (method !== "POST") return [405]
  if (body.length > Parts.limits.bodyBytes) return [413]
  // `initialize` opens a session even if it carries a session id.
  return body.includes("initialize") ? [200, 400] : [400]
}

const chunked = (random: Random, body: Buffer): Buffer => {
  const parts: Array<Buffer> = []
  for (let at = 0; at < body.length;) {
    const part = body.subarray(at, at + 1 + random.below(random.pick([3, 100, 10_000])))
    parts.push(Buffer.from(`${part.length.toString(16)}\r\n`), part, Buffer.from("\r\n"))
    at += part.length
  }
  return Buffer.concat([...parts, Buffer.from(`0\r\n${random.chance(0.9) ? "" : "Mcp-Session-Id: x\r\n"}\r\n`)])
}

const operators = (random: Random): Case => {
  const key: Parts.Part = {
    status: 401,
    good: ["Authorization: Bearer {admin}\r\n"],
    bad: ["", "Authorization: Bearer {key}\r\n", "Authorization: Basic {admin}\r\n"]
  }
  const path = random.pick([...Parts.openPaths, ...Parts.guardedPaths, ...Parts.guardedPaths, ...Parts.unknownPaths])
  const method = random.pick(["GET", "GET", "HEAD", "POST", "DELETE", "OPTIONS"])
  const isRead = method === "GET" || method === "HEAD"
  const { texts, wrong } = choose(random, [...Parts.outer.slice(0, 2), key])
  const found = wrong.filter((part) => part !== key || !Parts.openPaths.includes(path)).map(({ status }) => status)
  const known = [...Parts.openPaths, ...Parts.guardedPaths].includes(path) && isRead
  return {
    kind: `operators ${method}`,
    method,
    head: `${method} ${path} HTTP/1.1\r\n${texts.join("")}\r\n`,
    body: Buffer.alloc(0),
    statuses: known ? (found.length > 0 ? found : [200]) : [401, 403, 404]
  }
}

/** Requests that are no HTTP, or not complete. Some are valid by chance, but none opens or ends a session. */
const broken = (index: number, random: Random): Case => {
  const base = { method: "POST", end: true, body: Buffer.alloc(0) }
  if (random.chance(0.5)) {
    return { ...base, kind: "broken", head: random.pick(Parts.broken), statuses: [400, 431, "closed"] }
  }
  const session = random.pick(["{ours}", "{theirs}"])
  const ping = `{"jsonrpc":"2.0","id":"damaged ${index}","method":"ping"}`
  const whole =
    `POST /mcp/a HTTP/1.1\r\n${Parts.json}Mcp-Session-Id: ${session}\r\nContent-Length: ${ping.length}\r\n\r\n${ping}`
  return {
    ...base,
    kind: "damaged",
    head: Bodies.damaged(random, Buffer.from(whole, "latin1")).toString("latin1"),
    statuses: ["closed", 200, 202, 204, 400, 401, 403, 404, 405, 406, 413, 415, 417, 431]
  }
}

/** The case of a seed with this number. */
export const make = (seed: number, index: number): Case => {
  const random = Random_.ofCase(seed, index)
  const kind = random.below(10)
  return kind < 7 ? mcp(random) : kind < 8 ? operators(random) : broken(index, random)
}

// -----------------------------------------------------------------------------
// The gateway
// -----------------------------------------------------------------------------

const keys = { ours: "our-key-0123456789", theirs: "their-key-0123456789", admin: "admin-key-0123456789" }

const start = async () => {
  const { bodyBytes, headerBytes } = Parts.limits
  const flags = ["--max-body-bytes", String(bodyBytes), "--max-header-bytes", String(headerBytes)]
    // Otherwise idle connections would count as handles that are left.
    .concat(["--keep-alive-timeout", "1 second", "--allowed-origins", Parts.listedOrigin])
  const env = { GATEWAY_KEYS: `${keys.ours},${keys.theirs}`, GATEWAY_ADMIN_KEYS: keys.admin }
  const gateway = await Kit.runServers({ a: Kit.counter(), b: Kit.counter() }, flags, env)
  const { url } = gateway
  const elsewhere = url.replace("/mcp/a", "/mcp/b")
  const open = (at: string, key: string) => Kit.open(at, {}, Kit.bearer(key))
  const end = async (session: string) => {
    await (await Serving.remove(url, session, Kit.bearer(keys.ours))).text()
  }
  const ended = await open(url, keys.ours)
  await end(ended)
  return {
    gateway,
    url,
    end,
    ended,
    ours: await open(url, keys.ours),
    /** Sessions that no case may reach, each with the count of its calls. */
    others: {
      theirs: { url, key: keys.theirs, session: await open(url, keys.theirs), count: 0 },
      elsewhere: { url: elsewhere, key: keys.ours, session: await open(elsewhere, keys.ours), count: 0 }
    },
    failures: Array<string>()
  }
}

type Target = Awaited<ReturnType<typeof start>>

/** Checks that the sessions of others go on counting by one. */
const countOn = async ({ failures, others }: Target): Promise<void> => {
  for (const [name, other] of Object.entries(others)) {
    const response = Kit.post(other.url, other.session, Kit.toolCall(1, "count"), Kit.bearer(other.key))
    const found = await response.then(Kit.answerOf).then(({ result }) => result.content[0].text).catch(String)
    if (found !== String(++other.count)) failures.push(`${name} counted ${found}, not ${other.count}`)
  }
}

const stateOf = async ({ gateway, url }: Target) => {
  const { sessions } = await Serving.overview(new URL(url).origin, Kit.bearer(keys.admin))
  const pid = gateway.child.pid ?? 0
  return {
    sessions: sessions.length,
    busy: sessions.filter(({ inFlight, streams }) => inFlight + streams > 0).length,
    processes: Kit.descendants(pid).length,
    handles: readdirSync(`/proc/${pid}/fd`).length
  }
}

/** Checks that the cases left nothing and that the gateway logged no defect. Stops the gateway. */
const finish = async (target: Target, before: Awaited<ReturnType<typeof stateOf>>): Promise<void> => {
  const { failures, gateway } = target
  let after = before
  await Kit.eventually("nothing is left", async () => {
    after = await stateOf(target)
    return after.sessions === before.sessions && after.busy === 0 && after.processes === before.processes &&
      after.handles <= before.handles
  }).catch(() => failures.push(`left: ${JSON.stringify(after)}, before: ${JSON.stringify(before)}`))
  if (gateway.child.exitCode !== null) failures.push(`the gateway has ended with ${gateway.child.exitCode}`)
  gateway.child.kill("SIGTERM")
  await gateway.exit
  const wrong = Kit.wrongIn(gateway.output())
  if (wrong !== undefined) failures.push(`the gateway has logged: ${wrong}`)
}

// -----------------------------------------------------------------------------
// One case
// -----------------------------------------------------------------------------

/** Why an answer is not allowed; `undefined` if it is. */
const faultOf = ({ opens, statuses }: Case, said: RawResponse | undefined, secrets: ReadonlyArray<string>) => {
  if (!statuses.includes(said?.status ?? "closed")) return "a status that is not listed"
  if (said === undefined) return undefined
  const secret = secrets.find((secret) => said.body.includes(secret))
  if (secret !== undefined) return `it holds ${secret}`
  if (said.headers.has("mcp-session-id") && opens !== true) return "a new session"
  if (said.headers.get("content-type") !== "application/json" || said.body === "") return undefined
  const { error, jsonrpc } = JSON.parse(said.body)
  if (said.status < 400) return undefined
  // The operators' routes answer without JSON-RPC.
  const text = jsonrpc === "2.0" ? error.message : error
  return typeof text === "string" ? undefined : "an error without a message"
}

const attempt = async (target: Target, connection: Raw.RawConnection, seed: number, index: number) => {
  const test = make(seed, index)
  const { ended, failures, others, ours, url } = target
  const [theirs, elsewhere] = [others.theirs.session, others.elsewhere.session]
  const sessions = { ours, OURS: ours.toUpperCase(), theirs, elsewhere, ended }
  const words: Record<string, string> = { ...sessions, key: keys.ours, admin: keys.admin }
  const quoted = (text: string) => JSON.stringify(text.slice(0, 1000))
  const fail = (reason: string, said?: RawResponse) =>
    failures.push(
      `case ${index} (${test.kind}): ${reason}
  sent: ${quoted(test.head)} + ${quoted(test.body.toString("latin1"))}
  came: ${said === undefined ? "nothing" : `${said.status} ${quoted(said.body)}`}
  allowed: ${test.statuses.join()}`
    )
  const head = Buffer.from(test.head.replace(/\{(\w+)\}/g, (text, word: string) => words[word] ?? text), "latin1")
  const isStream = test.method === "GET" && test.kind === "GET "
  const send = (via: Raw.RawConnection) =>
    via.exchange([head, test.body], { head: test.method === "HEAD", firstBytes: isStream, end: test.end === true })
  const open = () => Raw.open(Number(new URL(url).port))
  let used = connection.usable() ? connection : await open()
  try {
    let said = await send(used)
    // On a busy machine the server may close an idle connection before it reads the request.
    if (said === undefined && used === connection && test.end !== true) said = await send(used = await open())
    const reason = faultOf(test, said, [...Object.values(keys), theirs, elsewhere, "\n    at "])
    if (reason !== undefined) fail(reason, said)
    const opened = said?.headers.get("mcp-session-id")
    if (opened !== undefined) await target.end(opened)
    if (isStream || test.end === true) used.socket.destroy()
    return { status: said?.status ?? "closed", connection: used }
  } catch (error) {
    fail(String(error))
    used.socket.destroy()
    return { status: "closed", connection: used }
  }
}

/** Sends cases on four connections, and calls `onProgress` after every 250. Returns each failure, and the count of each status. */
export const run = async (seed: number, from: number, count: number, onProgress = (_done: number) => {}) => {
  const target = await start()
  const before = await stateOf(target)
  const statuses: Record<string, number> = {}
  let next = from
  let done = 0
  const work = async () => {
    let connection = await Raw.open(Number(new URL(target.url).port))
    for (let index = next++; index < from + count && target.failures.length <= 20; index = next++) {
      const tried = await attempt(target, connection, seed, index)
      connection = tried.connection
      statuses[tried.status] = (statuses[tried.status] ?? 0) + 1
      if (++done % 250 === 0) {
        onProgress(done)
        await countOn(target)
      }
    }
    connection.socket.destroy()
  }
  await Promise.all([1, 2, 3, 4].map(work))
  await countOn(target)
  await finish(target, before)
  return { cases: done, failures: target.failures, statuses }
}
