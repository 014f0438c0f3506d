/** A call that its client has cancelled ends at the gateway too, because its server need not answer it. */
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { Client } from "@modelcontextprotocol/sdk/client/index.js"
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js"
import { Cause, Duration, Effect, Fiber } from "effect"
import { TestClock } from "effect/testing"
import { createServer } from "node:http"
import { createRequire } from "node:module"
import * as Kit from "../kit/gateway/gateway.ts"
import { send } from "../kit/gateway/modern.ts"
import * as StillClock from "../kit/gateway/stillClock.ts"
import * as Told from "../kit/gateway/told.ts"

const cancelled = (requestId: string | number) =>
  JSON.stringify({ jsonrpc: "2.0", method: "notifications/cancelled", params: { requestId, reason: "test" } })

interface Row {
  readonly inFlight: number
  readonly requests: number
  readonly errors: number
}

/** The newest session of a gateway. */
const newest = async (origin: string): Promise<Row> => {
  const { sessions } = await (await fetch(`${origin}/sessions`)).json()
  return sessions.toSorted((a: { readonly id: number }, b: { readonly id: number }) => b.id - a.id)[0]
}

/** An HTTP back end that answers `initialize` and what has no answer; any other request gets the start of a stream, or nothing. */
const silentServer = async () => {
  const counts = { cancelled: 0, open: 0 }
  const server = createServer((request, response) => {
    let body = ""
    request.on("data", (chunk) => {
      body += chunk
    }).on("end", () => {
      const [{ id, method, params }] = [JSON.parse(body || "{}")].flat()
      if (method === "initialize") {
        response.writeHead(200, { "content-type": "application/json", "mcp-session-id": "s" })
        return response.end(JSON.stringify({ jsonrpc: "2.0", id, result: { protocolVersion: "2025-06-18" } }))
      }
      if (method === "notifications/cancelled") counts.cancelled++
      if (id === undefined) return response.writeHead(202).end()
      counts.open++
      response.on("close", () => counts.open--)
      if (params.name === "stream") response.writeHead(200, { "content-type": "text/event-stream" }).write(": \n\n")
      if (params.name === "json") response.writeHead(200, { "content-type": "application/json" }).write(" ")
    })
  }).listen(0, "127.0.0.1")
  await new Promise((resolve) => server.on("listening", resolve))
  return { counts, server, url: `http://127.0.0.1:${Kit.portOf(server)}/mcp` }
}

describe("cancellation by a client with a session", () => {
  let clock: StillClock.StillClock
  let gateway: Kit.Running
  let silent: Awaited<ReturnType<typeof silentServer>>
  beforeAll(async () => {
    silent = await silentServer()
    clock = await StillClock.make()
    const backends = { counter: Kit.counter(), http: { url: silent.url } }
    gateway = await Kit.start({ backends, maxInFlight: 500 }, clock)
  })
  afterAll(async () => {
    await clock.passUntilSettled("the gateway has stopped", gateway.stop())
    silent.server.closeAllConnections()
    silent.server.close()
  })

  const ending = async (response: Promise<Response>) => {
    const { headers, status } = await response
    return [status, headers.get("content-type"), await (await response).text()]
  }
  const unanswered = [200, "text/event-stream", ""]

  it("frees the place of a cancelled call at once and leaves nothing, a thousand times", async () => {
    const url = `${gateway.origin}/mcp/counter`
    const session = await Kit.open(url)
    const endings: Array<Promise<unknown>> = []
    for (let i = 0; i < 1000; i += 500) {
      const ids = Array.from({ length: 500 }, (_, j) => i + j)
      // A batch, because a thousand requests would take too long.
      endings.push(ending(Kit.post(url, session, `[${ids.map((id) => Kit.toolCall(id, "never")).join()}]`)))
      await Kit.eventually("they run", async () => (await newest(gateway.origin)).requests === i + 500)
      await Kit.post(url, session, `[${ids.map(cancelled).join()}]`)
    }
    assert.strictEqual((await newest(gateway.origin)).inFlight, 500)
    await clock.pass("2 seconds")
    assert.deepStrictEqual(await Promise.all(endings), [unanswered, unanswered])
    const { errors, inFlight } = await newest(gateway.origin)
    assert.deepStrictEqual([inFlight, errors], [0, 0])
    assert.include(await Kit.toolText(url, session, "heard"), "cancelled 999")
  })

  for (const start of ["nothing", "json", "stream"]) {
    it(`ends a cancelled call on an HTTP back end that has answered ${start} so far`, async () => {
      const url = `${gateway.origin}/mcp/http`
      const session = await Kit.open(url)
      const ended = ending(Kit.post(url, session, Kit.toolCall("mine", start)))
      await Kit.eventually("it runs", () => silent.counts.open === 1)
      const before = silent.counts.cancelled
      assert.strictEqual((await Kit.post(url, session, cancelled("mine"))).status, 202)
      await Kit.eventually("the back end is told", () => silent.counts.cancelled === before + 1)
      assert.deepStrictEqual(await clock.passUntilSettled("it ends", ended), unanswered)
      assert.strictEqual((await newest(gateway.origin)).inFlight, 0)
      await Kit.eventually("the back end has been left", () => silent.counts.open === 0)
    })
  }

  it("ends a batch on an HTTP back end when all its other calls are cancelled too", async () => {
    const url = `${gateway.origin}/mcp/http`
    const session = await Kit.open(url)
    const ended = ending(Kit.post(url, session, `[${Kit.toolCall("a", "stream")},${Kit.toolCall("b", "stream")}]`))
    await Kit.eventually("both run", () => silent.counts.open === 2)
    await Kit.post(url, session, cancelled("a"))
    await Kit.eventually("one is left", () => silent.counts.open === 1)
    await clock.pass("1 minute")
    assert.strictEqual(silent.counts.open, 1)
    await Kit.post(url, session, `[${cancelled("b")}]`)
    const [status] = await clock.passUntilSettled("it ends", ended)
    assert.strictEqual(status, 200)
    await Kit.eventually("the back end has been left", () => silent.counts.open === 0)
  })

  it("leaves a cancelled call out of its batch, whose other answers come", async () => {
    const url = `${gateway.origin}/mcp/counter`
    const session = await Kit.open(url)
    const batch = `[${Kit.toolCall("mine", "never")},${Kit.toolCall("other", "count")}]`
    const ended = ending(Kit.post(url, session, batch))
    await Kit.eventually("it runs", async () => (await newest(gateway.origin)).requests === 2)
    await Kit.post(url, session, cancelled("mine"))
    const [, , text] = await clock.passUntilSettled("it ends", ended)
    assert.deepStrictEqual(String(text).match(/"id":"\w+"/g), ["\"id\":\"other\""])
  })

  it("delivers an answer that the server sends in spite of the cancellation", async () => {
    const url = `${gateway.origin}/mcp/counter`
    const session = await Kit.open(url)
    const call = Kit.post(url, session, Kit.toolCall("mine", "late"))
    await Kit.eventually("it runs", async () => (await newest(gateway.origin)).inFlight === 1)
    await Kit.post(url, session, cancelled("mine"))
    assert.strictEqual((await (await call).json()).result.content[0].text, "late")
  })

  it("does not let a cancelled call delay a gateway that stops", async () => {
    const stopping = await Kit.start({ backends: { counter: Kit.counter() }, drainTimeout: "1 hour" }, clock)
    const url = `${stopping.origin}/mcp`
    const session = await Kit.open(url)
    const ended = ending(Kit.post(url, session, Kit.toolCall("mine", "never")))
    await Kit.eventually("it runs", async () => (await newest(stopping.origin)).inFlight === 1)
    await Kit.post(url, session, cancelled("mine"))
    await clock.passUntilSettled("the gateway has stopped", stopping.stop())
    assert.deepStrictEqual(await ended, unanswered)
  })
})

describe("cancellation by the official client", () => {
  it("stops the official client from resuming a cancelled call after one attempt", async () => {
    const server = createRequire(import.meta.url).resolve("@modelcontextprotocol/server-everything/dist/index.js")
    const gateway = await Kit.start({
      backends: { everything: { command: process.execPath, args: [server, "stdio"] } },
      streamAfter: "50 millis"
    })
    const resumed: Array<number> = []
    let streams = 0
    const transport = new StreamableHTTPClientTransport(new URL(`${gateway.origin}/mcp`), {
      fetch: async (url, init) => {
        const response = await fetch(url, init)
        if (new Headers(init?.headers).has("last-event-id")) resumed.push(response.status)
        if (response.headers.get("content-type") === "text/event-stream") streams++
        return response
      }
    })
    const client = new Client({ name: "test", version: "1.0.0" })
    const errors: Array<unknown> = []
    Object.assign(client, { onerror: (error: unknown) => errors.push(error) })
    await client.connect(transport)
    const stop = new AbortController()
    const args = { name: "trigger-long-running-operation", arguments: { duration: 60, steps: 600 } }
    const call = client.callTool(args, undefined, { signal: stop.signal }).catch(() => "cancelled")
    await Kit.eventually("its stream and that of GET are open", () => streams === 2)
    stop.abort()
    assert.strictEqual(await call, "cancelled")
    await Kit.eventually("the client has come back", () => resumed.length === 1)
    const { inFlight } = await newest(gateway.origin)
    assert.deepStrictEqual([resumed, streams, inFlight, errors], [[204], 2, 0, []])
    await client.close()
    await gateway.stop()
  })
})

describe("a server that has been told of a cancellation", () => {
  const start = Told.requests({
    requestTimeout: Duration.minutes(5),
    streamAfter: Duration.infinity,
    streamLostTimeToLive: Duration.infinity,
    maxInFlight: 10,
    replay: { maxEvents: 10, maxBytes: 1000 }
  })
  const cancel = (requests: Effect.Success<typeof start>["requests"]) =>
    requests.send(
      { _tag: "Notification", method: "notifications/cancelled", params: { requestId: 1 }, progressToken: undefined },
      cancelled(1)
    )

  it.effect("has a second to answer; what it says later goes nowhere, and the id may be used again", () =>
    Effect.gen(function*() {
      const { requests, server } = yield* start
      const { reply } = Told.request(requests, 1)
      yield* TestClock.adjust("4 minutes")
      yield* cancel(requests)
      yield* TestClock.adjust("900 millis")
      assert.strictEqual(requests.activity().inFlight, 1)
      // Once more changes nothing.
      yield* cancel(requests)
      yield* TestClock.adjust("1100 millis")
      assert.strictEqual((yield* reply)._tag, "Cancelled")
      assert.deepStrictEqual([requests.activity().inFlight, requests.activity().errors], [0, 0])
      server.say({ id: 1, result: {} })
      const again = Told.request(requests, 1)
      server.say({ id: 1, result: { of: "the second" } })
      assert.include(JSON.stringify(yield* again.reply), "the second")
    }))

  it.effect("cannot make the call last by its progress, which the client gets no more; its stream ends without an answer", () =>
    Effect.gen(function*() {
      const { requests, server } = yield* start
      const { reply } = Told.request(requests, 1)
      server.progress(1)(1)
      const first = yield* reply
      if (first._tag !== "Stream") return assert.fail("no stream")
      const reader = first.open()
      assert.lengthOf(yield* reader.take, 1)
      yield* cancel(requests)
      const next = yield* Effect.forkChild(Effect.exit(reader.take), { startImmediately: true })
      for (let i = 2; i < 30; i++) {
        server.progress(1)(i)
        yield* TestClock.adjust("100 millis")
      }
      const exit = yield* Fiber.join(next)
      assert.isTrue(exit._tag === "Failure" && Cause.hasFails(exit.cause))
      assert.strictEqual(requests.activity().inFlight, 0)
    }))

  it.effect("asks the client on the stream of a call that is not cancelled, if there is one", () =>
    Effect.gen(function*() {
      const { requests, server } = yield* start
      Told.request(requests, 1)
      const other = Told.request(requests, 2)
      yield* cancel(requests)
      server.say({ id: "question", method: "roots/list" })
      const first = yield* other.reply
      if (first._tag !== "Stream") return assert.fail("no stream")
      const [event] = yield* first.open().take
      assert.include(event.text, "roots/list")
    }))
})

describe("a call whose client of revision 2026-07-28 has closed its stream", () => {
  it("leaves nothing, three times as many as may run at once", async () => {
    const gateway = await Kit.start({ backends: { counter: Kit.counter() }, maxInFlight: 20, drainTimeout: "1 hour" })
    for (let i = 0; i < 3; i++) {
      const stop = new AbortController()
      const calls = Array.from(
        { length: 20 },
        () =>
          send(`${gateway.origin}/mcp`, "tools/call", { name: "never" }, { signal: stop.signal }).then(
            ({ status }) => status,
            () => "gone"
          )
      )
      await Kit.eventually("they run", async () => (await newest(gateway.origin))?.inFlight === 20)
      stop.abort()
      assert.deepStrictEqual(new Set(await Promise.all(calls)), new Set(["gone"]))
      await Kit.eventually("they have ended", async () => (await newest(gateway.origin)).inFlight === 0)
    }
    await gateway.stop()
  })
})
