/** What a caller has when its wait is over: a place, a validated session, or a number that says why not. */
import { assert, describe, it } from "@effect/vitest"
import { ConfigProvider, Deferred, Effect, Exit, Fiber, Option, Scope } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"

const fork = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })

describe("acquireTimeout", () => {
  it.effect("bounds the wait for a place, not the launch that follows", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void>()
      const pool = yield* SessionPool.make({
        lookup: (key: string) => key === "b" ? Effect.as(Deferred.await(gate), key) : Effect.succeed(key),
        capacity: 1,
        acquireTimeout: "5 seconds"
      })
      const lease = yield* Scope.make()
      yield* Scope.provide(SessionPool.get(pool, "a"), lease)
      const waiting = yield* fork(Effect.scoped(SessionPool.get(pool, "b")))
      yield* TestClock.adjust("4 seconds")
      yield* Scope.close(lease, Exit.void)
      yield* TestClock.adjust("10 seconds")
      assert.isUndefined(waiting.pollUnsafe())
      yield* Deferred.succeed(gate, undefined)
      assert.strictEqual(yield* Fiber.join(waiting), "b")
    }))
})

describe("a session found valid", () => {
  it.effect("is leased by each who waited for the result, and in use until the last of them is done", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup: (key: string) => Effect.succeed(key),
        validateAfter: "1 second",
        validate: () => Effect.delay(Effect.succeed(true), "1 second")
      })
      yield* Effect.scoped(SessionPool.get(pool, "a"))
      yield* TestClock.adjust("10 seconds")
      const done = yield* Deferred.make<void>()
      for (let caller = 0; caller < 2; caller++) yield* fork(SessionPool.use(pool, "a", () => Deferred.await(done)))
      yield* TestClock.adjust("2 seconds")
      const leases = Effect.map(SessionPool.info(pool, "a"), Option.map((info) => info.leases))
      assert.deepStrictEqual(yield* leases, Option.some(2))
      yield* Deferred.succeed(done, undefined)
      yield* TestClock.adjust(0)
      assert.deepStrictEqual(yield* leases, Option.some(0))
    }))

  it.effect("in place of an invalid one is leased by its caller", () =>
    Effect.gen(function*() {
      let opened = 0
      const pool = yield* SessionPool.make({
        lookup: (_: string) => Effect.sync(() => ++opened),
        validateAfter: "1 second",
        validate: (id) => Effect.succeed(id > 1)
      })
      yield* Effect.scoped(SessionPool.get(pool, "a"))
      yield* TestClock.adjust("10 seconds")
      const leases = yield* SessionPool.use(pool, "a", (id) =>
        Effect.map(SessionPool.info(pool, "a"), Option.map((info) => [id, info.leases])))
      assert.deepStrictEqual(leases, Option.some([2, 1]))
    }))
})

describe("a session that replaces an invalid one", () => {
  const make = (gate: Deferred.Deferred<void>) =>
    Effect.gen(function*() {
      const asked: Array<number> = []
      let opened = 0
      const pool = yield* SessionPool.make({
        lookup: (_: string) =>
          Effect.suspend(() => ++opened === 1 ? Effect.succeed(1) : Effect.as(Deferred.await(gate), 2)),
        validateAfter: "1 second",
        validate: (id) => Effect.delay(Effect.sync(() => asked.push(id) > 0 && id > 1), "1 second")
      })
      yield* Effect.scoped(SessionPool.get(pool, "a"))
      yield* TestClock.adjust("10 seconds")
      return { asked, pool }
    })

  it.effect("is validated once for all who wait for it", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void>()
      const { asked, pool } = yield* make(gate)
      const first = yield* fork(Effect.scoped(SessionPool.get(pool, "a")))
      const second = yield* fork(Effect.scoped(SessionPool.get(pool, "a")))
      yield* TestClock.adjust("2 seconds")
      yield* Deferred.succeed(gate, undefined)
      yield* TestClock.adjust("2 seconds")
      assert.deepStrictEqual([yield* Fiber.join(first), yield* Fiber.join(second)], [2, 2])
      assert.deepStrictEqual(asked, [1, 2])
    }))

  it.effect("and is invalidated while it launches goes to who waits, as any does", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void>()
      const { asked, pool } = yield* make(gate)
      const getting = yield* fork(Effect.scoped(SessionPool.get(pool, "a")))
      yield* TestClock.adjust("2 seconds")
      assert.isTrue(yield* SessionPool.invalidate(pool, "a"))
      yield* Deferred.succeed(gate, undefined)
      assert.strictEqual(yield* Fiber.join(getting), 2)
      assert.deepStrictEqual(asked, [1])
    }))
})

describe("a set that waited too long", () => {
  it.effect("waits no more: the next place is not handed to it", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup: (key: string) => Effect.succeed(key),
        capacity: 1,
        acquireTimeout: "5 seconds"
      })
      const lease = yield* Scope.make()
      yield* Scope.provide(SessionPool.get(pool, "a"), lease)
      const setting = yield* fork(Effect.exit(SessionPool.set(pool, "b", "adopted")))
      yield* TestClock.adjust("6 seconds")
      assert.isTrue(Exit.isFailure(yield* Fiber.join(setting)))
      assert.strictEqual((yield* SessionPool.stats(pool)).waiting, 0)
      yield* Scope.close(lease, Exit.void)
      assert.strictEqual(yield* Effect.scoped(SessionPool.get(pool, "c")), "c")
    }))
})

describe("a refusal", () => {
  it.effect("of something that is no function says that it must be one", () =>
    Effect.gen(function*() {
      // What a caller without types may pass.
      const options = { lookup: Effect.succeed<string>, validate: true as unknown as () => Effect.Effect<boolean> }
      const exit = yield* Effect.exit(SessionPool.make(options))
      assert.include(Exit.isFailure(exit) ? String(exit.cause) : "", "validate is true; it must be a function")
    }))

  it.effect("of a negative time from the configuration says that it must not be", () =>
    Effect.gen(function*() {
      const provider = ConfigProvider.fromEnv({ env: { DRAIN_TIMEOUT: "-5 seconds" } })
      const error = yield* Effect.flip(
        Effect.provideService(SessionPool.config(), ConfigProvider.ConfigProvider, provider)
      )
      assert.include(String(error), "a duration that is not negative")
    }))
})
