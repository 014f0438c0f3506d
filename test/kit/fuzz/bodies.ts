/** Random JSON, messages and bodies for the fuzz. */
import type { Random } from "../random.ts"

/** The depth of a JSON text. A parsed value would lack the first of two members with one name. */
export const levelsOf = (json: string): number => {
  let [depth, deepest] = [0, 0]
  for (const [bracket] of json.replace(/"(?:[^"\\]|\\.)*"/g, "").matchAll(/[{}[\]]/g)) {
    depth += "{[".includes(bracket) ? 1 : -1
    deepest = Math.max(deepest, depth)
  }
  return deepest
}

const names = ["__proto__", "constructor", "prototype", "toString", "hasOwnProperty", "id", "jsonrpc"] as const
const scalars = ["0", "-0", "1e400", "-1E-400", "123456789012345678901234567890", "true", "false", "null", "[]", "{}"]
  .concat(["\\ud800", "\\udc00x", "\\u0000", "\u{1F600}", "\u2028", "${HOME}", "a\\nb"].map((text) => `"${text}"`))

/** Any JSON: numbers that no double holds, deep nesting, lone surrogates, names of prototypes, doubled names or none. */
export const anyJson = (random: Random, doubled = true, depth = 0): string => {
  const inner = () => anyJson(random, doubled, depth + 1)
  const kind = random.below(depth > 3 ? 7 : 10)
  if (kind < 5) return random.pick(scalars)
  if (kind < 7) {
    const levels = random.pick([10, 100, 2000])
    const [open, close] = random.pick([["[", "]"], ["{\"a\":", "}"], ["", ""]])
    return `${open.repeat(levels)}"${"x".repeat(random.below(3000))}"${close.repeat(levels)}`
  }
  if (kind === 7) return `[${Array.from({ length: random.below(4) }, inner).join()}]`
  const chosen = Array.from({ length: random.below(4) }, () => random.pick([...names, "a", ""]))
  const members = (doubled ? chosen : [...new Set(chosen)]).map((name) => `"${name}":${inner()}`)
  return `{${members.join(", ")}}`
}

const ids = ["1", "0", "-0", "1.5", "9007199254740993", "1e3", "\"1\"", "\"\"", "\"\\ud800\"", "\"__proto__\""]
const wrongIds = ["null", "true", "{}", "[1]", "1e400", "{\"toString\":1}"]
const methods = ["tools/call", "ping", "", "__proto__", "\\u0000", "initialize", "notifications/initialized"]
  .concat(["logging/setLevel", "resources/subscribe", "x".repeat(1500)])
  .map((method) => `"${method}"`)
const request = ["jsonrpc", "id", "method", "params"]
/** The members of requests, of a notification, of a result, of an error, and of a request with another member. */
const shapes = [request, request, request, ["jsonrpc", "method", "params"], ["jsonrpc", "id", "result"]]
  .concat([["jsonrpc", "id", "error"], [...request, "__proto__"]])

/** A message of JSON-RPC. Some have a wrong member. */
const message = (random: Random): string => {
  const right = random.chance(0.8)
  const values: Record<string, string> = {
    jsonrpc: right ? "\"2.0\"" : random.pick(["2.0", "\"1.0\"", "\"2.0\""]),
    id: random.pick(right ? ids : wrongIds),
    method: random.pick(right ? methods : ["1", "{}", "null", "\"ping\""]),
    params: random.pick([
      "{\"name\":\"count\"}",
      `{"name":"raw","arguments":{"any":${anyJson(random)}},"_meta":{"progressToken":${anyJson(random)}}}`,
      `{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":${anyJson(random)}}`,
      anyJson(random)
    ])
  }
  const members = random.pick(shapes).map((name) => `"${name}":${values[name] ?? anyJson(random)}`)
  return `{${members.toSorted(() => random.next() - 0.5).join(random.pick([",", " ,\r\n"]))}}`
}

const batch = (random: Random): string =>
  `[${Array.from({ length: 1 + random.below(5) }, () => message(random)).join()}]`

/** Bytes with some of them changed, taken out, doubled, inserted, or cut off at the end. */
export const damaged = (random: Random, bytes: Buffer): Buffer => {
  let result = bytes
  for (let i = 1 + random.below(3); i > 0; i--) {
    const at = random.below(result.length + 1)
    const length = 1 + random.below(8)
    const [before, after] = [result.subarray(0, at), result.subarray(at)]
    result = Buffer.concat(random.pick([
      [before, Buffer.of(random.below(256)), after.subarray(1)],
      [before, after.subarray(length)],
      [result.subarray(0, at + length), after],
      [before],
      [before, Buffer.from(random.pick(["\"", "{", "]", ",", "\\", "\0", "\xff\xfe", "\xed\xa0\x80"]), "latin1"), after]
    ]))
  }
  return result
}

/** A body of some kind: a message, a batch, other JSON, one of these damaged, or any bytes. */
export const body = (random: Random): Buffer => {
  const kind = random.below(20)
  if (kind === 0) return Buffer.from(Array.from({ length: random.below(200) }, () => random.below(256)))
  const text = kind < 14 ? message(random) : kind < 17 ? batch(random) : anyJson(random)
  return random.chance(0.3) ? damaged(random, Buffer.from(text)) : Buffer.from(text)
}
