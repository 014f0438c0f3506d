/**
 * Runs random sequences of commands on the pool and on its model: `npm run model [-- --runs 20000 --seed 1]`. If they differ, it prints
 * the shortest such sequence that it finds, and exits with 1.
 */
import { Effect } from "effect"
import { parseArgs } from "node:util"
import { explore } from "./kit/model/comparison.ts"
import * as Progress from "./kit/progress.ts"

const { values } = parseArgs({
  options: { runs: { type: "string", default: "20000" }, seed: { type: "string", default: String(Date.now() % 1e6) } }
})
const started = performance.now()
let compared = 0
const { commands, failure } = await Effect.runPromise(
  explore(Number(values.runs), Number(values.seed), () => Progress.tick(`${++compared} of ${values.runs} sequences`))
)
Progress.clear()
const seconds = ((performance.now() - started) / 1000).toFixed(0)
console.log(`${values.runs} sequences, ${commands} commands with seed ${values.seed} in ${seconds} s`)
console.log(failure ?? "The pool and its model agree after every command.")
process.exitCode = failure === undefined ? 0 : 1
