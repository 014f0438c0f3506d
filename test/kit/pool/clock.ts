/** A clock that can be set. */
import { Clock, Effect } from "effect"

export interface SettableClock extends Clock.Clock {
  /** Milliseconds that this clock is ahead of the test's. Timers ignore it, as those of the system do. */
  offset: number
  /** Timers that run. */
  timers: number
}

/** A clock that shows the time of the present one, and starts its timers there. */
export const settable: Effect.Effect<SettableClock> = Clock.clockWith((clock) =>
  Effect.sync(() => {
    const own: SettableClock = {
      ...clock,
      offset: 0,
      timers: 0,
      currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + own.offset,
      currentTimeMillis: Effect.sync(() => own.currentTimeMillisUnsafe()),
      sleep: (duration) =>
        Effect.acquireUseRelease(
          Effect.sync(() => own.timers++),
          () => clock.sleep(duration),
          () => Effect.sync(() => own.timers--)
        )
    }
    return own
  })
)
