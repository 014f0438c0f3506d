/** Errors of uses, errors of the pool, and defects of the functions among the options. */
import { assert } from "@effect/vitest"
import { Cause, Effect, Exit, Fiber, Logger, References } from "effect"
import { TestClock } from "effect/testing"
import { inspect } from "node:util"
import { SessionPool } from "../src/index.ts"
import { fork, hold, makePool, type Options, visit } from "./kit/pool/calls.ts"
import { defectOf, infoOf, type Pool, test, withPool } from "./kit/pool/withPool.ts"

const broken = Effect.fail("broken")

const bug = (): never => {
  throw new Error("a user's bug")
}

/** Runs a `use` that ends with this effect. */
const end = (pool: Pool, effect: Effect.Effect<void, unknown>, key = "a") =>
  Effect.exit(SessionPool.use(pool, key, () => effect))

withPool("a success resets the count of failures and defects of use", {}, function*({ pool }) {
  const counts: Array<number> = []
  for (const effect of [broken, Effect.die("defect"), Effect.sync(bug), Effect.interrupt, Effect.void]) {
    yield* end(pool, effect)
    counts.push((yield* infoOf(pool, "a")).errorCount)
  }
  assert.deepStrictEqual([counts, (yield* SessionPool.stats(pool)).errors], [[1, 2, 3, 3, 0], 3])
})

withPool("a session retires at maxErrorCount", { maxErrorCount: 3 }, function*({ backend, pool }) {
  const held = yield* hold(pool, "a")
  yield* end(pool, broken)
  yield* SessionPool.recordError(pool, "a")
  assert.strictEqual((yield* infoOf(pool, "a")).errorCount, 2)
  yield* end(pool, broken)
  assert.deepStrictEqual([yield* SessionPool.size(pool), backend.closed.length], [0, 0])
  yield* held.release
  yield* SessionPool.recordError(pool, "a")
  const { closes, errors } = yield* SessionPool.stats(pool)
  assert.deepStrictEqual([closes.Errors, errors], [1, 3])
})

const isError = (cause: Cause.Cause<unknown>, key: string) => key === "a" && Cause.squash(cause) === "broken"
withPool("isError decides by cause and key which failures count", { isError }, function*({ pool }) {
  for (const [key, count] of [["a", 1], ["b", 0]] as const) {
    for (const failure of [broken, Effect.fail("refused")]) yield* end(pool, failure, key)
    assert.strictEqual((yield* infoOf(pool, key)).errorCount, count)
  }
})

const slow = "The lookup did not open the session within 7000 ms (it ran 7000 ms). " +
  "Find out what it waits for, or raise lookupTimeout."
const full = (count: number, limit: string) =>
  `All ${count} places are taken (${limit}) and no idle session could be evicted in time; this caller waited 7000 ms, ` +
  `callers waiting: 1. Retry later, or raise ${limit}, acquireTimeout or maxWaiting.`
const closed = "The session pool is closed: its scope has ended. " +
  "Use it only while the layer or scope that made it is open."
const exceeded = { _tag: "CapacityExceeded", waited: 7000, waiting: 1 }
const grouped = { capacity: 2, groupBy: (key: string) => key[0] }

/** Each failure: the options, the keys in use, the reason of the error, and its message. */
const failures: ReadonlyArray<readonly [Options, ReadonlyArray<string>, object, string]> = [
  [{ lookup: () => Effect.never, lookupTimeout: 7000 }, [], { _tag: "LookupTimeout", limit: 7000, waited: 7000 }, slow],
  [{ ...grouped, groupCapacity: 2 }, ["a", "b"], { ...exceeded, scope: "pool", limit: 2 }, full(2, "capacity")],
  [{ ...grouped, groupCapacity: 1 }, ["s"], { ...exceeded, scope: "group", limit: 1 }, full(1, "groupCapacity")]
]

const reasons = [SessionPool.CapacityExceeded, SessionPool.LookupTimeout, SessionPool.PoolClosed]

const assertError = (error: SessionPool.SessionPoolError, reason: object, message: string) => {
  assert.instanceOf(error, SessionPool.SessionPoolError)
  assert.isTrue(reasons.some((known) => error.reason instanceof known))
  assert.deepInclude({ ...error.reason }, reason)
  assert.deepStrictEqual([error._tag, error.message, error.reason.message], ["SessionPoolError", message, message])
  assert.notInclude([String(error), JSON.stringify(error), inspect(error, { depth: 9 })].join(), "s3cret")
}

for (const [options, held, reason, message] of failures) {
  withPool(`a SessionPoolError says: ${message}`, { acquireTimeout: 7000, ...options }, function*({ pool }) {
    for (const key of held) yield* SessionPool.get(pool, key)
    const getting = yield* fork(Effect.flip(visit(pool, "s3cret")))
    yield* TestClock.adjust(1000)
    yield* fork(Effect.exit(visit(pool, "second")))
    yield* TestClock.adjust(6000)
    assertError(yield* Fiber.join(getting), reason, message)
  })
}

test("a SessionPoolError says that the pool is closed, and is caught by its reason", function*() {
  const { pool } = yield* Effect.scoped(makePool())
  assertError(yield* Effect.flip(visit(pool, "s3cret")), { _tag: "PoolClosed" }, closed)
  const caught = visit(pool, "a").pipe(Effect.catchReason("SessionPoolError", "PoolClosed", Effect.succeed))
  assert.instanceOf(yield* caught, SessionPool.PoolClosed)
})

/** The functions among the options, each with a bug. */
const defects: Record<string, Options> = {
  closed: { closed: () => Effect.sync(bug) },
  validate: { validate: () => Effect.sync(bug), validateAfter: 0 },
  isError: { isError: bug },
  groupBy: { groupBy: bug },
  idleTimeToLive: { idleTimeToLive: bug }
}

for (const [name, options] of Object.entries(defects)) {
  test(`a defect of ${name} is logged with its cause, once a minute`, function*() {
    const logged: Array<string> = []
    const annotations: Array<unknown> = []
    const logger = Logger.make(({ cause, fiber, message }) => {
      logged.push(`${String(message)} ${Cause.pretty(cause)}`)
      annotations.push(fiber.getRef(References.CurrentLogAnnotations))
    })
    const { pool } = yield* Effect.provide(makePool(options), Logger.layer([logger]))
    for (const times of [1, 2]) {
      for (let use = 0; use < 3; use++) yield* Effect.andThen(end(pool, broken), TestClock.adjust(2))
      assert.strictEqual(logged.filter((text) => text.includes("a user's bug")).length, times)
      yield* TestClock.adjust("1 minute")
    }
    assert.match(logged[0] ?? "", new RegExp(`^The option ${name} of the session pool failed`))
    assert.deepStrictEqual(annotations[0], { pool: "default" })
  })
}

test("the pool remembers a hundred logged defects for a minute, and forgets them all at the next one", function*() {
  const logged: Array<string> = []
  const logger = Logger.make(({ cause }) => {
    logged.push(String(Cause.squash(cause)))
  })
  const isError = (cause: Cause.Cause<unknown>): boolean => {
    throw Cause.squash(cause)
  }
  const { pool } = yield* Effect.provide(makePool({ isError, maxErrorCount: Infinity }), Logger.layer([logger]))
  const fail = (cause: number) => end(pool, Effect.fail(`cause ${cause}`))
  for (let cause = 1; cause <= 100; cause++) yield* fail(cause)
  yield* fail(1)
  yield* fail(100)
  assert.deepStrictEqual([logged.length, new Set(logged).size], [100, 100])
  yield* fail(101)
  yield* fail(1)
  assert.deepStrictEqual(logged.slice(100), ["cause 101", "cause 1"])
  yield* TestClock.adjust(59_999)
  yield* fail(1)
  assert.strictEqual(logged.length, 102)
  yield* TestClock.adjust(1)
  yield* fail(1)
  assert.strictEqual(logged.length, 103)
})

withPool("a failure counts if isError throws", { isError: bug }, function*({ pool }) {
  assert.deepStrictEqual(yield* end(pool, broken), Exit.fail("broken"))
  assert.strictEqual((yield* infoOf(pool, "a")).errorCount, 1)
})

withPool("a call launches nothing if groupBy throws", { groupBy: bug }, function*({ backend, pool }) {
  assert.strictEqual(yield* defectOf(visit(pool, "a")), "a user's bug")
  assert.strictEqual(backend.opened.length, 0)
})
