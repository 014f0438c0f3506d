/**
 * Limits how many processes start at once. A spawn blocks the event loop (24 ms at 200 MiB of memory), and a process that loads
 * occupies a core. Principals take turns, so one that starts many sessions does not keep the others waiting.
 */
import type { Scope } from "effect"
import { Deferred, Effect, PartitionedSemaphore } from "effect"
import { availableParallelism } from "node:os"

/** Two for each core: while one process waits for the disk, the other computes. */
export const maxAtOnce = 2 * availableParallelism()

/** Longest turn. A server that takes longer to start probably waits for something other than a CPU. */
const maxHold = "250 millis"

export interface StartQueue {
  /** Waits for a turn. The turn ends when the scope closes, or after `maxHold`. */
  readonly turn: (principal: string) => Effect.Effect<void, never, Scope.Scope>
}

export const make: Effect.Effect<StartQueue> = Effect.map(
  PartitionedSemaphore.make<string>({ permits: maxAtOnce }),
  (places) => ({
    turn: Effect.fnUntraced(function*(principal) {
      const begun = yield* Deferred.make<void>()
      const turn = Effect.andThen(Deferred.succeed(begun, undefined), Effect.sleep(maxHold))
      yield* Effect.forkScoped(places.withPermit(principal)(turn), { startImmediately: true })
      yield* Deferred.await(begun)
    })
  })
)
