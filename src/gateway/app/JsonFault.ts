/**
 * Finds where a text is not JSON, and why. The message of `JSON.parse` does not always have the place, and sometimes quotes the
 * text, which may hold secrets. The reasons here never quote the text.
 */

export interface JsonFault {
  /** Counts from 1, as editors do. */
  readonly line: number
  readonly column: number
  readonly reason: string
}

/** The first fault of a text. `undefined` if the text is JSON. */
export const find = (text: string): JsonFault | undefined => scan(text, () => {})

/** A name that its object already has. `JSON.parse` silently keeps only the last one. */
export interface Repeat {
  /** The names from the root down to this name, which is the last. Indexes of arrays are left out. */
  readonly path: ReadonlyArray<string>
  readonly line: number
  readonly column: number
}

/** Every repeated name in the objects of a JSON text. */
export const repeats = (text: string): ReadonlyArray<Repeat> => {
  const found: Array<Repeat> = []
  const open: Array<{ readonly names: Set<string>; name: string | undefined }> = []
  scan(text, (state, at, end) => {
    const first = text.charAt(at)
    const inner = open.at(-1)
    if (first === "{" || first === "[") open.push({ names: new Set(), name: undefined })
    else if (first === "}" || first === "]") open.pop()
    else if (inner !== undefined && (state === "name" || state === "name or }")) {
      inner.name = String(JSON.parse(text.slice(at, end)))
      if (inner.names.has(inner.name)) {
        found.push({ path: open.flatMap(({ name }) => name ?? []), ...place(text, at) })
      }
      inner.names.add(inner.name)
    }
  })
  return found
}

/** Reads a text token by token, up to the first fault. */
const scan = (text: string, onToken: (state: State, at: number, end: number) => void): JsonFault | undefined => {
  const open: Array<"{" | "["> = []
  let state: State = "value"
  let comma = -1
  for (let at = skip(blank, text, 0); at < text.length; at = skip(blank, text, at)) {
    const end = skip(token, text, at)
    const first = end === at ? "" : text.charAt(at)
    const next: State | undefined = first === "" ? undefined : following(state, first, open)
    if (next === undefined) {
      // Reported at the comma, which has to go, not at the bracket.
      const isTrailing = comma >= 0 && (first === "}" || first === "]")
      return isTrailing
        ? { ...place(text, comma), reason: trailing }
        : { ...place(text, at), reason: reasonAt(text, at, end, state) }
    }
    onToken(state, at, end)
    comma = first === "," ? at : -1
    state = next
    at = end
  }
  return state === "end" ? undefined : { ...place(text, text.length), reason: "it ends before it is complete" }
}

/** What must come next. */
type State = "value" | "value or ]" | "name" | "name or }" | ":" | ", or a bracket" | "end"

/** What must come after a token with this first character. `undefined` if the token is not allowed here. */
const following = (state: State, first: string, open: Array<"{" | "[">): State | undefined => {
  const afterValue = (): State => open.length === 0 ? "end" : ", or a bracket"
  const inner = open.at(-1)
  const closes = first === "}" && inner === "{" && (state === "name or }" || state === ", or a bracket") ||
    first === "]" && inner === "[" && (state === "value or ]" || state === ", or a bracket")
  if (closes) {
    open.pop()
    return afterValue()
  }
  switch (state) {
    case "value":
    case "value or ]":
      if (first === "{" || first === "[") {
        open.push(first)
        return first === "{" ? "name or }" : "value or ]"
      }
      return "]},:".includes(first) ? undefined : afterValue()
    case "name":
    case "name or }":
      return first === "\"" ? ":" : undefined
    case ":":
      return first === ":" ? "value" : undefined
    case ", or a bracket":
      return first === "," ? inner === "{" ? "name" : "value" : undefined
    case "end":
      return undefined
  }
}

const blank = /[ \t\n\r]*/y

/** A token. A string may hold every character from the space on, except the quote and the backslash. */
const token =
  /[{}[\],:]|"[ !#-[\]-\uffff]*(?:\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})[ !#-[\]-\uffff]*)*"|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null/y

/** The end of the match that begins at `at`. Returns `at` if there is none. */
const skip = (pattern: RegExp, text: string, at: number): number => {
  pattern.lastIndex = at
  return pattern.test(text) ? pattern.lastIndex : at
}

const trailing = "a comma after the last entry; remove it"

const reasonAt = (text: string, at: number, end: number, state: State): string => {
  if (/^(?:\/\/|\/\*|#)/.test(text.slice(at, at + 2))) return "a comment, which JSON does not allow; remove it"
  if (text[at] === "\"" && end === at) {
    return "this string has no end on its line, or a control character, or a backslash that is not written \\\\"
  }
  switch (state) {
    case "value":
    case "value or ]":
      return "expected a value: a string in double quotes, a number, true, false, null, {…} or […]"
    case "name":
    case "name or }":
      return "expected a name in double quotes"
    case ":":
      return "expected a colon"
    case ", or a bracket":
      return "expected a comma or the closing bracket"
    case "end":
      return "nothing may follow the last closing bracket"
  }
}

const place = (text: string, at: number) => {
  const lines = text.slice(0, at).split("\n")
  return { line: lines.length, column: (lines.at(-1) ?? "").length + 1 }
}
