/** What broke in other pools: each defect that real users met, as a promise that it cannot happen here. */
import { assert, describe, it } from "@effect/vitest"
import type { Duration } from "effect"
import { Deferred, Effect, Exit, Fiber, Option, Scheduler, Scope, Stream } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import * as Backend from "./kit/pool/backend.ts"

/** While it is late, fibers that begin wait for a hundred turns before their first step. */
class LateFibers extends Scheduler.MixedScheduler {
  late = false
  private readonly waits = new WeakMap<object, number>()
  override shouldYield(fiber: Fiber.Fiber<unknown, unknown>): boolean {
    const left = this.waits.get(fiber) ?? (this.late ? 100 : 0)
    this.waits.set(fiber, left - 1)
    return left > 0
  }
}

const turns = (count: number) => Effect.forEach(Array.from({ length: count }), () => Effect.yieldNow, { discard: true })

const fork = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })

describe("races", () => {
  it.effect("get racing invalidate leaves the key gone or fresh, never the old session back", () =>
    Effect.gen(function*() {
      for (let delay = 0; delay < 12; delay++) {
        const backend = Backend.make()
        const pool = yield* SessionPool.make({ lookup: backend.open })
        const old = yield* Effect.scoped(SessionPool.get(pool, "a"))
        const getting = yield* Effect.forkChild(Effect.scoped(SessionPool.get(pool, "a")))
        yield* turns(delay)
        yield* SessionPool.invalidate(pool, "a")
        yield* Fiber.join(getting)
        const info = yield* SessionPool.info(pool, "a")
        const present = yield* SessionPool.touch(pool, "a")
        assert.isTrue(Option.isNone(present) || present.value !== old)
        assert.strictEqual(Option.isSome(info), Option.isSome(present))
        assert.strictEqual(backend.closes(old), 1)
      }
    }))

  it.effect("two waiters, one place: each place that becomes free wakes one of them, until both are served", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ capacity: 1, lookup: backend.open })
      const order: Array<string> = []
      const fibers = yield* Effect.forEach(["a", "b", "c"], (key) =>
        Effect.forkChild(SessionPool.use(pool, key, () => {
          order.push(key)
          return Effect.sleep("1 second")
        })))
      yield* TestClock.adjust("1 second")
      yield* TestClock.adjust("1 second")
      yield* TestClock.adjust("1 second")
      yield* Effect.forEach(fibers, (fiber) => Fiber.join(fiber))
      assert.deepStrictEqual(order, ["a", "b", "c"])
    }))

  it.effect("a newcomer never takes the place of one who waits", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ capacity: 1, idleTimeToLive: 0, lookup: backend.open })
      const order: Array<string> = []
      const note = (key: string) => SessionPool.use(pool, key, () => Effect.sync(() => order.push(key)))
      const scope = yield* Scope.make()
      yield* SessionPool.get(pool, "held").pipe(Scope.provide(scope))
      const waiting = yield* Effect.forkChild(note("waiting"))
      yield* Effect.yieldNow
      const newcomer = yield* Effect.forkChild(note("newcomer"))
      yield* Scope.close(scope, Exit.void)
      yield* Fiber.join(waiting)
      yield* Fiber.join(newcomer)
      assert.deepStrictEqual(order, ["waiting", "newcomer"])
    }))
})

describe("places that become free", () => {
  const frees: Record<
    string,
    (
      pool: SessionPool.SessionPool<string, Backend.Connection, string>,
      hold: Scope.Closeable,
      gate: Deferred.Deferred<void>
    ) => Effect.Effect<unknown, unknown>
  > = {
    "a release": (_, hold) => Scope.close(hold, Exit.void),
    "a failed launch": (_, __, gate) => Deferred.succeed(gate, undefined),
    "an invalidation of the session in use, once released": (pool, hold) =>
      Effect.andThen(SessionPool.invalidate(pool, "held"), Scope.close(hold, Exit.void)),
    "a close that hangs, once its time is over": (pool, hold) =>
      Effect.andThen(
        SessionPool.invalidate(pool, "held"),
        Effect.andThen(Scope.close(hold, Exit.void), TestClock.adjust("1 minute"))
      )
  }
  for (const [name, free] of Object.entries(frees)) {
    it.effect(`${name} serves the longest waiter of any key`, () =>
      Effect.gen(function*() {
        const backend = Backend.make()
        const gate = yield* Deferred.make<void>()
        const hang = yield* Deferred.make<void>()
        const pool = yield* SessionPool.make({
          capacity: 2,
          acquireTimeout: "1 hour",
          closeTimeout: "30 seconds",
          lookupTimeout: "1 hour",
          lookup: (key: string): Effect.Effect<Backend.Connection, string, Scope.Scope> =>
            key === "failing"
              ? Effect.andThen(Deferred.await(gate), Effect.fail("refused"))
              : Effect.tap(backend.open(key), () =>
                key === "held" && name.includes("hangs")
                  ? Effect.addFinalizer(() => Deferred.await(hang))
                  : Effect.void)
        })
        const hold = yield* Scope.make()
        yield* SessionPool.get(pool, "held").pipe(Scope.provide(hold))
        const failing = yield* Effect.forkChild(Effect.exit(Effect.scoped(SessionPool.get(pool, "failing"))))
        yield* Effect.yieldNow
        const waiter = yield* Effect.forkChild(SessionPool.use(pool, "other", () => Effect.succeed("served")))
        yield* Effect.yieldNow
        assert.strictEqual((yield* SessionPool.stats(pool)).waiting, 1)
        yield* free(pool, hold, gate)
        assert.strictEqual(yield* Fiber.join(waiter), "served")
        yield* Deferred.succeed(hang, undefined)
        yield* Deferred.succeed(gate, undefined)
        yield* Fiber.join(failing)
        yield* Scope.close(hold, Exit.void)
      }))
  }

  it.effect("the limit is on what is open: idle sessions do not come on top", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ capacity: 2, lookup: backend.open })
      yield* Effect.forEach(["a", "b", "c", "d"], (key) => Effect.scoped(SessionPool.get(pool, key)))
      assert.strictEqual(backend.openCount(), 2)
    }))

  it.effect("eviction passes the busiest over, although it was got first", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ capacity: 2, lookup: backend.open })
      const scope = yield* Scope.make()
      yield* SessionPool.get(pool, "busy").pipe(Scope.provide(scope))
      yield* TestClock.adjust("1 second")
      yield* Effect.scoped(SessionPool.get(pool, "idle"))
      yield* Effect.scoped(SessionPool.get(pool, "new"))
      assert.deepStrictEqual(backend.closed.map(({ key }) => key), ["idle"])
      yield* TestClock.adjust("1 second")
      // Released last, so used last, although it was got first.
      yield* Scope.close(scope, Exit.void)
      yield* Effect.scoped(SessionPool.get(pool, "newer"))
      assert.deepStrictEqual(backend.closed.map(({ key }) => key), ["idle", "new"])
    }))
})

describe("a place that one waiter counts on", () => {
  it.effect("is counted on by no other one while something idle could make room", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup: (key: string) => Effect.acquireRelease(Effect.succeed(key), () => Effect.sleep("4 seconds")),
        capacity: 3,
        groupBy: (key) => key[0],
        groupCapacity: 2
      })
      const use = (key: string, f: () => Effect.Effect<void>) => SessionPool.use(pool, key, f)
      yield* use("a1", () => Effect.void)
      yield* TestClock.adjust(1)
      yield* use("a2", () => Effect.void)
      const gate = yield* Deferred.make<void>()
      yield* fork(use("b1", () => Deferred.await(gate)))
      // Evicts a1, and waits for its place.
      const b2 = yield* fork(use("b2", () => Deferred.await(gate)))
      const a3 = yield* fork(use("a3", () => Effect.void))
      assert.strictEqual((yield* SessionPool.stats(pool)).idle, 0)
      yield* TestClock.adjust("4 seconds")
      yield* Fiber.join(a3)
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.join(b2)
      yield* SessionPool.invalidateAll(pool)
      yield* TestClock.adjust("4 seconds")
    }))
})

describe("a close that takes too long", () => {
  it.effect("of a launch that set has replaced is not told as one of the session that is there", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup: (key: string) => Effect.uninterruptible(Effect.as(Effect.sleep("1 hour"), key)),
        closeTimeout: "1 second",
        lookupTimeout: "2 hours"
      })
      const seen: Array<SessionPool.Event<string, SessionPool.AcquireError>> = []
      yield* fork(Stream.runForEach(SessionPool.events(pool), (event) => Effect.sync(() => seen.push(event))))
      const waiting = yield* fork(SessionPool.use(pool, "a", Effect.succeed))
      yield* SessionPool.set(pool, "a", "adopted")
      assert.strictEqual(yield* Fiber.join(waiting), "adopted")
      yield* TestClock.adjust("10 seconds")
      const live = yield* SessionPool.info(pool, "a")
      const [adopted, timedOut] = seen
      assert.deepStrictEqual(seen.map(({ _tag }) => _tag), ["Adopted", "CloseTimedOut"])
      assert.strictEqual(adopted?.id, Option.getOrThrow(live).id)
      assert.notStrictEqual(timedOut?.id, adopted?.id)
      yield* TestClock.adjust("1 hour")
    }))
})

describe("a connection that could not be adopted", () => {
  /** Closes a full pool while `set` waits for a place in it, or just after that has given up. */
  const endDuring = (
    acquireTimeout: Duration.Input,
    wait: Duration.Input,
    closeTimeout: Duration.Input = "30 seconds"
  ) =>
    Effect.gen(function*() {
      const closed: Array<string> = []
      const scope = yield* Scope.make()
      const pool = yield* Scope.provide(
        SessionPool.make({ lookup: Effect.succeed<string>, capacity: 1, acquireTimeout, closeTimeout }),
        scope
      )
      yield* fork(SessionPool.use(pool, "a", () => Effect.never))
      const finalizer = Effect.andThen(Effect.sleep("10 seconds"), Effect.sync(() => closed.push("b")))
      const setting = yield* fork(Effect.flip(SessionPool.set(pool, "b", "b", finalizer)))
      yield* TestClock.adjust(wait)
      const ending = yield* fork(Scope.close(scope, Exit.void))
      return { closed, ending, error: yield* Fiber.join(setting) }
    })

  it.effect("because the pool ends is closed before the end is over", () =>
    Effect.gen(function*() {
      const { closed, ending, error } = yield* endDuring("30 seconds", "1 second")
      assert.strictEqual(error._tag, "PoolClosed")
      yield* TestClock.adjust("9 seconds")
      assert.isUndefined(ending.pollUnsafe())
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(ending)
      assert.deepStrictEqual(closed, ["b"])
    }))

  it.effect("because no place became free is closed before the end is over", () =>
    Effect.gen(function*() {
      const { closed, ending, error } = yield* endDuring("5 seconds", "6 seconds")
      assert.strictEqual(error._tag, "CapacityExceeded")
      yield* TestClock.adjust("8 seconds")
      assert.isUndefined(ending.pollUnsafe())
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(ending)
      assert.deepStrictEqual(closed, ["b"])
    }))

  it.effect("and sets the next one when it is closed, and so on, does not hold the end up for ever", () =>
    Effect.gen(function*() {
      for (const wait of [0, 1]) {
        const scope = yield* Scope.make()
        const pool = yield* Scope.provide(SessionPool.make({ lookup: Effect.succeed<string> }), scope)
        let sets = 0
        const again: Effect.Effect<void> = Effect.suspend(() =>
          sets++ < 20_000
            ? Effect.andThen(Effect.sleep(wait), Effect.ignore(SessionPool.set(pool, "a", "a", again)))
            : Effect.void
        )
        yield* SessionPool.set(pool, "a", "a", again)
        const ending = yield* fork(Scope.close(scope, Exit.void))
        yield* TestClock.adjust("1 second")
        yield* Fiber.join(ending)
      }
    }))

  it.effect("holds the end up for closeTimeout at most", () =>
    Effect.gen(function*() {
      const { closed, ending } = yield* endDuring("30 seconds", "1 second", "3 seconds")
      yield* TestClock.adjust("3 seconds")
      yield* Fiber.join(ending)
      assert.deepStrictEqual(closed, [])
      yield* TestClock.adjust("7 seconds")
      assert.deepStrictEqual(closed, ["b"])
    }))
})

describe("validation", () => {
  it.effect("a validate that always says no: one relaunch, then a typed failure, and no spin", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({ lookup: backend.open, validate: () => Effect.succeed(false) })
      yield* Effect.scoped(SessionPool.get(pool, "a"))
      yield* TestClock.adjust("1 second")
      const error = yield* Effect.flip(Effect.scoped(SessionPool.get(pool, "a")))
      assert.strictEqual(error._tag, "ValidationFailed")
      assert.strictEqual(backend.opened.length, 2)
      backend.assertAllClosedOnce()
    }))
})

describe("the end and the finalizers", () => {
  it.effect("a finalizer that dies is reported, and the next sweep runs on time", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const pool = yield* SessionPool.make({
        lookup: (key: string) =>
          Effect.tap(backend.open(key), () => Effect.addFinalizer(() => Effect.die(new Error("cannot close")))),
        idleTimeToLive: "1 minute",
        cleanupInterval: "1 minute"
      })
      yield* Effect.scoped(SessionPool.get(pool, "a"))
      yield* TestClock.adjust("2 minutes")
      yield* Effect.scoped(SessionPool.get(pool, "b"))
      yield* TestClock.adjust("2 minutes")
      assert.deepStrictEqual(backend.closed.map(({ key }) => key), ["a", "b"])
    }))

  it.effect("a finalizer may get, invalidate, set and read the stats of the same pool", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const seen: Array<unknown> = []
      const pool: SessionPool.SessionPool<string, Backend.Connection> = yield* SessionPool.make({
        lookup: (key: string) =>
          Effect.tap(backend.open(key), () =>
            key !== "a" ? Effect.void : Effect.addFinalizer(() =>
              Effect.gen(function*() {
                yield* Effect.exit(Effect.scoped(SessionPool.get(pool, "b")))
                yield* SessionPool.invalidate(pool, "a")
                yield* SessionPool.invalidate(pool, "b")
                yield* Effect.exit(SessionPool.set(pool, "c", { key: "c", id: 0 }))
                seen.push((yield* SessionPool.stats(pool)).retired)
              })
            ))
      })
      yield* Effect.scoped(SessionPool.get(pool, "a"))
      yield* SessionPool.invalidate(pool, "a")
      // That of "a", which is being closed, and that of "b", which is closed after it.
      assert.deepStrictEqual(seen, [2])
      assert.deepStrictEqual(yield* SessionPool.keys(pool), ["c"])
      backend.assertAllClosedOnce()
    }))

  it.effect("closes do not wait for each other", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const gate = yield* Deferred.make<void>()
      const pool = yield* SessionPool.make({
        lookup: (key: string) =>
          Effect.tap(backend.open(key), () =>
            key === "stuck" ? Effect.addFinalizer(() => Deferred.await(gate)) : Effect.void)
      })
      yield* Effect.forEach(["stuck", "a", "b"], (key) =>
        Effect.scoped(SessionPool.get(pool, key)))
      assert.strictEqual(yield* SessionPool.invalidateAll(pool), 3)
      assert.deepStrictEqual(backend.closed.map(({ key }) => key).toSorted(), ["a", "b"])
      yield* Deferred.succeed(gate, undefined)
      yield* turns(5)
      backend.assertAllClosedOnce()
    }))

  for (const moment of ["a launch", "a wait", "a sweep", "a validation", "a close"]) {
    it.effect(`a scope closed during ${moment}, twice, ends with nothing left`, () =>
      Effect.gen(function*() {
        const backend = Backend.make()
        const gate = yield* Deferred.make<void>()
        const scope = yield* Scope.make()
        const pool = yield* SessionPool.make({
          capacity: 1,
          idleTimeToLive: "1 minute",
          validate: () => moment === "a validation" ? Effect.never : Effect.succeed(true),
          lookup: (key: string) =>
            moment === "a launch" ?
              Effect.never :
              Effect.tap(
                backend.open(key),
                () => moment === "a close" ? Effect.addFinalizer(() => Deferred.await(gate)) : Effect.void
              )
        }).pipe(Scope.provide(scope))
        const calls: Array<Fiber.Fiber<unknown, unknown>> = []
        const call = (effect: Effect.Effect<unknown, unknown>) =>
          Effect.map(Effect.forkChild(Effect.exit(effect)), (fiber) => {
            calls.push(fiber)
          })
        if (moment === "a wait") yield* call(SessionPool.use(pool, "held", () => Deferred.await(gate)))
        else if (moment !== "a launch") yield* Effect.scoped(SessionPool.get(pool, "a"))
        yield* TestClock.adjust("61 seconds")
        if (moment === "a close") yield* SessionPool.invalidate(pool, "a")
        else if (moment === "a sweep") yield* call(SessionPool.sweep(pool))
        else yield* call(Effect.scoped(SessionPool.get(pool, "a")))
        yield* turns(2)
        const ends = yield* Effect.forEach([1, 2], () => Effect.forkChild(Scope.close(scope, Exit.void)))
        yield* turns(5)
        yield* Deferred.succeed(gate, undefined)
        yield* Effect.forEach([...ends, ...calls], (fiber) => Fiber.await(fiber))
        const { active, idle, launching, retired, waiting } = yield* SessionPool.stats(pool)
        assert.deepStrictEqual([active, idle, launching, retired, waiting], [0, 0, 0, 0, 0])
        backend.assertAllClosedOnce()
      }))
  }

  it.effect("a validation that has not begun when the scope closes answers those who wait for it all the same", () => {
    const scheduler = new LateFibers()
    return Effect.gen(function*() {
      const backend = Backend.make()
      const scope = yield* Scope.make()
      const pool = yield* SessionPool.make({ lookup: backend.open, validate: () => Effect.never }).pipe(
        Scope.provide(scope)
      )
      yield* Effect.scoped(SessionPool.get(pool, "a"))
      yield* TestClock.adjust("1 second")
      const caller = yield* Effect.forkChild(
        Effect.exit(Effect.scoped(Effect.andThen(
          Effect.sync(() => {
            scheduler.late = true
          }),
          SessionPool.get(pool, "a")
        ))),
        { startImmediately: true }
      )
      scheduler.late = false
      yield* Scope.close(scope, Exit.void)
      yield* turns(200)
      assert.isDefined(caller.pollUnsafe())
      backend.assertAllClosedOnce()
    }).pipe(Effect.provideService(Scheduler.Scheduler, scheduler))
  })

  it.effect("a release after the end changes nothing", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const scope = yield* Scope.make()
      const pool = yield* SessionPool.make({ lookup: backend.open }).pipe(Scope.provide(scope))
      const lease = yield* Scope.make()
      yield* SessionPool.get(pool, "a").pipe(Scope.provide(lease))
      yield* Scope.close(scope, Exit.void)
      const before = yield* SessionPool.stats(pool)
      yield* Scope.close(lease, Exit.void)
      assert.deepStrictEqual(yield* SessionPool.stats(pool), before)
      backend.assertAllClosedOnce()
    }))
})
