/** Parts of requests for the fuzz: values that the gateway accepts, values that it refuses, and the status of the refusal. */
export interface Part {
  readonly status: number
  /** Header lines, or a path. */
  readonly good: ReadonlyArray<string>
  readonly bad: ReadonlyArray<string>
}

export const limits = { bodyBytes: 20_000, headerBytes: 8192 }
export const listedOrigin = "https://app.example.com"

/** The values of a header, between bars. `(none)` leaves the header out, `(again)` repeats it. */
const header = (name: string, status: number, { bad, good }: { readonly good: string; readonly bad: string }): Part => {
  const lines = (values: string) =>
    values.split("|").map((value) => value.trim()).map((value) =>
      value === "(none)" ? "" : `${name}: ${value.replace("(again) ", `\r\n${name}: `)}\r\n`
    )
  return { status, good: lines(good), bad: lines(bad) }
}

/** A request that fails one of these three gets no other refusal. */
export const outer: ReadonlyArray<Part> = [
  header("Host", 403, {
    good: "127.0.0.1 | localhost | LocalHost:1 | [::1]:99 | 127.0.0.1:0000",
    bad:
      `evil.example | | 127.0.0.1.evil.example | localhost:8420@evil | 127.0.0.1:x | ::1 | localhost, evil | \xff\xfe |
    __proto__ | ${"h".repeat(2000)} | http://127.0.0.1 | 127.0.0.1/`
  }),
  header("Origin", 403, {
    good: `(none) | (none) | ${listedOrigin} | http://localhost:3000 | HTTPS://127.0.0.1`,
    bad: `https://evil.example | null | | ${listedOrigin}.evil.example | http://127.0.0.1@evil.example | \xe9 |
    file://localhost | ${listedOrigin}, ${listedOrigin} | ${listedOrigin} (again) https://evil.example`
  }),
  header("Authorization", 401, {
    good: "Bearer {key} | bearer  {key} | Bearer {key} (again) Bearer wrong",
    bad: `(none) | Bearer | Bearer wrong | {key} | Basic {key} | Bearer {key}x | Bearer {admin} | | Bearer \xff |
    Bearer __proto__ | Bearer ${"k".repeat(3000)} | Bearer {key}, Bearer {key}`
  })
]
export const path: Part = {
  status: 404,
  good: ["/mcp/a", "/mcp/a", "/mcp/a?x=%ff&__proto__=1", "/mcp/a/", "/a/mcp", "/a/mcp/?"],
  // Paths are taken literally, so other ways to write a good one are bad.
  bad: ["/mcp/a#b", "/mcp/%61", "/MCP/a", "//mcp/a", "/mcp//a", "/A/mcp", "/a/%6dcp", "/mcp/c", "/mcp/__proto__"]
    .concat(["/mcp/A%00", "/mcp/a.b", "/mcp", "/mcp/%C3%BC", "/mcp/..%2fsessions", "/mcp/%2e%2e"])
}
export const version = header("MCP-Protocol-Version", 400, {
  good: "(none) | (none) | 2025-03-26 | 2025-06-18 | 2025-11-25 | 2024-11-05",
  bad: ` | 1999-01-01 | 2025-06-18x | constructor | 2025-06-18, 2025-06-18 | \xff | ${"v".repeat(1000)}`
})
export const accept = header("Accept", 406, {
  good: "application/json, text/event-stream | */* | text/*;q=0.1, APPLICATION/JSON;x=y",
  bad: `(none) | | text/html | application/jsonx, text/event-streamx | ,,, | / | * | \xff/* | ${"a".repeat(2000)}`
})
export const contentType = header("Content-Type", 415, {
  good: "application/json | Application/JSON; charset=utf-8 | application/json;;;\xff",
  bad: `(none) | | text/plain | application/json, text/plain | application/jsonp | multipart/form-data; boundary=x |
  text/plain (again) application/json`
})
/** The sessions of others come most often. */
export const session = header("Mcp-Session-Id", 404, {
  good: "{ours}",
  bad: `${"{theirs} | ".repeat(12)}${"{elsewhere} | ".repeat(8)}{ended} | {ours}0 | -{ours} | {OURS} | {ours}, {ours} |
  {ours}.x | __proto__ | ../{ours} | %00 | \xff | ${"x".repeat(3000)} | {theirs}, {ours} | {ours} x |
  {ours} (again) {theirs}`
})
/** Headers that must not matter. */
export const others = [
  "X-Any: \xe9\xff",
  "Cookie: a=b; __proto__=c",
  "__proto__: x",
  "Content-Encoding: gzip",
  "X-Forwarded-Host: evil.example",
  "X-HTTP-Method-Override: DELETE",
  "Last-Event-ID: abcdef01-1-1",
  "Last-Event-ID: \xff-__proto__-1e400",
  "traceparent: 00-x-y-01",
  "Range: bytes=0-1",
  "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c"
].map((line) => `${line}\r\n`)

/** The headers of a request that is right, but for its session and its body. */
export const json =
  "Host: localhost\r\nAuthorization: Bearer {key}\r\nAccept: */*\r\nContent-Type: application/json\r\n"
const chunks = ["zz\r\n{}\r\n0", "2\r\n{}x\r\n0", "-2\r\n{}", "5\r\n{}", "2;\0\r\n{}"]
/** Requests that the server below the gateway refuses. */
export const broken = [
  "FOO /mcp/a HTTP/1.1\r\n",
  "get /mcp/a HTTP/1.1\r\n",
  "GET /mcp/\xff HTTP/1.1\r\n",
  "GET /mcp/a HTTP/9.9\r\n",
  "PRI * HTTP/2.0\r\n",
  "CONNECT evil.example:443 HTTP/1.1\r\n",
  "\x16\x03\x01\x02\x00\x01\x00",
  "POST /mcp/a HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n",
  "POST /mcp/a HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n",
  "POST /mcp/a HTTP/1.1\r\nTransfer-Encoding: gzip\r\n",
  "POST /mcp/a HTTP/1.1\r\nTransfer-Encoding: chunked, gzip\r\n",
  "POST /mcp/a HTTP/1.1\r\nContent-Length: -1\r\n",
  "POST /mcp/a HTTP/1.1\r\nContent-Length: 0x2\r\n",
  `POST /mcp/a HTTP/1.1\r\nContent-Length: ${"9".repeat(30)}\r\n`,
  "POST /mcp/a HTTP/1.1\r\nContent-Length: 1000\r\n",
  "GET /mcp/a HTTP/1.1\r\nX-A : b\r\n",
  "GET /mcp/a HTTP/1.1\r\nX-A: b\r\n c\r\n",
  "GET /mcp/a HTTP/1.1\r\nX-A: b\0c\r\n",
  "GET /mcp/a HTTP/1.1\r\n: b\r\n",
  `GET /mcp/a HTTP/1.1\r\nX-A: ${"x".repeat(limits.headerBytes + 1)}\r\n`,
  `GET /mcp/${"x".repeat(limits.headerBytes + 1)} HTTP/1.1\r\n`
].map((head) => `${head}${json}\r\n`).concat(
  chunks.map((chunk) => `POST /mcp/a HTTP/1.1\r\n${json}Transfer-Encoding: chunked\r\n\r\n${chunk}\r\n`)
)

export const openPaths = ["/", "/health", "/ready"]
export const guardedPaths = ["/sessions", "/metrics"]
/** The operators' routes in other forms, sessions that do not exist, and paths where clients look for OAuth. */
export const unknownPaths = `
  //sessions /Sessions /%73essions /sessions/ // /METRICS /health/ /%ff /nowhere /mcp/%
  /sessions/0 /sessions/%00 /sessions/1e400 /sessions/-1 /sessions/__proto__
  /register /token /mcp/a/.well-known/openid-configuration /mcp/${"a".repeat(3000)}
`.trim().split(/\s+/)
