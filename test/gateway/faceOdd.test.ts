/** A legacy session in front of a modern server, where one of the two does what it should not, or seldom does. */
import { assert, beforeAll, describe, it } from "@effect/vitest"
import * as Eras from "../kit/gateway/eras.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"
import * as StillClock from "../kit/gateway/stillClock.ts"

const clock = await StillClock.make()
const fixture = new URL("../fixtures/era-server.ts", import.meta.url).pathname
const backends = { odd: { command: process.execPath, args: [fixture] }, official: Eras.modernStdio() }
const { origin } = await Serving.gateway({ backends }, clock)
const [odd, official] = [`${origin}/mcp/odd`, `${origin}/mcp/official`]

const request = (id: number, method: string, params: object = {}) =>
  JSON.stringify({ jsonrpc: "2.0", id, method, params })

/** What a session is answered. */
const ask = async (session: string, method: string, params: object = {}) =>
  (await Kit.post(odd, session, request(Math.floor(Math.random() * 1e9), method, params))).json()

const tool = async (session: string, name: string, args: object = {}) => {
  const { error, result } = await ask(session, "tools/call", { name, arguments: args })
  return error === undefined ? JSON.parse(result.content[0].text) : error
}

describe("what a legacy client is told", () => {
  let session = ""
  beforeAll(async () => {
    session = await Kit.open(odd)
  })

  it("has nothing in it that only the later revision knows", async () => {
    const { result } = await ask(session, "tools/list")
    assert.deepStrictEqual(result, { tools: [{ name: "list", inputSchema: { type: "object" } }] })
    const list = await ask(session, "tools/call", { name: "list" })
    assert.deepStrictEqual(list.result, { content: [{ type: "text", text: "[1]" }] })
  })

  it("ping is answered here; levels of a server without a log, and tasks, are unknown methods", async () => {
    assert.deepStrictEqual((await ask(session, "ping")).result, {})
    for (const method of ["logging/setLevel", "tasks/list", "no/such"]) {
      assert.strictEqual((await ask(session, method, { level: "info" })).error.code, -32601, method)
    }
  })

  it("a result of an unknown type, or a question without one, fails the call", async () => {
    assert.include((await tool(session, "odd")).message, "\"odd\"")
    assert.include((await tool(session, "ask-nothing")).message, "asked for input")
  })
})

describe("a client that is asked for input", () => {
  it("and has not said that it can be, is not asked: the call fails", async () => {
    const session = await Kit.open(odd)
    assert.include((await tool(session, "ask-roots")).message, "{\"roots\":{}}")
  })

  it("and fails at a form, has cancelled it; at anything else, the call fails", async () => {
    const { call, client } = await Eras.legacy(official, { elicitation: {} }, "")
    assert.deepStrictEqual(JSON.parse(await call("ask")).responses, { who: { action: "cancel" } })
    await client.close()
    // It says that it can sample, but cannot.
    const liar = await Eras.legacy(official, { elicitation: {}, roots: {}, sampling: {} })
    liar.client.removeRequestHandler("sampling/createMessage")
    assert.include(await liar.call("ask-all").then(String, String), "sampling/createMessage")
    await liar.client.close()
  })

  it("for ever, is spared after a number of rounds", async () => {
    const { call, client } = await Eras.legacy(official, { elicitation: {} })
    assert.include(await call("rounds", { count: 1000 }).then(String, String), "more than 32 times")
    assert.strictEqual(await call("rounds", { count: 2 }), "2 rounds")
    await client.close()
  })

  it("and cancels the call instead, frees it: the question is taken back", async () => {
    const session = await Kit.open(odd, { roots: {} })
    const response = await Kit.post(odd, session, request(5, "tools/call", { name: "ask-roots" }))
    const messages: Array<{ readonly id?: unknown; readonly method?: string }> = []
    const read = Kit.readEvents(response, ({ data }) => {
      if (data !== "") messages.push(JSON.parse(data))
      return false
    })
    await Kit.eventually("the client is asked", () => messages.some(({ method }) => method === "roots/list"))
    const cancelled = { jsonrpc: "2.0", method: "notifications/cancelled", params: { requestId: 5 } }
    await Kit.post(odd, session, JSON.stringify(cancelled))
    await clock.passUntilSettled("the call has ended", read)
    assert.deepStrictEqual(messages.map(({ method }) => method), ["roots/list", "notifications/cancelled"])
    // A late answer changes nothing.
    await Kit.post(odd, session, JSON.stringify({ jsonrpc: "2.0", id: messages[0]?.id, result: { roots: [] } }))
    assert.deepStrictEqual((await ask(session, "ping")).result, {})
  })
})

describe("subscriptions", () => {
  const changes = async () => {
    const session = await Kit.open(odd)
    const stop = new AbortController()
    const stream = await Kit.listen(odd, session, {}, stop.signal)
    const heard: Array<string> = []
    void Kit.readEvents(stream, ({ data }) => {
      if (data !== "") heard.push(JSON.parse(data).params.uri)
      return false
    }).catch(() => {})
    const subscribe = (uri: string) => ask(session, "resources/subscribe", { uri })
    return { session, heard, subscribe, stop }
  }

  it("never overlap for long, and lose nothing that changes while one takes another's place", async () => {
    const { heard, session, stop, subscribe } = await changes()
    assert.deepStrictEqual((await subscribe("test://a")).result, {})
    assert.deepStrictEqual(heard, [])
    // The server tells of a change of test://a each time before it agrees to a new listen.
    for (const uri of ["test://b", "test://c", "test://d"]) await subscribe(uri)
    await tool(session, "touch")
    await Kit.eventually("all four are told", () => heard.length === 4)
    // The gateway keeps an old listen for half a second.
    await clock.pass("1 second")
    await Kit.eventually("the old listens are given up", async () => (await tool(session, "listens")).open.length === 1)
    const { most, open } = await tool(session, "listens")
    assert.deepStrictEqual(open, [["test://a", "test://b", "test://c", "test://d"]])
    assert.isAtMost(most, 3)
    // Notifications keep their order, so after `test://d` none is outstanding.
    await tool(session, "touch", { uri: "test://d" })
    await Kit.eventually("the last one is told", () => heard.includes("test://d"))
    assert.deepStrictEqual(heard, [...Array(4).fill("test://a"), "test://d"])
    stop.abort()
  })

  it("that the server refuses are errors, and the others live on", async () => {
    const { heard, session, stop, subscribe } = await changes()
    await subscribe("test://a")
    assert.include((await subscribe("test://forbidden")).error.message, "forbidden")
    await tool(session, "touch")
    await Kit.eventually("it is told", () => heard.length === 1)
    stop.abort()
  })

  it("that the server ends, with a word or without, are begun anew, and what may have been missed is told", async () => {
    const { heard, session, stop, subscribe } = await changes()
    await subscribe("test://a")
    for (const [how, count] of [["drop", 1], ["close", 2]] as const) {
      await tool(session, how)
      await Kit.eventually("there is one again", async () => {
        await clock.pass("1 second")
        return (await tool(session, "listens")).open.length === 1
      })
      await Kit.eventually("the client is told", () => heard.length >= count)
    }
    stop.abort()
  })
})
