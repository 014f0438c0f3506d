/** Modern clients of modern HTTP back ends, and recognition of the era of an HTTP back end. */
import { assert, beforeEach, describe, it } from "@effect/vitest"
import type { ServerResponse } from "node:http"
import * as Modern from "../../src/gateway/protocol/Modern.ts"
import * as RequestHeaders from "../../src/gateway/protocol/RequestHeaders.ts"
import * as AheadClock from "../kit/gateway/aheadClock.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import type { Answer } from "../kit/gateway/scripted.ts"
import { event, json, stream, upstream } from "../kit/gateway/scripted.ts"
import * as Serving from "../kit/gateway/serving.ts"

const notify = (response: ServerResponse, method: string, params: object) => stream(response, event({ method, params }))
const progress: Answer = (response, { params: { _meta: { progressToken } } }) =>
  notify(response, "notifications/progress", { progressToken, progress: 1 })
const isModern: Answer = (response, { id }) => {
  const result = { supportedVersions: [Modern.version], capabilities: {}, resultType: "complete" }
  json(response, { id, result: { ...result, ttlMs: 0, cacheScope: "private" } })
}
const refuses = (status: number, error?: object): Answer => (response) =>
  error === undefined ? response.writeHead(status).end() : json(response, { id: "0", error }, status)

/** What the upstream does with `server/discover`. */
let probed = isModern
/** Makes the upstream answer or break the request that it holds. */
let release = () => {}
const answers: Record<string, Answer> = {
  "server/discover": (...request) => probed(...request),
  initialize: (response, { id }) => Serving.initialized(response, id),
  GET: (response) => response.writeHead(405).end(),
  never: () => {},
  held: (response, { id }) => {
    release = () => json(response, { id, result: { held: true } })
  },
  stream: progress,
  broken: (response, ...request) => {
    progress(response, ...request)
    release = () => response.destroy()
  },
  unknown: (response, { id }) => json(response, { id, error: { code: -32601, message: "unknown" } }, 404),
  old: (response) => response.writeHead(400, Serving.json).end("Bad Request: no session"),
  failing: (response) => response.writeHead(503).end(),
  gone: (response) => response.destroy(),
  partial: (response) => notify(response, "notifications/acme/partial", { part: 1 }),
  logging: (response) => notify(response, "notifications/message", { level: "error", data: "1" }),
  "subscriptions/listen": (response, { id }) => {
    const _meta = { [Modern.metaKeys.subscriptionId]: id }
    notify(response, "notifications/subscriptions/acknowledged", { _meta, notifications: {} })
  }
}

const { seen, url: target } = await upstream(() => answers, (response, { id, method }) =>
  id === undefined
    ? response.writeHead(202).end()
    : json(response, { id, result: { method, resultType: "complete" } }))
beforeEach(() => {
  seen.length = 0
})

const send = (url: string, method: string, extra: Record<string, string> = {}, signal?: AbortSignal) =>
  fetch(url, {
    method: "POST",
    headers: { ...Kit.headers, ...RequestHeaders.headersOf(method, {}), ...extra },
    body: `{ "jsonrpc":"2.0", "id":7, "method":"${method}", "params":{"big":12345678901234567890, "_meta":{
      "${Modern.metaKeys.protocolVersion}":"${Modern.version}", "${Modern.metaKeys.clientCapabilities}":{}, "${Modern.metaKeys.logLevel}":"info", "progressToken":"mine"},
      "notifications":{}} }`,
    ...(signal === undefined ? {} : { signal })
  })
const count = (method: string) => seen.filter(({ message }) => message.method === method).length
const arrived = (method: string) => Kit.eventually("it has arrived", () => count(method) === 1)
const gone = () => Kit.eventually("the upstream request is gone", () => seen.at(-1)?.closed === true)

describe("a modern HTTP back end", async () => {
  const clock = AheadClock.make()
  const own = { url: target.replace("//", "//me:s3cretword@"), headers: { "Mcp-Param-Tenant": "ours" } }
  const { origin, url } = await Serving.gateway({ backends: { own }, requestTimeout: "1 hour" }, clock)

  it("receives the whole request and the headers of its entry, but not those for the gateway", async () => {
    const headers = { "mcp-param-tenant": "theirs", "mcp-session-id": "x", authorization: "Bearer of the gateway" }
    const response = await send(url, "echo", headers)
    const { id, result } = await response.json()
    assert.deepStrictEqual([response.status, id, result.method], [200, 7, "echo"])
    const last = seen.at(-1)
    assert.include(last?.body, "\"big\":12345678901234567890")
    assert.deepInclude(last?.headers, {
      "mcp-method": "echo",
      "mcp-protocol-version": Modern.version,
      "mcp-param-tenant": "ours",
      "authorization": `Basic ${Buffer.from("me:s3cretword").toString("base64")}`
    })
    assert.notProperty(last?.headers, "mcp-session-id")
  })

  it("is probed for its era at most once", async () => {
    for (const method of ["echo", "echo", "server/discover", "echo"]) await (await send(url, method)).text()
    // One of these two is the client's own.
    assert.isAtMost(count("server/discover"), 2)
  })

  it("streams each event at once, and its request ends when the client disconnects", async () => {
    const stop = new AbortController()
    const response = await send(url, "stream", {}, stop.signal)
    assert.strictEqual(response.headers.get("content-type"), "text/event-stream")
    await Kit.readEvents(response, ({ data }) => data.includes("progress"))
    assert.strictEqual(seen.at(-1)?.closed, false)
    stop.abort()
    await gone()
  })

  it("loses its request when the client disconnects before the answer", async () => {
    const leave = Serving.leaving((signal) => send(url, "never", {}, signal))
    await arrived("never")
    await leave()
    await gone()
  })

  it("fails a request that exceeds requestTimeout, before an answer and in a stream", async () => {
    const never = send(url, "never")
    await arrived("never")
    clock.pass("1 hour")
    const { error, id } = await Kit.answerOf(await never)
    assert.deepStrictEqual([id, error.code], [7, -32603])
    await gone()
    const messages = await Serving.allEvents(await send(url, "stream"), () => clock.pass("1 hour"))
    assert.include(messages.at(-1), "no answer within")
  })

  it("fails a request with an error event when it breaks off the stream", async () => {
    const messages = await Serving.allEvents(await send(url, "broken"), () => release())
    assert.lengthOf(messages, 2)
    assert.include(messages[1], "ended early")
  })

  it("answers an error with its own status", async () => {
    const response = await send(url, "unknown")
    assert.deepStrictEqual([response.status, (await response.json()).error.code], [404, -32601])
  })

  it.each(["failing", "gone"])("fails a request with status 502 when it gives no answer (%s)", async (method) => {
    const response = await send(url, method)
    assert.deepStrictEqual([response.status, (await response.json()).error.code], [502, -32603])
    assert.strictEqual((await send(url, "echo")).status, 200)
  })

  it("is failing in /health while it cannot be reached", async () => {
    const stateOf = async () => (await (await fetch(`${origin}/health`)).json()).backends.own
    assert.strictEqual(await stateOf(), "ok")
    // Many failures in a row lead to no cool-down, because nothing has to start.
    for (let i = 0; i < 5; i++) assert.strictEqual((await send(url, "gone")).status, 502)
    assert.strictEqual(await stateOf(), "failing")
    assert.strictEqual((await send(url, "echo")).status, 200)
    assert.strictEqual(await stateOf(), "ok")
  })

  it("sends notifications of extensions to the client during a call", async () => {
    const [event] = await Serving.firstEvents(await send(url, "partial"), 1)
    const { method, params } = JSON.parse(event?.data ?? "")
    assert.deepStrictEqual([method, params], ["notifications/acme/partial", { part: 1 }])
  })

  it("serves calls with log messages concurrently, each on its own stream", async () => {
    const responses = await Promise.all(Array.from({ length: 20 }, () => send(url, "logging")))
    for (const response of responses) await Kit.readEvents(response, ({ data }) => data.includes("error"))
    await gone()
  })

  it("is probed again after an answer of a legacy server", async () => {
    const response = await send(url, "old")
    assert.strictEqual(response.status, 502)
    assert.include((await response.json()).error.message, "status 400")
    const before = count("server/discover")
    await (await send(url, "echo")).text()
    assert.strictEqual(count("server/discover"), before + 1)
  })
})

describe("the era of an HTTP back end", () => {
  const start = async (era?: "legacy" | "modern") =>
    (await Serving.gateway({ backends: { own: { url: target, ...(era === undefined ? {} : { era }) } } })).url

  it.each([
    { era: "modern", probe: refuses(400, { code: -32022, message: "no", data: { supported: ["2027-01-01"] } }) },
    { era: "legacy", probe: refuses(400, { code: -32000, message: "no session" }) },
    { era: "legacy", probe: refuses(404) },
    { era: "legacy", probe: refuses(200, { code: -32601, message: "what?" }) }
  ])("is $era after refusal $#", async ({ era, probe }) => {
    probed = probe
    await (await send(await start(), "tools/list")).text()
    assert.strictEqual(count("initialize") > 0, era === "legacy")
  })

  it.each([503, 500, 401, 429])(
    "is probed again after an outage with status %s, which fails the request",
    async (code) => {
      const url = await start()
      probed = refuses(code)
      const response = await send(url, "tools/list")
      assert.strictEqual(response.status, 502)
      assert.include(await response.text(), String(code))
      probed = (response) => response.destroy()
      assert.strictEqual((await send(url, "tools/list")).status, 502)
      assert.strictEqual(count("initialize"), 0)
      probed = isModern
      assert.strictEqual((await send(url, "tools/list")).status, 200)
    }
  )

  it.each(["modern", "legacy"] as const)(
    "is %s by setting, and the other era is not tried",
    async (era) => {
      probed = isModern
      assert.strictEqual((await send(await start(era), "tools/list")).status, 200)
      const counts = [count("server/discover"), count("initialize")]
      assert.deepStrictEqual(counts, era === "modern" ? [1, 0] : [0, 1])
    }
  )
})

describe("a gateway that stops in front of a modern HTTP back end", () => {
  it("ends subscriptions at once", async () => {
    probed = isModern
    const own = await Kit.start({ backends: { own: { url: target } }, drainTimeout: "1 hour" })
    let stopped: Promise<void> | undefined
    const response = await send(`${own.origin}/mcp`, "subscriptions/listen")
    const events = await Serving.allEvents(response, () => (stopped = own.stop()))
    await stopped
    assert.deepInclude(JSON.parse(events[1] ?? ""), { id: 7 })
    assert.include(events[1], "\"resultType\":\"complete\"")
  })

  it("waits for running requests up to drainTimeout, and leaves none", async () => {
    probed = isModern
    const clock = AheadClock.make()
    const backends = { own: { url: target } }
    const own = await Kit.start({ backends, drainTimeout: "1 hour", requestTimeout: "1 day" }, clock)
    const url = `${own.origin}/mcp`
    const [held, never, listening] = [send(url, "held"), send(url, "never"), send(url, "stream")]
    await Kit.eventually("all have arrived", () => seen.filter(({ closed }) => !closed).length === 3)
    const stopped = own.stop()
    await Kit.eventually("it stops", async () => (await fetch(`${own.origin}/ready`)).status === 503)
    release()
    assert.isTrue((await Kit.answerOf(await held)).result.held)
    clock.pass("1 hour")
    assert.include((await Kit.answerOf(await never)).error.message, "shutting down")
    await (await listening).text().catch(() => "cut")
    await stopped
    await Kit.eventually("nothing is left", () => seen.every(({ closed }) => closed))
  })
})
