/**
 * Schedules of the whole pool: in small scenarios all that deviate at one point, and random cases of up to twelve fibers. After each step
 * and at the end the promises are checked (`kit/explorer/watch.ts`). `npm run explore` goes further.
 */
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { explore, exploreAll, report } from "./kit/explorer/explorer.ts"
import { scenarios } from "./kit/explorer/scenarios.ts"
import { shortOrLong } from "./kit/long.ts"

describe("every schedule with one deviation keeps all promises", () => {
  for (const { name, plan } of scenarios) {
    it(name, () => {
      const { failure, schedules } = exploreAll(plan, 1)
      assert.isUndefined(failure && report(failure))
      // Fewer would mean that the explorer had lost its choice points.
      assert.isAbove(schedules, 100)
    })
  }
})

describe("random cases keep all promises", () => {
  for (const seed of [1, 2, 3, 4]) {
    it(`those of seed ${seed}`, async () => {
      const { failure } = await Effect.runPromise(explore(shortOrLong(500, 7_500), seed))
      assert.isUndefined(failure && report(failure))
    })
  }
})
