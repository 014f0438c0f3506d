/** The transport to a server of revision 2026-07-28 on Streamable HTTP: its requests, and the messages of the responses. */
import { assert, describe, it } from "@effect/vitest"
import { Deferred } from "effect"
import * as Modern from "../../src/gateway/protocol/Modern.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import { event, json, Scripted, stream } from "../kit/gateway/scripted.ts"

const scripted = new Scripted()

describe("the modern HTTP transport", () => {
  it("repeats the revision, method and name of a request in headers, and opens no session", async () => {
    scripted.answers["tools/call"] = (response, { id }) => json(response, { id, result: {} })
    await scripted.modernAnswer(1, "tools/call", { name: "ä" })
    assert.deepInclude(scripted.seen[0]?.headers, {
      "mcp-method": "tools/call",
      "mcp-protocol-version": Modern.version,
      "mcp-name": "=?base64?w6Q=?="
    })
    await scripted.close()
    assert.strictEqual(scripted.seen.length, 1)
  })

  it("a response that breaks off, is wrong, or is missing is an error of its request alone", async () => {
    scripted.answers["server/discover"] = (response, { id }) => json(response, { id, result: {} })
    await scripted.modernAnswer(1, "server/discover")
    scripted.answers["broken"] = (response) => {
      stream(response, event({ method: "notifications/progress" }), "data: {\"json")
      const hasCome = () => scripted.messages.some(({ method }) => method !== undefined)
      void Kit.eventually("the first event has come", hasCome).then(() => response.destroy())
    }
    scripted.answers["destroyed"] = (response) => response.destroy()
    scripted.answers["empty"] = (response) =>
      response.writeHead(200, { "content-type": "application/json" }).end("null")
    scripted.answers["long"] = (response, { id }) => json(response, { id, result: { long: "x".repeat(20_000) } })
    scripted.answers["longStream"] = (response, { id }) =>
      stream(response, event({ id, result: { long: "x".repeat(20_000) } }))
    for (const [i, method] of ["broken", "destroyed", "empty", "long", "longStream"].entries()) {
      assert.strictEqual((await scripted.modernAnswer(10 + i, method)).error?.code, -32603, method)
    }
    assert.isFalse(Deferred.isDoneUnsafe(scripted.transport.ended))
  })

  it("an error with a status of its own reaches the client with the id of its request", async () => {
    const error = { code: -32021, message: "lacks roots", data: { requiredCapabilities: { roots: {} } } }
    for (const [i, [status, id]] of ([[400, null], [404, 100], [500, "other"]] as const).entries()) {
      scripted.answers["tools/call"] = (response) => json(response, { id, error }, status)
      assert.deepStrictEqual((await scripted.modernAnswer(i, "tools/call", { name: "x" })).error, error)
    }
    scripted.answers["tools/call"] = (response) => response.writeHead(413).end("<html>too large</html>")
    const refused = await scripted.modernAnswer(5, "tools/call", { name: "x" })
    assert.include(refused.error.message, "the back end answered tools/call with status 413")
  })

  it("a refusal of the gateway's credentials is an error of the request, and its body is ignored", async () => {
    scripted.answers["tools/list"] = (response, { id }) => json(response, { id, result: {} })
    await scripted.modernAnswer(1, "tools/list")
    for (const status of [401, 403]) {
      scripted.answers["tools/call"] = (response, { id }) =>
        json(response, { id, error: { code: -32000, message: "who are you?" } }, status)
      const { error } = await scripted.modernAnswer(status, "tools/call", { name: "x" })
      assert.include(error.message, `the back end refused the gateway's credentials (status ${status})`)
    }
    assert.isFalse(Deferred.isDoneUnsafe(scripted.transport.ended))
  })

  it("delivers messages as the server wrote them", async () => {
    const texts = [
      "{ \"jsonrpc\":\"2.0\", \"method\":\"notifications/\\u0061\", \"params\":{\"big\":12345678901234567890} }",
      "{ \"jsonrpc\":\"2.0\", \"id\":1, \"result\":{\"big\":1.0e400} }"
    ]
    scripted.answers["tools/call"] = (response) => stream(response, ...texts.map((text) => `data: ${text}\n\n`))
    await scripted.modernAnswer(1, "tools/call", { name: "x" })
    assert.deepStrictEqual(scripted.texts, texts)
  })

  it("learns which arguments belong in headers when the server refuses a call without them", async () => {
    const inputSchema = {
      type: "object",
      properties: {
        where: { type: "object", properties: { region: { type: "string", "x-mcp-header": "Region" } } },
        tenant: { type: "string", "x-mcp-header": "Tenant" }
      }
    }
    scripted.answers["tools/list"] = (response, { id, params }) =>
      json(response, {
        id,
        result: params.cursor === undefined ? firstPage : { tools: [{ name: "query", inputSchema }] }
      })
    const firstPage = { tools: [], nextCursor: "2" }
    scripted.answers["tools/call"] = (response, { id }, headers) =>
      headers["mcp-param-region"] === "eu"
        ? json(response, { id, result: { ok: true } })
        : json(response, { id, error: { code: -32020, message: "Header mismatch" } }, 400)
    const query = (id: number, args: object) =>
      scripted.modernAnswer(id, "tools/call", { name: "query", arguments: args })
    assert.deepStrictEqual((await query(1, { where: { region: "eu" }, tenant: "theirs" })).result, { ok: true })
    // An argument does not replace a header of the entry.
    assert.strictEqual(scripted.seen.at(-1)?.headers["mcp-param-tenant"], "ours")
    assert.strictEqual((await query(2, { where: { region: "us" } })).error.code, -32020)
    assert.isBelow(scripted.seen.length, 10)
  })

  it("an unavailable server ends the transport, and does not answer which revisions it speaks", async () => {
    for (const probe of [503, 500, 401, 429, 302]) {
      await scripted.renew(scripted.url)
      scripted.answers["server/discover"] = (response) => response.writeHead(probe).end()
      scripted.modernCall(1, "server/discover")
      assert.include(await scripted.ended(), String(probe))
    }
    await scripted.renew("http://127.0.0.1:9/")
    scripted.modernCall(1, "server/discover")
    assert.include(await scripted.ended(), "cannot be reached")
    assert.deepStrictEqual(scripted.messages, [])
  })

  it("reads no more of a stream while the receiver has no room", async () => {
    scripted.answers["many"] = (response, { id }) => {
      const notifications = Array.from({ length: 50 }, (_, i) => event({ method: `notifications/${i}` }))
      stream(response, ...notifications, event({ id, result: {} })).end()
    }
    scripted.room = false
    scripted.modernCall(1, "many")
    for (let i = 1; i <= 50; i++) {
      await Kit.eventually(`line ${i}`, () => scripted.messages.length === i && scripted.waiting.length === 1)
      scripted.waiting.pop()?.()
    }
    await scripted.answerOf(1)
    assert.strictEqual(scripted.messages.length, 51)
  })
})
