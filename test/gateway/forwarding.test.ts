/** What replicas carry out for each other, over real connections: asks, replies, events, and broken connections. */
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Exit, Layer, Option, Scope, Tracer } from "effect"
import {
  MessageStorage,
  RunnerAddress,
  RunnerHealth,
  Runners,
  RunnerStorage,
  Sharding,
  ShardingConfig
} from "effect/cluster"
import { RpcSerialization, RpcServer } from "effect/rpc"
import * as Forwarding from "../../src/gateway/cluster/Forwarding.ts"
import * as Hosting from "../../src/gateway/cluster/Hosting.ts"
import * as Links from "../../src/gateway/cluster/Links.ts"
import * as Protocol from "../../src/gateway/cluster/Protocol.ts"
import * as ReplicaTls from "../../src/gateway/cluster/ReplicaTls.ts"
import type { Event, Exchange, Reply, Take } from "../../src/gateway/conversation/Exchange.ts"
import { nothing, refusal } from "../../src/gateway/conversation/Exchange.ts"
import * as JsonRpc from "../../src/gateway/protocol/JsonRpc.ts"
import type { Ask } from "../../src/gateway/sessions/Ask.ts"
import type { Carried, Host } from "../../src/gateway/sessions/Placement.ts"
import * as Cutter from "../kit/cluster/cutter.ts"
import { stablePort } from "../kit/cluster/ports.ts"
import * as Takes from "../kit/cluster/takes.ts"

const key = ReplicaTls.keyOf("a key that replicas share")

/** The engine of a replica that is alone. */
const engine = Sharding.layer.pipe(
  Layer.provide([Runners.layerNoop, RunnerHealth.layerNoop]),
  Layer.provide([MessageStorage.layerNoop, RunnerStorage.layerMemory, ShardingConfig.layer()])
)

const membership = { isGivenUp: () => false, now: () => 0, safeFor: () => 60_000 }

/** Another replica behind a cable. `forward` has it carry something out. */
const start = Effect.fnUntraced(function*(carryOut: Host["carryOut"]) {
  const hosting = new Hosting.Hosting("other", membership, yield* Effect.scope)
  const unused = Effect.die("not asked in this test")
  const host = { carryOut, sessions: unused, endNumber: () => unused, endPinned: unused, vacate: () => unused }
  yield* Effect.provideContext(hosting.serve(host), yield* Layer.build(engine))
  const [port, behind] = [yield* Effect.promise(stablePort), yield* Effect.promise(stablePort)]
  yield* Layer.build(
    RpcServer.layer(Protocol.Peers, {
      disableTracing: true,
      disableFatalDefects: true,
      onDisconnect: (client) => hosting.disconnected(client)
    }).pipe(
      Layer.provide([Protocol.Peers.toLayer(hosting.handlers), RpcServer.layerProtocolSocketServer]),
      Layer.provide(ReplicaTls.layerServer({ host: "127.0.0.1", port: behind }, key))
    )
  )
  const cable = yield* Effect.acquireRelease(
    Effect.promise(() => Cutter.start(port, behind)),
    ({ stop }) => Effect.promise(stop)
  )
  const links = yield* Links.make(() => RunnerAddress.make("127.0.0.1", port), key)
  const forward = (ask: Ask | Carried, shared?: string) =>
    Forwarding.forward(links, "other", "ask" in ask ? ask : carried(ask), shared)
  return { cable, hosting, forward }
}, (effect) => Effect.provide(effect, RpcSerialization.layerSchemaBinary()))

const carried = (ask: Ask): Carried => ({
  backend: "a",
  principal: { id: "ada", name: "Ada" },
  known: true,
  opens: undefined,
  ask
})

const request = (id: JsonRpc.Id) => JsonRpc.request(id, "tools/call", { name: "count" })
const notification = JsonRpc.notification("notifications/message", { data: "\"id\":\"b\"" })
const open: Ask = { _tag: "Open", message: request("o") }
const send = (...messages: ReadonlyArray<JsonRpc.Message>): Ask => ({ _tag: "Send", session: "s", messages })
const call: Ask = { _tag: "Call", request: request("c") }
const listen: Ask = { _tag: "Listen", session: "s", from: undefined }

const exchange = (reply: Reply): Exchange => ({ reply: Effect.succeed(reply) })
const streaming = (take: Take): Exchange => exchange({ _tag: "Events", start: "e0", take })

/** How its events are taken. */
const takeOf = ({ reply }: Exchange) =>
  Effect.map(reply, (reply) => reply._tag === "Events" ? reply.take : assert.fail(reply._tag))

/** All events of an exchange. */
const eventsOf = Effect.fnUntraced(function*(exchange: Exchange) {
  const take = yield* takeOf(exchange)
  const events: Array<Event> = []
  while (true) {
    const taken = yield* Effect.option(take)
    if (Option.isNone(taken)) return events
    assert.isNotEmpty(taken.value)
    events.push(...taken.value)
  }
})

describe("asks to another replica", () => {
  it.live("an ask of each kind arrives unchanged", () =>
    Effect.gen(function*() {
      const arrived: Array<Carried> = []
      const { forward } = yield* start((carried) => {
        arrived.push(carried)
        return Effect.succeed(exchange(nothing))
      })
      // The number has too many digits for JavaScript, and the white space is unusual.
      const text = "{ \"jsonrpc\": \"2.0\", \"id\": 12345678901234567890, \"method\": \"ping\" }"
      const exact = JsonRpc.read(text)
      if (exact === undefined) return assert.fail("no message")
      const asks: ReadonlyArray<Ask> = [
        open,
        send(exact, notification, JsonRpc.result(1, {})),
        call,
        listen,
        { _tag: "Listen", session: "s", from: "e7" },
        { _tag: "End", session: "s" }
      ]
      for (const ask of asks) {
        const { reply } = yield* forward(ask)
        assert.strictEqual((yield* reply)._tag, "Nothing")
      }
      assert.deepStrictEqual(arrived, asks.map(carried))
    }).pipe(Effect.scoped))

  it.live("an ask returns its answer and the session that it opened", () =>
    Effect.gen(function*() {
      const answer = { _tag: "Answer" as const, id: "e1", text: "{}", reason: "unknown" as const }
      const { forward } = yield* start(() => Effect.succeed({ session: "new", reply: Effect.succeed(answer) }))
      const { reply, session } = yield* forward(open)
      assert.deepStrictEqual([session, yield* reply], ["new", answer])
    }).pipe(Effect.scoped))

  it.live("an ask returns its refusal, also if its reply is refused", () =>
    Effect.gen(function*() {
      const refused = refusal("too many", "Later", { id: 7, code: -1, data: { a: 1 }, retryAfter: 3 })
      for (const carryOut of [Effect.fail(refused), Effect.succeed({ reply: Effect.fail(refused) })]) {
        const { forward } = yield* start(() => carryOut)
        const { error, reason, retryAfter } = yield* Effect.flip(forward(open)).pipe(
          Effect.filterOrFail((error) => error._tag === "Refusal")
        )
        assert.deepStrictEqual([reason, error, retryAfter], [refused.reason, refused.error, 3])
      }
    }).pipe(Effect.scoped))

  it.live("an ask is refused with its id if the other replica fails with a defect", () =>
    Effect.gen(function*() {
      const { forward } = yield* start(() => Effect.die("a bug"))
      for (const [ask, id, code] of [[send(request(7)), 7, -32000], [call, "c", -32603]] as const) {
        const refused = yield* Effect.flip(forward(ask))
        if (refused._tag !== "Refusal") return assert.fail(refused._tag)
        assert.deepStrictEqual([refused.reason, refused.error.id], ["back end failed", id])
        assert.deepInclude(refused.error.error, { code })
      }
    }).pipe(Effect.scoped))

  it.live("an ask fails with Moved if the other replica does not have its shared id", () =>
    Effect.gen(function*() {
      const { forward } = yield* start(() => Effect.die("not asked in this test"))
      assert.strictEqual((yield* Effect.flip(forward(call, "an id")))._tag, "Moved")
    }).pipe(Effect.scoped))

  it.live("an ask has a span below the span of its request", () =>
    Effect.gen(function*() {
      const spans: Array<Tracer.Span> = []
      const tracer = Tracer.make({
        span: (options) => {
          const span = new Tracer.NativeSpan(options)
          spans.push(span)
          return span
        }
      })
      yield* Effect.gen(function*() {
        const { forward } = yield* start(() => Effect.succeed(exchange(nothing)))
        yield* Effect.withSpan(forward(call), "POST")
      }).pipe(Effect.withTracer(tracer))
      const [asked, carriedOut] = ["POST", "forwarded Call"].map((name) => spans.find((span) => span.name === name))
      if (asked === undefined || carriedOut === undefined) return assert.fail("no span")
      assert.strictEqual(carriedOut.traceId, asked.traceId)
      assert.strictEqual(Option.getOrUndefined(carriedOut.parent)?.spanId, asked.spanId)
    }).pipe(Effect.scoped))
})

describe("events from another replica", () => {
  it.live("events arrive in order, and the exchange ends at the other replica after the last one", () =>
    Effect.gen(function*() {
      const ended = yield* Deferred.make<void>()
      const lists = [[{ id: "e1", text: "1" }, { text: "2" }], [], [{ text: "3" }]]
      const { forward } = yield* start(() =>
        Effect.acquireRelease(Effect.succeed(streaming(Takes.of(lists))), () => Deferred.succeed(ended, undefined))
      )
      const forwarded = yield* forward(call)
      const reply = yield* forwarded.reply
      assert.deepInclude(reply, { _tag: "Events", start: "e0" })
      assert.deepStrictEqual(yield* eventsOf(forwarded), lists.flat())
      yield* Deferred.await(ended)
    }).pipe(Effect.scoped))

  it.live("a take that is interrupted, as heartbeats do, loses no event", () =>
    Effect.gen(function*() {
      const more = yield* Deferred.make<void>()
      const waits = Effect.as(Deferred.await(more), [{ text: "1" }])
      const { forward } = yield* start(() => Effect.succeed(streaming(waits)))
      const take = yield* takeOf(yield* forward(call))
      for (let i = 0; i < 3; i++) assert.isTrue(Option.isNone(yield* Effect.timeoutOption(take, "20 millis")))
      yield* Deferred.succeed(more, undefined)
      assert.deepStrictEqual(yield* take, [{ text: "1" }])
    }).pipe(Effect.scoped))

  it.live("an exchange ends at the other replica when its client goes, also while a take waits", () =>
    Effect.gen(function*() {
      for (const takes of [false, true]) {
        const ended = yield* Deferred.make<void>()
        const { forward } = yield* start(() =>
          Effect.acquireRelease(Effect.succeed(streaming(Effect.never)), () => Deferred.succeed(ended, undefined))
        )
        const scope = yield* Scope.make()
        const take = yield* Effect.flatMap(Scope.provide(forward(call), scope), takeOf)
        if (takes) yield* Effect.timeoutOption(take, "20 millis")
        yield* Scope.close(scope, Exit.void)
        yield* Effect.timeout(Deferred.await(ended), "2 seconds")
      }
    }).pipe(Effect.scoped))

  it.live("a stream that only listens ends when the other replica begins to leave", () =>
    Effect.gen(function*() {
      const { forward, hosting } = yield* start(() => Effect.succeed(streaming(Effect.never)))
      const [listening, calling] = [yield* forward(listen), yield* forward(call)]
      yield* hosting.stopServing
      assert.deepStrictEqual(yield* eventsOf(listening), [])
      assert.isTrue(Option.isNone(yield* Effect.timeoutOption(yield* takeOf(calling), "100 millis")))
    }).pipe(Effect.scoped))
})

const unknown =
  "The connection to the replica of this session broke; the gateway cannot tell whether the request was carried out"
const unknownOf = (id: string, code = -32000) => JsonRpc.error(id, code, unknown).text

/** What a client gets for an ask that is answered with these messages, after which the connection breaks. */
const eventsUntilCut = (ask: Ask | Carried, ...lists: ReadonlyArray<ReadonlyArray<JsonRpc.Message>>) =>
  Effect.gen(function*() {
    const waiting = yield* Deferred.make<void>()
    const last: Take = Effect.andThen(Deferred.succeed(waiting, undefined), Effect.never)
    const events = lists.map((list) => list.map(({ text }) => ({ text })))
    const { cable, forward } = yield* start(() => Effect.succeed(streaming(Takes.of(events, last))))
    const forwarded = yield* forward(ask)
    yield* Effect.forkScoped(Effect.andThen(Deferred.await(waiting), Effect.sync(() => cable.cut())))
    return (yield* eventsOf(forwarded)).map(({ text }) => text)
  }).pipe(Effect.scoped)

describe("broken connections to another replica", () => {
  const [answer, batch] = [JsonRpc.result("b", {}), send(request("a"), request("b"), notification, request("c"))]
  const asked = JsonRpc.result("c", { resultType: "input_required" })
  it.live.each<[string, Ask | Carried, ReadonlyArray<ReadonlyArray<JsonRpc.Message>>, ReadonlyArray<string>]>([
    ["an error for the request of a Send", send(request("a")), [[notification]], [notification.text, unknownOf("a")]],
    ["an error for an initialize", open, [[notification]], [notification.text, unknownOf("o")]],
    ["an error for a Call, with a code of its own", call, [], [unknownOf("c", -32603)]],
    ["no error for a Call that was answered with questions", call, [[asked]], [asked.text]],
    ["an error for a Call of a light session, which goes on after questions", { ...carried(call), light: true }, [[
      asked
    ]], [
      asked.text,
      unknownOf("c", -32603)
    ]],
    ["no error for an answered request", send(request("b")), [[notification], [answer]], [
      notification.text,
      answer.text
    ]],
    ["an error for each unanswered request of a batch", batch, [[answer], [notification]], [
      answer.text,
      notification.text,
      unknownOf("a"),
      unknownOf("c")
    ]],
    ["an error for each unanswered request of a batch whose messages come at once", batch, [[answer, notification]], [
      answer.text,
      notification.text,
      unknownOf("a"),
      unknownOf("c")
    ]],
    ["no error for a stream that only listens", listen, [[notification]], [notification.text]]
  ])("a broken connection leads to %s", ([, ask, lists, texts]) =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* eventsUntilCut(ask, ...lists), texts)
    }))

  it.live("an ask without a reply is refused when the connection breaks", () =>
    Effect.gen(function*() {
      const waiting = yield* Deferred.make<void>()
      const { cable, forward } = yield* start(() => Effect.andThen(Deferred.succeed(waiting, undefined), Effect.never))
      yield* Effect.forkScoped(Effect.andThen(Deferred.await(waiting), Effect.sync(() => cable.cut())))
      const refused = yield* Effect.flip(forward(send(request("a"))))
      if (refused._tag !== "Refusal") return assert.fail(refused._tag)
      assert.deepStrictEqual([refused.reason, refused.error.text], ["back end failed", unknownOf("a")])
    }).pipe(Effect.scoped))
})
