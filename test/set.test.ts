/** `set` adopts an open connection. */
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Exit, Fiber, Option, Scheduler, Scope } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import type { Connection } from "./kit/pool/backend.ts"
import { fork, hold, idsOf, makePool, type Options, visit } from "./kit/pool/calls.ts"
import { infoOf, outcomeOf, test, withPool } from "./kit/pool/withPool.ts"

const adopted: Connection = { key: "adopted", id: 99 }

/** A finalizer that counts its runs. */
const counted = () => {
  const count = { closes: 0 }
  return { count, close: Effect.sync(() => count.closes++) }
}

describe("set", () => {
  withPool("set adopts an open connection, whose finalizer closes it once", {}, function*({ backend, pool }) {
    const { close, count } = counted()
    yield* SessionPool.set(pool, "a", adopted, close)
    assert.strictEqual(yield* visit(pool, "a"), adopted)
    assert.deepStrictEqual([backend.opened.length, count.closes], [0, 0])
    yield* Effect.replicateEffect(SessionPool.invalidate(pool, "a"), 2)
    assert.strictEqual(count.closes, 1)
  })

  withPool(
    "set that waits for a leased session of its key inherits the counts at the replacement",
    { capacity: 1 },
    function*({ pool }) {
      const held = yield* hold(pool, "a")
      const caller = yield* fork(SessionPool.set(pool, "a", adopted))
      yield* Effect.replicateEffect(SessionPool.touch(pool, "a"), 5)
      yield* held.release
      yield* Fiber.join(caller)
      assert.strictEqual((yield* infoOf(pool, "a")).requestCount, 6)
      const { closes } = yield* SessionPool.stats(pool)
      assert.deepStrictEqual([closes.Replaced, closes.Evicted], [1, 0])
    }
  )

  withPool("set retires the present session, and inherits its counts", {}, function*({ backend, pool }) {
    const held = yield* hold(pool, "a")
    yield* SessionPool.recordError(pool, "a")
    const before = yield* infoOf(pool, "a")
    assert.deepStrictEqual([before.createdAt, before.requestCount, before.errorCount], [0, 1, 1])
    yield* TestClock.adjust("1 minute")
    yield* SessionPool.set(pool, "a", adopted)
    const after = yield* infoOf(pool, "a")
    assert.notStrictEqual(after.id, before.id)
    const changed = { id: after.id, openedAt: 60_000, lastUsedAt: 60_000, leases: 0, state: "idle" } as const
    assert.deepStrictEqual(after, { ...before, ...changed })
    assert.strictEqual(backend.closes(held.value), 0)
    yield* held.release
    assert.strictEqual(backend.closes(held.value), 1)
    assert.strictEqual((yield* SessionPool.stats(pool)).closes.Replaced, 1)
  })

  it.effect("set replaces a session in one step, so no other fiber finds the key without a session", () =>
    Effect.forEach(Array.from({ length: 30 }, (_, i) => i + 3), (budget) =>
      Effect.gen(function*() {
        const { pool } = yield* makePool()
        yield* visit(pool, "a")
        const set = SessionPool.set(pool, "a", adopted)
        const setting = yield* fork(Effect.provideService(set, Scheduler.MaxOpsBeforeYield, budget))
        while (setting.pollUnsafe() === undefined) {
          assert.isTrue(Option.isSome(yield* SessionPool.touch(pool, "a")))
          yield* Effect.yieldNow
        }
        assert.strictEqual(yield* visit(pool, "a"), adopted)
      }), { discard: true }))

  test("set wins over a launch: its callers get the adopted connection, and the launched one is closed", function*() {
    const gate = yield* Deferred.make<void>()
    const { close, count } = counted()
    const opening = Effect.as(Deferred.await(gate), { key: "a", id: 1 })
    const { pool } = yield* makePool({ lookup: () => Effect.acquireRelease(opening, () => close) })
    const waiting = [yield* fork(visit(pool, "a")), yield* fork(visit(pool, "a"))]
    yield* SessionPool.set(pool, "a", adopted)
    assert.deepStrictEqual(idsOf(yield* Fiber.joinAll(waiting)), [99, 99])
    yield* Deferred.succeed(gate, undefined)
    yield* TestClock.adjust(0)
    const { leases, requestCount } = yield* infoOf(pool, "a")
    assert.deepStrictEqual([count.closes, leases, requestCount], [1, 0, 2])
  })

  test("set takes the place of a remembered failure, which is forgotten", function*() {
    const lookup = (_: string): Effect.Effect<string, string> => Effect.fail("refused")
    const pool = yield* SessionPool.make({ lookup, failureTimeToLive: "1 hour" })
    yield* Effect.exit(SessionPool.get(pool, "a"))
    yield* SessionPool.set(pool, "a", "adopted")
    assert.deepStrictEqual([yield* SessionPool.get(pool, "a"), (yield* SessionPool.stats(pool)).failures], [
      "adopted",
      0
    ])
  })

  const full: Options = { capacity: 1, acquireTimeout: "5 seconds" }
  withPool("set replaces an idle session of its key in a full pool", full, function*({ backend, pool }) {
    const first = yield* visit(pool, "a")
    yield* TestClock.adjust("1 second")
    yield* SessionPool.set(pool, "a", adopted)
    assert.deepStrictEqual([backend.closes(first), (yield* SessionPool.stats(pool)).closes.Replaced], [1, 1])
    const { createdAt, openedAt, requestCount } = yield* infoOf(pool, "a")
    assert.deepStrictEqual([createdAt, openedAt, requestCount], [0, 1000, 1])
  })

  withPool("set serves the callers that wait for a place under its key", full, function*({ pool }) {
    const held = yield* hold(pool, "a")
    const waiting = yield* fork(visit(pool, "b"))
    const setting = yield* fork(SessionPool.set(pool, "b", adopted))
    yield* held.release
    yield* Fiber.joinAll([setting, waiting])
    assert.strictEqual(yield* visit(pool, "b"), adopted)
  })

  type Act = (setting: Fiber.Fiber<unknown, unknown>, end: Effect.Effect<void>) => Effect.Effect<unknown>
  const wait: Act = () => TestClock.adjust("5 seconds")
  const groupBy = (key: string) => key === "b" ? assert.fail("no group") : key
  const refusals: ReadonlyArray<readonly [why: string, Options, Act, outcome: string]> = [
    ["acquireTimeout is over", {}, wait, "CapacityExceeded"],
    ["too many callers wait", { maxWaiting: 0 }, wait, "CapacityExceeded"],
    ["its caller is interrupted", {}, Fiber.interrupt, "interrupted"],
    ["the pool ends", {}, (_, end) => end, "PoolClosed"],
    ["groupBy throws", { groupBy }, wait, "died"],
    ["idleTimeToLive returns no duration", { idleTimeToLive: (key) => key === "b" ? -1 : 1 }, wait, "died"]
  ]
  for (const [why, options, act, outcome] of refusals) {
    test(`set closes its connection once when ${why}, and leaves the queue`, function*() {
      const scope = yield* Scope.make()
      const { pool } = yield* Scope.provide(makePool({ ...full, ...options }), scope)
      const held = yield* hold(pool, "a")
      const { close, count } = counted()
      const setting = yield* fork(SessionPool.set(pool, "b", adopted, close))
      yield* act(setting, Scope.close(scope, Exit.void))
      assert.strictEqual(outcomeOf(yield* Fiber.await(setting)), outcome)
      assert.strictEqual((yield* SessionPool.stats(pool)).waiting, 0)
      yield* held.release
      assert.deepStrictEqual(yield* SessionPool.info(pool, "b"), Option.none())
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual(count.closes, 1)
    })
  }
})
