/**
 * The gateway beside `supergateway`, `mcp-proxy` and the least that a bridge can do: `npm run bench:gateway`, with
 * `-- --rounds 3` and `-- --only json-10 --only big` for less. It prints what each gateway's own process used and what its
 * clients saw, and the ratios.
 *
 * Ours is what `npm run build` makes of it, as the peers are run as published.
 *
 * Each round takes the gateways in turn, each started afresh, so that what else the machine does meets all of them.
 * Figures are medians over the rounds; ratios are formed within a round, so they are steadier than the figures.
 */
import { arch, availableParallelism, platform } from "node:os"
import { parseArgs } from "node:util"
import { install } from "../kit/install.ts"
import type { Figures } from "./gatewayCases.ts"
import { cases } from "./gatewayCases.ts"
import * as Gateways from "./gateways.ts"
import { table } from "./gatewayTables.ts"
import { chosen } from "./only.ts"

const { values } = parseArgs({
  options: {
    rounds: { type: "string", default: "5" },
    only: { type: "string", multiple: true, default: [] }
  }
})
const asked = chosen(cases, values.only)

process.on("exit", Gateways.endAll)
for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => process.exit(130))

install(new URL(".", import.meta.url))

console.log(
  `Node ${process.version}, ${platform()} ${arch()}, ${availableParallelism()} cores, ${values.rounds} rounds. ` +
    "mcp-proxy shares one server process among all sessions, so their counts cross.\n"
)
for (const one of asked) {
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
