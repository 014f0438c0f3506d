/** Modern clients in front of modern HTTP back ends: what each hears of the other, and how the era of a back end is found out. */
import { assert, beforeAll, beforeEach, describe, it } from "@effect/vitest"
import type { ServerResponse } from "node:http"
import * as Modern from "../../src/gateway/protocol/Modern.ts"
import * as RequestHeaders from "../../src/gateway/protocol/RequestHeaders.ts"
import * as AheadClock from "../kit/gateway/aheadClock.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"

interface Seen {
  readonly headers: Record<string, unknown>
  readonly body: string
  readonly method: string
  closed: boolean
}

let seen: ReadonlyArray<Seen> = []
const answer = (response: ServerResponse, message: object, status = 200) =>
  response.writeHead(status, Serving.json).end(JSON.stringify({ jsonrpc: "2.0", ...message }))
const notify = (response: ServerResponse, method: string, params: object) => {
  if (!response.headersSent) response.writeHead(200, { "content-type": "text/event-stream" })
  response.write(`event: message\ndata: ${JSON.stringify({ jsonrpc: "2.0", method, params })}\n\n`)
}
const progress = (response: ServerResponse, progressToken: unknown) =>
  notify(response, "notifications/progress", { progressToken, progress: 1 })
type Answer = (response: ServerResponse, id: unknown, token: unknown) => unknown
const isModern: Answer = (response, id) => {
  const result = { supportedVersions: [Modern.version], capabilities: {}, resultType: "complete" }
  answer(response, { id, result: { ...result, ttlMs: 0, cacheScope: "private" } })
}
const refuses = (status: number, error?: object): Answer => (response) =>
  error === undefined ? response.writeHead(status).end() : answer(response, { id: "0", error }, status)

/** What the upstream does with `server/discover`. */
let probed = isModern
/** Has the upstream end what it holds. */
let release = () => {}
const answers: Record<string, Answer> = {
  "server/discover": (...said) => probed(...said),
  initialize: Serving.initialized,
  never: () => {},
  held: (response, id) => {
    release = () => answer(response, { id, result: { held: true } })
  },
  stream: (response, _, token) => progress(response, token),
  broken: (response, _, token) => {
    progress(response, token)
    release = () => response.destroy()
  },
  unknown: (response, id) => answer(response, { id, error: { code: -32601, message: "unknown" } }, 404),
  old: (response) => response.writeHead(400, Serving.json).end("Bad Request: no session"),
  failing: (response) => response.writeHead(503).end(),
  gone: (response) => response.destroy(),
  partial: (response) => notify(response, "notifications/acme/partial", { part: 1 }),
  logging: (response) => notify(response, "notifications/message", { level: "error", data: "1" }),
  "subscriptions/listen": (response, id) => {
    const _meta = { [Modern.metaKeys.subscriptionId]: id }
    notify(response, "notifications/subscriptions/acknowledged", { _meta, notifications: {} })
  }
}

let target = ""
beforeAll(async () => {
  const origin = await Serving.upstream((response, { id, method }, { headers }, body) => {
    const entry: Seen = { headers, body, method, closed: false }
    seen = [...seen, entry]
    response.on("close", () => {
      entry.closed = true
    })
    const own = answers[method]
    if (method === undefined) response.writeHead(405).end()
    else if (own !== undefined) own(response, id, JSON.parse(body).params?._meta?.progressToken)
    else if (id === undefined) response.writeHead(202).end()
    else answer(response, { id, result: { method, resultType: "complete" } })
  })
  target = `${origin}/mcp`
})
beforeEach(() => {
  seen = []
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
const count = (method: string) => seen.filter((each) => each.method === method).length
const arrived = (method: string) => Kit.eventually("it has arrived", () => count(method) === 1)
const gone = () => Kit.eventually("the upstream request is gone", () => seen.at(-1)?.closed === true)

describe("a modern HTTP back end", () => {
  let url = ""
  const clock = AheadClock.make()
  beforeAll(async () => {
    probed = isModern
    const own = { url: target.replace("//", "//me:s3cretword@"), headers: { "Mcp-Param-Tenant": "ours" } }
    url = (await Serving.gateway({ backends: { own }, requestTimeout: "1 hour" }, clock)).url
  })

  it("gets the request with all its parameters, and the headers of its entry, but not those for the gateway", async () => {
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

  it("is asked for its era at most once", async () => {
    for (const method of ["echo", "echo", "server/discover", "echo"]) await (await send(url, method)).text()
    // One of these two was the client's own.
    assert.isAtMost(count("server/discover"), 2)
  })

  it("streams as it comes, and its request ends when the client goes", async () => {
    const stop = new AbortController()
    const response = await send(url, "stream", {}, stop.signal)
    assert.strictEqual(response.headers.get("content-type"), "text/event-stream")
    await Kit.readEvents(response, ({ data }) => data.includes("progress"))
    assert.strictEqual(seen.at(-1)?.closed, false)
    stop.abort()
    await gone()
  })

  it("has its request ended when the client goes before the answer", async () => {
    const stop = new AbortController()
    const response = send(url, "never", {}, stop.signal).catch(() => "stopped")
    await arrived("never")
    stop.abort()
    assert.strictEqual(await response, "stopped")
    await gone()
  })

  it("that says nothing for too long is given up, before an answer and in a stream", async () => {
    const never = send(url, "never")
    await arrived("never")
    clock.pass("1 hour")
    const { error, id } = await Kit.answerOf(await never)
    assert.deepStrictEqual([id, error.code], [7, -32603])
    await gone()
    const messages: Array<string> = []
    await Kit.readEvents(await send(url, "stream"), ({ data }) => {
      if (messages.push(data) === 1) clock.pass("1 hour")
      return false
    })
    assert.include(messages.at(-1), "no answer within")
  })

  it("that breaks off its stream is told as an error at the end of the client's", async () => {
    const messages: Array<string> = []
    await Kit.readEvents(await send(url, "broken"), ({ data }) => {
      messages.push(data)
      release()
      return false
    })
    assert.lengthOf(messages, 2)
    assert.include(messages[1], "ended early")
  })

  it("says its errors with its status", async () => {
    const response = await send(url, "unknown")
    assert.deepStrictEqual([response.status, (await response.json()).error.code], [404, -32601])
  })

  it.each(["failing", "gone"])("that gives no answer (%s) is an error with status 502", async (method) => {
    const response = await send(url, method)
    assert.deepStrictEqual([response.status, (await response.json()).error.code], [502, -32603])
    assert.strictEqual((await send(url, "echo")).status, 200)
  })

  it("that cannot be reached any more is failing, until it can be reached again", async () => {
    const stateOf = async () => (await (await fetch(`${new URL(url).origin}/health`)).json()).backends.own
    assert.strictEqual(await stateOf(), "ok")
    // Many failures in a row lead to no cool-down, because nothing has to start.
    for (let i = 0; i < 5; i++) assert.strictEqual((await send(url, "gone")).status, 502)
    assert.strictEqual(await stateOf(), "failing")
    assert.strictEqual((await send(url, "echo")).status, 200)
    assert.strictEqual(await stateOf(), "ok")
  })

  it("sends its client notifications of extensions during a call", async () => {
    const events: Array<string> = []
    await Kit.readEvents(await send(url, "partial"), ({ data }) => events.push(data) === 1)
    const { method, params } = JSON.parse(events[0] ?? "")
    assert.deepStrictEqual([method, params], ["notifications/acme/partial", { part: 1 }])
  })

  it("carries out calls with log messages at once, and each client hears of its own call", async () => {
    const responses = await Promise.all(Array.from({ length: 20 }, () => send(url, "logging")))
    for (const response of responses) await Kit.readEvents(response, ({ data }) => data.includes("error"))
    await gone()
  })

  it("that answers like a server of earlier revisions is asked for its era again", async () => {
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
    "is asked for again after an outage with status %s, of which the client is told",
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
    "is %s if the setting says so, and the other one is not tried",
    async (era) => {
      probed = isModern
      assert.strictEqual((await send(await start(era), "tools/list")).status, 200)
      const counts = [count("server/discover"), count("initialize")]
      assert.deepStrictEqual(counts, era === "modern" ? [1, 0] : [0, 1])
    }
  )
})

describe("a gateway that stops", () => {
  it("ends the subscriptions at a modern HTTP back end, and does not wait for them", async () => {
    probed = isModern
    const own = await Kit.start({ backends: { own: { url: target } }, drainTimeout: "1 hour" })
    const events: Array<string> = []
    let stopped: Promise<void> | undefined
    await Kit.readEvents(await send(`${own.origin}/mcp`, "subscriptions/listen"), ({ data }) => {
      if (events.push(data) === 1) stopped = own.stop()
      return false
    })
    await stopped
    assert.deepInclude(JSON.parse(events[1] ?? ""), { id: 7 })
    assert.include(events[1], "\"resultType\":\"complete\"")
  })

  it("lets what it passes through end, for a while, and leaves nothing of it", async () => {
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
