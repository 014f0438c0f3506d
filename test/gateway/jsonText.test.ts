/** Editing JSON without reading it: the same as reading, changing and writing, but for what no double holds. */
import { assert, describe, it } from "@effect/vitest"
import { Schema } from "effect"
import * as JsonText from "../../src/gateway/protocol/JsonText.ts"
import * as Bodies from "../kit/fuzz/bodies.ts"
import { shortOrLong } from "../kit/long.ts"
import * as Random from "../kit/random.ts"

describe("JSON text", () => {
  it("of any object, its members are those that JSON.parse reads", () => {
    const random = Random.make(20261125)
    for (let i = 0; i < shortOrLong(500, 2000); i++) {
      const text = Bodies.anyJson(random)
      // Indented, deep ones are as long as their depth squared.
      if (text.length > 1000) continue
      const value = JSON.parse(text)
      const object = Object.fromEntries(
        ["a", "__proto__", "\"\\\n", "ü", "{", "]", ","].slice(0, i % 8).map((name) => [name, value])
      )
      const indented = JSON.stringify(object, null, i % 3)
      assert.deepStrictEqual(
        JsonText.members(indented).map(([name, each]) => [name, JSON.stringify(JSON.parse(each))]),
        Object.entries(object).map(([name, each]) => [name, JSON.stringify(each)])
      )
      const array = Object.values(object)
      assert.deepStrictEqual(
        JsonText.elements(JSON.stringify(array, null, i % 3)).map((each) => JSON.stringify(JSON.parse(each))),
        array.map((each) => JSON.stringify(each))
      )
    }
  })

  it.prop(
    "an edited object is what editing the value gives",
    [Schema.Record(Schema.String, Schema.String), Schema.String, Schema.String],
    ([object, name, value]) => {
      const edited = JsonText.edit(JSON.stringify(object), { [name]: JSON.stringify(value), gone: undefined })
      const others = Object.entries(object).filter(([each]) => each !== name && each !== "gone")
      const expected = new Map([...others, [name, value]])
      assert.deepStrictEqual(
        JsonText.members(edited).map(([each, text]) => [each, JSON.parse(text)]),
        [...expected]
      )
    }
  )

  it("numbers and spellings that JSON.parse would change stay as they came", () => {
    const text = "{ \"n\" : 12345678901234567890, \"e\":1e400,\"s\":\"\\u0041\\\\\\\"}\", \"x\" : { \"a\":[1, {}]} }"
    assert.strictEqual(
      JsonText.edit(text, { x: undefined, y: "1" }),
      "{\"n\":12345678901234567890,\"e\":1e400,\"s\":\"\\u0041\\\\\\\"}\",\"y\":1}"
    )
  })

  it("knows how deep any text is nested, brackets in its strings aside", () => {
    const random = Random.make(20261129)
    for (let i = 0; i < 2000; i++) {
      const text = `{"[{\\"${"\\\\".repeat(i % 3)}":${Bodies.anyJson(random)}}`
      const depth = Bodies.levelsOf(text)
      assert.deepStrictEqual([JsonText.isDeeper(text, depth - 1), JsonText.isDeeper(text, depth)], [true, false])
    }
    // What is no JSON does not hang it.
    for (const text of ["\"", "\"\\\"", "\\\"[[", "]]]["]) assert.isFalse(JsonText.isDeeper(text, 1))
  })

  it("what is no object has no members", () => {
    for (const text of ["[1]", "\"{\"", "5", "null", "true", " [ {} ] "]) {
      assert.deepStrictEqual(JsonText.members(text), [])
    }
    assert.deepStrictEqual(JsonText.members(" { } "), [])
  })

  it("of members with the same name the last counts, and an edit replaces all of them", () => {
    const text = "{\"a\":1,\"\\u0061\":2,\"b\":3}"
    assert.strictEqual(JsonText.member(text, "a"), "2")
    assert.strictEqual(JsonText.edit(text, { a: "9" }), "{\"b\":3,\"a\":9}")
  })
})
