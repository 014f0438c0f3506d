/** Which of the known names somebody may have meant. */

/**
 * The known name that two slips or fewer lie between, if there is one; a slip is a letter too many, too few or another one, or two
 * that are exchanged. Of a short name two would be most of it.
 */
export const nearest = (name: string, known: ReadonlyArray<string>): string | undefined => {
  const said = letters(name)
  const [best] = known
    .map((each) => ({ each, letters: letters(each) }))
    .filter((each) => Math.abs(each.letters.length - said.length) <= slips)
    .map(({ each, letters }) => ({ each, distance: distance(said, letters) }))
    .toSorted((a, b) => a.distance - b.distance)
  return best !== undefined && best.distance <= Math.min(slips, said.length / 3) ? best.each : undefined
}

/** `max-sessions`, `MAX_SESSIONS` and `maxSessions` are the same letters, and so are a name and what others call it. */
const letters = (name: string): string =>
  name.toLowerCase().replace(/[-_]/g, "").replace(/ttl|(?<=idle)timeout/, "timetolive").replace(/^cmd$/, "command")

const slips = 2

/** Of Levenshtein, with Damerau's exchange of neighbours. */
const distance = (a: string, b: string): number => {
  let before: ReadonlyArray<number> = []
  let row = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (const [i, letter] of [...a].entries()) {
    const next = [i + 1]
    for (const [j, other] of [...b].entries()) {
      const [above = 0, diagonal = 0, left = 0] = [row[j + 1], row[j], next[j]]
      const isExchanged = i > 0 && j > 0 && letter === b[j - 1] && other === a[i - 1]
      const exchanged = isExchanged ? (before[j - 1] ?? 0) + 1 : Infinity
      next.push(Math.min(above + 1, left + 1, diagonal + (letter === other ? 0 : 1), exchanged))
    }
    before = row
    row = next
  }
  return row.at(-1) ?? 0
}

/** The only known name that has the words of this one, such as `tlsCert` for `cert`. */
export const wholeOf = (name: string, known: ReadonlyArray<string>): string | undefined => {
  const words = (each: string) => each.split(/(?=[A-Z])/).map((word) => word.toLowerCase())
  const found = known.filter((each) => words(name).every((word) => words(each).includes(word)))
  return found.length === 1 ? found[0] : undefined
}
