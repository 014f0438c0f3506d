/**
 * A clock that follows the machine's and that a test can put ahead. Time runs, and the test can skip some of it. Use it to end one
 * long time-out.
 */
import { Clock, Duration, Effect, Schedule } from "effect"

export interface AheadClock extends Clock.Clock {
  /** Moves the clock ahead and wakes every fiber whose sleep has ended. */
  readonly pass: (time: Duration.Input) => void
}

export const make = (): AheadClock => {
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
        // A longer delay makes Node's `setTimeout` fire after 1 ms, so cap it.
        const timer = setTimeout(sleeper.wake, Math.min(length, 2 ** 31 - 1))
        sleepers.add(sleeper)
        return Effect.sync(end)
      }),
    pass: (time) => {
      ahead += Duration.toMillis(time)
      // `wake` removes the sleeper. Its fiber may add a new one with a later end.
      for (const { until, wake } of sleepers) if (until <= millis()) wake()
    }
  }
}

/** Waits until a condition holds, and puts a clock ahead by `step` after each look. The looks follow the machine's clock. */
export const untilAhead = <A, E, R>(
  clock: AheadClock,
  step: Duration.Input,
  what: string,
  check: Effect.Effect<A, E, R>,
  holds: (value: A) => boolean
): Effect.Effect<A, E, R> =>
  check.pipe(
    Effect.tap((value) => Effect.sync(() => holds(value) || clock.pass(step))),
    Effect.repeat({ until: holds, schedule: Schedule.spaced("20 millis") }),
    Effect.timeoutOrElse({ duration: "25 seconds", orElse: () => Effect.die(new Error(`not in time: ${what}`)) }),
    Effect.provideService(Clock.Clock, Clock.Clock.defaultValue())
  )
