/**
 * A pool under everything at once, on the real clock, for minutes: `npm run soak [-- --minutes 10 --seed 1]`.
 *
 * Every five seconds all callers stop. Then the pool's counts must be what its back end has open, and heap (after a
 * collection) and handles are taken; in the end a line is fitted to them. Ends with 1 if a count differs, a connection
 * is closed twice, never, or while it is leased, if handles grow, or if the heap does.
 */
import { Effect, Exit, Logger, Scope } from "effect"
import { parseArgs } from "node:util"
import * as Line from "../kit/line.ts"
import * as Workload from "../kit/workload.ts"

const { values } = parseArgs({
  options: { minutes: { type: "string", default: "10" }, seed: { type: "string", default: String(Date.now() % 1e6) } }
})
const minutes = Number(values.minutes)
const collect = globalThis.gc
if (collect === undefined) throw new Error("Run it with node --expose-gc, as npm run soak does.")

/**
 * A leak of 64 bytes (a small object) in every thousandth operation is 64,000 bytes a million. The heap grows if the slope
 * is above that by more than three standard errors.
 */
const bound = 64_000
/** Of the quiet points: code is still being compiled, and tables grow to their size. */
const warmUp = 0.25
const every = 5_000

interface Sample {
  readonly hours: number
  readonly millions: number
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
    heap: process.memoryUsage().heapUsed,
    handles: process.getActiveResourcesInfo().length
  }
}

const main = Effect.gen(function*() {
  const scope = yield* Scope.make()
  const { failures, faults: look, open, round, tally } = yield* Scope.provide(Workload.make(Number(values.seed)), scope)
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
    const now = sample(tally.operations)
    samples.push(now)
    console.log(
      `${(now.hours * 3600).toFixed(0)} s: ${now.millions.toFixed(2)} million operations, ${tally.opened} opened, ` +
        `${open.size} open, heap ${now.heap} bytes, ${now.handles} handles`
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
const perMillion = line(({ millions }) => millions, ({ heap }) => heap)
const perHour = line(({ hours }) => hours, ({ heap }) => heap)
const handles = line(({ hours }) => hours, ({ handles }) => handles)
console.log(
  `heap: ${(perMillion.mean / 2 ** 20).toFixed(2)} MiB, slope ${say(perMillion)} bytes per million operations, ` +
    `${say(perHour)} bytes an hour (± standard error, ${settled.length} quiet points); ` +
    `handles: ${handles.mean.toFixed(1)}, slope ${say(handles, 1)} an hour`
)
if (settled.length < 10) console.log("Too few quiet points to judge a slope: that takes more than a minute.")
else if (perMillion.slope - 3 * perMillion.standardError > bound) faults.push("the heap grows")
// One handle in the length of a run is noise.
if ((handles.slope - 3 * handles.standardError) * (minutes / 60) > 1) faults.push("handles grow")
for (const fault of faults) console.log(`FAULT ${fault}`)
process.exitCode = faults.length > 0 ? 1 : 0
