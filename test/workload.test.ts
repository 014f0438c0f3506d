/** The workload of the soak in short, driven by the test clock. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Logger, Random, Scope } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import * as Workload from "./kit/pool/workload.ts"

const seeds = [1, 2, 3, 4]
const rounds = 3
const operations = 1_000

/** Runs the workload, looks for faults all along, and tells how often what has come. */
const run = (seed: number) =>
  Effect.gen(function*() {
    const scope = yield* Scope.make()
    const { failures, faults, open, pool, round, tally } = yield* Scope.provide(Workload.make(seed), scope)
    for (let i = 1; i <= rounds; i++) {
      const fiber = yield* Effect.forkChild(round(() => tally.operations < operations * i))
      while (fiber.pollUnsafe() === undefined) yield* TestClock.adjust(1)
      yield* Fiber.join(fiber)
      // What the pool does by itself ends in time: the longest close takes 60 ms.
      for (let millis = 0; millis < 1_000 && (yield* faults).length > 0; millis++) yield* TestClock.adjust(1)
      assert.deepStrictEqual(yield* faults, [], `seed ${seed}`)
    }
    const end = yield* Effect.forkChild(Scope.close(scope, Exit.void))
    while (end.pollUnsafe() === undefined) yield* TestClock.adjust(1)
    yield* TestClock.adjust(100)
    assert.deepStrictEqual([open.size, tally.closedTwice, tally.usedAfterClose], [0, 0, 0], `seed ${seed}`)
    return { ...failures, ...(yield* SessionPool.stats(pool)).closes }
    // The jitter of the longest life is by the seed too.
  }).pipe(Random.withSeed(seed))

describe("everything at once", () => {
  it.effect("leaves no count that differs from what is open, and nothing open in the end", () =>
    Effect.gen(function*() {
      const met = new Map<string, number>()
      for (const counts of yield* Effect.forEach(seeds, run)) {
        for (const [name, count] of Object.entries(counts)) met.set(name, (met.get(name) ?? 0) + count)
      }
      // It has met what it is meant to meet.
      for (const [name, count] of met) assert.isAbove(count, 0, name)
      assert.includeMembers([...met.keys()], [
        "Refused",
        "the lookup died",
        "LookupTimeout",
        "CapacityExceeded",
        "a defect"
      ])
    }).pipe(Effect.provide(Logger.layer([]))))
})
