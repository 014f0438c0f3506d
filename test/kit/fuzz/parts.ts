/** What requests of the HTTP fuzz are made of: each part good or bad, and what a bad one leads to. */
import type { Random } from "../random.ts"

/** What the body of a response must be. */
export type BodyRule =
  | { readonly is: "empty" | "any" | "page" | "nowhere" | "no OAuth" | "events" | "admin error" }
  /** A JSON-RPC error; its id is null or one of these. */
  | { readonly is: "error"; readonly code: number; readonly ids: ReadonlyArray<unknown> }
  /**
   * The answers to these ids, each once. `opens`: with the id of a new session; `count`: the next number of the session's process;
   * `echo`: this text.
   */
  | {
    readonly is: "answers"
    readonly ids: ReadonlyArray<unknown>
    readonly opens?: boolean
    readonly count?: boolean
    readonly echo?: string
  }

export interface Outcome {
  readonly status: number | "closed"
  readonly body: BodyRule
}

export interface Case {
  readonly index: number
  readonly kind: string
  readonly head: string
  readonly body: Buffer
  /** Where the bytes are cut into several writes. */
  readonly cuts: ReadonlyArray<number>
  readonly method: string
  /** The connection is half-closed behind it: what it announced may never come. */
  readonly end: boolean
  /** The session of its worker is over afterwards. */
  readonly ends: boolean
  readonly outcomes: ReadonlyArray<Outcome>
}

export const limits = { bodyBytes: 20_000, headerBytes: 8192 }
export const listedOrigin = "https://app.example.com"
/** The id of the call in each session whose stream has ended. */
export const finishedCall = "finished"

export type Fault = ReadonlyArray<Outcome>
/** A part of a request: header lines (or another text), and if it is wrong, what that leads to. */
export interface Part {
  readonly text: string
  readonly fault?: Fault
}

export const error = (status: number, code = -32000, ids: ReadonlyArray<unknown> = []): Fault => [
  { status, body: { is: "error", code, ids } }
]

export type Parts = ReadonlyArray<Part>
export const lines = (name: string, values: ReadonlyArray<string>, fault?: Fault): Parts =>
  values.map((value) => ({ text: `${name}: ${value}\r\n`, ...(fault === undefined ? {} : { fault }) }))
export const none: Part = { text: "" }
/** There is no such session; the code is that of the official SDK's servers. */
const noSession = error(404, -32001)

export const hosts = {
  good: lines("Host", ["127.0.0.1", "localhost", "LocalHost:1", "[::1]:99", "127.0.0.1:0000"]),
  bad: lines(
    "Host",
    ["evil.example", "", "127.0.0.1.evil.example", "localhost:8420@evil", "127.0.0.1:x", "::1", "localhost, evil"]
      .concat(["\xff\xfe", "__proto__", "h".repeat(2000), "http://127.0.0.1", "127.0.0.1/"]),
    error(403)
  )
}
export const origins = {
  good: [
    none,
    none,
    none,
    ...lines("Origin", [listedOrigin, "http://localhost:3000", "HTTPS://127.0.0.1"])
  ],
  bad: [
    ...lines(
      "Origin",
      ["https://evil.example", "null", "", `${listedOrigin}.evil.example`, "http://127.0.0.1@evil.example", "\xe9"]
        .concat([`${listedOrigin}, ${listedOrigin}`, "file://localhost", "o".repeat(2000)]),
      error(403)
    ),
    { text: `Origin: ${listedOrigin}\r\nOrigin: https://evil.example\r\n`, fault: error(403) }
  ]
}
export const authorizations = {
  good: [
    ...lines("Authorization", ["Bearer {key}", "bearer  {key}", "BEARER {key}"]),
    { text: "Authorization: Bearer {key}\r\nAuthorization: Bearer wrong\r\n" }
  ],
  bad: [
    { ...none, fault: error(401) },
    ...lines(
      "Authorization",
      ["Bearer", "Bearer wrong", "{key}", "Basic {key}", "Bearer {key}x", "Bearer {admin}", "", "Bearer __proto__"]
        .concat(["Bearer \xff\xff", `Bearer ${"k".repeat(3000)}`, "Bearer {key}, Bearer {key}"]),
      error(401)
    )
  ]
}
export const versions = {
  good: [
    none,
    none,
    ...lines("MCP-Protocol-Version", ["2025-03-26", "2025-06-18", "2025-11-25", "2024-11-05"])
  ],
  bad: lines(
    "MCP-Protocol-Version",
    ["", "1999-01-01", "2025-06-18x", "constructor", "2025-06-18, 2025-06-18", "\xff", "v".repeat(1000)],
    error(400)
  )
}
export const accepts = {
  good: [
    ...lines("Accept", ["application/json, text/event-stream", "*/*", "text/*;q=0.1, APPLICATION/JSON;x=y"]),
    { text: "Accept: application/json\r\nAccept: text/event-stream\r\n" }
  ],
  bad: [
    { ...none, fault: error(406) },
    ...lines(
      "Accept",
      ["", "text/html", "application/jsonx, text/event-streamx", ",,,", "/", "*", "\xff/*", "a".repeat(2000)],
      error(406)
    )
  ]
}
export const contentTypes = {
  good: lines("Content-Type", ["application/json", "Application/JSON; charset=utf-8", "application/json;;;\xff"]),
  bad: [
    { ...none, fault: error(415) },
    ...lines(
      "Content-Type",
      [
        "",
        "text/plain",
        "application/json, text/plain",
        "application/jsonp",
        "multipart/form-data; boundary=x",
        "\xff"
      ],
      error(415)
    ),
    { text: "Content-Type: text/plain\r\nContent-Type: application/json\r\n", fault: error(415) }
  ]
}
export const sessions = {
  good: lines("Mcp-Session-Id", ["{ours}", "  {ours}\t"]),
  missing: [none, { text: "Mcp-Session-Id: \r\n" }] as Parts,
  bad: [
    ...lines(
      "Mcp-Session-Id",
      // The real ones of others most often.
      [
        ...Array<string>(12).fill("{theirs}"),
        ...Array<string>(8).fill("{elsewhere}"),
        "{ended}",
        "{ours}0",
        "-{ours}",
        "{OURS}",
        "{ours}, {ours}",
        "{ours}.x",
        "a/{ours}"
      ]
        .concat(["__proto__", "constructor", "0", "../{ours}", "%00", "\xff", "x".repeat(3000), "{ours};"])
        .concat(["00000000-0000-4000-8000-000000000000", "{theirs}, {ours}", "{ours} x"]),
      noSession
    ),
    { text: "Mcp-Session-Id: {ours}\r\nMcp-Session-Id: {theirs}\r\n", fault: noSession }
  ]
}
export const paths = {
  good: ["/mcp/a", "/mcp/a", "/mcp/a?x=%ff&__proto__=1", "/mcp/a/", "/a/mcp", "/a/mcp/?"].map((text) => ({ text })),
  // Paths are taken literally, so other ways to write a good one are bad.
  bad: ["/mcp/a#b", "/mcp/%61", "/MCP/a", "//mcp/a", "/mcp//a", "/A/mcp", "/a/MCP", "/a/%6dcp"].concat(
    ["/mcp/c", "/mcp/__proto__", "/mcp/constructor", "/mcp/A%00", "/mcp/a.b", "/mcp", "/mcp/%C3%BC", "/mcp/a%20"]
      .concat(["/mcp/..%2fsessions", "/mcp/%2e%2e"])
  )
    .map((text) => ({ text, fault: error(404) }))
}
export const others = [
  "X-Any: \xe9\xff",
  "Cookie: a=b; __proto__=c",
  "__proto__: x",
  "constructor: x",
  "Content-Encoding: gzip",
  "Accept-Encoding: gzip, br",
  "X-Forwarded-Host: evil.example",
  "X-HTTP-Method-Override: DELETE",
  "Last-Event-ID: abcdef01-1-1",
  "Last-Event-ID: \xff-__proto__-1e400",
  "traceparent: 00-x-y-01",
  "b3: 0",
  "Range: bytes=0-1",
  "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c",
  "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
] as const

/** Most often nothing, else a header that must not matter. */
export const extra = (random: Random): string => random.chance(0.7) ? "" : `${random.pick(others)}\r\n`

/** An answer to HEAD has no body. */
export const ofHead = (method: string, outcomes: ReadonlyArray<Outcome>): ReadonlyArray<Outcome> =>
  method === "HEAD" ? outcomes.map(({ status }) => ({ status, body: { is: "empty" } })) : outcomes
