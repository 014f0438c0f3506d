/**
 * A pool under everything at once, on the real clock, for minutes: `npm run soak [-- --minutes 10 --seed 1]`.
 *
 * Every five seconds all callers stop. Then the pool's counts must be what its back end has open; the pool is emptied, and
 * the objects alive, the heap (after a collection) and the handles are taken. In the end a line is fitted to each. Ends
 * with 1 if a count differs, a connection is closed twice, never, or while it is leased, or if any of the three grows.
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
const minutes = Number(values.minutes)
const collect = globalThis.gc
if (collect === undefined) throw new Error("Run it with node --expose-gc, as npm run soak does.")

/**
 * What counts as growth: a slope more than three standard errors above these. Objects are counted exactly, so the bound is
 * a leak of one in a thousand operations. The heap also holds what V8 compiles, throws away and compiles again, which moves
 * it by some hundred kilobytes in any run: a leak that no object shows (strings, buffers) is seen above one mebibyte.
 */
const objectsPerMillion = 1_000
const heapInAll = 2 ** 20
/** Of the quiet points, left out: code is still being compiled, and tables grow to their size. */
const warmUp = 0.25
const every = 5_000

interface Sample {
  readonly hours: number
  readonly millions: number
  readonly objects: number
  readonly heap: number
  readonly handles: number
}

const started = performance.now()
const samples: Array<Sample> = []
const faults: Array<string> = []

const sample = (operations: number): Sample => {
  collect()
  return {
    hours: (performance.now() - started) / 3_600_000,
    millions: operations / 1e6,
    objects: queryObjects(Object, { format: "count" }),
    heap: process.memoryUsage().heapUsed,
    handles: process.getActiveResourcesInfo().length
  }
}

const main = Effect.gen(function*() {
  const scope = yield* Scope.make()
  const { failures, faults: look, open, pool, round, tally } = yield* Scope.provide(
    Workload.make(Number(values.seed)),
    scope
  )
  /** Waits for what the pool does by itself to end, at most ten seconds. */
  const quiet = Effect.gen(function*() {
    let found = yield* look
    for (let tries = 0; tries < 5_000 && found.length > 0; tries++) {
      yield* Effect.sleep(2)
      found = yield* look
    }
    return found
  })
  const until = started + minutes * 60_000
  while (performance.now() < until && faults.length === 0) {
    const end = performance.now() + every
    yield* round(() => performance.now() < end)
    faults.push(...(yield* quiet))
    const opened = open.size
    // So that each sample is of an empty pool.
    yield* SessionPool.invalidateAll(pool)
    faults.push(...(yield* quiet))
    const now = sample(tally.operations)
    samples.push(now)
    console.log(
      `${(now.hours * 3600).toFixed(0)} s: ${now.millions.toFixed(2)} million operations, ${tally.opened} opened, ` +
        `${opened} open; emptied: ${now.objects} objects, heap ${now.heap} bytes, ${now.handles} handles`
    )
  }
  yield* Scope.close(scope, Exit.void)
  // The pool does not wait for a close longer than its `closeTimeout`.
  yield* Effect.sleep(200)
  if (open.size > 0) faults.push(`never closed: ${open.size}`)
  if (tally.closedTwice > 0) faults.push(`closedTwice: ${tally.closedTwice}`)
  console.log(`outcomes that were no success: ${JSON.stringify(failures)}; ${tally.events} events read`)
})

console.log(`${minutes} minutes with seed ${values.seed}`)
await Effect.runPromise(main.pipe(Effect.provide(Logger.layer([]))))

const settled = samples.slice(Math.ceil(samples.length * warmUp))
const line = (x: (sample: Sample) => number, y: (sample: Sample) => number) =>
  Line.fit(settled.map((sample) => [x(sample), y(sample)]))
const say = ({ slope, standardError }: Line.Line, digits = 0) =>
  `${slope.toFixed(digits)} ± ${standardError.toFixed(digits)}`
const millions = ({ millions }: Sample) => millions
const hours = ({ hours }: Sample) => hours
const objects = line(millions, ({ objects }) => objects)
const heap = line(millions, ({ heap }) => heap)
const handles = line(millions, ({ handles }) => handles)
console.log(
  `${settled.length} quiet points, each slope ± its standard error; ` +
    `objects: ${objects.mean.toFixed(0)}, ${say(objects)} per million operations; ` +
    `heap: ${(heap.mean / 2 ** 20).toFixed(2)} MiB, ${say(heap)} bytes per million operations, ` +
    `${say(line(hours, ({ heap }) => heap))} bytes an hour; ` +
    `handles: ${handles.mean.toFixed(1)}, ${say(handles, 1)} per million operations`
)
const first = settled[0]
const last = settled.at(-1)
if (first === undefined || last === undefined || settled.length < 6) {
  console.log("Too few quiet points to judge a slope: that takes more than a minute.")
} else {
  const least = ({ slope, standardError }: Line.Line) => slope - 3 * standardError
  const span = last.millions - first.millions
  if (least(objects) > objectsPerMillion) faults.push("objects grow")
  if (least(heap) * span > heapInAll) faults.push("the heap grows")
  if (least(handles) * span > 1) faults.push("handles grow")
}
for (const fault of faults) console.log(`FAULT ${fault}`)
process.exitCode = faults.length > 0 ? 1 : 0
