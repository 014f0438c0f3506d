/** Random sequences of commands, with time passing, on the pool and on a model of it. `npm run model` runs many more. */
import { describe, it } from "@effect/vitest"
import { compare, Sequence } from "./kit/comparison.ts"

describe("pool and model", () => {
  it.effect.prop(
    "agree after every command of any sequence, for any options",
    [Sequence],
    ([sequence]) => compare(sequence),
    { arbitrary: { runs: 500, size: 200, seed: 1, maxShrinks: 500 }, timeout: 120_000 }
  )
})
