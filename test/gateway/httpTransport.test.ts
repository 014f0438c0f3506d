/** An MCP server on Streamable HTTP as lines: what is sent for each, and what comes of the responses. */
import { NodeHttpClient } from "@effect/platform-node"
import { afterAll, afterEach, assert, beforeAll, beforeEach, describe, it } from "@effect/vitest"
import { Deferred, Duration, Effect, Exit, Scope } from "effect"
import type { IncomingMessage, Server, ServerResponse } from "node:http"
import { createServer } from "node:http"
import * as HttpTransport from "../../src/gateway/HttpTransport.ts"
import * as Modern from "../../src/gateway/Modern.ts"
import type { Transport } from "../../src/gateway/Transport.ts"
import * as Eras from "../kit/eras.ts"
import * as Kit from "../kit/gateway.ts"

// Whatever is said.
// oxlint-disable-next-line typescript/no-explicit-any
type Json = any

interface Seen {
  readonly method: string
  readonly headers: IncomingMessage["headers"]
  readonly message: Json
  closed: boolean
}

const seen: Array<Seen> = []
/** What is done with a request: by the method of the message, else by that of HTTP. */
let answers: Record<string, (response: ServerResponse, message: Json, headers: IncomingMessage["headers"]) => void> = {}

const json = (response: ServerResponse, message: object, status = 200, headers = {}) =>
  response.writeHead(status, { "content-type": "application/json", ...headers })
    .end(JSON.stringify({ jsonrpc: "2.0", ...message }))
const stream = (response: ServerResponse, ...events: ReadonlyArray<string>) => {
  response.writeHead(200, { "content-type": "text/event-stream" })
  for (const event of events) response.write(event)
}
const event = (message: object, id?: string) =>
  `${id === undefined ? "" : `id: ${id}\n`}data: ${JSON.stringify({ jsonrpc: "2.0", ...message })}\n\n`

const initialized: typeof answers = {
  initialize: (response, { id }) =>
    json(response, { id, result: { protocolVersion: "2025-06-18", capabilities: {} } }, 200, {
      "mcp-session-id": "s-1"
    }),
  "notifications/initialized": (response) => response.writeHead(202).end(),
  GET: (response) => response.writeHead(405).end(),
  DELETE: (response) => response.writeHead(204).end()
}

let server: Server
let url = ""
beforeAll(async () => {
  server = createServer((request, response) => {
    let body = ""
    request.on("data", (chunk) => {
      body += chunk
    }).on("end", () => {
      const message = body === "" ? undefined : JSON.parse(body)
      const entry: Seen = { method: request.method ?? "", headers: request.headers, message, closed: false }
      seen.push(entry)
      response.on("close", () => {
        entry.closed = true
      })
      const answer = answers[message?.method ?? entry.method]
      if (answer === undefined) response.writeHead(202).end()
      else answer(response, message, request.headers)
    })
  }).listen(0, "127.0.0.1")
  await new Promise((resolve) => server.on("listening", resolve))
  url = `http://127.0.0.1:${Eras.portOf(server)}/mcp`
})
afterAll(() => {
  server.closeAllConnections()
  server.close()
})

let scope: Scope.Closeable
let transport: Transport
let lines: Array<Json> = []
let room = true
let waiting: Array<() => void> = []
const close = () => Effect.runPromise(Scope.close(scope, Exit.void))

const make = (at = url) =>
  Effect.runPromise(
    Effect.gen(function*() {
      const made = yield* HttpTransport.make(
        { url: at, headers: { "x-extra": "yes" } },
        { maxLineBytes: 10_000, writeTimeout: Duration.millis(500) },
        (text) => text
      )
      yield* made.attach({
        receive: (line) => {
          lines.push(JSON.parse(line))
          return room
        },
        room: Effect.callback((resume) => void waiting.push(() => resume(Effect.void)))
      })
      return made
    }).pipe(Effect.provideService(Scope.Scope, scope), Effect.provide(NodeHttpClient.layerNodeHttp))
  )

beforeEach(async () => {
  seen.length = 0
  lines = []
  room = true
  waiting = []
  answers = { ...initialized }
  scope = Effect.runSync(Scope.make())
  transport = await make()
})
afterEach(close)

const write = (message: object) => transport.offer(`${JSON.stringify({ jsonrpc: "2.0", ...message })}\n`)
const call = (id: number, method: string, params: object = {}) => write({ id, method, params })
const meta = { [Modern.metaKeys.protocolVersion]: Modern.version, [Modern.metaKeys.clientCapabilities]: {} }
const modernCall = (id: number, method: string, params: object = {}) => call(id, method, { ...params, _meta: meta })
const answerOf = async (id: number) => {
  await Kit.eventually(`an answer to ${id}`, () => lines.some((line) => line?.id === id), 5)
  return lines.find((line) => line?.id === id)
}
const handshake = async () => {
  call(0, "initialize")
  await answerOf(0)
  write({ method: "notifications/initialized" })
  await Kit.eventually("the stream is asked for", () => seen.some(({ method }) => method === "GET"), 5)
}
const ended = async () => {
  const outcome = Effect.timeoutOption(Deferred.await(transport.ended), "5 seconds")
  return (await Effect.runPromise(outcome)).pipe((option) => option._tag === "Some" ? option.value.message : "")
}

describe("the earlier form", () => {
  it("shows its session and revision, and ends the session with the scope", async () => {
    await handshake()
    call(1, "tools/list")
    answers["tools/list"] = (response, { id }) => json(response, { id, result: {} })
    await answerOf(1)
    await close()
    assert.deepStrictEqual(
      seen.map(({ headers, message, method }) => [
        message?.method ?? method,
        headers["mcp-session-id"],
        headers["mcp-protocol-version"],
        headers["x-extra"]
      ]),
      [
        ["initialize", undefined, undefined, "yes"],
        ["notifications/initialized", "s-1", "2025-06-18", "yes"],
        ["GET", "s-1", "2025-06-18", "yes"],
        ["tools/list", "s-1", "2025-06-18", "yes"],
        ["DELETE", "s-1", "2025-06-18", "yes"]
      ]
    )
  })

  it("what must have arrived before the next line, has", async () => {
    await handshake()
    answers["logging/setLevel"] = (response, { id }) => void setTimeout(() => json(response, { id, result: {} }), 200)
    answers["notifications/x"] = (response) => void setTimeout(() => response.writeHead(202).end(), 200)
    call(1, "logging/setLevel")
    write({ method: "notifications/x" })
    call(2, "slow")
    const order = () => seen.map(({ message }) => message?.method).filter((method) => method !== undefined).slice(2)
    await Kit.eventually("all have been sent", () => order().length === 3, 5)
    assert.deepStrictEqual(order(), ["logging/setLevel", "notifications/x", "slow"])
    assert.isTrue(lines.some((line) => line.id === 1))
  })

  it("hears the stream of GET, again and from where it was when it has ended", async () => {
    let times = 0
    answers["GET"] = (response) => {
      if (++times > 2) return
      stream(response, "retry: 50\n\n", event({ method: `notifications/${times}` }, `e-${times}`))
      response.end()
    }
    await handshake()
    await Kit.eventually("both have come", () => lines.length === 3 && times === 3, 5)
    assert.deepStrictEqual(
      seen.filter(({ method }) => method === "GET").map(({ headers }) => headers["last-event-id"]),
      [undefined, "e-1", "e-2"]
    )
  })

  it("goes on with a response that broke off, where the server lets it", async () => {
    await handshake()
    answers["poll"] = (response) => {
      stream(response, "id: p-1\nretry: 50\ndata: \n\n")
      response.end()
    }
    answers["GET"] = (response, _, headers) => {
      assert.strictEqual(headers["last-event-id"], "p-1")
      stream(response, event({ id: 5, result: { polled: true } }))
      response.end()
    }
    call(5, "poll")
    assert.deepStrictEqual((await answerOf(5)).result, { polled: true })
  })

  it("ends when the server does not know the session any more", async () => {
    await handshake()
    answers["tools/list"] = (response) => response.writeHead(404).end()
    call(1, "tools/list")
    assert.include(await ended(), "does not know its session")
    await close()
    assert.notInclude(seen.map(({ method }) => method), "DELETE")
  })

  it("ends when a message is lost, or not taken", async () => {
    await handshake()
    answers["notifications/x"] = () => {}
    write({ method: "notifications/x" })
    assert.include(await ended(), "has not taken a message")
  })

  it("a refused initialize is an answer if it is JSON-RPC, else the end", async () => {
    answers["initialize"] = (response) => json(response, { id: null, error: { code: -32000, message: "no" } }, 400)
    call(0, "initialize")
    assert.deepStrictEqual((await answerOf(0)).error, { code: -32000, message: "no" })
    answers["initialize"] = (response) => response.writeHead(500).end("broken")
    call(1, "initialize")
    assert.include(await ended(), "status 500")
  })

  it("a cancelled request is told to the server, and its connection is not kept", async () => {
    await handshake()
    answers["never"] = (response) => stream(response, ": hello\n\n")
    call(1, "never")
    await Kit.eventually("it has arrived", () => seen.some(({ message }) => message?.method === "never"), 5)
    write({ method: "notifications/cancelled", params: { requestId: 1 } })
    await Kit.eventually("the server is told", () => seen.at(-1)?.message?.params?.requestId === 1, 5)
    await Kit.eventually(
      "it is gone",
      () => seen.find(({ message }) => message?.method === "never")?.closed === true,
      5
    )
  })
})

describe("the form of revision 2026-07-28", () => {
  it("repeats in headers what the request says, and shows no session", async () => {
    answers["tools/call"] = (response, { id }) => json(response, { id, result: {} })
    modernCall(1, "tools/call", { name: "ä" })
    await answerOf(1)
    assert.deepInclude(seen[0]?.headers, {
      "mcp-method": "tools/call",
      "mcp-protocol-version": Modern.version,
      "mcp-name": "=?base64?w6Q=?="
    })
    await close()
    assert.strictEqual(seen.length, 1)
  })

  it("the end of its connection cancels a request", async () => {
    answers["tools/call"] = (response) => stream(response, event({ method: "notifications/progress" }))
    modernCall(1, "tools/call", { name: "x" })
    await Kit.eventually("it runs", () => lines.length === 1, 5)
    write({ method: "notifications/cancelled", params: { requestId: 1 } })
    await Kit.eventually("it is gone", () => seen[0]?.closed === true, 5)
    assert.deepStrictEqual([seen.length, lines.length], [1, 1])
  })

  it("a response that breaks off, lies, or does not come is an error of that request alone", async () => {
    answers["server/discover"] = (response, { id }) => json(response, { id, result: {} })
    modernCall(1, "server/discover")
    await answerOf(1)
    answers["broken"] = (response) => {
      stream(response, event({ method: "notifications/progress" }), "data: {\"json")
      setTimeout(() => response.destroy(), 20)
    }
    answers["destroyed"] = (response) => response.destroy()
    answers["empty"] = (response) => response.writeHead(200, { "content-type": "application/json" }).end("null")
    answers["long"] = (response, { id }) => json(response, { id, result: { long: "x".repeat(20_000) } })
    answers["longStream"] = (response, { id }) => stream(response, event({ id, result: { long: "x".repeat(20_000) } }))
    for (const [i, method] of ["broken", "destroyed", "empty", "long", "longStream"].entries()) {
      modernCall(10 + i, method)
      assert.strictEqual((await answerOf(10 + i)).error?.code, -32603, method)
    }
    assert.isFalse(Deferred.isDoneUnsafe(transport.ended))
  })

  it("learns which arguments headers repeat when it is told that they are missing", async () => {
    const inputSchema = {
      type: "object",
      properties: { where: { type: "object", properties: { region: { type: "string", "x-mcp-header": "Region" } } } }
    }
    answers["tools/list"] = (response, { id, params }) =>
      json(response, {
        id,
        result: params.cursor === undefined
          ? { tools: [], nextCursor: "2" }
          : { tools: [{ name: "query", inputSchema }] }
      })
    answers["tools/call"] = (response, { id }, headers) =>
      headers["mcp-param-region"] === "eu"
        ? json(response, { id, result: { ok: true } })
        : json(response, { id, error: { code: -32020, message: "Header mismatch" } }, 400)
    modernCall(1, "tools/call", { name: "query", arguments: { where: { region: "eu" } } })
    assert.deepStrictEqual((await answerOf(1)).result, { ok: true })
    modernCall(2, "tools/call", { name: "query", arguments: { where: { region: "us" } } })
    assert.strictEqual((await answerOf(2)).error.code, -32020)
    assert.isBelow(seen.length, 10)
  })
})

describe("a server that is not there", () => {
  it("is the end, and no answer to the question which revisions it speaks", async () => {
    for (const probe of [503, 500, 401, 429, 302]) {
      await close()
      scope = Effect.runSync(Scope.make())
      transport = await make()
      answers["server/discover"] = (response) => response.writeHead(probe).end()
      modernCall(1, "server/discover")
      assert.include(await ended(), String(probe))
    }
    await close()
    scope = Effect.runSync(Scope.make())
    transport = await make("http://127.0.0.1:9/")
    modernCall(1, "server/discover")
    assert.include(await ended(), "cannot be reached")
    assert.deepStrictEqual(lines, [])
  })
})

describe("a receiver without room", () => {
  it("gets no more of a stream until it has", async () => {
    answers["many"] = (response, { id }) => {
      stream(
        response,
        ...Array.from({ length: 50 }, (_, i) => event({ method: `notifications/${i}` })),
        event({ id, result: {} })
      )
      response.end()
    }
    room = false
    modernCall(1, "many")
    for (let i = 1; i <= 50; i++) {
      await Kit.eventually(`line ${i}`, () => lines.length === i && waiting.length === 1, 5)
      waiting.pop()?.()
    }
    await answerOf(1)
    assert.strictEqual(lines.length, 51)
  })
})
