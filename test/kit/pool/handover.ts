/**
 * When a connection that is given to `set` becomes the pool's to close: not when the caller makes the effect, nor when its
 * fiber gets there, between which it can be interrupted, but in the step in which `set` asks for the group of the key.
 */
import { Effect, Fiber } from "effect"

export interface Handover {
  /** For the options of the pool. */
  readonly groupBy: (key: string) => unknown
  /** Runs a `set`; `accepted` is called if and when the pool takes charge of the connection. */
  readonly offer: <A, E, R>(set: Effect.Effect<A, E, R>, accepted: () => void) => Effect.Effect<A, E, R>
  /** Calls of `set` under way. */
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
