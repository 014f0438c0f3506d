/** The nine invariants of the pool, each broken by a test when it is broken in the code. */
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Duration, Effect, Exit, Fiber, Option, Scope } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import * as Backend from "./kit/pool/backend.ts"

describe("1. atomic touch", () => {
  it.effect("a hundred concurrent gets of one key count a hundred requests on one session", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ lookup: backend.open })
      yield* Effect.forEach(Array.from({ length: 100 }), () => Effect.scoped(SessionPool.get(pool, "a")), {
        concurrency: "unbounded"
      })
      const info = Option.getOrThrow(yield* SessionPool.info(pool, "a"))
      assert.deepStrictEqual([info.requestCount, info.leases, backend.opened.length], [100, 0, 1])
    }))

  it.effect("touch, get, getOption and use each move lastUsedAt and count one request", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ lookup: backend.open })
      yield* Effect.scoped(SessionPool.get(pool, "a"))
      const seen: Array<readonly [number, number]> = []
      const look = Effect.map(SessionPool.info(pool, "a"), (info) => {
        const { lastUsedAt, requestCount } = Option.getOrThrow(info)
        seen.push([lastUsedAt, requestCount])
      })
      yield* look
      yield* TestClock.adjust("1 second")
      yield* SessionPool.touch(pool, "a")
      yield* look
      yield* TestClock.adjust("1 second")
      yield* Effect.scoped(SessionPool.getOption(pool, "a"))
      yield* look
      yield* TestClock.adjust("1 second")
      yield* SessionPool.use(pool, "a", () => Effect.void)
      yield* look
      assert.deepStrictEqual(seen, [[0, 1], [1000, 2], [2000, 3], [3000, 4]])
    }))
})

describe("2. no use after close", () => {
  const retirements: Record<
    string,
    (pool: SessionPool.SessionPool<string, Backend.Connection>) => Effect.Effect<unknown, unknown>
  > = {
    "the idle timeout": () => TestClock.adjust("2 hours"),
    "invalidate": (pool) => SessionPool.invalidate(pool, "a"),
    "invalidateAll": (pool) => SessionPool.invalidateAll(pool),
    "too many errors": (pool) => Effect.andThen(SessionPool.recordError(pool, "a"), SessionPool.recordError(pool, "a")),
    "a replacement": (pool) => SessionPool.set(pool, "a", { key: "a", id: -1 }),
    "the maximum lifetime": (pool) => Effect.andThen(TestClock.adjust("5 hours"), SessionPool.sweep(pool)),
    "the need for a place": (pool) => Effect.exit(Effect.scoped(SessionPool.get(pool, "b")))
  }
  for (const [name, retire] of Object.entries(retirements)) {
    it.effect(`a leased session is not closed by ${name}, but by its last release`, () =>
      Effect.gen(function*() {
        const backend = Backend.make()
        const pool = yield* SessionPool.make({
          lookup: backend.open,
          idleTimeToLive: "1 hour",
          maxLifetime: "4 hours",
          maxErrorCount: 2,
          capacity: 2,
          groupBy: (key) => key,
          acquireTimeout: 0
        })
        const first = yield* Scope.make()
        const second = yield* Scope.make()
        const connection = yield* SessionPool.get(pool, "a").pipe(Scope.provide(first))
        yield* SessionPool.get(pool, "a").pipe(Scope.provide(second))
        yield* retire(pool)
        yield* Scope.close(first, Exit.void)
        assert.strictEqual(backend.closes(connection), 0)
        yield* Scope.close(second, Exit.void)
        yield* SessionPool.invalidate(pool, "a")
        assert.strictEqual(backend.closes(connection), 1)
      }))
  }
})

describe("3. no resurrection", () => {
  for (const ttl of [Duration.zero, Duration.minutes(1), Duration.infinity]) {
    for (const order of ["old first", "new first"]) {
      it.effect(`with TTL ${Duration.format(ttl)}, the old lease (${order}) never closes or changes the new session`, () =>
        Effect.gen(function*() {
          const backend = Backend.make()
          const pool = yield* SessionPool.make({ lookup: backend.open, idleTimeToLive: ttl, maxErrorCount: 1 })
          const oldScope = yield* Scope.make()
          const newScope = yield* Scope.make()
          const old = yield* SessionPool.get(pool, "a").pipe(Scope.provide(oldScope))
          assert.isTrue(yield* SessionPool.invalidate(pool, "a"))
          const fresh = yield* SessionPool.get(pool, "a").pipe(Scope.provide(newScope))
          assert.notStrictEqual(fresh, old)
          if (order === "old first") {
            yield* Scope.close(oldScope, Exit.void)
            assert.deepStrictEqual([backend.closes(old), backend.closes(fresh)], [1, 0])
            assert.strictEqual(Option.getOrThrow(yield* SessionPool.info(pool, "a")).leases, 1)
            yield* Scope.close(newScope, Exit.void)
          } else {
            yield* Scope.close(newScope, Exit.void)
            assert.strictEqual(backend.closes(old), 0)
            yield* Scope.close(oldScope, Exit.void)
          }
          assert.strictEqual(backend.closes(old), 1)
          assert.strictEqual(backend.closes(fresh), Duration.isZero(ttl) ? 1 : 0)
          yield* SessionPool.invalidate(pool, "a")
          backend.assertAllClosedOnce()
        }))
    }
  }

  it.effect("an error of a use that began on the old session does not count on the new one", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ lookup: backend.open, maxErrorCount: 1 })
      const gate = yield* Deferred.make<void>()
      const failing = yield* Effect.forkChild(
        SessionPool.use(pool, "a", () => Effect.andThen(Deferred.await(gate), Effect.fail("broken")))
      )
      yield* Effect.yieldNow
      yield* SessionPool.invalidate(pool, "a")
      const fresh = yield* Effect.scoped(SessionPool.get(pool, "a"))
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.await(failing)
      assert.strictEqual(Option.getOrThrow(yield* SessionPool.info(pool, "a")).errorCount, 0)
      assert.strictEqual(backend.closes(fresh), 0)
    }))
})

describe("4. closed exactly once, always", () => {
  it.effect("after idle timeout, errors, invalidation, eviction, replacement and the end of the pool", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      let adoptedCloses = 0
      yield* Effect.scoped(Effect.gen(function*() {
        const pool = yield* SessionPool.make({
          lookup: backend.open,
          capacity: 3,
          maxErrorCount: 1,
          idleTimeToLive: "10 seconds",
          cleanupInterval: "1 second"
        })
        const visit = (key: string) => Effect.scoped(SessionPool.get(pool, key))
        yield* Effect.forEach(["a", "b", "c", "d", "e"], visit)
        yield* Effect.exit(SessionPool.use(pool, "e", () => Effect.fail("broken")))
        yield* SessionPool.invalidate(pool, "d")
        yield* TestClock.adjust("12 seconds")
        yield* Effect.forEach(["f", "g"], visit)
        yield* SessionPool.set(pool, "g", { key: "g", id: -1 }, Effect.sync(() => adoptedCloses++))
      }))
      backend.assertAllClosedOnce()
      assert.strictEqual(adoptedCloses, 1)
      assert.strictEqual(backend.opened.length, 7)
    }))

  it.effect("a launch that times out closes what it acquires late", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({
        // Uninterruptible, so that it arrives after the time-out.
        lookup: (key: string) => Effect.uninterruptible(Effect.andThen(Effect.sleep("10 seconds"), backend.open(key))),
        lookupTimeout: "1 second"
      })
      const fiber = yield* Effect.forkChild(Effect.flip(Effect.scoped(SessionPool.get(pool, "a"))))
      yield* TestClock.adjust("1 second")
      const error = yield* Fiber.join(fiber)
      assert.deepStrictEqual([error._tag, backend.opened.length], ["LookupTimeout", 0])
      assert.strictEqual((yield* SessionPool.stats(pool)).retired, 1)
      yield* TestClock.adjust("9 seconds")
      assert.strictEqual(backend.opened.length, 1)
      backend.assertAllClosedOnce()
      const stats = yield* SessionPool.stats(pool)
      assert.deepStrictEqual([stats.retired, stats.launching, stats.launchFailures], [0, 0, 1])
    }))
})

describe("5. single flight", () => {
  it.effect("callers that come while a launch runs get its session, or its failure", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void>()
      let runs = 0
      const pool = yield* SessionPool.make({
        lookup: (key: string) =>
          Effect.andThen(
            Effect.suspend(() => {
              runs++
              return Deferred.await(gate)
            }),
            key === "bad" ? Effect.fail("refused") : Effect.succeed(key)
          )
      })
      const call = (key: string) => Effect.forkChild(Effect.exit(Effect.scoped(SessionPool.get(pool, key))))
      const good = yield* Effect.forEach([1, 2, 3], () => call("good"))
      const bad = yield* Effect.forEach([1, 2, 3], () => call("bad"))
      yield* Effect.yieldNow
      yield* Deferred.succeed(gate, undefined)
      assert.deepStrictEqual(yield* Effect.forEach(good, Fiber.join), [1, 2, 3].map(() => Exit.succeed("good")))
      const refusals = yield* Effect.forEach(bad, Fiber.join)
      assert.deepStrictEqual(refusals.map(Exit.findErrorOption), [1, 2, 3].map(() => Option.some("refused")))
      assert.strictEqual(runs, 2)
      assert.strictEqual((yield* SessionPool.stats(pool)).joins, 4)
    }))

  it.effect("a launch survives the first caller and is cancelled with the last", () =>
    Effect.gen(function*() {
      let interrupted = 0
      const pool = yield* SessionPool.make<string, never, never, never>({
        lookup: () => Effect.onInterrupt(Effect.never, () => Effect.sync(() => interrupted++))
      })
      const call = Effect.forkChild(Effect.scoped(SessionPool.get(pool, "a")))
      const first = yield* call
      const second = yield* call
      yield* Effect.yieldNow
      yield* Fiber.interrupt(first)
      assert.strictEqual(interrupted, 0)
      yield* Fiber.interrupt(second)
      yield* Effect.yieldNow
      assert.strictEqual(interrupted, 1)
      const stats = yield* SessionPool.stats(pool)
      assert.deepStrictEqual([stats.launching, stats.retired], [0, 0])
    }))
})

describe("6. bounded", () => {
  it.effect("sessions that exist never exceed the capacity, and waiters are served in order", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      let most = 0
      const served: Array<string> = []
      const pool = yield* SessionPool.make({
        capacity: 2,
        lookup: (key: string) =>
          Effect.tap(backend.open(key), () =>
            Effect.sync(() => {
              most = Math.max(most, backend.openCount())
            }))
      })
      yield* Effect.forEach(
        ["a", "b", "c", "d", "e", "f"],
        (key) =>
          Effect.forkChild(SessionPool.use(pool, key, () => {
            served.push(key)
            return Effect.sleep("1 second")
          })),
        { discard: true }
      )
      yield* TestClock.adjust("3 seconds")
      assert.deepStrictEqual(served, ["a", "b", "c", "d", "e", "f"])
      assert.strictEqual(most, 2)
    }))

  it.effect("a waiter interrupted at the hand-over passes its place on", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ capacity: 1, idleTimeToLive: 0, lookup: backend.open })
      const scope = yield* Scope.make()
      yield* SessionPool.get(pool, "a").pipe(Scope.provide(scope))
      const first = yield* Effect.forkChild(SessionPool.use(pool, "b", () => Effect.never))
      const second = yield* Effect.forkChild(SessionPool.use(pool, "c", () => Effect.succeed("served")))
      yield* Effect.yieldNow
      assert.strictEqual((yield* SessionPool.stats(pool)).waiting, 2)
      yield* Effect.all([Scope.close(scope, Exit.void), Fiber.interrupt(first)], { concurrency: "unbounded" })
      assert.strictEqual(yield* Fiber.join(second), "served")
      backend.assertAllClosedOnce()
    }))
})

describe("7. time", () => {
  it.effect("an idle session closes after its TTL and no later than one interval after it, and activity restarts it", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({
        lookup: backend.open,
        idleTimeToLive: "10 minutes",
        cleanupInterval: "3 minutes"
      })
      yield* Effect.scoped(SessionPool.get(pool, "a"))
      yield* TestClock.adjust("9 minutes")
      yield* SessionPool.touch(pool, "a")
      yield* TestClock.adjust("10 minutes")
      assert.strictEqual(backend.closed.length, 0)
      yield* TestClock.adjust("3 minutes")
      assert.strictEqual(backend.closed.length, 1)
    }))

  it.effect("a hanging launch and a hanging finalizer delay no sweep", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void>()
      const backend = Backend.make()
      const pool = yield* SessionPool.make({
        lookup: (key: string) =>
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
      yield* Effect.forkChild(Effect.scoped(Effect.exit(SessionPool.get(pool, "slow"))))
      yield* Effect.scoped(SessionPool.get(pool, "stuck"))
      yield* Effect.scoped(SessionPool.get(pool, "fine"))
      yield* TestClock.adjust("2 minutes")
      assert.deepStrictEqual(backend.closed.map(({ key }) => key), ["fine"])
      yield* Deferred.succeed(gate, undefined)
      backend.assertAllClosedOnce()
    }))
})

describe("8. the end", () => {
  it.effect("refuses the waiting, interrupts the launching, closes everything, and leaves nothing", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const scope = yield* Scope.make()
      let interrupted = 0
      const pool = yield* SessionPool.make({
        capacity: 3,
        lookup: (key: string) =>
          key === "slow"
            ? Effect.onInterrupt(Effect.never, () => Effect.sync(() => interrupted++))
            : backend.open(key)
      }).pipe(Scope.provide(scope))
      const leases = yield* Scope.make()
      yield* SessionPool.get(pool, "leased").pipe(Scope.provide(leases))
      yield* SessionPool.get(pool, "leased too").pipe(Scope.provide(leases))
      const calls = yield* Effect.forEach(
        ["slow", "waiting", "waiting too"],
        (key) => Effect.forkChild(Effect.flip(Effect.scoped(SessionPool.get(pool, key))))
      )
      const setting = yield* Effect.forkChild(Effect.flip(SessionPool.set(pool, "x", { key: "x", id: -1 })))
      yield* Effect.yieldNow
      yield* Scope.close(scope, Exit.void)
      const errors = [yield* Fiber.join(setting), ...(yield* Effect.forEach(calls, (call) => Fiber.join(call)))]
      assert.deepStrictEqual(errors.map(({ _tag }) => _tag), Array.from({ length: 4 }, () => "PoolClosed"))
      assert.strictEqual(interrupted, 1)
      backend.assertAllClosedOnce()
      yield* Scope.close(leases, Exit.void)
      const { active, idle, launching, retired, waiting } = yield* SessionPool.stats(pool)
      assert.deepStrictEqual([active, idle, launching, retired, waiting], [0, 0, 0, 0, 0])
      assert.strictEqual((yield* Effect.flip(Effect.scoped(SessionPool.get(pool, "late"))))._tag, "PoolClosed")
      assert.isTrue(Option.isNone(yield* SessionPool.touch(pool, "leased")))
      assert.isFalse(yield* SessionPool.invalidate(pool, "leased"))
      backend.assertAllClosedOnce()
    }))
})

describe("9. failure leaves nothing", () => {
  const failures: Record<string, Effect.Effect<never, string>> = {
    failing: Effect.fail("refused"),
    dying: Effect.die(new Error("bug")),
    interrupted: Effect.interrupt
  }
  for (const [name, failure] of Object.entries(failures)) {
    it.effect(`a ${name} lookup closes what it acquired, and the next get launches again`, () =>
      Effect.gen(function*() {
        const backend = Backend.make()
        let runs = 0
        const pool = yield* SessionPool.make({
          capacity: 1,
          lookup: (key: string) => Effect.tap(backend.open(key), () => ++runs === 1 ? failure : Effect.void)
        })
        assert.isTrue(Exit.isFailure(yield* Effect.exit(Effect.scoped(SessionPool.get(pool, "a")))))
        backend.assertAllClosedOnce()
        assert.strictEqual((yield* SessionPool.stats(pool)).retired, 0)
        const connection = yield* Effect.scoped(SessionPool.get(pool, "a"))
        assert.strictEqual(connection.id, 2)
      }))
  }
})
