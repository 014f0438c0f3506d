/**
 * Measures the pool beside its peers: `npm run bench [-- --rounds 7] [--only touch] [--largest 100000]`. Prints a table. Each figure is the
 * median of the rounds, with the least and the greatest. Each ratio compares two figures of one round, in which the subjects are measured
 * one right after the other, so a slow minute of the machine affects all of them.
 */
import { cpus } from "node:os"
import { parseArgs } from "node:util"
import { install } from "../kit/install.ts"
import * as Progress from "../kit/progress.ts"
import { cases } from "./coreCases.ts"
import { measure } from "./coreRounds.ts"
import { chosen } from "./only.ts"
import { format } from "./spread.ts"

const { values } = parseArgs({
  options: {
    rounds: { type: "string", default: "7" },
    only: { type: "string", multiple: true, default: [] },
    largest: { type: "string", default: "1000000" }
  }
})

const asked = chosen(cases, values.only).filter(({ sessions }) => sessions <= Number(values.largest))
install(new URL(".", import.meta.url))

const [cpu] = cpus()
console.log(`Node ${process.version}, ${cpus().length} × ${cpu?.model}, ${values.rounds} rounds\n`)
console.log("| what | sessions | subject | figure | its ratio to SessionPool |")
console.log("|---|--:|---|--:|--:|")
for (const one of asked) {
  const rows = await measure(one, Number(values.rounds))
  Progress.clear()
  for (const { figure, name, ratio } of rows) {
    const compared = ratio === undefined ? "" : format(ratio)
    console.log(
      `| ${one.name} | ${one.sessions.toLocaleString("en")} | ${name} | ${format(figure)} ${one.unit} | ${compared} |`
    )
  }
}
