/**
 * Runs all operations on a pool at once, on the real clock, for minutes: `npm run soak [-- --minutes 10 --seed 1]`.
 *
 * All callers stop every five seconds. Then the pool's counts must equal those of its back end. The pool is emptied, and the script
 * measures live objects, the heap after a collection, and handles. At the end it fits a line to each of the three. Exits with 1 if a count
 * differs, if a connection closes twice, never or while it is leased, or if one of the three grows.
 */
import { Effect, Exit, Logger, Scope } from "effect"
import { parseArgs } from "node:util"
import { queryObjects } from "node:v8"
import { SessionPool } from "../../src/index.ts"
import * as Line from "../kit/line.ts"
import * as Workload from "../kit/pool/workload.ts"

const { values } = parseArgs({
  options: { minutes: { type: "string", default: "10" }, seed: { type: "string", default: String(Date.now() % 1e6) } }
})
const collect = globalThis.gc
if (collect === undefined) throw new Error("Run it with node --expose-gc, as npm run soak does.")

/**
 * A slope counts as growth if it is more than three standard errors above these. Objects are counted exactly, so their bound is a leak of
 * one object in a thousand operations. The heap also holds code that V8 compiles and discards: some hundred kilobytes.
 */
const bounds = { objectsPerMillion: 1_000, heap: 2 ** 20, handles: 1 }

const sample = (operations: number) => {
  collect()
  return {
    millions: operations / 1e6,
    objects: queryObjects(Object, { format: "count" }),
    heap: process.memoryUsage().heapUsed,
    handles: process.getActiveResourcesInfo().length
  }
}
const samples: Array<ReturnType<typeof sample>> = []
const faults: Array<string> = []

const main = Effect.gen(function*() {
  const scope = yield* Scope.make()
  const workload = yield* Scope.provide(Workload.make(Number(values.seed)), scope)
  const { failures, pool, round, tally } = workload
  /** Waits at most ten seconds until the pool has finished its own launches, closes and checks. */
  const expectQuiet = Effect.gen(function*() {
    for (let tries = 0; tries < 5_000 && (yield* workload.faults).length > 0; tries++) yield* Effect.sleep(2)
    faults.push(...(yield* workload.faults))
  })
  const until = performance.now() + Number(values.minutes) * 60_000
  while (performance.now() < until && faults.length === 0) {
    const end = performance.now() + 5_000
    yield* round(() => performance.now() < end)
    yield* expectQuiet
    // Each sample is of an empty pool.
    yield* SessionPool.invalidateAll(pool)
    yield* expectQuiet
    samples.push(sample(tally.operations))
    console.log(`${tally.opened} opened; emptied: ${JSON.stringify(samples.at(-1))}`)
  }
  yield* Scope.close(scope, Exit.void)
  // The pool does not wait for a close longer than its `closeTimeout`.
  yield* Effect.sleep(200)
  faults.push(...(yield* workload.faults))
  console.log(`failures by reason: ${JSON.stringify(failures)}`)
})

console.log(`${values.minutes} minutes with seed ${values.seed}`)
await Effect.runPromise(main.pipe(Effect.provide(Logger.layer([]))))

// Leaves out the first quarter, in which code is compiled and tables grow to their size.
const settled = samples.slice(Math.ceil(samples.length / 4))
const span = (settled.at(-1)?.millions ?? 0) - (settled[0]?.millions ?? 0)
for (const name of ["objects", "heap", "handles"] as const) {
  const { mean, slope, standardError } = Line.fit(settled.map((sample) => [sample.millions, sample[name]]))
  const slopes = `${slope.toFixed(1)} ± ${standardError.toFixed(1)} per million operations`
  console.log(`${name}: ${mean.toFixed(1)}, ${slopes} at ${settled.length} quiet points`)
  const bound = name === "objects" ? bounds.objectsPerMillion : bounds[name] / span
  if (settled.length >= 6 && slope - 3 * standardError > bound) faults.push(`${name} grow`)
}
if (settled.length < 6) console.log("Too few quiet points to judge a slope. Run for more than a minute.")
for (const fault of faults) console.log(`FAULT ${fault}`)
process.exitCode = faults.length > 0 ? 1 : 0
