/**
 * The schedule explorer at length: `npm run explore [-- --schedules 1000000 --from 0 --bound 2]`, or one seed again:
 * `npm run explore -- --seed 7`. Ends with 1 at the first promise that is broken, with the smallest run that breaks it.
 */
import { parseArgs } from "node:util"
import { minimise, report, runSeed } from "./kit/explorer.ts"
import { scenarios } from "./kit/scenarios.ts"
import { systematically } from "./kit/schedule.ts"

const { values } = parseArgs({
  options: {
    schedules: { type: "string", default: "1000000" },
    from: { type: "string", default: "0" },
    bound: { type: "string", default: "2" },
    seed: { type: "string" }
  }
})

const fail = (seed: number): never => {
  const failure = minimise(seed)
  console.log(failure === undefined ? `seed ${seed}: all promises were kept` : report(failure))
  process.exit(failure === undefined ? 0 : 1)
}
if (values.seed !== undefined) fail(Number(values.seed))

const seconds = (since: number) => `${((performance.now() - since) / 1000).toFixed(0)} s`
const bound = Number(values.bound)
let systematic = 0
for (const { name, run } of scenarios) {
  const started = performance.now()
  const { failure, schedules } = systematically(run, bound)
  if (failure !== undefined) {
    console.log(`${name}: ${failure.verdict}; deviations ${JSON.stringify(failure.deviations)}`)
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
  if (runSeed(seed) !== undefined) fail(seed)
  if ((seed + 1 - from) % 100_000 === 0) console.log(`${seed + 1 - from} random schedules (${seconds(started)})`)
}
console.log(
  `${systematic} systematic and ${count} random schedules, the latter from seed ${from} (${
    seconds(started)
  }): no promise broken`
)
