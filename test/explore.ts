/**
 * Runs the schedule explorer for long: `npm run explore [-- --runs 200000 --seed 1 --bound 2]`. At the first broken promise it prints the
 * smallest failing case and exits with 1. `npm run explore -- --case …` replays that case.
 */
import { Effect } from "effect"
import { parseArgs } from "node:util"
import type { Case } from "./kit/explorer/explorer.ts"
import { explore, exploreAll, report, runCase } from "./kit/explorer/explorer.ts"
import { scenarios } from "./kit/explorer/scenarios.ts"
import * as Progress from "./kit/progress.ts"

const { values } = parseArgs({
  options: {
    runs: { type: "string", default: "200000" },
    seed: { type: "string", default: String(Date.now() % 1e6) },
    bound: { type: "string", default: "2" },
    case: { type: "string" }
  }
})

const started = performance.now()
/** Counts runs on the progress line. */
const counting = (what: string) => {
  let runs = 0
  return () => Progress.tick(`${what}: ${++runs} runs`)
}
const say = (what: string, failure: Case | undefined) => {
  Progress.clear()
  console.log(`${((performance.now() - started) / 1000).toFixed(0)} s: ${what}`)
  if (failure === undefined) return
  console.log(report(failure))
  process.exit(1)
}

if (values.case !== undefined) {
  console.log(runCase(JSON.parse(values.case)).verdict ?? "All promises were kept.")
  process.exit()
}

for (const { name, plan } of scenarios) {
  const { failure, schedules } = exploreAll(plan, Number(values.bound), counting(name))
  say(`${name}: ${schedules} schedules with at most ${values.bound} deviations`, failure)
}
const { failure, runs } = await Effect.runPromise(
  explore(Number(values.runs), Number(values.seed), counting("random cases"))
)
say(`${runs} random cases with seed ${values.seed}`, failure)
