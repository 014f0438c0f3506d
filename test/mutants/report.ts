/** Prints the score of a group and its survivors, known and new. */
import { readFileSync } from "node:fs"
import type { Group } from "./groups.ts"
import { survivors as known } from "./survivors.ts"

interface Mutant {
  readonly mutatorName: string
  readonly replacement: string
  readonly status: string
  readonly location: Record<"start" | "end", { readonly line: number; readonly column: number }>
}

interface Report {
  readonly files: Record<string, { readonly source: string; readonly mutants: ReadonlyArray<Mutant> }>
}

const short = (text: string): string => {
  const line = text.replace(/\s+/g, " ").trim()
  return line.length > 70 ? `${line.slice(0, 69)}…` : line
}

/**
 * Names a mutant by its file, the top-level declaration around it, the original text and the replacement. The name has no line number, so
 * `survivors.ts` stays valid when code above changes.
 */
const nameOf = (file: string, lines: ReadonlyArray<string>, { location, replacement }: Mutant): string => {
  const { end, start } = location
  const covered = lines.slice(start.line - 1, end.line)
  const last = covered.length - 1
  const original = covered
    .map((line, i) => line.slice(i === 0 ? start.column - 1 : 0, i === last ? end.column - 1 : undefined))
    .join(" ")
  const declaration = lines.slice(0, start.line).findLast((line) => /^(export )?(const|class|interface) /.test(line))
  const within = /(?:const|class) (\w+)/.exec(declaration ?? "")?.[1] ?? ""
  return `${file.replace(/^src\//, "")} ${within}: ${short(original)} → ${short(replacement)}`
}

/** A second mutant of the same name in the same file gets a number. */
const numbered = <T extends { readonly name: string }>(mutants: ReadonlyArray<T>): ReadonlyArray<T> => {
  const seen = new Map<string, number>()
  return mutants.map((mutant) => {
    const count = (seen.get(mutant.name) ?? 0) + 1
    seen.set(mutant.name, count)
    return count === 1 ? mutant : { ...mutant, name: `${mutant.name} (${count})` }
  })
}

const counted = ["Killed", "Timeout", "Survived", "NoCoverage"]
const killed = ["Killed", "Timeout"]

/** Prints the score and the survivors; false if the score is below the threshold, or a survivor is not listed. */
export const print = (group: Group, path: string): boolean => {
  const { files } = JSON.parse(readFileSync(path, "utf8")) as Report
  const listed = new Map<string, string>()
  for (const { mutants, why } of known) for (const mutant of mutants) listed.set(mutant, why)
  const all = Object.entries(files).flatMap(([file, { mutants, source }]) => {
    const lines = source.split("\n")
    const inOrder = mutants.toSorted(({ location: { start: x } }, { location: { start: y } }) =>
      x.line - y.line || x.column - y.column
    )
    return numbered(inOrder.map((mutant) => ({ ...mutant, file, name: nameOf(file, lines, mutant) })))
  })
  const valid = all.filter(({ status }) => counted.includes(status))
  const dead = valid.filter(({ status }) => killed.includes(status))
  const survivors = valid.filter(({ status }) => !killed.includes(status))
  const fresh = survivors.filter(({ name }) => !listed.has(name))
  const score = 100 * dead.length / valid.length
  const left = all.length - valid.length
  console.log(
    `\n${group.name}: ${score.toFixed(2)} % of ${valid.length} mutants killed (at least ${group.threshold} %), ` +
      `${survivors.length - fresh.length} of ${survivors.length} survivors listed with a reason; ${left} not run`
  )
  for (const { file, location, mutatorName, name, status } of fresh) {
    console.log(`  new: ${name}  (${mutatorName}, ${status}, ${file}:${location.start.line})`)
  }
  const gone = [...listed.keys()].filter((name) =>
    all.some((mutant) => mutant.name === name) && !survivors.some((mutant) => mutant.name === name)
  )
  for (const name of gone) console.log(`  listed, but killed: ${name}`)
  // Listed mutants of the files of this run that no longer exist.
  const ran = Object.keys(files).map((file) => file.replace(/^src\//, ""))
  const stale = [...listed.keys()].filter((name) =>
    ran.some((file) => name.startsWith(`${file} `)) && !all.some((mutant) => mutant.name === name)
  )
  for (const name of stale) console.log(`  listed, but not there: ${name}`)
  return score >= group.threshold && fresh.length === 0 && stale.length === 0
}
