/** `npm run simulate`: the rates of statements that its model computes are those of real replicas. */
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import * as Counting from "../kit/simulate/counting.ts"
import * as Database from "../kit/simulate/database.ts"
import * as Model from "../kit/simulate/model.ts"

describe("the model of the simulation", () => {
  it.live(
    "two replicas send the statements that the model computes, and no others",
    () =>
      Effect.gen(function*() {
        const database = yield* Database.make
        const [replicas, seconds, awake] = [2, 60, 1200]
        const sent = yield* Counting.count(database, { replicas, seconds, awake })
        const rates = Model.rates(replicas, { all: awake, awake })
        for (const name of ["list", "heartbeat", "roster", "locks", "keep", "due", "count"] as const) {
          const { calls = 0, rows = 0 } = sent.get(name) ?? {}
          // A slow database makes each cycle longer.
          assert.approximately(calls, rates[name].calls * seconds, rates[name].calls * seconds / 10, name)
          assert.approximately(rows / calls, rates[name].rows / rates[name].calls, 1e-9, `rows of ${name}`)
        }
        assert.strictEqual(sent.get("other"), undefined)
      }),
    180_000
  )
})
