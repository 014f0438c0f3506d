/** Shows that the explorer can fail: it finds every broken variant of the pool, and shrinks the failing case. */
import { assert, describe, it } from "@effect/vitest"
import { Array, Effect } from "effect"
import { cpSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import * as Explorer from "./kit/explorer/explorer.ts"
import { variants } from "./kit/explorer/variants.ts"

const root = fileURLToPath(new URL("..", import.meta.url))

/** The explorer from a copy of the sources, in which one file is changed. */
const explorerOf = async (copy: string, file: string, changes: ReadonlyArray<string>): Promise<typeof Explorer> => {
  rmSync(copy, { recursive: true, force: true })
  for (const path of ["src", "test/kit", "tsconfig.json"]) cpSync(root + path, `${copy}/${path}`, { recursive: true })
  const path = `${copy}/src/internal/${file}`
  let source = readFileSync(path, "utf8")
  for (const [from = "", to = ""] of Array.chunksOf(changes, 2)) {
    assert.lengthOf(source.split(from), 2, `${file} has the text once: ${from}`)
    source = source.replace(from, () => to)
  }
  writeFileSync(path, source)
  return import(`${copy}/test/kit/explorer/explorer.ts`)
}

describe("broken variants of the pool", () => {
  for (const [file, changesOf] of Object.entries(variants)) {
    for (const [name, changes] of Object.entries(changesOf)) {
      it(`the explorer finds a pool in which ${name}`, async () => {
        const broken = await explorerOf(`${root}test/artifacts/variants/${name.replaceAll(" ", "-")}`, file, changes)
        const { failure, runs } = await Effect.runPromise(broken.explore(20_000, 1))
        if (failure === undefined) assert.fail("not found")
        const { verdict } = broken.runCase(failure)
        console.log(`${name}: after ${runs} cases, ${verdict}`)
        assert.isDefined(verdict)
        assert.isUndefined(Explorer.runCase(failure).verdict, "the pool keeps all promises in the same run")
      })
    }
  }
})
