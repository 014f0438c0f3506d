/**
 * Measures the gateway beside `supergateway`, `mcp-proxy` and two bare bridges:
 * `npm run bench:gateway [-- --rounds 3] [--only json-10 --only big]`. Prints what each gateway's own process used, what its clients saw,
 * and the ratios.
 *
 * The gateway runs as `npm run build` makes it, because the peers run as published.
 *
 * Each round starts every gateway afresh and measures it in turn, so other work of the machine affects all of them. A figure is the
 * median of the rounds. A ratio compares two figures of one round, so it is steadier than the figures.
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
