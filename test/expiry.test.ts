/** Expiry of sessions: by idle time and lifetime, also when the clock jumps. */
import { assert, describe } from "@effect/vitest"
import type { Duration } from "effect"
import { Clock, Effect, Option, Random } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import type { Connection } from "./kit/pool/backend.ts"
import type { Options } from "./kit/pool/calls.ts"
import { fork, hold, idsOf, keysOf, listen, makePool, visit } from "./kit/pool/calls.ts"
import { settable } from "./kit/pool/clock.ts"
import { test } from "./kit/pool/withPool.ts"

describe("idleTimeToLive", () => {
  test("idle time counts from the last touch or release, and not during a lease", function*() {
    const { backend, pool } = yield* makePool({ idleTimeToLive: "10 minutes", cleanupInterval: "1 minute" })
    const lease = yield* hold(pool, "released")
    yield* visit(pool, "touched")
    yield* visit(pool, "left")
    yield* TestClock.adjust("9 minutes")
    yield* SessionPool.touch(pool, "touched")
    yield* TestClock.adjust("2 minutes")
    assert.deepStrictEqual(keysOf(backend.closed), ["left"])
    assert.strictEqual((yield* visit(pool, "released")).id, 1)
    yield* lease.release
    assert.strictEqual(Option.getOrThrow(yield* SessionPool.info(pool, "released")).lastUsedAt, 11 * 60_000)
    yield* TestClock.adjust("10 minutes")
    assert.deepStrictEqual(keysOf(backend.closed), ["left", "touched"])
    yield* TestClock.adjust("1 minute")
    assert.deepStrictEqual(keysOf(backend.closed), ["left", "touched", "released"])
    assert.strictEqual((yield* SessionPool.stats(pool)).closes.IdleTimeout, 3)
  })

  test("each key may have its idle time, and the shortest positive one so far sets the default interval", function*() {
    const times: Record<string, Duration.Input> = { long: "1 hour", longer: "1 hour", none: 0 }
    const { backend, pool } = yield* makePool({ idleTimeToLive: (key) => times[key] ?? "1 minute" })
    yield* visit(pool, "long")
    yield* visit(pool, "none")
    assert.deepStrictEqual(keysOf(backend.closed), ["none"])
    yield* TestClock.adjust("1 second")
    for (const key of ["short", "longer", "none"]) yield* visit(pool, key)
    yield* TestClock.adjust("64 seconds")
    assert.deepStrictEqual(keysOf(backend.closed), ["none", "none"])
    yield* TestClock.adjust("6 seconds")
    assert.deepStrictEqual(keysOf(backend.closed), ["none", "none", "short"])
    yield* TestClock.adjust("1 hour")
    assert.deepStrictEqual(keysOf(backend.closed), ["none", "none", "short", "long", "longer"])
  })
})

describe("maxLifetime", () => {
  test("each lifetime is up to a tenth shorter at random, so sessions opened together do not expire together", function*() {
    const { backend, pool } = yield* Random.withSeed(
      makePool({ idleTimeToLive: "Infinity", maxLifetime: "100 minutes", cleanupInterval: "1 minute" }),
      "jitter"
    )
    for (let session = 0; session < 50; session++) yield* visit(pool, `s${session}`)
    yield* TestClock.adjust("90 minutes")
    const closes = [backend.closed.length]
    for (let minute = 0; minute < 11; minute++) {
      yield* TestClock.adjust("1 minute")
      closes.push(backend.closed.length)
    }
    assert.deepStrictEqual([closes.at(0), closes.at(-1)], [0, 50])
    assert.isAtLeast(new Set(closes).size, 6)
  })
})

describe("overdue sessions", () => {
  const overdue: ReadonlyArray<
    readonly [cause: "IdleTimeout" | "MaxLifetime", options: Options, valid: Duration.Input, rest: Duration.Input]
  > = [
    ["IdleTimeout", { idleTimeToLive: "1 minute" }, "1 minute", 1],
    ["MaxLifetime", { idleTimeToLive: "Infinity", maxLifetime: "1 minute" }, "54 seconds", "6 seconds"]
  ]
  type Pool = SessionPool.SessionPool<string, Connection>
  const replacements: Record<string, (pool: Pool) => Effect.Effect<unknown, unknown>> = {
    "one of twenty concurrent gets": (pool) =>
      Effect.forEach(Array.from({ length: 20 }), () => visit(pool, "a"), { concurrency: "unbounded" }),
    "use": (pool) => SessionPool.use(pool, "a", () => Effect.void),
    "lease": (pool) => Effect.scoped(SessionPool.lease(pool, "a"))
  }
  for (const [cause, options, valid, rest] of overdue) {
    /** A pool with one place and one overdue session, without a sweep. */
    const make = Effect.gen(function*() {
      const { backend, pool } = yield* makePool({ cleanupInterval: "Infinity", capacity: 1, ...options })
      yield* visit(pool, "a")
      yield* TestClock.adjust(valid)
      assert.isTrue(Option.isSome(yield* SessionPool.info(pool, "a")), "not overdue yet")
      yield* TestClock.adjust(rest)
      return { backend, pool }
    })

    for (const [name, replace] of Object.entries(replacements)) {
      test(`${name} retires a session overdue by ${cause} and launches anew`, function*() {
        const { backend, pool } = yield* make
        yield* replace(pool)
        assert.deepStrictEqual([idsOf(backend.opened), idsOf(backend.closed)], [[1, 2], [1]])
        assert.strictEqual((yield* SessionPool.stats(pool)).closes[cause], 1)
      })
    }

    test(`touch, info and getOption do not find a session overdue by ${cause}, and a sweep retires it`, function*() {
      const { backend, pool } = yield* make
      assert.isTrue(Option.isNone(yield* SessionPool.touch(pool, "a")))
      assert.isTrue(Option.isNone(yield* SessionPool.info(pool, "a")))
      assert.isTrue(Option.isNone(yield* Effect.scoped(SessionPool.getOption(pool, "a"))))
      yield* SessionPool.sweep(pool)
      assert.deepStrictEqual([idsOf(backend.opened), idsOf(backend.closed)], [[1], [1]])
    })
  }
})

describe("cleanupInterval", () => {
  const intervals: ReadonlyArray<readonly [interval: string, options: Options, closesAt: number]> = [
    ["at cleanupInterval", { idleTimeToLive: "1 minute", cleanupInterval: "10 minutes" }, 10 * 60_000],
    ["at most once a second by default", { idleTimeToLive: 1 }, 1000],
    ["every sixth of the idle time by default", { idleTimeToLive: "1 minute" }, 70_000],
    ["at least every 5 minutes by default", { idleTimeToLive: "2 hours" }, 125 * 60_000]
  ]
  for (const [interval, options, closesAt] of intervals) {
    test(`the cleanup runs ${interval}`, function*() {
      const { backend, pool } = yield* makePool(options)
      yield* visit(pool, "a")
      yield* TestClock.adjust(closesAt - 1)
      assert.deepStrictEqual(keysOf(backend.closed), [])
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(keysOf(backend.closed), ["a"])
    })
  }

  test("a session with a shorter idle time brings the cleanup forward, on the grid of the new interval", function*() {
    const { backend, pool } = yield* makePool({ idleTimeToLive: (key) => key === "short" ? "1 minute" : "2 hours" })
    yield* visit(pool, "long")
    yield* TestClock.adjust("63 seconds")
    yield* visit(pool, "short")
    yield* TestClock.adjust(67_000 - 1)
    assert.deepStrictEqual(keysOf(backend.closed), [])
    yield* TestClock.adjust(1)
    assert.deepStrictEqual(keysOf(backend.closed), ["short"])
  })

  test("idle times that get shorter with each launch do not delay the cleanup", function*() {
    let idleTimeToLive = 600_000
    const { pool } = yield* makePool({ idleTimeToLive: () => idleTimeToLive-- })
    for (let minute = 0; minute < 20; minute++) {
      yield* visit(pool, `s${minute}`)
      yield* TestClock.adjust("1 minute")
    }
    assert.isAtMost(yield* SessionPool.size(pool), 12)
  })
})

describe("sweep", () => {
  test("a sweep retires each session idle for more than 30 minutes, the default, and returns their number", function*() {
    const { backend, pool } = yield* makePool({ cleanupInterval: "Infinity" })
    yield* visit(pool, "old")
    yield* hold(pool, "leased")
    yield* TestClock.adjust("30 minutes")
    assert.strictEqual(yield* SessionPool.sweep(pool), 0)
    yield* TestClock.adjust(1)
    yield* visit(pool, "new")
    assert.deepStrictEqual([yield* SessionPool.sweep(pool), yield* SessionPool.sweep(pool)], [1, 0])
    assert.deepStrictEqual(keysOf(backend.closed), ["old"])
  })
})

describe("system clock", () => {
  /** A pool on a clock that can be set, with sessions that take two seconds to open. */
  const make = Effect.gen(function*() {
    const clock = yield* settable
    yield* TestClock.adjust("100 hours")
    const pool = yield* SessionPool.make({
      lookup: (key: string) => Effect.delay(Effect.succeed(key), "2 seconds"),
      idleTimeToLive: "10 minutes",
      cleanupInterval: "1 minute",
      leakDetection: "1 minute"
    }).pipe(Effect.provideService(Clock.Clock, clock))
    return { clock, pool }
  })

  test("a clock set back prolongs no idle time, makes no duration negative and hides no leak", function*() {
    const { clock, pool } = yield* make
    const seen = yield* listen(pool)
    yield* fork(visit(pool, "idle"))
    yield* fork(hold(pool, "leaked"))
    yield* TestClock.adjust("1 second")
    clock.offset = -3_600_000
    yield* TestClock.adjust("10 minutes")
    assert.strictEqual(yield* SessionPool.size(pool), 2)
    // "leaked" opened two seconds after the start, one second after the clock was set back. `info` shows times of the new clock.
    const { createdAt, lastUsedAt, openedAt } = Option.getOrThrow(yield* SessionPool.info(pool, "leaked"))
    const now = clock.currentTimeMillisUnsafe()
    assert.deepStrictEqual([createdAt, openedAt, lastUsedAt].map((time) => now - time), [599_000, 599_000, 599_000])
    yield* TestClock.adjust("2 minutes")
    assert.deepStrictEqual(yield* SessionPool.keys(pool), ["leaked"])
    assert.deepStrictEqual(seen.map(({ _tag }) => _tag), ["Launched", "Launched", "LeaseLeaked", "Retired", "Closed"])
    for (const event of seen) if ("duration" in event) assert.isAtLeast(event.duration, 0)
  })

  test("info shows the times of a clock that was set back", function*() {
    const { clock, pool } = yield* make
    yield* fork(visit(pool, "a"))
    yield* TestClock.adjust("2 seconds")
    clock.offset = -3_600_000
    const { createdAt, lastUsedAt, openedAt } = Option.getOrThrow(yield* SessionPool.info(pool, "a"))
    const now = clock.currentTimeMillisUnsafe()
    assert.deepStrictEqual([createdAt, openedAt, lastUsedAt], [now, now, now])
  })

  test("a clock that jumps forward, as after the sleep of a laptop, expires idle sessions", function*() {
    const { clock, pool } = yield* make
    yield* fork(visit(pool, "a"))
    yield* fork(visit(pool, "b"))
    yield* TestClock.adjust("2 seconds")
    clock.offset = 3_600_000
    assert.isTrue(Option.isNone(yield* SessionPool.touch(pool, "a")))
    yield* fork(visit(pool, "a"))
    yield* TestClock.adjust("1 minute")
    assert.deepStrictEqual(yield* SessionPool.keys(pool), ["a"])
    assert.strictEqual((yield* SessionPool.stats(pool)).closes.IdleTimeout, 2)
  })
})
