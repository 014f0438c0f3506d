/** Forks callers. */
import { Effect } from "effect"

/** Forks a child fiber that runs up to its first wait before this returns. */
export const fork = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })
