/** JSON values that keep the numbers a double cannot hold. */
import { assert, describe, it } from "@effect/vitest"
import { Duration, Option } from "effect"
import * as Json from "../../src/gateway/protocol/Json.ts"
import * as JsonRpc from "../../src/gateway/protocol/JsonRpc.ts"
import * as Modern from "../../src/gateway/protocol/Modern.ts"
import * as RequestHeaders from "../../src/gateway/protocol/RequestHeaders.ts"
import * as Bodies from "../kit/fuzz/bodies.ts"
import * as Random from "../kit/random.ts"

const parsed = (text: string): unknown => Option.getOrThrow(Json.parse(text))

const numbers = ["12345678901234567890", "-9007199254740993", "1e400", "1E-400"]
  .concat(["0.1234567890123456789", "3.14159265358979323846e10"])

describe("numbers that a double cannot hold", () => {
  it.each(numbers)("keeps the number %s in an edited object", (number) => {
    const value = parsed(`{"a":[${number},{"b":${number}}],"c":1}`)
    const edited = Json.stringify({ ...Json.objectOf(value), c: 2, d: undefined })
    assert.strictEqual(edited, `{"a":[${number},{"b":${number}}],"c":2}`)
  })

  it.each(numbers)("keeps the number %s as the id of a request and of its answer", (number) => {
    const message = JsonRpc.read(`{"jsonrpc":"2.0","id":${number},"method":"ping"}`)
    // A server in JavaScript would read this id as infinity.
    if (number === "1e400") return assert.isUndefined(message)
    if (message?._tag !== "Request") return assert.fail("not a request")
    // Servers that know only doubles answer with the nearest one.
    assert.strictEqual(JsonRpc.idKey(message.id), JsonRpc.idKey(Number(number)))
    assert.strictEqual(JsonRpc.result(message.id, {}).text, `{"jsonrpc":"2.0","id":${number},"result":{}}`)
  })

  it("parses numbers that a double holds as numbers", () => {
    const exact = [0, -1, 1.5, 1234567890123456, 9007199254740991]
    assert.deepStrictEqual(parsed("[0,-1,1.5,1234567890123456,9007199254740991]"), exact)
  })

  it("refuses a number as the name of a member", () => {
    for (const text of ["{1e400:1}", "{\"a\":{12345678901234567890:1}}"]) assert.isTrue(Option.isNone(Json.parse(text)))
  })

  it("reads 4 MB of short numbers in half a second", () => {
    const filled = (part: string, end: string) => `[${part.repeat(4 * 1024 * 1024 / part.length)}${end}]`
    for (const text of [filled("0", ""), filled("1e1", ""), filled("1e1,", "1e999"), filled("0,", "1e999")]) {
      const seconds = [0, 1, 2].map(() => {
        const before = process.cpuUsage()
        Json.parse(text)
        return process.cpuUsage(before).user / 1e6
      })
      assert.isBelow(Math.min(...seconds), 0.5, text.slice(0, 20))
    }
  })

  it("leaves digits in strings as they are", () => {
    const text = "{\"12345678901234567890\":\"12345678901234567890\",\"e\":\"1e400\"}"
    assert.strictEqual(Json.stringify(parsed(text)), text)
    assert.strictEqual(Json.field(parsed(text), "e"), "1e400")
  })

  it("writes any value beside a large number as JSON.parse reads the text", () => {
    const random = Random.make(20261125)
    for (let i = 0; i < 500; i++) {
      const text = Bodies.anyJson(random)
      if (Json.isTooDeep(text)) continue
      const value = parsed(`[${text},12345678901234567890]`)
      const written = Json.stringify(value)
      assert.isTrue(written.endsWith(",12345678901234567890]"))
      assert.strictEqual(JSON.stringify(JSON.parse(written)[0]), JSON.stringify(JSON.parse(text)))
    }
  })

  it("reads error codes, client names and header arguments with a large number", () => {
    const huge = "12345678901234567890"
    const error = JsonRpc.read(`{"jsonrpc":"2.0","id":${huge},"error":{"code":${huge},"message":"x"}}`)
    assert.strictEqual(error?._tag === "Response" && JsonRpc.codeOf(error.error), Number(huge))
    const clientInfo = `{"name":"a","version":${huge}}`
    const initialize = JsonRpc.read(`{"jsonrpc":"2.0","id":1,"method":"x","params":{"clientInfo":${clientInfo}}}`)
    const params = initialize?._tag === "Request" ? initialize.params : undefined
    assert.strictEqual(Modern.nameOf(Json.field(params, "clientInfo")), "a")
    const declared = new Map([["tool", [{ path: ["n"], header: "N" }]]])
    const meta = `{"${Modern.metaKeys.protocolVersion}":"${Modern.version}"}`
    const call = parsed(`{"name":"tool","arguments":{"n":${huge}},"_meta":${meta}}`)
    const faultWith = (n: string) => {
      const headers = { ...RequestHeaders.headersOf("tools/call", call), "mcp-param-n": n }
      return RequestHeaders.fault(JsonRpc.request(1, "tools/call", call), headers, declared)
    }
    assert.isUndefined(faultWith(huge))
    assert.isDefined(faultWith("1"))
  })
})

describe("JSON texts", () => {
  it("are canonical with their members sorted, at any depth and whatever the members hold", () => {
    const text = "{\"b\":[{\"d\":1,\"c\":12345678901234567890}],\"a\":null}"
    assert.strictEqual(Json.canonical(parsed(text)), "{\"a\":null,\"b\":[{\"c\":12345678901234567890,\"d\":1}]}")
    const entry = { wait: Duration.nanos(5n), command: "x", cwd: undefined }
    assert.strictEqual(Json.canonical(entry), Json.stringify({ command: "x", wait: Duration.nanos(5n) }))
  })

  it("takes the last member of a name that an object has twice", () => {
    assert.strictEqual(Json.field(parsed("{\"a\":1,\"\\u0061\":2}"), "a"), 2)
  })

  it("keeps __proto__ as the name of a member, even in an edited object", () => {
    const text = "{\"__proto__\":{\"a\":12345678901234567890}}"
    const value = parsed(text)
    assert.isUndefined(Json.field(value, "a"))
    assert.strictEqual(String(Json.stringify(Json.at(value, "__proto__", "a"))), "12345678901234567890")
    assert.strictEqual(Json.stringify({ ...Json.objectOf(value), b: 1 }), `${text.slice(0, -1)},"b":1}`)
  })

  it("reads no member of a value that is no object, and no inherited member", () => {
    for (const text of ["[1]", "\"{\"", "5", "12345678901234567890", "null", "true", "{}"]) {
      for (const name of ["0", "length", "rawJSON", "constructor"]) {
        assert.isUndefined(Json.field(parsed(text), name), `${text} ${name}`)
      }
    }
  })

  it("refuses texts nested deeper than 256 levels, and does not count brackets in strings", () => {
    const nested = (levels: number) => `${"[".repeat(levels)}"${"[".repeat(300)}\\"["${"]".repeat(levels)}`
    assert.isTrue(Option.isSome(Json.parse(nested(256))))
    assert.isTrue(Option.isNone(Json.parse(nested(257))))
    const random = Random.make(20261129)
    for (let i = 0; i < 500; i++) {
      const text = `{"[{\\"${"\\\\".repeat(i % 3)}":${Bodies.anyJson(random)}}`
      assert.strictEqual(Json.isTooDeep(text), Bodies.levelsOf(text) > 256)
    }
    // An unterminated string does not make it hang.
    for (const text of ["\"", "\"\\\"", "\\\"[[", "]]]["]) assert.isFalse(Json.isTooDeep(text))
  })

  it("empties the arrays and objects inside a shallow text", () => {
    const text = "{\"id\":\"[\\\"{\",\"result\":{\"a\":[[1]]},\"b\":[{}],\"n\":1e400}"
    assert.strictEqual(Json.shallow(text), "{\"id\":\"[\\\"{\",\"result\":{},\"b\":{},\"n\":1e400}")
    assert.strictEqual(Json.shallow("5"), "5")
  })
})
