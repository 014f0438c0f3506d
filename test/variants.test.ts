/** The explorer must be able to fail: it finds every broken variant of the pool, and shrinks what it finds. */
import { afterAll, afterEach, assert, describe, it } from "@effect/vitest"
import { vi } from "vitest"
import type * as Draft from "../src/internal/draft.ts"
import type * as Leasing from "../src/internal/leasing.ts"
import type * as Shell from "../src/internal/pool.ts"
import type * as Sweeping from "../src/internal/sweeping.ts"
import type * as Transitions from "../src/internal/transitions.ts"
import * as Explorer from "./kit/explorer/explorer.ts"
import { variants } from "./kit/explorer/variants.ts"

/** What stands in for the functions of each module at the moment, and the modules with a way around every function. */
const { detour, replaced } = vi.hoisted(() => {
  const replaced: Record<string, Record<string, unknown>> = {}
  const detour = async (name: string, original: () => Promise<object>) =>
    Object.fromEntries(
      Object.entries(await original()).map(([key, real]) => [
        key,
        // Classes are not replaced, and not called without `new`.
        typeof real !== "function" || String(real).startsWith("class") ?
          real :
          (...args: ReadonlyArray<unknown>) =>
            Reflect.apply((replaced[name]?.[key] ?? real) as () => unknown, undefined, args)
      ])
    )
  return { detour, replaced }
})
vi.mock("../src/internal/draft.ts", (original) => detour("draft", original))
vi.mock("../src/internal/transitions.ts", (original) => detour("transitions", original))
vi.mock("../src/internal/pool.ts", (original) => detour("pool", original))
vi.mock("../src/internal/leasing.ts", (original) => detour("leasing", original))
vi.mock("../src/internal/sweeping.ts", (original) => detour("sweeping", original))

const real = {
  draft: await vi.importActual<typeof Draft>("../src/internal/draft.ts"),
  transitions: await vi.importActual<typeof Transitions>("../src/internal/transitions.ts"),
  pool: await vi.importActual<typeof Shell>("../src/internal/pool.ts"),
  leasing: await vi.importActual<typeof Leasing>("../src/internal/leasing.ts"),
  sweeping: await vi.importActual<typeof Sweeping>("../src/internal/sweeping.ts")
}

const most = 20000
const found: Array<string> = []

afterEach(() => {
  for (const name of Object.keys(replaced)) delete replaced[name]
})

afterAll(() =>
  console.log(["schedules until found | broken variant | promise broken | smallest run found", ...found].join("\n"))
)

describe("the explorer finds a pool in which", () => {
  for (const { name, replace } of variants) {
    it(name, () => {
      Object.assign(replaced, replace(real))
      let seed = 0
      while (seed < most && Explorer.runSeed(seed) === undefined) seed++
      const failure = seed < most ? Explorer.minimise(seed) : undefined
      if (failure === undefined) assert.fail(`not found in ${most} schedules`)
      const operations = failure.plan.fibers.flat().length
      const size = `${operations} operations, ${failure.deviations.length} deviations`
      found.push(`${seed + 1} | ${name} | ${failure.verdict} | ${size}`)
      assert.strictEqual(Explorer.replay(failure), failure.verdict)
      assert.strictEqual(Explorer.replay(failure), failure.verdict)
      for (const name of Object.keys(replaced)) delete replaced[name]
      assert.isUndefined(Explorer.replay(failure), "the pool as it is keeps all promises in the same run")
    }, 60_000)
  }
})
