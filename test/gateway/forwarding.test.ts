/** What a client hears when the way to the replica that carries its request out breaks. */
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Duration, Effect, Layer, Stream } from "effect"
import { RunnerAddress } from "effect/cluster"
import { RpcSerialization, RpcServer } from "effect/rpc"
import * as Forwarding from "../../src/gateway/cluster/Forwarding.ts"
import * as Links from "../../src/gateway/cluster/Links.ts"
import * as Protocol from "../../src/gateway/cluster/Protocol.ts"
import * as ReplicaTls from "../../src/gateway/cluster/ReplicaTls.ts"
import * as EventStreamBody from "../../src/gateway/fronts/EventStreamBody.ts"
import type * as Placement from "../../src/gateway/sessions/Placement.ts"
import * as Cutter from "../kit/cluster/cutter.ts"
import { stablePort } from "../kit/cluster/ports.ts"
import * as Kit from "../kit/gateway/gateway.ts"

const key = ReplicaTls.keyOf("a key that replicas share")
const serialization = RpcSerialization.layerSchemaBinary()

const asked = (body: string): Placement.Asked => ({
  carried: { method: "POST", backend: "a", principal: "", known: false, headers: {}, body },
  stream: {
    heartbeat: Duration.infinity,
    bodies: new Set(),
    greetAfter: Duration.infinity,
    until: undefined,
    client: { disconnect: Effect.void }
  }
})

/** What a client gets whose request is answered with these chunks of a stream, after which the connection breaks. */
const answered = (body: string, ...chunks: ReadonlyArray<string>) =>
  Effect.gen(function*() {
    const waiting = yield* Deferred.make<void>()
    let sent = 0
    const unused = Effect.die("not asked in this test")
    const handlers = Protocol.Peers.toLayer({
      CarryOut: () => Effect.succeed({ _tag: "Streamed" as const, status: 200, headers: {}, id: "stream" }),
      Next: () =>
        Effect.suspend(() => {
          const chunk = chunks[sent++]
          return chunk === undefined
            ? Effect.andThen(Deferred.succeed(waiting, undefined), Effect.never)
            : Effect.succeed([new TextEncoder().encode(chunk)])
        }),
      Abandon: () => Effect.void,
      Sessions: () => unused,
      EndNumber: () => unused
    })
    const [port, behind] = [yield* Effect.promise(stablePort), yield* Effect.promise(stablePort)]
    yield* Layer.build(
      RpcServer.layer(Protocol.Peers).pipe(
        Layer.provide([handlers, RpcServer.layerProtocolSocketServer]),
        Layer.provide(ReplicaTls.layerServer({ host: "127.0.0.1", port: behind }, key))
      )
    )
    const cable = yield* Effect.acquireRelease(
      Effect.promise(() => Cutter.start(port, behind)),
      ({ stop }) => Effect.promise(stop)
    )
    const links = yield* Links.make(() => RunnerAddress.make("127.0.0.1", port), key)
    const response = yield* Forwarding.make(links).forward("other", asked(body))
    yield* Effect.forkScoped(Effect.andThen(Deferred.await(waiting), Effect.sync(() => cable.cut())))
    if (response.body._tag !== "Stream") return assert.fail("no stream")
    const text = yield* Stream.mkString(Stream.decodeText(response.body.stream))
    const messages: ReadonlyArray<unknown> = text.split("\n").flatMap((line) =>
      line.startsWith("data: ") ? [JSON.parse(line.slice(6))] : []
    )
    return messages
  }).pipe(Effect.scoped, Effect.provide(serialization))

const answerOf = (id: string) => ({ jsonrpc: "2.0", id, result: {} })
const eventOf = (message: object) => new TextDecoder().decode(EventStreamBody.event({ text: JSON.stringify(message) }))
/** Whether it was carried out nobody can know. */
const unknownOf = (id: string) => ({
  jsonrpc: "2.0",
  id,
  error: {
    code: -32000,
    message:
      "The connection to the replica of this session broke; the gateway cannot tell whether the request was carried out"
  }
})
const notification = { jsonrpc: "2.0", method: "notifications/message", params: { data: "\"id\":\"b\"" } }

describe("a stream whose connection to the other replica breaks", () => {
  it.live("ends with an error for its request", () =>
    Effect.gen(function*() {
      const messages = yield* answered(Kit.toolCall("a", "x"), eventOf(notification))
      assert.deepStrictEqual(messages, [notification, unknownOf("a")])
    }))

  it.live("has no error for a request that has its answer already", () =>
    Effect.gen(function*() {
      const messages = yield* answered(Kit.toolCall("a", "x"), eventOf(notification), eventOf(answerOf("a")))
      assert.deepStrictEqual(messages, [notification, answerOf("a")])
    }))

  it.live("ends with an error for each request of a batch that has not been answered, however its events came", () =>
    Effect.gen(function*() {
      const batch = `[${["a", "b", "c"].map((id) => Kit.toolCall(id, "x")).join()},${JSON.stringify(notification)}]`
      const event = eventOf(answerOf("a"))
      for (const chunks of [[event, eventOf(notification)], [event + eventOf(notification)], event.split(/(?<=":)/)]) {
        const messages = yield* answered(batch, ...chunks)
        assert.deepStrictEqual(
          messages.filter((message) => !JSON.stringify(message).includes("method")),
          [answerOf("a"), unknownOf("b"), unknownOf("c")]
        )
      }
    }))

  it.live("just ends for who only listens", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* answered("", eventOf(notification)), [notification])
    }))
})
