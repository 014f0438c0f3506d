/** README.md, for the tests that do what it tells to do. */
import { readFileSync } from "node:fs"

export const readme = readFileSync(new URL("../../README.md", import.meta.url), "utf8")

/** Its blocks of a language, in order. */
export const blocks = (language: string): ReadonlyArray<string> =>
  [...readme.matchAll(new RegExp(`^\`\`\`${language}\\n([\\s\\S]*?)^\`\`\``, "gm"))].map(([, text = ""]) => text)

/** The only one with these words. */
export const block = (language: string, words: string): string => {
  const [found, ...others] = blocks(language).filter((text) => text.includes(words))
  if (found === undefined || others.length > 0) {
    throw new Error(`README.md has not one block of ${language} with ${words}`)
  }
  return found
}
