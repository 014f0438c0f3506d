/** A pass over many thousands of sessions must not block the event loop. */
import { assert, describe } from "@effect/vitest"
import { Effect, Fiber } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import { shortOrLong } from "./kit/long.ts"
import { fork } from "./kit/pool/calls.ts"
import { test } from "./kit/pool/withPool.ts"

type Pass = (pool: SessionPool.SessionPool<number, number>) => Effect.Effect<number>

describe("large pools", () => {
  const count = shortOrLong(10_000, 100_000)
  const sweep: Pass = (pool) => SessionPool.sweep(pool)
  const passes: Record<string, readonly [pass: Pass, retires: number, sessionsATurn: number]> = {
    "a sweep that finds nothing to do": [sweep, 0, 1000],
    "a sweep that retires all": [(pool) => Effect.andThen(TestClock.adjust("1 hour"), sweep(pool)), count, 100],
    "an invalidateAll": [(pool) => SessionPool.invalidateAll(pool), count, 100]
  }
  for (const [name, [pass, retires, sessionsATurn]] of Object.entries(passes)) {
    test(`${name} of ${count} sessions lets other fibers run in between`, function*() {
      const pool = yield* SessionPool.make({
        lookup: (key: number) => Effect.succeed(key),
        cleanupInterval: Infinity
      })
      for (let key = 0; key < count; key++) yield* SessionPool.set(pool, key, key)
      let turns = 0
      const other = yield* fork(Effect.forever(Effect.andThen(Effect.sync(() => turns++), Effect.yieldNow)))
      assert.strictEqual(yield* pass(pool), retires)
      yield* Fiber.interrupt(other)
      assert.isAtLeast(turns, count / sessionsATurn)
      assert.strictEqual(yield* SessionPool.size(pool), count - retires)
    })
  }
})
