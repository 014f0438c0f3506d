/** Names in a file that the gateway does not know: what was probably meant, and which belong to other programs. */

/** What MCP clients call the gateway's names. People copy their files from one program to the next. */
const renamed = new Map([
  ["servers", "mcpServers"],
  ["context_servers", "mcpServers"],
  ["httpUrl", "url"],
  ["serverUrl", "url"],
  ["environment", "env"],
  ["transport", "type"]
])

/** Names in an entry that only clients read. The gateway ignores them with a warning. */
export const ofClients: ReadonlyArray<string> = ["autoApprove", "alwaysAllow", "trust", "description", "timeout"]
  .concat(["envFile", "dev", "gallery", "version", "source"])

/** The known name that an unknown one probably stands for: another client's name for it, or one that differs in few letters. */
export const meantBy = (name: string, known: ReadonlyArray<string>): string | undefined => {
  const other = renamed.get(name)
  if (other !== undefined && known.includes(other)) return other
  const [nearest] = known.map((each) => ({ each, distance: distance(letters(name), letters(each)) }))
    .toSorted((a, b) => a.distance - b.distance)
  // Two slips would replace most of a short name.
  return nearest !== undefined && nearest.distance <= Math.min(2, name.length / 3) ? nearest.each : undefined
}

/** The fault of an unknown name: the name that was probably meant, or else what to do. */
export const unknown = (name: string, known: ReadonlyArray<string>, otherwise: string): string => {
  const meant = meantBy(name, known)
  return `unknown; ${meant === undefined ? otherwise : `did you mean ${meant}?`}`
}

/** Makes `max-sessions`, `MAX_SESSIONS` and `maxSessions` equal. */
const letters = (name: string): string => name.toLowerCase().replace(/[-_]/g, "")

/** The Levenshtein distance: how many letters to add, remove or replace. */
const distance = (a: string, b: string): number => {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (const letter of a) {
    const next = [(row[0] ?? 0) + 1]
    for (const [j, other] of [...b].entries()) {
      const [diagonal = 0, above = 0, left = 0] = [row[j], row[j + 1], next[j]]
      next.push(Math.min(above + 1, left + 1, diagonal + (letter === other ? 0 : 1)))
    }
    row = next
  }
  return row.at(-1) ?? 0
}
