/**
 * The starts of processes that wait for their turn. A spawn blocks the event loop, the longer the more memory the gateway has (24
 * ms at 200 MiB), and a process that boots takes a core. So few boot at once, and the keys of clients take turns: one that starts
 * many sessions does not keep the others waiting.
 */
import type { Scope } from "effect"
import { Deferred, Effect, PartitionedSemaphore } from "effect"
import { availableParallelism } from "node:os"

/** Two for each core: while one of them waits for the disk, the other computes. */
export const maxAtOnce = 2 * availableParallelism()

/** A server that has not answered by then waits for something, and those behind it for no core. */
const longest = "250 millis"

export interface StartQueue {
  /** Waits for a turn; it is over with the scope, or after `longest`. */
  readonly turn: (principal: string) => Effect.Effect<void, never, Scope.Scope>
}

export const make: Effect.Effect<StartQueue> = Effect.map(
  PartitionedSemaphore.make<string>({ permits: maxAtOnce }),
  (places) => ({
    turn: Effect.fnUntraced(function*(principal) {
      const begun = yield* Deferred.make<void>()
      const turn = Effect.andThen(Deferred.succeed(begun, undefined), Effect.sleep(longest))
      yield* Effect.forkScoped(places.withPermit(principal)(turn), { startImmediately: true })
      yield* Deferred.await(begun)
    })
  })
)
