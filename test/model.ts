/**
 * Many random sequences of commands on the pool and on its model: `npm run model [-- --runs 20000 --seed 1]`. Ends with 1
 * if they differ, and prints the shortest sequence found for which they do.
 */
import { Arbitrary, Effect } from "effect"
import { parseArgs } from "node:util"
import { compare, Sequence } from "./kit/model/comparison.ts"

const { values } = parseArgs({
  options: { runs: { type: "string", default: "20000" }, seed: { type: "string", default: String(Date.now() % 1e6) } }
})
const started = performance.now()
let runs = 0
let commands = 0

const result = await Effect.runPromise(Arbitrary.checkEffect(
  Sequence,
  (sequence) => {
    commands += sequence.commands.length + sequence.afterTheEnd.length
    if (++runs % 2000 === 0) console.log(`${runs} sequences, ${commands} commands`)
    return Effect.catchCause(Effect.as(compare(sequence), true), (cause) => Effect.fail(cause))
  },
  { runs: Number(values.runs), size: 200, seed: Number(values.seed), maxShrinks: 2000 }
))
const seconds = (performance.now() - started) / 1000
console.log(`${runs} sequences, ${commands} commands with seed ${values.seed} in ${seconds.toFixed(0)} s`)
const failure = Arbitrary.formatCheckFailure(result)
console.log(failure ?? "The pool and its model agree after every command.")
process.exitCode = failure === undefined ? 0 : 1
