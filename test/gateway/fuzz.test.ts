/** Bad input in short: `npm run fuzz` is the long form. */
import { assert, describe, it, vi } from "vitest"
import * as Settings from "../../src/gateway/settings/Settings.ts"
import * as Bodies from "../kit/fuzz/bodies.ts"
import * as FuzzConfig from "../kit/fuzz/config.ts"
import * as Fuzz from "../kit/fuzz/fuzz.ts"
import * as FuzzHttp from "../kit/fuzz/http.ts"
import { shortOrLong } from "../kit/long.ts"

const seed = 1

// Each starts whole gateways; on a busy machine that takes its time.
vi.setConfig({ testTimeout: 90_000, hookTimeout: 90_000 })

describe("bad input", () => {
  it("requests of any make get what their kind allows; nothing crashes, crosses over or is left", async () => {
    const count = shortOrLong(600, 2000)
    const { cases, failures, statuses } = await Fuzz.http({ seed, from: 0, count })
    assert.deepStrictEqual([failures, cases], [[], count])
    // The cases are what they say: all of these came back.
    for (const status of [200, 202, 204, 400, 401, 403, 404, 405, 406, 413, 415, 431, "closed"]) {
      assert.property(statuses, String(status))
    }
  })

  it("configurations are read as valid, or refused with exactly their faults, each with its path", () => {
    const count = shortOrLong(500, 2000)
    const { failures, valid } = Fuzz.configurations(seed, 0, count)
    assert.deepStrictEqual(failures, [])
    assert.isAbove(valid, 0.2 * count)
    assert.isBelow(valid, 0.8 * count)
  })

  it("the command says of a configuration what reading it says", async () => {
    assert.deepStrictEqual((await Fuzz.commands(seed, 0, 2)).failures, [])
  })

  it("the command says which choices a flag has where a case gives it another", async () => {
    const isWrong = (index: number) => {
      const { flags, kind } = FuzzConfig.make(seed, index)
      const era = flags["era"]
      return kind === "file" && typeof era === "string" && Settings.all["era"]?.choices?.includes(era) === false
    }
    const index = Array.from({ length: 10_000 }, (_, index) => index).find(isWrong)
    assert.isDefined(index)
    assert.deepStrictEqual((await Fuzz.commands(seed, index ?? 0, 1)).failures, [])
  })

  it("a case is made by its seed and number alone", () => {
    for (let index = 0; index < 50; index++) {
      assert.deepStrictEqual(FuzzHttp.make(7, index), FuzzHttp.make(7, index))
      assert.deepStrictEqual(FuzzConfig.make(7, index), FuzzConfig.make(7, index))
    }
    assert.notDeepEqual(FuzzHttp.make(7, 1), FuzzHttp.make(8, 1))
  })

  it("what a body means is told apart: broken, no message, a request, silent, a batch", () => {
    const bodies: ReadonlyArray<readonly [text: string, batches: boolean, meaning: string]> = [
      ["{", true, "broken"],
      ["{}", true, "invalid"],
      ["{\"jsonrpc\":\"2.0\",\"method\":\"x\"}", true, "silent"],
      ["{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"x\"}", true, "request"],
      ["{\"jsonrpc\":\"2.0\",\"id\":1e400,\"method\":\"x\"}", true, "invalid"],
      ["[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"x\"}]", true, "batch"],
      ["[]", false, "invalid"]
    ]
    for (const [text, batches, meaning] of bodies) {
      assert.strictEqual(Bodies.meaningOf(Buffer.from(text), batches).is, meaning, text)
    }
  })
})
