/** Leases of get, use, lease and getOption; touch; and the reads info, entries, keys and size. */
import { assert, describe } from "@effect/vitest"
import { Deferred, Effect, Exit, Fiber, Option } from "effect"
import { TestClock } from "effect/testing"
import { inspect } from "node:util"
import { SessionPool } from "../src/index.ts"
import { fork, hold, visit } from "./kit/pool/calls.ts"
import { infoOf, withPool } from "./kit/pool/withPool.ts"

describe("leases", () => {
  withPool("get launches one session per key, which all its leases share", {}, function*({ backend, pool }) {
    const [first, second] = [yield* hold(pool, "a"), yield* hold(pool, "a")]
    assert.strictEqual(first.value, second.value)
    yield* first.release
    assert.strictEqual((yield* infoOf(pool, "a")).leases, 1)
    yield* second.release
    const { active, hits, idle, launches, misses } = yield* SessionPool.stats(pool)
    assert.deepStrictEqual([active, idle, hits, misses, launches, backend.openCount()], [0, 1, 1, 1, 1, 1])
  })

  withPool("get counts no error, however its scope ends", { maxErrorCount: 1 }, function*({ pool }) {
    for (const end of [Effect.fail("failed"), Effect.die("died"), Effect.interrupt]) {
      yield* Effect.exit(Effect.scoped(Effect.andThen(SessionPool.get(pool, "a"), end)))
    }
    const { errorCount, leases, requestCount } = yield* infoOf(pool, "a")
    assert.deepStrictEqual([errorCount, leases, requestCount], [0, 0, 3])
  })

  withPool("use leases a session while its effect runs", {}, function*({ pool }) {
    const leases = Effect.map(infoOf(pool, "a"), (info) => info.leases)
    const used = SessionPool.use(pool, "a", ({ id }) => Effect.all([Effect.succeed(id), leases]))
    assert.deepStrictEqual([yield* used, yield* leases], [[1, 1], 0])
  })

  withPool("use releases the session however its effect ends", {}, function*({ pool }) {
    const thrown = () => assert.fail("thrown")
    for (const end of [() => Effect.fail("failed"), () => Effect.die("died"), () => Effect.interrupt, thrown]) {
      assert.isTrue(Exit.isFailure(yield* Effect.exit(SessionPool.use(pool, "a", end))))
    }
    yield* Fiber.interrupt(yield* fork(SessionPool.use(pool, "a", () => Effect.never)))
    assert.strictEqual((yield* infoOf(pool, "a")).leases, 0)
  })

  withPool("lease holds a session for the scope", {}, function*({ backend, pool }) {
    const leased = Effect.scoped(Effect.all([SessionPool.lease(pool, "a"), infoOf(pool, "a")]))
    const [{ id, key, value }, info] = yield* leased
    assert.deepStrictEqual([key, id, value], ["a", info.id, backend.opened[0]])
    assert.deepStrictEqual([info.leases, info.requestCount, (yield* infoOf(pool, "a")).leases], [1, 1, 0])
  })

  withPool("a lease acts on its own session, never on the next one", { maxErrorCount: 2 }, function*({ pool }) {
    const [first, second] = [yield* SessionPool.lease(pool, "a"), yield* SessionPool.lease(pool, "a")]
    yield* first.recordError
    assert.strictEqual((yield* infoOf(pool, "a")).errorCount, 1)
    assert.deepStrictEqual([yield* first.invalidate, yield* second.invalidate], [true, false])
    const next = yield* SessionPool.lease(pool, "a")
    yield* first.recordError
    assert.isFalse(yield* first.invalidate)
    const { errorCount, id } = yield* infoOf(pool, "a")
    assert.deepStrictEqual([id, errorCount, (yield* SessionPool.stats(pool)).errors], [next.id, 0, 1])
    assert.notStrictEqual(id, first.id)
    yield* Effect.andThen(next.recordError, next.recordError)
    assert.deepStrictEqual([yield* SessionPool.size(pool), yield* next.invalidate], [0, false])
  })

  withPool("ten users who invalidate one session and retry cause one launch", {}, function*({ backend, pool }) {
    const gate = yield* Deferred.make<void>()
    const request = SessionPool.use(pool, "a", ({ id }, lease) => {
      const fail = Effect.andThen(lease.invalidate, Effect.fail("broken"))
      return id > 1 ? Effect.succeed(id) : Effect.andThen(Deferred.await(gate), fail)
    })
    const requests = yield* Effect.replicateEffect(fork(Effect.retry(request, { times: 1 })), 10)
    yield* Deferred.succeed(gate, undefined)
    assert.deepStrictEqual(new Set(yield* Fiber.joinAll(requests)), new Set([2]))
    assert.deepStrictEqual([backend.opened.length, (yield* SessionPool.stats(pool)).closes.Invalidated], [2, 1])
  })
})

describe("finding sessions", () => {
  const finders = { touch: SessionPool.touch<string>("a"), getOption: SessionPool.getOption<string>("a") }
  for (const [name, find] of Object.entries(finders)) {
    const leases = name === "touch" ? 0 : 1
    withPool(`${name} finds a live session, and launches none`, {}, function*({ backend, pool }) {
      assert.deepStrictEqual(yield* find(pool), Option.none())
      assert.strictEqual(backend.opened.length, 0)
      const value = yield* visit(pool, "a")
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(yield* find(pool), Option.some(value))
      const info = yield* infoOf(pool, "a")
      assert.deepStrictEqual([info.lastUsedAt, info.leases, info.requestCount], [1000, leases, 2])
      assert.strictEqual((yield* SessionPool.stats(pool)).hits, 1)
    })
  }

  withPool("info, entries, keys and size show live sessions without a touch", {}, function*({ pool }) {
    yield* TestClock.adjust("1 second")
    yield* visit(pool, "idle")
    const held = yield* hold(pool, "active")
    yield* TestClock.adjust("1 second")
    const known = { createdAt: 1000, openedAt: 1000, lastUsedAt: 1000, requestCount: 1, errorCount: 0 }
    const [active, idle] = [yield* infoOf(pool, "active"), yield* infoOf(pool, "idle")]
    assert.deepStrictEqual(idle, { ...known, key: "idle", id: idle.id, leases: 0, state: "idle" })
    assert.deepStrictEqual(active, { ...known, key: "active", id: active.id, leases: 1, state: "active" })
    assert.sameDeepMembers(yield* SessionPool.entries(pool), [active, idle])
    assert.sameMembers(yield* SessionPool.keys(pool), ["idle", "active"])
    assert.strictEqual(yield* SessionPool.size(pool), 2)
    yield* held.release
    assert.strictEqual((yield* infoOf(pool, "active")).lastUsedAt, 2000)
  })

  const lookup = (key: string) => key === "launching" ? Effect.never : Effect.succeed({ key, id: 0 })
  withPool("info, entries, keys, size and touch find only live sessions", { lookup }, function*({ pool }) {
    yield* SessionPool.get(pool, "retired")
    yield* SessionPool.invalidate(pool, "retired")
    const launching = yield* fork(visit(pool, "launching"))
    for (const key of ["launching", "retired"]) {
      assert.deepStrictEqual(yield* SessionPool.info(pool, key), Option.none())
      assert.deepStrictEqual(yield* SessionPool.touch(pool, key), Option.none())
    }
    const shown = [yield* SessionPool.entries(pool), yield* SessionPool.keys(pool), yield* SessionPool.size(pool)]
    assert.deepStrictEqual(shown, [[], [], 0])
    yield* Fiber.interrupt(launching)
  })

  withPool("neither a pool nor a lease prints the keys of sessions", { name: "tenants" }, function*({ pool }) {
    yield* visit(pool, "s3cret")
    const lease = yield* SessionPool.lease(pool, "a")
    for (const text of [pool, lease].flatMap((it) => [JSON.stringify(it), String(it), inspect(it, { depth: 9 })])) {
      assert.notInclude(text, "s3cret")
    }
    const shown = [[pool, { _id: "SessionPool", name: "tenants" }], [lease, {
      _id: "SessionPool.Lease",
      id: 2
    }]] as const
    for (const [it, json] of shown) {
      assert.deepStrictEqual(JSON.parse(JSON.stringify(it)), json)
      for (const text of [String(it), inspect(it)]) for (const part of Object.values(json)) assert.include(text, part)
    }
    assert.strictEqual(yield* pool.pipe(SessionPool.size), 2)
    assert.isTrue(SessionPool.isSessionPool(pool))
    for (const other of [undefined, null, {}, "pool", () => pool]) assert.isFalse(SessionPool.isSessionPool(other))
  })
})
