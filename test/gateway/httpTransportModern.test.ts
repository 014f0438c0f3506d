/** A server of revision 2026-07-28 on Streamable HTTP: the requests that it gets, and the messages of its responses. */
import { assert, describe, it } from "@effect/vitest"
import { Deferred } from "effect"
import * as Modern from "../../src/gateway/protocol/Modern.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import { event, json, Scripted, stream } from "../kit/gateway/scripted.ts"

const scripted = new Scripted()

describe("the form of revision 2026-07-28", () => {
  it("repeats in headers what the request says, and shows no session", async () => {
    scripted.answers["tools/call"] = (response, { id }) => json(response, { id, result: {} })
    scripted.modernCall(1, "tools/call", { name: "ä" })
    await scripted.answerOf(1)
    assert.deepInclude(scripted.seen[0]?.headers, {
      "mcp-method": "tools/call",
      "mcp-protocol-version": Modern.version,
      "mcp-name": "=?base64?w6Q=?="
    })
    await scripted.close()
    assert.strictEqual(scripted.seen.length, 1)
  })

  it("a response that breaks off, lies, or does not come is an error of that request alone", async () => {
    scripted.answers["server/discover"] = (response, { id }) => json(response, { id, result: {} })
    scripted.modernCall(1, "server/discover")
    await scripted.answerOf(1)
    scripted.answers["broken"] = (response) => {
      stream(response, event({ method: "notifications/progress" }), "data: {\"json")
      void Kit.eventually(
        "the first event has come",
        () => scripted.messages.some(({ method }) => method !== undefined)
      )
        .then(() => response.destroy())
    }
    scripted.answers["destroyed"] = (response) => response.destroy()
    scripted.answers["empty"] = (response) =>
      response.writeHead(200, { "content-type": "application/json" }).end("null")
    scripted.answers["long"] = (response, { id }) => json(response, { id, result: { long: "x".repeat(20_000) } })
    scripted.answers["longStream"] = (response, { id }) =>
      stream(response, event({ id, result: { long: "x".repeat(20_000) } }))
    for (const [i, method] of ["broken", "destroyed", "empty", "long", "longStream"].entries()) {
      scripted.modernCall(10 + i, method)
      assert.strictEqual((await scripted.answerOf(10 + i)).error?.code, -32603, method)
    }
    assert.isFalse(Deferred.isDoneUnsafe(scripted.transport.ended))
  })

  it("an error with a status of its own reaches the client with the id of its request", async () => {
    const error = { code: -32021, message: "lacks roots", data: { requiredCapabilities: { roots: {} } } }
    for (const [i, [status, id]] of ([[400, null], [404, 100], [500, "other"]] as const).entries()) {
      scripted.answers["tools/call"] = (response) => json(response, { id, error }, status)
      scripted.modernCall(i, "tools/call", { name: "x" })
      assert.deepStrictEqual((await scripted.answerOf(i)).error, error)
    }
    scripted.answers["tools/call"] = (response) => response.writeHead(413).end("<html>too large</html>")
    scripted.modernCall(5, "tools/call", { name: "x" })
    assert.include((await scripted.answerOf(5)).error.message, "the back end answered tools/call with status 413")
  })

  it("a refusal of the gateway's credentials is an error of the request, whatever its body says", async () => {
    scripted.answers["tools/list"] = (response, { id }) => json(response, { id, result: {} })
    scripted.modernCall(1, "tools/list")
    await scripted.answerOf(1)
    for (const status of [401, 403]) {
      scripted.answers["tools/call"] = (response, { id }) =>
        json(response, { id, error: { code: -32000, message: "who are you?" } }, status)
      scripted.modernCall(status, "tools/call", { name: "x" })
      const { error } = await scripted.answerOf(status)
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
    scripted.modernCall(1, "tools/call", { name: "x" })
    await scripted.answerOf(1)
    assert.deepStrictEqual(scripted.texts, texts)
  })

  it("learns which arguments headers repeat when it is told that they are missing", async () => {
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
        result: params.cursor === undefined
          ? { tools: [], nextCursor: "2" }
          : { tools: [{ name: "query", inputSchema }] }
      })
    scripted.answers["tools/call"] = (response, { id }, headers) =>
      headers["mcp-param-region"] === "eu"
        ? json(response, { id, result: { ok: true } })
        : json(response, { id, error: { code: -32020, message: "Header mismatch" } }, 400)
    scripted.modernCall(1, "tools/call", { name: "query", arguments: { where: { region: "eu" }, tenant: "theirs" } })
    assert.deepStrictEqual((await scripted.answerOf(1)).result, { ok: true })
    // A header of the entry is not changed by an argument.
    assert.strictEqual(scripted.seen.at(-1)?.headers["mcp-param-tenant"], "ours")
    scripted.modernCall(2, "tools/call", { name: "query", arguments: { where: { region: "us" } } })
    assert.strictEqual((await scripted.answerOf(2)).error.code, -32020)
    assert.isBelow(scripted.seen.length, 10)
  })
})

describe("a server that is not there", () => {
  it("is the end, and no answer to the question which revisions it speaks", async () => {
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
})

describe("a receiver without room", () => {
  it("gets no more of a stream until it has", async () => {
    scripted.answers["many"] = (response, { id }) => {
      stream(
        response,
        ...Array.from({ length: 50 }, (_, i) => event({ method: `notifications/${i}` })),
        event({ id, result: {} })
      )
      response.end()
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
