/**
 * One timer for all of a session that may take too long. It runs only while there is something of this kind: a thousand idle
 * sessions would wake a thousand times a second.
 */
import { Effect } from "effect"

export interface Overdue {
  /** How often to look, in milliseconds. */
  readonly interval: number
  /** Ends what has taken too long. Synchronous: no message comes in between. */
  readonly look: () => void
  /** Whether there is anything that may take too long. */
  readonly isNeeded: () => boolean
  /** Starts an effect that ends with the session. */
  readonly fork: (effect: Effect.Effect<unknown>) => void
}

/** What starts the timer if it is needed and does not run; to be called by whoever adds something that may take too long. */
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
