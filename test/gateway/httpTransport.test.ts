/** The transport to a legacy server on Streamable HTTP: its requests, and the messages of the responses. */
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import * as JsonRpc from "../../src/gateway/protocol/JsonRpc.ts"
import * as Clock from "../kit/gateway/aheadClock.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import { event, json, Scripted, stream } from "../kit/gateway/scripted.ts"

const scripted = new Scripted()

describe("the legacy HTTP transport", () => {
  it("sends its session and revision in headers, and deletes the session when its scope closes", async () => {
    await scripted.handshake()
    scripted.call(1, "tools/list")
    scripted.answers["tools/list"] = (response, { id }) => json(response, { id, result: {} })
    await scripted.answerOf(1)
    await scripted.close()
    const methods = scripted.seen.map(({ message, method }) => message.method ?? method)
    assert.deepStrictEqual(methods, ["initialize", "notifications/initialized", "GET", "tools/list", "DELETE"])
    const names = ["mcp-session-id", "mcp-protocol-version", "x-extra"]
    const [first, ...others] = scripted.seen.map(({ headers }) => names.map((name) => headers[name]))
    assert.deepStrictEqual(first, [undefined, undefined, "yes"])
    for (const other of others) assert.deepStrictEqual(other, ["s-1", "2025-06-18", "yes"])
  })

  it("sends the next message only after a notification and a setting have arrived", async () => {
    await scripted.handshake()
    const order = () => scripted.seen.flatMap(({ message }) => message.method ?? []).slice(2)
    const release: Array<() => void> = []
    scripted.answers["logging/setLevel"] = (response, { id }) =>
      void release.push(() => json(response, { id, result: {} }))
    scripted.answers["notifications/x"] = (response) => void release.push(() => response.writeHead(202).end())
    scripted.call(1, "logging/setLevel")
    scripted.write({ method: "notifications/x" })
    scripted.call(2, "last")
    for (const sent of [["logging/setLevel"], ["logging/setLevel", "notifications/x"]]) {
      await Kit.eventually(`${sent.length} have been sent`, () => release.length === sent.length)
      // A message sent too early would have arrived before this round trip ends.
      await (await fetch(scripted.url, { method: "DELETE" })).text()
      assert.deepStrictEqual(order(), sent)
      release.at(-1)?.()
    }
    await Kit.eventually("all have been sent", () => order().length === 3)
    assert.deepStrictEqual(order(), ["logging/setLevel", "notifications/x", "last"])
    assert.isTrue(scripted.messages.some(({ id }) => id === 1))
  })

  it("holds few messages for a server that takes none, and releases a waiting sender at its end", async () => {
    await scripted.handshake()
    scripted.answers["notifications/x"] = () => {}
    const message = JsonRpc.notification("notifications/x")
    let held = 0
    while (held < 1000 && scripted.transport.offer(message)) held++
    assert.isBelow(held, 20)
    const waiting = Effect.runPromise(Effect.exit(scripted.transport.send(message)))
    await scripted.close()
    await waiting
  })

  it("answers with an error if the server's answer is nested deeper than 256 levels", async () => {
    await scripted.handshake()
    scripted.answers["tools/list"] = (response, { id }) =>
      void response.writeHead(200, { "content-type": "application/json" })
        .end(`{"jsonrpc":"2.0","id":${id},"result":${"[".repeat(256)}${"]".repeat(256)}}`)
    scripted.call(1, "tools/list")
    const told = () => scripted.messages.find(({ error, id }) => id === 1 && error !== undefined)?.error.message
    await Kit.eventually("the call is answered", () => told() !== undefined, 5)
    assert.strictEqual(told(), "The answer is nested deeper than 256 levels")
    assert.lengthOf(scripted.garbage, 1)
    assert.lengthOf(scripted.messages.filter(({ id }) => id === 1), 1)
  })

  it("resumes the GET stream after its last event when it ends", async () => {
    let times = 0
    scripted.answers["GET"] = (response) => {
      if (++times > 2) return
      stream(response, "retry: 5\n\n", event({ method: `notifications/${times}` }, `e-${times}`)).end()
    }
    await scripted.handshake()
    await Kit.eventually("both have come", () => scripted.messages.length === 3 && times === 3)
    const gets = scripted.seen.filter(({ method }) => method === "GET")
    assert.deepStrictEqual(gets.map(({ headers }) => headers["last-event-id"]), [undefined, "e-1", "e-2"])
  })

  it("resumes a response that broke off after its last event, if it has an id", async () => {
    await scripted.handshake()
    scripted.answers["poll"] = (response) => stream(response, "id: p-1\nretry: 5\ndata: \n\n").end()
    scripted.answers["GET"] = (response, _, headers) => {
      assert.strictEqual(headers["last-event-id"], "p-1")
      stream(response, event({ id: 5, result: { polled: true } })).end()
    }
    scripted.call(5, "poll")
    assert.deepStrictEqual((await scripted.answerOf(5)).result, { polled: true })
  })

  it("ends when the server no longer knows the session", async () => {
    await scripted.handshake()
    scripted.answers["tools/list"] = (response) => response.writeHead(404).end()
    scripted.call(1, "tools/list")
    assert.include(await scripted.ended(), "no longer knows its session")
    await scripted.close()
    assert.notInclude(scripted.seen.map(({ method }) => method), "DELETE")
  })

  it("ends when the server does not accept a message in time", async () => {
    const clock = Clock.make()
    await scripted.renew(scripted.url, clock)
    await scripted.handshake()
    scripted.answers["notifications/x"] = () => {}
    scripted.write({ method: "notifications/x" })
    await Kit.eventually("it is sent", () => scripted.seen.at(-1)?.message?.method === "notifications/x")
    clock.pass("5 minutes")
    assert.include(await scripted.ended(), "has not accepted a message")
  })

  it("a refused initialize is an answer if its body is JSON-RPC, and otherwise ends the transport", async () => {
    scripted.answers["initialize"] = (response) =>
      json(response, { id: null, error: { code: -32000, message: "no" } }, 400)
    scripted.call(0, "initialize")
    assert.deepStrictEqual((await scripted.answerOf(0)).error, { code: -32000, message: "no" })
    scripted.answers["initialize"] = (response) => response.writeHead(500).end("broken")
    scripted.call(1, "initialize")
    assert.include(await scripted.ended(), "status 500")
  })
})
