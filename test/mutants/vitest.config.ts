/** Runs the tests of one group of mutants, for Stryker. */
import { fileURLToPath } from "node:url"
import { defineConfig } from "vitest/config"
import { BaseSequencer, type TestSpecification } from "vitest/node"

const tests = (process.env["MUTANTS_TESTS"] ?? "").split(",")

const rank = ({ moduleId }: TestSpecification) => tests.findIndex((path) => moduleId.includes(`/${path}`))

/** Runs files in the order of the group. The first failure ends the run of a mutant, so fast tests come first. */
class InOrder extends BaseSequencer {
  override sort(files: Array<TestSpecification>): Promise<Array<TestSpecification>> {
    return Promise.resolve(files.toSorted((x, y) => rank(x) - rank(y)))
  }
}

export default defineConfig({
  test: {
    // Stryker runs a copy of the project, and this file in it.
    root: fileURLToPath(new URL("../..", import.meta.url)),
    include: tests.map((path) => `${path}{,/**/*,.*}.test.ts`),
    // Short, so a mutant that makes a test or a finalizer hang is killed soon.
    testTimeout: 6000,
    hookTimeout: 1000,
    sequence: { sequencer: InOrder }
  }
})
