/** Bad input in short: `npm run fuzz` is the long form. */
import { assert, describe, it, vi } from "vitest"
import * as FuzzConfig from "../kit/fuzz/config.ts"
import * as Fuzz from "../kit/fuzz/fuzz.ts"
import * as FuzzHttp from "../kit/fuzz/http.ts"
import { shortOrLong } from "../kit/long.ts"

const seed = 1

// Each starts whole gateways; on a busy machine that takes its time.
vi.setConfig({ testTimeout: 90_000, hookTimeout: 90_000 })

describe("bad input", () => {
  it("answers each random request with an allowed status, keeps sessions apart and leaves nothing behind", async () => {
    const count = shortOrLong(600, 2000)
    const { cases, failures, statuses } = await Fuzz.http({ seed, from: 0, count })
    assert.deepStrictEqual([failures, cases], [[], count])
    // The cases are what they say: all of these came back.
    for (const status of [200, 202, 204, 400, 401, 403, 404, 405, 406, 413, 415, 431, "closed"]) {
      assert.property(statuses, String(status))
    }
  })

  it("configurations are valid, or refused with faults that each have a path", () => {
    const count = shortOrLong(500, 2000)
    const { failures, valid } = Fuzz.configurations(seed, 0, count)
    assert.deepStrictEqual(failures, [])
    assert.isAbove(valid, 0.2 * count)
    assert.isBelow(valid, 0.8 * count)
  })

  it("a case is made by its seed and number alone", () => {
    for (let index = 0; index < 50; index++) {
      assert.deepStrictEqual(FuzzHttp.make(7, index), FuzzHttp.make(7, index))
      assert.deepStrictEqual(FuzzConfig.make(7, index), FuzzConfig.make(7, index))
    }
    assert.notDeepEqual(FuzzHttp.make(7, 1), FuzzHttp.make(8, 1))
  })
})
