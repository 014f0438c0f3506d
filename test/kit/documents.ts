/** Reads the code blocks of a document, for the tests that run them. A document is named by its path from the root. */
import { readFileSync } from "node:fs"

export const read = (file: string): string => readFileSync(new URL(`../../${file}`, import.meta.url), "utf8")

/** The blocks of a language, in order. */
export const blocks = (file: string, language: string): ReadonlyArray<string> =>
  [...read(file).matchAll(new RegExp(`^\`\`\`${language}\\n([\\s\\S]*?)^\`\`\``, "gm"))].map(([, text = ""]) => text)

/** The only block with these words. */
export const block = (file: string, language: string, words: string): string => {
  const [found, ...others] = blocks(file, language).filter((text) => text.includes(words))
  if (found === undefined || others.length > 0) {
    throw new Error(`${file} must have exactly one block of ${language} with ${words}`)
  }
  return found
}
