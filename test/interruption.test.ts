/**
 * Every operation, interrupted at every point where its fiber can yield, at every budget of operations from 3 to 64:
 * nothing leaks, everything closes once, and the pool's own counts agree with what is open.
 */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Scheduler, Scope } from "effect"
import { SessionPool } from "../src/index.ts"
import * as Backend from "./kit/backend.ts"

type Pool = SessionPool.SessionPool<string, Backend.Connection>

const operations: Record<
  string,
  (pool: Pool, adopted: { closes: number; adopted: number }) => Effect.Effect<unknown, unknown>
> = {
  "get": (pool) => Effect.scoped(SessionPool.get(pool, "a")),
  "get of a live session": (pool) => Effect.scoped(SessionPool.get(pool, "live")),
  "get at capacity": (pool) => Effect.scoped(Effect.andThen(SessionPool.get(pool, "a"), SessionPool.get(pool, "b"))),
  "getOption": (pool) => Effect.scoped(SessionPool.getOption(pool, "live")),
  "use": (pool) => SessionPool.use(pool, "a", () => Effect.yieldNow),
  "use that fails": (pool) => SessionPool.use(pool, "live", () => Effect.fail("broken")),
  "touch": (pool) => SessionPool.touch(pool, "live"),
  "set": (pool, counts) => adopt(pool, "a", counts),
  "set over a live session": (pool, counts) => adopt(pool, "live", counts),
  "invalidate": (pool) => SessionPool.invalidate(pool, "live"),
  "invalidateAll": (pool) => SessionPool.invalidateAll(pool),
  "recordError": (pool) => SessionPool.recordError(pool, "live"),
  "sweep": (pool) => SessionPool.sweep(pool)
}

/** From the moment `set` runs, closing the connection is the pool's: also if `set` is interrupted. */
const adopt = (pool: Pool, key: string, counts: { closes: number; adopted: number }) =>
  Effect.suspend(() => {
    counts.adopted++
    return SessionPool.set(pool, key, { key, id: -1 }, Effect.sync(() => counts.closes++))
  })

/** Runs the operation once, interrupted after `turns` turns of its fiber; how many turns it took. */
const scenario = Effect.fnUntraced(function*(
  operation: (typeof operations)[string],
  turns: number,
  contended: boolean
) {
  const backend = Backend.make()
  const counts = { closes: 0, adopted: 0 }
  const scope = yield* Scope.make()
  const pool: Pool = yield* SessionPool.make({
    capacity: 2,
    maxErrorCount: 1,
    validate: () => Effect.as(Effect.yieldNow, true),
    validateAfter: 0,
    lookup: (key: string) => Effect.tap(backend.open(key), () => Effect.yieldNow)
  }).pipe(Scope.provide(scope))
  yield* Effect.scoped(SessionPool.get(pool, "live"))
  const rivals = contended
    ? yield* Effect.forEach(["a", "live"], (key) => Effect.forkChild(SessionPool.use(pool, key, () => Effect.yieldNow)))
    : []
  const fiber = yield* Effect.forkChild(operation(pool, counts), { startImmediately: true })
  let taken = 0
  while (taken < turns && fiber.pollUnsafe() === undefined) {
    taken++
    yield* Effect.yieldNow
  }
  yield* Fiber.interrupt(fiber)
  yield* Effect.forEach(rivals, (rival) => Fiber.await(rival))
  // Whatever was handed over while the interruption was on its way settles now.
  for (let i = 0; i < 50; i++) yield* Effect.yieldNow
  const stats = yield* SessionPool.stats(pool)
  const open = backend.openCount() + counts.adopted - counts.closes
  assert.deepStrictEqual(
    { active: stats.active, launching: stats.launching, waiting: stats.waiting, retired: stats.retired },
    { active: 0, launching: 0, waiting: 0, retired: 0 }
  )
  assert.strictEqual(stats.idle, open)
  // A place that leaked would make this wait for ever.
  yield* Effect.forEach(["x", "y", "z"], (key) => Effect.scoped(SessionPool.get(pool, key)))
  yield* Scope.close(scope, Exit.void)
  backend.assertAllClosedOnce()
  assert.strictEqual(counts.closes, counts.adopted)
  return taken
})

describe("interrupted at every yield", () => {
  for (const [name, operation] of Object.entries(operations)) {
    for (const contended of [false, true]) {
      it.effect(
        `${name}${contended ? ", while others use the same keys" : ""}: nothing leaks, all closes once`,
        () =>
          Effect.gen(function*() {
            let scenarios = 0
            for (let budget = 3; budget <= 64; budget++) {
              for (let turns = 0;; turns++) {
                const taken = yield* Effect.provideService(
                  scenario(operation, turns, contended),
                  Scheduler.MaxOpsBeforeYield,
                  budget
                )
                scenarios++
                if (taken < turns) break
              }
            }
            assert.isAtLeast(scenarios, 62)
          }),
        60_000
      )
    }
  }
})
