/** What each wrong request is told, and that no client can end the gateway. */
import { createServer } from "node:http"
import { connect } from "node:net"
import { assert, describe, it } from "vitest"
import { answerWithoutRoutes } from "../../src/gateway/app/CommandLine.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serve from "../kit/gateway/serving.ts"

const { origin } = await Serve.gateway({
  backends: { a: Kit.counter(), b: Kit.counter() },
  maxBodyBytes: 1024,
  maxSessions: 8
})
const url = `${origin}/mcp/a`
const call = Kit.toolCall(1, "count")
const unknownIds = ["no-such-session", "00000000-0000-4000-8000-000000000000"]

describe("a wrong request over HTTP", () => {
  const large = JSON.stringify({ jsonrpc: "2.0", id: 1, method: "x", params: { text: "x".repeat(2000) } })
  const sse = { accept: "text/event-stream" }
  const unknown = { "mcp-session-id": "no-such-session" }
  const good = { method: "POST", headers: Kit.headers, body: Kit.initializeBody }
  const post = (headers: object) => ({ ...good, headers: { ...Kit.headers, ...headers } })
  const refused: Record<string, readonly [status: number, request: RequestInit, path?: string]> = {
    "a call without a session id": [400, { ...good, body: call }],
    "a GET without a session id": [400, { method: "GET", headers: sse }],
    "a DELETE without a session id": [400, { method: "DELETE" }],
    "a GET of an unknown session": [404, { method: "GET", headers: { ...unknown, ...sse } }],
    "a DELETE of an unknown session": [404, { method: "DELETE", headers: unknown }],
    "an unsupported MCP-Protocol-Version": [400, post({ "mcp-protocol-version": "1999-01-01" })],
    "a POST that accepts only JSON": [406, post({ accept: "application/json" })],
    "a POST that accepts only event streams": [406, post(sse)],
    "a GET that accepts no event stream": [406, { method: "GET", headers: { accept: "text/html", ...unknown } }],
    "a content type that is not JSON": [415, post({ "content-type": "text/plain" })],
    "a body over the limit": [413, { ...good, body: large }],
    "no back end where there are two": [404, good, "/mcp"],
    "a back end that is named like a member of every object": [404, good, "/mcp/constructor"]
  }
  for (const [what, [status, request, path = "/mcp/a"]] of Object.entries(refused)) {
    it(`is refused with ${status}: ${what}`, async () => {
      const response = await fetch(`${origin}${path}`, request)
      assert.strictEqual(response.status, status)
      assert.isNotEmpty(await response.text())
    })
  }

  it("is refused with 413 if its body is over the limit and its length is not announced", async () => {
    const init = { ...good, body: new Blob([large]).stream(), duplex: "half" }
    assert.strictEqual(await fetch(url, init).then(({ status }) => status, () => 413), 413)
  })

  it("is refused with 400 and -32700 if it is no JSON, and with -32600 if that is no message", async () => {
    const noMessages = ["{}", "\"text\"", "null", "[]", "[1]", `[${Kit.initializeBody}]`]
    const noRequests = [
      "{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"x\"}",
      // An id that no double holds could not be answered.
      "{\"jsonrpc\":\"2.0\",\"id\":1e400,\"method\":\"x\"}",
      "{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"x\"}"
    ]
    for (const body of ["{\"jsonrpc\"", ...noMessages, ...noRequests]) {
      const response = await Kit.post(url, "any", body)
      const code = body === "{\"jsonrpc\"" ? -32700 : -32600
      assert.deepStrictEqual([body, response.status, (await response.json()).error.code], [body, 400, code])
    }
    const noBatches = await Kit.post(url, "any", `[${call}]`, { "mcp-protocol-version": "2025-06-18" })
    assert.deepStrictEqual([noBatches.status, (await noBatches.json()).error.code], [400, -32600])
  })

  it("is refused with 400 and the limit if it is nested deeper than 256 levels, ended or not, in a batch too", async () => {
    const nested = (levels: number) =>
      `{"jsonrpc":"2.0","method":"x","params":${"[".repeat(levels - 1)}${"]".repeat(levels - 1)}}`
    for (const body of ["[".repeat(1000), nested(257), `[${nested(256)}]`]) {
      const response = await Kit.post(url, "any", body)
      const error = { code: -32700, message: "The body is nested deeper than 256 levels" }
      assert.deepStrictEqual([response.status, (await response.json()).error], [400, error])
    }
    // These are read: there is no such session.
    for (const body of [nested(256), `{"jsonrpc":"2.0","method":"${"[{\\\"".repeat(100)}"}`]) {
      assert.strictEqual(await Serve.statusOf(url, "any", body), 404)
    }
  })

  it("is told which methods are allowed, and which back ends there are", async () => {
    const put = await fetch(url, { method: "PUT" })
    assert.deepStrictEqual([put.status, put.headers.get("allow")], [405, "GET, POST, DELETE"])
    const nowhere = await Kit.initialize(`${origin}/mcp/nope`)
    assert.strictEqual(nowhere.status, 404)
    assert.include((await nowhere.json()).error.message, "/mcp/a, /mcp/b")
  })

  it("of an unknown session gets the code and the words of the official SDK, so that clients initialize again", async () => {
    for (const id of unknownIds) {
      const response = await Kit.post(url, id, call)
      const { error, ...rest } = await response.json()
      assert.deepStrictEqual([response.status, rest, error.code], [404, { jsonrpc: "2.0", id: rest.id }, -32001])
      assert.match(error.message, /^Session not found/)
    }
  })

  it("to initialize without params that name a revision is 400 with -32602, and starts no process", async () => {
    const launches = async () => (await Serve.overview(origin)).backends[0].launches
    const before = await launches()
    const initialize = (params: unknown) =>
      fetch(url, {
        method: "POST",
        headers: Kit.headers,
        body: JSON.stringify({ jsonrpc: "2.0", id: 7, method: "initialize", params })
      })
    for (const params of [undefined, null, [], "2025-06-18", 1, {}, { protocolVersion: 20250618 }, ["2025-06-18"]]) {
      const response = await initialize(params)
      const { error, id } = await response.json()
      assert.deepStrictEqual([params, response.status, error.code, id], [params, 400, -32602, 7])
      assert.include(error.message, "protocolVersion")
    }
    assert.strictEqual(await launches(), before)
    assert.strictEqual((await initialize({ protocolVersion: "any" })).status, 200)
  })
})

describe("a session over HTTP", () => {
  it("is opened by initialize whatever session id that carries; the server of a living one never hears of it", async () => {
    const living = await Kit.open(url)
    for (const id of [...unknownIds, living]) {
      const response = await Kit.post(url, id, Kit.initializeBody)
      const opened = response.headers.get("mcp-session-id") ?? ""
      assert.deepStrictEqual([response.status, (await response.json()).id], [200, 0])
      assert.notStrictEqual(opened, id)
      assert.strictEqual(await Kit.toolText(url, opened, "count"), "1")
    }
    assert.strictEqual(await Kit.toolText(url, living, "heard"), "[\"initialize\"]")
    assert.strictEqual(await Kit.toolText(url, living, "count"), "1")
  })

  it("does not exist at another back end", async () => {
    const session = await Kit.open(url)
    assert.strictEqual(await Serve.statusOf(`${origin}/mcp/b`, session, call), 404)
    assert.strictEqual(await Serve.statusOf(url, session, call), 200)
  })

  it("answers notifications and responses with 202 without a body", async () => {
    const session = await Kit.open(url)
    for (const body of [Serve.notification("initialized"), "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}"]) {
      const response = await Kit.post(url, session, body)
      assert.deepStrictEqual([response.status, await response.text()], [202, ""])
    }
  })

  it("is refused with 503 and Retry-After while all sessions are in use", async () => {
    const small = await Serve.gateway({ backends: { a: Kit.counter() }, maxSessions: 1, acquireTimeout: "100 millis" })
    void Kit.post(small.url, await Kit.open(small.url), Kit.toolCall(1, "never")).catch(() => undefined)
    await Kit.eventually("the only session is in use", async () => (await Kit.inFlight(small.origin)) === 1)
    const refused = await Kit.initialize(small.url)
    assert.deepStrictEqual([refused.status, refused.headers.get("retry-after")], [503, "10"])
  })

  it("goes on after clients that cut their connection after any byte of an exchange", async () => {
    const session = await Kit.open(url)
    const { hostname, pathname, port } = new URL(url)
    const headers = { host: hostname, ...Kit.headers, "mcp-session-id": session, "content-length": call.length }
    const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}`)
    const exchange = [`POST ${pathname} HTTP/1.1`, ...lines, "", call].join("\r\n")
    for (let length = 1; length <= exchange.length; length++) {
      await new Promise<void>((resolve) => {
        const socket = connect(Number(port), hostname, () => {
          socket.write(exchange.slice(0, length), () => socket.resetAndDestroy())
        })
        socket.on("close", () => resolve())
      })
    }
    assert.match(await Kit.toolText(url, session, "count"), /^\d+$/)
  })
})

it("a connection to the command is announced with a keep-alive of 75 seconds, or the one that is set", async () => {
  for (const [flags, seconds] of [[[], 75], [["--keep-alive-timeout", "7 seconds"], 7]] as const) {
    const { origin } = await Serve.command(flags)
    const { headers } = await fetch(`${origin}/health`)
    assert.strictEqual(headers.get("keep-alive"), `timeout=${seconds}`)
  }
})

it("a request to the command is answered with 503 while no route is installed", async () => {
  const server = answerWithoutRoutes(createServer())
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  const early = await fetch(`http://127.0.0.1:${Kit.portOf(server)}/`, { method: "POST", body: "{}" })
  assert.deepStrictEqual([early.status, early.headers.get("retry-after")], [503, "10"])
  assert.strictEqual((await early.json()).error.message, "The gateway starts or stops")
  server.on("request", (_, response) => response.end("served"))
  assert.strictEqual(await (await fetch(`http://127.0.0.1:${Kit.portOf(server)}/`)).text(), "served")
  server.closeAllConnections()
  server.close()
})
