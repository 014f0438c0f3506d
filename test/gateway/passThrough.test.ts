/** Modern clients in front of modern HTTP back ends: what passes, and how the era of a back end is found out. */
import { afterAll, assert, beforeAll, beforeEach, describe, it } from "@effect/vitest"
import type { IncomingMessage, Server, ServerResponse } from "node:http"
import { createServer } from "node:http"
import * as Modern from "../../src/gateway/protocol/Modern.ts"
import * as AheadClock from "../kit/gateway/aheadClock.ts"
import * as Kit from "../kit/gateway/gateway.ts"

interface Seen {
  readonly headers: Record<string, unknown>
  readonly body: string
  closed: boolean
}

const seen: Array<Seen> = []
const discovery = {
  supportedVersions: [Modern.version],
  capabilities: {},
  resultType: "complete",
  ttlMs: 0,
  cacheScope: "private"
}
const answer = (id: unknown, result: object) => JSON.stringify({ jsonrpc: "2.0", id, result })
/** What the upstream does with `server/discover`. */
let probed: (response: ServerResponse, id: unknown) => void = () => {}

/** Has the upstream end what it holds. */
let release = () => {}

const isModern = (response: ServerResponse, id: unknown) => {
  response.writeHead(200, { "content-type": "application/json" }).end(answer(id, discovery))
}
const status = (code: number, body = "") => (response: ServerResponse) => {
  response.writeHead(code, { "content-type": "application/json" }).end(body)
}

const event = (message: object) => `event: message\ndata: ${JSON.stringify({ jsonrpc: "2.0", ...message })}\n\n`

const serve = (request: IncomingMessage, response: ServerResponse) => {
  let body = ""
  request.on("data", (chunk) => {
    body += chunk
  }).on("end", () => {
    const entry: Seen = { headers: request.headers, body, closed: false }
    seen.push(entry)
    response.on("close", () => {
      entry.closed = true
    })
    const { id, method } = JSON.parse(body || "{}")
    switch (method) {
      case "server/discover":
        return probed(response, id)
      case "initialize":
        return response.writeHead(200, { "content-type": "application/json", "mcp-session-id": "s" })
          .end(
            answer(id, { protocolVersion: "2025-06-18", capabilities: {}, serverInfo: { name: "old", version: "1" } })
          )
      case "never":
        return
      case "held":
        return void (release = () => response.writeHead(200).end(answer(id, { held: true })))
      case "stream":
        response.writeHead(200, { "content-type": "text/event-stream" })
        response.write(event({ method: "notifications/progress", params: { progressToken: 1, progress: 1 } }))
        return
      case "broken":
        response.writeHead(200, { "content-type": "text/event-stream" })
        response.write(event({ method: "notifications/progress", params: { progressToken: 1, progress: 1 } }))
        return void (release = () => response.destroy())
      case "unknown":
        return status(404, JSON.stringify({ jsonrpc: "2.0", id, error: { code: -32601, message: "unknown" } }))(
          response
        )
      case "old":
        return status(400, "Bad Request: no session")(response)
      case undefined:
        return response.writeHead(405).end()
      default:
        response.writeHead(200, { "content-type": "application/json" })
        response.end(id === undefined ? "" : answer(id, { method, resultType: "complete" }))
    }
  })
}

let server: Server
let gateway: Kit.Running
let target = ""
beforeAll(async () => {
  server = createServer(serve).listen(0, "127.0.0.1")
  await new Promise((resolve) => server.on("listening", resolve))
  target = `http://127.0.0.1:${Kit.portOf(server)}/mcp`
})
afterAll(() => {
  server.closeAllConnections()
  server.close()
})

const meta = {
  [Modern.metaKeys.protocolVersion]: Modern.version,
  [Modern.metaKeys.clientCapabilities]: {}
}

const send = (url: string, method: string, extra: Record<string, string> = {}, signal?: AbortSignal) =>
  fetch(url, {
    method: "POST",
    headers: { ...Kit.headers, ...Modern.headersOf(method, {}), ...extra },
    body: `{ "jsonrpc":"2.0", "id":7, "method":${JSON.stringify(method)}, "params":{"big":12345678901234567890,
      "_meta":${JSON.stringify(meta)}} }`,
    ...(signal === undefined ? {} : { signal })
  })

const probes = () => seen.filter(({ body }) => body.includes("server/discover")).length

describe("a modern HTTP back end", () => {
  let url = ""
  const clock = AheadClock.make()
  beforeAll(async () => {
    probed = isModern
    gateway = await Kit.start({
      backends: { own: { url: target.replace("//", "//me:s3cretword@"), headers: { "Mcp-Param-Tenant": "ours" } } },
      requestTimeout: "1 hour"
    }, clock)
    url = `${gateway.origin}/mcp/own`
  })
  afterAll(() => gateway.stop())
  beforeEach(() => void seen.splice(0))

  it("gets the body as it came, the client's Mcp headers, and those of its entry, which no client changes", async () => {
    const response = await send(url, "echo", {
      "mcp-param-region": "eu",
      "mcp-param-tenant": "theirs",
      "mcp-session-id": "x",
      "authorization": "Bearer of the gateway"
    })
    assert.deepStrictEqual([response.status, (await response.json()).result.method], [200, "echo"])
    const last = seen.at(-1)
    assert.include(last?.body, "{ \"jsonrpc\":\"2.0\", \"id\":7")
    assert.include(last?.body, "12345678901234567890")
    assert.deepInclude(last?.headers, {
      "mcp-method": "echo",
      "mcp-protocol-version": Modern.version,
      "mcp-param-region": "eu",
      "mcp-param-tenant": "ours",
      "authorization": `Basic ${Buffer.from("me:s3cretword").toString("base64")}`
    })
    assert.notProperty(last?.headers, "mcp-session-id")
  })

  it("is asked for its era once", async () => {
    for (let i = 0; i < 3; i++) await (await send(url, "echo")).text()
    assert.isAtMost(probes(), 1)
    await (await send(url, "server/discover")).text()
    await (await send(url, "echo")).text()
    assert.isAtMost(probes(), 2)
  })

  it("streams as it comes; a client that goes takes its request with it", async () => {
    const stop = new AbortController()
    const response = await send(url, "stream", {}, stop.signal)
    assert.strictEqual(response.headers.get("content-type"), "text/event-stream")
    await Kit.readEvents(response, ({ data }) => data.includes("progress"))
    assert.strictEqual(seen.at(-1)?.closed, false)
    stop.abort()
    await Kit.eventually("the upstream request is gone", () => seen.at(-1)?.closed === true)
  })

  it("a client that goes before the answer takes its request with it, too", async () => {
    const stop = new AbortController()
    const response = send(url, "never", {}, stop.signal).catch(() => "stopped")
    await Kit.eventually("it has arrived", () => seen.some(({ body }) => body.includes("never")))
    stop.abort()
    assert.strictEqual(await response, "stopped")
    await Kit.eventually("the upstream request is gone", () => seen.at(-1)?.closed === true)
  })

  it("that says nothing for too long is given up", async () => {
    const never = send(url, "never")
    await Kit.eventually("it has arrived", () => seen.some(({ body }) => body.includes("never")))
    clock.pass("1 hour")
    const { error, id } = await Kit.answerOf(await never)
    assert.deepStrictEqual([id, error.code], [7, -32603])
    await Kit.eventually("the upstream request is gone", () => seen.at(-1)?.closed === true)
    const messages: Array<string> = []
    await Kit.readEvents(await send(url, "stream"), ({ data }) => {
      if (messages.push(data) === 1) clock.pass("1 hour")
      return false
    })
    assert.include(messages.at(-1), "no answer within")
  })

  it("that breaks off its stream, breaks off the client's", async () => {
    const messages: Array<string> = []
    await Kit.readEvents(await send(url, "broken"), ({ data }) => {
      messages.push(data)
      release()
      return false
    })
    assert.strictEqual(messages.length, 1)
  })

  it("says its errors with its status", async () => {
    const response = await send(url, "unknown")
    assert.deepStrictEqual([response.status, (await response.json()).error.code], [404, -32601])
  })

  it("that answers like a server of earlier revisions is asked for its era again", async () => {
    const response = await send(url, "old")
    assert.strictEqual(response.status, 502)
    const before = probes()
    await (await send(url, "echo")).text()
    assert.strictEqual(probes(), before + 1)
  })
})

describe("the era of an HTTP back end", () => {
  const start = async (era?: "legacy" | "modern") => {
    seen.splice(0)
    gateway = await Kit.start({ backends: { own: { url: target, ...(era === undefined ? {} : { era }) } } })
    return `${gateway.origin}/mcp/own`
  }
  const initialized = () => seen.some(({ body }) => body.includes("\"initialize\""))

  it("is modern for a modern error, and earlier for any other refusal", async () => {
    const modernError = { code: -32022, message: "no", data: { supported: ["2027-01-01"] } }
    for (
      const [refusal, legacy] of [
        [status(400, JSON.stringify({ jsonrpc: "2.0", id: null, error: modernError })), false],
        [
          status(400, JSON.stringify({ jsonrpc: "2.0", id: null, error: { code: -32000, message: "no session" } })),
          true
        ],
        [status(404), true],
        [status(200, JSON.stringify({ jsonrpc: "2.0", id: "0", error: { code: -32601, message: "what?" } })), true]
      ] as const
    ) {
      probed = refusal
      const url = await start()
      await (await send(url, "tools/list")).text()
      assert.strictEqual(initialized(), legacy)
      await gateway.stop()
    }
  })

  it("is not known after an outage or trouble, of which the client is told; it is asked again", async () => {
    probed = status(503)
    const url = await start()
    for (const code of [503, 500, 401, 429]) {
      probed = status(code)
      const response = await send(url, "tools/list")
      assert.strictEqual(response.status, 502)
      assert.include(await response.text(), String(code))
    }
    probed = (response) => response.destroy()
    assert.strictEqual((await send(url, "tools/list")).status, 502)
    assert.isFalse(initialized())
    probed = isModern
    assert.strictEqual((await send(url, "tools/list")).status, 200)
    await gateway.stop()
  })

  it("is what the setting says", async () => {
    probed = status(503)
    const modern = await start("modern")
    assert.strictEqual((await send(modern, "tools/list")).status, 200)
    assert.strictEqual(probes(), 0)
    await gateway.stop()
    probed = isModern
    const legacy = await start("legacy")
    assert.strictEqual((await send(legacy, "tools/list")).status, 200)
    assert.isTrue(initialized())
    assert.strictEqual(probes(), 0)
    await gateway.stop()
  })
})

describe("a gateway that stops", () => {
  it("lets what it passes through end, for a while, and leaves nothing of it", async () => {
    probed = isModern
    const clock = AheadClock.make()
    const own = await Kit.start({
      backends: { own: { url: target } },
      drainTimeout: "1 hour",
      requestTimeout: "1 day"
    }, clock)
    const url = `${own.origin}/mcp/own`
    const held = send(url, "held")
    const never = send(url, "never")
    const listening = send(url, "stream")
    await Kit.eventually("all have arrived", () => seen.filter(({ closed }) => !closed).length === 3)
    const stopped = own.stop()
    await Kit.eventually("it stops", async () => (await fetch(`${own.origin}/ready`)).status === 503)
    release()
    assert.isTrue((await (await held).json()).result.held)
    clock.pass("1 hour")
    assert.include((await Kit.answerOf(await never)).error.message, "shutting down")
    await (await listening).text().catch(() => "cut")
    await stopped
    await Kit.eventually("nothing is left", () => seen.every(({ closed }) => closed))
  })
})
