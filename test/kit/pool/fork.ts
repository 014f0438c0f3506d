/** Callers beside the test. */
import { Effect } from "effect"

/** A child fiber that has come to its first wait when this is over. */
export const fork = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })
