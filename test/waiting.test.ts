/** Waiting for a place: order, time-out, number of waiters, and closing places. */
import { assert, describe, it } from "@effect/vitest"
import type { Duration } from "effect"
import { Deferred, Effect, Exit, Fiber } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import { fork } from "./kit/pool/fork.ts"
import type { Options, Pool } from "./kit/pool/scripted.ts"
import { ask, hold, keysOf, make, refusal, visit } from "./kit/pool/scripted.ts"

const counts = (pool: Pool) =>
  Effect.map(SessionPool.stats(pool), ({ closes, idle, retired, waiting }) => ({
    evicted: closes.Evicted,
    idle,
    retired,
    waiting
  }))

const waiting = (pool: Pool) => Effect.map(counts(pool), ({ waiting }) => waiting)

/** A pool with one place, which is held. */
const full = (options: Options = {}) =>
  Effect.gen(function*() {
    const { backend, pool } = yield* make({ capacity: 1, ...options })
    const { release } = yield* hold(pool, "held")
    return { backend, pool, release }
  })

describe("order of waiters", () => {
  it.effect("waiters of use, get, lease and set are served in order of arrival", () =>
    Effect.gen(function*() {
      const { pool, release } = yield* full()
      const order: Array<string> = []
      const calls: Record<string, Effect.Effect<unknown, unknown>> = {
        use: visit(pool, "use"),
        set: SessionPool.set(pool, "set", { key: "set", id: 99 }),
        get: Effect.scoped(SessionPool.get(pool, "get")),
        lease: Effect.scoped(SessionPool.lease(pool, "lease")),
        another: visit(pool, "another")
      }
      const waiters = yield* Effect.forEach(
        Object.entries(calls),
        ([name, call]) => fork(Effect.tap(call, () => Effect.sync(() => order.push(name))))
      )
      assert.strictEqual(yield* waiting(pool), 5)
      yield* release
      yield* Fiber.joinAll(waiters)
      assert.deepStrictEqual(order, Object.keys(calls))
    }))

  it.effect("callers of one key wait together, at the turn of the first", () =>
    Effect.gen(function*() {
      const { backend, pool, release } = yield* full()
      const waiters = yield* Effect.forEach(["a", "b", "a", "a"], (key) => ask(pool, key))
      assert.strictEqual(yield* waiting(pool), 4)
      yield* release
      yield* Fiber.joinAll(waiters)
      assert.strictEqual(yield* waiting(pool), 0)
      assert.deepStrictEqual(keysOf(backend.opened), ["held", "a", "b"])
    }))

  it.effect("an interrupted waiter leaves the queue, and the others of its key keep its turn", () =>
    Effect.gen(function*() {
      const { backend, pool, release } = yield* full()
      const gone = [yield* ask(pool, "gone"), yield* ask(pool, "a")]
      const others = [yield* ask(pool, "a"), yield* ask(pool, "b")]
      yield* Fiber.interruptAll(gone)
      assert.strictEqual(yield* waiting(pool), 2)
      yield* release
      yield* Fiber.joinAll(others)
      assert.deepStrictEqual(keysOf(backend.opened), ["held", "a", "b"])
    }))

  it.effect("a place that an interrupted waiter counted on serves the next one", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void>()
      const { pool } = yield* make({
        capacity: 3,
        groupBy: (key) => key[0],
        groupCapacity: 2,
        closing: (key) => key === "x2" ? Deferred.await(gate) : Effect.void
      })
      yield* hold(pool, "x1")
      yield* visit(pool, "x2")
      yield* hold(pool, "y1")
      const gone = yield* ask(pool, "x3")
      const next = yield* ask(pool, "z1")
      yield* Fiber.interrupt(gone)
      yield* Deferred.succeed(gate, undefined)
      assert.strictEqual((yield* Fiber.join(next)).key, "z1")
    }))

  it.effect("serving 2000 waiters of use and set neither overflows the stack nor blocks the event loop", () =>
    Effect.gen(function*() {
      const { pool, release } = yield* full()
      let [turns, turnsAtLast] = [0, 0]
      const served = Effect.sync(() => {
        turnsAtLast = turns
      })
      const waiters = yield* Effect.forEach(Array.from({ length: 1000 }, (_, i) => `${i}`), (key) =>
        Effect.all([
          fork(Effect.andThen(visit(pool, `use ${key}`), served)),
          fork(Effect.andThen(SessionPool.set(pool, key, { key, id: -1 }), served))
        ]))
      const timer = setInterval(() => turns++, 0)
      yield* release
      yield* Fiber.joinAll(waiters.flat())
      clearInterval(timer)
      assert.isAbove(turnsAtLast, 0)
      assert.deepInclude(yield* counts(pool), { idle: 1, retired: 0, waiting: 0 })
    }))
})

describe("acquireTimeout", () => {
  it.effect("a waiter times out with the limit, its wait and the number of other waiters", () =>
    Effect.gen(function*() {
      const { pool } = yield* full({ acquireTimeout: "3 seconds" })
      yield* TestClock.adjust("1 hour")
      const refused = yield* fork(refusal(visit(pool, "a")))
      yield* TestClock.adjust("1 second")
      yield* ask(pool, "b")
      yield* TestClock.adjust(1999)
      assert.isUndefined(refused.pollUnsafe())
      yield* TestClock.adjust(1)
      assert.deepInclude(yield* Fiber.join(refused), {
        _tag: "CapacityExceeded",
        scope: "pool",
        limit: 1,
        waited: 3000,
        waiting: 1
      })
    }))

  const limits = [[undefined, 30_000], ["1 hour", 3_600_000], ["Infinity", Infinity]] as const
  for (const [acquireTimeout, millis] of limits) {
    it.effect(`a waiter with acquireTimeout ${acquireTimeout} times out after ${millis} ms`, () =>
      Effect.gen(function*() {
        const { pool } = yield* full({ acquireTimeout })
        const waiter = yield* ask(pool, "a")
        yield* TestClock.adjust(Math.min(millis, 86_400_000) - 1)
        assert.isUndefined(waiter.pollUnsafe())
        yield* TestClock.adjust(1)
        assert.strictEqual(waiter.pollUnsafe() === undefined, millis === Infinity)
      }))
  }

  it.effect("callers that wait for one key time out each at its own time", () =>
    Effect.gen(function*() {
      const { pool, release } = yield* full({ acquireTimeout: "10 seconds" })
      const first = yield* ask(pool, "a")
      yield* TestClock.adjust("6 seconds")
      const second = yield* ask(pool, "a")
      yield* TestClock.adjust("4 seconds")
      assert.isTrue(Exit.isFailure(yield* Fiber.await(first)))
      yield* TestClock.adjust("5 seconds")
      yield* release
      assert.strictEqual((yield* Fiber.join(second)).key, "a")
    }))

  it.effect("the launch after the wait is not bounded by acquireTimeout", () =>
    Effect.gen(function*() {
      const { pool, release } = yield* full({
        acquireTimeout: "5 seconds",
        opening: (key) => key === "slow" ? Effect.sleep("10 seconds") : Effect.void
      })
      const waiter = yield* ask(pool, "slow")
      yield* TestClock.adjust("4 seconds")
      yield* release
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual((yield* Fiber.join(waiter)).key, "slow")
    }))
})

describe("acquireTimeout zero", () => {
  const failsAtOnce = Effect.fnUntraced(function*(pool: Pool) {
    const refused = yield* fork(refusal(visit(pool, "new")))
    yield* TestClock.adjust(0)
    assert.deepInclude(yield* Fiber.join(refused), { _tag: "CapacityExceeded", waited: 0 })
  })

  it.effect("a caller with acquireTimeout zero fails at once if every session is leased", () =>
    Effect.flatMap(full({ acquireTimeout: 0 }), ({ pool }) => failsAtOnce(pool)))

  it.effect("a caller with acquireTimeout zero fails if the evicted session closes slowly, and the next caller gets the place", () =>
    Effect.gen(function*() {
      const { pool } = yield* make({ capacity: 2, acquireTimeout: 0, closing: () => Effect.sleep("1 second") })
      yield* visit(pool, "a")
      yield* visit(pool, "b")
      yield* failsAtOnce(pool)
      yield* TestClock.adjust("1 second")
      yield* visit(pool, "c")
      assert.sameMembers(yield* SessionPool.keys(pool), ["b", "c"])
    }))
})

describe("maxWaiting", () => {
  it.effect("the caller beyond maxWaiting fails at once, for the same key, for another key, and in set", () =>
    Effect.gen(function*() {
      const { pool, release } = yield* full({ maxWaiting: 2 })
      const waiters = [yield* ask(pool, "a"), yield* ask(pool, "a")]
      for (const call of [visit(pool, "a"), visit(pool, "b"), SessionPool.set(pool, "c", { key: "c", id: 99 })]) {
        assert.deepInclude(yield* refusal(call), { _tag: "CapacityExceeded", limit: 1, waited: 0, waiting: 2 })
      }
      yield* release
      assert.deepStrictEqual(keysOf(yield* Fiber.joinAll(waiters)), ["a", "a"])
    }))

  it.effect("an eviction makes room for a caller with maxWaiting zero", () =>
    Effect.gen(function*() {
      const { pool, release } = yield* full({ maxWaiting: 0 })
      assert.deepInclude(yield* refusal(visit(pool, "a")), { _tag: "CapacityExceeded", waiting: 0 })
      yield* release
      assert.strictEqual((yield* visit(pool, "a")).key, "a")
      yield* SessionPool.set(pool, "b", { key: "b", id: 99 })
      assert.strictEqual((yield* counts(pool)).evicted, 2)
    }))
})

describe("callers that retire a session", () => {
  const slowly = () => Effect.sleep("1 second")

  it.effect("a caller that evicts lets other callers of its key wait with it, whatever maxWaiting is", () =>
    Effect.gen(function*() {
      const { pool } = yield* make({ capacity: 1, maxWaiting: 0, closing: slowly })
      yield* visit(pool, "a")
      const callers = [yield* ask(pool, "b"), yield* ask(pool, "b")]
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(keysOf(yield* Fiber.joinAll(callers)), ["b", "b"])
    }))

  it.effect("a caller may wait for the place of its overdue or invalid session with maxWaiting zero", () =>
    Effect.gen(function*() {
      const options = { capacity: 1, maxWaiting: 0, closing: slowly, validate: () => Effect.succeed(false) }
      for (const change of [{ idleTimeToLive: 400 }, {}]) {
        const { pool } = yield* make({ ...options, ...change })
        yield* visit(pool, "a")
        yield* TestClock.adjust(600)
        const caller = yield* ask(pool, "a")
        yield* TestClock.adjust("1 second")
        assert.strictEqual((yield* Fiber.join(caller)).id, 2)
      }
    }))

  it.effect("a caller that retires the session of its key evicts no other with acquireTimeout zero", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* make({
        capacity: 3,
        acquireTimeout: 0,
        idleTimeToLive: (key) => key === "overdue" ? 1000 : "1 hour"
      })
      for (const key of ["innocent", "overdue", "replaced"]) yield* visit(pool, key)
      yield* TestClock.adjust(1001)
      yield* visit(pool, "overdue")
      yield* SessionPool.set(pool, "replaced", { key: "replaced", id: 99 })
      assert.deepStrictEqual(keysOf(backend.closed), ["overdue", "replaced"])
    }))
})

describe("closing places", () => {
  const slowly = (duration: Duration.Input) => (key: string) => key === "slow" ? Effect.sleep(duration) : Effect.void
  const retire = (pool: Pool) => Effect.andThen(visit(pool, "slow"), SessionPool.invalidate(pool, "slow"))
  const cancel = (pool: Pool) => Effect.flatMap(ask(pool, "slow"), Fiber.interrupt)

  /** A full pool with two idle sessions and one place that closes for this long, and a caller that waits. */
  const closing = (duration: Duration.Input, options: Options = {}) =>
    Effect.gen(function*() {
      const { backend, pool } = yield* make({ capacity: 3, closing: slowly(duration), ...options })
      yield* visit(pool, "a")
      yield* visit(pool, "b")
      yield* options.opening === undefined ? retire(pool) : cancel(pool)
      return { backend, pool, caller: yield* ask(pool, "new") }
    })

  const hanging: Options = {
    opening: (key) => key === "slow" ? Effect.onInterrupt(Effect.never, () => Effect.sleep("20 seconds")) : Effect.void,
    closing: () => Effect.void
  }
  const group = { capacity: 9, groupBy: () => "one", groupCapacity: 3 }
  const patience: ReadonlyArray<readonly [name: string, millis: number, options: Options]> = [
    ["30 seconds", 5000, {}],
    ["no limit", 5000, { acquireTimeout: "Infinity" }],
    ["3 seconds", 1500, { acquireTimeout: "3 seconds" }],
    ["100 ms", 50, { acquireTimeout: "100 millis" }],
    ["30 seconds in a full group", 5000, group],
    ["30 seconds and a cancelled launch before it", 5000, hanging]
  ]
  for (const [name, millis, options] of patience) {
    it.effect(`a caller with an acquireTimeout of ${name} counts on a closing place for ${millis} ms, then evicts`, () =>
      Effect.gen(function*() {
        const { backend, caller, pool } = yield* closing("20 seconds", options)
        const closed = () => keysOf(backend.closed).filter((key) => key !== "slow")
        yield* TestClock.adjust(millis - 1)
        assert.deepStrictEqual(closed(), [])
        yield* TestClock.adjust(1)
        assert.isDefined(caller.pollUnsafe())
        assert.strictEqual((yield* Fiber.join(caller)).key, "new")
        assert.deepStrictEqual(closed(), ["a"])
        // The late place serves the next caller, which evicts nothing.
        yield* TestClock.adjust("20 seconds")
        yield* visit(pool, "another")
        assert.deepStrictEqual(yield* counts(pool), { evicted: 1, idle: 3, retired: 0, waiting: 0 })
      }))
  }

  it.effect("a caller with acquireTimeout zero counts on no closing place, evicts, and gets a place that closes synchronously", () =>
    Effect.gen(function*() {
      const { backend, caller } = yield* closing("20 seconds", { acquireTimeout: 0, closed: () => Effect.never })
      yield* TestClock.adjust(0)
      assert.strictEqual((yield* Fiber.join(caller)).key, "new")
      assert.deepStrictEqual(keysOf(backend.closed), ["a"])
    }))

  it.effect("a caller that gets a closing place in time evicts nothing", () =>
    Effect.gen(function*() {
      const { caller, pool } = yield* closing("4900 millis")
      yield* TestClock.adjust("4900 millis")
      assert.strictEqual((yield* Fiber.join(caller)).key, "new")
      assert.deepStrictEqual(yield* counts(pool), { evicted: 0, idle: 3, retired: 0, waiting: 0 })
    }))

  it.effect("a caller whose patience is over evicts the next session that becomes idle, though a place is closing", () =>
    Effect.gen(function*() {
      const { backend, pool, release } = yield* full({
        capacity: 3,
        acquireTimeout: "3 seconds",
        closing: (key) => key === "held" ? Effect.void : Effect.sleep("20 seconds")
      })
      const another = yield* hold(pool, "another")
      yield* retire(pool)
      const caller = yield* ask(pool, "new")
      yield* TestClock.adjust("2 seconds")
      // A second closing place, on which it does not count.
      yield* SessionPool.invalidate(pool, "another")
      yield* another.release
      yield* release
      yield* TestClock.adjust("1 second")
      assert.strictEqual((yield* Fiber.join(caller)).key, "new")
      assert.deepStrictEqual(keysOf(backend.closed), ["held"])
    }))

  it.effect("a caller that has just evicted a session waits for its close, and evicts no second one", () =>
    Effect.gen(function*() {
      const { pool, release } = yield* full({ capacity: 2, closing: () => Effect.sleep("500 millis") })
      const other = yield* hold(pool, "other")
      const caller = yield* ask(pool, "new")
      yield* TestClock.adjust("4900 millis")
      yield* release
      yield* other.release
      yield* TestClock.adjust("500 millis")
      yield* Fiber.join(caller)
      assert.sameMembers(yield* SessionPool.keys(pool), ["other", "new"])
    }))

  it.effect("callers that wait for one key evict one session for all of them", () =>
    Effect.gen(function*() {
      const { caller, pool } = yield* closing("20 seconds", {
        closing: (key) => Effect.sleep(key === "slow" ? "20 seconds" : "100 millis")
      })
      const callers = [caller, yield* ask(pool, "new"), yield* ask(pool, "new")]
      yield* TestClock.adjust("6 seconds")
      yield* Fiber.joinAll(callers)
      assert.strictEqual((yield* counts(pool)).evicted, 1)
    }))

  it.effect("two callers never count on the same place while a session is idle", () =>
    Effect.gen(function*() {
      const { caller, pool } = yield* closing("4 seconds", { closing: () => Effect.sleep("4 seconds") })
      assert.strictEqual((yield* counts(pool)).idle, 2)
      const second = yield* ask(pool, "second")
      assert.strictEqual((yield* counts(pool)).idle, 1)
      yield* TestClock.adjust("4 seconds")
      yield* Fiber.joinAll([caller, second])
    }))

  it.effect("a caller of a full group does not count on a place that is promised to a caller of another group", () =>
    Effect.gen(function*() {
      const { pool } = yield* make({
        capacity: 3,
        groupBy: (key) => key[0],
        groupCapacity: 2,
        closing: () => Effect.sleep("4 seconds")
      })
      yield* visit(pool, "a1")
      yield* visit(pool, "a2")
      yield* hold(pool, "b1")
      // Evicts "a1" for the pool's limit.
      const b2 = yield* ask(pool, "b2")
      const a3 = yield* ask(pool, "a3")
      assert.strictEqual((yield* counts(pool)).idle, 0)
      yield* TestClock.adjust("4 seconds")
      yield* Fiber.joinAll([a3, b2])
    }))

  it.effect("a caller of a full group that is promised a closing place evicts nothing of another group", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void>()
      const { backend, pool } = yield* make({
        capacity: 2,
        groupBy: (key) => key[0],
        groupCapacity: 1,
        closing: () => Deferred.await(gate)
      })
      yield* visit(pool, "x1")
      yield* visit(pool, "y1")
      const waiters = [yield* ask(pool, "x2"), yield* ask(pool, "x3")]
      assert.deepStrictEqual(yield* SessionPool.keys(pool), ["y1"])
      // The pool is full, and the place of "x1" is promised to "x2".
      waiters.push(yield* ask(pool, "z1"))
      assert.deepStrictEqual(yield* SessionPool.keys(pool), [])
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.joinAll(waiters)
      assert.sameMembers(keysOf(backend.opened.slice(2)), ["x2", "x3", "z1"])
    }))
})
