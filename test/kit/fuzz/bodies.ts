/** Bodies for the fuzz of the HTTP side, and what each means by JSON-RPC 2.0 and MCP: written apart from `src`. */
import type { Random } from "../random.ts"

/** What a body is, as the specification reads it. */
export type Meaning =
  | { readonly is: "broken" }
  | { readonly is: "invalid" }
  | {
    readonly is: "request"
    readonly id: string | number
    readonly method: string
    readonly tool: string | undefined
    /** Whether its params name a revision, as those of `initialize` must. */
    readonly revision: boolean
  }
  | { readonly is: "silent" }
  | { readonly is: "batch"; readonly ids: ReadonlyArray<string | number>; readonly initialize: boolean }

/** How deep JSON is nested, brackets in its strings aside; by the text, for a value lacks what a doubled name had first. */
export const levelsOf = (json: string): number => {
  let [depth, deepest] = [0, 0]
  for (const [bracket] of json.replace(/"(?:[^"\\]|\\.)*"/g, "").matchAll(/[{}[\]]/g)) {
    depth += "{[".includes(bracket) ? 1 : -1
    deepest = Math.max(deepest, depth)
  }
  return deepest
}

const own = (value: object, name: string): unknown => Object.getOwnPropertyDescriptor(value, name)?.value

const single = (value: unknown): Meaning => {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return { is: "invalid" }
  if (own(value, "jsonrpc") !== "2.0") return { is: "invalid" }
  const [id, method] = [own(value, "id"), own(value, "method")]
  // MCP: an id is a string or a number; one that no double holds could not be told apart from another.
  const isId = typeof id === "string" || (typeof id === "number" && Number.isFinite(id))
  if (method === undefined) {
    const answers = Object.hasOwn(value, "result") || Object.hasOwn(value, "error")
    return answers && (isId || id === null) ? { is: "silent" } : { is: "invalid" }
  }
  if (typeof method !== "string") return { is: "invalid" }
  if (id === undefined) return { is: "silent" }
  if (!isId) return { is: "invalid" }
  const params = own(value, "params")
  const param = (name: string) => typeof params === "object" && params !== null ? own(params, name) : undefined
  const name = param("name")
  return {
    is: "request",
    id,
    method,
    tool: method === "tools/call" && typeof name === "string" ? name : undefined,
    revision: typeof param("protocolVersion") === "string"
  }
}

/** The text that bytes are: without a byte order mark, and with a replacement for what is no UTF-8. */
export const textOf = (body: Buffer): string => new TextDecoder().decode(body)

/** Says what bytes mean; `batches`: whether the revision that is spoken has them. */
export const meaningOf = (body: Buffer, batches: boolean): Meaning => {
  let value: unknown
  try {
    value = JSON.parse(textOf(body))
  } catch {
    return { is: "broken" }
  }
  if (levelsOf(textOf(body)) > 256) return { is: "broken" }
  if (!Array.isArray(value)) return single(value)
  if (!batches || value.length === 0) return { is: "invalid" }
  const parts = value.map(single)
  if (parts.some(({ is }) => is === "invalid")) return { is: "invalid" }
  const requests = parts.flatMap((part) => part.is === "request" ? [part] : [])
  return {
    is: "batch",
    ids: requests.map(({ id }) => id),
    initialize: requests.some(({ method }) => method === "initialize")
  }
}

const names = ["__proto__", "constructor", "prototype", "toString", "hasOwnProperty", "id", "jsonrpc"] as const

const idTexts = [
  "1",
  "0",
  "-0",
  "1.5",
  "9007199254740993",
  "1e3",
  "\"1\"",
  "\"\"",
  "\"ü\\u2028\\n\"",
  "\"\\ud800\"",
  "\"__proto__\"",
  `"${"i".repeat(3000)}"`
] as const
const badIdTexts = ["null", "true", "{}", "[]", "[1]", "1e400", "-1e999", "{\"toString\":1}"] as const

const methodTexts = ["ping", "tools/list", "", "__proto__", "constructor", "\\u0000", "\\ud800", "x".repeat(1500)]
  .concat(["initialize", "notifications/initialized", "logging/setLevel", "resources/subscribe"])
  .map((method) => `"${method}"`)
const badMethodTexts = ["1", "{}", "[]", "null", "true"] as const

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

const space = (random: Random): string => random.chance(0.8) ? "" : random.pick([" ", "\t", "\r\n", "\n \n"])

const object = (random: Random, members: ReadonlyArray<string>): string => {
  const shuffled = random.chance(0.7) ? members : members.toSorted(() => random.next() - 0.5)
  return `{${shuffled.map((member) => `${space(random)}${member}`).join(`${space(random)},`)}${space(random)}}`
}

/** A message that is valid by the specification. */
const message = (random: Random): string => {
  const more = random.chance(0.3) ? [`"${random.pick(["extra", "__proto__", "constructor"])}":${anyJson(random)}`] : []
  const id = `"id":${random.pick(idTexts)}`
  const version = "\"jsonrpc\":\"2.0\""
  switch (random.below(10)) {
    case 0:
    case 1:
    case 2:
      return object(random, [version, id, "\"method\":\"tools/call\"", "\"params\":{\"name\":\"count\"}", ...more])
    case 3:
    case 4:
      return object(random, [
        version,
        id,
        "\"method\":\"tools/call\"",
        `"params":{"name":"raw","arguments":{"any":${anyJson(random)}},"_meta":{"progressToken":${anyJson(random)}}}`,
        ...more
      ])
    case 5:
    case 6:
      return object(random, [
        version,
        id,
        `"method":${random.pick(methodTexts)}`,
        `"params":${anyJson(random)}`,
        ...more
      ])
    case 7:
      return object(random, [version, `"method":${random.pick(methodTexts)}`, `"params":${anyJson(random)}`, ...more])
    case 8:
      return object(random, [version, id, `"result":${anyJson(random)}`, ...more])
    default:
      return object(random, [version, random.chance(0.5) ? id : "\"id\":null", `"error":${anyJson(random)}`, ...more])
  }
}

/** JSON that is no message. */
const noMessage = (random: Random): string => {
  switch (random.below(6)) {
    case 0:
      return object(random, ["\"jsonrpc\":\"2.0\"", `"id":${random.pick(badIdTexts)}`, "\"method\":\"ping\""])
    case 1:
      return object(random, ["\"jsonrpc\":\"2.0\"", "\"id\":1", `"method":${random.pick(badMethodTexts)}`])
    case 2:
      return object(random, [
        `"jsonrpc":${random.pick(["2.0", "\"1.0\"", "null", "[\"2.0\"]"])}`,
        "\"method\":\"ping\""
      ])
    case 3:
      return `{"${random.pick(names)}":${message(random)}}`
    case 4:
      return "{\"jsonrpc\":\"2.0\",\"id\":1}"
    default:
      return anyJson(random)
  }
}

const batch = (random: Random): string => {
  const parts = Array.from(
    { length: 1 + random.below(5) },
    () => random.chance(0.9) ? message(random) : noMessage(random)
  )
  return `[${parts.map((part) => `${space(random)}${part}`).join()}]`
}

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

/** A body of some kind. */
export const body = (random: Random): Buffer => {
  const kind = random.below(20)
  if (kind < 8) return Buffer.from(message(random))
  if (kind < 11) return Buffer.from(noMessage(random))
  if (kind < 13) return Buffer.from(batch(random))
  if (kind < 19) return damaged(random, Buffer.from(random.chance(0.8) ? message(random) : batch(random)))
  return random.chance(0.5)
    ? Buffer.from(Array.from({ length: random.below(200) }, () => random.below(256)))
    : Buffer.from(random.pick(["", " ", "\ufeff{}", "{", "NaN", "'x'", "{a:1}", "[1,]", "\u0000", "undefined"]))
}
