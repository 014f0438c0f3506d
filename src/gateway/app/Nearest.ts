/** Guesses which known name a misspelt one stands for. */

/**
 * The nearest known name, at most two slips away, if there is one. A slip is an extra, missing or wrong letter, or two exchanged
 * neighbours. A name gets one slip for each three letters: two slips would replace most of a short name.
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

/** Normalizes a name: `max-sessions`, `MAX_SESSIONS` and `maxSessions` become equal, as do a name and its common synonym. */
const letters = (name: string): string =>
  name.toLowerCase().replace(/[-_]/g, "").replace(/ttl|(?<=idle)timeout/, "timetolive").replace(/^cmd$/, "command")

const slips = 2

/** The Levenshtein distance, with Damerau's exchange of neighbours. */
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

/** The known name that contains all words of this one, such as `tlsCert` for `cert`. `undefined` if several do. */
export const wholeOf = (name: string, known: ReadonlyArray<string>): string | undefined => {
  const words = (each: string) => each.split(/(?=[A-Z])/).map((word) => word.toLowerCase())
  const found = known.filter((each) => words(name).every((word) => words(each).includes(word)))
  return found.length === 1 ? found[0] : undefined
}
