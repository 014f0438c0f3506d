/** Random sequences of commands, with time passing, on the pool and on a model of it. `npm run model` runs many more. */
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { explore } from "./kit/model/comparison.ts"

describe("pool and model", () => {
  it("agree after every command of any sequence, for any options", async () => {
    const { failure } = await Effect.runPromise(explore(1_000, 1))
    assert.isUndefined(failure)
  })
})
