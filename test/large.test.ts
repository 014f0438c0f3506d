/** What holds for a few sessions holds for many thousands. */
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Exit, Fiber, Scope, Stream } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import { shortOrLong } from "./kit/long.ts"
import * as Backend from "./kit/pool/backend.ts"

type Pool = SessionPool.SessionPool<string, Backend.Connection>

const visit = (pool: Pool, key: string) => Effect.scoped(SessionPool.get(pool, key))

const makePool = Effect.gen(function*() {
  const backend = Backend.make()
  const pool: Pool = yield* SessionPool.make({ lookup: backend.open })
  return { backend, pool }
})

describe("a large pool", () => {
  it.effect("a sweep of many sessions gives way to other fibers", () =>
    Effect.gen(function*() {
      const count = shortOrLong(10_000, 100_000)
      const pool = yield* SessionPool.make({ lookup: (key: number) => Effect.succeed(key), idleTimeToLive: "1 hour" })
      yield* Effect.forEach(Array.from({ length: count }, (_, i) => i), (i) => SessionPool.set(pool, i, i), {
        discard: true
      })
      let turns = 0
      const other = yield* Effect.forkChild(
        Effect.forever(Effect.andThen(Effect.sync(() => turns++), Effect.yieldNow))
      )
      assert.strictEqual(yield* SessionPool.sweep(pool), 0)
      yield* Fiber.interrupt(other)
      // A sweep yields every 256 sessions.
      assert.isAbove(turns, count / 1000)
    }))

  it.effect("eviction among more than 4,096 idle sessions takes an old one and stays within the capacity", () =>
    Effect.gen(function*() {
      const capacity = 5000
      const closed: Array<number> = []
      const pool = yield* SessionPool.make({
        capacity,
        lookup: (key: number) => Effect.acquireRelease(Effect.succeed(key), () => Effect.sync(() => closed.push(key)))
      })
      const visit = (key: number) => Effect.scoped(SessionPool.get(pool, key))
      for (let key = 0; key < capacity; key++) {
        if (key === capacity / 2) yield* TestClock.adjust("1 second")
        yield* visit(key)
      }
      for (let key = capacity; key < capacity + 100; key++) yield* visit(key)
      assert.strictEqual(yield* SessionPool.size(pool), capacity)
      assert.strictEqual(closed.length, 100)
      // The oldest of five: of the older half but for once in 32, so 97 of 100; fewer than 86 once in a million runs.
      assert.isAbove(closed.filter((key) => key < capacity / 2).length, 85)
    }))

  it.effect("invalidateAll covers thousands", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* makePool
      const count = shortOrLong(1000, 5000)
      for (let session = 0; session < count; session++) yield* visit(pool, `s${session}`)
      assert.strictEqual(yield* SessionPool.invalidateAll(pool), count)
      backend.assertAllClosedOnce()
      assert.strictEqual(yield* SessionPool.size(pool), 0)
    }))

  it.effect("events that nobody reads fast enough lose the oldest, and the pool goes on", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const { pool } = yield* Scope.provide(makePool, scope)
      const gate = yield* Deferred.make<void>()
      const seen: Array<string> = []
      const reading = yield* Effect.forkChild(
        Stream.runForEach(SessionPool.events(pool), (event) =>
          Effect.andThen(
            Deferred.await(gate),
            Effect.sync(() => seen.push(event.key))
          )),
        { startImmediately: true }
      )
      yield* TestClock.adjust(0)
      for (let session = 0; session < 10_000; session++) {
        yield* visit(pool, `s${session}`)
      }
      assert.strictEqual(yield* SessionPool.size(pool), 10_000)
      yield* Deferred.succeed(gate, undefined)
      for (let turn = 0; turn < 1000 && seen.at(-1) !== "s9999"; turn++) yield* Effect.yieldNow
      assert.strictEqual(seen.at(-1), "s9999")
      assert.isBelow(seen.length, 10_000)
      yield* Scope.close(scope, Exit.void)
      yield* Fiber.join(reading)
    }))
})
