/** The line splitter: any text in any chunking. */
import { assert, describe, it } from "@effect/vitest"
import { Schema } from "effect"
import * as Lines from "../../src/gateway/transports/Lines.ts"

const bytes = (text: string) => new TextEncoder().encode(text)

describe("the line splitter", () => {
  it.prop(
    "returns the same lines for any chunks of their text",
    [Schema.Array(Schema.String), Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 7 })))],
    ([texts, sizes]) => {
      const lines = [...texts, "\u{1F600}é\u2028x"].map((text) => JSON.stringify(text))
      const all = bytes(lines.map((line) => `${line}\n`).join(""))
      const splitter = Lines.make(1_000_000)
      const seen: Array<string> = []
      let at = 0
      for (let i = 0; at < all.length; i++) {
        const next = at + (sizes[i % Math.max(1, sizes.length)] ?? 3)
        const result = splitter(all.slice(at, next))
        assert.notStrictEqual(result, "TooLong")
        if (result !== "TooLong") seen.push(...result)
        at = next
      }
      assert.deepStrictEqual(seen, lines)
    }
  )

  it("stops at a line that is longer than the bound, complete or not", () => {
    assert.strictEqual(Lines.make(4)(bytes("12345")), "TooLong")
    assert.strictEqual(Lines.make(4)(bytes("12345\n")), "TooLong")
    const splitter = Lines.make(4)
    assert.deepStrictEqual(splitter(bytes("123")), [])
    assert.strictEqual(splitter(bytes("45")), "TooLong")
    assert.deepStrictEqual(Lines.make(4)(bytes("1234\n1234\n")), ["1234", "1234"])
  })
})
