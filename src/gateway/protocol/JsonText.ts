/**
 * Edits JSON as text, without parsing it. The unedited parts stay as they are, also numbers that a double cannot hold. The texts
 * must be valid JSON, except for `isDeeper`.
 */

/** Whether arrays and objects in a text nest deeper than `levels`. One pass, which stops at the first level beyond. */
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

/** A member of an object: its name, and the unchanged text of its value. */
export type Member = readonly [name: string, value: string]

/** The texts of the elements of an array. */
export const elements = (array: string): ReadonlyArray<string> => parts(array)

/** The members of an object, in order. May have a name twice; then the last one counts, as for `JSON.parse`. Empty for other texts. */
export const members = (object: string): ReadonlyArray<Member> =>
  (isObject(object) ? parts(object) : []).map((part): Member => {
    const end = endOfString(part, 0)
    // `JSON.parse` of a JSON string returns a string. `String` only satisfies the compiler.
    const name = String(JSON.parse(part.slice(0, end)))
    return [name, part.slice(part.indexOf(":", end) + 1).trim()]
  })

/** The text of a member's value; `undefined` if there is no such member. */
export const member = (object: string, name: string): string | undefined =>
  members(object).findLast((each) => each[0] === name)?.[1]

/** Whether a JSON text is an object. */
export const isObject = (text: string): boolean => text.trimStart().startsWith("{")

/** Sets members of an object. A change to `undefined` removes the member. */
export const edit = (object: string, changes: Readonly<Record<string, string | undefined>>): string => {
  // Keeps only the last member of each name, because another reader might use the first.
  const kept = [...new Map(members(object))].filter(([name]) => !Object.hasOwn(changes, name))
  const given = Object.entries(changes).flatMap(([name, value]) => value === undefined ? [] : [[name, value] as const])
  return make([...kept, ...given])
}

/** Makes the text of an object from its members. */
export const make = (members: ReadonlyArray<Member>): string =>
  `{${members.map(([name, value]) => `${JSON.stringify(name)}:${value}`).join(",")}}`

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

/** The elements of an array, or the members of an object, as texts. */
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
