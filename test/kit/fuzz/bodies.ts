/** Random JSON, messages and bodies for the fuzz. */
import type { Random } from "../random.ts"

/** How deep JSON is nested, brackets in its strings aside; by the text, for a value lacks what a doubled name had first. */
export const levelsOf = (json: string): number => {
  let [depth, deepest] = [0, 0]
  for (const [bracket] of json.replace(/"(?:[^"\\]|\\.)*"/g, "").matchAll(/[{}[\]]/g)) {
    depth += "{[".includes(bracket) ? 1 : -1
    deepest = Math.max(deepest, depth)
  }
  return deepest
}

const names = ["__proto__", "constructor", "prototype", "toString", "hasOwnProperty", "id", "jsonrpc"] as const

const ids = ["1", "0", "-0", "1.5", "9007199254740993", "1e3", "\"1\"", "\"\"", "\"\\ud800\"", "\"__proto__\""] as const
const wrongIds = ["null", "true", "{}", "[1]", "1e400", "{\"toString\":1}"] as const
const methods = ["tools/call", "ping", "", "__proto__", "\\u0000", "initialize", "notifications/initialized"]
  .concat(["logging/setLevel", "resources/subscribe", "x".repeat(1500)])
  .map((method) => `"${method}"`)
const wrongMethods = ["1", "{}", "null"] as const

/** Any JSON, as text: numbers that no double holds, deep nesting, lone surrogates, names of prototypes, doubled names or none. */
export const anyJson = (random: Random, doubled = true, depth = 0): string => {
  const kind = random.below(depth > 3 ? 8 : 11)
  const inner = () => anyJson(random, doubled, depth + 1)
  switch (kind) {
    case 0:
      return random.pick(["0", "-0", "1e400", "-1E-400", "123456789012345678901234567890", "0.1"])
    case 1:
      return random.pick(["true", "false", "null"])
    case 2:
      return `"${random.pick(["\\ud800", "\\udc00x", "\\u0000", "\u{1F600}", "\u2028", "\\\\", "${HOME}", "a\\nb"])}"`
    case 3: {
      const levels = random.pick([10, 100, 3000])
      return "[".repeat(levels) + "]".repeat(levels)
    }
    case 4: {
      const levels = random.pick([10, 100, 2000])
      return "{\"a\":".repeat(levels) + "1" + "}".repeat(levels)
    }
    case 5:
      return `"${"x".repeat(random.below(3000))}"`
    case 6:
      return "[]"
    case 7:
      return "{}"
    case 8:
      return `[${Array.from({ length: random.below(4) }, inner).join()}]`
    default: {
      const chosen = Array.from({ length: random.below(4) }, () => random.pick([...names, "a", ""]))
      const members = (doubled ? chosen : [...new Set(chosen)]).map((name) => `"${name}":${inner()}`)
      return `{${members.join(", ")}}`
    }
  }
}

/** A message of JSON-RPC; one in five has a wrong member. */
const message = (random: Random): string => {
  const wrong = random.chance(0.2)
  const members = [
    `"jsonrpc":${wrong && random.chance(0.3) ? "\"1.0\"" : "\"2.0\""}`,
    `"id":${random.pick(wrong ? wrongIds : ids)}`,
    `"method":${random.pick(wrong && random.chance(0.5) ? wrongMethods : methods)}`,
    `"params":${params(random)}`,
    `"result":${anyJson(random)}`,
    `"error":${anyJson(random)}`,
    `"${random.pick(names)}":${anyJson(random)}`
  ]
  // What makes a request, a notification, a result, an error and a request with another member.
  const chosen = random.pick([[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], [0, 2, 3], [0, 1, 4], [0, 1, 5], [
    0,
    1,
    2,
    3,
    6
  ]])
  return `{${
    members.filter((_, i) => chosen.includes(i)).toSorted(() => random.next() - 0.5).join(random.pick([",", " ,\r\n"]))
  }}`
}

const params = (random: Random): string =>
  random.pick([
    "{\"name\":\"count\"}",
    `{"name":"raw","arguments":{"any":${anyJson(random)}},"_meta":{"progressToken":${anyJson(random)}}}`,
    `{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":${anyJson(random)}}`,
    anyJson(random)
  ])

const batch = (random: Random): string =>
  `[${Array.from({ length: 1 + random.below(5) }, () => message(random)).join()}]`

/** Bytes with some of them changed, taken out, doubled, or cut off at the end. */
export const damaged = (random: Random, bytes: Buffer): Buffer => {
  let result = Buffer.from(bytes)
  for (let i = 1 + random.below(3); i > 0 && result.length > 0; i--) {
    const at = random.below(result.length)
    const length = 1 + random.below(8)
    switch (random.below(5)) {
      case 0:
        result[at] = random.below(256)
        break
      case 1:
        result = Buffer.concat([result.subarray(0, at), result.subarray(at + length)])
        break
      case 2:
        result = Buffer.concat([result.subarray(0, at + length), result.subarray(at)])
        break
      case 3:
        result = result.subarray(0, at)
        break
      default:
        result = Buffer.concat([
          result.subarray(0, at),
          Buffer.from(random.pick(["\"", "{", "]", ",", "\\", "\0", "\xff\xfe", "\xed\xa0\x80"]), "latin1"),
          result.subarray(at)
        ])
    }
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
