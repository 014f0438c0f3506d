/**
 * Mutation testing: `npm run mutants [-- transitions|shell] [-- --only src/internal/places.ts]`. Makes one small change of the code at a
 * time, and runs tests until one fails. Prints the score and the survivors of each group. Exits with 1 if a score is below its threshold,
 * or if a survivor is not in `survivors.ts`.
 *
 * Stryker is installed in `test/artifacts/mutants`, for this script alone. It finds the project's vitest above its own folder.
 */
import { spawnSync } from "node:child_process"
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { availableParallelism } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { parseArgs } from "node:util"
import type { Group } from "./groups.ts"
import { groups } from "./groups.ts"
import { print } from "./report.ts"

const version = "10.1.1"
const packages = ["@stryker-mutator/core", "@stryker-mutator/vitest-runner"]

const root = fileURLToPath(new URL("../..", import.meta.url))
const folder = "test/artifacts/mutants"
const home = join(root, folder)
const modules = join(home, "node_modules")

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    only: { type: "string", multiple: true, default: [] },
    concurrency: { type: "string", default: String(availableParallelism()) }
  }
})

const run = (command: string, args: ReadonlyArray<string>, cwd: string, tests: ReadonlyArray<string> = []): void => {
  const env = { ...process.env, MUTANTS_TESTS: tests.join(",") }
  const { status } = spawnSync(command, args, { cwd, env, stdio: "inherit" })
  if (status !== 0) throw new Error(`${command} ${args.join(" ")} ended with ${status}`)
}

const install = (): void => {
  const isInstalled = (name: string) => {
    const file = join(modules, name, "package.json")
    return existsSync(file) && JSON.parse(readFileSync(file, "utf8")).version === version
  }
  if (packages.every(isInstalled)) return
  mkdirSync(home, { recursive: true })
  writeFileSync(join(home, "package.json"), JSON.stringify({ private: true }))
  const options = ["--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund"]
  run("npm", ["install", ...options, ...packages.map((name) => `${name}@${version}`)], home)
}

const mutate = (group: Group): string => {
  const report = `${folder}/${group.name}.json`
  const config = join(home, `${group.name}.config.json`)
  rmSync(join(root, report), { force: true })
  writeFileSync(
    config,
    JSON.stringify({
      plugins: [join(modules, "@stryker-mutator/vitest-runner/dist/src/index.js")],
      testRunner: "vitest",
      vitest: { configFile: "test/mutants/vitest.config.ts", related: false },
      mutate: values.only.length === 0 ? group.mutate : group.mutate.filter((file) => values.only.includes(file)),
      coverageAnalysis: "perTest",
      // A mutant in code that runs once, when its module is loaded, would need all tests.
      ignoreStatic: true,
      concurrency: Number(values.concurrency),
      // Long, because a run that times out counts as killed, and the machine may be busy.
      timeoutMS: 20_000,
      timeoutFactor: 2,
      reporters: ["json", "progress-append-only"],
      jsonReporter: { fileName: report },
      // Stryker needs nothing from `tsconfig.json`, and would read it through an API that TypeScript 7 does not have.
      tsconfigFile: "none",
      tempDirName: `${folder}/${group.name}`,
      ignorePatterns: ["dist", "test/artifacts"]
    })
  )
  run(process.execPath, [join(modules, "@stryker-mutator/core/bin/stryker.js"), "run", config], root, group.tests)
  return join(root, report)
}

install()
const chosen = groups.filter(({ name }) => positionals.length === 0 || positionals.includes(name))
const reports = chosen.map((group) => [group, mutate(group)] as const)
const passed = reports.map(([group, report]) => print(group, report))
process.exitCode = passed.every(Boolean) ? 0 : 1
