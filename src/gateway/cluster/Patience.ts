/**
 * Bounded waits for the database. `Effect.timeout` alone is not enough: it waits until the interrupted statement has ended. An interrupted
 * statement first asks PostgreSQL to cancel it, and if the database does not answer, the driver waits five seconds for that.
 */
import { Effect, Fiber } from "effect"

/**
 * Runs a statement in a fiber of its own. An interruption of the caller interrupts that fiber, but does not wait for its end. So the
 * statement may still take effect later, and must be harmless then.
 */
export const unawaited = <A, E, R>(asked: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(
      Effect.forkDetach(asked, { startImmediately: true }),
      (asking) => Effect.onInterrupt(restore(Fiber.join(asking)), () => Effect.sync(() => asking.interruptUnsafe()))
    )
  )
