/**
 * One timer per connection for everything in it that can time out. It runs only while it is needed: the timers of a thousand idle sessions
 * would wake the process a thousand times a second.
 */
import { Effect } from "effect"

/**
 * Returns a function that starts the timer unless it runs. Each `interval` milliseconds the timer calls `look`, which ends everything that is
 * overdue. The timer stops if `look` returns false, because nothing is left that can time out.
 */
export const make = (interval: number, look: () => boolean, fork: (timer: Effect.Effect<unknown>) => unknown) => {
  let runs = false
  const looked = Effect.sync(() => {
    runs = look()
  })
  const timer = Effect.repeat(Effect.delay(looked, interval), { while: () => runs })
  return (): void => {
    if (runs) return
    runs = true
    fork(timer)
  }
}

/** How often to look for the end of these times, in milliseconds: at most `longest`. */
export const interval = (longest: number, ...times: ReadonlyArray<number>): number =>
  Math.max(10, Math.min(longest, ...times.map((time) => time / 4)))
