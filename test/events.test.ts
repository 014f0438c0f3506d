/** `events`: which events it emits, in which order, and to which readers. */
import { assert, describe, it } from "@effect/vitest"
import { Cause, Deferred, Effect, Exit, Fiber, Scheduler, Scope, Stream } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import * as Backend from "./kit/pool/backend.ts"
import type { Options } from "./kit/pool/calls.ts"
import { fork, hold, listen, makePool, turns, visit } from "./kit/pool/calls.ts"
import { test } from "./kit/pool/withPool.ts"

type Pool = SessionPool.SessionPool<string, Backend.Connection>

describe("events", () => {
  test("emits the life of each session with its times and outcomes, and ends with the pool", function*() {
    const backend = Backend.make()
    const scope = yield* Scope.make()
    const pool = yield* SessionPool.make({
      lookup: (key: string) =>
        key === "bad" ? Effect.fail("refused") : Effect.tap(backend.open(key), () => Effect.sleep("1 second"))
    }).pipe(Scope.provide(scope))
    const reading = yield* fork(Stream.runCollect(SessionPool.events(pool)))
    yield* TestClock.adjust(0)
    yield* fork(visit(pool, "a"))
    yield* TestClock.adjust("1 second")
    yield* Effect.exit(visit(pool, "bad"))
    yield* SessionPool.set(pool, "a", { key: "a", id: 99 }, Effect.die("ill"))
    yield* Scope.close(scope, Exit.void)
    const told = (yield* Fiber.join(reading)).map((event) => {
      const { _tag, id, key } = event
      const reason = "reason" in event ? event.reason : ""
      const exit = _tag === "Closed" ? event.exit : _tag === "LaunchFailed" ? Exit.failCause(event.cause) : Exit.void
      return [
        id,
        _tag,
        key,
        reason,
        "duration" in event ? event.duration : 0,
        Exit.isSuccess(exit) || Cause.squash(exit.cause)
      ]
    })
    const [one, bad, two] = new Set(told.map(([id]) => id))
    assert.deepStrictEqual(told, [
      [one, "Launched", "a", "", 1000, true],
      [bad, "LaunchFailed", "bad", "", 0, "refused"],
      [one, "Retired", "a", "Replaced", 0, true],
      [two, "Adopted", "a", "", 0, true],
      [one, "Closed", "a", "Replaced", 0, true],
      [two, "Retired", "a", "PoolClosed", 0, true],
      [two, "Closed", "a", "PoolClosed", 0, "ill"]
    ])
  })

  const adopted = { key: "a", id: 99 }
  /** Each case: the options, what happens, and the expected events with the number of their session. */
  const orders: Record<
    string,
    readonly [Options, (pool: Pool) => Effect.Effect<unknown, unknown>, ReadonlyArray<string>]
  > = {
    "the session of an invalidated launch closes": [
      { lookup: (key) => Effect.delay(Effect.succeed({ key, id: 1 }), 10) },
      (pool) =>
        Effect.gen(function*() {
          yield* fork(visit(pool, "a"))
          yield* SessionPool.invalidate(pool, "a")
          yield* TestClock.adjust(10)
        }),
      ["Launched 1", "Retired 1", "Closed 1"]
    ],
    "a close makes room for a launch": [
      { capacity: 1, lookup: (key) => Effect.acquireRelease(Effect.succeed({ key, id: 1 }), () => Effect.yieldNow) },
      (pool) => Effect.andThen(visit(pool, "a"), visit(pool, "b")),
      ["Launched 1", "Retired 1", "Closed 1", "Launched 2"]
    ],
    "a launch that set has replaced takes too long to close": [
      {
        lookup: () => Effect.uninterruptible(Effect.as(Effect.sleep("1 minute"), adopted)),
        closeTimeout: "10 seconds"
      },
      (pool) =>
        Effect.gen(function*() {
          yield* fork(visit(pool, "a"))
          yield* SessionPool.set(pool, "a", adopted)
          yield* TestClock.adjust("1 minute")
        }),
      ["Adopted 1", "CloseTimedOut 2"]
    ]
  }
  for (const [name, [options, run, expected]] of Object.entries(orders)) {
    test(`emits events in order when ${name}`, function*() {
      const { pool } = yield* makePool(options)
      const seen = yield* listen(pool)
      yield* run(pool)
      yield* turns(10)
      const ids = [...new Set(seen.map(({ id }) => id))]
      assert.deepStrictEqual(seen.map(({ _tag, id }) => `${_tag} ${ids.indexOf(id) + 1}`), expected)
    })
  }

  test("drops the oldest events of a reader that lags by more than 4,096, and never waits for it", function*() {
    const { pool } = yield* makePool()
    const gate = yield* Deferred.make<void>()
    const seen: Array<string> = []
    yield* fork(
      Stream.runForEach(SessionPool.events(pool), ({ key }) =>
        Effect.andThen(
          Deferred.await(gate),
          Effect.sync(() => seen.push(key))
        ))
    )
    yield* TestClock.adjust(0)
    for (let session = 0; session < 5000; session++) yield* visit(pool, `s${session}`)
    yield* Deferred.succeed(gate, undefined)
    yield* turns(100)
    assert.strictEqual(seen.at(-1), "s4999")
    assert.isBelow(seen.length, 5000)
    assert.isAtLeast(seen.length, 4096)
  })

  test("emits everything up to the end to a reader that begins during the drain", function*() {
    const scope = yield* Scope.make()
    const { pool } = yield* Scope.provide(makePool({ drainTimeout: "1 minute" }), scope)
    const { release } = yield* hold(pool, "a")
    const ending = yield* fork(Scope.close(scope, Exit.void))
    const late = yield* fork(Stream.runCollect(SessionPool.events(pool)))
    yield* release
    yield* Fiber.join(ending)
    assert.deepStrictEqual((yield* Fiber.join(late)).map(({ _tag }) => _tag), ["Closed"])
    assert.deepStrictEqual(yield* Stream.runCollect(SessionPool.events(pool)), [])
  })

  it.effect("ends for a reader that begins while the pool ends", () =>
    Effect.forEach(Array.from({ length: 30 }, (_, i) => i + 3), (budget) =>
      Effect.gen(function*() {
        const scope = yield* Scope.make()
        const { pool } = yield* Scope.provide(makePool(), scope)
        const reading = yield* Effect.forkChild(Stream.runCollect(SessionPool.events(pool)))
        yield* Scope.close(scope, Exit.void)
        assert.deepStrictEqual(yield* Fiber.join(reading), [])
      }).pipe(Effect.provideService(Scheduler.MaxOpsBeforeYield, budget)), { discard: true }))
})
