/** Prints lines of code without comments and blanks: of each file of the core, of its tests with their kit, and of the gateway. */
import { globSync, readFileSync } from "node:fs"

const linesOf = (file: string): number =>
  readFileSync(file, "utf8")
    // Only at the start of a line, because a string may contain the same characters.
    .replace(/^[ \t]*\/\*[\s\S]*?\*\//gm, "")
    .split("\n")
    .filter((line) => line.trim() !== "" && !line.trim().startsWith("//"))
    .length

const sum = (files: ReadonlyArray<string>): number => files.reduce((total, file) => total + linesOf(file), 0)

const print = (lines: number, name: string): void => console.log(`${String(lines).padStart(6)}  ${name}`)

const core = globSync(["src/SessionPool.ts", "src/index.ts", "src/internal/**/*.ts"]).toSorted()
/** Tests of the cluster's entity, the documents, the package and the long runs. */
const others = ["sessionEntity", "documents", "examples", "package", "progress"]
const tests = globSync([
  "test/*.test.ts",
  "test/*.test-d.ts",
  "test/{explore,model}.ts",
  "test/{internal,mutants}/**/*.ts",
  "test/soak/core.ts",
  "test/kit/{explorer,model,pool}/**/*.ts"
])
  .filter((file) => !others.some((name) => file === `test/${name}.test.ts`))
  // A list of results, not a test.
  .filter((file) => file !== "test/mutants/survivors.ts")

for (const file of core) print(linesOf(file), file)
print(sum(core), "the core")
print(sum(tests), "its tests with their kit")
print(sum(globSync("src/gateway/**/*.ts")), "the gateway")
