/**
 * Detects when the pool takes ownership of a connection that is passed to `set`. That is the step in which `set` calls `groupBy`. Until
 * then an interruption may stop the caller's fiber before `set` begins, and the caller owns the connection.
 */
import { Effect, Fiber } from "effect"

export interface Handover {
  /** The pool's option `groupBy`. */
  readonly groupBy: (key: string) => unknown
  /** Runs a `set`. Calls `accepted` when the pool takes ownership of the connection. */
  readonly offer: <A, E, R>(set: Effect.Effect<A, E, R>, accepted: () => void) => Effect.Effect<A, E, R>
  /** How many calls of `set` are running. */
  readonly underWay: () => number
}

export const make = (): Handover => {
  const offers = new Map<number, () => void>()
  return {
    groupBy: (key) => {
      const fiber = Fiber.getCurrent()
      if (fiber !== undefined) offers.get(fiber.id)?.()
      return key[0]
    },
    offer: (set, accepted) =>
      Effect.withFiber(({ id }) => {
        offers.set(id, accepted)
        return Effect.ensuring(set, Effect.sync(() => offers.delete(id)))
      }),
    underWay: () => offers.size
  }
}
