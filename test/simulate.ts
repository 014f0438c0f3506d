/**
 * Estimates a cluster of 10, 100 and 1,000 replicas: `npm run simulate`. Measures the engine's `Sharding` and its storage with lists of that
 * length, and the storage of sleeping sessions in a PostgreSQL of its own. Computes from these costs the load of a whole cluster, which
 * does not fit on this machine.
 */
import { Effect } from "effect"
import { parseArgs } from "node:util"
import * as Asleep from "./kit/simulate/asleep.ts"
import * as Database from "./kit/simulate/database.ts"
import * as Engine from "./kit/simulate/engine.ts"
import * as Model from "./kit/simulate/model.ts"
import * as Storage from "./kit/simulate/storage.ts"

/** `--sessions`: of stateless back ends; 1 % of them are awake. `--rows`: how many sleeping sessions are measured. */
const { values } = parseArgs({
  options: {
    replicas: { type: "string", default: "10,100,1000" },
    sessions: { type: "string", default: "10000000" },
    rows: { type: "string", default: "300000" }
  }
})
const sizes = values.replicas.split(",").map(Number)
const all = Number(values.sessions)
const sessions = { all, awake: all / 100 }

const program = Effect.scoped(Effect.gen(function*() {
  const database = yield* Database.make
  const asleep = yield* Asleep.measure(database, Number(values.rows))
  for (const size of sizes) {
    const measured = { ...(yield* Storage.measure(database, size)), ...(yield* Engine.measure(size)) }
    console.log(`\n${size} replicas, ${all} sessions`)
    for (const [name, load] of Object.entries(Model.loads(size, sessions, measured, asleep))) {
      console.log(`${load.toPrecision(3).padStart(10)}  ${name}`)
    }
  }
}))

await Effect.runPromise(program)
process.exit(0)
