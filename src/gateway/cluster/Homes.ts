/** Tells which replica has a shared id. Remembers what the engine answered, and asks the engine for other ids. */
import type { Duration } from "effect"
import { Cause, Effect } from "effect"
import * as Protocol from "./Protocol.ts"

/** How many ids are remembered. Beyond that, the oldest entry is forgotten. */
const limit = 10_000

/** `self`: the name of this replica. */
export const make = Effect.fnUntraced(function*(self: string) {
  const client = yield* Protocol.Home.client
  const known = new Map<string, string>()
  const remember = (id: string, replica: string) => {
    // `Hosting.enter` knows the ids that are here.
    if (replica === self) return
    known.set(id, replica)
    const oldest = known.size > limit ? known.keys().next().value : undefined
    if (oldest !== undefined) known.delete(oldest)
  }
  return {
    /**
     * The replica that has an id. Waits up to `patience` while the shard moves, then fails with `Moved`. When a connection breaks, the
     * engine sends the message again, which is harmless: `Locate` is idempotent.
     */
    of: (id: string, patience: Duration.Input): Effect.Effect<string, Protocol.Moved> =>
      Effect.suspend(() => {
        const replica = known.get(id)
        if (replica !== undefined) return Effect.succeed(replica)
        return client(id).Locate().pipe(
          Effect.timeout(patience),
          Effect.tap((found) => Effect.sync(() => remember(id, found))),
          Effect.catchCause((cause) => {
            // An entity that ends interrupts the requests that it cannot answer any more.
            const isKnown = Cause.hasFails(cause) || Cause.hasInterruptsOnly(cause)
            const told = isKnown
              ? Effect.void
              : Effect.logWarning("A replica could not tell whether it has a shared id; the request is retried", cause)
            return Effect.andThen(told, new Protocol.Moved())
          })
        )
      }),
    /** Forgets the replica of an id, because that replica did not have it. */
    forget: (id: string) => Effect.sync(() => known.delete(id))
  }
})
