/** The status and the error of each wrong HTTP request, and how sessions open. */
import { createServer } from "node:http"
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

/** Posts a message. Returns the status and the parsed answer. */
const answerTo = async (body: string, session = "any", headers = {}) => {
  const response = await Kit.post(url, session, body, headers)
  return { status: response.status, ...(await response.json()) }
}

describe("wrong HTTP requests", () => {
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
    it(`refuses ${what} with ${status}`, async () => {
      const response = await fetch(`${origin}${path}`, request)
      assert.strictEqual(response.status, status)
      assert.isNotEmpty(await response.text())
    })
  }

  it("refuses a body over the limit with 413 even if its length is not announced", async () => {
    const init = { ...good, body: new Blob([large]).stream(), duplex: "half" }
    assert.strictEqual(await fetch(url, init).then(({ status }) => status, () => 413), 413)
  })

  it("refuses a body that is not JSON with 400 and -32700, and one that is no message with -32600", async () => {
    const noMessages = ["{}", "\"text\"", "null", "[]", "[1]", `[${Kit.initializeBody}]`]
    const noRequests = [
      "{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"x\"}",
      // An id that no double holds could not be answered.
      "{\"jsonrpc\":\"2.0\",\"id\":1e400,\"method\":\"x\"}",
      "{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"x\"}"
    ]
    for (const body of ["{\"jsonrpc\"", ...noMessages, ...noRequests]) {
      const { error, status } = await answerTo(body)
      assert.deepStrictEqual([body, status, error.code], [body, 400, body === "{\"jsonrpc\"" ? -32700 : -32600])
    }
    const noBatches = await answerTo(`[${call}]`, "any", { "mcp-protocol-version": "2025-06-18" })
    assert.deepStrictEqual([noBatches.status, noBatches.error.code], [400, -32600])
  })

  it("refuses a message nested deeper than 256 levels with 400 and the limit, complete or not, in a batch too", async () => {
    const nested = (levels: number) =>
      `{"jsonrpc":"2.0","method":"x","params":${"[".repeat(levels - 1)}${"]".repeat(levels - 1)}}`
    for (const body of ["[".repeat(1000), nested(257), `[${nested(256)}]`]) {
      const { error, status } = await answerTo(body)
      assert.deepStrictEqual([status, error.code], [400, -32700])
      assert.strictEqual(error.message, "The body is nested deeper than 256 levels")
    }
    // These are read: there is no such session.
    for (const body of [nested(256), `{"jsonrpc":"2.0","method":"${"[{\\\"".repeat(100)}"}`]) {
      assert.strictEqual(await Serve.statusOf(url, "any", body), 404)
    }
  })

  it("a refusal lists the allowed methods with 405, and the back ends with 404", async () => {
    const put = await fetch(url, { method: "PUT" })
    assert.deepStrictEqual([put.status, put.headers.get("allow")], [405, "GET, POST, DELETE"])
    const nowhere = await Kit.initialize(`${origin}/mcp/nope`)
    assert.strictEqual(nowhere.status, 404)
    assert.include((await nowhere.json()).error.message, "/mcp/a, /mcp/b")
  })

  it("refuses an unknown session with the code and the words of the official SDK, so that clients initialize again", async () => {
    for (const id of unknownIds) {
      const { error, ...rest } = await answerTo(call, id)
      assert.deepStrictEqual([rest, error.code], [{ status: 404, jsonrpc: "2.0", id: rest.id }, -32001])
      assert.match(error.message, /^Session not found/)
    }
  })

  it("refuses initialize without a revision in its params with 400 and -32602, and starts no process", async () => {
    const launches = async () => (await Serve.overview(origin)).backends[0].launches
    const before = await launches()
    const initialize = (params: unknown) =>
      Kit.initialize(url, {}, JSON.stringify({ jsonrpc: "2.0", id: 7, method: "initialize", params }))
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

describe("sessions over HTTP", () => {
  it("initialize opens a new session even if it carries a session id, and that session's server does not see it", async () => {
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

  it("a session does not exist at another back end", async () => {
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

  it("refuses a new session with 503 and Retry-After while all sessions are in use", async () => {
    const small = await Serve.gateway({ backends: { a: Kit.counter() }, maxSessions: 1, acquireTimeout: "100 millis" })
    void Kit.post(small.url, await Kit.open(small.url), Kit.toolCall(1, "never")).catch(() => undefined)
    await Kit.eventually("the only session is in use", async () => (await Kit.inFlight(small.origin)) === 1)
    const refused = await Kit.initialize(small.url)
    assert.deepStrictEqual([refused.status, refused.headers.get("retry-after")], [503, "10"])
  })
})

describe("the command's HTTP server", () => {
  it("announces the keep-alive that is set for the command", async () => {
    const { origin } = await Serve.command(["--keep-alive-timeout", "7 seconds"])
    assert.strictEqual((await fetch(`${origin}/health`)).headers.get("keep-alive"), "timeout=7")
  })

  it("answers with 503 while no route is installed", async () => {
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
})
