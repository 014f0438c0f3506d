/** HTTP back ends: one upstream session per client session, with the limits of every other back end. */
import { spawn } from "node:child_process"
import type { ServerResponse } from "node:http"
import { createRequire } from "node:module"
import { afterAll, assert, beforeAll, beforeEach, describe, it } from "vitest"
import * as AheadClock from "../kit/gateway/aheadClock.ts"
import * as Eras from "../kit/gateway/eras.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"
import { shortOrLong } from "../kit/long.ts"

const everything = createRequire(import.meta.url).resolve("@modelcontextprotocol/server-everything/dist/index.js")
const seen: Array<{ readonly headers: Record<string, unknown>; readonly body: string }> = []
const asked: Array<ServerResponse> = []
let forgets = false
const clock = AheadClock.make()
const answer = (id: unknown, result: unknown) => JSON.stringify({ jsonrpc: "2.0", id, result })
const events = { "content-type": "text/event-stream" }

/** What the upstream does with a method. */
const answers: Record<string, (response: ServerResponse, message: { id: unknown; params: { type: string } }) => void> =
  {
    GET: (response) => {
      response.writeHead(200, events)
      response.write("id: up-1\nevent: message\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"of-session\"}\n\n")
    },
    initialize: (response, { id }) => {
      const result = answer(id, { protocolVersion: "2025-06-18", serverInfo: {} })
      response.writeHead(200, { ...events, "mcp-session-id": "upstream-session" })
      response.end(`retry: 500\nid: 0\ndata: \n\nevent: message\ndata: ${result}\n\n`)
    },
    never: () => {},
    stall: (response) => {
      response.writeHead(200, events)
      response.write("id: up-2\nevent: message\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"x\"}\n\n")
    },
    "stall-json": (response) => response.writeHead(200, Serving.json).write("{"),
    denied: (response) => response.writeHead(401).end(),
    long: (response, { id, params: { type } }) => {
      const text = answer(id, "x".repeat(2_000_000))
      response.writeHead(200, { "content-type": type })
      response.end(type === "application/json" ? text : `id: up-3\ndata: ${text}\n\n`)
    },
    ask: (response, { id }) => {
      response.writeHead(200, events)
      response.write(`data: {"jsonrpc":"2.0","id":"q","method":"ping","params":{"of":${id}}}\n\n`)
      asked.push(response)
    }
  }

let gateway: Kit.Running
let direct = ""
beforeAll(async () => {
  const port = await Kit.freePort()
  direct = `http://127.0.0.1:${port}/mcp`
  const official = spawn(process.execPath, [everything, "streamableHttp"], {
    env: { ...process.env, PORT: String(port) },
    stdio: "ignore"
  })
  afterAll(() => void official.kill("SIGKILL"))
  await Kit.eventually("the upstream listens", () => fetch(direct).then(() => true, () => false))
  const own = await Serving.upstream((response, message, request, body) => {
    seen.push({ headers: request.headers, body })
    const { id, method } = message
    if (forgets) return response.writeHead(404).end()
    const answered = answers[request.method === "GET" ? "GET" : method]
    if (answered !== undefined) return answered(response, message)
    if (id === undefined) return response.writeHead(202).end()
    response.writeHead(200, Serving.json).end(answer(id, { echo: message }))
  })
  gateway = await Serving.gateway({
    backends: {
      remote: { url: direct },
      local: { command: process.execPath, args: [everything, "stdio"] },
      own: { url: `${own.replace("//", "//me:s3cretword@")}/mcp`, headers: { "x-extra": "yes" } },
      down: { url: "http://127.0.0.1:9/" },
      nowhere: { url: "http://me:s3cretword@nowhere.invalid/mcp?token=s3cretword" },
      plain: { url: `${own.replace("http:", "https:")}/mcp` }
    },
    requestTimeout: "1 hour",
    maxLineBytes: 1_000_000
  }, clock)
})

describe.each([["Streamable HTTP", "remote"], ["stdio", "local"]])("server-everything on %s", (_, name) => {
  const open = () => Eras.legacy(`${gateway.origin}/mcp/${name}`)

  it("lists and calls tools, with progress, in concurrent sessions", async () => {
    const count = shortOrLong(3, 10)
    const results = await Promise.all(Array.from({ length: count }, async (_, i) => {
      const { call, client, heard } = await open()
      const echo = await call("echo", { message: `session ${i}` })
      await call("trigger-long-running-operation", { duration: 0.1, steps: 3 })
      await client.close()
      return [echo, heard.progress]
    }))
    assert.deepStrictEqual(results, Array.from({ length: count }, (_, i) => [`Echo: session ${i}`, [1, 2, 3]]))
  })

  it("carries sampling, elicitation, roots and log messages to the client of that session", async () => {
    const { call, client, heard } = await open()
    assert.include(await call("trigger-sampling-request", { prompt: "x", maxTokens: 1 }), "sampled")
    await call("trigger-elicitation-request")
    assert.lengthOf(heard.asked, 1)
    assert.include(await call("get-roots-list"), "file:///home")
    await client.setLoggingLevel("debug")
    await call("toggle-simulated-logging")
    await Kit.eventually("a log message arrives", () => heard.logs.length > 0)
    await client.close()
  })
})

describe("server-everything on Streamable HTTP", () => {
  let url = ""
  beforeAll(() => {
    url = `${gateway.origin}/mcp/remote`
  })

  it("ends a call that its client cancels, though the upstream never answers it, and the client has no complaints", async () => {
    const { call, client } = await Eras.legacy(url)
    const errors: Array<unknown> = []
    Object.assign(client, { onerror: (error: unknown) => errors.push(error) })
    const stop = new AbortController()
    // Without progress for a minute, because progress on its way to the client crosses the cancellation.
    const args = { duration: 60, steps: 1 }
    const long = call("trigger-long-running-operation", args, stop.signal).catch(() => "cancelled")
    await Kit.eventually("it runs", async () => (await Kit.inFlight(gateway.origin)) === 1)
    stop.abort()
    assert.strictEqual(await long, "cancelled")
    await Kit.eventually("it has ended here", async () => (await Kit.inFlight(gateway.origin)) === 0)
    assert.strictEqual(await call("echo", { message: "on" }), "Echo: on")
    assert.deepStrictEqual(errors, [])
    await client.close()
  })

  it("has session ids of its own, and DELETE ends the upstream's session too", async () => {
    const session = await Kit.open(url)
    assert.isAtLeast(await Serving.statusOf(direct, session, Kit.toolCall(1, "echo")), 400)
    assert.strictEqual((await Serving.remove(url, session)).status, 204)
    assert.strictEqual(await Serving.statusOf(url, session, Kit.toolCall(1, "echo")), 404)
  })
})

describe("an HTTP back end", () => {
  let url = ""
  let session = ""
  beforeEach(async () => {
    url = `${gateway.origin}/mcp/own`
    session = await Kit.open(url)
  })
  const send = (id: number, method: string, params: object = {}) =>
    Kit.post(url, session, JSON.stringify({ jsonrpc: "2.0", id, method, params }))
  const arrived = (id: number) =>
    Kit.eventually("it has arrived", () => seen.at(-1)?.body.includes(`"id":${id},`) === true)
  const cancelled = (id: number) =>
    Kit.eventually("the cancellation arrives", () => seen.some(({ body }) => body.includes(`"requestId":${id}`)))

  it("gets the entry's headers, its own session id, the revision and the body as it came", async () => {
    const body = "{ \"jsonrpc\":\"2.0\", \"id\":7, \"method\":\"tools/list\", \"big\":12345678901234567890 }"
    const response = await Kit.post(url, session, body, { "mcp-protocol-version": "2025-06-18" })
    assert.strictEqual((await response.json()).id, 7)
    const last = seen.at(-1)
    assert.strictEqual(last?.body, body)
    assert.deepInclude(last?.headers, {
      "mcp-session-id": "upstream-session",
      "x-extra": "yes",
      "mcp-protocol-version": "2025-06-18",
      "authorization": `Basic ${Buffer.from("me:s3cretword").toString("base64")}`
    })
  })

  it("has its GET stream passed on, with heartbeats in between, and resumed for the client", async () => {
    await Kit.notify(url, session, "notifications/initialized")
    let text = ""
    let pass: NodeJS.Timeout | undefined
    for await (const chunk of (await Kit.listen(url, session)).body ?? []) {
      text += Buffer.from(chunk)
      if (text.includes("of-session") && text.includes("\n\n: \n\n")) break
      // Passes the heartbeat's interval until there is one.
      pass ??= setInterval(() => clock.pass("15 seconds"), 25)
    }
    clearInterval(pass)
    const data = "{\"jsonrpc\":\"2.0\",\"method\":\"of-session\"}"
    assert.include(text, `data: ${data}\n\n`)
    const id = /^id: (.+)$/m.exec(text)?.[1] ?? ""
    const before = id.replace(/\d+$/, "0")
    const [again] = await Serving.firstEvents(await Kit.listen(url, session, { "last-event-id": before }), 1)
    assert.deepStrictEqual(again, { id, data })
  })

  it("has its question put on the stream of the request that caused it, also while others run", async () => {
    const calls = await Promise.all([send(11, "ask"), send(12, "ask")])
    for (const [i, response] of asked.entries()) response.end(`data: ${answer(11 + i, "done")}\n\n`)
    for (const [i, response] of calls.entries()) {
      const messages = await Serving.messagesOf(response)
      assert.deepStrictEqual(messages.map(({ params, result }) => params?.of ?? result), [11 + i, "done"])
    }
  })

  it.each(["application/json", "text/event-stream"])(
    "gets an error to a message over maxLineBytes for it in a body of %s, and the session goes on",
    async (type) => {
      const { error } = await Kit.answerOf(await send(8, "long", { type }))
      assert.include(error.message, "more than 1000000 bytes")
      assert.strictEqual((await send(9, "x")).status, 200)
    }
  )

  it.each([
    { name: "is not answered", method: "never", id: 5 },
    { name: "is answered by a JSON body that stalls", method: "stall-json", id: 9 }
  ])("is told of the cancellation of a request that $name in time", async ({ id, method }) => {
    const response = send(id, method)
    await arrived(id)
    clock.pass("1 hour")
    const said = await Kit.answerOf(await response)
    assert.deepStrictEqual([said.id, said.error.code], [id, -32001])
    await cancelled(id)
  })

  it("is told of the cancellation of a request whose stream falls silent", async () => {
    const data: Array<string> = []
    await Kit.readEvents(await send(6, "stall"), (event) => {
      if (data.push(event.data) === 1) clock.pass("1 hour")
      return false
    })
    const messages = data.filter((text) => text !== "").map((text) => JSON.parse(text))
    assert.deepStrictEqual(messages.map(({ error, id, method }) => [id, method, error?.code]), [
      [undefined, "x", undefined],
      [6, undefined, -32001]
    ])
    await cancelled(6)
  })

  it("that refuses a request is told of by an error without a secret", async () => {
    const text = await (await send(5, "denied")).text()
    assert.strictEqual(JSON.parse(text).id, 5)
    assert.include(text, "401")
    assert.notInclude(text, "s3cretword")
  })

  it("that has forgotten its session ends the client's: 404, at once and afterwards", async () => {
    forgets = true
    assert.strictEqual((await send(1, "x")).status, 404)
    forgets = false
    await Kit.eventually("the session is unknown", async () => (await send(2, "x")).status === 404)
  })

  it.each([
    ["down", "ECONNREFUSED"],
    ["nowhere", "ENOTFOUND|EAI_AGAIN"],
    ["plain", "EPROTO|ERR_SSL\\w+"]
  ])("that is %s gives 502 with the cause (%s) and nothing secret of its URL", async (name, cause) => {
    const response = await Kit.initialize(`${gateway.origin}/mcp/${name}`)
    const text = await response.text()
    assert.strictEqual(response.status, 502)
    assert.match(text, new RegExp(`reached \\((${cause})\\): is its url right, and can this machine reach it\\?`))
    assert.notMatch(text, /s3cretword|token=/)
  })
})
