/** Cancelled calls. They end at the gateway too, because the server need not answer them. */
import { Client } from "@modelcontextprotocol/sdk/client/index.js"
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js"
import { createRequire } from "node:module"
import { assert, describe, it } from "vitest"
import * as Kit from "../kit/gateway/gateway.ts"
import { asking, everything, send, toolText } from "../kit/gateway/modern.ts"
import * as Serve from "../kit/gateway/serving.ts"
import * as StillClock from "../kit/gateway/stillClock.ts"

const counts = { cancelled: 0, open: 0 }
/** Reports progress of the call of `held`. */
let report = () => {}
/** An HTTP back end that answers `initialize` and notifications. Another request gets nothing or the start of an answer. */
const silent = await Serve.upstream((response, { id, method, params }) => {
  if (method === "initialize") return Serve.initialized(response, id)
  if (method === "notifications/release") report()
  if (method === "notifications/cancelled") {
    counts.cancelled++
    report()
    // The gateway closes the call at this answer, so it comes after the progress.
    return setTimeout(() => response.writeHead(202).end(), 50)
  }
  if (id === undefined) return response.writeHead(202).end()
  counts.open++
  response.on("close", () => {
    counts.open--
    report = () => {}
  })
  if (params.name === "an open stream") response.writeHead(200, { "content-type": "text/event-stream" }).write(": \n\n")
  if (params.name === "held") {
    const progress = Serve.notification("progress", { progressToken: id, progress: 1 })
    response.writeHead(200, { "content-type": "text/event-stream" })
    report = () => void response.write(`data: ${progress}\n\n`)
  }
  if (params.name === "a part of a JSON answer") response.writeHead(200, Serve.json).write(" ")
})
const clock = await StillClock.make()
const counter = Kit.counter()
const { origin } = await Serve.gateway({ backends: { counter, http: { url: silent } }, maxInFlight: 500 }, clock)

const cancelled = (requestId: string | number) => Serve.notification("cancelled", { requestId, reason: "test" })

/** The newest session of a gateway. */
const newest = async (at = origin) =>
  (await Serve.overview(at)).sessions.reduce((newest, each) => newest.id > each.id ? newest : each, { id: 0 })
const runs = (count: number, at = origin) =>
  Kit.eventually(`${count} run`, async () => (await newest(at))?.inFlight === count)
const endingOf = async (response: Promise<Response>) => {
  const { headers, status } = await response
  return [status, headers.get("content-type"), await (await response).text()]
}
const unanswered = [200, "text/event-stream", ""]

describe("cancellation", () => {
  const url = `${origin}/mcp/counter`

  /** Starts a call in a new session, and waits until it runs. */
  const start = async (tool: string, at = url) => {
    const session = await Kit.open(at)
    const call = Kit.post(at, session, Kit.toolCall("mine", tool, { count: 99 }))
    await runs(1, new URL(at).origin)
    return { session, call, cancel: () => Kit.post(at, session, cancelled("mine")) }
  }

  it("a thousand cancelled calls free their places and leave nothing", async () => {
    const session = await Kit.open(url)
    const endings: Array<Promise<unknown>> = []
    for (let i = 0; i < 1000; i += 500) {
      const ids = Array.from({ length: 500 }, (_, j) => i + j)
      // A batch, because a thousand requests would take too long.
      endings.push(endingOf(Kit.post(url, session, `[${ids.map((id) => Kit.toolCall(id, "never")).join()}]`)))
      await Kit.eventually("they run", async () => (await newest()).requests === i + 500)
      await Kit.post(url, session, `[${ids.map(cancelled).join()}]`)
    }
    assert.strictEqual((await newest()).inFlight, 500)
    await clock.pass("2 seconds")
    assert.deepStrictEqual(await Promise.all(endings), [unanswered, unanswered])
    const { errors, inFlight } = await newest()
    assert.deepStrictEqual([inFlight, errors], [0, 0])
    assert.include(await Kit.toolText(url, session, "heard"), "cancelled 999")
  })

  for (const begun of ["nothing", "a part of a JSON answer", "an open stream"]) {
    it(`ends a cancelled call on an HTTP back end that has sent ${begun}`, async () => {
      const at = `${origin}/mcp/http`
      const { call, cancel } = await start(begun, at)
      await Kit.eventually("the back end has it", () => counts.open === 1)
      const before = counts.cancelled
      assert.strictEqual((await cancel()).status, 202)
      await Kit.eventually("the back end is told", () => counts.cancelled === before + 1)
      assert.deepStrictEqual(await clock.passUntilSettled("it ends", endingOf(call)), unanswered)
      assert.strictEqual((await newest()).inFlight, 0)
      await Kit.eventually("the back end has been left", () => counts.open === 0)
    })
  }

  it("ends a batch on an HTTP back end once all its calls are cancelled", async () => {
    const at = `${origin}/mcp/http`
    const session = await Kit.open(at)
    const batch = `[${Kit.toolCall("a", "an open stream")},${Kit.toolCall("b", "an open stream")}]`
    const ended = endingOf(Kit.post(at, session, batch))
    await Kit.eventually("both run", () => counts.open === 2)
    await Kit.post(at, session, cancelled("a"))
    await Kit.eventually("one is left", () => counts.open === 1)
    await clock.pass("1 minute")
    assert.strictEqual(counts.open, 1)
    await Kit.post(at, session, `[${cancelled("b")}]`)
    assert.deepStrictEqual((await clock.passUntilSettled("it ends", ended))[0], 200)
    await Kit.eventually("the back end has been left", () => counts.open === 0)
  })

  it("a batch gets the answers to its other calls, and none to its cancelled call", async () => {
    const session = await Kit.open(url)
    const batch = `[${Kit.toolCall("mine", "never")},${Kit.toolCall("other", "count")}]`
    const answers = Kit.post(url, session, batch).then(Serve.messagesOf)
    await Kit.eventually("it runs", async () => (await newest()).requests === 2)
    await Kit.post(url, session, cancelled("mine"))
    assert.deepStrictEqual((await clock.passUntilSettled("it ends", answers)).map(({ id }) => id), ["other"])
  })

  it("delivers an answer that the server sends despite the cancellation", async () => {
    const { call, cancel } = await start("late")
    await cancel()
    assert.strictEqual((await (await call).json()).result.content[0].text, "late")
  })

  it("gives the server a second to answer a cancelled call, drops a later answer, and frees the id", async () => {
    const { call, cancel, session } = await start("held")
    await cancel()
    await clock.pass("900 millis")
    assert.strictEqual((await newest()).inFlight, 1)
    // A second cancellation is a no-op.
    await cancel()
    await clock.pass("1100 millis")
    assert.deepStrictEqual(await endingOf(call), unanswered)
    const { errors, inFlight } = await newest()
    assert.deepStrictEqual([inFlight, errors], [0, 0])
    await Kit.release(url, session, "mine", 100)
    // Its answer comes after that of the cancelled call.
    await Kit.toolText(url, session, "pids")
    const again = await Kit.post(url, session, Kit.toolCall("mine", "count"))
    assert.strictEqual((await again.json()).result.content[0].text, "1")
  })

  for (const backend of ["counter", "http"]) {
    it(`drops progress of ${backend} after the cancellation, and ends the stream without an answer`, async () => {
      const at = `${origin}/mcp/${backend}`
      const { call, cancel, session } = await start("held", at)
      await Kit.eventually("the back end has it", () => backend === "counter" || counts.open === 1)
      await Kit.release(at, session, "mine")
      const come = Serve.reading(await call)
      await Kit.eventually("progress", () => Serve.messagesIn(come.text).length === 1)
      await cancel()
      for (let i = 0; i < 20; i++) {
        await Kit.release(at, session, "mine")
        await clock.pass("100 millis")
      }
      await Kit.eventually("the stream ends", () => come.done)
      assert.lengthOf(Serve.messagesIn(come.text), 1)
      assert.strictEqual((await newest()).inFlight, 0)
    })
  }

  it("sends later messages of the server on the stream of a call that is not cancelled", async () => {
    const { cancel, session } = await start("never")
    const other = Kit.post(url, session, Kit.toolCall("other", "never"))
    await runs(2)
    await cancel()
    await Kit.notify(url, session, "notifications/report")
    const [said] = await Serve.firstEvents(await other, 1)
    assert.include(said?.data, "cancelled mine")
  })

  it("a cancelled call does not delay the gateway's stop", async () => {
    const stopping = await Serve.gateway({ backends: { counter }, drainTimeout: "1 hour" }, clock)
    const { call, cancel } = await start("never", stopping.url)
    await cancel()
    await stopping.stop()
    assert.deepStrictEqual(await endingOf(call), unanswered)
  })

  it("the official client resumes the stream of its cancelled call only once", async () => {
    const server = createRequire(import.meta.url).resolve("@modelcontextprotocol/server-everything/dist/index.js")
    const everything = { command: process.execPath, args: [server, "stdio"] }
    const { origin, url } = await Serve.gateway({ backends: { everything }, streamAfter: "50 millis" })
    const resumed: Array<number> = []
    let streams = 0
    const transport = new StreamableHTTPClientTransport(new URL(url), {
      fetch: async (url, init) => {
        const response = await fetch(url, init)
        if (new Headers(init?.headers).has("last-event-id")) resumed.push(response.status)
        if (response.headers.get("content-type") === "text/event-stream") streams++
        return response
      }
    })
    const client = new Client({ name: "test", version: "1.0.0" })
    await client.connect(transport)
    const stop = new AbortController()
    const args = { name: "trigger-long-running-operation", arguments: { duration: 60, steps: 600 } }
    const call = client.callTool(args, undefined, { signal: stop.signal }).catch(() => "cancelled")
    await Kit.eventually("its stream and that of GET are open", () => streams === 2)
    stop.abort()
    assert.strictEqual(await call, "cancelled")
    await Kit.eventually("the client has come back", () => resumed.length === 1)
    assert.deepStrictEqual([resumed, streams, (await newest(origin)).inFlight], [[204], 2, 0])
    await client.close()
  })

  it("calls whose modern client closes their streams leave nothing, even three times maxInFlight of them", async () => {
    const { origin, url } = await Serve.gateway({ backends: { counter }, maxInFlight: 20, drainTimeout: "1 hour" })
    for (let i = 0; i < 3; i++) {
      const stop = new AbortController()
      const call = () => send(url, "tools/call", { name: "never" }, { signal: stop.signal }).catch(() => "gone")
      const calls = Array.from({ length: 20 }, call)
      await runs(20, origin)
      stop.abort()
      assert.deepStrictEqual(new Set(await Promise.all(calls)), new Set(["gone"]))
      await runs(0, origin)
    }
  })

  it("a modern client's next call gets a new process while the process of its cancelled call still ends", async () => {
    const { args, command } = asking()
    const slow = { command: "sh", args: ["-c", `trap '' TERM; ${[command, ...args].join(" ")}; sleep 60`] }
    const { origin, url } = await Serve.gateway({ backends: { slow: { ...slow, closeGrace: "2 seconds" } } })
    // A call that may be asked has the lane to itself.
    const options = { capabilities: everything }
    const pid = await toolText(url, "pid", options)
    const leave = Serve.leaving((signal) => send(url, "tools/call", { name: "never" }, { ...options, signal }))
    await runs(1, origin)
    await leave()
    await Kit.eventually("its session has ended", async () => (await Serve.overview(origin)).sessions.length === 0)
    assert.notInclude([undefined, pid], await toolText(url, "pid", options))
  })
})
