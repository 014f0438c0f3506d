/** A clock that goes with the machine's and can be put ahead, for a gateway with real processes whose long times a test ends. */
import type { Clock } from "effect"
import { Duration, Effect } from "effect"

export interface PutAhead extends Clock.Clock {
  /** Whatever sleeps until a time that is over then wakes up. */
  readonly putAhead: (time: Duration.Input) => void
}

export const make = (): PutAhead => {
  let ahead = 0
  const sleepers = new Set<{ readonly until: number; readonly wake: () => void }>()
  const millis = () => Date.now() + ahead
  const nanos = () => BigInt(Math.round(millis() * 1e6))
  const monotonic = () => process.hrtime.bigint() + BigInt(Math.round(ahead * 1e6))
  return {
    currentTimeMillisUnsafe: millis,
    currentTimeMillis: Effect.sync(millis),
    currentTimeNanosUnsafe: nanos,
    currentTimeNanos: Effect.sync(nanos),
    monotonicTimeNanosUnsafe: monotonic,
    monotonicTimeNanos: Effect.sync(monotonic),
    sleep: (duration) =>
      Effect.callback((resume) => {
        const length = Duration.toMillis(duration)
        if (!Number.isFinite(length)) return
        const end = () => {
          clearTimeout(timer)
          sleepers.delete(sleeper)
        }
        const sleeper = {
          until: millis() + length,
          wake: () => {
            end()
            resume(Effect.void)
          }
        }
        // Node takes longer times for one millisecond. No test takes that long.
        const timer = setTimeout(sleeper.wake, Math.min(length, 2 ** 31 - 1))
        sleepers.add(sleeper)
        return Effect.sync(end)
      }),
    putAhead: (time) => {
      ahead += Duration.toMillis(time)
      // Each that is woken leaves the set, and may sleep again at once, until later.
      for (const { until, wake } of sleepers) if (until <= millis()) wake()
    }
  }
}
