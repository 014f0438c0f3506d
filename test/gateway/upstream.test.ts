/** HTTP back ends of earlier revisions: one upstream session per client session. */
import type { ServerResponse } from "node:http"
import { assert, beforeEach, describe, it } from "vitest"
import * as AheadClock from "../kit/gateway/aheadClock.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import type { Answer } from "../kit/gateway/scripted.ts"
import { event, json, stream, upstream } from "../kit/gateway/scripted.ts"
import * as Serving from "../kit/gateway/serving.ts"

const asked: Array<ServerResponse> = []
let forgets = false
const clock = AheadClock.make()
const answer = (id: unknown, result: unknown) => JSON.stringify({ jsonrpc: "2.0", id, result })
const events = { "content-type": "text/event-stream" }

const answers: Record<string, Answer> = {
  GET: (response) => stream(response, event({ method: "of-session" }, "up-1")),
  initialize: (response, { id }) => {
    const result = answer(id, { protocolVersion: "2025-06-18", serverInfo: {} })
    response.writeHead(200, { ...events, "mcp-session-id": "upstream-session" })
    response.end(`retry: 500\nid: 0\ndata: \n\nevent: message\ndata: ${result}\n\n`)
  },
  never: () => {},
  stall: (response) => stream(response, event({ method: "x" }, "up-2")),
  "stall-json": (response) => response.writeHead(200, Serving.json).write("{"),
  denied: (response) => response.writeHead(401).end(),
  long: (response, { id, params: { type } }) => {
    const text = answer(id, "x".repeat(2_000_000))
    response.writeHead(200, { "content-type": type })
    response.end(type === "application/json" ? text : `id: up-3\ndata: ${text}\n\n`)
  },
  ask: (response, { id }) => {
    stream(response, event({ id: "q", method: "ping", params: { of: id } }))
    asked.push(response)
  }
}

const { seen, url: target } = await upstream(() => forgets ? {} : answers, (response, { id }) => {
  if (forgets) return response.writeHead(404).end()
  return id === undefined ? response.writeHead(202).end() : json(response, { id, result: {} })
})
const { origin } = await Serving.gateway({
  backends: {
    own: { url: target.replace("//", "//me:s3cretword@"), headers: { "x-extra": "yes" } },
    down: { url: "http://127.0.0.1:9/" },
    nowhere: { url: "http://me:s3cretword@nowhere.invalid/mcp?token=s3cretword" },
    plain: { url: target.replace("http:", "https:") }
  },
  requestTimeout: "1 hour",
  maxLineBytes: 1_000_000
}, clock)

describe("an HTTP back end", () => {
  const url = `${origin}/mcp/own`
  let session = ""
  beforeEach(async () => {
    session = await Kit.open(url)
  })
  const send = (id: number, method: string, params: object = {}) =>
    Kit.post(url, session, JSON.stringify({ jsonrpc: "2.0", id, method, params }))
  const arrived = (id: number) =>
    Kit.eventually("it has arrived", () => seen.at(-1)?.body.includes(`"id":${id},`) === true)
  const cancelled = (id: number) =>
    Kit.eventually("the cancellation arrives", () => seen.some(({ body }) => body.includes(`"requestId":${id}`)))

  it("receives its entry's headers, its own session id, the revision and the unchanged body", async () => {
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

  it("has a session id that its client does not know, and gets the client's DELETE under it", async () => {
    assert.notStrictEqual(session, "upstream-session")
    assert.strictEqual((await Serving.remove(url, session)).status, 204)
    const last = seen.at(-1)
    assert.deepStrictEqual([last?.method, last?.headers["mcp-session-id"]], ["DELETE", "upstream-session"])
    assert.strictEqual(await Serving.statusOf(url, session, Kit.toolCall(1, "echo")), 404)
  })

  it("serves its GET stream through the gateway, with heartbeats, and the client can resume it", async () => {
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

  it("asks its client on the stream of the request that caused the question, also while other requests run", async () => {
    const calls = await Promise.all([send(11, "ask"), send(12, "ask")])
    for (const [i, response] of asked.entries()) response.end(`data: ${answer(11 + i, "done")}\n\n`)
    for (const [i, response] of calls.entries()) {
      const messages = await Serving.messagesOf(response)
      assert.deepStrictEqual(messages.map(({ params, result }) => params?.of ?? result), [11 + i, "done"])
    }
  })

  it.each(["application/json", "text/event-stream"])(
    "fails the request whose answer in a body of %s exceeds maxLineBytes, and the session goes on",
    async (type) => {
      const { error } = await Kit.answerOf(await send(8, "long", { type }))
      assert.include(error.message, "more than 1000000 bytes")
      assert.strictEqual((await send(9, "x")).status, 200)
    }
  )

  it.each([
    { name: "has no answer", method: "never", id: 5 },
    { name: "has a JSON body that stalls", method: "stall-json", id: 9 }
  ])("receives a cancellation when a request times out that $name", async ({ id, method }) => {
    const response = send(id, method)
    await arrived(id)
    clock.pass("1 hour")
    const said = await Kit.answerOf(await response)
    assert.deepStrictEqual([said.id, said.error.code], [id, -32001])
    await cancelled(id)
  })

  it("receives a cancellation when a request times out whose stream is silent", async () => {
    const data = await Serving.allEvents(await send(6, "stall"), () => clock.pass("1 hour"))
    const messages = data.filter((text) => text !== "").map((text) => JSON.parse(text))
    assert.deepStrictEqual(messages.map(({ error, id, method }) => [id, method, error?.code]), [
      [undefined, "x", undefined],
      [6, undefined, -32001]
    ])
    await cancelled(6)
  })

  it("fails a refused request with an error that contains no secret", async () => {
    const text = await (await send(5, "denied")).text()
    assert.strictEqual(JSON.parse(text).id, 5)
    assert.include(text, "401")
    assert.notInclude(text, "s3cretword")
  })

  it("ends its client's session with 404 when it answers 404", async () => {
    forgets = true
    assert.strictEqual((await send(1, "x")).status, 404)
    forgets = false
    await Kit.eventually("the session is unknown", async () => (await send(2, "x")).status === 404)
  })

  it.each([
    ["down", "ECONNREFUSED"],
    ["nowhere", "ENOTFOUND|EAI_AGAIN"],
    ["plain", "EPROTO|ERR_SSL\\w+"]
  ])("answers 502 if it is %s, with the cause (%s) and no secret of its URL", async (name, cause) => {
    const response = await Kit.initialize(`${origin}/mcp/${name}`)
    const text = await response.text()
    assert.strictEqual(response.status, 502)
    assert.match(text, new RegExp(`reached \\((${cause})\\): is its url right, and can this machine reach it\\?`))
    assert.notMatch(text, /s3cretword|token=/)
  })
})
