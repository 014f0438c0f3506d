/** A clock that a test can set. */
import { Clock, Effect } from "effect"

export interface SettableClock extends Clock.Clock {
  /** Milliseconds that this clock is ahead of the test clock. Timers ignore it, as timers of the system do. */
  offset: number
  /** How many timers are running. */
  timers: number
}

/** A clock that shows the present clock's time plus `offset`, and sleeps on the present clock. */
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
