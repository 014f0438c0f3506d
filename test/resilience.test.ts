/** What a pool lives on after: callers that wake each other, observers, loggers and clocks that throw, a clock set back. */
import { assert, describe, it } from "@effect/vitest"
import { Clock, Deferred, Effect, Exit, Fiber, Logger, Option, Scope, Stream } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"

type Pool = SessionPool.SessionPool<string, string>

const fork = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })
const use = (pool: Pool, key: string) => SessionPool.use(pool, key, Effect.succeed)

/** Runs an effect outside the test's fiber, with an observer that throws. */
const observed = (effect: Effect.Effect<unknown, unknown>) =>
  Effect.map(Effect.context<never>(), (context) => {
    Effect.runCallbackWith(context)(effect, {
      onExit: () => {
        throw new Error("a stranger's")
      }
    })
  })

const listen = Effect.fnUntraced(function*(pool: Pool) {
  const seen: Array<SessionPool.Event<string, SessionPool.AcquireError>> = []
  yield* fork(Stream.runForEach(SessionPool.events(pool), (event) => Effect.sync(() => seen.push(event))))
  return seen
})

const tags = (events: ReadonlyArray<{ readonly _tag: string; readonly key: string }>) =>
  events.map(({ _tag, key }) => `${_tag} ${key}`)

describe("whoever replaces a connection as soon as it has died", () => {
  const enough = 10_000

  /** Adopts a connection that dies at once, and so on without a wait, until there have been enough. */
  const chain = (
    again: (pool: Pool, set: (finalizer?: Effect.Effect<unknown>) => Effect.Effect<void>) => Effect.Effect<void>
  ) =>
    Effect.gen(function*() {
      const count = { opened: 0, limit: enough }
      const pool = yield* SessionPool.make({ lookup: Effect.succeed<string>, closed: () => Effect.void })
      const set = (finalizer?: Effect.Effect<unknown>) =>
        Effect.suspend(() =>
          count.opened === count.limit
            ? Effect.void
            : Effect.ignore(SessionPool.set(pool, "a", `${++count.opened}`, finalizer))
        )
      yield* fork(again(pool, set))
      yield* fork(set())
      const inOneTurn = count.opened
      assert.isBelow(inOneTurn, enough)
      while (count.opened < enough) yield* Effect.yieldNow
    })

  it.effect("on its event leaves the event loop its turn", () =>
    chain((pool, set) => {
      const retired = Stream.filter(SessionPool.events(pool), ({ _tag }) => _tag === "Retired")
      return Stream.runForEach(retired, () => set())
    }))

  it.effect("in its finalizer leaves the event loop its turn", () =>
    chain((_, set) => {
      const again: Effect.Effect<void> = Effect.suspend(() => set(again))
      return again
    }))
})

describe("an observer that throws", () => {
  it.effect("of a caller leaves the others that wait for the same launch their session", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void>()
      const pool = yield* SessionPool.make({ lookup: (key: string) => Effect.as(Deferred.await(gate), key) })
      yield* observed(use(pool, "a"))
      const others = [yield* fork(use(pool, "a")), yield* fork(use(pool, "a"))]
      yield* Deferred.succeed(gate, undefined)
      assert.deepStrictEqual(yield* Fiber.joinAll(others), ["a", "a"])
      assert.strictEqual((yield* SessionPool.stats(pool)).active, 0)
    }))

  it.effect("of a caller leaves the others that wait for the same validation their session", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup: Effect.succeed<string>,
        validate: () => Effect.as(Effect.sleep(50), true)
      })
      yield* use(pool, "a")
      yield* TestClock.adjust("2 seconds")
      yield* observed(use(pool, "a"))
      const other = yield* fork(use(pool, "a"))
      yield* TestClock.adjust("1 second")
      assert.strictEqual(yield* Fiber.join(other), "a")
      assert.strictEqual((yield* SessionPool.stats(pool)).active, 0)
    }))

  /** A reader that ends with the first such event, and whose observer throws then. */
  const reader = (pool: Pool, tag: string) =>
    observed(Stream.runHead(Stream.filter(SessionPool.events(pool), ({ _tag }) => _tag === tag)))

  it.effect("of a reader of events leaves the session its watcher", () =>
    Effect.gen(function*() {
      const died = yield* Deferred.make<void>()
      const pool = yield* SessionPool.make({ lookup: Effect.succeed<string>, closed: () => Deferred.await(died) })
      yield* reader(pool, "Launched")
      yield* use(pool, "a")
      yield* Deferred.succeed(died, undefined)
      assert.strictEqual(yield* SessionPool.size(pool), 0)
    }))

  it.effect("of a reader of events leaves the pool the place of a close that takes too long", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup: (key: string) =>
          Effect.acquireRelease(Effect.succeed(key), () => key === "a" ? Effect.sleep("1 minute") : Effect.void),
        capacity: 1,
        closeTimeout: "10 seconds"
      })
      yield* reader(pool, "CloseTimedOut")
      yield* use(pool, "a")
      yield* SessionPool.invalidate(pool, "a")
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual(yield* use(pool, "b"), "b")
    }))

  it.effect("of a reader of events leaves the end of the pool and the other readers theirs", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const pool = yield* Scope.provide(SessionPool.make({ lookup: Effect.succeed<string> }), scope)
      yield* reader(pool, "None")
      const other = yield* fork(Stream.runDrain(SessionPool.events(pool)))
      yield* Scope.close(scope, Exit.void)
      yield* Fiber.join(other)
      yield* Stream.runDrain(SessionPool.events(pool))
    }))
})

describe("a logger that throws", () => {
  const logger = () => {
    let logged = 0
    return Logger.layer([Logger.make(() => {
      if (++logged === 1) throw new Error("EPIPE")
    })])
  }

  it.effect("loses no report of a leak", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup: Effect.succeed<string>, leakDetection: "1 minute" })
      const seen = yield* listen(pool)
      for (const key of ["a", "b"]) {
        yield* fork(SessionPool.use(pool, key, () => Effect.never))
        yield* TestClock.adjust("10 minutes")
      }
      assert.deepStrictEqual(tags(seen).filter((tag) => tag.startsWith("LeaseLeaked")), [
        "LeaseLeaked a",
        "LeaseLeaked b"
      ])
    }).pipe(Effect.provide(logger())))

  it.effect("loses no end of a close", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup: (key: string) => Effect.acquireRelease(Effect.succeed(key), () => Effect.sleep("1 minute"))
      })
      const seen = yield* listen(pool)
      yield* use(pool, "a")
      yield* SessionPool.invalidate(pool, "a")
      yield* TestClock.adjust("10 minutes")
      assert.deepStrictEqual(tags(seen), ["Launched a", "Retired a", "CloseTimedOut a", "Closed a"])
    }).pipe(Effect.provide(logger())))
})

/** A clock that may be set, and that may have no timers for a while; its sleeps go on. */
const settable = Effect.map(Clock.clockWith(Effect.succeed), (clock) => {
  const state = { offset: 0, isBroken: false }
  const own: Clock.Clock = {
    currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + state.offset,
    currentTimeMillis: Effect.map(clock.currentTimeMillis, (now) => now + state.offset),
    currentTimeNanosUnsafe: () => clock.currentTimeNanosUnsafe(),
    currentTimeNanos: clock.currentTimeNanos,
    monotonicTimeNanosUnsafe: () => clock.monotonicTimeNanosUnsafe(),
    monotonicTimeNanos: clock.monotonicTimeNanos,
    sleep: (duration) => {
      if (state.isBroken) throw new Error("no timers")
      return clock.sleep(duration)
    }
  }
  return { state, own }
})

describe("a clock that has no timers for a moment", () => {
  /** A pool with one place and such a clock. `during`: runs something at that moment. */
  const make = (options: {
    readonly lookup: (key: string) => Effect.Effect<string, never, Scope.Scope>
    readonly maxWaiting?: number
  }) =>
    Effect.gen(function*() {
      const { own, state } = yield* settable
      const scope = yield* Scope.make()
      const pool = yield* SessionPool.make({ ...options, capacity: 1, closeTimeout: "10 seconds" }).pipe(
        Scope.provide(scope),
        Effect.provideService(Clock.Clock, own)
      )
      const during = <A, E>(effect: Effect.Effect<A, E>) =>
        Effect.gen(function*() {
          state.isBroken = true
          const running = yield* fork(Effect.exit(effect))
          state.isBroken = false
          return running
        })
      const end = Effect.gen(function*() {
        const ending = yield* fork(Scope.close(scope, Exit.void))
        yield* TestClock.adjust("10 seconds")
        yield* Fiber.join(ending)
      })
      return { pool, during, end }
    })

  for (
    const what of ["fails its callers", "has no place where they are interrupted at once", "is replaced by set"]
  ) {
    it.effect(`a launch that dies of it ${what}, and its lookup is interrupted`, () =>
      Effect.gen(function*() {
        const lookups = { running: 0 }
        const lookup = () =>
          Effect.acquireUseRelease(
            Effect.sync(() => lookups.running++),
            () => Effect.never,
            () => Effect.sync(() => lookups.running--)
          )
        const { during, end, pool } = yield* make({ lookup })
        const caller = yield* during(use(pool, "a"))
        assert.strictEqual(lookups.running, 1)
        if (what.endsWith("at once")) yield* Fiber.interrupt(caller)
        if (what.endsWith("set")) yield* SessionPool.set(pool, "a", "adopted").pipe(Effect.ignore, fork)
        yield* Effect.yieldNow
        yield* Effect.yieldNow
        assert.strictEqual(lookups.running, 0)
        if (what.startsWith("fails")) assert.isTrue(Exit.isFailure(yield* Fiber.join(caller)))
        yield* SessionPool.invalidateAll(pool)
        yield* SessionPool.set(pool, "b", "in its place")
        yield* end
      }))
  }

  it.effect("a refused connection is closed, and the end comes", () =>
    Effect.gen(function*() {
      const closed: Array<string> = []
      const { during, end, pool } = yield* make({ lookup: Effect.succeed<string>, maxWaiting: 0 })
      const lease = yield* Scope.make()
      yield* Scope.provide(SessionPool.get(pool, "a"), lease)
      const gate = yield* Deferred.make<void>()
      const close = Effect.andThen(Deferred.await(gate), Effect.sync(() => closed.push("b")))
      yield* during(SessionPool.set(pool, "b", "b", close))
      yield* Scope.close(lease, Exit.void)
      yield* Deferred.succeed(gate, undefined)
      yield* end
      assert.deepStrictEqual(closed, ["b"])
    }))

  it.effect("a close that dies of it goes on, once, and its place is free when it is over", () =>
    Effect.gen(function*() {
      const count = { opened: 0, closing: 0, closed: 0 }
      const gate = yield* Deferred.make<void>()
      const { during, end, pool } = yield* make({
        lookup: (key) =>
          Effect.acquireRelease(Effect.as(Effect.sync(() => count.opened++), key), () =>
            Effect.andThen(
              Effect.andThen(Effect.sync(() => count.closing++), Deferred.await(gate)),
              Effect.sync(() => count.closed++)
            ))
      })
      yield* use(pool, "a")
      yield* during(SessionPool.invalidate(pool, "a"))
      const next = yield* fork(use(pool, "b"))
      yield* TestClock.adjust("2 seconds")
      assert.deepStrictEqual(count, { opened: 1, closing: 1, closed: 0 })
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.join(next)
      assert.deepStrictEqual(count, { opened: 2, closing: 1, closed: 1 })
      yield* end
    }))
})

describe("the system's clock set back", () => {
  const setBack = <A, E>(
    run: (
      wall: { offset: number },
      onIt: <B, E2, R>(make: Effect.Effect<B, E2, R>) => Effect.Effect<B, E2, R>
    ) => Effect.Effect<A, E, Scope.Scope>
  ) =>
    Effect.gen(function*() {
      const { own, state: wall } = yield* settable
      yield* TestClock.adjust("100 hours")
      return yield* Effect.scoped(run(wall, Effect.provideService(Clock.Clock, own)))
    })

  it.effect("keeps no idle session, and no failure, longer than it may", () =>
    setBack((wall, onIt) =>
      Effect.gen(function*() {
        let works = false
        const pool = yield* SessionPool.make({
          lookup: (key: string) => works || key !== "bad" ? Effect.succeed(key) : Effect.fail("down"),
          failureTimeToLive: "5 seconds",
          idleTimeToLive: "10 minutes",
          cleanupInterval: "1 minute"
        }).pipe(onIt)
        yield* SessionPool.use(pool, "good", Effect.succeed)
        yield* Effect.flip(SessionPool.use(pool, "bad", Effect.succeed))
        works = true
        wall.offset = -3_600_000
        yield* TestClock.adjust("3 seconds")
        assert.strictEqual(yield* Effect.flip(SessionPool.use(pool, "bad", Effect.succeed)), "down")
        yield* TestClock.adjust("6 seconds")
        assert.strictEqual(yield* SessionPool.use(pool, "bad", Effect.succeed), "bad")
        yield* TestClock.adjust("9 minutes")
        assert.strictEqual(yield* SessionPool.size(pool), 2)
        yield* TestClock.adjust("3 minutes")
        assert.strictEqual(yield* SessionPool.size(pool), 0)
      })
    ))

  it.effect("makes no duration negative, and hides no leak", () =>
    setBack((wall, onIt) =>
      Effect.gen(function*() {
        const pool: Pool = yield* SessionPool.make({
          lookup: (key: string) => Effect.as(Effect.sleep("2 seconds"), key),
          leakDetection: "1 minute"
        }).pipe(onIt)
        const seen = yield* listen(pool)
        yield* fork(SessionPool.use(pool, "a", () => Effect.never))
        yield* TestClock.adjust("1 second")
        wall.offset = -3_600_000
        yield* TestClock.adjust("5 minutes")
        assert.deepStrictEqual(tags(seen), ["Launched a", "LeaseLeaked a"])
        for (const event of seen) if ("duration" in event) assert.isAtLeast(event.duration, 0)
      })
    ))

  it.effect("is what info tells of by then, and the next sweep is on time", () =>
    setBack((wall, onIt) =>
      Effect.gen(function*() {
        const pool: Pool = yield* SessionPool.make({
          lookup: Effect.succeed<string>,
          idleTimeToLive: "10 seconds",
          cleanupInterval: "1 minute"
        }).pipe(onIt)
        yield* TestClock.adjust("10 seconds")
        yield* use(pool, "a")
        wall.offset = -3_600_000
        yield* use(pool, "a")
        const now = (yield* Clock.currentTimeMillis) + wall.offset
        const { createdAt, lastUsedAt, openedAt } = Option.getOrThrow(yield* SessionPool.info(pool, "a"))
        assert.deepStrictEqual([createdAt, lastUsedAt, openedAt], [now, now, now])
        yield* TestClock.adjust("50 seconds")
        assert.strictEqual(yield* SessionPool.size(pool), 0)
      })
    ))
})
