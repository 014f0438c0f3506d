/** Cases of the HTTP fuzz below HTTP and beside MCP: what no parser takes, damaged requests, the operators' routes. */
import type { Random } from "../random.ts"
import * as Bodies from "./bodies.ts"
import type { Case, Fault, Outcome } from "./parts.ts"
import { extra, hosts, limits, ofHead, origins } from "./parts.ts"

const good = "Host: localhost\r\nAuthorization: Bearer {key}\r\n"
const json = `${good}Accept: */*\r\nContent-Type: application/json\r\nMcp-Session-Id: {ours}\r\n`
/** The server closes with bytes of the client unread; the kernel may then throw the answer away. */
const closed: Outcome = { status: "closed", body: { is: "any" } }
const refused: Fault = [{ status: 400, body: { is: "empty" } }, closed]
const tooLarge: Fault = [{ status: 431, body: { is: "empty" } }, closed]

/** Requests that the server below the gateway has to refuse, with what is allowed to come back. */
const transports: ReadonlyArray<readonly [string, Fault]> = [
  ["FOO /mcp/a HTTP/1.1\r\n", refused],
  ["get /mcp/a HTTP/1.1\r\n", refused],
  [" GET /mcp/a HTTP/1.1\r\n", refused],
  ["GET /mcp/\xff HTTP/1.1\r\n", refused],
  ["GET /mcp/a HTTP/9.9\r\n", refused],
  ["GET /mcp/a HTTQ/1.1\r\n", refused],
  ["PRI * HTTP/2.0\r\n", refused],
  ["CONNECT evil.example:443 HTTP/1.1\r\n", [closed]],
  ["\x16\x03\x01\x02\x00\x01\x00", refused],
  ["POST /mcp/a HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n", refused],
  ["POST /mcp/a HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n", refused],
  ["POST /mcp/a HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n", refused],
  ["POST /mcp/a HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n", refused],
  ["POST /mcp/a HTTP/1.1\r\nTransfer-Encoding: gzip\r\n", refused],
  ["POST /mcp/a HTTP/1.1\r\nTransfer-Encoding: chunked, gzip\r\n", refused],
  ["POST /mcp/a HTTP/1.1\r\nTransfer-Encoding: chunkedx\r\n", refused],
  ["POST /mcp/a HTTP/1.1\r\nContent-Length: -1\r\n", refused],
  ["POST /mcp/a HTTP/1.1\r\nContent-Length: 0x2\r\n", refused],
  ["POST /mcp/a HTTP/1.1\r\nContent-Length: 1e1\r\n", refused],
  [`POST /mcp/a HTTP/1.1\r\nContent-Length: ${"9".repeat(30)}\r\n`, refused],
  ["GET /mcp/a HTTP/1.1\r\nX-A : b\r\n", refused],
  ["GET /mcp/a HTTP/1.1\r\nX-A: b\r\n c\r\n", refused],
  ["GET /mcp/a HTTP/1.1\r\nX-A: b\0c\r\n", refused],
  ["GET /mcp/a HTTP/1.1\r\nX-A: b\rc\r\n", refused],
  ["GET /mcp/a HTTP/1.1\r\n: b\r\n", refused],
  ["GET /mcp/a HTTP/1.1\r\nX\xe9: b\r\n", refused],
  ["GET /mcp/a HTTP/1.1\r\nX(A): b\r\n", refused],
  [`GET /mcp/a HTTP/1.1\r\nX-A: ${"x".repeat(limits.headerBytes + 1)}\r\n`, tooLarge],
  [`GET /mcp/${"x".repeat(limits.headerBytes + 1)} HTTP/1.1\r\n`, tooLarge],
  [`GET /mcp/a HTTP/1.1\r\n${"a: b\r\n".repeat(limits.headerBytes / 4)}`, tooLarge]
]

export const transport = (index: number, random: Random): Case => {
  const base = { index, cuts: [], method: "POST", end: true, ends: false }
  const message = Bodies.body(random).subarray(0, limits.bodyBytes / 2)
  switch (random.below(5)) {
    case 0: {
      // A length that never comes.
      const more = message.length + 1 + random.below(100)
      const head = `POST /mcp/a HTTP/1.1\r\n${json}Content-Length: ${more}\r\n\r\n`
      return { ...base, kind: "cut body", head, body: message, outcomes: refused }
    }
    case 1: {
      const chunks = random.pick([
        "zz\r\n{}\r\n0\r\n\r\n",
        "2\r\n{}x\r\n0\r\n\r\n",
        "-2\r\n{}\r\n",
        "5\r\n{}",
        "2;\0\r\n{}"
      ])
      const head = `POST /mcp/a HTTP/1.1\r\n${json}Transfer-Encoding: chunked\r\n\r\n`
      return { ...base, kind: "chunks", head, body: Buffer.from(chunks), outcomes: refused }
    }
    case 2: {
      // Any bytes instead of a request; a lucky one may mean something, but nothing that opens or ends a session.
      const bytes = Buffer.from(Array.from({ length: 1 + random.below(300) }, () => random.below(256)))
      return { ...base, kind: "bytes", head: "", body: bytes, outcomes: refused }
    }
    default: {
      const [head, outcomes] = random.pick(transports)
      const body = message.subarray(0, random.below(50))
      return { ...base, kind: "transport", head: `${head}${json}\r\n`, body, outcomes }
    }
  }
}

const statuses = (list: ReadonlyArray<number | "closed">): Fault =>
  list.map((status) => ({ status, body: { is: "any" } }))

/** A request of which some bytes were changed: it may mean much, but never a failure of the gateway. */
export const damaged = (index: number, random: Random): Case => {
  const method = random.pick(["POST", "GET", "PUT"])
  const body = method === "POST"
    ? Buffer.from(`{"jsonrpc":"2.0","id":"damaged ${index}","method":"ping"}`)
    : Buffer.alloc(0)
  const session = random.pick(["{ours}", "{theirs}", "x"])
  const head = `${method} /mcp/a HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nAccept: ${
    method === "GET" ? "text/html" : "*/*"
  }\r\nContent-Type: application/json\r\nMcp-Session-Id: ${session}\r\nContent-Length: ${body.length}\r\n\r\n`
  return {
    index,
    kind: "damaged",
    head: Bodies.damaged(random, Buffer.from(head, "latin1")).toString("latin1"),
    body,
    cuts: [],
    method,
    end: true,
    ends: false,
    outcomes: statuses(["closed", 200, 202, 204, 400, 401, 403, 404, 405, 406, 413, 415, 417, 431])
  }
}

/** The router matches these to the operators' routes, which answer 404: a proxy that closes a path does not close its other forms. */
const otherForms = ["//sessions", "/Sessions", "/%73essions", "/sessions/", "//", "/METRICS", "/health/", "//ready"]
/** Where clients look for OAuth. */
const oauth = ["/register", "/token", "/mcp/a/.well-known/openid-configuration"]
  .concat("/.well-known/oauth-protected-resource/mcp/a?x")

export const admin = (index: number, random: Random): Case => {
  const faults: Array<Fault> = []
  const path = random.pick(
    [
      "/",
      "/health",
      "/ready",
      "/sessions",
      "/metrics",
      "/sessions/0",
      "/sessions/%00",
      "/sessions/1e400",
      "/sessions/-1"
    ]
      .concat([
        "/sessions/__proto__",
        "/nowhere",
        "/__proto__",
        "/%ff",
        "/sessions/%ff",
        `/mcp/${"a".repeat(3000)}`,
        "/mcp/%",
        ...otherForms,
        ...oauth
      ])
  )
  const isSession = /^\/sessions\/./.test(path)
  const known = ["/", "/health", "/ready", "/sessions", "/metrics"].includes(path)
  const method = isSession
    ? random.pick(["DELETE", "DELETE", "GET", "POST"])
    : random.pick(["GET", "GET", "GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT"])
  const routed = isSession ? method === "DELETE" && path !== "/sessions/%ff" : known && ["GET", "HEAD"].includes(method)
  const guarded = isSession || path === "/sessions" || path === "/metrics"
  const refusal = (status: number): Fault => [{ status, body: { is: "admin error" } }]
  let header = random.chance(0.2) ? random.pick(hosts.bad).text : random.pick(hosts.good).text
  if (hosts.bad.some(({ text }) => text === header)) faults.push(refusal(403))
  const origin = random.chance(0.2) ? random.pick(origins.bad) : random.pick(origins.good)
  if (origin.fault !== undefined) faults.push(refusal(403))
  header += origin.text
  const key = random.pick(["Bearer {admin}", "Bearer {admin}", "Bearer {key}", "Bearer", "", "Basic {admin}"])
  if (guarded && key !== "Bearer {admin}") faults.push(refusal(401))
  header += `Authorization: ${key}\r\n`
  const success: Fault = [{ status: isSession ? 404 : 200, body: { is: isSession ? "admin error" : "page" } }]
  const outcomes = otherForms.includes(path) && ["GET", "HEAD"].includes(method)
    ? refusal(404)
    : !routed
    ? [{ status: 404, body: { is: oauth.includes(path) ? "no OAuth" : "nowhere" } } as const]
    : faults.length > 0
    ? faults.flat()
    : success
  return {
    index,
    kind: `admin ${method}`,
    head: `${method} ${path} HTTP/1.1\r\n${header}${extra(random)}\r\n`,
    body: Buffer.alloc(0),
    cuts: [],
    method,
    end: false,
    ends: false,
    outcomes: ofHead(method, outcomes)
  }
}
