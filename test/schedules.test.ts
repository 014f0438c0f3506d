/**
 * Explores the whole pool in small scenarios, in every schedule with one deviation. The promises are checked after each step and at
 * the end (`kit/explorer/watch.ts`). `npm run explore` runs more.
 */
import { assert, describe, it } from "@effect/vitest"
import { exploreAll, report } from "./kit/explorer/explorer.ts"
import { scenarios } from "./kit/explorer/scenarios.ts"

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
