/** The folders of the gateway: allowed imports, and the largest file. */
import { globSync, readFileSync } from "node:fs"
import { dirname, join, relative } from "node:path"
import { assert, describe, it } from "vitest"

const root = new URL("../../src/gateway/", import.meta.url).pathname

/** The folders from the top. A file imports files of its own folder and of folders further down. `.` is Gateway.ts. */
const floors = ["app", ".", "fronts", "operators", "auth", "cluster"]
  .concat(["sessions", "conversation", "transports", "telemetry", "settings", "protocol"])
/** The largest file, in lines of code. */
const maxLines = 400

const files = globSync("**/*.ts", { cwd: root })
const text = (file: string) => readFileSync(join(root, file), "utf8")
const floorOf = (file: string) => floors.indexOf(file.includes("/") ? file.slice(0, file.indexOf("/")) : ".")
const importsOf = (file: string) =>
  [...text(file).matchAll(/(?:from|import\() ?"(\.[^"]+)"/g)]
    .map(([, path = ""]) => relative(root, join(root, dirname(file), path)))
    .filter((path) => !path.startsWith(".."))

describe("the folders of the gateway", () => {
  it("every folder is known, and imports only from itself and from folders further down", () => {
    const wrong = files.filter((file) => file !== "bin.ts").flatMap((file) =>
      importsOf(file)
        .filter((imported) => floorOf(file) < 0 || floorOf(imported) < floorOf(file))
        .map((imported) => `${file} imports ${imported}`)
    )
    assert.deepStrictEqual(wrong, [])
    assert.isAbove(files.flatMap(importsOf).length, 200)
  })

  it("no files import each other in a circle", () => {
    const cleared = new Set<string>()
    const circles = (path: ReadonlyArray<string>, file: string): ReadonlyArray<string> => {
      if (path.includes(file)) return [[...path, file].join(" > ")]
      if (cleared.has(file)) return []
      const found = importsOf(file).flatMap((imported) => circles([...path, file], imported))
      cleared.add(file)
      return found
    }
    assert.deepStrictEqual(files.flatMap((file) => circles([], file)), [])
  })

  it("only the fronts, the operators and authentication know of HTTP requests to the gateway", () => {
    const below = floors.slice(floors.indexOf("cluster"))
    const wrong = files.filter((file) => below.includes(dirname(file)) && /\bHttpServer|HttpRouter/.test(text(file)))
    assert.deepStrictEqual(wrong, [])
  })

  it(`no file has more than ${maxLines} lines of code`, () => {
    const linesOf = (file: string) =>
      text(file).replace(/^[ \t]*\/\*[\s\S]*?\*\//gm, "").split("\n").filter((line) =>
        /^\s*[^\s/]|^\s*\/[^/]/.test(line)
      )
    assert.deepStrictEqual(files.filter((file) => linesOf(file).length > maxLines), [])
  })
})
