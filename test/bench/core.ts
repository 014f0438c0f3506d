/**
 * The pool beside its peers: `npm run bench [-- --rounds 7] [--only touch] [--largest 100000]`. Prints a table in which
 * each figure is the median of the rounds with the least and the greatest, and each ratio is taken within a round, where
 * the subjects are measured one right after the other: so a slow minute of the machine falls on all of them.
 *
 * The peers that are not part of Effect are installed for this alone, in `test/bench/node_modules`.
 */
import { spawnSync } from "node:child_process"
import { existsSync } from "node:fs"
import { cpus } from "node:os"
import { fileURLToPath } from "node:url"
import { parseArgs } from "node:util"
import type { Case } from "./cases.ts"
import { cases } from "./cases.ts"
import type { Row } from "./rounds.ts"
import { measure } from "./rounds.ts"

const { values } = parseArgs({
  options: {
    rounds: { type: "string", default: "7" },
    only: { type: "string", multiple: true, default: [] },
    largest: { type: "string", default: "1000000" }
  }
})

const home = fileURLToPath(new URL(".", import.meta.url))
if (!existsSync(`${home}node_modules/lru-cache`)) {
  const { status } = spawnSync("npm", ["ci", "--ignore-scripts", "--no-audit", "--no-fund"], {
    cwd: home,
    stdio: "inherit"
  })
  if (status !== 0) throw new Error("the peers could not be installed")
}

const chosen = (one: Case): boolean =>
  (values.only.length === 0 || values.only.includes(one.name)) && one.sessions <= Number(values.largest)

const spread = (row: Row["ratio"], digits: number): string =>
  row === undefined
    ? ""
    : `${row.median.toFixed(digits)} (${row.least.toFixed(digits)}–${row.greatest.toFixed(digits)})`

const [cpu] = cpus()
console.log(`Node ${process.version}, ${cpus().length} × ${cpu?.model}, ${values.rounds} rounds\n`)
console.log("| what | sessions | subject | figure | its ratio to SessionPool |")
console.log("|---|--:|---|--:|--:|")
for (const one of cases.filter(chosen)) {
  for (const { figure, name, ratio } of await measure(one, Number(values.rounds))) {
    console.log(
      `| ${one.name} | ${one.sessions.toLocaleString("en")} | ${name} | ${spread(figure, 2)} ${one.unit} | ${
        spread(ratio, 2)
      } |`
    )
  }
}
