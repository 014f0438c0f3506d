/** Legacy sessions in front of a modern server, where the client or the server behaves in a rare or wrong way. */
import { assert, describe, it } from "@effect/vitest"
import * as Eras from "../kit/gateway/eras.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"
import * as StillClock from "../kit/gateway/stillClock.ts"

const clock = await StillClock.make()
const backends = { odd: Eras.odd(), official: Eras.modernStdio() }
const { origin } = await Serving.gateway({ backends }, clock)
const [odd, official] = [`${origin}/mcp/odd`, `${origin}/mcp/official`]

const request = (id: number, method: string, params: object = {}) =>
  JSON.stringify({ jsonrpc: "2.0", id, method, params })

/** The answer to a request in a session. */
const ask = async (session: string, method: string, params: object = {}) =>
  (await Kit.post(odd, session, request(Math.floor(Math.random() * 1e9), method, params))).json()

const tool = async (session: string, name: string, args: object = {}) => {
  const { error, result } = await ask(session, "tools/call", { name, arguments: args })
  return error === undefined ? JSON.parse(result.content[0].text) : error
}

describe("answers to legacy clients", async () => {
  const session = await Kit.open(odd)

  it("an answer to a legacy client has no fields of the later revision", async () => {
    const { result } = await ask(session, "tools/list")
    assert.deepStrictEqual(result, { tools: [{ name: "list", inputSchema: { type: "object" } }] })
    const list = await ask(session, "tools/call", { name: "list" })
    assert.deepStrictEqual(list.result, { content: [{ type: "text", text: "[1]" }] })
  })

  it("answers ping itself, and refuses log levels of a server without a log, tasks and unknown methods", async () => {
    assert.deepStrictEqual((await ask(session, "ping")).result, {})
    for (const method of ["logging/setLevel", "tasks/list", "no/such"]) {
      assert.strictEqual((await ask(session, method, { level: "info" })).error.code, -32601, method)
    }
  })

  it("a result of an unknown type, or a request for input without a question, fails the call", async () => {
    assert.include((await tool(session, "odd")).message, "\"odd\"")
    assert.include((await tool(session, "ask-nothing")).message, "asked for input")
  })
})

describe("input from legacy clients", () => {
  it("a call that needs input fails if its client lacks the capability", async () => {
    const session = await Kit.open(odd)
    assert.include((await tool(session, "ask-roots")).message, "{\"roots\":{}}")
  })

  it("a client that fails at a form cancels it, and one that fails at another question fails the call", async () => {
    const { call, client } = await Eras.legacy(official, { elicitation: {} }, "")
    assert.deepStrictEqual(JSON.parse(await call("ask")).responses, { who: { action: "cancel" } })
    await client.close()
    // This client declares sampling, but has no handler for it.
    const liar = await Eras.legacy(official, { elicitation: {}, roots: {}, sampling: {} })
    liar.client.removeRequestHandler("sampling/createMessage")
    assert.include(await liar.call("ask-all").then(String, String), "sampling/createMessage")
    await liar.client.close()
  })

  it("a call that asks for input again and again fails after 32 rounds", async () => {
    const { call, client } = await Eras.legacy(official, { elicitation: {} })
    assert.include(await call("rounds", { count: 1000 }).then(String, String), "more than 32 times")
    assert.strictEqual(await call("rounds", { count: 2 }), "2 rounds")
    await client.close()
  })

  it("a client that cancels a call gets its open question withdrawn", async () => {
    const session = await Kit.open(odd, { roots: {} })
    const come = Serving.reading(await Kit.post(odd, session, request(5, "tools/call", { name: "ask-roots" })))
    await Kit.eventually("the client is asked", () => come.text.includes("roots/list"))
    await Kit.post(odd, session, Serving.notification("cancelled", { requestId: 5 }))
    await clock.passUntil("the call has ended", () => come.done)
    const messages = Serving.messagesIn(come.text)
    assert.deepStrictEqual(messages.map(({ method }) => method), ["roots/list", "notifications/cancelled"])
    // A late answer is a no-op.
    await Kit.post(odd, session, JSON.stringify({ jsonrpc: "2.0", id: messages[0].id, result: { roots: [] } }))
    assert.deepStrictEqual((await ask(session, "ping")).result, {})
  })
})

describe("subscriptions of legacy clients", () => {
  const changes = async () => {
    const session = await Kit.open(odd)
    const come = Serving.reading(await Kit.listen(odd, session))
    const heard = () => Serving.messagesIn(come.text).map(({ params }) => params.uri)
    const subscribe = (uri: string) => ask(session, "resources/subscribe", { uri })
    return { session, heard, subscribe }
  }

  it("subscriptions overlap only briefly, and no change is lost while one replaces another", async () => {
    const { heard, session, subscribe } = await changes()
    assert.deepStrictEqual((await subscribe("test://a")).result, {})
    assert.deepStrictEqual(heard(), [])
    // The server tells of a change of test://a each time before it agrees to a new listen.
    for (const uri of ["test://b", "test://c", "test://d"]) await subscribe(uri)
    await tool(session, "touch")
    await Kit.eventually("all four are told", () => heard().length === 4)
    // The gateway keeps an old listen for half a second.
    await clock.pass("1 second")
    await Kit.eventually("the old listens end", async () => (await tool(session, "listens")).open.length === 1)
    const { most, open } = await tool(session, "listens")
    assert.deepStrictEqual(open, [["test://a", "test://b", "test://c", "test://d"]])
    assert.isAtMost(most, 3)
    // Notifications keep their order, so after `test://d` none is outstanding.
    await tool(session, "touch", { uri: "test://d" })
    await Kit.eventually("the last one is told", () => heard().includes("test://d"))
    assert.deepStrictEqual(heard(), [...Array(4).fill("test://a"), "test://d"])
  })

  it("a subscription that the server refuses is an error, and the others continue", async () => {
    const { heard, session, subscribe } = await changes()
    await subscribe("test://a")
    assert.include((await subscribe("test://forbidden")).error.message, "forbidden")
    await tool(session, "touch")
    await Kit.eventually("it is told", () => heard().length === 1)
  })

  it("a subscription that the server ends is renewed, and a change that may be missed is sent", async () => {
    const { heard, session, subscribe } = await changes()
    await subscribe("test://a")
    for (const [how, count] of [["drop", 1], ["close", 2]] as const) {
      await tool(session, how)
      await Kit.eventually("the subscription is renewed", async () => {
        await clock.pass("1 second")
        return (await tool(session, "listens")).open.length === 1
      })
      await Kit.eventually("the client is told", () => heard().length >= count)
    }
  })
})
