/** Where one of several replicas has asks carried out, on the engine itself. The test tells the database when to fail. */
import { assert, describe, it } from "@effect/vitest"
import { Clock, Context, Deferred, Duration, Effect, Exit, Fiber, Layer, Option, Scope } from "effect"
import {
  MessageStorage,
  Runner,
  RunnerAddress,
  RunnerHealth,
  Runners,
  RunnerStorage,
  ShardId,
  Sharding,
  ShardingConfig
} from "effect/cluster"
import { RpcSerialization } from "effect/rpc"
import { TestClock } from "effect/testing"
import * as ClusterPlacement from "../../src/gateway/cluster/ClusterPlacement.ts"
import * as Hosting from "../../src/gateway/cluster/Hosting.ts"
import * as Membership from "../../src/gateway/cluster/Membership.ts"
import * as ReplicaName from "../../src/gateway/cluster/ReplicaName.ts"
import { nothing } from "../../src/gateway/conversation/Exchange.ts"
import * as JsonRpc from "../../src/gateway/protocol/JsonRpc.ts"
import type { Ask } from "../../src/gateway/sessions/Ask.ts"
import type * as Placement from "../../src/gateway/sessions/Placement.ts"
import * as RunnerDatabase from "../kit/cluster/runnerDatabase.ts"

const address = RunnerAddress.make("127.0.0.1", 1)
/** Shards per group. Fewer than the default 300, because every shard that is not released is retried each second, which is slow. */
const shardsPerGroup = 30

/** The only replica there is. */
const make = Effect.fnUntraced(function*(movingTimeout: Duration.Duration) {
  const { calls, state, storage } = yield* RunnerDatabase.make([[
    new Runner.Runner({ address, groups: ["default"], weight: 1 }),
    true
  ]])
  const config = ShardingConfig.layer({
    runnerAddress: Option.some(address),
    shardsPerGroup,
    shardLockExpiration: 35_000,
    shardLockRefreshInterval: 10_000,
    refreshAssignmentsInterval: 2000
  })
  const membership = Membership.layerOver.pipe(Layer.provide(Layer.succeed(RunnerStorage.RunnerStorage, storage)))
  const services = yield* Layer.build(Sharding.layer.pipe(
    Layer.provide([Runners.layerNoop, RunnerHealth.layerNoop]),
    Layer.provide(MessageStorage.layerNoop),
    Layer.provideMerge(membership),
    Layer.provideMerge(config)
  ))
  const known = Context.get(services, Membership.Membership)
  const hosting = new Hosting.Hosting(ReplicaName.of(address), known, yield* Effect.scope)
  const placement = yield* Effect.provideContext(
    ClusterPlacement.make({
      hosting,
      key: Buffer.alloc(32),
      leaveDelay: Duration.zero,
      movingTimeout,
      disengage: Effect.void
    }),
    Context.merge(services, yield* Layer.build(RpcSerialization.layerSchemaBinary()))
  )
  const carried: Array<Ask> = []
  const ended: Array<string> = []
  const vacated: Array<{ readonly id: string; readonly mayOccupy: boolean }> = []
  yield* placement.serve({
    carryOut: () => Effect.die("no other replica asks"),
    sessions: Effect.succeed([]),
    endNumber: () => Effect.succeed(false),
    endPinned: Effect.sync(() => ended.push("pinned")),
    vacate: (id) => Effect.sync(() => vacated.push({ id, mayOccupy: placement.mayOccupy(id) }))
  })
  yield* TestClock.adjust("10 seconds")
  return { calls, carried, ended, vacated, name: ReplicaName.of(address), placement, state }
})

type Replica = Effect.Success<ReturnType<typeof make>>

/** It ends in its time, and the clock has to go on meanwhile. */
const withReplica = <E>(test: (replica: Replica) => Effect.Effect<void, E>, movingTimeout = Duration.seconds(30)) =>
  Effect.gen(function*() {
    const scope = yield* Scope.make()
    const replica = yield* Scope.provide(make(movingTimeout), scope)
    yield* Effect.ensuring(
      test(replica),
      Effect.gen(function*() {
        replica.state.mood = "well"
        const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void))
        yield* TestClock.adjust("2 minutes")
        yield* Fiber.join(closing)
      })
    )
  })

const id = "00000000-0000-4000-8000-000000000000"

const send: Ask = { _tag: "Send", session: id, messages: [JsonRpc.request(7, "ping", {})] }
const carriedOf = (ask: Ask): Placement.Carried => ({
  backend: "a",
  principal: { id: "" },
  known: false,
  opens: undefined,
  ask
})
const done = { reply: Effect.succeed(nothing) }

/** Has something movable carried out. Returns its refusal, if it is refused. */
const ask = ({ carried, placement }: Replica, ask: Ask = send) =>
  placement.at(
    { _tag: "Shared", id },
    () => carriedOf(ask),
    Effect.sync(() => {
      carried.push(ask)
      return done
    })
  ).pipe(
    Effect.as(undefined),
    Effect.catch(Effect.succeed),
    Effect.scoped
  )

describe("movable sessions during an outage of the database", () => {
  it.effect("a request is carried out while the locks are safe", () =>
    withReplica(Effect.fnUntraced(function*(replica) {
      const { carried, state } = replica
      state.mood = "away"
      yield* TestClock.adjust("15 seconds")
      const asking = yield* Effect.forkChild(ask(replica))
      yield* TestClock.adjust("1 second")
      assert.isUndefined(yield* Fiber.join(asking))
      assert.deepStrictEqual(carried, [send])
    })))

  it.effect("a request is refused within seconds once the locks are not safe, and is carried out after the outage", () =>
    withReplica(Effect.fnUntraced(function*(replica) {
      const { carried, state } = replica
      state.mood = "away"
      yield* TestClock.adjust("60 seconds")
      const asking = yield* Effect.forkChild(ask(replica))
      yield* TestClock.adjust("7 seconds")
      const refused = yield* Fiber.join(asking)
      assert.deepStrictEqual([refused?.reason, refused?.retryAfter, refused?.error.id], ["unavailable", 10, 7])
      assert.match(
        refused?.error.text ?? "",
        /This session cannot be served .*: the replicas' database has not answered for 6\d seconds\. Try again in 10 sec/
      )
      assert.deepStrictEqual(carried, [])

      const waiting = yield* Effect.forkChild(ask(replica))
      yield* TestClock.adjust("2 seconds")
      state.mood = "well"
      yield* TestClock.adjust("15 seconds")
      assert.isUndefined(yield* Fiber.join(waiting))
      assert.deepStrictEqual(carried, [send])
    })))

  it.effect("a request waits through an outage that is shorter than a move may take, and counts as forwarded meanwhile", () =>
    withReplica(
      Effect.fnUntraced(function*(replica) {
        const { carried, placement, state } = replica
        state.mood = "away"
        yield* TestClock.adjust("36 seconds")
        const waiting = yield* Effect.forkChild(ask(replica))
        yield* TestClock.adjust("10 seconds")
        assert.isUndefined(waiting.pollUnsafe())
        assert.strictEqual(placement.forwarded(), 1)
        state.mood = "well"
        yield* TestClock.adjust("15 seconds")
        assert.isUndefined(yield* Fiber.join(waiting))
        assert.strictEqual(placement.forwarded(), 0)
        assert.deepStrictEqual(carried, [send])
      }),
      Duration.minutes(1)
    ))
})

describe("shared ids that leave this replica", () => {
  /** One that holds the id until it is let go. */
  const asking = Effect.fnUntraced(function*(
    { placement }: Replica,
    letGo: Deferred.Deferred<void>,
    ask: Ask = send
  ) {
    const asking = yield* Effect.forkChild(Effect.scoped(
      placement.at(
        { _tag: "Shared", id },
        () => carriedOf(ask),
        Effect.as(Deferred.await(letGo), done)
      )
    ))
    yield* TestClock.adjust("1 second")
    return asking
  })

  it.effect("a vacated id may not be occupied until its last request has ended", () =>
    withReplica(Effect.fnUntraced(function*(replica) {
      const { placement, state, vacated } = replica
      const letGo = yield* Deferred.make<void>()
      const asked = yield* asking(replica, letGo)
      assert.isTrue(placement.mayOccupy(id))
      state.mood = "away"
      yield* TestClock.adjust("2 minutes")
      assert.deepStrictEqual(vacated, [{ id, mayOccupy: false }])
      assert.isFalse(placement.mayOccupy(id))
      assert.isTrue(placement.mayOccupy("00000000-0000-4000-8000-000000000001"))
      yield* Deferred.succeed(letGo, undefined)
      yield* Fiber.join(asked)
      assert.isTrue(placement.mayOccupy(id))
    })))

  it.effect("an id is vacated when its call has ended, if the call ends in time", () =>
    withReplica(Effect.fnUntraced(function*(replica) {
      const { placement, state, vacated } = replica
      const letGo = yield* Deferred.make<void>()
      const asked = yield* asking(replica, letGo)
      state.mood = "away"
      yield* TestClock.adjust("24 seconds")
      assert.deepStrictEqual(vacated, [])
      assert.isTrue(placement.mayOccupy(id))
      yield* Deferred.succeed(letGo, undefined)
      yield* Fiber.join(asked)
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(vacated, [{ id, mayOccupy: false }])
    })))

  it.effect("an id whose requests only listen is vacated at once, and may not be occupied until they have ended", () =>
    withReplica(Effect.fnUntraced(function*(replica) {
      const { placement, state, vacated } = replica
      const secondsUntilVacated = Effect.fnUntraced(function*(ask: Ask) {
        const before = vacated.length
        const letGo = yield* Deferred.make<void>()
        const asked = yield* asking(replica, letGo, ask)
        // The database has given all to others.
        for (let shard = 1; shard <= shardsPerGroup; shard++) state.lost.add(ShardId.make("default", shard).toString())
        let seconds = 0
        for (; vacated.length === before && seconds < 60; seconds++) yield* TestClock.adjust("1 second")
        assert.isFalse(placement.mayOccupy(id))
        yield* Deferred.succeed(letGo, undefined)
        yield* Fiber.join(asked)
        state.lost.clear()
        yield* TestClock.adjust("1 minute")
        assert.isTrue(placement.mayOccupy(id))
        return seconds
      })
      // It is noticed within the 10 seconds after which the locks are asked for again, and calls get 15 seconds.
      assert.isAbove(yield* secondsUntilVacated(send), 14)
      const listening: ReadonlyArray<Ask> = [
        { _tag: "Listen", session: id, from: undefined },
        { _tag: "Call", request: JsonRpc.request(1, "subscriptions/listen", {}) }
      ]
      for (const ask of listening) assert.isBelow(yield* secondsUntilVacated(ask), 12)
    })))

  it.effect("a replica that hands over vacates an id at once, because it has waited for the calls before", () =>
    withReplica(Effect.fnUntraced(function*(replica) {
      const { placement, state, vacated } = replica
      const letGo = yield* Deferred.make<void>()
      const asked = yield* asking(replica, letGo)
      const leaving = yield* Effect.forkChild(placement.leave, { startImmediately: true })
      yield* TestClock.adjust("4 seconds")
      assert.isUndefined(leaving.pollUnsafe())
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(leaving)
      for (let shard = 1; shard <= shardsPerGroup; shard++) state.lost.add(ShardId.make("default", shard).toString())
      let seconds = 0
      for (; vacated.length === 0 && seconds < 60; seconds++) yield* TestClock.adjust("1 second")
      assert.isBelow(seconds, 12)
      yield* Deferred.succeed(letGo, undefined)
      yield* Fiber.join(asked)
    })))

  it.effect("an id that has come back may be occupied, though a request from before still runs", () =>
    withReplica(Effect.fnUntraced(function*(replica) {
      const { placement, state } = replica
      const letGo = yield* Deferred.make<void>()
      const first = yield* asking(replica, letGo)
      state.mood = "away"
      yield* TestClock.adjust("2 minutes")
      assert.isFalse(placement.mayOccupy(id))
      state.mood = "well"
      yield* TestClock.adjust("1 minute")
      const second = yield* asking(replica, letGo)
      assert.isTrue(placement.mayOccupy(id))
      yield* Deferred.succeed(letGo, undefined)
      for (const each of [first, second]) assert.strictEqual(yield* Fiber.join(each), done)
    })))
})

describe("shards of a replica that leaves", () => {
  it.effect("a replica that leaves releases all its shards, except one whose process has not ended", () =>
    Effect.gen(function*() {
      const givenBack = Effect.fnUntraced(function*(isEnded: boolean) {
        const [scope, process] = [yield* Scope.make(), yield* Scope.make()]
        const { calls, placement } = yield* Scope.provide(make(Duration.seconds(30)), scope)
        const asking = yield* Effect.forkChild(Effect.scoped(placement.at(
          { _tag: "Shared", id },
          () => carriedOf(send),
          Effect.as(Scope.provide(placement.occupy(id), process), done)
        )))
        yield* TestClock.adjust("1 second")
        assert.strictEqual(yield* Fiber.join(asking), done)
        if (isEnded) yield* Scope.close(process, Exit.void)
        const before = calls.length
        const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void))
        yield* TestClock.adjust("2 minutes")
        yield* Fiber.join(closing)
        yield* Scope.close(process, Exit.void)
        const released = calls.slice(before).filter((call) => call.startsWith("release"))
        return [released.filter((call) => call === "release").length, released.includes("releaseAll")]
      })
      assert.deepStrictEqual(yield* givenBack(true), [shardsPerGroup, true])
      assert.deepStrictEqual(yield* givenBack(false), [shardsPerGroup - 1, false])
    }))
})

describe("pinned sessions", () => {
  const place = ({ name, placement }: Replica) => placement.ofSession(`${name}-${id}`)

  it.effect("a pinned session survives an outage of the database of any length", () =>
    withReplica(Effect.fnUntraced(function*(replica) {
      for (const mood of ["away", "silent"] as const) {
        replica.state.mood = mood
        for (let seconds = 0; seconds < 120; seconds++) {
          yield* TestClock.adjust("1 second")
          assert.isTrue(Option.isSome(place(replica)), `${mood} for ${seconds} seconds`)
        }
        replica.state.mood = "well"
        yield* TestClock.adjust("40 seconds")
        assert.isTrue(Option.isSome(place(replica)))
      }
      assert.deepStrictEqual(replica.ended, [])
    })))

  it.effect("a replica that wakes after the others gave it up refuses its pinned sessions at once, and ends them", () =>
    Effect.gen(function*() {
      const clock = yield* Clock.Clock
      const asleep = { millis: 0 }
      const test = withReplica(Effect.fnUntraced(function*(replica) {
        // Its locks are still safe, so the others have not given it up.
        asleep.millis += 20_000
        assert.isTrue(Option.isSome(place(replica)))
        yield* TestClock.adjust("12 seconds")
        assert.deepStrictEqual(replica.ended, [])
        asleep.millis += 36_000
        assert.isTrue(Option.isNone(place(replica)))
        yield* TestClock.adjust("1 second")
        assert.deepStrictEqual(replica.ended, ["pinned"])
        assert.isTrue(Option.isSome(place(replica)))
        yield* TestClock.adjust("1 minute")
        assert.deepStrictEqual(replica.ended, ["pinned"])
      }))
      yield* Effect.provideService(test, Clock.Clock, {
        ...clock,
        currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + asleep.millis,
        monotonicTimeNanosUnsafe: () => clock.currentTimeNanosUnsafe()
      })
    }))
})

describe("asks for a replica that has gone", () => {
  const gone = "r0123456789"

  it.effect("an ask for a gone replica is refused by its kind", () =>
    withReplica(Effect.fnUntraced(function*({ placement }) {
      const request = JsonRpc.request(7, "tools/call", {})
      const refusalOf = (ask: Ask) =>
        Effect.map(
          Effect.flip(Effect.scoped(
            placement.at(placement.ofReplica(gone), () => carriedOf(ask), Effect.die("not here"))
          )),
          ({ error, reason, retryAfter }) => [reason, retryAfter, error.id, JsonRpc.codeOf(error.error)]
        )
      assert.deepStrictEqual(yield* refusalOf(send), ["unknown", undefined, 7, JsonRpc.codes.sessionNotFound])
      assert.deepStrictEqual(yield* refusalOf({ _tag: "Open", message: request }), [
        "unavailable",
        10,
        7,
        JsonRpc.codes.gateway
      ])
      assert.deepStrictEqual(yield* refusalOf({ _tag: "Call", request }), [
        "invalid",
        undefined,
        7,
        JsonRpc.codes.invalidParams
      ])
      assert.strictEqual(placement.forwarded(), 0)
    })))

  it.effect("an ask for an unlisted replica is refused for now while the database does not answer", () =>
    withReplica(Effect.fnUntraced(function*({ placement, state }) {
      state.mood = "away"
      yield* TestClock.adjust("5 seconds")
      const asking = yield* Effect.forkChild(Effect.scoped(Effect.flip(
        placement.at(placement.ofReplica(gone), () => carriedOf(send), Effect.die("not here"))
      )))
      yield* TestClock.adjust("10 seconds")
      const { error, reason, retryAfter } = yield* Fiber.join(asking)
      assert.deepStrictEqual([reason, retryAfter, error.id], ["unavailable", 10, 7])
      assert.include(error.text, "cannot tell whether this session still exists")
    })))
})
