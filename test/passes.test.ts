/** Passes over all sessions (sweep, keepAlive, invalidateAll), and places that are handed over. */
import { assert, describe, it } from "@effect/vitest"
import { Clock, Deferred, Effect, Exit, Fiber, HashMap, Metric, Ref, Scheduler, Scope } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import * as Backend from "./kit/pool/backend.ts"
import { fork } from "./kit/pool/fork.ts"

describe("a pass over many sessions", () => {
  it.effect("gives way to other fibers once in some hundreds, not at each", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup: (key: number) => Effect.succeed(key) })
      for (let key = 0; key < 4096; key++) yield* SessionPool.set(pool, key, key)
      let turns = 0
      const other = yield* fork(Effect.forever(Effect.andThen(Effect.sync(() => turns++), Effect.yieldNow)))
      const before = turns
      assert.strictEqual(yield* SessionPool.sweep(pool), 0)
      const during = turns - before
      yield* Fiber.interrupt(other)
      assert.isAtLeast(during, 8)
      assert.isAtMost(during, 40)
    }), 30_000)

  it.effect("gives way to the event loop also where the pool was made by runSync, whose own yields do not", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const make = SessionPool.make({
        lookup: (key: number) => Effect.succeed(key),
        idleTimeToLive: "1 minute",
        cleanupInterval: "1 hour"
      })
      const pool = Effect.runSyncWith(yield* Effect.context<never>())(Scope.provide(make, scope))
      for (let key = 0; key < 512; key++) yield* SessionPool.set(pool, key, key)
      yield* TestClock.adjust("1 hour")
      let turns = 0
      for (; (yield* SessionPool.size(pool)) > 0; turns++) yield* Effect.yieldNow
      assert.isAtLeast(turns, 32)
      yield* Scope.close(scope, Exit.void)
    }))

  it.effect("that finds all of them expired gives way once in a few", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup: (key: number) => Effect.succeed(key), cleanupInterval: Infinity })
      for (let key = 0; key < 512; key++) yield* SessionPool.set(pool, key, key)
      yield* TestClock.adjust("1 hour")
      let turns = 0
      const other = yield* fork(Effect.forever(Effect.andThen(Effect.sync(() => turns++), Effect.yieldNow)))
      const before = turns
      assert.strictEqual(yield* SessionPool.sweep(pool), 512)
      const during = turns - before
      yield* Fiber.interrupt(other)
      assert.isAtLeast(during, 32)
      assert.isAtMost(during, 256)
    }))
})

describe("a lookup, validation or finalizer that yields", () => {
  it.effect("gives way to the event loop also where the pool was made by runSync", () =>
    Effect.gen(function*() {
      const yields = { lookup: 0, validate: 0, close: 0 }
      const yieldAs = (name: keyof typeof yields) =>
        Effect.repeat(Effect.andThen(Effect.sync(() => yields[name]++), Effect.yieldNow), { times: 99 })
      const scope = yield* Scope.make()
      const make = SessionPool.make({
        lookup: (key: string) =>
          Effect.acquireRelease(Effect.as(yieldAs("lookup"), key), () => yieldAs("close"), { interruptible: true }),
        validate: () => Effect.as(yieldAs("validate"), true),
        validateAfter: 0
      })
      const pool = Effect.runSyncWith(yield* Effect.context<never>())(Scope.provide(make, scope))
      const during = (name: keyof typeof yields, effect: Effect.Effect<unknown, unknown>) =>
        Effect.gen(function*() {
          const running = yield* fork(effect)
          yield* Effect.yieldNow
          assert.isBelow(yields[name], 100)
          yield* Fiber.join(running)
          while (yields[name] < 100) yield* Effect.yieldNow
        })
      yield* during("lookup", SessionPool.use(pool, "a", Effect.succeed))
      yield* TestClock.adjust(1)
      yield* during("validate", SessionPool.use(pool, "a", Effect.succeed))
      yield* during("close", SessionPool.invalidate(pool, "a"))
      yield* Scope.close(scope, Exit.void)
    }))
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

describe("a validation whose clean-up hangs", () => {
  const make = Effect.gen(function*() {
    const scope = yield* Scope.make()
    const asked: Array<string> = []
    const pool = yield* SessionPool.make({
      lookup: (key: string) => Effect.succeed(key),
      validate: (_, key) =>
        Effect.suspend(() => {
          asked.push(key)
          return key === "bad" ? Effect.onInterrupt(Effect.never, () => Effect.never) : Effect.succeed(true)
        }),
      lookupTimeout: "1 second",
      keepAlive: "10 seconds",
      validateAfter: "1 minute",
      closeTimeout: "30 seconds"
    }).pipe(Scope.provide(scope))
    for (const key of ["bad", "good"]) yield* SessionPool.use(pool, key, () => Effect.void)
    return { pool, scope, asked }
  })

  it.effect("is over after lookupTimeout for keepAlive, which goes on with the others", () =>
    Effect.gen(function*() {
      const { asked, pool, scope } = yield* make
      yield* TestClock.adjust("35 seconds")
      assert.deepStrictEqual(asked.toSorted(), ["bad", "good", "good", "good"])
      // Nothing closes the connection under the check, until its clean-up has had as long as a finalizer.
      const { idle, retired } = yield* SessionPool.stats(pool)
      assert.deepStrictEqual([idle, retired], [1, 1])
      yield* TestClock.adjust("6 seconds")
      assert.strictEqual((yield* SessionPool.stats(pool)).closes.Invalid, 1)
      const ending = yield* fork(Scope.close(scope, Exit.void))
      yield* TestClock.adjust("30 seconds")
      yield* Fiber.join(ending)
    }))

  it.effect("is over after lookupTimeout for a caller, who is told when that of the session launched instead hangs too", () =>
    Effect.gen(function*() {
      const { pool, scope } = yield* make
      yield* TestClock.adjust("9 seconds")
      yield* SessionPool.touch(pool, "bad")
      yield* SessionPool.invalidate(pool, "good")
      yield* TestClock.adjust("1 second")
      const using = yield* fork(Effect.flip(SessionPool.use(pool, "bad", () => Effect.void)))
      yield* TestClock.adjust("2 seconds")
      assert.strictEqual((yield* Fiber.join(using))._tag, "ValidationFailed")
      const ending = yield* fork(Scope.close(scope, Exit.void))
      yield* TestClock.adjust("30 seconds")
      yield* Fiber.join(ending)
    }))

  it.effect("keeps its connection open until that is over, also where the answer comes too late", () =>
    Effect.gen(function*() {
      for (const cleanUp of ["0 millis", "2 seconds"] as const) {
        const order: Array<string> = []
        const pool = yield* SessionPool.make({
          lookup: (key: string) =>
            Effect.acquireRelease(Effect.succeed(key), () => Effect.sync(() => order.push("closed"))),
          validate: () =>
            Effect.onInterrupt(
              Effect.never,
              () => Effect.andThen(Effect.sleep(cleanUp), Effect.sync(() => order.push("checked")))
            ),
          validateAfter: 0,
          lookupTimeout: "1 second"
        })
        yield* SessionPool.use(pool, "a", () => Effect.void)
        yield* TestClock.adjust(1)
        const using = yield* fork(Effect.flip(SessionPool.use(pool, "a", () => Effect.void)))
        yield* TestClock.adjust("2 seconds")
        assert.strictEqual((yield* Fiber.join(using))._tag, "ValidationFailed")
        yield* TestClock.adjust("4 seconds")
        assert.deepStrictEqual(order, ["checked", "closed", "checked", "closed"])
        const { active, closes, retired } = yield* SessionPool.stats(pool)
        assert.deepStrictEqual([active, closes.Invalid, retired], [0, 2, 0])
      }
    }))

  it.effect("holds the end of the pool up for closeTimeout at most, and answers who waits for it at once", () =>
    Effect.gen(function*() {
      const { pool, scope } = yield* make
      yield* TestClock.adjust("10 seconds")
      const using = yield* fork(Effect.flip(SessionPool.use(pool, "bad", () => Effect.void)))
      const ending = yield* fork(Scope.close(scope, Exit.void))
      // Not only when the check has had its time.
      yield* TestClock.adjust(0)
      const answer = using.pollUnsafe()
      assert.isTrue(answer !== undefined && Exit.isSuccess(answer) && answer.value._tag === "PoolClosed")
      yield* TestClock.adjust("29 seconds")
      assert.isUndefined(ending.pollUnsafe())
      yield* TestClock.adjust("2 seconds")
      yield* Fiber.join(ending)
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

  it.effect("that a sweep, once its time is over, or invalidateAll forgets is no session retired", () =>
    Effect.gen(function*() {
      const swept = yield* make
      const remembered = Effect.map(Ref.get(swept.pool.state), ({ slots }) => HashMap.size(slots))
      yield* TestClock.adjust(59_999)
      assert.deepStrictEqual([yield* SessionPool.sweep(swept), yield* remembered], [0, 1])
      yield* TestClock.adjust(1)
      assert.deepStrictEqual([yield* SessionPool.sweep(swept), yield* remembered], [0, 0])
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
  it.effect("asks the predicate of a session as it is when its turn comes", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup: (key: number) => Effect.succeed(key) })
      for (let key = 0; key < 2000; key++) yield* SessionPool.use(pool, key, () => Effect.void)
      const ending = yield* Effect.forkChild(
        SessionPool.invalidateAll(pool, ({ state }) => state === "idle"),
        { startImmediately: true }
      )
      const [key = -1] = (yield* SessionPool.keys(pool)).slice(-1)
      const held = yield* SessionPool.get(pool, key)
      assert.strictEqual(yield* Fiber.join(ending), 1999)
      assert.deepStrictEqual([held, yield* SessionPool.keys(pool)], [key, [key]])
    }))

  it.effect("asks the predicate once of each session, and retires those that satisfy it by then", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup: (key: number) => Effect.succeed(key) })
      for (let key = 0; key < 2000; key++) yield* SessionPool.set(pool, key, key)
      let asked = 0
      // In use when the pass begins, and not any more at its first pause.
      const last = (yield* SessionPool.keys(pool)).at(-1) ?? 0
      const user = yield* fork(SessionPool.use(pool, last, () => Effect.yieldNow))
      const idle = ({ state }: SessionPool.Info<number>) => {
        asked++
        return state === "idle"
      }
      assert.strictEqual(yield* SessionPool.invalidateAll(pool, idle), 2000)
      assert.strictEqual(asked, 2000)
      yield* Fiber.join(user)
      assert.strictEqual(yield* SessionPool.size(pool), 0)
    }))

  it.effect("asks again where a session has changed since it was asked of, and retires none that does not satisfy it", () =>
    Effect.gen(function*() {
      let asked = 0
      for (let budget = 3; budget <= 40; budget++) {
        let launched = 0
        const pool = yield* SessionPool.make({ lookup: (_: number) => Effect.sync(() => ++launched) })
        yield* SessionPool.set(pool, 1, 1)
        const gate = yield* Deferred.make<void>()
        const all = budget % 2 === 0
        const pass = yield* SessionPool.invalidateAll(pool, ({ leases }) => {
          asked++
          return all || leases === 0
        }).pipe(Effect.provideService(Scheduler.MaxOpsBeforeYield, budget), fork)
        // Wherever the pass has paused, also between the question and the step, somebody else takes the session.
        const user = yield* fork(SessionPool.use(pool, 1, () => Deferred.await(gate)))
        const retired = yield* Fiber.join(pass)
        // Either it was retired before, and opened anew, or it is in use and stays; unless it is to go in any case.
        if (all) assert.strictEqual(retired, 1)
        else assert.strictEqual(launched, retired)
        yield* Deferred.succeed(gate, undefined)
        yield* Fiber.join(user)
      }
      // At one of 38 budgets at least the session changed between question and step.
      assert.isAbove(asked, 38)
    }))

  it.effect("retires launches that somebody has joined since it began", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void>()
      const pool = yield* SessionPool.make({
        lookup: (key: number) => key < 600 ? Effect.succeed(key) : Effect.as(Deferred.await(gate), key)
      })
      for (let key = 0; key < 600; key++) yield* SessionPool.use(pool, key, () => Effect.void)
      const joining = Effect.forEach(
        Array.from({ length: 20 }, (_, i) => 600 + i),
        (key) => fork(SessionPool.use(pool, key, () => Effect.void))
      )
      const first = yield* joining
      const pass = yield* fork(SessionPool.invalidateAll(pool))
      const second = yield* joining
      assert.strictEqual(yield* Fiber.join(pass), 620)
      yield* Deferred.succeed(gate, undefined)
      for (const each of [...first, ...second]) yield* Fiber.join(each)
      assert.strictEqual((yield* SessionPool.stats(pool)).closes.Invalidated, 620)
    }))

  it.effect("may have a predicate that calls the pool: every connection is closed once, and nothing comes back", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ lookup: backend.open })
      for (const key of ["a", "b", "c"]) yield* SessionPool.use(pool, key, () => Effect.void)
      const adopted: Array<string> = []
      const closed: Array<string> = []
      const retired = yield* SessionPool.invalidateAll(pool, ({ key }) => {
        const name = `from ${key}`
        adopted.push(name)
        const finalizer = Effect.sync(() => closed.push(name))
        Effect.runSync(SessionPool.set(pool, "new", { key: "new", id: 100 + adopted.length }, finalizer))
        Effect.runSync(SessionPool.invalidate(pool, "b"))
        Effect.runSync(SessionPool.touch(pool, key))
        return key !== "c"
      })
      // `a`: the predicate itself has ended `b`, and does not match `c`.
      assert.strictEqual(retired, 1)
      assert.deepStrictEqual((yield* SessionPool.keys(pool)).toSorted(), ["c", "new"])
      assert.deepStrictEqual(closed, adopted.slice(0, -1))
      yield* SessionPool.invalidateAll(pool)
      assert.deepStrictEqual(closed, adopted)
      backend.assertAllClosedOnce()
    }))

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
