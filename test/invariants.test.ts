/** The nine promises of the pool. Each has a test that fails when the code breaks it. */
import { assert, describe } from "@effect/vitest"
import { Clock, Deferred, Duration, Effect, Exit, Fiber, Scope } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import * as Backend from "./kit/pool/backend.ts"
import { fork, held, hold, keysOf, makePool, nothing, visit } from "./kit/pool/calls.ts"
import { settable } from "./kit/pool/clock.ts"
import { infoOf, test } from "./kit/pool/withPool.ts"

type Pool = SessionPool.SessionPool<string, Backend.Connection>

describe("1. atomic touch", () => {
  test("a hundred concurrent gets of one key count a hundred requests on one session", function*() {
    const { backend, pool } = yield* makePool()
    yield* Effect.forEach(Array.from({ length: 100 }), () => visit(pool, "a"), { concurrency: "unbounded" })
    const { leases, requestCount } = yield* infoOf(pool, "a")
    assert.deepStrictEqual([requestCount, leases, backend.opened.length], [100, 0, 1])
  })

  test("touch, get, getOption, lease and use each move lastUsedAt and count one request", function*() {
    const { pool } = yield* makePool()
    yield* visit(pool, "a")
    const calls = [
      SessionPool.touch(pool, "a"),
      visit(pool, "a"),
      Effect.scoped(SessionPool.getOption(pool, "a")),
      Effect.scoped(SessionPool.lease(pool, "a")),
      SessionPool.use(pool, "a", () => Effect.void)
    ]
    for (const [index, call] of calls.entries()) {
      yield* TestClock.adjust("1 second")
      yield* Effect.asVoid(call)
      const { lastUsedAt, requestCount } = yield* infoOf(pool, "a")
      assert.deepStrictEqual([lastUsedAt, requestCount], [(index + 1) * 1000, index + 2])
    }
  })
})

describe("2. no use after close", () => {
  const retirements: Record<
    string,
    (pool: Pool, died: Deferred.Deferred<void>) => Effect.Effect<unknown, unknown>
  > = {
    "the idle timeout": () => TestClock.adjust("2 hours"),
    "the maximum lifetime": (pool) => Effect.andThen(TestClock.adjust("5 hours"), SessionPool.sweep(pool)),
    "invalidate": (pool) => SessionPool.invalidate(pool, "a"),
    "invalidateAll": (pool) => SessionPool.invalidateAll(pool),
    "too many errors": (pool) => Effect.andThen(SessionPool.recordError(pool, "a"), SessionPool.recordError(pool, "a")),
    "a replacement": (pool) => SessionPool.set(pool, "a", { key: "a", id: -1 }),
    "a caller that needs its place": (pool) => Effect.exit(visit(pool, "b")),
    "the death of its connection": (_, died) => Deferred.succeed(died, undefined)
  }
  for (const [name, retire] of Object.entries(retirements)) {
    test(`${name} does not close a leased session, but its last release does`, function*() {
      const died = yield* Deferred.make<void>()
      const { backend, pool } = yield* makePool({
        idleTimeToLive: "1 hour",
        maxLifetime: "4 hours",
        maxErrorCount: 2,
        capacity: 1,
        acquireTimeout: 0,
        closed: () => Deferred.await(died)
      })
      const [first, second] = [yield* hold(pool, "a"), yield* hold(pool, "a")]
      yield* fork(retire(pool, died))
      yield* Effect.yieldNow
      yield* first.release
      assert.strictEqual(backend.closes(first.value), 0)
      yield* second.release
      yield* SessionPool.invalidate(pool, "a")
      assert.strictEqual(backend.closes(first.value), 1)
    })
  }
})

describe("3. no resurrection", () => {
  for (const ttl of [Duration.zero, Duration.minutes(1), Duration.infinity]) {
    for (const order of ["old", "new"]) {
      test(`with a TTL of ${Duration.format(ttl)} and the ${order} lease released first, each session closes once`, function*() {
        const { backend, pool } = yield* makePool({ idleTimeToLive: ttl, maxErrorCount: 1 })
        const old = yield* hold(pool, "a")
        assert.isTrue(yield* SessionPool.invalidate(pool, "a"))
        assert.isFalse(yield* SessionPool.invalidate(pool, "a"))
        const fresh = yield* hold(pool, "a")
        const closes = () => [backend.closes(old.value), backend.closes(fresh.value)]
        const freshCloses = Duration.isZero(ttl) ? 1 : 0
        if (order === "old") {
          yield* old.release
          assert.deepStrictEqual(closes(), [1, 0])
          assert.strictEqual((yield* infoOf(pool, "a")).leases, 1)
          yield* fresh.release
        } else {
          yield* fresh.release
          assert.deepStrictEqual(closes(), [0, freshCloses])
          yield* old.release
        }
        assert.deepStrictEqual(closes(), [1, freshCloses])
        yield* SessionPool.invalidate(pool, "a")
        backend.assertAllClosedOnce()
      })
    }
  }

  test("an error of a use that began on the old session does not count on the new one", function*() {
    const { backend, pool } = yield* makePool({ maxErrorCount: 1 })
    const gate = yield* Deferred.make<never, string>()
    const failing = yield* fork(SessionPool.use(pool, "a", () => Deferred.await(gate)))
    yield* SessionPool.invalidate(pool, "a")
    const fresh = yield* visit(pool, "a")
    yield* Deferred.fail(gate, "broken")
    yield* Fiber.await(failing)
    assert.strictEqual((yield* infoOf(pool, "a")).errorCount, 0)
    assert.strictEqual(backend.closes(fresh), 0)
  })
})

describe("4. closed exactly once", () => {
  test("each way to end a session closes it once", function*() {
    const scope = yield* Scope.make()
    const { backend, pool } = yield* makePool({
      capacity: 3,
      maxErrorCount: 1,
      idleTimeToLive: "10 seconds",
      cleanupInterval: "1 second"
    }).pipe(Scope.provide(scope))
    let adoptedCloses = 0
    yield* Effect.forEach(["a", "b", "c", "d", "e"], (key) => visit(pool, key))
    yield* Effect.exit(SessionPool.use(pool, "e", () => Effect.fail("broken")))
    yield* SessionPool.invalidate(pool, "d")
    yield* TestClock.adjust("12 seconds")
    yield* Effect.forEach(["f", "g"], (key) => visit(pool, key))
    yield* SessionPool.set(pool, "g", { key: "g", id: -1 }, Effect.sync(() => adoptedCloses++))
    yield* Scope.close(scope, Exit.void)
    backend.assertAllClosedOnce()
    assert.deepStrictEqual([adoptedCloses, backend.opened.length], [1, 7])
  })

  test("a launch that times out closes what it acquires late", function*() {
    const backend = Backend.make()
    const { pool } = yield* makePool({
      // Uninterruptible, so the connection arrives after the time-out.
      lookup: (key) => Effect.uninterruptible(Effect.andThen(Effect.sleep("10 seconds"), backend.open(key))),
      lookupTimeout: "1 second"
    })
    const failing = yield* fork(Effect.flip(visit(pool, "a")))
    yield* TestClock.adjust("1 second")
    assert.strictEqual((yield* Fiber.join(failing)).reason._tag, "LookupTimeout")
    assert.deepStrictEqual(yield* held(pool), { ...nothing, retired: 1 })
    yield* TestClock.adjust("9 seconds")
    assert.strictEqual(backend.opened.length, 1)
    backend.assertAllClosedOnce()
    assert.deepStrictEqual(yield* held(pool), nothing)
  })
})

describe("5. single flight", () => {
  test("all callers of a running launch get its session, or its failure", function*() {
    let runs = 0
    const pool = yield* SessionPool.make({
      lookup: (key: string) =>
        Effect.andThen(
          Effect.delay(Effect.sync(() => runs++), "1 second"),
          key === "bad" ? Effect.fail("refused") : Effect.succeed(key)
        )
    })
    const calls = yield* Effect.forEach(
      ["good", "bad", "good", "bad"],
      (key) => fork(Effect.exit(visit(pool, key)))
    )
    yield* TestClock.adjust("1 second")
    const [good, bad] = [Exit.succeed("good"), Exit.fail("refused")]
    assert.deepStrictEqual(yield* Fiber.joinAll(calls), [good, bad, good, bad])
    assert.deepStrictEqual([runs, (yield* SessionPool.stats(pool)).joins], [2, 2])
  })

  test("a launch survives the interruption of its first caller, and is cancelled with its last", function*() {
    let interrupted = 0
    const { pool } = yield* makePool({
      lookup: () => Effect.onInterrupt(Effect.never, () => Effect.sync(() => interrupted++))
    })
    const [first, second] = [yield* fork(visit(pool, "a")), yield* fork(visit(pool, "a"))]
    yield* Fiber.interrupt(first)
    assert.strictEqual(interrupted, 0)
    yield* Fiber.interrupt(second)
    yield* Effect.yieldNow
    assert.strictEqual(interrupted, 1)
    assert.deepStrictEqual(yield* held(pool), nothing)
  })
})

describe("6. bounded", () => {
  test("open sessions never exceed the capacity, and waiters are served in order", function*() {
    const { backend, pool } = yield* makePool({ capacity: 2 })
    const served: Array<string> = []
    let most = 0
    const keys = ["a", "b", "c", "d", "e", "f"]
    yield* Effect.forEach(keys, (key) =>
      fork(SessionPool.use(pool, key, () => {
        served.push(key)
        most = Math.max(most, backend.openCount())
        return Effect.sleep("1 second")
      })))
    yield* TestClock.adjust("3 seconds")
    assert.deepStrictEqual([served, most], [keys, 2])
  })

  test("a waiter interrupted at the hand-over passes its place on", function*() {
    const { backend, pool } = yield* makePool({ capacity: 1, idleTimeToLive: 0 })
    const { release } = yield* hold(pool, "a")
    const first = yield* fork(SessionPool.use(pool, "b", () => Effect.never))
    const second = yield* fork(SessionPool.use(pool, "c", () => Effect.succeed("served")))
    assert.strictEqual((yield* SessionPool.stats(pool)).waiting, 2)
    yield* Effect.all([release, Fiber.interrupt(first)], { concurrency: "unbounded" })
    assert.strictEqual(yield* Fiber.join(second), "served")
    backend.assertAllClosedOnce()
  })

  test("no caller fails at capacity while an idle session could be evicted", function*() {
    const { pool } = yield* makePool({
      lookup: (key) =>
        Effect.acquireRelease(
          Effect.succeed({ key, id: 0 }),
          () => key === "slow" ? Effect.sleep("20 seconds") : Effect.void
        ),
      capacity: 2,
      acquireTimeout: "3 seconds"
    })
    yield* visit(pool, "slow")
    yield* visit(pool, "idle")
    yield* SessionPool.invalidate(pool, "slow")
    const waiting = yield* fork(visit(pool, "new"))
    yield* TestClock.adjust("23 seconds")
    assert.strictEqual((yield* Fiber.join(waiting)).key, "new")
  })
})

describe("7. time", () => {
  test("an expired session is never handed out, and closes within one interval; a touch restarts the idle time", function*() {
    const { backend, pool } = yield* makePool({ idleTimeToLive: "10 minutes", cleanupInterval: "3 minutes" })
    yield* Effect.forEach(["a", "b"], (key) => visit(pool, key))
    yield* TestClock.adjust("9 minutes")
    yield* Effect.forEach(["a", "b"], (key) => SessionPool.touch(pool, key))
    yield* TestClock.adjust("10 minutes")
    assert.deepStrictEqual(keysOf(backend.closed), [])
    yield* TestClock.adjust(1)
    assert.strictEqual((yield* visit(pool, "a")).id, 3)
    assert.deepStrictEqual(keysOf(backend.closed), ["a"])
    yield* TestClock.adjust("3 minutes")
    assert.deepStrictEqual(keysOf(backend.closed), ["a", "b"])
  })

  test("a launch or a finalizer that hangs delays no sweep", function*() {
    const backend = Backend.make()
    const gate = yield* Deferred.make<void>()
    const { pool } = yield* makePool({
      lookup: (key) =>
        key === "slow" ?
          Effect.never :
          Effect.tap(
            backend.open(key),
            () => key === "stuck" ? Effect.addFinalizer(() => Deferred.await(gate)) : Effect.void
          ),
      idleTimeToLive: "1 minute",
      cleanupInterval: "1 minute",
      closeTimeout: "1 minute"
    })
    yield* fork(Effect.exit(visit(pool, "slow")))
    yield* visit(pool, "stuck")
    yield* visit(pool, "fine")
    yield* TestClock.adjust("2 minutes")
    assert.deepStrictEqual(keysOf(backend.closed), ["fine"])
    yield* Deferred.succeed(gate, undefined)
    backend.assertAllClosedOnce()
  })
})

describe("8. the end", () => {
  test("the end fails all callers with PoolClosed, closes everything, and leaves no timer", function*() {
    const clock = yield* settable
    const scope = yield* Scope.make()
    const backend = Backend.make()
    let interrupted = 0
    const { pool } = yield* makePool({
      capacity: 3,
      lookup: (key) =>
        key === "slow"
          ? Effect.onInterrupt(Effect.never, () => Effect.sync(() => interrupted++))
          : backend.open(key),
      validate: () => Effect.succeed(true),
      keepAlive: "1 minute",
      leakDetection: "1 minute"
    }).pipe(Scope.provide(scope), Effect.provideService(Clock.Clock, clock))
    const leases = [yield* hold(pool, "leased"), yield* hold(pool, "leased too")]
    const calls = [
      visit(pool, "slow"),
      visit(pool, "waiting"),
      visit(pool, "waiting too"),
      SessionPool.set(pool, "x", { key: "x", id: -1 })
    ]
    const fibers = yield* Effect.forEach(
      calls,
      (call) => Effect.asVoid(call).pipe(Effect.flip, Effect.provideService(Clock.Clock, clock), fork)
    )
    assert.deepStrictEqual(yield* held(pool), { ...nothing, active: 2, launching: 1, waiting: 3 })
    assert.isAbove(clock.timers, 0)
    yield* Scope.close(scope, Exit.void)
    const errors = yield* Fiber.joinAll(fibers)
    assert.deepStrictEqual(errors.map(({ reason }) => reason._tag), calls.map(() => "PoolClosed"))
    assert.deepStrictEqual([interrupted, clock.timers], [1, 0])
    backend.assertAllClosedOnce()
    yield* Effect.forEach(leases, ({ release }) => release)
    assert.deepStrictEqual(yield* held(pool), nothing)
    backend.assertAllClosedOnce()
  })
})

describe("9. a failed launch leaves nothing behind", () => {
  const failures: Record<string, Effect.Effect<never, string>> = {
    fails: Effect.fail("refused"),
    dies: Effect.die(new Error("bug")),
    "interrupts itself": Effect.interrupt
  }
  for (const [name, failure] of Object.entries(failures)) {
    test(`a lookup that ${name} closes what it acquired, and the next get launches again`, function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({
        capacity: 1,
        lookup: (key: string) => Effect.tap(backend.open(key), ({ id }) => id === 1 ? failure : Effect.void)
      })
      assert.isTrue(Exit.isFailure(yield* Effect.exit(visit(pool, "a"))))
      backend.assertAllClosedOnce()
      assert.deepStrictEqual(yield* held(pool), nothing)
      assert.strictEqual((yield* visit(pool, "a")).id, 2)
    })
  }
})
