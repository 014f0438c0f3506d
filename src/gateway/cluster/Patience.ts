/**
 * Waiting for the database no longer than one means to. `Effect.timeout` waits for the end of what it interrupts; and a statement that
 * is interrupted has PostgreSQL cancel it first, for which the driver, where nobody answers, waits five seconds more.
 */
import { Effect, Fiber } from "effect"

/**
 * Runs in a fiber of its own, which whoever is interrupted interrupts and does not wait for. So what it asks of the database may still
 * happen, and must then do no harm.
 */
export const unawaited = <A, E, R>(asked: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(
      Effect.forkDetach(asked, { startImmediately: true }),
      (asking) => Effect.onInterrupt(restore(Fiber.join(asking)), () => Effect.sync(() => asking.interruptUnsafe()))
    )
  )
