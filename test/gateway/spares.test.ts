/** Spare processes on a test clock: ends, replacements and failed starts. */
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect } from "effect"
import { TestClock } from "effect/testing"
import * as Spares from "../../src/gateway/transports/Spares.ts"
import type { Transport } from "../../src/gateway/transports/Transport.ts"
import { BackendFailed } from "../../src/gateway/transports/Transport.ts"
import * as Told from "../kit/gateway/told.ts"

const failure = new BackendFailed({ reason: "over", stderr: "" })

interface Started {
  readonly process: Transport
  closes: number
}

/** Keeps one spare ready. The first `broken` starts fail. The processes are fakes. */
const make = Effect.fnUntraced(function*({ broken = 0 } = {}) {
  const started: Array<Started> = []
  let tries = 0
  const start = Effect.acquireRelease(
    Effect.suspend(() => {
      if (++tries <= broken) return failure
      const entry: Started = { process: Told.make().transport, closes: 0 }
      started.push(entry)
      return Effect.succeed(entry)
    }),
    (entry) => Effect.sync(() => entry.closes++)
  ).pipe(Effect.map(({ process }) => process))
  const spares = yield* Spares.make(1, start, Effect.void)
  // Lets the spare start.
  yield* Effect.yieldNow
  return { spares, started, tries: () => tries }
})

describe("spare processes", () => {
  it.effect("close a spare that ends unused at once, and replace it after 10 seconds", () =>
    Effect.gen(function*() {
      const { spares, started } = yield* make()
      assert.strictEqual(spares.size(), 1)
      yield* Deferred.succeed(started[0]?.process.ended ?? assert.fail("none"), failure)
      yield* TestClock.adjust("9.9 seconds")
      assert.deepStrictEqual([spares.size(), started.map(({ closes }) => closes)], [0, [1]])
      yield* TestClock.adjust("100 millis")
      assert.deepStrictEqual([spares.size(), started.map(({ closes }) => closes)], [1, [1, 0]])
      assert.strictEqual(yield* spares.take, started[1]?.process)
    }))

  it.effect("never give away a spare that has ended, and close it once", () =>
    Effect.gen(function*() {
      const { spares, started } = yield* make()
      Deferred.doneUnsafe(started[0]?.process.ended ?? assert.fail("none"), Effect.succeed(failure))
      assert.strictEqual(yield* Effect.scoped(spares.take), started[1]?.process)
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual([spares.size(), started.map(({ closes }) => closes)], [1, [1, 1, 0]])
    }))

  it.effect("replace a taken spare after 100 milliseconds", () =>
    Effect.gen(function*() {
      const { spares, started } = yield* make()
      yield* spares.take
      yield* TestClock.adjust("99 millis")
      assert.strictEqual(spares.size(), 0)
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual([spares.size(), started.map(({ closes }) => closes)], [1, [0, 0]])
    }))

  it.effect("try a failed start again every 10 seconds", () =>
    Effect.gen(function*() {
      const { spares, tries } = yield* make({ broken: 2 })
      yield* TestClock.adjust("19 seconds")
      assert.deepStrictEqual([spares.size(), tries()], [0, 2])
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual([spares.size(), tries()], [1, 3])
    }))
})
