/** Runs random commands on the pool and on a model of it, while time passes. `npm run model` runs more. */
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { explore } from "./kit/model/comparison.ts"

describe("model", () => {
  it("the pool agrees with its model after every command of any sequence, for any options", async () => {
    const { failure } = await Effect.runPromise(explore(600, 1))
    assert.isUndefined(failure)
  })
})
