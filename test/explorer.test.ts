/**
 * Explores schedules of the whole pool: small scenarios in every schedule with one deviation, and random cases of up to twelve fibers.
 * The promises are checked after each step and at the end (`kit/explorer/watch.ts`). `npm run explore` runs more.
 */
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { explore, exploreAll, report } from "./kit/explorer/explorer.ts"
import { scenarios } from "./kit/explorer/scenarios.ts"
import { shortOrLong } from "./kit/long.ts"

describe("schedules with one deviation", () => {
  for (const { name, plan } of scenarios) {
    it(`${name}: every schedule keeps all promises`, () => {
      const { failure, schedules } = exploreAll(plan, 1)
      assert.isUndefined(failure && report(failure))
      // With fewer schedules, the explorer would have lost its choice points.
      assert.isAbove(schedules, 100)
    })
  }
})

describe("random cases", () => {
  for (const seed of [1, 2, 3, 4]) {
    it(`the random cases of seed ${seed} keep all promises`, async () => {
      const { failure } = await Effect.runPromise(explore(shortOrLong(500, 7_500), seed))
      assert.isUndefined(failure && report(failure))
    })
  }
})
