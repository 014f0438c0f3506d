/**
 * One timer per session for everything in it that can time out. It runs only while it is needed: the timers of a
 * thousand idle sessions would wake the process a thousand times a second.
 */
import { Effect } from "effect"

export interface Overdue {
  /** How often to look, in milliseconds. */
  readonly interval: number
  /** Ends everything that is overdue. Synchronous, so no message comes in between. */
  readonly look: () => void
  /** True if there is anything that can time out. */
  readonly isNeeded: () => boolean
  /** Starts an effect that ends with the session. */
  readonly fork: (effect: Effect.Effect<unknown>) => unknown
}

/**
 * Returns a function that starts the timer if it is needed and not running. Call it after you add something that can
 * time out.
 */
export const make = ({ fork, interval, isNeeded, look }: Overdue): () => void => {
  let runs = false
  const timer = Effect.repeat(Effect.andThen(Effect.sleep(interval), Effect.sync(look)), {
    while: () => {
      runs = isNeeded()
      return runs
    }
  })
  return () => {
    if (runs || !isNeeded()) return
    runs = true
    fork(timer)
  }
}

/** How often to look for the end of these times, in milliseconds: at most `longest`. */
export const interval = (longest: number, ...times: ReadonlyArray<number>): number =>
  Math.max(10, Math.min(longest, ...times.map((time) => time / 4)))
