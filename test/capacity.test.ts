/** Capacity of the pool and of groups: what holds a place, and when a waiter gets it. */
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Fiber, Option } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import type { Pool } from "./kit/pool/scripted.ts"
import { ask, hold, keysOf, make, refusal, visit } from "./kit/pool/scripted.ts"

describe("capacity", () => {
  type Gate = Deferred.Deferred<void>
  type Free = Effect.Effect<unknown, unknown>

  const close = (pool: Pool<string>) =>
    Effect.andThen(visit(pool, "slow to close"), SessionPool.invalidate(pool, "slow to close"))

  /** Each takes the only place of a pool, and returns an effect that frees it. */
  const holders: Record<string, (pool: Pool<string>, gate: Gate) => Effect.Effect<Free, unknown>> = {
    "a leased session until its release": (pool) => Effect.map(hold(pool, "held"), ({ release }) => release),
    "an adopted session until its release": (pool) =>
      Effect.gen(function*() {
        yield* SessionPool.set(pool, "adopted", { key: "adopted", id: 99 })
        return (yield* hold(pool, "adopted")).release
      }),
    "a retired session until its last release": (pool) =>
      Effect.gen(function*() {
        const { release } = yield* hold(pool, "held")
        yield* SessionPool.invalidate(pool, "held")
        return release
      }),
    "a closing session until it is closed": (pool, gate) => Effect.as(close(pool), Deferred.succeed(gate, undefined)),
    "a closing session until closeTimeout": (pool) => Effect.as(close(pool), TestClock.adjust("30 seconds")),
    "a launch until it has failed": (pool, gate) => Effect.as(ask(pool, "failing"), Deferred.succeed(gate, undefined)),
    "a cancelled launch until its clean-up is over": (pool, gate) =>
      Effect.gen(function*() {
        yield* Fiber.interrupt(yield* ask(pool, "hanging"))
        return Deferred.succeed(gate, undefined)
      }),
    "a timed-out launch until its clean-up is over": (pool, gate) =>
      Effect.gen(function*() {
        yield* ask(pool, "hanging")
        yield* TestClock.adjust("1 minute")
        return Deferred.succeed(gate, undefined)
      })
  }
  for (const [holder, take] of Object.entries(holders)) {
    it.effect(`a place is held by ${holder}`, () =>
      Effect.gen(function*() {
        const gate = yield* Deferred.make<void>()
        const { backend, pool } = yield* make({
          capacity: 1,
          acquireTimeout: "1 hour",
          opening: (key) =>
            key === "failing"
              ? Effect.andThen(Deferred.await(gate), Effect.fail("refused"))
              : key === "hanging"
              ? Effect.onInterrupt(Effect.never, () => Deferred.await(gate))
              : Effect.void,
          closing: (key) => key === "slow to close" ? Deferred.await(gate) : Effect.void
        })
        const free = yield* take(pool, gate)
        const waiter = yield* ask(pool, "new")
        assert.strictEqual((yield* SessionPool.stats(pool)).waiting, 1)
        assert.notInclude(keysOf(backend.opened), "new")
        yield* free
        assert.strictEqual((yield* Fiber.join(waiter)).key, "new")
      }))
  }

  it.effect("an evicted session is closed before the next one is opened", () =>
    Effect.gen(function*() {
      const log: Array<string> = []
      const note = (what: string) => (key: string) => Effect.sync(() => log.push(`${what} ${key}`))
      const { pool } = yield* make({ capacity: 2, opening: note("open"), closing: note("close") })
      yield* Effect.forEach(["a", "b", "c", "d"], (key) => visit(pool, key))
      assert.deepStrictEqual(log, ["open a", "open b", "close a", "open c", "close b", "open d"])
    }))

  const unbounded = {
    "no capacity": {},
    "capacity infinity": { capacity: Infinity },
    "groupBy alone": { groupBy: () => 1 }
  }
  for (const [name, options] of Object.entries(unbounded)) {
    it.effect(`a pool with ${name} is unbounded`, () =>
      Effect.gen(function*() {
        const { backend, pool } = yield* make(options)
        for (let session = 0; session < 1000; session++) yield* hold(pool, `s${session}`)
        assert.deepStrictEqual([backend.opened.length, backend.closed.length], [1000, 0])
      }))
  }
})

describe("groupCapacity", () => {
  /** The part before the slash; a key without one has no group. */
  const groupBy = (key: string) => key.includes("/") ? key.slice(0, key.indexOf("/")) : undefined

  it.effect("a waiter of a full group evicts nothing of another group, and delays no caller of another group", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* make({ capacity: 3, groupBy, groupCapacity: 1 })
      yield* visit(pool, "y/1")
      const { release } = yield* hold(pool, "x/1")
      const waiter = yield* ask(pool, "x/2")
      yield* visit(pool, "z/1")
      assert.deepStrictEqual(keysOf(backend.closed), [])
      yield* release
      yield* Fiber.join(waiter)
      assert.deepStrictEqual(keysOf(backend.closed), ["x/1"])
    }))

  it.effect("a key whose group is undefined counts against the pool, and against no group", () =>
    Effect.gen(function*() {
      const { pool } = yield* make({ capacity: 3, groupBy, groupCapacity: 1, maxWaiting: 0 })
      yield* Effect.forEach(["a", "b", "c"], (key) => hold(pool, key))
      assert.deepInclude(yield* refusal(visit(pool, "d")), { scope: "pool", limit: 3 })
    }))

  it.effect("a refusal names the group's limit if the group is full, else the pool's limit", () =>
    Effect.gen(function*() {
      const { pool } = yield* make({ capacity: 3, groupBy, groupCapacity: 2, maxWaiting: 0 })
      yield* Effect.forEach(["x/1", "x/2"], (key) => hold(pool, key))
      assert.deepInclude(yield* refusal(visit(pool, "x/3")), { scope: "group", limit: 2 })
      yield* hold(pool, "y/1")
      for (const key of ["y/2", "z/1"]) {
        assert.deepInclude(yield* refusal(visit(pool, key)), { scope: "pool", limit: 3 })
      }
    }))

  it.effect("groups are equal by value", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* make({ groupBy: (key) => Option.some(groupBy(key)), groupCapacity: 1 })
      yield* visit(pool, "x/1")
      yield* visit(pool, "x/2")
      assert.deepStrictEqual(keysOf(backend.closed), ["x/1"])
    }))

  it.effect("a group per key opens its next connection only after the last one has closed", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* make({ groupBy: (key) => key, groupCapacity: 1 })
      const { release } = yield* hold(pool, "a")
      yield* SessionPool.invalidate(pool, "a")
      const next = yield* ask(pool, "a")
      assert.strictEqual(backend.opened.length, 1)
      yield* release
      assert.strictEqual((yield* Fiber.join(next)).id, 2)
      assert.deepStrictEqual(backend.closed.map(({ id }) => id), [1])
    }))
})
