/**
 * Estimates a cluster of 10, 100 and 1,000 replicas with ten million sessions: `npm run simulate`. `-- --help` lists the assumptions. The
 * script measures real parts: the engine's ring, its `Sharding` and its storage, the storage of sleeping sessions in a PostgreSQL of its
 * own, and a gateway with `--cluster`. From these costs it computes the load of clusters that do not fit on this machine.
 */
import { Effect } from "effect"
import { availableParallelism } from "node:os"
import { parseArgs } from "node:util"
import * as Measure from "./kit/simulate/measure.ts"
import type { Assumptions } from "./kit/simulate/model.ts"
import * as Report from "./kit/simulate/report.ts"

const help = `npm run simulate -- [options]

  --replicas 10,100,1000    sizes of the cluster
  --sessions 10000000       all sessions, of back ends with "stateless": true
  --awake 1                 percent of them that are awake; the others sleep in PostgreSQL
  --stay 30                 minutes for which a session is awake at a time
  --life 24                 hours for which a session lives
  --expiration 35           seconds of shardLockExpiration
  --database-cores 8        cores of PostgreSQL's machine, each as fast as one here
  --database-memory 32      GiB of that machine
  --network 1000            Mbit/s of that machine
  --max-connections N       connections of PostgreSQL for users; by default those of its own configuration
  --rows 300000             sleeping sessions to measure`

const { values } = parseArgs({
  options: {
    help: { type: "boolean", default: false },
    replicas: { type: "string", default: "10,100,1000" },
    sessions: { type: "string", default: "10000000" },
    awake: { type: "string", default: "1" },
    stay: { type: "string", default: "30" },
    life: { type: "string", default: "24" },
    expiration: { type: "string", default: "35" },
    "database-cores": { type: "string", default: "8" },
    "database-memory": { type: "string", default: "32" },
    network: { type: "string", default: "1000" },
    "max-connections": { type: "string" },
    rows: { type: "string", default: "300000" }
  }
})
if (values.help) {
  console.log(help)
  process.exit(0)
}

const number = (name: Exclude<keyof typeof values, "help" | "replicas">): number => {
  const value = Number(values[name])
  if (value > 0) return value
  console.error(`--${name} ${values[name]} must be a number above zero`)
  process.exit(1)
}

const sizes = values.replicas.split(",").map(Number)
if (!sizes.every((size) => Number.isInteger(size) && size > 0)) {
  console.error(`--replicas ${values.replicas} must be numbers of replicas`)
  process.exit(1)
}
const assumptions: Assumptions = {
  sessions: number("sessions"),
  awakePart: number("awake") / 100,
  stayMinutes: number("stay"),
  lifeHours: number("life"),
  lockExpirationSeconds: number("expiration"),
  databaseCores: number("database-cores"),
  databaseBytes: number("database-memory") * 2 ** 30,
  networkBytesPerSecond: number("network") * 1e6 / 8
}

const started = performance.now()
const say = (what: string) => process.stderr.write(`${((performance.now() - started) / 1000).toFixed(0)} s: ${what}\n`)
const measured = await Effect.runPromise(Measure.measure(number("rows"), say))
const constants = values["max-connections"] === undefined
  ? measured.constants
  : { ...measured.constants, maxConnections: number("max-connections") }

const { awake, replicas, seconds } = Measure.counted
const ofTheCounted = { ...assumptions, sessions: awake, awakePart: 1, lockExpirationSeconds: 35 }
console.log(`Node ${process.version}, ${availableParallelism()} cores, ${new Date().toISOString().slice(0, 10)}

${Report.measured(constants)}

${Report.verified(measured.sent, replicas, seconds, ofTheCounted)}

${Report.shards(sizes, constants)}

${Report.statementsPerSecond(sizes, assumptions)}

${Report.cores(sizes, constants, assumptions)}

${Report.replicas(sizes, constants, assumptions)}

${values.sessions} sessions, ${values.awake} % of them awake; over the limit is **bold**; two connections from each replica to each

${Report.loads(sizes, constants, assumptions)}

${Report.bottleneck(sizes, constants, assumptions)}`)
say("done")
process.exit(0)
