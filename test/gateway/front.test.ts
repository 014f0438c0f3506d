/** A front without HTTP, which sees only the broker. */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Layer } from "effect"
import { HttpRouter } from "effect/http"
import type { Front } from "../../src/gateway/fronts/Front.ts"
import * as Gateway from "../../src/gateway/Gateway.ts"
import * as JsonRpc from "../../src/gateway/protocol/JsonRpc.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Told from "../kit/gateway/told.ts"

const client = { backend: "counter", principal: { id: "" }, known: Effect.succeed(true) }

/** Sends an array of lines to one session, and collects the answers. */
const arrayFront = (lines: ReadonlyArray<string>, said: Array<string>): Front => ({
  name: "array",
  serve: Effect.fnUntraced(function*({ ask }) {
    let session = ""
    for (const message of lines.map(Told.requestOf)) {
      const exchange = yield* session === ""
        ? ask(client, { _tag: "Open", message })
        : ask(client, { _tag: "Send", session, messages: [message] })
      session = exchange.session ?? session
      const reply = yield* exchange.reply
      if (reply._tag === "Answer") said.push(reply.text)
    }
    yield* ask(client, { _tag: "End", session })
  }, Effect.orDie)
})

const started = Effect.gen(function*() {
  const layer = Gateway.layer({ backends: { counter: Kit.counter() }, environment: process.env })
  const services = yield* Layer.build(Layer.provide(layer, [HttpRouter.layer, NodeServices.layer]))
  return Context.get(services, Gateway.Gateway)
})

describe("a front without HTTP", () => {
  it.live("opens a session, makes calls in it and ends it through the broker", () =>
    Effect.gen(function*() {
      const { broker } = yield* started
      const said: Array<string> = []
      yield* arrayFront([Kit.initializeBody, Kit.toolCall(1, "count"), Kit.toolCall(2, "count")], said).serve(broker)
      const results = said.map((text) => JSON.parse(text).result)
      assert.strictEqual(results[0].protocolVersion, "2025-06-18")
      assert.deepStrictEqual(results.slice(1).map(({ content }) => content[0].text), ["1", "2"])
    }).pipe(Effect.scoped))

  it.live("the broker says why it refuses a message, without an HTTP status", () =>
    Effect.gen(function*() {
      const { broker } = yield* started
      const session = "00000000-0000-4000-8000-000000000000"
      const ask = broker.ask(client, { _tag: "Send", session, messages: [JsonRpc.request(1, "ping", {})] })
      const { error, reason } = yield* Effect.flip(ask)
      assert.deepStrictEqual([reason, error.id, JsonRpc.codeOf(error.error)], ["unknown", 1, -32001])
    }).pipe(Effect.scoped))
})
