/**
 * Edits JSON without reading and writing it anew: what is not touched stays as it came, numbers that no double holds
 * included. The texts must be valid JSON, except for `isDeeper`.
 */

/** Whether arrays and objects are nested deeper than this, in any text. One pass, which stops at the first level too many. */
export const isDeeper = (text: string, levels: number): boolean => {
  let depth = 0
  for (let i = 0; i < text.length; i++) {
    const character = text[i]
    if (character === "\"") i = endOfString(text, i) - 1
    else if (character === "[" || character === "{") {
      if (++depth > levels) return true
    } else if (character === "]" || character === "}") depth--
  }
  return false
}

/** A member of an object: its name, and the text of its value as it came. */
export type Member = readonly [name: string, value: string]

/** The texts of the elements of an array. */
export const elements = (array: string): ReadonlyArray<string> => parts(array)

/** The members of an object; of those with the same name the last counts, as for `JSON.parse`. What is no object has none. */
export const members = (object: string): ReadonlyArray<Member> =>
  (isObject(object) ? parts(object) : []).map((part): Member => {
    const end = endOfString(part, 0)
    // A JSON string, which is a string for `JSON.parse`.
    const name = String(JSON.parse(part.slice(0, end)))
    return [name, part.slice(part.indexOf(":", end) + 1).trim()]
  })

/** The text of a member's value. */
export const member = (object: string, name: string): string | undefined =>
  members(object).findLast((each) => each[0] === name)?.[1]

/** Whether a text is that of an object. */
export const isObject = (text: string): boolean => text.trimStart().startsWith("{")

/** The same object with other values for these members; without those whose value is `undefined`. */
export const edit = (object: string, changes: Readonly<Record<string, string | undefined>>): string => {
  // Whoever reads it may take the first of two members where we have taken the last.
  const kept = [...new Map(members(object))].filter(([name]) => !Object.hasOwn(changes, name))
  const given = Object.entries(changes).flatMap(([name, value]) => value === undefined ? [] : [[name, value] as const])
  return make([...kept, ...given])
}

/** The text of an object with these members. */
export const make = (members: ReadonlyArray<Member>): string =>
  `{${members.map(([name, value]) => `${JSON.stringify(name)}:${value}`).join(",")}}`

/** Index after the end of the string that begins at `start`; that of the text, if the string does not end. */
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

/** What stands between the brackets of an array or object, split at its commas. */
const parts = (text: string): ReadonlyArray<string> => {
  const found: Array<string> = []
  let depth = 0
  let start = 0
  for (let i = 0; i < text.length; i++) {
    const character = text[i]
    if (character === "\"") i = endOfString(text, i) - 1
    else if (character === "[" || character === "{") {
      if (depth++ === 0) start = i + 1
    } else if (depth === 1 && (character === "," || character === "]" || character === "}")) {
      found.push(text.slice(start, i).trim())
      start = i + 1
    }
    if (character === "]" || character === "}") depth--
  }
  return found.filter((part) => part !== "")
}
