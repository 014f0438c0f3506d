/**
 * A cluster of 10, 100 and 1,000 replicas with ten million sessions: `npm run simulate`, `-- --help` for what can be assumed
 * otherwise. What is real: the engine's ring and its `Sharding`, its storage and that of sleeping sessions in a PostgreSQL of
 * this script's own, a gateway with `--cluster`. Their costs are measured, and carried over to what no machine here can hold.
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
  --awake 1                 how many of them are awake, in percent; the others sleep in PostgreSQL
  --stay 30                 how long a session is awake at a time, in minutes
  --life 24                 how long a session lives, in hours
  --expiration 35           shardLockExpiration, in seconds
  --database-cores 8        of the machine of PostgreSQL, each as fast as one here
  --database-memory 32      of the same, in GiB
  --network 1000            of the same, in Mbit/s
  --max-connections N       of PostgreSQL, for users; by default what it has by itself
  --rows 300000             sleeping sessions that are measured`

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
  console.error(`--${name} ${values[name]} is no number above zero`)
  process.exit(1)
}

const sizes = values.replicas.split(",").map(Number)
if (!sizes.every((size) => Number.isInteger(size) && size > 0)) {
  console.error(`--replicas ${values.replicas} are no numbers of replicas`)
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
