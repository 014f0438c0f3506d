/** `validate` before a lease (validateAfter, validateTimeout) and in the background (keepAlive). */
import { assert, describe } from "@effect/vitest"
import { Clock, Deferred, Effect, Fiber, Option } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import type { Connection } from "./kit/pool/backend.ts"
import { fork, hold, idsOf, makePool, type Options, visit } from "./kit/pool/calls.ts"
import { infoOf, type Pool, test } from "./kit/pool/withPool.ts"

type Check = (connection: Connection) => Effect.Effect<boolean>

/** A pool whose `validate` notes the ids that it checks. */
const makeValidated = Effect.fnUntraced(function*(check: Check, options: Options = {}) {
  const asked: Array<number> = []
  const validate = (connection: Connection) => {
    asked.push(connection.id)
    return check(connection)
  }
  return { asked, ...(yield* makePool({ idleTimeToLive: "Infinity", validate, ...options })) }
})

const valid = () => Effect.succeed(true)

/** Opens the session of "a", and lets it idle for a minute. */
const idle = (pool: Pool) => Effect.andThen(visit(pool, "a"), TestClock.adjust("1 minute"))

describe("validate", () => {
  for (const [validateAfter, millis] of [[undefined, 500], ["10 seconds", 10_000], [0, 0]] as const) {
    test(`validate checks a session that was idle for more than ${millis} ms if validateAfter is ${validateAfter}`, function*() {
      const { asked, backend, pool } = yield* makeValidated(valid, { validateAfter })
      yield* visit(pool, "a")
      yield* TestClock.adjust(millis)
      yield* visit(pool, "a")
      assert.deepStrictEqual(asked, [])
      yield* TestClock.adjust(millis + 1)
      yield* visit(pool, "a")
      assert.deepStrictEqual([asked, backend.opened.length], [[1], 1])
    })
  }

  test("validate checks no session that is in use, or was just touched or checked", function*() {
    const { asked, pool } = yield* makeValidated(valid, { keepAlive: "1 minute" })
    yield* idle(pool)
    yield* visit(pool, "a")
    yield* TestClock.adjust("30 seconds")
    assert.isTrue(Option.isSome(yield* SessionPool.touch(pool, "a")))
    yield* SessionPool.get(pool, "a")
    yield* TestClock.adjust("1 hour")
    yield* visit(pool, "a")
    assert.deepStrictEqual(asked, [1])
  })

  const late = Effect.uninterruptible(Effect.as(Effect.sleep("1 minute"), true))
  const refusals: ReadonlyArray<readonly [name: string, Check, Options?]> = [
    ["that validate refuses", () => Effect.succeed(false)],
    ["whose check dies", () => Effect.die("no answer")],
    ["whose check throws", () => assert.fail("no answer")],
    ["whose check exceeds lookupTimeout, the default of validateTimeout", () => Effect.never, { lookupTimeout: 3000 }],
    ["whose check exceeds validateTimeout and ignores interruptions", () => late, { validateTimeout: 3000 }]
  ]
  for (const [name, check, options] of refusals) {
    test(`a session ${name} is replaced by a new launch, which is trusted`, function*() {
      const { asked, backend, pool } = yield* makeValidated(check, options)
      yield* idle(pool)
      const calls = [yield* fork(visit(pool, "a")), yield* fork(SessionPool.use(pool, "a", Effect.succeed))]
      yield* TestClock.adjust(3000)
      assert.deepStrictEqual(idsOf(yield* Fiber.joinAll(calls)), [2, 2])
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual([asked, idsOf(backend.closed), backend.opened.length], [[1], [1], 2])
      assert.strictEqual((yield* SessionPool.stats(pool)).closes.Invalid, 1)
    })
  }

  test("getOption finds none instead of a session that validate refuses", function*() {
    const { backend, pool } = yield* makeValidated(() => Effect.succeed(false))
    yield* idle(pool)
    assert.deepStrictEqual(yield* SessionPool.getOption(pool, "a"), Option.none())
    assert.deepStrictEqual([backend.opened.length, backend.openCount()], [1, 0])
  })

  for (const keepAlive of [undefined, "1 minute"] as const) {
    test(`validate checks once for all callers, also of an invalidated session (keepAlive ${keepAlive})`, function*() {
      const [answer, done] = [yield* Deferred.make<boolean>(), yield* Deferred.make<void>()]
      const { asked, backend, pool } = yield* makeValidated(() => Deferred.await(answer), { keepAlive })
      yield* idle(pool)
      const use = fork(SessionPool.use(pool, "a", (connection) => Effect.as(Deferred.await(done), connection)))
      const [interrupted, ...others] = [yield* use, yield* use, yield* use]
      yield* Fiber.interrupt(interrupted)
      yield* SessionPool.invalidate(pool, "a")
      assert.strictEqual((yield* visit(pool, "a")).id, 2)
      yield* Deferred.succeed(answer, true)
      yield* TestClock.adjust(0)
      assert.deepStrictEqual([asked, idsOf(backend.closed)], [[1], []])
      yield* Deferred.succeed(done, undefined)
      assert.deepStrictEqual(idsOf(yield* Fiber.joinAll(others)), [1, 1])
      assert.deepStrictEqual(idsOf(backend.closed), [1])
    })
  }
})

describe("keepAlive", () => {
  test("keepAlive checks idle sessions at this interval, and retires the dead ones without a caller", function*() {
    yield* TestClock.adjust(1234)
    const times: Array<number> = []
    const check = ({ id }: Connection) =>
      Effect.map(Clock.currentTimeMillis, (now) => {
        times.push(now)
        return id !== 1 || now < 20_000
      })
    const options = { keepAlive: 10_000, validateAfter: Infinity }
    const { backend, pool } = yield* makeValidated((connection) => Effect.delay(check(connection), 3000), options)
    for (const key of ["a", "b", "retired", "leased"]) yield* visit(pool, key)
    yield* hold(pool, "leased")
    yield* SessionPool.invalidate(pool, "retired")
    yield* TestClock.adjust(35_000)
    assert.deepStrictEqual(times, [14_234, 14_234, 24_234, 24_234, 34_234])
    assert.sameMembers(idsOf(backend.closed), [1, 3])
    assert.strictEqual((yield* SessionPool.stats(pool)).closes.Invalid, 1)
  })

  test("keepAlive delays no caller of a session that was just used", function*() {
    const { pool } = yield* makeValidated(() => Effect.never, { keepAlive: 10_000, validateAfter: 20_000 })
    yield* TestClock.adjust(9999)
    yield* visit(pool, "a")
    yield* TestClock.adjust(1)
    const caller = yield* fork(visit(pool, "a"))
    assert.strictEqual((yield* Fiber.join(caller)).id, 1)
  })

  test("keepAlive holds no lease, and its checks are interrupted by an expiry or eviction", function*() {
    const order: Array<string> = []
    const note = (what: string) => Effect.sync(() => order.push(what))
    const { pool } = yield* makePool({
      lookup: (key) => Effect.acquireRelease(Effect.succeed({ key, id: 0 }), () => note(`closed ${key}`)),
      validate: (_, key) => Effect.onInterrupt(Effect.never, () => note(`interrupted ${key}`)),
      idleTimeToLive: "10 minutes",
      cleanupInterval: "1 minute",
      keepAlive: "270 seconds",
      validateTimeout: "1 hour",
      capacity: 2
    })
    for (const key of ["evicted", "expired"]) yield* visit(pool, key)
    yield* TestClock.adjust("10 minutes")
    const { lastUsedAt, leases } = yield* infoOf(pool, "expired")
    assert.deepStrictEqual([lastUsedAt, leases, order, (yield* SessionPool.stats(pool)).idle], [0, 0, [], 2])
    const getting = yield* fork(SessionPool.get(pool, "new"))
    yield* TestClock.adjust(0)
    yield* Fiber.join(getting)
    yield* TestClock.adjust("1 minute")
    assert.deepStrictEqual(order, ["evicted", "expired"].flatMap((key) => [`interrupted ${key}`, `closed ${key}`]))
  })

  test("keepAlive interrupts a check at validateTimeout, also of a session that was leased meanwhile", function*() {
    let interrupted = 0
    const check = () => Effect.onInterrupt(Effect.never, () => Effect.sync(() => interrupted++))
    const options = { keepAlive: 10_000, validateAfter: 20_000, validateTimeout: 5000 }
    const { backend, pool } = yield* makeValidated(check, options)
    yield* visit(pool, "a")
    yield* TestClock.adjust(10_000)
    yield* hold(pool, "a")
    yield* TestClock.adjust(4999)
    assert.strictEqual(interrupted, 0)
    yield* TestClock.adjust(1)
    assert.deepStrictEqual([interrupted, backend.closed.length, yield* SessionPool.size(pool)], [1, 0, 0])
  })

  test("keepAlive checks a session on time though the checks of a hundred others hang", function*() {
    const options = { keepAlive: 60_000, validateTimeout: "1 hour" } as const
    const { asked, pool } = yield* makeValidated(({ id }) => id > 100 ? valid() : Effect.never, options)
    for (let session = 1; session <= 101; session++) yield* visit(pool, `${session}`)
    yield* TestClock.adjust("3 minutes")
    assert.deepStrictEqual(asked.filter((id) => id === 1 || id > 100), [1, 101, 101, 101])
  })
})
