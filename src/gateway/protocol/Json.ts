/**
 * JSON as values. A number that a double cannot hold keeps its source: it becomes a raw value, an object that `stringify` writes as it
 * came.
 */
import { Option, Predicate } from "effect"

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

/** Matches every number that a double may not hold: 16 digits or more, or an exponent. */
const mayLose = /[\d.]{16}|\de/i

/** Whether a double has lost what its source says. It holds every decimal number of 15 digits (IEEE 754), unless that is out of range. */
const isLost = (value: number, source: string): boolean => {
  const digits = source.replace(/e.*$/i, "").replace(/[-.]/g, "").replace(/^0+/, "").length
  return String(value) !== source && (digits > 15 || !Number.isFinite(value) || (value === 0 && digits > 0))
}

const plain = (text: string): unknown => JSON.parse(text)

/** The reviver costs time, so only texts that may need it are parsed with it. */
const exact = (text: string): unknown =>
  JSON.parse(text, (_, value: unknown, context?: { readonly source?: string }) => {
    const source = context?.source ?? ""
    return typeof value === "number" && isLost(value, source) ? rawJSON(source) : value
  })

/** Deeper texts are refused: some megabytes of opening brackets would cost `JSON.parse` a second and 100 MB. */
const maxDepth = 256

/** The reason in errors for a text that `isTooDeep`. */
export const tooDeep = `nested deeper than ${maxDepth} levels`

/** Parses JSON. `None` if the text is not JSON or is too deep. */
export const parse = (text: string): Option.Option<unknown> => isTooDeep(text) ? Option.none() : parseAny(text)

const parseAny = Option.liftThrowable((text: string) => mayLose.test(text) ? exact(text) : plain(text))

export const stringify = (value: unknown): string => JSON.stringify(value)

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
