/** HTTP back ends: one upstream session per client session, with the limits of every other back end. */
import {
  CreateMessageRequestSchema,
  ElicitRequestSchema,
  LoggingMessageNotificationSchema
} from "@modelcontextprotocol/sdk/types.js"
import type { ChildProcess } from "node:child_process"
import { spawn } from "node:child_process"
import type { Server, ServerResponse } from "node:http"
import { createServer } from "node:http"
import { createRequire } from "node:module"
import { afterAll, assert, beforeAll, describe, it } from "vitest"
import * as AheadClock from "../kit/gateway/aheadClock.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import { shortOrLong } from "../kit/long.ts"

const everything = createRequire(import.meta.url).resolve("@modelcontextprotocol/server-everything/dist/index.js")

describe("server-everything on Streamable HTTP, behind the gateway", () => {
  let upstream: ChildProcess
  let gateway: Kit.Running
  let url: string
  let direct: string
  beforeAll(async () => {
    const port = await Kit.freePort()
    direct = `http://127.0.0.1:${port}/mcp`
    upstream = spawn(process.execPath, [everything, "streamableHttp"], {
      env: { ...process.env, PORT: String(port) },
      stdio: "ignore"
    })
    await Kit.eventually("the upstream listens", () => fetch(direct).then(() => true, () => false))
    gateway = await Kit.start({ backends: { remote: { url: direct } } })
    url = `${gateway.origin}/mcp/remote`
  })
  afterAll(async () => {
    await gateway.stop()
    upstream.kill("SIGKILL")
  })

  it("lists and calls tools, with progress, in concurrent sessions", async () => {
    const count = shortOrLong(3, 10)
    const results = await Promise.all(Array.from({ length: count }, async (_, i) => {
      const client = await Kit.connect(url)
      const echo = await Kit.call(client, "echo", { message: `session ${i}` })
      const progress: Array<number> = []
      await client.callTool(
        { name: "trigger-long-running-operation", arguments: { duration: 0.1, steps: 3 } },
        undefined,
        { onprogress: (update) => progress.push(update.progress) }
      )
      await client.close()
      return [echo, progress]
    }))
    assert.deepStrictEqual(results, Array.from({ length: count }, (_, i) => [`Echo: session ${i}`, [1, 2, 3]]))
  })

  it("carries sampling, elicitation and log messages to the client of that session", async () => {
    const client = await Kit.connect(url)
    const logged: Array<unknown> = []
    client.setRequestHandler(CreateMessageRequestSchema, () => ({
      model: "none",
      role: "assistant",
      content: { type: "text", text: "sampled" }
    }))
    client.setRequestHandler(ElicitRequestSchema, () => ({ action: "decline" }))
    client.setNotificationHandler(LoggingMessageNotificationSchema, (message) => {
      logged.push(message.params.level)
    })
    assert.include(await Kit.call(client, "trigger-sampling-request", { prompt: "x", maxTokens: 1 }), "sampled")
    assert.include(await Kit.call(client, "trigger-elicitation-request"), "declined")
    await client.setLoggingLevel("debug")
    await Kit.call(client, "toggle-simulated-logging")
    await Kit.eventually("a log message arrives", () => logged.length > 0)
    await client.close()
  })

  it("a call that its client cancels ends here too, though the upstream never answers it, and the client has no complaints", async () => {
    const client = await Kit.connect(url)
    const errors: Array<unknown> = []
    Object.assign(client, { onerror: (error: unknown) => errors.push(error) })
    const inFlight = async () => {
      const { sessions } = await (await fetch(`${gateway.origin}/sessions`)).json()
      return sessions.reduce((sum: number, each: { readonly inFlight: number }) => sum + each.inFlight, 0)
    }
    const stop = new AbortController()
    const args = { name: "trigger-long-running-operation", arguments: { duration: 60, steps: 600 } }
    const call = client.callTool(args, undefined, { signal: stop.signal }).catch(() => "cancelled")
    await Kit.eventually("it runs", async () => (await inFlight()) === 1)
    stop.abort()
    assert.strictEqual(await call, "cancelled")
    await Kit.eventually("it has ended here", async () => (await inFlight()) === 0)
    assert.strictEqual(await Kit.call(client, "echo", { message: "on" }), "Echo: on")
    assert.deepStrictEqual(errors, [])
    await client.close()
  })

  it("our session id is not the upstream's, and DELETE ends the upstream's session too", async () => {
    const session = await Kit.open(url)
    const atUpstream = await Kit.post(direct, session, Kit.toolCall(1, "echo"))
    await atUpstream.text()
    assert.isAtLeast(atUpstream.status, 400)
    const response = await fetch(url, { method: "DELETE", headers: { "mcp-session-id": session } })
    assert.strictEqual(response.status, 204)
    assert.strictEqual((await Kit.post(url, session, Kit.toolCall(1, "echo"))).status, 404)
  })
})

describe("an upstream of our own", () => {
  let server: Server
  let gateway: Kit.Running
  let url: string
  const seen: Array<{ readonly method: string; readonly headers: Record<string, unknown>; readonly body: string }> = []
  const asked: Array<ServerResponse> = []
  let forget = false
  const clock = AheadClock.make()
  const answer = (id: unknown, result: unknown) => JSON.stringify({ jsonrpc: "2.0", id, result })
  beforeAll(async () => {
    server = createServer((request, response) => {
      let body = ""
      request.on("data", (chunk) => {
        body += chunk
      }).on("end", () => {
        seen.push({ method: request.method ?? "", headers: request.headers, body })
        const message = body === "" ? {} : JSON.parse(body)
        if (request.method === "GET") {
          response.writeHead(200, { "content-type": "text/event-stream" })
          response.write("id: up-1\nevent: message\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"of-session\"}\n\n")
          return
        }
        if (message.method === "initialize") {
          response.writeHead(200, { "content-type": "text/event-stream", "mcp-session-id": "upstream-session" })
          return response.end(
            `retry: 500\nid: 0\ndata: \n\nevent: message\ndata: ${
              answer(message.id, { protocolVersion: "2025-06-18", serverInfo: {} })
            }\n\n`
          )
        }
        if (forget) return response.writeHead(404).end()
        if (message.method === "never") return
        if (message.method === "stall") {
          response.writeHead(200, { "content-type": "text/event-stream" })
          return response.write("id: up-2\nevent: message\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"x\"}\n\n")
        }
        if (message.method === "denied") return response.writeHead(401).end()
        if (message.method === "stall-json") {
          response.writeHead(200, { "content-type": "application/json" })
          return response.write("{")
        }
        if (message.method === "long") {
          response.writeHead(200, { "content-type": message.params.type })
          const text = answer(message.id, "x".repeat(2_000_000))
          return response.end(message.params.type === "application/json" ? text : `id: up-3\ndata: ${text}\n\n`)
        }
        if (message.method === "ask") {
          response.writeHead(200, { "content-type": "text/event-stream" })
          asked.push(response)
          return response.write(`data: {"jsonrpc":"2.0","id":"q","method":"ping","params":{"of":${message.id}}}\n\n`)
        }
        if (message.id === undefined) return response.writeHead(202).end()
        response.writeHead(200, { "content-type": "application/json" })
        response.end(answer(message.id, { echo: message }))
      })
    }).listen(0, "127.0.0.1")
    await new Promise((resolve) => server.on("listening", resolve))
    gateway = await Kit.start({
      backends: {
        own: { url: `http://me:s3cretword@127.0.0.1:${Kit.portOf(server)}/mcp`, headers: { "x-extra": "yes" } },
        down: { url: "http://127.0.0.1:9/" },
        nowhere: { url: "http://me:s3cretword@nowhere.invalid/mcp?token=s3cretword" },
        plain: { url: `https://127.0.0.1:${Kit.portOf(server)}/mcp` }
      },
      requestTimeout: "1 hour",
      maxLineBytes: 1_000_000
    }, clock)
    url = `${gateway.origin}/mcp/own`
  })
  afterAll(async () => {
    await gateway.stop()
    server.closeAllConnections()
    server.close()
  })

  it("gets the entry's headers, its own session id, the revision and the body as it came", async () => {
    const session = await Kit.open(url)
    const body = "{ \"jsonrpc\":\"2.0\", \"id\":7, \"method\":\"tools/list\", \"big\":12345678901234567890 }"
    const response = await Kit.post(url, session, body, { "mcp-protocol-version": "2025-06-18" })
    assert.strictEqual((await response.json()).id, 7)
    const last = seen.at(-1)
    assert.strictEqual(last?.body, body)
    assert.strictEqual(last?.headers["mcp-session-id"], "upstream-session")
    assert.strictEqual(last?.headers["x-extra"], "yes")
    assert.strictEqual(last?.headers["mcp-protocol-version"], "2025-06-18")
    assert.strictEqual(last?.headers["authorization"], `Basic ${Buffer.from("me:s3cretword").toString("base64")}`)
  })

  it("passes the upstream's GET stream on, with heartbeats in between, and resumes it for the client", async () => {
    const session = await Kit.open(url)
    await Kit.post(url, session, "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}")
    const listen = (lastEventId?: string) =>
      fetch(url, {
        headers: {
          accept: "text/event-stream",
          "mcp-session-id": session,
          ...(lastEventId === undefined ? {} : { "last-event-id": lastEventId })
        }
      })
    let pass: NodeJS.Timeout | undefined
    const decoder = new TextDecoder()
    const read = async (response: Response, until: (text: string) => boolean) => {
      let text = ""
      for await (const chunk of response.body ?? []) {
        text += decoder.decode(chunk)
        if (until(text)) break
        // Passes the heartbeat's interval until there is one.
        pass ??= setInterval(() => clock.pass("15 seconds"), 25)
      }
      clearInterval(pass)
      return text
    }
    const text = await read(await listen(), (seen) => seen.includes("of-session") && seen.includes("\n\n: \n\n"))
    const [, id] = /^id: (.+)$/m.exec(text) ?? []
    assert.isDefined(id)
    assert.include(text, "data: {\"jsonrpc\":\"2.0\",\"method\":\"of-session\"}\n\n")
    const before = id?.replace(/\d+$/, "0")
    assert.include(await read(await listen(before), (seen) => seen.includes("of-session")), `id: ${id}`)
  })

  it("puts a question on the stream of the request that caused it, also while others run", async () => {
    const session = await Kit.open(url)
    const calls = await Promise.all(
      [11, 12].map((id) => Kit.post(url, session, JSON.stringify({ jsonrpc: "2.0", id, method: "ask" })))
    )
    for (const [i, response] of asked.entries()) response.end(`data: ${answer(11 + i, "done")}\n\n`)
    for (const [i, response] of calls.entries()) {
      const text = await response.text()
      assert.include(text, `"of":${11 + i}`)
      assert.notInclude(text, `"of":${12 - i}`)
      assert.include(text, "done")
    }
  })

  for (const type of ["application/json", "text/event-stream"]) {
    it(`answers for a message over maxLineBytes in a body of ${type}, and the session goes on`, async () => {
      const session = await Kit.open(url)
      const body = JSON.stringify({ jsonrpc: "2.0", id: 8, method: "long", params: { type } })
      const { error } = await Kit.answerOf(await Kit.post(url, session, body))
      assert.include(error.message, "more than 1000000 bytes")
      assert.strictEqual((await Kit.post(url, session, Kit.toolCall(9, "x"))).status, 200)
    })
  }

  it("times out a JSON body that stalls, and cancels the request", async () => {
    const session = await Kit.open(url)
    const body = JSON.stringify({ jsonrpc: "2.0", id: 9, method: "stall-json" })
    const stalled = Kit.post(url, session, body)
    await Kit.eventually("it has arrived", () => seen.at(-1)?.body === body)
    clock.pass("1 hour")
    const { error } = await Kit.answerOf(await stalled)
    assert.strictEqual(error.code, -32001)
    await Kit.eventually("the cancellation arrives", () => seen.some(({ body }) => body.includes("\"requestId\":9")))
  })

  it("a request that it does not answer in time gets an error, and it a cancellation", async () => {
    const session = await Kit.open(url)
    const body = JSON.stringify({ jsonrpc: "2.0", id: 5, method: "never" })
    const never = Kit.post(url, session, body)
    await Kit.eventually("it has arrived", () => seen.at(-1)?.body === body)
    clock.pass("1 hour")
    const { error, id } = await Kit.answerOf(await never)
    assert.deepStrictEqual([id, error.code], [5, -32001])
    await Kit.eventually(
      "the cancellation arrives",
      () =>
        seen.some((message) =>
          message.body.includes("notifications/cancelled") && message.body.includes("\"requestId\":5")
        )
    )
  })

  it("a request whose stream falls silent gets an error on that stream, and it a cancellation", async () => {
    const session = await Kit.open(url)
    const response = await Kit.post(url, session, JSON.stringify({ jsonrpc: "2.0", id: 6, method: "stall" }))
    const data: Array<string> = []
    await Kit.readEvents(response, (event) => {
      if (data.push(event.data) === 1) clock.pass("1 hour")
      return false
    })
    const messages = data.filter((text) => text !== "").map((text) => JSON.parse(text))
    assert.deepStrictEqual(messages.map(({ error, id, method }) => [id, method, error?.code]), [
      [undefined, "x", undefined],
      [6, undefined, -32001]
    ])
    await Kit.eventually("the cancellation arrives", () => seen.some(({ body }) => body.includes("\"requestId\":6")))
  })

  it("answers with an error that tells no secret when the upstream refuses a request", async () => {
    const session = await Kit.open(url)
    const response = await Kit.post(url, session, JSON.stringify({ jsonrpc: "2.0", id: 5, method: "denied" }))
    const text = await response.text()
    assert.strictEqual(JSON.parse(text).id, 5)
    assert.include(text, "401")
    assert.notInclude(text, "s3cretword")
  })

  it("when it has forgotten its session, ours ends: 404, at once and afterwards", async () => {
    const session = await Kit.open(url)
    forget = true
    assert.strictEqual((await Kit.post(url, session, Kit.toolCall(1, "x"))).status, 404)
    forget = false
    await Kit.eventually(
      "the session is unknown",
      async () => (await Kit.post(url, session, Kit.toolCall(2, "x"))).status === 404
    )
  })

  const causes = { down: "ECONNREFUSED", nowhere: "ENOTFOUND|EAI_AGAIN", plain: "EPROTO|ERR_SSL\\w+" }
  for (const [name, cause] of Object.entries(causes)) {
    it(`one that cannot be reached is 502, and told by its cause and nothing secret of its URL: ${name}`, async () => {
      const response = await fetch(`${gateway.origin}/mcp/${name}`, {
        method: "POST",
        headers: Kit.headers,
        body: Kit.initializeBody
      })
      const text = await response.text()
      assert.strictEqual(response.status, 502)
      assert.match(
        text,
        new RegExp(`cannot be reached \\((${cause})\\): is its url right, and can this machine reach it\\?`)
      )
      assert.notMatch(text, /s3cretword|token=/)
    })
  }
})
