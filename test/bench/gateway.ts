/**
 * The gateway beside `supergateway`, `mcp-proxy` and the least that a bridge can do: `npm run bench:gateway`, with
 * `-- --rounds 3` and `-- --only json-10,big` for less. It prints what each gateway's own process used and what its
 * clients saw, and the ratios.
 *
 * Ours is what `npm run build` makes of it, as the peers are run as published.
 *
 * Each round takes the gateways in turn, each started afresh, so that what else the machine does meets all of them.
 * Figures are medians over the rounds; ratios are formed within a round, so they are steadier than the figures.
 */
import { spawnSync } from "node:child_process"
import { existsSync } from "node:fs"
import { arch, availableParallelism, platform } from "node:os"
import { parseArgs } from "node:util"
import type { Figures } from "./gatewayCases.ts"
import { cases } from "./gatewayCases.ts"
import * as Gateways from "./gateways.ts"
import { table } from "./gatewayTables.ts"

const { values } = parseArgs({
  options: {
    rounds: { type: "string", default: "5" },
    only: { type: "string", default: cases.map(({ name }) => name).join() }
  }
})
const chosen = values.only.split(",").map((name) => {
  const found = cases.find((one) => one.name === name)
  if (found === undefined) throw new Error(`no case ${name}; there are: ${cases.map(({ name }) => name).join(", ")}`)
  return found
})

process.on("exit", Gateways.endAll)
for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => process.exit(130))

const here = new URL(".", import.meta.url).pathname
if (!existsSync(`${here}node_modules`)) {
  const installed = spawnSync("npm", ["ci", "--ignore-scripts"], { cwd: here, stdio: ["ignore", "ignore", "inherit"] })
  if (installed.status !== 0) throw new Error("the peers could not be installed")
}

console.log(
  `Node ${process.version}, ${platform()} ${arch()}, ${availableParallelism()} cores, ${values.rounds} rounds. ` +
    "mcp-proxy shares one server process among all sessions, so their counts cross.\n"
)
for (const one of chosen) {
  const rounds: Array<ReadonlyMap<string, Figures>> = []
  for (let i = 0; i < Number(values.rounds); i++) {
    const round = new Map<string, Figures>()
    for (const subject of one.subjects ?? Gateways.subjects) {
      process.stderr.write(`${one.name}, round ${i + 1}: ${subject.name}\n`)
      round.set(subject.name, await one.run(subject))
    }
    rounds.push(round)
  }
  console.log(table(one, rounds))
}
