/** The documents: their links, and the source that they quote. `examples.test.ts` runs their `ts` blocks. */
import { execFileSync } from "node:child_process"
import { readFileSync } from "node:fs"
import { join, normalize } from "node:path"
import { assert, describe, it } from "vitest"

const root = new URL("..", import.meta.url).pathname
const read = (file: string) => readFileSync(join(root, file), "utf8")

/** The files that `npm pack` would ship, without a build. */
const packed = (): ReadonlyArray<string> => {
  const output = execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], {
    cwd: root,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"]
  })
  const packages: ReadonlyArray<{ readonly files: ReadonlyArray<{ readonly path: string }> }> = JSON.parse(output)
  return packages.flatMap(({ files }) => files.map(({ path }) => path))
}

const withoutCode = (text: string) => text.replace(/^```[\s\S]*?^```/gm, "")

/** The anchors of a document, as GitHub makes them from its headings. */
const anchorsOf = (file: string) =>
  [...withoutCode(read(file)).matchAll(/^#+ (.*)$/gm)].map(([, heading = ""]) =>
    heading.toLowerCase().replace(/[^\w\- ]/g, "").replaceAll(" ", "-")
  )

describe("the documents", () => {
  it("link only to files of the package, and to headings that exist", () => {
    const files = packed()
    const folders = new Set(files.flatMap((file) => file.split("/").map((_, i, parts) => parts.slice(0, i).join("/"))))
    const documents = files.filter((file) => file.endsWith(".md"))
    assert.includeMembers(documents, [
      "README.md",
      "src/README.md",
      "src/gateway/README.md",
      "src/gateway/REFERENCE.md",
      "src/gateway/cluster/README.md",
      "src/internal/README.md",
      "test/README.md",
      "test/bench/README.md"
    ])
    const broken = documents.flatMap((file) =>
      [...withoutCode(read(file)).matchAll(/\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)/g)]
        .filter(([, path = "", anchor]) => {
          const target = path === "" ? file : normalize(join(file, "..", path)).replace(/\/$/, "")
          if (!files.includes(target)) return !folders.has(target)
          return anchor !== undefined && !anchorsOf(target).includes(anchor)
        })
        .map(([link]) => `${file}: ${link}`)
    )
    assert.deepStrictEqual(broken, [])
  })

  it("quote the source as it is", () => {
    const lines = (text: string) => text.split("\n").map((line) => line.trim()).join("\n")
    const quotes = [...read("README.md").matchAll(/^```ts source\n([\s\S]*?)^```/gm)].map(([, code = ""]) =>
      lines(code)
    )
    assert.lengthOf(quotes, 1)
    for (const quote of quotes) assert.include(lines(read("src/SessionPool.ts")), quote)
  })
})
