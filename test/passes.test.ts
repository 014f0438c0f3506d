/** Passes over all sessions (sweep, keepAlive, invalidateAll), and places that are handed over. */
import { assert, describe, it } from "@effect/vitest"
import { Clock, Deferred, Effect, Exit, Fiber, Metric, Scope } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import * as Backend from "./kit/pool/backend.ts"

const fork = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })

describe("a pass over many sessions", () => {
  it.effect("gives way to other fibers once in a thousand, not at each", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup: (key: number) => Effect.succeed(key) })
      for (let key = 0; key < 4096; key++) yield* SessionPool.set(pool, key, key)
      let turns = 0
      const other = yield* fork(Effect.forever(Effect.andThen(Effect.sync(() => turns++), Effect.yieldNow)))
      const before = turns
      assert.strictEqual(yield* SessionPool.sweep(pool), 0)
      const during = turns - before
      yield* Fiber.interrupt(other)
      assert.isAtLeast(during, 1)
      assert.isAtMost(during, 40)
    }), 30_000)
})

describe("keepAlive", () => {
  it.effect("keeps its rhythm from the start of the pool, whatever a pass takes", () =>
    Effect.gen(function*() {
      yield* TestClock.adjust("1234 millis")
      const times: Array<number> = []
      const pool = yield* SessionPool.make({
        lookup: (key: string) => Effect.succeed(key),
        keepAlive: "10 seconds",
        validateAfter: Infinity,
        validate: () =>
          Effect.flatMap(Clock.currentTimeMillis, (now) => {
            times.push(now)
            return Effect.delay(Effect.succeed(true), "3 seconds")
          })
      })
      yield* Effect.scoped(SessionPool.get(pool, "a"))
      yield* TestClock.adjust("35 seconds")
      assert.deepStrictEqual(times, [11_234, 21_234, 31_234])
    }))

  it.effect("goes on when a session that it was about to validate is gone", () =>
    Effect.gen(function*() {
      const asked: Array<number> = []
      const pool = yield* SessionPool.make({
        lookup: (key: number) => Effect.succeed(key),
        keepAlive: "10 seconds",
        validateAfter: Infinity,
        validate: (key) =>
          Effect.suspend(() => {
            asked.push(key)
            return Effect.delay(Effect.succeed(true), "1 second")
          })
      })
      for (let key = 0; key < 8; key++) yield* Effect.scoped(SessionPool.get(pool, key))
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual(asked.length, 4)
      const gone = Array.from({ length: 8 }, (_, key) => key).find((key) => !asked.includes(key)) ?? -1
      assert.isTrue(yield* SessionPool.invalidate(pool, gone))
      yield* TestClock.adjust("5 seconds")
      assert.strictEqual(asked.length, 7)
      assert.strictEqual(yield* SessionPool.size(pool), 7)
    }))
})

describe("a remembered failure", () => {
  const make = Effect.gen(function*() {
    const pool = yield* SessionPool.make({
      lookup: (_: string): Effect.Effect<string, string> => Effect.fail("refused"),
      failureTimeToLive: "1 minute"
    })
    yield* Effect.exit(Effect.scoped(SessionPool.get(pool, "a")))
    return pool
  })

  it.effect("that a sweep or invalidateAll forgets is no session retired", () =>
    Effect.gen(function*() {
      const swept = yield* make
      yield* TestClock.adjust("2 minutes")
      assert.strictEqual(yield* SessionPool.sweep(swept), 0)
      const invalidated = yield* make
      assert.strictEqual(yield* SessionPool.invalidateAll(invalidated), 0)
      assert.deepStrictEqual(
        yield* Effect.flip(Effect.scoped(SessionPool.get(invalidated, "a"))),
        "refused"
      )
      assert.strictEqual((yield* SessionPool.stats(invalidated)).launchFailures, 2)
    }))
})

describe("invalidateAll", () => {
  it.effect("retires what satisfied the predicate, not what came in its place meanwhile", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup: (_: string) => Effect.succeed("old") })
      yield* Effect.scoped(SessionPool.get(pool, "a"))
      const count = yield* SessionPool.invalidateAll(pool, () => {
        Effect.runSync(Effect.exit(SessionPool.set(pool, "a", "new")))
        return true
      })
      assert.strictEqual(count, 0)
      assert.strictEqual(yield* Effect.scoped(SessionPool.get(pool, "a")), "new")
    }))

  it.effect("with a predicate does not ask it about a launch, which goes on", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<string>()
      const pool = yield* SessionPool.make({ lookup: (_: string) => Deferred.await(gate) })
      const getting = yield* fork(Effect.scoped(SessionPool.get(pool, "a")))
      let asked = 0
      assert.strictEqual(yield* SessionPool.invalidateAll(pool, () => ++asked > 0), 0)
      assert.strictEqual(asked, 0)
      yield* Deferred.succeed(gate, "value")
      assert.strictEqual(yield* Fiber.join(getting), "value")
      assert.strictEqual(yield* SessionPool.size(pool), 1)
    }))
})

describe("a place that was handed to set", () => {
  it.effect("is taken by its connection: the next caller waits for another", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ capacity: 1, lookup: backend.open })
      const lease = yield* Scope.make()
      yield* Scope.provide(SessionPool.get(pool, "a"), lease)
      const setting = yield* fork(SessionPool.set(pool, "b", { key: "b", id: 99 }))
      yield* TestClock.adjust("1 second")
      yield* SessionPool.invalidate(pool, "a")
      yield* Scope.close(lease, Exit.void)
      yield* Fiber.join(setting)
      const holding = yield* Scope.make()
      assert.strictEqual((yield* Scope.provide(SessionPool.get(pool, "b"), holding)).id, 99)
      const waiting = yield* fork(Effect.scoped(SessionPool.get(pool, "c")))
      yield* TestClock.adjust("1 second")
      assert.strictEqual((yield* SessionPool.stats(pool)).waiting, 1)
      yield* Scope.close(holding, Exit.void)
      yield* Fiber.join(waiting)
    }))
})

describe("a service", () => {
  class Named extends SessionPool.Service<Named>()("app/Named", {
    lookup: (key: string) => Effect.succeed(key),
    name: "mine"
  }) {}
  class Unnamed extends SessionPool.Service<Unnamed>()("app/Unnamed", {
    lookup: (key: string) => Effect.succeed(key)
  }) {}

  it.effect("names its pool as the options say, else by its id", () =>
    Effect.gen(function*() {
      yield* Effect.provide(Named.use("a", Effect.succeed), Named.layer)
      yield* Effect.provide(Unnamed.use("a", Effect.succeed), Unnamed.layer)
      const metrics = (yield* Metric.snapshot).filter(({ id }) => id === "session_pool_launches_total")
      assert.sameMembers(metrics.map(({ attributes }) => (attributes as { pool: string }).pool), [
        "mine",
        "app/Unnamed"
      ])
    }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())))
})
