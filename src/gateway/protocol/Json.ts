/**
 * JSON as values. A number that a double cannot hold keeps its source: it becomes a raw value, an object that `stringify` writes as it
 * came.
 */
import { Option, Predicate } from "effect"
import { randomBytes } from "node:crypto"

/** A JSON object. A member may be `undefined`; `stringify` leaves it out. */
export interface JsonObject {
  readonly [name: string]: unknown
}

/** Members of `JSON` that TypeScript's library lacks (ECMAScript, "JSON.parse source text access"). */
interface SourceText {
  readonly rawJSON: (text: string) => object
  readonly isRawJSON: (value: unknown) => boolean
}

// Node has had both members since version 21.
const { isRawJSON, rawJSON } = JSON as typeof JSON & SourceText

export const isRaw = (value: unknown): value is object => isRawJSON(value)

/** Matches every number that a double may not hold: 16 digits or more, or an exponent of three digits. */
const mayLose = /[\d.]{16}|\de[+-]?\d{3}/i

/** Whether a double loses what a source says. It holds every decimal number of 15 digits (IEEE 754), unless that is out of range. */
const isLost = (source: string): boolean => {
  const value = Number(source)
  if (!Number.isFinite(value)) return true
  if (value === 0) return /^[^e]*[1-9]/i.test(source)
  return String(value) !== source && source.replace(/e.*$/i, "").replace(/[-.]/g, "").replace(/^0+/, "").length > 15
}

/** The start of a string, or characters of a number that a double may lose. Shorter numbers are not matched one by one, to save time. */
const token = /"|[-+.\de]{5,}/gi

/** A number of JSON (RFC 8259, section 6). */
const number = /^-?(?:0|[1-9]\d*)(?:\.\d+)?(?:e[+-]?\d+)?$/i

/** Marks the strings that stand for lost numbers. Random, so no message can have such a string. */
const mark = `${randomBytes(12).toString("base64url")}:`

/**
 * The text with each number that a double loses replaced by a marked string. The reviver of `JSON.parse` would see the sources too, but
 * takes several times as long, so a large message could block the gateway for seconds.
 */
const marked = (text: string): string => {
  let result = ""
  let from = 0
  token.lastIndex = 0
  for (let match = token.exec(text); match !== null; match = token.exec(text)) {
    const [source] = match
    if (source === "\"") token.lastIndex = endOfString(text, match.index)
    else if (number.test(source) && isLost(source)) {
      result += `${text.slice(from, match.index)}"${mark}${source}"`
      from = token.lastIndex
    }
  }
  return result + text.slice(from)
}

/** Puts raw values in place of the marked strings. */
const restored = (value: unknown): unknown => {
  if (typeof value === "string") return value.startsWith(mark) ? rawJSON(value.slice(mark.length)) : value
  if (Array.isArray(value)) {
    for (let i = 0; i < value.length; i++) {
      const each: unknown = value[i]
      if (typeof each === "string" || typeof each === "object") value[i] = restored(each)
    }
    return value
  }
  if (typeof value !== "object" || value === null) return value
  for (const [name, each] of Object.entries(value)) {
    if (name.startsWith(mark)) throw new SyntaxError("a number is no name")
    const next = restored(each)
    if (next !== each) Reflect.set(value, name, next)
  }
  return value
}

const exact = (text: string): unknown => {
  const safe = marked(text)
  const value: unknown = JSON.parse(safe)
  return safe === text ? value : restored(value)
}

/** Deeper texts are refused: some megabytes of opening brackets would cost `JSON.parse` a second and 100 MB. */
const maxDepth = 256

/** The reason in errors for a text that `isTooDeep`. */
export const tooDeep = `nested deeper than ${maxDepth} levels`

/** Parses JSON. `None` if the text is not JSON or is too deep. */
export const parse = (text: string): Option.Option<unknown> =>
  // Saves most messages the pass: every level has two brackets.
  text.length > 2 * maxDepth && isTooDeep(text) ? Option.none() : parseAny(text)

const parseAny = Option.liftThrowable((text: string): unknown => mayLose.test(text) ? exact(text) : JSON.parse(text))

export const stringify = (value: unknown): string => JSON.stringify(value)

/** JSON with the members of all objects sorted by name, so that equal values have equal texts. */
export const canonical = (value: unknown): string => JSON.stringify(sorted(value))

/** A replacer of `JSON.stringify` would take several times as long. */
const sorted = (value: unknown): unknown => {
  if (typeof value !== "object" || value === null) return value
  if (Array.isArray(value)) return value.map(sorted)
  if (!isObject(value) || typeof value["toJSON"] === "function") return value
  const entries = Object.entries(value).map(([name, each]) => [name, sorted(each)] as const)
  return Object.fromEntries(entries.length < 2 ? entries : entries.toSorted(([a], [b]) => a < b ? -1 : 1))
}

/** A number, or the double that is nearest to a raw value. `NaN` for every other value. */
export const numberOf = (value: unknown): number =>
  typeof value === "number" ? value : isRaw(value) ? Number(stringify(value)) : Number.NaN

/** A string, or the JSON of another value. */
export const textOf = (value: unknown): string => typeof value === "string" ? value : String(stringify(value))

export const isObject = (value: unknown): value is JsonObject =>
  Predicate.isObject(value) && !Array.isArray(value) && !isRawJSON(value)

/** A value as an object. Empty if it is none. */
export const objectOf = (value: unknown): JsonObject => isObject(value) ? value : {}

/** A member of an object; `undefined` if the value has no such member. */
export const field = (value: unknown, name: string): unknown =>
  isObject(value) && Object.hasOwn(value, name) ? value[name] : undefined

/** A member of a member of an object. */
export const at = (value: unknown, ...names: ReadonlyArray<string>): unknown => names.reduce(field, value)

/** The object, or `undefined` if it has no members. */
export const unlessEmpty = (object: JsonObject): JsonObject | undefined =>
  Object.values(object).every((value) => value === undefined) ? undefined : object

/** Whether a text is nested deeper than the gateway parses. One pass, which stops at the first level beyond. */
export const isTooDeep = (text: string): boolean => {
  let depth = 0
  for (let i = 0; i < text.length; i++) {
    const character = text[i]
    if (character === "\"") i = endOfString(text, i) - 1
    else if (character === "[" || character === "{") {
      if (++depth > maxDepth) return true
    } else if (character === "]" || character === "}") depth--
  }
  return false
}

/** The text of an object with each array and object inside it replaced by `{}`. */
export const shallow = (text: string): string => {
  let result = ""
  let depth = 0
  let from = 0
  for (let i = 0; i < text.length; i++) {
    const character = text[i]
    if (character === "\"") i = endOfString(text, i) - 1
    else if (character === "[" || character === "{") {
      if (++depth === 2) result += `${text.slice(from, i)}{}`
    } else if (character === "]" || character === "}") {
      if (--depth === 1) from = i + 1
    }
  }
  return result + text.slice(from)
}

/** The index after the string that begins at `start`. The length of the text, if the string does not end. */
const endOfString = (text: string, start: number): number => {
  let end = start
  do {
    end = text.indexOf("\"", end + 1)
    if (end < 0) return text.length
  } while (isEscaped(text, end))
  return end + 1
}

/** Whether an odd number of backslashes stands before a character. */
const isEscaped = (text: string, index: number): boolean => {
  let before = index
  while (text[before - 1] === "\\") before--
  return (index - before) % 2 === 1
}
