/**
 * The schedule explorer at length: `npm run explore [-- --schedules 1000000 --from 0 --bound 2]`; one seed again:
 * `npm run explore -- --seed 7`; one schedule of a scenario: `-- --scenario "one place, two keys" --deviations 4:1,30:4`. Ends with 1 at the first promise that is broken, with the smallest run that breaks it.
 */
import { parseArgs } from "node:util"
import { minimise, report, runSeed } from "./kit/explorer/explorer.ts"
import { scenarios } from "./kit/explorer/scenarios.ts"
import { Replay, systematically } from "./kit/explorer/schedule.ts"

const { values } = parseArgs({
  options: {
    schedules: { type: "string", default: "1000000" },
    from: { type: "string", default: "0" },
    bound: { type: "string", default: "2" },
    seed: { type: "string" },
    scenario: { type: "string" },
    deviations: { type: "string", default: "" }
  }
})

const replay = (seed: number): never => {
  const failure = minimise(seed)
  console.log(failure === undefined ? `seed ${seed}: all promises were kept` : report(failure))
  process.exit(failure === undefined ? 0 : 1)
}
if (values.seed !== undefined) replay(Number(values.seed))
for (const { name, run } of scenarios) {
  if (name !== values.scenario) continue
  const deviations = values.deviations.split(",").filter((text) => text !== "").map((text) => {
    const [point = NaN, option = NaN] = text.split(":").map(Number)
    return { point, option }
  })
  const verdict = run(new Replay(deviations))
  console.log(verdict ?? "all promises were kept")
  process.exit(verdict === undefined ? 0 : 1)
}

const seconds = (since: number) => `${((performance.now() - since) / 1000).toFixed(0)} s`
const bound = Number(values.bound)
let systematic = 0
for (const { name, run } of scenarios) {
  const started = performance.now()
  const { failure, schedules } = systematically(run, bound)
  if (failure !== undefined) {
    const deviations = failure.deviations.map(({ option, point }) => `${point}:${option}`).join(",")
    console.log(`${name}: ${failure.verdict}; replay: --scenario "${name}" --deviations "${deviations}"`)
    process.exit(1)
  }
  systematic += schedules
  console.log(
    `${name}: all ${schedules} schedules with at most ${bound} deviations keep all promises (${seconds(started)})`
  )
}

const [from, count] = [Number(values.from), Number(values.schedules)]
const started = performance.now()
for (let seed = from; seed < from + count; seed++) {
  if (runSeed(seed) !== undefined) replay(seed)
  if ((seed + 1 - from) % 100_000 === 0) console.log(`${seed + 1 - from} random schedules (${seconds(started)})`)
}
console.log(
  `${systematic} systematic and ${count} random schedules, the latter from seed ${from} (${
    seconds(started)
  }): no promise broken`
)
