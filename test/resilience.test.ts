/** What a pool lives on after: a full stack, callers that wake each other, observers and loggers that throw, a clock set back. */
import { assert, describe, it } from "@effect/vitest"
import { Clock, Deferred, Effect, Exit, Fiber, Logger, Scope, Stream } from "effect"
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

describe("a caller near the end of the stack", () => {
  it("costs nobody else anything: the pool serves on, and ends", async () => {
    let open = 0
    const scope = Scope.makeUnsafe()
    const pool = await Effect.runPromise(Scope.provide(
      SessionPool.make({
        lookup: (key: string) =>
          Effect.acquireRelease(Effect.sync(() => (open++, key)), () => Effect.sync(() => open--)),
        idleTimeToLive: 0
      }),
      scope
    ))
    let tries = 0
    const recurse = (): void => {
      try {
        recurse()
      } catch (error) {
        if (tries++ < 400) Effect.runSyncExit(use(pool, `deep ${tries}`))
        throw error
      }
    }
    assert.throws(recurse, RangeError)
    assert.isAbove(tries, 400)
    assert.strictEqual(await Effect.runPromise(use(pool, "later")), "later")
    await Effect.runPromise(Scope.close(scope, Exit.void))
    const { active, idle, launching, retired } = await Effect.runPromise(SessionPool.stats(pool))
    assert.deepStrictEqual({ active, idle, launching, retired }, { active: 0, idle: 0, launching: 0, retired: 0 })
  })
})

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

describe("the system's clock set back", () => {
  /** A clock that somebody may set; its sleeps go on. */
  const settable = Effect.map(Clock.clockWith(Effect.succeed), (clock) => {
    const wall = { offset: 0 }
    const own: Clock.Clock = {
      currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + wall.offset,
      currentTimeMillis: Effect.map(clock.currentTimeMillis, (now) => now + wall.offset),
      currentTimeNanosUnsafe: () => clock.currentTimeNanosUnsafe(),
      currentTimeNanos: clock.currentTimeNanos,
      monotonicTimeNanosUnsafe: () => clock.monotonicTimeNanosUnsafe(),
      monotonicTimeNanos: clock.monotonicTimeNanos,
      sleep: (duration) => clock.sleep(duration)
    }
    return { wall, own }
  })
  const setBack = <A, E>(
    run: (
      wall: { offset: number },
      onIt: <B, E2, R>(make: Effect.Effect<B, E2, R>) => Effect.Effect<B, E2, R>
    ) => Effect.Effect<A, E, Scope.Scope>
  ) =>
    Effect.gen(function*() {
      const { own, wall } = yield* settable
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
})
