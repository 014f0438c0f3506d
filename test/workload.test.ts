/** A short soak on the test clock. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Logger, Random, Scope } from "effect"
import { TestClock } from "effect/testing"
import * as Workload from "./kit/pool/workload.ts"

const run = Effect.fnUntraced(function*(seed: number) {
  const scope = yield* Scope.make()
  const { failures, faults, round, tally } = yield* Scope.provide(Workload.make(seed), scope)
  /** Runs an effect while time passes, then lets the pool finish its own work: the longest close takes 60 ms. */
  const passed = Effect.fnUntraced(function*(effect: Effect.Effect<unknown>) {
    const fiber = yield* Effect.forkChild(effect)
    while (fiber.pollUnsafe() === undefined) yield* TestClock.adjust(1)
    yield* TestClock.adjust(200)
    return yield* faults
  })
  for (const operations of [1_000, 2_000, 3_000]) {
    assert.deepStrictEqual(yield* passed(round(() => tally.operations < operations)), [], `seed ${seed}`)
  }
  assert.deepStrictEqual(yield* passed(Scope.close(scope, Exit.void)), [], `seed ${seed}`)
  // With fewer kinds of failure, the workload would no longer try what it is for.
  assert.isAbove(Object.keys(failures).length, 3)
})

describe("workload", () => {
  it.effect("the pool agrees with its back end at every quiet point, and leaves nothing open", () =>
    Effect.forEach([1, 2, 3, 4], (seed) => Random.withSeed(run(seed), seed)).pipe(Effect.provide(Logger.layer([]))))
})
