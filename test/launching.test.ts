/** Launching: one lookup per key, the callers that wait for it, and its cancellation. */
import { assert, describe, it } from "@effect/vitest"
import { Context, Deferred, Effect, Fiber, Option } from "effect"
import type { Scope } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import { fork } from "./kit/pool/fork.ts"
import type { Options } from "./kit/pool/scripted.ts"
import { ask, make, visit } from "./kit/pool/scripted.ts"

const idsOf = (connections: ReadonlyArray<{ readonly id: number }>) => connections.map(({ id }) => id)

/** A pool whose launches last until `land` runs. */
const slow = (options: Options = {}) =>
  Effect.gen(function*() {
    const gate = yield* Deferred.make<void>()
    const { backend, pool } = yield* make({ opening: () => Deferred.await(gate), ...options })
    return { backend, pool, land: Deferred.succeed(gate, undefined) }
  })

describe("single flight", () => {
  it.effect("use, get, lease and getOption join the launch of a key, also in a full pool", () =>
    Effect.gen(function*() {
      const { backend, land, pool } = yield* slow({ capacity: 1, maxWaiting: 0 })
      const joined = yield* Effect.forEach([
        visit(pool, "a"),
        Effect.scoped(SessionPool.get(pool, "a")),
        Effect.scoped(Effect.map(SessionPool.lease(pool, "a"), ({ value }) => value)),
        Effect.scoped(Effect.map(SessionPool.getOption(pool, "a"), Option.getOrThrow))
      ], (call) => fork(call))
      yield* land
      assert.deepStrictEqual(idsOf(yield* Fiber.joinAll(joined)), [1, 1, 1, 1])
      assert.deepInclude(yield* SessionPool.stats(pool), { misses: 1, joins: 3, launches: 1, hits: 0 })
      assert.strictEqual(backend.opened.length, 1)
    }))

  it.effect("a launch that hangs delays no launch of another key", () =>
    Effect.gen(function*() {
      const { pool } = yield* make({ opening: (key) => key === "hanging" ? Effect.never : Effect.void })
      yield* ask(pool, "hanging")
      assert.strictEqual((yield* visit(pool, "a")).key, "a")
    }))

  it.effect("the pool forgets a lookup that has ended, or has exceeded lookupTimeout", () =>
    Effect.gen(function*() {
      const opening = (key: string) => key === "hanging" ? Effect.never : Effect.void
      const { pool } = yield* make({ opening, lookupTimeout: "1 second" })
      const lookups = () => pool.pool.lookups.size
      yield* ask(pool, "hanging")
      yield* visit(pool, "a")
      assert.strictEqual(lookups(), 1)
      yield* TestClock.adjust("1 second")
      assert.strictEqual(lookups(), 0)
    }))

  it.effect("a lookup may get another session of the same pool, in a long chain", () =>
    Effect.gen(function*() {
      const pool: SessionPool.SessionPool<number, number, SessionPool.SessionPoolError> = yield* SessionPool.make({
        lookup: (key: number): Effect.Effect<number, SessionPool.SessionPoolError, Scope.Scope> =>
          key === 0 ? Effect.succeed(0) : Effect.map(SessionPool.get(pool, key - 1), (below) => below + 1)
      })
      assert.strictEqual(yield* SessionPool.use(pool, 2000, Effect.succeed), 2000)
      assert.strictEqual((yield* SessionPool.stats(pool)).active, 2000)
    }))

  it.effect("a lookup runs with the references of the pool's maker, not of the caller", () =>
    Effect.gen(function*() {
      const Tenant = Context.Reference<string>("test/Tenant", { defaultValue: () => "nobody" })
      const seen: Array<string> = []
      const note = () => Effect.map(Tenant, (tenant) => seen.push(tenant))
      const { pool } = yield* Effect.provideService(make({ opening: note, closing: note }), Tenant, "maker")
      const request = Effect.andThen(visit(pool, "a"), SessionPool.invalidate(pool, "a"))
      yield* Effect.provideService(request, Tenant, "caller")
      assert.deepStrictEqual(seen, ["maker", "maker"])
    }))
})

describe("cancellation", () => {
  it.effect("a launch is cancelled when its last caller leaves, and closes what it acquired", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* slow({ failureTimeToLive: "1 hour" })
      const callers = [yield* ask(pool, "a"), yield* ask(pool, "a")]
      for (const caller of callers) {
        assert.strictEqual(backend.openCount(), 1)
        yield* Fiber.interrupt(caller)
      }
      yield* TestClock.adjust(0)
      backend.assertAllClosedOnce()
      const expected = { failures: 0, launchFailures: 0, launching: 0, retired: 0 }
      assert.deepInclude(yield* SessionPool.stats(pool), expected)
    }))

  it.effect("a caller launches anew while a cancelled launch of its key still runs, and gets nothing from it", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void>()
      const { backend, pool } = yield* make({ opening: () => Effect.uninterruptible(Deferred.await(gate)) })
      yield* Fiber.interrupt(yield* ask(pool, "a"))
      const caller = yield* ask(pool, "a")
      assert.deepInclude(yield* SessionPool.stats(pool), { launching: 1, retired: 1 })
      yield* Deferred.succeed(gate, undefined)
      assert.strictEqual((yield* Fiber.join(caller)).id, 2)
      assert.deepStrictEqual(idsOf(backend.closed), [1])
    }))
})

describe("invalidate while launching", () => {
  for (const name of ["invalidate", "invalidateAll"] as const) {
    it.effect(`${name} gives the launching session to the callers that wait, and to no later caller`, () =>
      Effect.gen(function*() {
        const { backend, land, pool } = yield* slow()
        const waiting = [yield* ask(pool, "a"), yield* ask(pool, "a")]
        yield* name === "invalidate" ? SessionPool.invalidate(pool, "a") : SessionPool.invalidateAll(pool)
        const later = yield* ask(pool, "a")
        assert.strictEqual(backend.opened.length, 2)
        yield* land
        assert.deepStrictEqual(idsOf(yield* Fiber.joinAll(waiting)), [1, 1])
        assert.strictEqual((yield* Fiber.join(later)).id, 2)
        assert.deepStrictEqual(idsOf(backend.closed), [1])
        assert.strictEqual((yield* SessionPool.stats(pool)).closes.Invalidated, 1)
      }))
  }

  it.effect("an invalidated launch is cancelled when its last caller leaves", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* slow()
      const callers = [yield* ask(pool, "a"), yield* ask(pool, "a")]
      assert.isTrue(yield* SessionPool.invalidate(pool, "a"))
      assert.isFalse(yield* SessionPool.invalidate(pool, "a"))
      for (const caller of callers) {
        assert.strictEqual(backend.openCount(), 1)
        yield* Fiber.interrupt(caller)
      }
      yield* TestClock.adjust(0)
      backend.assertAllClosedOnce()
    }))

  it.effect("callers of an invalidated launch get its failure, which is not remembered", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void, string>()
      const { pool } = yield* make<string>({ failureTimeToLive: "1 hour", opening: () => Deferred.await(gate) })
      const caller = yield* fork(Effect.flip(visit(pool, "a")))
      yield* SessionPool.invalidate(pool, "a")
      yield* Deferred.fail(gate, "refused")
      assert.strictEqual(yield* Fiber.join(caller), "refused")
      assert.strictEqual((yield* SessionPool.stats(pool)).failures, 0)
    }))
})
