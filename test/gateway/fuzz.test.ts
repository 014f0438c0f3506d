/** A short form of `npm run fuzz`. */
import { assert, describe, it, vi } from "vitest"
import * as FuzzConfig from "../kit/fuzz/config.ts"
import * as FuzzHttp from "../kit/fuzz/http.ts"

const seed = 1

// These tests start whole gateways, which takes long on a busy machine.
vi.setConfig({ testTimeout: 90_000, hookTimeout: 90_000 })

describe("the fuzz", () => {
  it("the gateway answers random requests with allowed statuses, keeps sessions apart and leaves nothing behind", async () => {
    const count = 600
    const { cases, failures, statuses } = await FuzzHttp.run(seed, 0, count)
    assert.deepStrictEqual([failures, cases], [[], count])
    // All of these statuses came back, so the cases cover them.
    for (const status of [200, 202, 204, 400, 401, 403, 404, 405, 406, 413, 415, 431, "closed"]) {
      assert.property(statuses, String(status))
    }
  })

  it("random configurations are valid, or refused with faults that each have a path", () => {
    const count = 500
    const { failures, valid } = FuzzConfig.run(seed, 0, count)
    assert.deepStrictEqual(failures, [])
    assert.isAbove(valid, 0.2 * count)
    assert.isBelow(valid, 0.8 * count)
  })

  it("a seed and a number determine a case", () => {
    for (let index = 0; index < 50; index++) {
      assert.deepStrictEqual(FuzzHttp.make(7, index), FuzzHttp.make(7, index))
      assert.deepStrictEqual(FuzzConfig.make(7, index), FuzzConfig.make(7, index))
    }
    assert.notDeepEqual(FuzzHttp.make(7, 1), FuzzHttp.make(8, 1))
  })
})
