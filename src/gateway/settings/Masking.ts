/** Hides secrets in logs, errors, traces and on the page, and removes control characters that a terminal would obey. */
import { Option } from "effect"
import { stripVTControlCharacters } from "node:util"

/** Shorter values are not hidden, because they occur in ordinary text too. */
const shortest = 6

/** Common values that are not hidden, because they are not secret and occur in ordinary text. */
const common = new Set(
  ["default", "development", "disabled", "enabled", "localhost", "127.0.0.1", "production", "staging", "testing"]
    .concat(["verbose", "warning"])
)

/** A longer secret is masked in pieces, so a part of one is masked too and patterns stay short. */
const pieceLength = 192

/** Longest match, in characters. Code that cuts a text before masking must keep this much behind the cut. */
export const longest = 2000

/** Makes a function that hides these values, and whatever looks like a credential. */
export const make = (secrets: ReadonlyArray<string>): (text: string) => string => {
  const pieces = [...new Set(secrets.flatMap(partsOf).flatMap(piecesOf))]
    .filter((piece) => piece.length >= shortest && !common.has(piece))
  // One pattern for each piece. Compile time grows faster than the pattern's length, and a too large one throws.
  const known = pieces.map((piece) => new RegExp([textForm(piece), ...base64Forms(piece)].join("|"), "g"))
  return (text) =>
    withoutMatches(text, known)
      .replace(/\b(authorization["']?\s*[:=]\s*["']?)(?:(bearer|basic)\s+)?[^\s"',;]+/gi, "$1***")
      .replace(/\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}/gi, "$1 ***")
      // Leaves out the scheme, because the search for its start takes quadratic time in a long word.
      .replace(/:\/\/[^\s/@:]*:[^\s/@]*@/g, "://***@")
}

/** Replaces every match of the patterns by `***`. Matches that overlap or touch become one. */
const withoutMatches = (text: string, patterns: ReadonlyArray<RegExp>): string => {
  const matches = patterns
    .flatMap((pattern) =>
      Array.from(text.matchAll(pattern), ({ 0: match, index }) => ({ from: index, to: index + match.length }))
    )
    .toSorted((a, b) => a.from - b.from)
  let result = ""
  let end = 0
  for (const { from, to } of matches) {
    if (from > end || result === "") result += `${text.slice(end, from)}***`
    end = Math.max(end, to)
  }
  return result + text.slice(end)
}

/** The secret parts of a value: each of its lines, the password of a URL, the token of `Bearer TOKEN`. */
const partsOf = (secret: string): ReadonlyArray<string> => {
  const token = /^(?:basic|bearer|token) +(\S+)$/i.exec(secret)?.[1] ?? ""
  return [...secret.split(/[\r\n]+/).map((line) => line.trim()), ...passwordsOf(secret), token]
}

/** The password of a URL, as written and percent-decoded. */
export const passwordsOf = (url: string): ReadonlyArray<string> => {
  const password = URL.parse(url)?.password ?? ""
  return [password, percentDecoded(password)]
}

const piecesOf = (text: string): ReadonlyArray<string> =>
  // A piece never ends within a run of backslashes. It would match the whole run, and the next piece would not match. A rest that
  // is too short for a piece of its own stays with the last piece.
  text.match(new RegExp(`[^]{0,${pieceLength - 1}}(?:[^\\\\]|$)(?:[^]{1,${shortest - 1}}$)?`, "g")) ?? []

/** Decodes a percent-encoded text. Returns any other text unchanged. */
export const percentDecoded = (text: string): string =>
  Option.getOrElse(Option.liftThrowable(decodeURIComponent)(text), () => text)

/**
 * A pattern for a text in which each character may be percent-encoded or escaped as in JSON, also more than once. A run of
 * backslashes and the character behind it share one pattern. Two patterns could both match the backslashes that escape the
 * character, and would backtrack exponentially.
 */
const textForm = (text: string): string =>
  text.replace(/(\\*)([^\\]?)/gu, (_, run: string, character: string) => {
    // No encoding changes these characters.
    const form = /^[A-Za-z0-9_~.-]?$/.test(character)
      ? (count: number) => `${backslashes(count, count * 8)}${literal(character)}`
      : (count: number) => escapedForm(character, count)
    return run === "" ? form(0) : `(?:${form(run.length)}|${percentForm(run)}${form(0)})`
  })

/** A pattern for a character behind `count` backslashes. It does not tie each form to a number of backslashes, to stay short. */
const escapedForm = (character: string, count: number): string => {
  const units = [...Array(character.length).keys()]
    .map((at) => `u${anyCase(character.charCodeAt(at).toString(16).padStart(4, "0"))}`)
  const others = character === " " ? ["\\+"] : character === "\t" ? ["t"] : []
  const forms = [literal(character), percentForm(character), units.join("\\\\{1,7}"), ...others]
  return `${backslashes(count, count * 8 + 7)}(?:${forms.join("|")})`
}

const backslashes = (least: number, most: number): string => most === 0 ? "" : `\\\\{${least},${most}}`

const percentForm = (text: string): string =>
  Buffer.from(text).toString("hex").replace(/../g, (hex) => `%(?:25){0,2}${anyCase(hex)}`)

/** Patterns for a text inside a base64 string, one for each of the three byte offsets at which the text may begin. */
const base64Forms = (text: string): ReadonlyArray<string> => {
  const bytes = Buffer.from(text)
  return [0, 1, 2].map((before) => {
    const encoded = Buffer.concat([Buffer.alloc(before), bytes]).toString("base64url")
    // Drops the first and last characters, which also encode neighbouring bytes.
    const whole = encoded.slice(before === 0 ? 0 : before + 1, Math.floor((before + bytes.length) * 8 / 6))
    // The last byte may share a character with the next one. Otherwise this would match the first character of the next piece.
    const shared = (before + bytes.length) % 3 === 0 ? "" : "[\\w+/-]?={0,2}"
    return `${whole.replace(/[-_]/g, (character) => base64Special[character] ?? "")}${shared}`
  })
}

const base64Special: Readonly<Record<string, string>> = {
  "-": "(?:[-+]|%(?:25){0,2}2[bB])",
  "_": "(?:[_/]|\\\\{1,7}/|%(?:25){0,2}2[fF])"
}

const anyCase = (hex: string): string => hex.replace(/[a-f]/g, (letter) => `[${letter}${letter.toUpperCase()}]`)

const literal = (character: string): string => character.replace(/[\\^$.*+?()[\]{}|/-]/, "\\$&")

/** Removes colours, control characters except tabs and line breaks, and characters that change the text direction. */
export const plain = (text: string): string =>
  stripVTControlCharacters(text).replace(
    // oxlint-disable-next-line no-control-regex -- the pattern finds control characters
    /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]/g,
    ""
  )

/** Escapes control characters and characters that change the text direction, for names in messages. */
export const printable = (text: string): string =>
  JSON.stringify(text).slice(1, -1).replace(
    /[\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`
  )

/** The name of a member as a part of a path in messages: `.name`, or `["na.me"]`, so that paths of different members differ. */
export const member = (name: string): string => /[.[]/.test(name) ? `["${printable(name)}"]` : `.${printable(name)}`

/** The first characters of a session's id, without the replica's name: enough to tell sessions apart, too few to use one. */
export const shortId = (id: string): string => id.replace(/^r[0-9a-f]{10}-/, "").slice(0, 8)
