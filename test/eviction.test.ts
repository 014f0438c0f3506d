/** Eviction: a full pool closes the least recently used idle session, exactly, for a caller that needs its place. */
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Fiber, Option } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import type { Pool } from "./kit/pool/scripted.ts"
import { ask, hold, keysOf, make, visit } from "./kit/pool/scripted.ts"
import * as Random from "./kit/random.ts"

describe("order of eviction", () => {
  // A pool with few sessions and many uses, and one with many sessions.
  for (const [capacity, steps] of [[33, 15_000], [5000, 2000]] as const) {
    it.effect(`a pool of ${capacity} sessions evicts the least recently used idle one at each of ${steps} operations`, () =>
      Effect.gen(function*() {
        const random = Random.make(capacity)
        const { pool } = yield* make({ capacity })
        /** Keys of idle sessions, the least recently used first. */
        const idle: Array<string> = []
        const held = new Map<string, Effect.Effect<void>>()
        const takeIdle = () => idle.splice(random.below(idle.length), 1)[0] ?? assert.fail("nothing is idle")
        let opened = 0
        const open = Effect.suspend(() => {
          const key = `s${opened++}`
          idle.push(key)
          return visit(pool, key)
        })
        for (let session = 0; session < capacity; session++) yield* open
        for (let step = 0; step < steps; step++) {
          const operation = random.below(10)
          if (operation < 3 && held.size > 0) {
            const [key, release] = random.pick([...held])
            held.delete(key)
            yield* release
            idle.push(key)
          } else if (operation < 4 && held.size > 0) {
            yield* SessionPool.touch(pool, random.pick([...held.keys()]))
          } else if (idle.length === 0) {
            continue
          } else if (operation < 6) {
            const victim = idle.shift() ?? ""
            yield* open
            assert.isTrue(Option.isNone(yield* SessionPool.info(pool, victim)), `${victim} is gone`)
            assert.strictEqual(yield* SessionPool.size(pool), capacity)
          } else if (operation === 6) {
            yield* SessionPool.invalidate(pool, takeIdle())
            yield* open
          } else if (operation === 7) {
            const key = takeIdle()
            held.set(key, (yield* hold(pool, key)).release)
          } else {
            const key = takeIdle()
            yield* operation === 8 ? SessionPool.set(pool, key, { key, id: -step }) : SessionPool.touch(pool, key)
            idle.push(key)
          }
        }
        assert.sameMembers(yield* SessionPool.keys(pool), [...idle, ...held.keys()])
      }))
  }

  /** For each operation on a session: whether it makes that session the most recently used one. */
  const operations: ReadonlyArray<
    readonly [name: string, isUse: boolean, operation: (pool: Pool) => Effect.Effect<unknown, unknown>]
  > = [
    ["touch", true, (pool) => SessionPool.touch(pool, "a")],
    ["get", true, (pool) => Effect.scoped(SessionPool.get(pool, "a"))],
    ["getOption", true, (pool) => Effect.scoped(SessionPool.getOption(pool, "a"))],
    ["a use that fails", true, (pool) => Effect.exit(SessionPool.use(pool, "a", () => Effect.fail("broken")))],
    ["set", true, (pool) => SessionPool.set(pool, "a", { key: "a", id: 99 })],
    ["info", false, (pool) => SessionPool.info(pool, "a")],
    ["entries", false, (pool) => SessionPool.entries(pool)],
    ["recordError", false, (pool) => SessionPool.recordError(pool, "a")],
    ["sweep", false, (pool) => SessionPool.sweep(pool)],
    ["a background check", false, () => TestClock.adjust("70 seconds")]
  ]
  for (const [name, isUse, operation] of operations) {
    it.effect(`${name} ${isUse ? "counts" : "does not count"} as use`, () =>
      Effect.gen(function*() {
        const { backend, pool } = yield* make({
          capacity: 2,
          keepAlive: "1 minute",
          // The check of "a" ends last.
          validate: (_, key) => Effect.as(Effect.sleep(key === "a" ? 2000 : 1000), true)
        })
        yield* visit(pool, "a")
        yield* visit(pool, "b")
        const opened = backend.opened.length
        yield* operation(pool)
        yield* visit(pool, "c")
        assert.deepStrictEqual(keysOf(backend.opened.slice(opened)), ["c"])
        assert.sameMembers(yield* SessionPool.keys(pool), isUse ? ["a", "c"] : ["b", "c"])
      }))
  }
})

describe("evictions for waiters", () => {
  it.effect("each waiter evicts one session as soon as one is idle, and none while a closing place is promised to it", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void>()
      const { pool } = yield* make({ capacity: 3, closing: () => Deferred.await(gate) })
      const remaining = Effect.map(SessionPool.keys(pool), (keys) => keys.toSorted())
      const [a, b, c] = yield* Effect.all([hold(pool, "a"), hold(pool, "b"), hold(pool, "c")])
      const waiters = [yield* ask(pool, "d")]
      yield* a.release
      assert.deepStrictEqual(yield* remaining, ["b", "c"])
      yield* b.release
      assert.deepStrictEqual(yield* remaining, ["b", "c"])
      waiters.push(yield* ask(pool, "e"))
      assert.deepStrictEqual(yield* remaining, ["c"])
      waiters.push(yield* ask(pool, "f"))
      yield* c.release
      assert.deepStrictEqual(yield* remaining, [])
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.joinAll(waiters)
      assert.deepStrictEqual(yield* remaining, ["d", "e", "f"])
    }))

  it.effect("a full group evicts its own least recently used session, a full pool that of all groups", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* make({ capacity: 4, groupBy: (key) => key[0], groupCapacity: 2 })
      yield* Effect.forEach(["y1", "x1", "x2", "x3", "z1", "z2"], (key) => visit(pool, key))
      assert.deepStrictEqual(keysOf(backend.closed), ["x1", "y1"])
    }))
})
