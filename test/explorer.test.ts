/**
 * Schedules of the whole pool: every one that is away from the undisturbed schedule at one point, in small scenarios, and
 * random ones of eight fibers: 3,000, or 30,000 in `npm run test:long`. After each step, and at the end, the nine invariants are
 * checked (`kit/explorer/watch.ts`): all in the even seeds, in which nothing is late but by the plan; in the odd ones and in the
 * scenarios time may pass while tasks wait, so that what must happen in time cannot be judged. `npm run explore` goes further.
 */
import { afterAll, assert, describe, it } from "@effect/vitest"
import * as Explorer from "./kit/explorer/explorer.ts"
import { scenarios } from "./kit/explorer/scenarios.ts"
import { shrink, systematically } from "./kit/explorer/schedule.ts"
import { shortOrLong } from "./kit/long.ts"

describe("every schedule with one deviation keeps all promises", () => {
  const covered: Array<number> = []
  afterAll(() => console.log(`${covered.reduce((sum, n) => sum + n, 0)} schedules of ${covered.length} scenarios`))
  for (const { name, run } of scenarios) {
    it(name, () => {
      const { failure, schedules } = systematically(run, 1)
      assert.isUndefined(failure)
      // Less would mean that the explorer had lost its choice points.
      assert.isAbove(schedules, 100)
      covered.push(schedules)
    }, 60_000)
  }
})

describe("random schedules of eight fibers keep all promises", () => {
  const [parts, schedules] = [10, shortOrLong(3_000, 30_000)]
  for (let part = 0; part < parts; part++) {
    const from = part * schedules / parts
    it(`those of the seeds from ${from}`, () => {
      for (let seed = from; seed < from + schedules / parts; seed++) {
        if (Explorer.runSeed(seed) === undefined) continue
        const failure = Explorer.minimise(seed)
        assert.fail(
          failure === undefined ? `seed ${seed} fails, and not when it is recorded` : Explorer.report(failure)
        )
      }
    }, 60_000)
  }
})

describe("shrinking", () => {
  it("leaves just what a failure needs", () => {
    const numbers = Array.from({ length: 100 }, (_, i) => i)
    const needed = [3, 50, 51, 98]
    assert.deepStrictEqual(shrink(numbers, (some) => needed.every((number) => some.includes(number))), needed)
    assert.deepStrictEqual(shrink(numbers, () => true), [])
  })
})
