/** Revision 2026-07-28 at the gateway's door, in front of a legacy stdio server: what is answered how. */
import { assert, beforeAll, describe, it } from "@effect/vitest"
import * as Modern from "../../src/gateway/protocol/Modern.ts"
import * as RequestHeaders from "../../src/gateway/protocol/RequestHeaders.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import { asking, body, callTool, request, send, textOf, toolText } from "../kit/gateway/modern.ts"
import * as Serving from "../kit/gateway/serving.ts"
import * as StillClock from "../kit/gateway/stillClock.ts"

let clock: StillClock.StillClock
let [origin, url] = ["", ""]
/** A gateway on `clock`. */
let timed: { readonly origin: string; readonly url: string }
beforeAll(async () => {
  clock = await StillClock.make()
  timed = await Serving.gateway({ backends: { asking: asking() } }, clock)
  const gateway = await Serving.gateway({ backends: { asking: asking() } })
  origin = gateway.origin
  url = gateway.url
})

/** Posts a text or a message with these headers; one that is `undefined` is left out. */
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
describe("a request of revision 2026-07-28", () => {
  it("is told from those of earlier revisions by its own content, on the same URL", async () => {
    const session = await Kit.open(url)
    assert.strictEqual(await Kit.toolText(url, session, "count"), "1")
    assert.strictEqual(await toolText(url, "count"), "1")
    assert.strictEqual(await Kit.toolText(url, session, "count"), "2")
    assert.strictEqual(await toolText(url, "count"), "2")
  })

  it("without the required keys of _meta is refused with -32602 and 400, under its id", async () => {
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

  it("whose headers say something else than its body is refused with -32020 and 400", async () => {
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

  it("whose name is no string does not pass for the one in the header, and of two names one is passed on", async () => {
    const headers = RequestHeaders.headersOf("tools/call", { name: "count" })
    assert.deepStrictEqual((await refusal(body("tools/call", { name: ["count"] }, {}), headers)).answer.slice(0, 2), [
      400,
      -32020
    ])
    const twice = JSON.stringify(body("tools/call", { name: "raw" }, {}))
      .replace("\"name\":\"raw\"", "\"name\":\"pid\",\"name\":\"raw\"")
    const response = await post(twice, RequestHeaders.headersOf("tools/call", { name: "raw" }))
    assert.lengthOf((await response.json()).result.content[0].text.split("\"name\":\""), 2)
  })

  it("under an id that no double holds is answered under it", async () => {
    const message = JSON.stringify(body("tools/call", { name: "count" }, {}))
    const response = await post(
      message.replace("\"id\":1,", "\"id\":12345678901234567890,"),
      RequestHeaders.headersOf("tools/call", { name: "count" })
    )
    assert.include(await response.text(), "\"id\":12345678901234567890,")
  })

  it("may have its name encoded in the header, and must if it is no plain ASCII", async () => {
    for (const name of ["ü", " count", "=?base64?Y291bnQ=?=", "line\nbreak"]) {
      const headers = RequestHeaders.headersOf("tools/call", { name })
      assert.match(String(headers["mcp-name"]), /^=\?base64\?.*\?=$/)
      const said = await callTool(url, name)
      assert.strictEqual(said.last.error.message, "no such tool")
    }
    const encoded = { "mcp-name": `=?base64?${Buffer.from("count").toString("base64")}?=` }
    assert.strictEqual((await callTool(url, "count", {}, { headers: encoded })).status, 200)
  })

  it("of a revision that is not spoken here is told which ones are", async () => {
    // It may say what it can do in another way.
    const meta = { [Modern.metaKeys.protocolVersion]: "2099-01-01", [Modern.metaKeys.clientCapabilities]: undefined }
    const message = body("tools/list", {}, { meta })
    const headers = { ...RequestHeaders.headersOf("tools/list", {}), "mcp-protocol-version": "2099-01-01" }
    const { answer, error } = await refusal(message, headers)
    assert.deepStrictEqual(answer, [400, -32022, 1])
    assert.deepStrictEqual(error.data, { supported: ["2026-07-28"], requested: "2099-01-01" })
  })

  it("for what this revision has no longer, or the back end never had, is refused with -32601 and 404", async () => {
    for (const method of ["initialize", "ping", "logging/setLevel", "resources/subscribe", "prompts/list"]) {
      const said = await request(url, method, {}, { id: 7 })
      assert.deepStrictEqual([said.status, said.last.error.code, said.last.id], [404, -32601, 7], method)
    }
  })

  it("is a notification without consequences: 202", async () => {
    const pid = Number(await toolText(url, "pid", { client: "holder" }))
    const call = toolText(url, "untilSignal", { id: 1, client: "holder" })
    await Kit.untilRunning(origin, pid)
    const { jsonrpc, method, params } = body("notifications/cancelled", { requestId: 1 }, { client: "holder" })
    const response = await post({ jsonrpc, method, params }, RequestHeaders.headersOf(method, {}))
    assert.deepStrictEqual([response.status, await response.text()], [202, ""])
    process.kill(pid, "SIGUSR2")
    assert.strictEqual(await call, "released")
  })

  it("server/discover tells what the server said in its handshake, without tasks", async () => {
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

  it("gets results that say what they are, whose they are and how long they hold; numbers as they came", async () => {
    const list = await request(url, "tools/list", {})
    assert.deepStrictEqual(list.last.result, {
      tools: [],
      // What no double holds is read so; it came as it was.
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

  it("reaches the server under an id of the gateway's, without the keys of this hop, with all others", async () => {
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

  it("gets errors in this revision's codes", async () => {
    const missing = await callTool(url, "missing")
    assert.deepStrictEqual(missing.last.error, { message: "no such resource", data: { uri: "x" }, code: -32602 })
    const reserved = await callTool(url, "reserved")
    assert.deepStrictEqual(reserved.last.error, { message: "a code of its own", code: -32603, data: { code: -32050 } })
    assert.deepStrictEqual([missing.status, reserved.status], [200, 200])
  })

  it("is told how its process ended, and the next one meets another", async () => {
    const crashed = await callTool(url, "crash")
    assert.match(crashed.last.error.message, /exit code 7/)
    assert.strictEqual(await toolText(url, "count"), "1")
  })

  it("hears of its own progress under its own token, whatever tokens others use at the same time", async () => {
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

  it("hears log messages at the level that it asked for, and none without one", async () => {
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

  it("whose client goes is cancelled", async () => {
    const options = { client: "leaver" }
    const pid = await toolText(url, "pid", options)
    const aborter = new AbortController()
    const call = toolText(url, "never", { ...options, signal: aborter.signal })
    const left = call.then(() => "answered", () => "gone")
    await Kit.untilRunning(origin, Number(pid))
    aborter.abort()
    assert.strictEqual(await left, "gone")
    await Kit.eventually(
      "the cancellation is heard",
      async () => /notifications\/cancelled \d/.test(await toolText(url, "heard", options))
    )
    // Nobody had asked anything, so the process goes on.
    assert.strictEqual(await toolText(url, "pid", options), pid)
  })

  it("that takes too long is cancelled and told so", async () => {
    // Without capabilities the call shares its process with the others, so the process lives on.
    const options = {}
    const pid = Number(await toolText(timed.url, "pid", options))
    const call = callTool(timed.url, "never", {}, options)
    await Kit.untilRunning(timed.origin, pid)
    await clock.pass("5 minutes")
    const { error } = (await call).last
    assert.match(error.message, /no answer within 5m/)
    assert.strictEqual(error.code, -32603)
    assert.match(await toolText(timed.url, "heard", options), /notifications\/cancelled \d/)
  })

  it("that falls silent in the middle of its stream ends as well, whatever comments the stream gets", async () => {
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

describe("the probe for the era", () => {
  it("is left out where the setting says what the back end speaks", async () => {
    const known = await Serving.gateway({ backends: { asking: { ...asking("--silent"), era: "legacy" } } })
    assert.strictEqual(await toolText(known.url, "heard"), "[\"initialize\",\"notifications/initialized\"]")
  })
})
