/** Hides secrets in what people see: logs, errors, metrics and the page. */

/** Shorter values are not hidden: they would tear holes into every text. */
const shortest = 4

/** Makes a function that hides these values, and whatever looks like a credential. */
export const make = (secrets: ReadonlyArray<string>): (text: string) => string => {
  // The longest first, so that no part of one is left over by another.
  const known = [...new Set(secrets)].filter((secret) => secret.length >= shortest).toSorted((a, b) =>
    b.length - a.length
  )
  return (text) => {
    let masked = text
    for (const secret of known) masked = masked.replaceAll(secret, "***")
    return masked
      .replace(/\b(authorization["']?\s*[:=]\s*["']?)(?:(bearer|basic)\s+)?[^\s"',;]+/gi, "$1***")
      .replace(/\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}/gi, "$1 ***")
      .replace(/([a-z][a-z0-9+.-]*:\/\/)[^\s/@:]*:[^\s/@]*@/gi, "$1***@")
  }
}

/** Enough of a session's id to tell it from others, too little to use it. The name of its replica says nothing of it. */
export const shortId = (id: string): string => id.replace(/^r[0-9a-f]{10}-/, "").slice(0, 8)
