/** Failed launches: the error of each caller, lookupTimeout, and failureTimeToLive. */
import { assert, describe, it } from "@effect/vitest"
import { Cause, Effect, Exit, Fiber, Option } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import { fork } from "./kit/pool/fork.ts"
import type { Options, Pool } from "./kit/pool/scripted.ts"
import { ask, make, refusal, visit } from "./kit/pool/scripted.ts"

describe("failed launches", () => {
  const defect = new Error("defect")
  const failures: Record<string, readonly [failure: Effect.Effect<void, string>, squashed: unknown]> = {
    fails: [Effect.fail("refused"), "refused"],
    dies: [Effect.die(defect), defect]
  }
  for (const [name, [failure, squashed]] of Object.entries(failures)) {
    it.effect(`every caller gets the cause of a lookup that ${name}, and nothing stays open`, () =>
      Effect.gen(function*() {
        const { backend, pool } = yield* make<string>({ opening: () => Effect.delay(failure, 10) })
        const callers = [yield* ask(pool, "a"), yield* ask(pool, "a")]
        yield* TestClock.adjust(10)
        for (const caller of callers) {
          const exit = yield* Fiber.await(caller)
          assert.strictEqual(Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined, squashed)
        }
        backend.assertAllClosedOnce()
        assert.deepInclude(yield* SessionPool.stats(pool), { launchFailures: 1, errors: 0, launching: 0, retired: 0 })
        assert.strictEqual(yield* SessionPool.size(pool), 0)
      }))
  }

  it.effect("a lookup function that throws is a defect of its callers", () =>
    Effect.gen(function*() {
      const lookup = (_: string): Effect.Effect<string> => {
        throw defect
      }
      const exit = yield* Effect.exit(SessionPool.use(yield* SessionPool.make({ lookup }), "a", Effect.succeed))
      assert.strictEqual(Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined, defect)
    }))
})

describe("lookupTimeout", () => {
  it.effect("a launch that exceeds lookupTimeout fails its callers, and closes what it acquired", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* make({ lookupTimeout: "2 seconds", opening: () => Effect.sleep("1 hour") })
      const first = yield* fork(refusal(visit(pool, "a")))
      yield* TestClock.adjust("1999 millis")
      const second = yield* fork(refusal(visit(pool, "a")))
      assert.isUndefined(first.pollUnsafe())
      yield* TestClock.adjust(1)
      for (const refused of [first, second]) {
        assert.deepInclude(yield* Fiber.join(refused), { _tag: "LookupTimeout", limit: 2000, waited: 2000 })
      }
      backend.assertAllClosedOnce()
      assert.deepInclude(yield* SessionPool.stats(pool), { launchFailures: 1, launching: 0, retired: 0 })
    }))

  for (const [lookupTimeout, isDone] of [[undefined, true], ["Infinity", false]] as const) {
    it.effect(`a launch ${isDone ? "times out" : "goes on"} after a minute with lookupTimeout ${lookupTimeout}`, () =>
      Effect.gen(function*() {
        const { pool } = yield* make({ lookupTimeout, opening: () => Effect.sleep("1 day") })
        const caller = yield* ask(pool, "a")
        yield* TestClock.adjust(59_999)
        assert.isUndefined(caller.pollUnsafe())
        yield* TestClock.adjust(1)
        assert.strictEqual(caller.pollUnsafe() !== undefined, isDone)
      }))
  }
})

describe("failureTimeToLive", () => {
  /** A back end that refuses every key until it is told to work. */
  const broken = (options: Options<string> = {}) =>
    Effect.gen(function*() {
      const site = { tries: 0, works: false }
      const { pool } = yield* make<string>({
        failureTimeToLive: "10 seconds",
        cleanupInterval: "Infinity",
        ...options,
        opening: () => Effect.suspend(() => site.works ? Effect.void : Effect.fail(`try ${++site.tries}`))
      })
      const failure = (key: string) => Effect.flip(visit(pool, key))
      const remembered = Effect.map(SessionPool.stats(pool), ({ failures }) => failures)
      return { site, pool, failure, remembered }
    })

  it.effect("a remembered failure fails callers without a launch, until its time is over", () =>
    Effect.gen(function*() {
      const { failure } = yield* broken()
      assert.strictEqual(yield* failure("a"), "try 1")
      yield* TestClock.adjust(9999)
      assert.strictEqual(yield* failure("a"), "try 1")
      assert.strictEqual(yield* failure("b"), "try 2")
      yield* TestClock.adjust(1)
      assert.strictEqual(yield* failure("a"), "try 3")
    }))

  it.effect("no failure is remembered by default", () =>
    Effect.gen(function*() {
      const { failure, remembered } = yield* broken({ failureTimeToLive: undefined })
      assert.deepStrictEqual([yield* failure("a"), yield* failure("a")], ["try 1", "try 2"])
      assert.strictEqual(yield* remembered, 0)
    }))

  it.effect("a remembered failure is no session, and takes no place", () =>
    Effect.gen(function*() {
      const { failure, pool, site } = yield* broken({ capacity: 1 })
      yield* failure("a")
      assert.isTrue(Option.isNone(yield* SessionPool.getOption(pool, "a")))
      assert.isTrue(Option.isNone(yield* SessionPool.touch(pool, "a")))
      assert.deepStrictEqual(yield* SessionPool.keys(pool), [])
      site.works = true
      assert.strictEqual((yield* visit(pool, "b")).key, "b")
    }))

  /** Each way to forget a failure, with its result: no session is retired. */
  const forgets: ReadonlyArray<
    readonly [name: string, returned: unknown, forget: (pool: Pool<string>) => Effect.Effect<unknown, unknown>]
  > = [
    ["invalidate", false, (pool) => SessionPool.invalidate(pool, "a")],
    ["invalidateAll", 0, (pool) => SessionPool.invalidateAll(pool)],
    ["set", undefined, (pool) => SessionPool.set(pool, "a", { key: "a", id: 99 })],
    ["a sweep after its time", 0, (pool) => Effect.andThen(TestClock.adjust("10 seconds"), SessionPool.sweep(pool))]
  ]
  for (const [name, returned, forget] of forgets) {
    it.effect(`${name} forgets a failure, and does not count it as a retired session`, () =>
      Effect.gen(function*() {
        const { failure, pool, remembered, site } = yield* broken()
        yield* failure("a")
        assert.strictEqual(yield* remembered, 1)
        assert.strictEqual(yield* forget(pool), returned)
        assert.strictEqual(yield* remembered, 0)
        site.works = true
        assert.strictEqual((yield* visit(pool, "a")).key, "a")
      }))
  }

  it.effect("at most 1,024 failures are remembered, and the oldest are forgotten first", () =>
    Effect.gen(function*() {
      const { failure, remembered, site } = yield* broken({ failureTimeToLive: "1 hour" })
      for (let key = 0; key < 1100; key++) yield* failure(`${key}`)
      assert.strictEqual(yield* remembered, 1024)
      for (let key = 76; key < 1100; key++) yield* failure(`${key}`)
      assert.strictEqual(site.tries, 1100)
      assert.strictEqual(yield* failure("75"), "try 1101")
      assert.strictEqual(yield* failure("76"), "try 1102")
    }))

  /** For each end of a launch: whether it is remembered. */
  const ends: ReadonlyArray<readonly [name: string, opening: Effect.Effect<void, string>, isRemembered: boolean]> = [
    ["a failure", Effect.fail("refused"), true],
    ["a defect", Effect.die("defect"), true],
    ["a time-out", Effect.never, true],
    ["an interruption of the lookup by itself", Effect.interrupt, false]
  ]
  for (const [name, opening, isRemembered] of ends) {
    it.effect(`${name} is ${isRemembered ? "" : "not "}remembered`, () =>
      Effect.gen(function*() {
        const { pool } = yield* make<string>({ failureTimeToLive: "1 hour", opening: () => opening })
        yield* ask(pool, "a")
        yield* TestClock.adjust("1 minute")
        assert.strictEqual((yield* SessionPool.stats(pool)).failures, isRemembered ? 1 : 0)
      }))
  }
})
