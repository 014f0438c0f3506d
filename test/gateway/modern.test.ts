/** Requests of revision 2026-07-28 to a legacy stdio server. */
import { assert, describe, it } from "@effect/vitest"
import * as Modern from "../../src/gateway/protocol/Modern.ts"
import * as RequestHeaders from "../../src/gateway/protocol/RequestHeaders.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import { asking, body, callTool, request, send, textOf, toolText } from "../kit/gateway/modern.ts"
import * as Serving from "../kit/gateway/serving.ts"
import * as StillClock from "../kit/gateway/stillClock.ts"

const clock = await StillClock.make()
/** A gateway on `clock`. */
const timed = await Serving.gateway({ backends: { asking: asking() } }, clock)
const { origin, url } = await Serving.gateway({ backends: { asking: asking() } })

/** Posts a text or a message with these headers, except those that are `undefined`. */
const post = (message: object | string, headers: Record<string, string | undefined>) =>
  fetch(url, {
    method: "POST",
    headers: Object.entries({ ...Kit.headers, ...headers }).filter((entry): entry is [string, string] =>
      entry[1] !== undefined
    ),
    body: typeof message === "string" ? message : JSON.stringify(message)
  })
/** The status, the error's code and the id of a refusal. */
const refusal = async (message: object, headers: Record<string, string | undefined>) => {
  const response = await post(message, headers)
  const { error, id } = await response.json()
  return { answer: [response.status, error?.code, id], error }
}

describe("requests of revision 2026-07-28", () => {
  it("recognises a modern request by its content, on the same URL as legacy requests", async () => {
    const session = await Kit.open(url)
    assert.strictEqual(await Kit.toolText(url, session, "count"), "1")
    assert.strictEqual(await toolText(url, "count"), "1")
    assert.strictEqual(await Kit.toolText(url, session, "count"), "2")
    assert.strictEqual(await toolText(url, "count"), "2")
  })

  it("refuses a request without the required keys of _meta with -32602 and 400, under its id", async () => {
    const whole = body("tools/list", {}, { id: "x" })
    const headers = RequestHeaders.headersOf("tools/list", {})
    const changes = [
      { [Modern.metaKeys.protocolVersion]: undefined },
      { [Modern.metaKeys.clientCapabilities]: undefined },
      { [Modern.metaKeys.clientCapabilities]: [] },
      { [Modern.metaKeys.protocolVersion]: 5 },
      { [Modern.metaKeys.clientInfo]: "x" },
      { [Modern.metaKeys.logLevel]: "loud" }
    ]
    const wrong = changes.map((change) => ({ ...whole, params: { _meta: { ...whole.params._meta, ...change } } }))
    for (const message of [...wrong, { jsonrpc: "2.0", id: "x", method: "tools/list" }]) {
      const { answer } = await refusal(message, headers)
      assert.deepStrictEqual(answer, [400, -32602, "x"], JSON.stringify(message))
    }
  })

  it("refuses a request whose headers differ from its body with -32020 and 400", async () => {
    const right = RequestHeaders.headersOf("tools/call", { name: "count" })
    const message = body("tools/call", { name: "count" }, {})
    const changes = [
      { "mcp-protocol-version": undefined },
      { "mcp-protocol-version": "2025-11-25" },
      { "mcp-method": undefined },
      { "mcp-method": "tools/list" },
      { "mcp-method": `=?base64?${Buffer.from("tools/call").toString("base64")}?=` },
      { "mcp-name": undefined },
      { "mcp-name": "COUNT" },
      { "mcp-name": "=?base64?!?=" }
    ]
    for (const change of changes) {
      const { answer, error } = await refusal(message, { ...right, ...change })
      assert.deepStrictEqual(answer, [400, -32020, 1], JSON.stringify(change))
      assert.match(error.message, /^Header mismatch: the header M\S+ (is missing|says ".*", the body ".*")$/)
    }
  })

  it("refuses a name that is no string, and forwards one of two names", async () => {
    const headers = RequestHeaders.headersOf("tools/call", { name: "count" })
    const { answer } = await refusal(body("tools/call", { name: ["count"] }, {}), headers)
    assert.deepStrictEqual(answer.slice(0, 2), [400, -32020])
    const twice = JSON.stringify(body("tools/call", { name: "raw" }, {}))
      .replace("\"name\":\"raw\"", "\"name\":\"pid\",\"name\":\"raw\"")
    const response = await post(twice, RequestHeaders.headersOf("tools/call", { name: "raw" }))
    assert.lengthOf((await response.json()).result.content[0].text.split("\"name\":\""), 2)
  })

  it("answers under the id of the request, also if the id has more digits than a double holds", async () => {
    const message = JSON.stringify(body("tools/call", { name: "count" }, {}))
    const headers = RequestHeaders.headersOf("tools/call", { name: "count" })
    const response = await post(message.replace("\"id\":1,", "\"id\":12345678901234567890,"), headers)
    assert.include(await response.text(), "\"id\":12345678901234567890,")
  })

  it("accepts a name that is encoded in the header, as a name beyond plain ASCII must be", async () => {
    for (const name of ["ü", " count", "=?base64?Y291bnQ=?=", "line\nbreak"]) {
      const headers = RequestHeaders.headersOf("tools/call", { name })
      assert.match(String(headers["mcp-name"]), /^=\?base64\?.*\?=$/)
      const said = await callTool(url, name)
      assert.strictEqual(said.last.error.message, "no such tool")
    }
    const encoded = { "mcp-name": `=?base64?${Buffer.from("count").toString("base64")}?=` }
    assert.strictEqual((await callTool(url, "count", {}, { headers: encoded })).status, 200)
  })

  it("refuses a request of an unsupported revision, and lists the supported ones", async () => {
    // Another revision may declare capabilities in another way.
    const meta = { [Modern.metaKeys.protocolVersion]: "2099-01-01", [Modern.metaKeys.clientCapabilities]: undefined }
    const message = body("tools/list", {}, { meta })
    const headers = { ...RequestHeaders.headersOf("tools/list", {}), "mcp-protocol-version": "2099-01-01" }
    const { answer, error } = await refusal(message, headers)
    assert.deepStrictEqual(answer, [400, -32022, 1])
    assert.deepStrictEqual(error.data, { supported: ["2026-07-28"], requested: "2099-01-01" })
  })

  it("refuses methods that the revision removed or the back end lacks with -32601 and 404", async () => {
    for (const method of ["initialize", "ping", "logging/setLevel", "resources/subscribe", "prompts/list"]) {
      const said = await request(url, method, {}, { id: 7 })
      assert.deepStrictEqual([said.status, said.last.error.code, said.last.id], [404, -32601, 7], method)
    }
  })

  it("answers a cancellation by notification with 202, and does not cancel the call", async () => {
    const pid = Number(await toolText(url, "pid", { client: "holder" }))
    const call = toolText(url, "untilSignal", { id: 1, client: "holder" })
    await Kit.untilRunning(origin, pid)
    const { jsonrpc, method, params } = body("notifications/cancelled", { requestId: 1 }, { client: "holder" })
    const response = await post({ jsonrpc, method, params }, RequestHeaders.headersOf(method, {}))
    assert.deepStrictEqual([response.status, await response.text()], [202, ""])
    process.kill(pid, "SIGUSR2")
    assert.strictEqual(await call, "released")
  })

  it("answers server/discover from the server's handshake, without tasks", async () => {
    const { last, status } = await request(url, "server/discover", {})
    assert.strictEqual(status, 200)
    assert.deepStrictEqual(last.result, {
      resultType: "complete",
      supportedVersions: ["2026-07-28"],
      capabilities: { tools: { listChanged: true }, resources: { subscribe: true, listChanged: true }, logging: {} },
      instructions: "Ask away.",
      ttlMs: 60000,
      cacheScope: "private",
      _meta: { [Modern.metaKeys.serverInfo]: { name: "asking", version: "1.0.0" } }
    })
  })

  it("adds type, server and lifetime to results, and keeps their numbers as they came", async () => {
    const list = await request(url, "tools/list", {})
    assert.deepStrictEqual(list.last.result, {
      tools: [],
      // `JSON.parse` rounds it. The text below has all digits.
      big: 12345678901234567000,
      resultType: "complete",
      ttlMs: 0,
      cacheScope: "private",
      _meta: { [Modern.metaKeys.serverInfo]: { name: "asking", version: "1.0.0" } }
    })
    assert.include(await (await send(url, "tools/list", {})).text(), "\"big\":12345678901234567890")
    const odd = await (await send(url, "odd", {})).text()
    assert.include(odd, "\"n\":12345678901234567890,\"e\":1e400")
    assert.notInclude(odd, "ttlMs")
  })

  it("forwards a request under an id of the gateway, without the _meta keys of this hop and with all others", async () => {
    const meta = { "progressToken": "mine", "traceparent": "00-1-2-01", "example.com/x": { deep: [1] } }
    const said = await callTool(url, "raw", { a: 1 }, { id: "client", meta })
    assert.strictEqual(said.last.id, "client")
    const { id, params } = JSON.parse(textOf(said))
    assert.isNumber(id)
    assert.deepStrictEqual(params, {
      name: "raw",
      arguments: { a: 1 },
      _meta: { "traceparent": "00-1-2-01", "example.com/x": { deep: [1] }, "progressToken": id }
    })
  })

  it("translates error codes to those of the revision", async () => {
    const missing = await callTool(url, "missing")
    assert.deepStrictEqual(missing.last.error, { message: "no such resource", data: { uri: "x" }, code: -32602 })
    const reserved = await callTool(url, "reserved")
    assert.deepStrictEqual(reserved.last.error, { message: "a code of its own", code: -32603, data: { code: -32050 } })
    assert.deepStrictEqual([missing.status, reserved.status], [200, 200])
  })

  it("answers a call whose process crashes with the exit code, and serves the next call with a new process", async () => {
    const crashed = await callTool(url, "crash")
    assert.match(crashed.last.error.message, /exit code 7/)
    assert.strictEqual(await toolText(url, "count"), "1")
  })

  it("sends each call its own progress under its own token, also when concurrent calls use the same token", async () => {
    const calls = await Promise.all(
      ["same", "same", 1, undefined].map((progressToken) =>
        callTool(url, "progress", {}, { id: 1, meta: progressToken === undefined ? {} : { progressToken } })
      )
    )
    const heard = calls.map(({ messages }) =>
      messages.slice(0, -1).map(({ params }) => [params.progressToken, params.progress])
    )
    const steps = (token: string | number) => [[token, 1], [token, 2], [token, 3]]
    assert.deepStrictEqual(heard, [steps("same"), steps("same"), steps(1), []])
  })

  it("sends log messages of the level that a call asks for, and none without a level", async () => {
    const heard = async (level: string | undefined) => {
      const meta = level === undefined ? {} : { [Modern.metaKeys.logLevel]: level }
      const { messages } = await callTool(url, "log", {}, { meta })
      return messages.slice(0, -1).map(({ params }) => params.data)
    }
    assert.deepStrictEqual(
      await Promise.all([heard(undefined), heard("debug"), heard("warning"), heard("emergency")]),
      [[], ["a debug", "a info", "a error"], ["a error"], []]
    )
  })

  it("cancels a call whose client disconnects", async () => {
    const options = { client: "leaver" }
    const pid = await toolText(url, "pid", options)
    const leave = Serving.leaving((signal) => toolText(url, "never", { ...options, signal }))
    await Kit.untilRunning(origin, Number(pid))
    await leave()
    const isCancelled = async () => /notifications\/cancelled \d/.test(await toolText(url, "heard", options))
    await Kit.eventually("the server has the cancellation", isCancelled)
    // The server had asked its client nothing, so its process goes on.
    assert.strictEqual(await toolText(url, "pid", options), pid)
  })

  it("cancels a call that exceeds requestTimeout, and answers it with an error", async () => {
    // Without capabilities the call shares its process with the others, so the process lives on.
    const pid = Number(await toolText(timed.url, "pid"))
    const call = callTool(timed.url, "never")
    await Kit.untilRunning(timed.origin, pid)
    await clock.pass("5 minutes")
    const { error } = (await call).last
    assert.match(error.message, /no answer within 5m/)
    assert.strictEqual(error.code, -32603)
    assert.match(await toolText(timed.url, "heard"), /notifications\/cancelled \d/)
  })

  it("ends a call whose stream is silent for requestTimeout, although the stream has heartbeats", async () => {
    const params = { name: "stall", arguments: {} }
    const response = await send(timed.url, "tools/call", params, { meta: { progressToken: 1 } })
    const events: Array<string> = []
    let comments = 0
    const read = Kit.readEvents(response, ({ data }, seen) => {
      events.push(data)
      comments = seen
      return false
    })
    await Kit.eventually("it has begun", () => events.length === 1)
    // A heartbeat is due every 15 seconds.
    for (let i = 0; i < 20; i++) await clock.pass("15 seconds")
    await read
    assert.strictEqual(events.length, 2)
    assert.isAbove(comments, 0)
    assert.match(JSON.parse(events[1] ?? "").error.message, /no answer within 5m/)
  })
})

describe("probe for the era", () => {
  it("is skipped when the back end has the setting era", async () => {
    const known = await Serving.gateway({ backends: { asking: { ...asking("--silent"), era: "legacy" } } })
    assert.strictEqual(await toolText(known.url, "heard"), "[\"initialize\",\"notifications/initialized\"]")
  })
})
