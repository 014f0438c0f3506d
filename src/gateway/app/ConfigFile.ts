/**
 * Reads a configuration file: JSON, in which comments and a comma after the last entry are allowed. No message quotes the text,
 * because it may hold secrets.
 */
import * as Jsonc from "jsonc-parser"
import * as Masking from "../settings/Masking.ts"
import type { Fault } from "../transports/Kinds.ts"

/** The value of a file, or `undefined` if it is not JSON. Reports the first place that is not JSON, or every repeated name. */
export const read = (name: string, text: string, fault: Fault): unknown => {
  const place = (offset: number): string => {
    const lines = text.slice(0, offset).split("\n")
    return `line ${lines.length}, column ${(lines.at(-1) ?? "").length + 1}`
  }
  const errors: Array<Jsonc.ParseError> = []
  const root = Jsonc.parseTree(text, errors, { allowTrailingComma: true })
  const [first] = errors
  if (root === undefined || first !== undefined) {
    const what = first === undefined ? "it is empty" : reason(first)
    return void fault(name, `the file is not JSON: ${what} (${place(first?.offset ?? 0)})`)
  }
  for (const { offset, path } of repeats(root, "")) {
    fault(path, `appears twice in its object (again at ${place(offset)}); only the last would count`)
  }
  return Jsonc.getNodeValue(root)
}

/** Turns `CommaExpected` into `comma expected`. */
const reason = ({ error }: Jsonc.ParseError): string =>
  Jsonc.printParseErrorCode(error).replace(/(?!^)[A-Z]/g, " $&").toLowerCase()

/** Every name that its object already has. */
const repeats = (node: Jsonc.Node, path: string): ReadonlyArray<{ readonly path: string; readonly offset: number }> => {
  const names = new Set<unknown>()
  return (node.children ?? []).flatMap((child) => {
    const [name, value] = child.children ?? []
    if (child.type !== "property" || name === undefined || value === undefined) return repeats(child, path)
    const given = String(name.value)
    const at = path === "" ? Masking.printable(given) : `${path}${Masking.member(given)}`
    const again = names.has(name.value) ? [{ path: at, offset: name.offset }] : []
    names.add(name.value)
    return [...again, ...repeats(value, at)]
  })
}
