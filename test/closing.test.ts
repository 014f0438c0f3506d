/** Closing: finalizers, dead connections, `invalidateAll`, and the end of the pool. */
import { assert, describe } from "@effect/vitest"
import type { Duration } from "effect"
import { Deferred, Effect, Exit, Fiber, Option, Scheduler, Scope } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import * as Backend from "./kit/pool/backend.ts"
import { fork, held, hold, idsOf, keysOf, listen, makePool, nothing, turns, visit } from "./kit/pool/calls.ts"
import { test } from "./kit/pool/withPool.ts"

describe("closeTimeout", () => {
  test("a close that exceeds closeTimeout is reported, and frees its place", function*() {
    const { pool } = yield* makePool({
      lookup: (key) =>
        Effect.acquireRelease(
          Effect.succeed({ key, id: 0 }),
          () => key === "stuck" ? Effect.sleep("1 minute") : Effect.void
        ),
      capacity: 1,
      acquireTimeout: "Infinity",
      closeTimeout: "5 seconds"
    })
    const events = yield* listen(pool)
    yield* visit(pool, "stuck")
    const waiting = yield* fork(visit(pool, "b"))
    yield* TestClock.adjust(4999)
    assert.isUndefined(waiting.pollUnsafe())
    yield* TestClock.adjust(1)
    assert.strictEqual((yield* Fiber.join(waiting)).key, "b")
    assert.deepStrictEqual(yield* held(pool), { ...nothing, idle: 1 })
    yield* TestClock.adjust("1 minute")
    const ends = events.flatMap((event) =>
      event._tag === "Closed" || event._tag === "CloseTimedOut" ? [[event._tag, event.key, event.duration]] : []
    )
    assert.deepStrictEqual(ends, [["CloseTimedOut", "stuck", 5000], ["Closed", "stuck", 60_000]])
    assert.strictEqual((yield* SessionPool.stats(pool)).closes.Evicted, 1)
  })
})

describe("finalizers", () => {
  test("a finalizer that dies frees its place, and the next sweep runs on time", function*() {
    const { pool } = yield* makePool({
      lookup: (key) => Effect.acquireRelease(Effect.succeed({ key, id: 0 }), () => Effect.die("cannot close")),
      capacity: 1,
      idleTimeToLive: "1 minute"
    })
    yield* visit(pool, "a")
    yield* visit(pool, "b")
    yield* TestClock.adjust("2 minutes")
    yield* visit(pool, "c")
    yield* TestClock.adjust("2 minutes")
    assert.deepStrictEqual(yield* held(pool), nothing)
  })

  test("a finalizer may get, touch, invalidate, set and read the stats of the same pool", function*() {
    const backend = Backend.make()
    const seen: Array<unknown> = []
    const callPool = Effect.gen(function*() {
      seen.push(
        (yield* visit(pool, "b")).key,
        yield* SessionPool.touch(pool, "a"),
        yield* SessionPool.invalidate(pool, "a"),
        yield* SessionPool.invalidate(pool, "b"),
        (yield* SessionPool.stats(pool)).retired
      )
      yield* SessionPool.set(pool, "c", { key: "c", id: 0 })
    })
    const pool: SessionPool.SessionPool<string, Backend.Connection> = yield* SessionPool.make({
      lookup: (key: string) =>
        Effect.tap(
          backend.open(key),
          () => key === "a" ? Effect.addFinalizer(() => Effect.orDie(callPool)) : Effect.void
        )
    })
    yield* visit(pool, "a")
    yield* SessionPool.invalidate(pool, "a")
    yield* turns(5)
    // The two retired are "a", which runs this finalizer, and "b", which closes after it.
    assert.deepStrictEqual(seen, ["b", Option.none(), false, true, 2])
    assert.deepStrictEqual(yield* SessionPool.keys(pool), ["c"])
    backend.assertAllClosedOnce()
  })

  test("a chain of sessions that die at once, each opened by the finalizer of the last, does not block the event loop", function*() {
    const { pool } = yield* makePool({ closed: () => Effect.void })
    const enough = 10_000
    const count = { opened: 0 }
    const replace: Effect.Effect<void> = Effect.suspend(() =>
      count.opened < enough
        ? Effect.ignore(SessionPool.set(pool, "a", { key: "a", id: ++count.opened }, replace))
        : Effect.void
    )
    yield* fork(replace)
    assert.isBelow(count.opened, enough)
    while (count.opened < enough) yield* Effect.yieldNow
  })
})

describe("closed", () => {
  const ends = { completes: Exit.void, fails: Exit.fail("reset"), dies: Exit.die("reset") }
  for (const [how, end] of Object.entries(ends)) {
    test(`a session is retired as soon as its watcher ${how}, and others are watched until they close`, function*() {
      const died = yield* Deferred.make<void, string>()
      const interrupted: Array<number> = []
      const { backend, pool } = yield* makePool({
        closed: ({ id }, key) =>
          Effect.onInterrupt(
            key === "a" && id === 1 ? Deferred.await(died) : Effect.never,
            () => Effect.sync(() => interrupted.push(id))
          )
      })
      yield* visit(pool, "a")
      yield* visit(pool, "b")
      yield* SessionPool.set(pool, "adopted", { key: "adopted", id: 99 })
      yield* Deferred.done(died, end)
      yield* TestClock.adjust(0)
      assert.deepStrictEqual([idsOf(backend.closed), interrupted], [[1], []])
      assert.strictEqual((yield* SessionPool.stats(pool)).closes.Disconnected, 1)
      assert.strictEqual((yield* visit(pool, "a")).id, 3)
      yield* SessionPool.invalidateAll(pool)
      assert.sameMembers(interrupted, [2, 3, 99])
    })
  }
})

describe("drainTimeout", () => {
  const drains: ReadonlyArray<readonly [drainTimeout: Duration.Input | undefined, millis: number, released: boolean]> =
    [
      ["10 seconds", 9000, true],
      ["10 seconds", 10_000, false],
      ["Infinity", 86_400_000, true],
      [undefined, 0, false]
    ]
  for (const [drainTimeout, millis, released] of drains) {
    const when = released ? "at their last release" : "after drainTimeout"
    test(`with drainTimeout ${drainTimeout ?? "zero, the default"}, the end closes idle sessions at once and leased ones ${when}`, function*() {
      const backend = Backend.make()
      const scope = yield* Scope.make()
      const { pool } = yield* makePool({
        drainTimeout,
        lookup: (key) => Effect.tap(backend.open(key), () => Effect.addFinalizer(() => Effect.sleep("1 second")))
      }).pipe(Scope.provide(scope))
      const lease = yield* hold(pool, "leased")
      yield* visit(pool, "idle")
      const ending = yield* fork(Scope.close(scope, Exit.void))
      assert.strictEqual((yield* Effect.flip(visit(pool, "leased"))).reason._tag, "PoolClosed")
      yield* TestClock.adjust(millis)
      assert.deepStrictEqual(keysOf(backend.closed), millis === 0 ? [] : ["idle"])
      if (released) yield* lease.release
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(ending)
      // A second release, or the release of a session that is already closed, is a no-op.
      yield* lease.release
      assert.sameMembers(keysOf(backend.closed), ["idle", "leased"])
      assert.deepStrictEqual([yield* held(pool), (yield* SessionPool.stats(pool)).leases], [nothing, 0])
    })
  }
})

describe("the end of the pool", () => {
  for (const moment of ["a sweep", "a validation", "a close"]) {
    test(`closing the scope twice during ${moment} ends every caller and leaves nothing open`, function*() {
      const backend = Backend.make()
      const gate = yield* Deferred.make<void>()
      const scope = yield* Scope.make()
      const { pool } = yield* makePool({
        idleTimeToLive: moment === "a sweep" ? "1 minute" : "1 hour",
        cleanupInterval: "Infinity",
        validate: () => Effect.never,
        lookup: (key) => Effect.tap(backend.open(key), () => Effect.addFinalizer(() => Deferred.await(gate)))
      }).pipe(Scope.provide(scope))
      const calls: Record<string, Effect.Effect<unknown, unknown>> = {
        "a sweep": SessionPool.sweep(pool),
        "a validation": visit(pool, "a"),
        "a close": SessionPool.invalidate(pool, "a")
      }
      yield* visit(pool, "a")
      yield* TestClock.adjust("2 minutes")
      const call = yield* Effect.forkChild(Effect.exit(calls[moment] ?? Effect.void))
      yield* turns(2)
      const ends = yield* Effect.forEach([1, 2], () => Effect.forkChild(Scope.close(scope, Exit.void)))
      yield* turns(5)
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.awaitAll([call, ...ends])
      assert.deepStrictEqual(yield* held(pool), nothing)
      backend.assertAllClosedOnce()
    })
  }

  test("after the end, acquisitions fail with PoolClosed, reads find nothing, and all else is a no-op", function*() {
    const scope = yield* Scope.make()
    const { backend, pool } = yield* Scope.provide(makePool(), scope)
    const { release } = yield* hold(pool, "leased")
    yield* visit(pool, "idle")
    yield* Scope.close(scope, Exit.void)
    const before = yield* SessionPool.stats(pool)
    let closes = 0
    const acquisitions = [
      visit(pool, "idle"),
      SessionPool.use(pool, "idle", () => Effect.void),
      Effect.scoped(SessionPool.lease(pool, "idle")),
      SessionPool.set(pool, "idle", { key: "idle", id: 9 }, Effect.sync(() => closes++))
    ]
    for (const acquisition of acquisitions) {
      assert.strictEqual((yield* Effect.flip(Effect.asVoid(acquisition))).reason._tag, "PoolClosed")
    }
    assert.deepStrictEqual([closes, backend.opened.length], [1, 2])
    assert.isTrue(Option.isNone(yield* SessionPool.touch(pool, "idle")))
    assert.isTrue(Option.isNone(yield* Effect.scoped(SessionPool.getOption(pool, "idle"))))
    assert.isTrue(Option.isNone(yield* SessionPool.info(pool, "idle")))
    assert.deepStrictEqual([yield* SessionPool.entries(pool), yield* SessionPool.keys(pool)], [[], []])
    assert.isFalse(yield* SessionPool.invalidate(pool, "idle"))
    yield* SessionPool.recordError(pool, "leased")
    yield* release
    assert.deepStrictEqual([yield* SessionPool.invalidateAll(pool), yield* SessionPool.sweep(pool)], [0, 0])
    assert.deepStrictEqual(yield* SessionPool.stats(pool), before)
    backend.assertAllClosedOnce()
  })
})

/** Opens a connection, which takes long to close if its key is `slow`. */
const openSlow = (key: string) =>
  Effect.acquireRelease(Effect.succeed({ key, id: 0 }), () => key === "slow" ? Effect.sleep(1000) : Effect.void)

describe("invalidateAll", () => {
  test("invalidateAll retires every session and launch, returns their number, and lets callers of a launch get its session", function*() {
    const backend = Backend.make()
    const { pool } = yield* makePool({ lookup: (key) => Effect.delay(backend.open(key), key === "idle" ? 0 : 10) })
    const callers = yield* Effect.forEach(["idle", "launching"], (key) => fork(visit(pool, key)))
    yield* TestClock.adjust(0)
    assert.strictEqual(yield* SessionPool.invalidateAll(pool), 2)
    yield* TestClock.adjust(10)
    assert.deepStrictEqual(idsOf(yield* Fiber.joinAll(callers)), [1, 2])
    assert.deepStrictEqual(idsOf(backend.closed), [1, 2])
    assert.strictEqual((yield* SessionPool.stats(pool)).closes.Invalidated, 2)
  })

  test("invalidateAll spares a connection that set adopts after the call, in place of a launch", function*() {
    for (let launching = 0; launching < 40; launching += 3) {
      const pool = yield* SessionPool.make({ lookup: (_: number): Effect.Effect<number> => Effect.never })
      for (let key = 0; key < 40; key++) if (key !== launching) yield* SessionPool.set(pool, key, key)
      yield* fork(visit(pool, launching))
      const pass = yield* fork(SessionPool.invalidateAll(pool))
      assert.isUndefined(pass.pollUnsafe())
      yield* SessionPool.set(pool, launching, 99)
      yield* Fiber.join(pass)
      assert.isTrue(Option.isSome(yield* SessionPool.touch(pool, launching)))
    }
  })

  test("invalidateAll spares a launch that was waiting for a place at the call", function*() {
    for (const [idle = "", waiting = ""] of [["a", "b"], ["b", "a"]]) {
      const { pool } = yield* makePool({ capacity: 2, lookup: openSlow })
      yield* visit(pool, "slow")
      yield* SessionPool.invalidate(pool, "slow")
      yield* visit(pool, idle)
      const caller = yield* fork(visit(pool, waiting))
      const retired = yield* SessionPool.invalidateAll(pool)
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(caller)
      assert.deepStrictEqual([retired, yield* SessionPool.keys(pool)], [1, [waiting]])
    }
  })

  test("invalidateAll asks once about each session that was live at the call, and shows its present state", function*() {
    const pool = yield* SessionPool.make({ lookup: (_: number): Effect.Effect<number> => Effect.never })
    for (let key = 0; key < 2000; key++) yield* SessionPool.set(pool, key, key)
    yield* fork(Effect.exit(visit(pool, -1)))
    let asked = 0
    const pass = yield* fork(SessionPool.invalidateAll(pool, ({ key, leases, state }) => {
      asked++
      assert.isTrue(key >= 0 && state === (leases === 0 ? "idle" : "active"))
      return state === "idle"
    }))
    const [leased = 0, replaced = 0] = (yield* SessionPool.keys(pool)).slice(-2)
    yield* hold(pool, leased)
    yield* SessionPool.set(pool, replaced, replaced)
    assert.deepStrictEqual([yield* Fiber.join(pass), asked], [1998, 1999])
    assert.sameMembers(yield* SessionPool.keys(pool), [leased, replaced])
    assert.strictEqual((yield* SessionPool.stats(pool)).launching, 1)
  })

  test("invalidateAll retires no session that is leased after the predicate was asked, wherever it yields", function*() {
    const outcomes = new Set<number>()
    for (let budget = 3; budget <= 40; budget++) {
      const { backend, pool } = yield* makePool()
      yield* SessionPool.set(pool, "a", { key: "a", id: 0 })
      const pass = yield* SessionPool.invalidateAll(pool, ({ leases }) => leases === 0).pipe(
        Effect.provideService(Scheduler.MaxOpsBeforeYield, budget),
        fork
      )
      yield* hold(pool, "a")
      const retired = yield* Fiber.join(pass)
      assert.strictEqual(backend.opened.length, retired)
      outcomes.add(retired)
    }
    assert.deepStrictEqual([...outcomes].toSorted(), [0, 1])
  })
})
