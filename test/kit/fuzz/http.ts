/**
 * Cases for the fuzz of the HTTP side. Each is made by a seed and its number alone, and says what may come back: a list of
 * outcomes, each a status and what the body must be.
 *
 * Sessions and keys stand in a case as words in braces, because only a running gateway knows them.
 */
import type { Random } from "../random.ts"
import * as Random_ from "../random.ts"
import * as Bodies from "./bodies.ts"
import type { Case, Fault, Outcome, Parts } from "./parts.ts"
import {
  accepts,
  authorizations,
  contentTypes,
  error,
  extra,
  finishedCall,
  hosts,
  limits,
  ofHead,
  origins,
  paths,
  sessions,
  versions
} from "./parts.ts"
import * as Transport from "./transport.ts"

/** For what costs a process. */
const rare = 1 / 300
const otherMethods = ["PUT", "PATCH", "OPTIONS", "HEAD", "PURGE", "QUERY", "PROPFIND", "TRACE", "SEARCH"] as const

type Wrong = "host" | "origin" | "key" | "path" | "version" | "method" | "accept" | "type" | "session" | "size" | "body"
const outer: ReadonlyArray<Wrong> = ["host", "origin", "key"]
const ofMethod = (method: string): ReadonlyArray<Wrong> =>
  method === "POST"
    ? ["path", "version", "accept", "type", "session", "session", "session", "size"]
    : method === "GET"
    ? ["path", "version", "accept", "session"]
    : method === "DELETE"
    ? ["path", "version", "session"]
    : ["path", "version", "method"]

/** The method of a request, and what is wrong with it: often nothing but the body, more often one thing. */
const plan = (random: Random): { readonly method: string; readonly wrong: ReadonlySet<Wrong> } => {
  const kind = random.below(100)
  const method = kind < 78 ? "POST" : kind < 86 ? "GET" : kind < 93 ? "DELETE" : random.pick(otherMethods)
  const places = [...outer, ...ofMethod(method)]
  const wrong = new Set<Wrong>()
  for (let i = random.pick([0, 0, 0, 0, 1, 1, 1, 2, 3]); i > 0; i--) wrong.add(random.pick(places))
  if (!["POST", "GET", "DELETE"].includes(method)) wrong.add("method")
  // Ending a session and starting another costs a process.
  if (method === "DELETE" && wrong.size === 0 && !random.chance(rare * 10)) wrong.add("session")
  return { method, wrong }
}

const mcp = (index: number, random: Random): Case => {
  const { method, wrong } = plan(random)
  const faults: Array<readonly [Wrong, Fault]> = []
  const choose = (name: Wrong, { bad, good }: { readonly good: Parts; readonly bad: Parts }): string => {
    const part = random.pick(wrong.has(name) ? bad : good)
    if (part.fault !== undefined) faults.push([name, part.fault])
    return part.text
  }
  const target = choose("path", paths)
  let header = choose("host", hosts) + choose("origin", origins) + choose("key", authorizations)
  const version = choose("version", versions)
  header += version + choose("accept", accepts)
  if (wrong.has("method")) faults.push(["method", error(405)])

  const missing = wrong.has("session") && random.chance(0.2)
  const session = missing ? random.pick(sessions.missing).text : choose("session", sessions)
  let body: Buffer = Buffer.alloc(0)
  let success: ReadonlyArray<Outcome> = [{ status: 200, body: { is: "events" } }]
  // `initialize` opens a session whatever session id it carries.
  let anySession = false
  if (method === "DELETE") success = [{ status: 204, body: { is: "empty" } }]
  if (method === "POST") {
    header += choose("type", contentTypes)
    body = wrong.has("size") ? Buffer.alloc(limits.bodyBytes + 1 + random.below(5000), "[") : Bodies.body(random)
    // Seldom: each session is a process.
    const isRightElse = faults.every(([name]) => name === "session")
    if (isRightElse && random.chance(missing ? rare * 20 : rare * 6)) body = initialize(random)
    if (body.length > limits.bodyBytes) faults.push(["size", error(413)])
    const read = ofBody(body, !/: 2025-(06|11)/.test(version))
    if (read.fault !== undefined) faults.push(["body", read.fault])
    success = read.success
    anySession = read.initialize
    // An error about a valid request may carry its id.
    for (const [i, [name, fault]] of faults.entries()) faults[i] = [name, withIds(fault, read.ids)]
  }
  if (missing) faults.push(["session", error(400)])
  const counted = anySession ? faults.filter(([name]) => name !== "session") : faults
  const resumed = method === "GET" && random.chance(0.4) ? random.pick(resumptions) : undefined
  if (resumed !== undefined) success = resumed.success
  const framed = frame(random, method, header + session + (resumed?.text ?? extra(random)), body)
  return {
    index,
    kind: `${method} ${[...wrong].join("+") || "right"}`,
    head: `${method} ${target} HTTP/1.1\r\n${framed.header}\r\n`,
    body: framed.body,
    cuts: cuts(random, framed.body.length),
    method,
    end: false,
    ends: counted.length === 0 && method === "DELETE",
    outcomes: outcomesOf(method, header, counted, success)
  }
}

const outcomesOf = (
  method: string,
  header: string,
  faults: ReadonlyArray<readonly [Wrong, Fault]>,
  success: ReadonlyArray<Outcome>
): ReadonlyArray<Outcome> => {
  // A preflight, which carries nothing; what it is told lets no page in.
  if (method === "OPTIONS" && header.includes("Origin:")) return [{ status: 204, body: { is: "empty" } }]
  if (faults.length === 0) return success
  // Who may not come in learns nothing else.
  const first = faults.filter(([name]) => outer.includes(name))
  return ofHead(method, (first.length > 0 ? first : faults).flatMap(([, fault]) => fault))
}

const withIds = (fault: Fault, ids: ReadonlyArray<unknown>): Fault =>
  fault.map((outcome) => outcome.body.is === "error" ? { ...outcome, body: { ...outcome.body, ids } } : outcome)

/** Often with a revision, else with any params. The test server accepts every revision. */
const initialize = (random: Random): Buffer => {
  const version = random.pick(["\"2025-06-18\"", "\"2025-11-25\"", "\"\"", "\"\\ud800\"", "\"__proto__\"", "1", "null"])
  const params = random.chance(0.7)
    ? `{"capabilities":{},"protocolVersion":${version},"clientInfo":${Bodies.anyJson(random)}}`
    : Bodies.anyJson(random)
  return Buffer.from(
    `{"jsonrpc":"2.0","id":${random.pick(["0", "\"x\"", "1.5"])},"method":"initialize","params":${params}}`
  )
}

/** Resumptions of a finished stream: after its last event nothing comes, after the one before the answer comes again. */
const resumptions: ReadonlyArray<{ readonly text: string; readonly success: ReadonlyArray<Outcome> }> = [
  { text: "Last-Event-ID: {last}\r\n", success: [{ status: 204, body: { is: "empty" } }] },
  {
    text: "Last-Event-ID: {lastButOne}\r\n",
    success: [{ status: 200, body: { is: "answers", ids: [finishedCall] } }]
  }
]

/** What a body leads to in a live session. `initialize`: the session id that it carries does not count. */
const ofBody = (body: Buffer, batches: boolean) => {
  const meaning = Bodies.meaningOf(body, batches)
  const wrong = (code: number, ids: ReadonlyArray<unknown> = []) => ({
    fault: error(400, code),
    success: [],
    ids,
    initialize: false
  })
  const right = (outcomes: ReadonlyArray<Outcome>, ids: ReadonlyArray<unknown>, initialize = false) => ({
    fault: undefined,
    success: outcomes,
    ids,
    initialize
  })
  const accepted = [{ status: 202, body: { is: "empty" } }] as const
  switch (meaning.is) {
    case "broken":
      return wrong(-32700)
    case "invalid":
      return wrong(-32600)
    case "silent":
      return right(accepted, [])
    case "request": {
      const { id, method, revision, tool } = meaning
      if (method === "initialize") {
        const opened = { status: 200, body: { is: "answers", ids: [id], opens: true } } as const
        return revision ? right([opened], [id], true) : { ...wrong(-32602, [id]), initialize: true }
      }
      const echo = tool === "raw" ? { echo: Bodies.textOf(body).replace(/[\r\n]/g, " ") } : {}
      const rule = { is: "answers", ids: [id], count: tool === "count", ...echo } as const
      return right([{ status: 200, body: rule }], [id])
    }
    case "batch": {
      const { ids, initialize } = meaning
      if (initialize) return wrong(-32600, ids)
      if (ids.length === 0) return right(accepted, ids)
      return right([
        { status: 200, body: { is: "answers", ids } },
        // The second of two equal ids, unless the first has been answered.
        ...(new Set(ids).size < ids.length ? error(400, -32600, ids) : [])
      ], ids)
    }
  }
}

/** Gives the body its length, in one of the ways that HTTP has. */
const frame = (random: Random, method: string, header: string, body: Buffer) => {
  if (body.length === 0 && method !== "POST") return { header, body }
  if (random.chance(0.7)) return { header: `${header}Content-Length: ${body.length}\r\n`, body }
  const expect = random.chance(0.1) ? "Expect: 100-continue\r\n" : ""
  if (expect !== "") return { header: `${header}${expect}Content-Length: ${body.length}\r\n`, body }
  const parts: Array<Buffer> = []
  for (let at = 0; at < body.length;) {
    const length = Math.min(body.length - at, 1 + random.below(random.pick([3, 100, 10_000])))
    const comment = random.chance(0.9) ? "" : ";a=\"b\""
    parts.push(Buffer.from(`${length.toString(16)}${comment}\r\n`), body.subarray(at, at + length), Buffer.from("\r\n"))
    at += length
  }
  const trailer = random.chance(0.9) ? "" : "X-Trailer: y\r\nMcp-Session-Id: x\r\n"
  return {
    header: `${header}Transfer-Encoding: chunked\r\n`,
    body: Buffer.concat([...parts, Buffer.from(`0\r\n${trailer}\r\n`)])
  }
}

const cuts = (random: Random, length: number): ReadonlyArray<number> =>
  random.chance(0.8) || length === 0
    ? []
    : Array.from({ length: 1 + random.below(3) }, () => random.below(length)).toSorted((a, b) => a - b)

/** The case of a seed with this number. */
export const make = (seed: number, index: number): Case => {
  const random = Random_.ofCase(seed, index)
  const kind = random.below(100)
  if (kind < 76) return mcp(index, random)
  if (kind < 84) return Transport.admin(index, random)
  return kind < 94 ? Transport.transport(index, random) : Transport.damaged(index, random)
}
