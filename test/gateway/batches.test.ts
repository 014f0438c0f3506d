/** Batches of revision 2025-03-26 of which something is refused, or whose client goes. */
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Duration, Effect, Exit, Fiber, FileSystem, Option, Schedule, Scope, Stream } from "effect"
import type { HttpServerResponse } from "effect/http"
import { Headers } from "effect/http"
import type { Bridge } from "../../src/gateway/conversation/Bridge.ts"
import * as Parked from "../../src/gateway/conversation/Parked.ts"
import * as LegacyRoutes from "../../src/gateway/fronts/LegacyRoutes.ts"
import type { Asking, Serving } from "../../src/gateway/fronts/Serving.ts"
import * as RequestState from "../../src/gateway/protocol/RequestState.ts"
import { UnknownSession } from "../../src/gateway/sessions/GatewayErrors.ts"
import type { LaunchError } from "../../src/gateway/sessions/GatewayErrors.ts"
import * as Placement from "../../src/gateway/sessions/Placement.ts"
import type { Connection, Key } from "../../src/gateway/sessions/Registry.ts"
import type { Sessions } from "../../src/gateway/sessions/Sessions.ts"
import * as Settings from "../../src/gateway/settings/Settings.ts"
import * as GatewayMetrics from "../../src/gateway/telemetry/GatewayMetrics.ts"
import type { Transport } from "../../src/gateway/transports/Transport.ts"
import * as SessionPool from "../../src/SessionPool.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Told from "../kit/gateway/told.ts"

const note = JSON.stringify({ jsonrpc: "2.0", method: "notifications/initialized" })
const calls = (...ids: ReadonlyArray<number>) => ids.map((id) => Kit.toolCall(id, "anything"))

/**
 * A session of two requests at most, whose server says what the test tells it to. `lease` is how the routes get it, and
 * `between` may stand before the server.
 */
const session = Effect.fnUntraced(function*(
  lease: (bridge: Bridge) => Effect.Effect<Bridge, UnknownSession, Scope.Scope> = Effect.succeed,
  between?: (transport: Transport) => Transport
) {
  const { bridge, server } = yield* Told.open({
    requestTimeout: Duration.infinity,
    streamAfter: Duration.infinity,
    streamLostTimeToLive: Duration.infinity,
    maxInFlight: 2,
    replay: { maxEvents: 100, maxBytes: 100_000 }
  }, between)
  server.heard.length = 0
  const launch = (_: Key): Effect.Effect<Connection, LaunchError> => Effect.never
  const sessions: Sessions["Service"] = {
    pool: yield* SessionPool.make({ lookup: launch }),
    running: () => new Map(),
    open: () => Effect.never,
    lease: () => lease(bridge),
    lane: () => Effect.never,
    firstLane: () => Effect.never,
    knownEra: () => undefined,
    passing: { count: 0, over: Effect.never },
    end: () => Effect.succeedNone,
    endNumber: () => Effect.succeedNone,
    endRequests: () => Effect.void,
    vacate: () => Effect.void,
    reload: () => Effect.never,
    asleep: Effect.succeed(new Map()),
    live: Effect.succeed([]),
    waitingForLane: Effect.succeed(0),
    recent: GatewayMetrics.recent(),
    closes: () => ({})
  }
  const settings = { ...Settings.defaults(Settings.backendSettings), ...Settings.defaults(Settings.gatewaySettings) }
  const serving: Serving = {
    sessions,
    settings,
    parked: yield* Parked.make(settings, RequestState.make(undefined), ""),
    draining: Deferred.makeUnsafe(),
    fs: FileSystem.makeNoop({}),
    bodies: new Set(),
    deletions: new Map(),
    placement: Placement.local
  }
  const asking: Asking = {
    request: {
      method: "POST",
      headers: Headers.fromInput({ "mcp-session-id": "00000000-0000-4000-8000-000000000000" }),
      source: {}
    },
    backend: "told",
    principal: "",
    version: "2025-03-26",
    lastEventId: undefined,
    carried: undefined
  }
  const batch = (...messages: ReadonlyArray<string>) =>
    LegacyRoutes.batch(serving, asking, messages.map((text) => JSON.parse(text)), `[${messages.join()}]`)
  return { bridge, server, batch }
})

/** A server that after `initialize` reads nothing until the gate is open. */
const behind = (gate: Deferred.Deferred<void>) => ({ send, ...transport }: Transport): Transport => {
  const isLate = (line: string) => !line.includes("\"initialize\"")
  return {
    ...transport,
    offer: (line) => !isLate(line) && transport.offer(line),
    send: (line) => Effect.andThen(isLate(line) ? Deferred.await(gate) : Effect.void, send(line))
  }
}

interface Answer {
  readonly id: number
  readonly result?: object
  readonly error?: { readonly message: string }
}

/** The messages of a response, whether it is a stream or not. */
const messagesOf = Effect.fnUntraced(function*({ body }: HttpServerResponse.HttpServerResponse): Effect.fn.Return<
  ReadonlyArray<Answer>,
  unknown
> {
  if (body._tag === "Uint8Array") return [JSON.parse(new TextDecoder().decode(body.body))]
  const text = body._tag === "Stream" ? yield* Stream.mkString(Stream.decodeText(body.stream)) : ""
  return text.split("\n").filter((line) => line.startsWith("data: ")).map((line) => JSON.parse(line.slice(6)))
})

const errorOf = (messages: ReadonlyArray<Answer>, id: number) =>
  messages.find((message) => message.id === id && message.error !== undefined)?.error?.message

describe("a batch of which a later message is refused", () => {
  it.effect("has an error for each call beyond what may run at once, and the answers to the others", () =>
    Effect.gen(function*() {
      const { batch, server } = yield* session()
      const response = yield* batch(...calls(1, 2, 3, 4), note)
      assert.strictEqual(response.status, 200)
      assert.deepStrictEqual(server.heard, [1, 2, "notifications/initialized"])
      const reading = yield* Effect.forkChild(messagesOf(response), { startImmediately: true })
      for (const id of [1, 2]) server.say({ id, result: {} })
      const messages = yield* Fiber.join(reading)
      assert.sameMembers(messages.map(({ id }) => id), [1, 2, 3, 4])
      for (const id of [3, 4]) assert.include(errorOf(messages, id), "Too many requests")
      for (const id of [1, 2]) assert.isUndefined(errorOf(messages, id))
    }))

  it.effect("has an error for an id that runs already, and the answer to the first with that id", () =>
    Effect.gen(function*() {
      const { batch, server } = yield* session()
      const response = yield* batch(...calls(1, 1, 2))
      const reading = yield* Effect.forkChild(messagesOf(response), { startImmediately: true })
      for (const id of [1, 2]) server.say({ id, result: {} })
      const messages = yield* Fiber.join(reading)
      assert.sameMembers(messages.map(({ id }) => id), [1, 1, 2])
      assert.include(errorOf(messages, 1), "this id is running")
    }))

  it.effect("has its errors together and at once, for they may be thousands: a stream for each took seconds", () =>
    Effect.gen(function*() {
      const { batch } = yield* session()
      const { body } = yield* batch(...calls(...Array.from({ length: 100 }, (_, id) => id)))
      const first = body._tag === "Stream" ? yield* Stream.runHead(Stream.decodeText(body.stream)) : Option.none()
      assert.lengthOf(Option.getOrThrow(first).match(/Too many requests/g) ?? [], 98)
    }))

  it.effect("because the session has ended meanwhile, has the answers to what was taken before, and the others' error", () =>
    Effect.gen(function*() {
      let leases = 0
      const { batch, server } = yield* session((bridge) => ++leases > 2 ? new UnknownSession() : Effect.succeed(bridge))
      const response = yield* batch(...calls(1), note, note, ...calls(2))
      const reading = yield* Effect.forkChild(messagesOf(response), { startImmediately: true })
      server.say({ id: 1, result: {} })
      const messages = yield* Fiber.join(reading)
      assert.deepStrictEqual(messages.find(({ id }) => id === 1)?.result, {})
      assert.include(errorOf(messages, 2), "Session not found")
      assert.lengthOf(messages, 2)
      assert.strictEqual(leases, 4)
    }))

  it.effect("and of which nothing was a call before has its error all the same, for what was said is said", () =>
    Effect.gen(function*() {
      const { batch, bridge, server } = yield* session()
      for (const id of [8, 9]) Told.request(bridge, id)
      const response = yield* batch(note, ...calls(1))
      assert.include(errorOf(yield* messagesOf(response), 1), "Too many requests")
      assert.deepStrictEqual([response.status, server.heard], [200, [8, 9, "notifications/initialized"]])
    }))
})

describe("a batch whose first message is refused", () => {
  it.effect("is refused whole, with the status of that, and nothing of it reaches the server", () =>
    Effect.gen(function*() {
      const { batch, bridge, server } = yield* session()
      for (const id of [8, 9]) Told.request(bridge, id)
      const { response } = yield* Effect.flip(batch(...calls(1), note, ...calls(2)))
      assert.deepStrictEqual([response.status, server.heard], [429, [8, 9]])
      assert.include(errorOf(yield* messagesOf(response), 1), "Too many requests")
      const ended = yield* session(() => new UnknownSession())
      assert.strictEqual((yield* Effect.flip(ended.batch(note, ...calls(1)))).response.status, 404)
    }))
})

describe("a batch of what has no answer", () => {
  it.live("leases the session until the process has read it, so that the session is not idle meanwhile", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void>()
      let leases = 0
      const lease = (bridge: Bridge) =>
        Effect.acquireRelease(Effect.sync(() => (leases++, bridge)), () => Effect.sync(() => leases--))
      const { batch, server } = yield* session(lease, behind(gate))
      const sending = yield* Effect.forkChild(Effect.scoped(batch(note, note)), { startImmediately: true })
      assert.deepStrictEqual([leases, server.heard.length], [2, 0])
      yield* Deferred.succeed(gate, undefined)
      assert.strictEqual((yield* Fiber.join(sending)).status, 202)
      assert.deepStrictEqual([leases, server.heard.length], [0, 2])
    }))
})

describe("a batch whose client goes", () => {
  const until = (condition: () => boolean) =>
    Effect.repeat(Effect.sync(condition), { until: (met) => met, schedule: Schedule.spaced("1 milli") })

  /** What the server says next reaches who listens, and is not kept for the batch. */
  const isHeard = Effect.fnUntraced(function*({ bridge, server }: Effect.Success<ReturnType<typeof session>>) {
    for (const id of [1, 2]) server.progress(id)(1)
    server.say({ method: "notifications/message", params: {} })
    const reader = Option.getOrThrow(yield* bridge.listen(undefined))
    return (yield* reader.take).length === 3
  })

  it.live("before its answers are read leaves nothing to them: what the server then says goes to the GET stream", () =>
    Effect.gen(function*() {
      const made = yield* session()
      const scope = yield* Scope.make()
      const response = yield* Scope.provide(made.batch(...calls(1, 2)), scope)
      assert.strictEqual(response.status, 200)
      yield* Scope.close(scope, Exit.void)
      assert.isTrue(yield* isHeard(made))
    }))

  it.live("while its answers are waited for leaves nothing to them either", () =>
    Effect.gen(function*() {
      const made = yield* session()
      const request = Effect.scoped(Effect.flatMap(made.batch(...calls(1, 2)), messagesOf))
      const reading = yield* Effect.forkChild(request, { startImmediately: true })
      yield* until(() => made.server.heard.length === 2)
      yield* Fiber.interrupt(reading)
      assert.isTrue(yield* isHeard(made))
    }))

  it.live("once an answer has become a stream leaves that to who resumes it", () =>
    Effect.gen(function*() {
      const { batch, bridge, server } = yield* session()
      const request = Effect.scoped(Effect.flatMap(batch(...calls(1)), messagesOf))
      const reading = yield* Effect.forkChild(request, { startImmediately: true })
      server.progress(1)(1)
      yield* until(() => bridge.activity().streams === 1)
      yield* Fiber.interrupt(reading)
      server.progress(1)(2)
      const { start } = Option.getOrThrow(yield* bridge.listen(undefined))
      const resumed = Option.getOrThrow(yield* bridge.listen(start.replace(/-.*/, "-1-1")))
      assert.lengthOf(yield* resumed.take, 1)
    }))

  it.live("while a part of it waits has sent it whole all the same, and its calls are abandoned", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void>()
      const made = yield* session(undefined, behind(gate))
      const request = Effect.scoped(made.batch(...calls(1), note, ...calls(2)))
      const sending = yield* Effect.forkChild(request, { startImmediately: true })
      yield* Fiber.interrupt(sending)
      assert.deepStrictEqual(made.server.heard, [])
      yield* Deferred.succeed(gate, undefined)
      yield* until(() => made.server.heard.length === 3)
      assert.deepStrictEqual(made.server.heard, [1, "notifications/initialized", 2])
      assert.isTrue(yield* isHeard(made))
    }))
})
