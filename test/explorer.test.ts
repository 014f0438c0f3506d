/**
 * Explores schedules of the whole pool in random cases of up to twelve fibers. The promises are checked after each step and at the
 * end (`kit/explorer/watch.ts`). `npm run explore` runs more.
 */
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { explore, report } from "./kit/explorer/explorer.ts"
import { shortOrLong } from "./kit/long.ts"

describe("random cases", () => {
  for (const seed of [1, 2, 3, 4]) {
    it(`the random cases of seed ${seed} keep all promises`, async () => {
      const { failure } = await Effect.runPromise(explore(shortOrLong(250, 1_500), seed))
      assert.isUndefined(failure && report(failure))
    })
  }
})
