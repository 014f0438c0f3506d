/**
 * The public functions of the pool, each called data-first and data-last, and the corner cases that were decided. Long, because each
 * function has its section here.
 */
import { assert, describe, it } from "@effect/vitest"
import {
  Cause,
  ConfigProvider,
  Context,
  Data,
  Deferred,
  Duration,
  Effect,
  Exit,
  Fiber,
  Layer,
  Logger,
  Option,
  Scheduler,
  Scope,
  Stream
} from "effect"
import { TestClock } from "effect/testing"
import { inspect } from "node:util"
import { SessionKey, SessionPool } from "../src/index.ts"
import * as Backend from "./kit/pool/backend.ts"
import { fork } from "./kit/pool/fork.ts"

type Pool = SessionPool.SessionPool<string, Backend.Connection>

const idsOf = (connections: ReadonlyArray<Backend.Connection>) => connections.map(({ id }) => id)

const visit = (pool: Pool, key: string) => Effect.scoped(SessionPool.get(pool, key))

const lease = Effect.fnUntraced(function*(pool: Pool, key: string) {
  const scope = yield* Scope.make()
  const value = yield* Scope.provide(SessionPool.get(pool, key), scope)
  return { value, release: Scope.close(scope, Exit.void) }
})

const makePool = (options: Partial<SessionPool.Options<string, Backend.Connection, never, Scope.Scope>> = {}) =>
  Effect.gen(function*() {
    const backend = Backend.make()
    const pool: Pool = yield* SessionPool.make({ lookup: backend.open, ...options })
    return { backend, pool }
  })

/** A pool whose launches wait for `land`. */
const makeSlowPool = (options: Partial<SessionPool.Options<string, Backend.Connection, never, Scope.Scope>> = {}) =>
  Effect.gen(function*() {
    const gate = yield* Deferred.make<void>()
    const backend = Backend.make()
    const lookup = (key: string) => Effect.tap(backend.open(key), () => Deferred.await(gate))
    const pool: Pool = yield* SessionPool.make({ lookup, ...options })
    return { backend, pool, land: Deferred.succeed(gate, undefined) }
  })

const zeroCloses = {
  IdleTimeout: 0,
  MaxLifetime: 0,
  Errors: 0,
  Invalidated: 0,
  Replaced: 0,
  Evicted: 0,
  Disconnected: 0,
  Invalid: 0,
  PoolClosed: 0
}

const zeroStats: SessionPool.Stats = {
  launching: 0,
  idle: 0,
  active: 0,
  retired: 0,
  waiting: 0,
  hits: 0,
  misses: 0,
  joins: 0,
  launches: 0,
  launchFailures: 0,
  closes: zeroCloses,
  errors: 0
}

describe("isSessionPool, pipe and toJSON", () => {
  it.effect("tell a pool from anything else, and pipe a pool through functions", () =>
    Effect.gen(function*() {
      const { pool } = yield* makePool()
      assert.isTrue(SessionPool.isSessionPool(pool))
      for (const other of [undefined, null, {}, "pool", () => pool]) assert.isFalse(SessionPool.isSessionPool(other))
      assert.strictEqual(yield* pool.pipe(SessionPool.size), 0)
    }))

  it.effect("show the name of a pool that is printed, and no key and no connection", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ name: "tenants", lookup: (key: string) => Effect.succeed(`open ${key}`) })
      yield* SessionPool.use(pool, "s3cret", Effect.succeed)
      for (const text of [JSON.stringify({ pool }), String(pool), inspect({ pool }, { depth: 9 })]) {
        assert.include(text, "tenants")
        assert.notInclude(text, "s3cret")
      }
    }))
})

type Call = (pool: Pool) => Effect.Effect<unknown, unknown, Scope.Scope>

/** For each function: how to call it data-first and data-last. The two are given equal pools. */
const duals: Record<string, readonly [Call, Call]> = {
  get: [(pool) => SessionPool.get(pool, "a"), (pool) => pool.pipe(SessionPool.get("a"))],
  use: [
    (pool) => SessionPool.use(pool, "a", ({ id }) => Effect.succeed(id)),
    (pool) => pool.pipe(SessionPool.use("a", ({ id }: Backend.Connection) => Effect.succeed(id)))
  ],
  touch: [(pool) => SessionPool.touch(pool, "a"), (pool) => pool.pipe(SessionPool.touch("a"))],
  getOption: [(pool) => SessionPool.getOption(pool, "a"), (pool) => pool.pipe(SessionPool.getOption("a"))],
  set: [
    (pool) => SessionPool.set(pool, "a", { key: "a", id: 99 }),
    (pool) => pool.pipe(SessionPool.set("a", { key: "a", id: 99 }))
  ],
  "set with a finalizer": [
    (pool) => SessionPool.set(pool, "a", { key: "a", id: 99 }, Effect.void),
    (pool) => pool.pipe(SessionPool.set("a", { key: "a", id: 99 }, Effect.void))
  ],
  invalidate: [(pool) => SessionPool.invalidate(pool, "a"), (pool) => pool.pipe(SessionPool.invalidate("a"))],
  invalidateAll: [
    (pool) => SessionPool.invalidateAll(pool, ({ key }) => key === "a"),
    (pool) => pool.pipe(SessionPool.invalidateAll(({ key }) => key === "a"))
  ],
  recordError: [(pool) => SessionPool.recordError(pool, "a"), (pool) => pool.pipe(SessionPool.recordError("a"))],
  info: [(pool) => SessionPool.info(pool, "a"), (pool) => pool.pipe(SessionPool.info("a"))]
}

describe("data-first and data-last", () => {
  for (const [name, [dataFirst, dataLast]] of Object.entries(duals)) {
    it.effect(`${name} does the same either way`, () =>
      Effect.gen(function*() {
        const outcome = (call: typeof dataFirst) =>
          Effect.scoped(Effect.gen(function*() {
            const { pool } = yield* makePool()
            yield* visit(pool, "a")
            yield* visit(pool, "b")
            const exit = yield* Effect.exit(call(pool))
            return { exit, stats: yield* SessionPool.stats(pool), entries: yield* SessionPool.entries(pool) }
          }))
        const [first, last] = [yield* outcome(dataFirst), yield* outcome(dataLast)]
        assert.isTrue(Exit.isSuccess(first.exit))
        assert.deepStrictEqual(last, first)
      }))
  }
})

describe("get", () => {
  it.effect("launches once and leases for the scope", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* makePool()
      const [first, second] = [yield* lease(pool, "a"), yield* lease(pool, "a")]
      assert.strictEqual(first.value, second.value)
      assert.strictEqual(backend.opened.length, 1)
      yield* first.release
      assert.strictEqual((yield* SessionPool.stats(pool)).active, 1)
      yield* second.release
      assert.deepStrictEqual(yield* SessionPool.stats(pool), {
        ...zeroStats,
        idle: 1,
        hits: 1,
        misses: 1,
        launches: 1
      })
    }))

  it.effect("without a scope, in a program without types, leaves no lease behind and says what it needs", () =>
    Effect.gen(function*() {
      const { pool } = yield* makePool()
      // What its type says is left out.
      const get = SessionPool.get(pool, "a") as Effect.Effect<Backend.Connection, SessionPool.AcquireError>
      for (let i = 0; i < 2; i++) {
        const exit = yield* Effect.promise(() => Effect.runPromiseExit(get))
        assert.match(String(exit), /get and getOption need a Scope to hold the lease: run them in Effect\.scoped/)
        const { active, idle } = yield* SessionPool.stats(pool)
        assert.deepStrictEqual([active, idle], [0, 1])
      }
    }))

  it.effect("fails with the lookup's own error, and leaves nothing behind", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup: (key: string) => Effect.fail(`no ${key}`) })
      assert.strictEqual(yield* Effect.flip(Effect.scoped(SessionPool.get(pool, "a"))), "no a")
      assert.deepStrictEqual(yield* SessionPool.stats(pool), { ...zeroStats, misses: 1, launchFailures: 1 })
    }))

  it.effect("dies with the lookup's defect, also when the lookup function itself throws", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup: (key: string): Effect.Effect<string> => {
          throw new Error(`cannot open ${key}`)
        }
      })
      const exit = yield* Effect.exit(SessionPool.get(pool, "a"))
      assert.isTrue(Exit.isFailure(exit) && Cause.hasDies(exit.cause))
      assert.strictEqual((yield* SessionPool.stats(pool)).launchFailures, 1)
    }))

  it.effect("counts no errors, whatever ends its scope", () =>
    Effect.gen(function*() {
      const { pool } = yield* makePool({ maxErrorCount: 1 })
      for (const end of [Effect.fail("failed"), Effect.die("died"), Effect.interrupt]) {
        yield* Effect.exit(Effect.scoped(Effect.andThen(SessionPool.get(pool, "a"), end)))
      }
      const info = Option.getOrThrow(yield* SessionPool.info(pool, "a"))
      assert.deepStrictEqual([info.errorCount, info.requestCount, info.leases], [0, 3, 0])
    }))

  it.effect("finds a session by the value of its key, not by its identity", () =>
    Effect.gen(function*() {
      class Key extends Data.Class<{ readonly user: string; readonly device: number }> {}
      let opened = 0
      const pool = yield* SessionPool.make({ lookup: (_: Key) => Effect.sync(() => ++opened) })
      yield* SessionPool.get(pool, new Key({ user: "ada", device: 1 }))
      yield* SessionPool.get(pool, new Key({ user: "ada", device: 1 }))
      yield* SessionPool.get(pool, new Key({ user: "ada", device: 2 }))
      assert.strictEqual(opened, 2)
    }))

  it.effect("takes a SessionKey", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup: (key: SessionKey.SessionKey) => Effect.succeed(SessionKey.backend(key))
      })
      assert.strictEqual(yield* SessionPool.get(pool, yield* SessionKey.make("everything", "1")), "everything")
    }))
})

describe("use", () => {
  it.effect("returns what f returns, leased only while f runs", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* makePool()
      const leases = SessionPool.use(pool, "a", (connection) =>
        Effect.map(SessionPool.info(pool, "a"), (info) => [connection.id, Option.getOrThrow(info).leases]))
      assert.deepStrictEqual(yield* leases, [1, 1])
      assert.strictEqual(Option.getOrThrow(yield* SessionPool.info(pool, "a")).leases, 0)
      assert.strictEqual(backend.openCount(), 1)
    }))

  it.effect("counts a failure, leaves the count at an interruption, and clears it at a success", () =>
    Effect.gen(function*() {
      const { pool } = yield* makePool()
      const counts: Array<number> = []
      const after = (f: () => Effect.Effect<void, string>) =>
        Effect.gen(function*() {
          const exit = yield* Effect.exit(SessionPool.use(pool, "a", f))
          counts.push(Option.getOrThrow(yield* SessionPool.info(pool, "a")).errorCount)
          return exit
        })
      assert.deepStrictEqual(yield* after(() => Effect.fail("broken")), Exit.fail("broken"))
      assert.deepStrictEqual(yield* after(() => Effect.die("defect")), Exit.die("defect"))
      yield* after(() => Effect.interrupt)
      yield* after(() => Effect.void)
      assert.deepStrictEqual(counts, [1, 2, 2, 0])
      assert.strictEqual((yield* SessionPool.stats(pool)).errors, 2)
    }))

  it.effect("counts no error of the session when the launch failed", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup: (_: string) => Effect.fail("refused") })
      assert.strictEqual(yield* Effect.flip(SessionPool.use(pool, "a", () => Effect.void)), "refused")
      assert.strictEqual((yield* SessionPool.stats(pool)).errors, 0)
    }))

  it.effect("can be interrupted while f runs, and gives the lease back", () =>
    Effect.gen(function*() {
      const { pool } = yield* makePool()
      const fiber = yield* fork(SessionPool.use(pool, "a", () => Effect.never))
      assert.strictEqual((yield* SessionPool.stats(pool)).active, 1)
      yield* Fiber.interrupt(fiber)
      const { active, errors, idle } = yield* SessionPool.stats(pool)
      assert.deepStrictEqual({ active, errors, idle }, { active: 0, errors: 0, idle: 1 })
    }))
})

describe("touch", () => {
  it.effect("is one lookup and one touch: no launch, no lease", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* makePool()
      assert.deepStrictEqual(yield* SessionPool.touch(pool, "a"), Option.none())
      assert.strictEqual(backend.opened.length, 0)
      yield* visit(pool, "a")
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(yield* SessionPool.touch(pool, "a"), Option.fromUndefinedOr(backend.opened[0]))
      const info = Option.getOrThrow(yield* SessionPool.info(pool, "a"))
      assert.deepStrictEqual([info.lastUsedAt, info.requestCount, info.leases], [1000, 2, 0])
      assert.strictEqual((yield* SessionPool.stats(pool)).hits, 1)
    }))

  it.effect("is none while the key launches, and so is info", () =>
    Effect.gen(function*() {
      const { land, pool } = yield* makeSlowPool()
      const fiber = yield* fork(visit(pool, "a"))
      assert.deepStrictEqual(yield* SessionPool.touch(pool, "a"), Option.none())
      assert.deepStrictEqual(yield* SessionPool.info(pool, "a"), Option.none())
      assert.strictEqual((yield* SessionPool.stats(pool)).launching, 1)
      yield* land
      yield* Fiber.join(fiber)
      assert.strictEqual(Option.getOrThrow(yield* SessionPool.info(pool, "a")).requestCount, 1)
    }))
})

describe("getOption", () => {
  it.effect("leases a session that is there and never launches one", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* makePool()
      assert.deepStrictEqual(yield* SessionPool.getOption(pool, "a"), Option.none())
      assert.strictEqual(backend.opened.length, 0)
      yield* visit(pool, "a")
      yield* SessionPool.getOption(pool, "a")
      const info = Option.getOrThrow(yield* SessionPool.info(pool, "a"))
      assert.deepStrictEqual([info.leases, info.requestCount], [1, 2])
    }))

  it.effect("waits for a launch, and shares its failure", () =>
    Effect.gen(function*() {
      const { land, pool } = yield* makeSlowPool()
      const getting = yield* fork(visit(pool, "a"))
      const joining = yield* fork(Effect.scoped(SessionPool.getOption(pool, "a")))
      assert.isUndefined(joining.pollUnsafe())
      yield* land
      assert.deepStrictEqual(yield* Fiber.join(joining), Option.some(yield* Fiber.join(getting)))

      const gate = yield* Deferred.make<never, string>()
      const failing = yield* SessionPool.make({ lookup: (_: string) => Deferred.await(gate) })
      yield* fork(Effect.exit(Effect.scoped(SessionPool.get(failing, "a"))))
      const joined = yield* fork(Effect.scoped(SessionPool.getOption(failing, "a")))
      yield* Deferred.fail(gate, "refused")
      assert.strictEqual(yield* Effect.flip(Fiber.join(joined)), "refused")
    }))
})

describe("set", () => {
  it.effect("adopts an open connection, and closes it with its finalizer, once", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* makePool()
      let closes = 0
      yield* SessionPool.set(pool, "a", { key: "a", id: 99 }, Effect.sync(() => closes++))
      assert.strictEqual((yield* visit(pool, "a")).id, 99)
      assert.strictEqual(backend.opened.length, 0)
      yield* SessionPool.invalidate(pool, "a")
      yield* SessionPool.invalidate(pool, "a")
      assert.strictEqual(closes, 1)
    }))

  it.effect("retires the present session, which closes with its last lease; createdAt and counts go on", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* makePool()
      const held = yield* lease(pool, "a")
      yield* SessionPool.recordError(pool, "a")
      const before = Option.getOrThrow(yield* SessionPool.info(pool, "a"))
      yield* TestClock.adjust("1 minute")
      yield* SessionPool.set(pool, "a", { key: "a", id: 99 })
      const after = Option.getOrThrow(yield* SessionPool.info(pool, "a"))
      assert.notStrictEqual(after.id, before.id)
      assert.deepStrictEqual({ ...after, id: 0 }, {
        key: "a",
        id: 0,
        createdAt: 0,
        openedAt: 60_000,
        lastUsedAt: 60_000,
        requestCount: 1,
        errorCount: 1,
        leases: 0,
        state: "idle"
      })
      assert.strictEqual((yield* SessionPool.stats(pool)).retired, 1)
      assert.deepStrictEqual(idsOf(backend.closed), [])
      yield* held.release
      assert.deepStrictEqual(idsOf(backend.closed), [1])
      assert.strictEqual((yield* SessionPool.stats(pool)).closes.Replaced, 1)
    }))

  it.effect("wins over a launch: those who wait get it, and what the launch acquired is closed", () =>
    Effect.gen(function*() {
      const { backend, land, pool } = yield* makeSlowPool()
      const fibers = [yield* fork(visit(pool, "a")), yield* fork(visit(pool, "a"))]
      assert.strictEqual(backend.opened.length, 1)
      yield* SessionPool.set(pool, "a", { key: "a", id: 99 })
      assert.deepStrictEqual(idsOf(yield* Fiber.joinAll(fibers)), [99, 99])
      yield* land
      yield* TestClock.adjust(0)
      backend.assertAllClosedOnce()
      const info = Option.getOrThrow(yield* SessionPool.info(pool, "a"))
      assert.deepStrictEqual([info.requestCount, info.leases], [2, 0])
    }))

  it.effect("replaces in a full pool: the idle session makes room for its own successor", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* makePool({ capacity: 1 })
      yield* visit(pool, "a")
      yield* TestClock.adjust("1 second")
      yield* SessionPool.set(pool, "a", { key: "a", id: 99 })
      backend.assertAllClosedOnce()
      assert.strictEqual((yield* visit(pool, "a")).id, 99)
      const info = Option.getOrThrow(yield* SessionPool.info(pool, "a"))
      assert.deepStrictEqual([info.createdAt, info.requestCount], [0, 2])
    }))

  it.effect("gives the place to callers that wait for one under the same key", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* makePool({ capacity: 1 })
      const held = yield* lease(pool, "a")
      const waiting = yield* fork(visit(pool, "b"))
      const setting = yield* fork(SessionPool.set(pool, "b", { key: "b", id: 99 }))
      yield* held.release
      yield* Fiber.join(setting)
      yield* Fiber.join(waiting)
      assert.strictEqual((yield* visit(pool, "b")).id, 99)
      yield* TestClock.adjust(0)
      backend.assertAllClosedOnce()
    }))

  it.effect("that is interrupted while it waits closes the connection that it was handed", () =>
    Effect.gen(function*() {
      const { pool } = yield* makePool({ capacity: 1 })
      const held = yield* lease(pool, "a")
      let closes = 0
      const setting = yield* fork(SessionPool.set(pool, "b", { key: "b", id: 99 }, Effect.sync(() => closes++)))
      yield* Fiber.interrupt(setting)
      yield* held.release
      yield* SessionPool.invalidateAll(pool)
      assert.strictEqual(closes, 1)
      assert.deepStrictEqual(yield* SessionPool.stats(pool), {
        ...zeroStats,
        misses: 1,
        launches: 1,
        closes: { ...zeroCloses, Invalidated: 1 }
      })
    }))
})

describe("invalidate", () => {
  it.effect("retires a session, says whether there was one, and the next get launches anew", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* makePool()
      assert.isFalse(yield* SessionPool.invalidate(pool, "a"))
      yield* visit(pool, "a")
      assert.isTrue(yield* SessionPool.invalidate(pool, "a"))
      assert.isFalse(yield* SessionPool.invalidate(pool, "a"))
      assert.strictEqual((yield* visit(pool, "a")).id, 2)
      assert.deepStrictEqual(idsOf(backend.closed), [1])
    }))

  it.effect("while launching gives the session to those who wait, and to nobody else", () =>
    Effect.gen(function*() {
      const { backend, land, pool } = yield* makeSlowPool()
      const waiting = [yield* fork(visit(pool, "a")), yield* fork(visit(pool, "a"))]
      assert.isTrue(yield* SessionPool.invalidate(pool, "a"))
      const later = yield* fork(visit(pool, "a"))
      assert.strictEqual(backend.opened.length, 2)
      yield* land
      assert.deepStrictEqual(idsOf(yield* Fiber.joinAll(waiting)), [1, 1])
      assert.strictEqual((yield* Fiber.join(later)).id, 2)
      assert.deepStrictEqual(idsOf(backend.closed), [1])
      assert.strictEqual((yield* SessionPool.stats(pool)).closes.Invalidated, 1)
    }))

  it.effect("forgets a remembered failure", () =>
    Effect.gen(function*() {
      let works = false
      const pool = yield* SessionPool.make({
        lookup: (key: string) => Effect.suspend(() => works ? Effect.succeed(key) : Effect.fail("refused")),
        failureTimeToLive: "1 hour"
      })
      yield* Effect.exit(SessionPool.get(pool, "a"))
      works = true
      assert.strictEqual(yield* Effect.flip(SessionPool.get(pool, "a")), "refused")
      assert.isFalse(yield* SessionPool.invalidate(pool, "a"))
      assert.strictEqual(yield* SessionPool.get(pool, "a"), "a")
    }))
})

describe("invalidateAll", () => {
  it.effect("retires every session, launching ones included, and says how many", () =>
    Effect.gen(function*() {
      const { backend, land, pool } = yield* makeSlowPool()
      const fiber = yield* fork(visit(pool, "launching"))
      yield* SessionPool.set(pool, "idle", { key: "idle", id: 99 })
      assert.strictEqual(yield* SessionPool.invalidateAll(pool), 2)
      yield* land
      yield* Fiber.join(fiber)
      backend.assertAllClosedOnce()
      assert.strictEqual((yield* SessionPool.stats(pool)).closes.Invalidated, 2)
    }))

  it.effect("with a predicate retires the live sessions that satisfy it", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* makePool()
      yield* SessionPool.get(pool, "leased")
      yield* visit(pool, "idle")
      assert.strictEqual(yield* SessionPool.invalidateAll(pool, ({ state }) => state === "idle"), 1)
      assert.deepStrictEqual(idsOf(backend.closed), [2])
      assert.deepStrictEqual(yield* SessionPool.keys(pool), ["leased"])
    }))

  it.effect("retires what is launching: those who wait get it, the next one another", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void>()
      const backend = Backend.make()
      const pool = yield* SessionPool.make({
        lookup: (key: string) => Effect.tap(backend.open(key), () => Deferred.await(gate))
      })
      const waiting = yield* fork(Effect.scoped(SessionPool.get(pool, "a")))
      assert.strictEqual(yield* SessionPool.invalidateAll(pool), 1)
      yield* Deferred.succeed(gate, undefined)
      assert.strictEqual((yield* Fiber.join(waiting)).id, 1)
      assert.strictEqual((yield* Effect.scoped(SessionPool.get(pool, "a"))).id, 2)
      assert.deepStrictEqual(idsOf(backend.closed), [1])
    }))

  it.effect("leaves what it makes room for: whoever waits for a place gets a session newer than the call", () =>
    Effect.gen(function*() {
      // Sessions are visited in the order of a hash map: of so many keys, some come after "idle".
      for (const key of ["a", "b", "c", "d", "e", "f", "g", "h"]) {
        const { pool } = yield* makePool({ capacity: 2 })
        yield* SessionPool.set(pool, "closing", { key: "closing", id: 99 }, Effect.never)
        yield* visit(pool, "idle")
        yield* SessionPool.invalidate(pool, "closing")
        const waiter = yield* fork(visit(pool, key))
        assert.strictEqual((yield* SessionPool.stats(pool)).waiting, 1)
        assert.strictEqual(yield* SessionPool.invalidateAll(pool), 1)
        yield* Fiber.join(waiter)
        assert.deepStrictEqual(yield* SessionPool.keys(pool), [key])
        yield* TestClock.adjust("30 seconds")
      }
    }))
})

describe("recordError", () => {
  it.effect("counts an error, and does nothing for a key without a live session", () =>
    Effect.gen(function*() {
      const { pool } = yield* makePool()
      yield* SessionPool.recordError(pool, "a")
      assert.deepStrictEqual(yield* SessionPool.stats(pool), zeroStats)
      yield* visit(pool, "a")
      yield* SessionPool.recordError(pool, "a")
      assert.strictEqual(Option.getOrThrow(yield* SessionPool.info(pool, "a")).errorCount, 1)
      assert.strictEqual((yield* SessionPool.stats(pool)).errors, 1)
    }))
})

describe("info, entries, keys and size", () => {
  it.effect("say what is known of the live sessions, without touching them", () =>
    Effect.gen(function*() {
      const { pool } = yield* makePool()
      yield* TestClock.adjust("1 second")
      yield* visit(pool, "idle")
      const held = yield* lease(pool, "active")
      yield* TestClock.adjust("1 second")
      const [active, idle] = (yield* SessionPool.entries(pool)).toSorted((a, b) => a.key < b.key ? -1 : 1)
      const known = { createdAt: 1000, openedAt: 1000, lastUsedAt: 1000, requestCount: 1, errorCount: 0 }
      assert.deepStrictEqual(idle, { ...known, key: "idle", id: idle?.id ?? 0, leases: 0, state: "idle" })
      assert.deepStrictEqual(active, { ...known, key: "active", id: active?.id ?? 0, leases: 1, state: "active" })
      assert.notStrictEqual(active?.id, idle?.id)
      assert.deepStrictEqual(yield* SessionPool.info(pool, "idle"), Option.fromUndefinedOr(idle))
      assert.deepStrictEqual(yield* SessionPool.info(pool, "active"), Option.fromUndefinedOr(active))
      assert.deepStrictEqual(yield* SessionPool.info(pool, "nobody"), Option.none())
      assert.sameMembers(yield* SessionPool.keys(pool), ["idle", "active"])
      assert.strictEqual(yield* SessionPool.size(pool), 2)
      yield* held.release
      assert.strictEqual(Option.getOrThrow(yield* SessionPool.info(pool, "active")).lastUsedAt, 2000)
    }))

  it.effect("leave out what launches and what is retired", () =>
    Effect.gen(function*() {
      const { pool } = yield* makeSlowPool()
      yield* SessionPool.set(pool, "retired", { key: "retired", id: 99 })
      yield* SessionPool.get(pool, "retired")
      yield* SessionPool.invalidate(pool, "retired")
      yield* fork(visit(pool, "launching"))
      assert.deepStrictEqual(yield* SessionPool.entries(pool), [])
      assert.deepStrictEqual(yield* SessionPool.keys(pool), [])
      assert.strictEqual(yield* SessionPool.size(pool), 0)
    }))

  it.effect("never show the same id twice, whatever follows under a key", () =>
    Effect.gen(function*() {
      const { pool } = yield* makePool()
      const ids = new Set<number>()
      for (let round = 0; round < 10; round++) {
        if (round % 2 === 0) yield* visit(pool, "a")
        else yield* SessionPool.set(pool, "a", { key: "a", id: 99 })
        ids.add(Option.getOrThrow(yield* SessionPool.info(pool, "a")).id)
        if (round % 3 === 0) yield* SessionPool.invalidate(pool, "a")
        if (round % 2 === 1) yield* SessionPool.invalidate(pool, "a")
      }
      assert.strictEqual(ids.size, 10)
    }))
})

describe("stats", () => {
  it.effect("count what the pool holds now, and totals since it was made", () =>
    Effect.gen(function*() {
      const { land, pool } = yield* makeSlowPool({ capacity: 3, maxErrorCount: 1 })
      assert.deepStrictEqual(yield* SessionPool.stats(pool), zeroStats)
      const launching = [yield* fork(visit(pool, "a")), yield* fork(visit(pool, "a"))]
      yield* SessionPool.set(pool, "b", { key: "b", id: 99 })
      const held = yield* lease(pool, "b")
      yield* SessionPool.recordError(pool, "b")
      yield* SessionPool.set(pool, "c", { key: "c", id: 98 })
      const other = yield* lease(pool, "c")
      const waiting = yield* fork(visit(pool, "d"))
      assert.deepStrictEqual(yield* SessionPool.stats(pool), {
        ...zeroStats,
        launching: 1,
        active: 1,
        retired: 1,
        waiting: 1,
        hits: 2,
        misses: 2,
        joins: 1,
        errors: 1
      })
      yield* land
      yield* held.release
      yield* other.release
      yield* Fiber.joinAll([...launching, waiting])
      const { closes, ...after } = yield* SessionPool.stats(pool)
      assert.strictEqual(closes.Errors, 1)
      assert.deepStrictEqual([after.launching, after.active, after.retired, after.waiting], [0, 0, 0, 0])
      assert.strictEqual(after.launches, 2)
    }))
})

describe("events", () => {
  it.effect("end for a reader that comes in the moment in which the pool closes", () =>
    Effect.forEach(
      Array.from({ length: 30 }, (_, i) => i + 3),
      (budget) =>
        Effect.gen(function*() {
          const scope = yield* Scope.make()
          const pool = yield* Scope.provide(SessionPool.make({ lookup: (key: string) => Effect.succeed(key) }), scope)
          const reading = yield* Effect.forkChild(Stream.runCollect(SessionPool.events(pool)))
          yield* Scope.close(scope, Exit.void)
          assert.deepStrictEqual(Array.from(yield* Fiber.join(reading)), [])
        }).pipe(Effect.provideService(Scheduler.MaxOpsBeforeYield, budget)),
      { discard: true }
    ))

  it.effect("tell the life of each session in order, and end with the pool", () =>
    Effect.gen(function*() {
      const backend = Backend.make()
      const scope = yield* Scope.make()
      const lookup = (key: string) =>
        key === "bad" ? Effect.fail("refused") : Effect.tap(backend.open(key), () => Effect.sleep("1 second"))
      const pool = yield* Scope.provide(SessionPool.make({ lookup }), scope)
      const reading = yield* fork(Stream.runCollect(SessionPool.events(pool)))
      yield* TestClock.adjust(0)
      const getting = yield* fork(Effect.scoped(SessionPool.get(pool, "a")))
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(getting)
      yield* Effect.exit(Effect.scoped(SessionPool.get(pool, "bad")))
      yield* SessionPool.set(pool, "a", { key: "a", id: 99 })
      yield* Scope.close(scope, Exit.void)
      const events = Array.from(yield* Fiber.join(reading))
      const one = { key: "a", id: events[0]?.id ?? 0 }
      const two = { key: "a", id: events.find(({ _tag }) => _tag === "Adopted")?.id ?? 0 }
      const bad = { key: "bad", id: events[1]?.id ?? 0 }
      assert.strictEqual(new Set([one.id, two.id, bad.id]).size, 3)
      const failures = events.filter((event) => event._tag === "LaunchFailed")
      assert.deepStrictEqual(
        failures.map(({ cause, duration, id, key }) => [id, key, duration, Cause.squash(cause)]),
        [[bad.id, "bad", 0, "refused"]]
      )
      assert.deepStrictEqual(events.filter(({ id }) => id === one.id), [
        { _tag: "Launched", ...one, duration: 1000 },
        { _tag: "Retired", ...one, reason: "Replaced" },
        { _tag: "Closed", ...one, reason: "Replaced", duration: 0, exit: Exit.void }
      ])
      assert.deepStrictEqual(events.filter(({ id }) => id === two.id), [
        { _tag: "Adopted", ...two },
        { _tag: "Retired", ...two, reason: "PoolClosed" },
        { _tag: "Closed", ...two, reason: "PoolClosed", duration: 0, exit: Exit.void }
      ])
    }))

  it.effect("of a closed pool are empty", () =>
    Effect.gen(function*() {
      const { pool } = yield* Effect.scoped(makePool())
      assert.deepStrictEqual(Array.from(yield* Stream.runCollect(SessionPool.events(pool))), [])
    }))
})

describe("sweep", () => {
  it.effect("retires now what has expired, and says how many", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* makePool({ idleTimeToLive: "1 minute", cleanupInterval: "Infinity" })
      yield* visit(pool, "old")
      yield* SessionPool.get(pool, "leased")
      yield* TestClock.adjust("2 minutes")
      yield* visit(pool, "new")
      assert.strictEqual(yield* SessionPool.sweep(pool), 1)
      assert.strictEqual(yield* SessionPool.sweep(pool), 0)
      assert.deepStrictEqual(idsOf(backend.closed), [1])
      assert.sameMembers(yield* SessionPool.keys(pool), ["leased", "new"])
    }))
})

// -----------------------------------------------------------------------------
// Service
// -----------------------------------------------------------------------------

class Shells extends SessionPool.Service<Shells>()("test/Shells", {
  lookup: (user: string) => Effect.succeed({ shellOf: user }),
  maxErrorCount: 2
}) {}

class Greeting extends Context.Service<Greeting, string>()("test/Greeting") {}

class Greeters extends SessionPool.Service<Greeters>()(
  "test/Greeters",
  Effect.gen(function*() {
    const { capacity } = yield* SessionPool.config("GREETERS")
    return {
      capacity,
      maxWaiting: 0,
      lookup: (user: string) => Effect.map(Greeting, (greeting) => `${greeting}, ${user}`)
    }
  })
) {}

describe("Service", () => {
  it.effect("has every function of a pool as an accessor", () =>
    Effect.gen(function*() {
      const ada = { shellOf: "ada" }
      assert.deepStrictEqual(yield* Effect.scoped(Shells.get("ada")), ada)
      assert.deepStrictEqual(yield* Shells.use("ada", (shell) => Effect.succeed([shell])), [ada])
      assert.deepStrictEqual(yield* Shells.touch("ada"), Option.some(ada))
      assert.deepStrictEqual(yield* Effect.scoped(Shells.getOption("ada")), Option.some(ada))
      assert.strictEqual(Option.getOrThrow(yield* Shells.info("ada")).requestCount, 4)
      yield* Shells.recordError("ada")
      assert.strictEqual(Option.getOrThrow(yield* Shells.info("ada")).errorCount, 1)
      let closes = 0
      yield* Shells.set("ada", { shellOf: "adopted" }, Effect.sync(() => closes++))
      yield* Shells.set("bob", { shellOf: "bob" })
      assert.isTrue(yield* Shells.invalidate("ada"))
      assert.strictEqual(closes, 1)
      assert.strictEqual(yield* Shells.invalidateAll(({ key }) => key === "nobody"), 0)
      assert.strictEqual(yield* Shells.invalidateAll(), 1)
      assert.deepStrictEqual(yield* Shells.stats, {
        ...zeroStats,
        hits: 3,
        misses: 1,
        launches: 1,
        errors: 1,
        closes: { ...zeroCloses, Replaced: 1, Invalidated: 2 }
      })
    }).pipe(Effect.provide(Shells.layer)))

  it.effect("gives the pool itself, and `use` with a function alone gets it too", () =>
    Effect.gen(function*() {
      const pool = yield* Shells
      assert.isTrue(SessionPool.isSessionPool(pool))
      yield* SessionPool.get(pool, "ada")
      assert.strictEqual(yield* Shells.use((pool) => SessionPool.size(pool)), 1)
      assert.deepStrictEqual(yield* Shells.use(SessionPool.keys), ["ada"])
    }).pipe(Effect.provide(Shells.layer)))

  it.effect("ends the pool with the layer", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(Shells.layer, scope)
      let closes = 0
      const set = Shells.set("ada", { shellOf: "ada" }, Effect.sync(() => closes++))
      yield* Effect.provideContext(set, context)
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual(closes, 1)
      const error = yield* Effect.flip(Effect.provideContext(Effect.scoped(Shells.get("ada")), context))
      assert.strictEqual(error._tag, "PoolClosed")
    }))

  it.effect("takes its options from an effect, and what the lookup needs from the layer's context", () =>
    Effect.gen(function*() {
      assert.strictEqual(yield* Greeters.get("ada"), "Hello, ada")
      const error = yield* Effect.flip(Greeters.get("bob"))
      assert.instanceOf(error, SessionPool.CapacityExceeded)
      assert.strictEqual(error.limit, 1)
    }).pipe(
      Effect.provide(Layer.provide(Greeters.layer, Layer.succeed(Greeting, "Hello"))),
      Effect.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env: { GREETERS_CAPACITY: "1" } })))
    ))

  it.effect("fails the layer, not the program, when its options cannot be read", () =>
    Effect.gen(function*() {
      const layer = Layer.provide(Greeters.layer, Layer.succeed(Greeting, "Hello"))
      const error = yield* Effect.flip(Effect.scoped(Layer.build(layer)))
      assert.strictEqual(error._tag, "ConfigError")
    }).pipe(Effect.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env: { GREETERS_CAPACITY: "none" } })))))
})

// -----------------------------------------------------------------------------
// Config
// -----------------------------------------------------------------------------

const readConfig = (env: Record<string, string>, prefix?: string) =>
  SessionPool.config(prefix).pipe(
    Effect.provideService(ConfigProvider.ConfigProvider, ConfigProvider.fromEnv({ env }))
  )

const noDuration = ["soon", "-1 second"]
const noPositive = [...noDuration, "0 millis"]
const noCount = ["0", "-1", "1.5", "many", "NaN", " "]

const variables: ReadonlyArray<
  readonly [option: string, name: string, good: string, means: unknown, bad: ReadonlyArray<string>]
> = [
  ["capacity", "CAPACITY", "100", 100, noCount],
  ["groupCapacity", "GROUP_CAPACITY", "5", 5, noCount],
  ["acquireTimeout", "ACQUIRE_TIMEOUT", "5 seconds", Duration.seconds(5), noDuration],
  ["maxWaiting", "MAX_WAITING", "0", 0, ["-1", "1.5", "many", "NaN", " "]],
  ["idleTimeToLive", "IDLE_TIME_TO_LIVE", "10 minutes", Duration.minutes(10), noDuration],
  ["cleanupInterval", "CLEANUP_INTERVAL", "1 minute", Duration.minutes(1), noPositive],
  ["maxErrorCount", "MAX_ERROR_COUNT", "Infinity", Infinity, noCount],
  ["maxLifetime", "MAX_LIFETIME", "8 hours", Duration.hours(8), noPositive],
  ["lookupTimeout", "LOOKUP_TIMEOUT", "15 seconds", Duration.seconds(15), noPositive],
  ["failureTimeToLive", "FAILURE_TIME_TO_LIVE", "2 seconds", Duration.seconds(2), noDuration],
  ["validateAfter", "VALIDATE_AFTER", "0 millis", Duration.zero, noDuration],
  ["keepAlive", "KEEP_ALIVE", "30 seconds", Duration.seconds(30), noPositive],
  ["closeTimeout", "CLOSE_TIMEOUT", "Infinity", Duration.infinity, noPositive],
  ["drainTimeout", "DRAIN_TIMEOUT", "7 seconds", Duration.seconds(7), noDuration],
  ["leakDetection", "LEAK_DETECTION", "1 hour", Duration.hours(1), noPositive]
]

describe("config", () => {
  it.effect("with nothing set leaves every option at its default", () =>
    Effect.gen(function*() {
      const options = yield* readConfig({}, "SESSIONS")
      assert.deepStrictEqual<unknown>(options, Object.fromEntries(variables.map(([option]) => [option, undefined])))
      const pool = yield* SessionPool.make({ lookup: (key: string) => Effect.succeed(key), ...options })
      assert.strictEqual(yield* SessionPool.get(pool, "a"), "a")
    }))

  it.effect("takes an empty variable for one that is not set", () =>
    Effect.gen(function*() {
      const env = Object.fromEntries(variables.map(([, name]) => [`SESSIONS_${name}`, ""]))
      const options = yield* readConfig(env, "SESSIONS")
      assert.deepStrictEqual(Object.values(options).filter((value) => value !== undefined), [])
    }))

  it.effect("reads every variable at once, without a prefix too", () =>
    Effect.gen(function*() {
      const env = Object.fromEntries(variables.map(([, name, good]) => [name, good]))
      assert.deepStrictEqual(
        yield* readConfig(env),
        Object.fromEntries(variables.map(([option, , , means]) => [option, means]))
      )
    }))

  for (const [option, name, good, means, bad] of variables) {
    it.effect(`reads ${option} from ${name}`, () =>
      Effect.gen(function*() {
        const options: Record<string, unknown> = yield* readConfig({ [`SESSIONS_${name}`]: good }, "SESSIONS")
        assert.deepStrictEqual(options[option], means)
        assert.deepStrictEqual(Object.values(options).filter((value) => value !== undefined), [means])
      }))

    for (const value of bad) {
      it.effect(`refuses ${name}="${value}" with a ConfigError that names the variable`, () =>
        Effect.gen(function*() {
          const error = yield* Effect.flip(readConfig({ [`SESSIONS_${name}`]: value }, "SESSIONS"))
          assert.strictEqual(error._tag, "ConfigError")
          assert.include(String(error), name)
          assert.include(String(error), "SESSIONS")
        }))
    }
  }
})

// -----------------------------------------------------------------------------
// Corner cases
// -----------------------------------------------------------------------------

describe("the idle time", () => {
  it.effect("counts from the release, and not at all while a lease lasts", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* makePool({ idleTimeToLive: "10 minutes", cleanupInterval: "1 minute" })
      const held = yield* lease(pool, "a")
      yield* TestClock.adjust("1 hour")
      assert.strictEqual(Option.getOrThrow(yield* SessionPool.info(pool, "a")).lastUsedAt, 0)
      yield* held.release
      assert.strictEqual(Option.getOrThrow(yield* SessionPool.info(pool, "a")).lastUsedAt, 3_600_000)
      yield* TestClock.adjust("10 minutes")
      assert.deepStrictEqual(idsOf(backend.closed), [])
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(idsOf(backend.closed), [1])
    }))
})

describe("finalizers and watchers", () => {
  it.effect("may call the pool", () =>
    Effect.gen(function*() {
      const seen: Array<unknown> = []
      const pools: Array<SessionPool.SessionPool<string, string>> = []
      const pool = yield* SessionPool.make({
        lookup: (key: string) =>
          Effect.acquireRelease(Effect.succeed(key), () =>
            Effect.gen(function*() {
              for (const pool of pools) {
                seen.push(
                  yield* SessionPool.touch(pool, key),
                  yield* SessionPool.invalidate(pool, key),
                  (yield* SessionPool.stats(pool)).retired,
                  key === "a" ? yield* Effect.exit(Effect.scoped(SessionPool.get(pool, "b"))) : undefined
                )
              }
            })),
        closed: (_, key) =>
          key === "a" ?
            Effect.andThen(
              Effect.sleep("1 second"),
              Effect.suspend(() => Effect.forEach(pools, (pool) => SessionPool.recordError(pool, "a")))
            ) :
            Effect.never
      })
      pools.push(pool)
      yield* Effect.scoped(SessionPool.get(pool, "a"))
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(seen, [Option.none(), false, 1, Exit.succeed("b")])
      assert.deepStrictEqual(yield* SessionPool.keys(pool), ["b"])
      assert.strictEqual((yield* SessionPool.stats(pool)).closes.Disconnected, 1)
    }))

  it.effect("begin to watch before anybody can have the session closed", () =>
    Effect.gen(function*() {
      const order: Array<string> = []
      const pool = yield* SessionPool.make({
        lookup: (key: string) =>
          Effect.acquireRelease(Effect.as(Effect.yieldNow, key), () => Effect.sync(() => order.push("closed"))),
        idleTimeToLive: 0,
        closed: () =>
          Effect.suspend(() => {
            order.push("watches")
            return Effect.never
          })
      })
      yield* SessionPool.use(pool, "a", () => Effect.void)
      yield* SessionPool.set(pool, "b", "b", Effect.sync(() => order.push("b closed")))
      yield* SessionPool.invalidate(pool, "b")
      // The launch still goes on whose session this fiber has got.
      yield* Effect.yieldNow
      assert.deepStrictEqual(order, ["watches", "closed", "watches", "b closed"])
    }))

  it.effect("are waited for by the close that interrupts them, and so by the end of the pool", () =>
    Effect.gen(function*() {
      const order: Array<string> = []
      const scope = yield* Scope.make()
      const pool = yield* SessionPool.make({
        lookup: (key: string) =>
          Effect.acquireRelease(Effect.succeed(key), () => Effect.sync(() => order.push("closed"))),
        closed: () =>
          Effect.onInterrupt(
            Effect.never,
            () => Effect.andThen(Effect.sleep("100 millis"), Effect.sync(() => order.push("watched")))
          )
      }).pipe(Scope.provide(scope))
      yield* SessionPool.use(pool, "a", () => Effect.void)
      const ending = yield* fork(Scope.close(scope, Exit.void))
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(ending)
      assert.deepStrictEqual(order, ["watched", "closed"])
    }))

  it.effect("that cannot be interrupted do not keep the connection from being closed", () =>
    Effect.gen(function*() {
      const gone = yield* Deferred.make<void>()
      const pool = yield* SessionPool.make({
        lookup: (key: string) => Effect.acquireRelease(Effect.succeed(key), () => Deferred.succeed(gone, undefined)),
        // Waits for the end of what it watches, whatever comes.
        closed: () => Effect.uninterruptible(Deferred.await(gone))
      })
      yield* SessionPool.use(pool, "a", () => Effect.void)
      yield* SessionPool.invalidate(pool, "a")
      yield* TestClock.adjust("1 second")
      yield* Deferred.await(gone)
      assert.deepStrictEqual(yield* SessionPool.stats(pool), {
        ...zeroStats,
        misses: 1,
        launches: 1,
        closes: { ...zeroCloses, Invalidated: 1 }
      })
    }))

  it.effect("that fail are reported, and thrown at nobody", () =>
    Effect.gen(function*() {
      const messages: Array<unknown> = []
      const logger = Logger.make(({ message }) => {
        messages.push(message)
      })
      yield* Effect.gen(function*() {
        const pool = yield* SessionPool.make({
          lookup: (key: string) => Effect.acquireRelease(Effect.succeed(key), () => Effect.die("finalizer is ill")),
          capacity: 1
        })
        const reading = yield* fork(
          SessionPool.events(pool).pipe(
            Stream.filter(({ _tag }) => _tag === "Closed"),
            Stream.take(2),
            Stream.runCollect
          )
        )
        yield* TestClock.adjust(0)
        yield* Effect.scoped(SessionPool.get(pool, "a"))
        assert.strictEqual(yield* Effect.scoped(SessionPool.get(pool, "b")), "b")
        assert.isTrue(yield* SessionPool.invalidate(pool, "b"))
        const defects = Array.from(yield* Fiber.join(reading)).map((event) =>
          event._tag === "Closed" && Exit.isFailure(event.exit) ? Cause.squash(event.exit.cause) : undefined
        )
        assert.deepStrictEqual(defects, ["finalizer is ill", "finalizer is ill"])
        assert.strictEqual((yield* SessionPool.stats(pool)).retired, 0)
      }).pipe(Effect.scoped, Effect.provide(Logger.layer([logger])))
      const reports = messages.filter((message) => JSON.stringify(message).includes("finalizer is ill"))
      assert.strictEqual(reports.length, 2)
    }))
})

const Tenant = Context.Reference<string>("test/Tenant", { defaultValue: () => "nobody" })

describe("the context of a caller", () => {
  it.effect("is not captured by the session that it opens: the maker's references hold, and no caller's span", () =>
    Effect.gen(function*() {
      const seen: Array<unknown> = []
      const note = (where: string) =>
        Effect.gen(function*() {
          const span = yield* Effect.option(Effect.currentSpan)
          const parent = Option.flatMap(span, (span) => span.parent)
          seen.push([where, yield* Tenant, Option.map(parent, (parent) => parent._tag === "Span" ? parent.name : "")])
        })
      const pool = yield* SessionPool.make({
        lookup: (key: string) => Effect.acquireRelease(Effect.as(note("lookup"), key), () => note("close"))
      }).pipe(Effect.provideService(Tenant, "maker"), Effect.withSpan("make"))
      const request = Effect.scoped(SessionPool.get(pool, "a")).pipe(
        Effect.andThen(SessionPool.invalidate(pool, "a")),
        Effect.provideService(Tenant, "caller"),
        Effect.withSpan("request")
      )
      yield* request
      assert.deepStrictEqual(seen, [["lookup", "maker", Option.none()], ["close", "maker", Option.none()]])
    }))
})

describe("after the end of the pool", () => {
  const ended = Effect.gen(function*() {
    const scope = yield* Scope.make()
    const { backend, pool } = yield* Scope.provide(makePool(), scope)
    const held = yield* lease(pool, "leased")
    yield* visit(pool, "idle")
    yield* Scope.close(scope, Exit.void)
    backend.assertAllClosedOnce()
    return { backend, held, pool }
  })

  it.effect("get, use and set fail with PoolClosed, and the connection offered to set is closed", () =>
    Effect.gen(function*() {
      const { backend, pool } = yield* ended
      let closes = 0
      const errors = [
        yield* Effect.flip(visit(pool, "idle")),
        yield* Effect.flip(SessionPool.use(pool, "new", () => Effect.void)),
        yield* Effect.flip(SessionPool.set(pool, "set", { key: "set", id: 9 }, Effect.sync(() => closes++)))
      ]
      assert.deepStrictEqual(errors.map((error) => [error._tag, error.key]), [
        ["PoolClosed", "idle"],
        ["PoolClosed", "new"],
        ["PoolClosed", "set"]
      ])
      assert.strictEqual(closes, 1)
      assert.strictEqual(backend.opened.length, 2)
    }))

  it.effect("touch, getOption and info find nothing; entries, keys and size are empty", () =>
    Effect.gen(function*() {
      const { pool } = yield* ended
      assert.deepStrictEqual(yield* SessionPool.touch(pool, "idle"), Option.none())
      assert.deepStrictEqual(yield* SessionPool.getOption(pool, "idle"), Option.none())
      assert.deepStrictEqual(yield* SessionPool.info(pool, "idle"), Option.none())
      assert.deepStrictEqual(yield* SessionPool.entries(pool), [])
      assert.deepStrictEqual(yield* SessionPool.keys(pool), [])
      assert.strictEqual(yield* SessionPool.size(pool), 0)
    }))

  it.effect("invalidate, invalidateAll, recordError, sweep and releases do nothing", () =>
    Effect.gen(function*() {
      const { backend, held, pool } = yield* ended
      const before = yield* SessionPool.stats(pool)
      assert.isFalse(yield* SessionPool.invalidate(pool, "idle"))
      assert.strictEqual(yield* SessionPool.invalidateAll(pool), 0)
      yield* SessionPool.recordError(pool, "leased")
      assert.strictEqual(yield* SessionPool.sweep(pool), 0)
      yield* held.release
      assert.deepStrictEqual(yield* SessionPool.stats(pool), before)
      assert.deepStrictEqual(before, {
        ...zeroStats,
        misses: 2,
        launches: 2,
        closes: { ...zeroCloses, PoolClosed: 2 }
      })
      backend.assertAllClosedOnce()
    }))
})
