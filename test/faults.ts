/**
 * Injects faults into gateways for minutes, by a seed: `npm run faults [-- --minutes 10 --seed 1]`. In each round, one gateway meets killed
 * and failing back ends, cut connections and vanishing clients, in random order and size. One gateway runs out of file descriptors, one is
 * drained, and one is killed under load. Exits with 1 at the first broken promise.
 */
import { parseArgs } from "node:util"
import type { Attacked, Tally } from "./kit/faults/faults.ts"
import * as Faults from "./kit/faults/faults.ts"
import * as FaultKinds from "./kit/faults/kinds.ts"
import * as Progress from "./kit/progress.ts"
import * as Random from "./kit/random.ts"

const { values } = parseArgs({
  options: { minutes: { type: "string", default: "10" }, seed: { type: "string", default: String(Date.now() % 1e6) } }
})
console.log(`${values.minutes} minutes with seed ${values.seed}`)
const random = Random.make(Number(values.seed))
const until = Date.now() + Number(values.minutes) * 60_000

const { badBackEnds, cutRequests, cutResponses, drained, killed, killedBackEnds, vanishingClients } = FaultKinds
const kinds: ReadonlyArray<readonly [string, FaultKinds.Kind]> = [
  ["back ends killed", killedBackEnds],
  ["back ends that misbehave", badBackEnds],
  ["requests cut", cutRequests],
  ["responses cut", cutResponses],
  ["clients that vanish", vanishingClients]
]
const counts: Record<string, number> = {}
const tally: Tally = { answered: 0, failed: 0, refused: 0, cut: 0 }

/** Inflicts one fault on a gateway. Ends the run if a promise is broken. */
const inflict = async (attacked: Attacked, name: string, fault: () => Promise<void>): Promise<void> => {
  counts[name] = (counts[name] ?? 0) + 1
  Progress.step(name)
  await fault().catch((error: unknown) => attacked.failures.push(`${name}: ${String(error)}`))
  check(attacked, name)
}

const check = ({ failures, run }: Attacked, name: string): void => {
  if (failures.length === 0) return
  Progress.clear()
  for (const failure of failures.slice(0, 20)) console.log(`FAILURE (${name}, seed ${values.seed}) ${failure}`)
  console.log(JSON.stringify({ counts, tally }))
  run.child.kill("SIGKILL")
  process.exit(1)
}

const add = ({ tally: more }: Attacked): void => {
  for (const name of ["answered", "failed", "refused", "cut"] as const) tally[name] += more[name]
}

const sizeOf = (): FaultKinds.Size => ({ sessions: 2 + random.below(12), requests: 3 + random.below(25) })

const round = async (): Promise<void> => {
  const common = await Faults.start(["--spares", String(random.below(3))])
  for (const [name, kind] of [...kinds, ...kinds].toSorted(() => random.next() - 0.5)) {
    const size = sizeOf()
    await inflict(common, name, () => kind(common, random, size))
  }
  await Faults.stop(common)
  check(common, "the end")
  add(common)
  const descriptors = 44 + random.below(80)
  const starved = await Faults.start([], descriptors)
  await inflict(starved, "no descriptors", () => FaultKinds.noDescriptors(starved, descriptors))
  await Faults.stop(starved)
  check(starved, "the end without descriptors")
  add(starved)
  for (const [name, kind] of [["drained", drained], ["killed", killed]] as const) {
    const size = { ...sizeOf(), endless: 2 }
    const attacked = await Faults.start(["--drain-timeout", "1500 millis", "--spares", String(random.below(3))])
    await inflict(attacked, name, () => kind(attacked, random, size))
    add(attacked)
  }
}

for (let done = 1; done === 1 || Date.now() < until; done++) {
  await round()
  Progress.clear()
  console.log(`round ${done}: ${JSON.stringify(tally)}`)
}
console.log(JSON.stringify({ faults: counts, requests: tally }))
console.log("no promise was broken")
process.exit()
