/** Names that the gateway does not know: the name that was probably meant, and the names that only MCP clients read. */

/** Names of MCP clients, and the gateway's names for the same. People copy files from one program to the next. */
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
  // In a short name, two added, removed or replaced letters would leave too little.
  return [0, 1, 2].filter((slips) => slips <= name.length / 3)
    .flatMap((slips) => known.filter((each) => isNear(letters(name), letters(each), slips)))[0]
}

/** The fault of an unknown name: the name that was probably meant, or else what to do. */
export const unknown = (name: string, known: ReadonlyArray<string>, otherwise: string): string => {
  const meant = meantBy(name, known)
  return `unknown; ${meant === undefined ? otherwise : `did you mean ${meant}?`}`
}

/** Makes `max-sessions`, `MAX_SESSIONS` and `maxSessions` equal. */
const letters = (name: string): string => name.toLowerCase().replace(/[-_]/g, "")

/** True if the names differ in at most this many letters that are added, removed or replaced. */
const isNear = (a: string, b: string, slips: number): boolean => {
  if (a === b) return true
  if (a[0] === b[0]) return isNear(a.slice(1), b.slice(1), slips)
  const [restA, restB] = [a.slice(1), b.slice(1)]
  return slips > 0 && (isNear(restA, b, slips - 1) || isNear(a, restB, slips - 1) || isNear(restA, restB, slips - 1))
}
