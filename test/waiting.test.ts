/** What a caller has when its wait is over: a place, a validated session, or a number that says why not. */
import { assert, describe, it } from "@effect/vitest"
import type { Duration } from "effect"
import { ConfigProvider, Deferred, Effect, Exit, Fiber, Logger, Option, Result, Scheduler, Scope } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import { fork } from "./kit/pool/fork.ts"

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

describe("a place that is being closed", () => {
  /** Ten sessions in a full pool, of which one is closing: for so long. */
  const make = (closing: Duration.Input, options: { readonly acquireTimeout: Duration.Input }) =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup: (key: string) =>
          Effect.acquireRelease(Effect.succeed(key), () => key === "slow" ? Effect.sleep(closing) : Effect.void),
        capacity: 10,
        closeTimeout: "30 seconds",
        ...options
      })
      for (const key of ["slow", "b", "c", "d", "e", "f", "g", "h", "i", "j"]) {
        yield* SessionPool.use(pool, key, () => Effect.void)
        yield* TestClock.adjust(1)
      }
      yield* SessionPool.invalidate(pool, "slow")
      const caller = yield* fork(SessionPool.use(pool, "new", Effect.succeed))
      return { pool, caller }
    })

  it.effect("is waited for while it may come soon, and nothing is evicted", () =>
    Effect.gen(function*() {
      const { caller, pool } = yield* make("4 seconds", { acquireTimeout: "30 seconds" })
      yield* TestClock.adjust("3900 millis")
      assert.isUndefined(caller.pollUnsafe())
      yield* TestClock.adjust("100 millis")
      assert.strictEqual(yield* Fiber.join(caller), "new")
      const { closes, idle } = yield* SessionPool.stats(pool)
      assert.deepStrictEqual([closes.Evicted, idle], [0, 10])
    }))

  it.effect("is not counted on after five seconds: the session that was used longest ago is evicted", () =>
    Effect.gen(function*() {
      const { caller, pool } = yield* make("20 seconds", { acquireTimeout: "30 seconds" })
      yield* TestClock.adjust("5 seconds")
      assert.strictEqual(yield* Fiber.join(caller), "new")
      assert.notInclude(yield* SessionPool.keys(pool), "b")
      assert.strictEqual((yield* SessionPool.stats(pool)).closes.Evicted, 1)
      // When it comes it is one place more.
      yield* TestClock.adjust("15 seconds")
      yield* SessionPool.use(pool, "another", () => Effect.void)
      const { closes, idle, retired } = yield* SessionPool.stats(pool)
      assert.deepStrictEqual([closes.Evicted, idle, retired], [1, 10, 0])
    }))

  it.effect("costs those who come again no session: where all closes take a while, one is evicted", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup: (key: number) => Effect.acquireRelease(Effect.succeed(key), () => Effect.sleep("1500 millis")),
        capacity: 50,
        acquireTimeout: "100 millis"
      })
      for (let key = 1; key <= 50; key++) yield* SessionPool.use(pool, key, () => Effect.void)
      const again = yield* fork(Effect.eventually(SessionPool.use(pool, 0, () => Effect.void)))
      for (let i = 0; i < 20 && again.pollUnsafe() === undefined; i++) yield* TestClock.adjust("100 millis")
      assert.isDefined(again.pollUnsafe())
      const { closes, idle, retired } = yield* SessionPool.stats(pool)
      assert.deepStrictEqual([closes.Evicted, idle, retired], [1, 50, 0])
      yield* SessionPool.invalidateAll(pool)
      yield* TestClock.adjust("2 seconds")
    }))

  it.effect("is not counted on by those who come after five seconds, who fail only when nothing is idle", () =>
    Effect.gen(function*() {
      const { caller, pool } = yield* make("20 seconds", { acquireTimeout: "2 seconds" })
      yield* TestClock.adjust("2 seconds")
      assert.isTrue(Exit.isFailure(yield* Fiber.await(caller)))
      yield* TestClock.adjust("3 seconds")
      yield* SessionPool.use(pool, "new", () => Effect.void)
      for (const key of yield* SessionPool.keys(pool)) yield* SessionPool.get(pool, key)
      const failing = yield* fork(Effect.flip(SessionPool.use(pool, "late", () => Effect.void)))
      yield* TestClock.adjust("2 seconds")
      assert.strictEqual((yield* Fiber.join(failing))._tag, "CapacityExceeded")
      yield* TestClock.adjust("20 seconds")
    }))

  it.effect("is not counted on in a group that is full, either", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup: (key: string) =>
          Effect.acquireRelease(Effect.succeed(key), () => key === "slow" ? Effect.sleep("20 seconds") : Effect.void),
        groupBy: () => "one",
        groupCapacity: 2
      })
      for (const key of ["idle", "slow"]) yield* SessionPool.use(pool, key, () => Effect.void)
      yield* SessionPool.invalidate(pool, "slow")
      const caller = yield* fork(SessionPool.use(pool, "new", Effect.succeed))
      yield* TestClock.adjust("4900 millis")
      assert.isUndefined(caller.pollUnsafe())
      yield* TestClock.adjust("100 millis")
      assert.strictEqual(yield* Fiber.join(caller), "new")
      yield* TestClock.adjust("15 seconds")
    }))

  it.effect("that a cancelled launch holds, whose clean-up hangs, is not counted on either", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup: (key: string) =>
          key === "hangs"
            ? Effect.onInterrupt(Effect.never, () => Effect.sleep("20 seconds"))
            : Effect.succeed(key),
        capacity: 2
      })
      yield* SessionPool.use(pool, "idle", () => Effect.void)
      yield* Fiber.interrupt(yield* fork(SessionPool.use(pool, "hangs", () => Effect.void)))
      const caller = yield* fork(SessionPool.use(pool, "new", Effect.succeed))
      yield* TestClock.adjust("4900 millis")
      assert.isUndefined(caller.pollUnsafe())
      yield* TestClock.adjust("100 millis")
      assert.strictEqual(yield* Fiber.join(caller), "new")
      yield* TestClock.adjust("1 minute")
      const { idle, retired } = yield* SessionPool.stats(pool)
      assert.deepStrictEqual([idle, retired], [1, 0])
      yield* SessionPool.use(pool, "idle", () => Effect.void)
      assert.strictEqual((yield* SessionPool.stats(pool)).closes.Evicted, 1)
    }))
})

describe("callers that wake each other, whose connections open and close without a wait,", () => {
  it.effect("leave the event loop its turns", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup: (key: string) => Effect.succeed(key), capacity: 1 })
      const count = { uses: 0, turns: 0 }
      const turn = () => {
        count.turns++
        if (count.turns < 10) setImmediate(turn)
      }
      setImmediate(turn)
      const worker = (key: string) =>
        Effect.gen(function*() {
          while (count.turns < 10 && count.uses < 100_000) {
            yield* SessionPool.use(pool, key, () => Effect.sync(() => count.uses++))
          }
        })
      yield* Effect.forEach(["a", "b", "c"], worker, { concurrency: 3 })
      assert.strictEqual(count.turns, 10)
      assert.isBelow(count.uses, 100_000)
      assert.strictEqual((yield* SessionPool.stats(pool)).waiting, 0)
    }))

  it.effect("are served on when one of them has an observer that throws, which costs nobody else a lease", () =>
    Effect.gen(function*() {
      const logged: Array<unknown> = []
      const logger = Logger.make(({ message }) => void logged.push(message))
      const pool = yield* SessionPool.make({
        lookup: (key: string) => Effect.acquireRelease(Effect.succeed(key), () => Effect.void),
        capacity: 1
      }).pipe(Effect.provide(Logger.layer([logger])))
      const gate = yield* Deferred.make<void>()
      const first = yield* fork(SessionPool.use(pool, "first", () => Deferred.await(gate)))
      Effect.runCallback(SessionPool.use(pool, "second", () => Effect.void), {
        onExit: () => {
          throw new Error("a stranger's")
        }
      })
      const third = yield* fork(SessionPool.use(pool, "third", Effect.succeed))
      assert.strictEqual((yield* SessionPool.stats(pool)).waiting, 2)
      yield* Deferred.succeed(gate, undefined)
      // It was the one that carried out what woke the other.
      assert.isTrue(Exit.isSuccess(yield* Fiber.await(first)))
      assert.strictEqual(yield* Fiber.join(third), "third")
      const { active, waiting } = yield* SessionPool.stats(pool)
      assert.deepStrictEqual([active, waiting], [0, 0])
      assert.include(JSON.stringify(logged), "A fiber's observer threw")
    }))
})

describe("a call of the pool within a lookup", () => {
  it.effect("that has to launch is carried out by yield*, and cannot be by runSync, which leaves nothing behind", () =>
    Effect.gen(function*() {
      const pools: Array<SessionPool.SessionPool<string, string>> = []
      const outer = (how: (inner: Effect.Effect<string, SessionPool.AcquireError>) => Effect.Effect<unknown>) =>
        SessionPool.make({
          lookup: (key: string) =>
            key === "inner"
              ? Effect.succeed(key)
              : Effect.suspend(() =>
                Effect.map(Effect.all(pools.map((pool) => how(SessionPool.use(pool, "inner", Effect.succeed)))), String)
              )
        })
      const yielding = yield* outer((inner) => Effect.orDie(inner))
      pools.push(yielding)
      assert.strictEqual(yield* SessionPool.use(yielding, "outer", Effect.succeed), "inner")
      const sync = yield* outer((inner) => Effect.sync(() => Exit.isFailure(Effect.runSyncExit(inner))))
      pools.splice(0, 1, sync)
      assert.strictEqual(yield* SessionPool.use(sync, "outer", Effect.succeed), "true")
      yield* Effect.yieldNow
      const { active, idle, launching, waiting } = yield* SessionPool.stats(sync)
      assert.deepStrictEqual([active, launching, waiting], [0, 0, 0])
      assert.isAtMost(idle, 2)
    }))
})

describe("a pool without a connection that waits", () => {
  it("ends within runSync, however many sessions it has", () => {
    for (const count of [100, 5000]) {
      let closed = 0
      const scope = Scope.makeUnsafe()
      const make = SessionPool.make({
        lookup: (key: number) => Effect.acquireRelease(Effect.succeed(key), () => Effect.sync(() => closed++))
      })
      const pool = Effect.runSync(Scope.provide(make, scope))
      for (let key = 0; key < count; key++) Effect.runSync(SessionPool.use(pool, key, () => Effect.void))
      Effect.runSync(Scope.close(scope, Exit.void))
      assert.strictEqual(closed, count)
    }
  })
})

describe("a row of waiters whose connections open and close without a wait", () => {
  const count = 2000
  /** One place, taken until the gate opens, and as many that wait for it. */
  const row = (wait: (pool: SessionPool.SessionPool<number, number>, key: number) => Effect.Effect<void, unknown>) =>
    Effect.gen(function*() {
      const open = new Set<number>()
      const scope = yield* Scope.make()
      const pool = yield* Scope.provide(
        SessionPool.make({
          capacity: 1,
          lookup: (key: number) =>
            Effect.acquireRelease(
              Effect.sync(() => {
                open.add(key)
                return key
              }),
              () => Effect.sync(() => open.delete(key))
            )
        }),
        scope
      )
      const gate = yield* Deferred.make<void>()
      const first = yield* fork(SessionPool.use(pool, -1, () => Deferred.await(gate)))
      const fibers = yield* Effect.forEach(
        Array.from({ length: count }, (_, key) => key),
        (key) => fork(wait(pool, key))
      )
      assert.strictEqual((yield* SessionPool.stats(pool)).waiting, count)
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.join(first)
      for (const fiber of fibers) yield* Fiber.join(fiber)
      const { active, idle, launching, retired, waiting } = yield* SessionPool.stats(pool)
      assert.deepStrictEqual({ active, idle, launching, retired, waiting }, {
        active: 0,
        idle: 1,
        launching: 0,
        retired: 0,
        waiting: 0
      })
      yield* SessionPool.use(pool, count, () => Effect.void)
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual(open.size, 0)
    })

  it.effect("is served to its end by use, however long it is", () =>
    row((pool, key) => SessionPool.use(pool, key, () => Effect.void)))

  it.effect("is served to its end by set, however long it is", () =>
    row((pool, key) => SessionPool.set(pool, key, key)))
})

describe("a lookup that gets another session of the same pool", () => {
  it.effect("may do so in a chain, however long it is", () =>
    Effect.gen(function*() {
      const pool: SessionPool.SessionPool<number, number, SessionPool.AcquireError> = yield* SessionPool.make({
        lookup: (key: number): Effect.Effect<number, SessionPool.AcquireError, Scope.Scope> =>
          key === 0 ? Effect.succeed(0) : Effect.map(SessionPool.get(pool, key - 1), (below) => below + 1)
      })
      assert.strictEqual(yield* SessionPool.use(pool, 2000, Effect.succeed), 2000)
      assert.strictEqual((yield* SessionPool.stats(pool)).active, 2000)
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

  it.effect("and is refused at once is handed to none of those who waited", () =>
    Effect.gen(function*() {
      const verdicts: Array<string> = []
      let opened = 0
      const pool = yield* SessionPool.make({
        lookup: (_: string) => Effect.as(Effect.sleep(10), ++opened),
        validateAfter: "1 second",
        // The first one does not answer in time, the next one refuses at once.
        validate: (id) =>
          Effect.as(
            Effect.andThen(Effect.sleep(id === 1 ? 10 : 0), Effect.sync(() => verdicts.push(`${id}: no`))),
            false
          )
      })
      const opening = yield* fork(SessionPool.use(pool, "a", Effect.succeed))
      yield* TestClock.adjust("10 seconds")
      yield* Fiber.join(opening)
      const callers = yield* Effect.forEach(
        [1, 2, 3],
        () => fork(Effect.flip(SessionPool.use(pool, "a", Effect.succeed)))
      )
      yield* TestClock.adjust("10 seconds")
      const tags = (yield* Fiber.joinAll(callers)).map((error) => typeof error === "object" ? error._tag : error)
      assert.deepStrictEqual(tags, ["ValidationFailed", "ValidationFailed", "ValidationFailed"])
      assert.deepStrictEqual(verdicts, ["1: no", "2: no"])
      const { active, retired } = yield* SessionPool.stats(pool)
      assert.deepStrictEqual([active, retired], [0, 0])
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
  it.effect("for want of a place says which limit it was, whatever the other callers do meanwhile", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup: Effect.succeed<string>,
        groupBy: (key: string) => key[0],
        groupCapacity: 1,
        maxWaiting: 0
      })
      const refusals = new Set<string>()
      // Each gives the other its turn in another place.
      for (let budget = 3; budget < 64; budget++) {
        const lease = yield* Scope.make()
        yield* Scope.provide(SessionPool.get(pool, "a1"), lease)
        const refused = yield* fork(Effect.provideService(
          Effect.result(SessionPool.use(pool, "a2", Effect.succeed)),
          Scheduler.MaxOpsBeforeYield,
          budget
        ))
        yield* Scope.close(lease, Exit.void)
        yield* SessionPool.invalidateAll(pool)
        const result = yield* Fiber.join(refused)
        if (Result.isFailure(result)) refusals.add(result.failure.message)
        yield* SessionPool.invalidateAll(pool)
      }
      assert.deepStrictEqual(
        [...refusals].map((message) => message.includes("All 1 places are taken (groupCapacity)")),
        [true]
      )
    }))

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
