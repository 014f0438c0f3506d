/** On which replica shared ids are, as far as this one knows; the engine is asked where it does not. */
import type { Duration } from "effect"
import { Cause, Effect, Option } from "effect"
import * as Protocol from "./Protocol.ts"

/** How many are remembered. Forgotten is what was found first. */
const limit = 10_000

/** `self`: the name of this replica. */
export const make = Effect.fnUntraced(function*(self: string) {
  const client = yield* Protocol.Home.client
  const known = new Map<string, string>()
  const remember = (id: string, replica: string) => {
    // What is here says so itself, see `Hosting.enter`.
    if (replica === self) return
    known.set(id, replica)
    const oldest = known.size > limit ? known.keys().next().value : undefined
    if (oldest !== undefined) known.delete(oldest)
  }
  return {
    /**
     * The replica that has an id; none if the engine cannot tell, because this replica leaves. It waits while the shard moves. The
     * engine asks again when a connection breaks, which here does no harm.
     */
    of: (id: string, patience: Duration.Input): Effect.Effect<Option.Option<string>, Protocol.Moved> =>
      Effect.suspend(() => {
        const replica = known.get(id)
        if (replica !== undefined) return Effect.succeedSome(replica)
        return client(id).Locate().pipe(
          Effect.timeoutOrElse({ duration: patience, orElse: () => new Protocol.Moved() }),
          Effect.map((found) => {
            remember(id, found)
            return Option.some(found)
          }),
          Effect.catchCause((cause) => {
            const error = Option.getOrUndefined(Cause.findErrorOption(cause))
            if (error?._tag === "EntityNotAssignedToRunner") return Effect.succeedNone
            // An entity that ends interrupts whom it cannot answer any more.
            const isKnown = error !== undefined || Cause.hasInterruptsOnly(cause)
            const told = isKnown ? Effect.void : Effect.logWarning("A replica could not say what it has", cause)
            return Effect.andThen(told, new Protocol.Moved())
          })
        )
      }),
    /** It was not there. */
    forget: (id: string) => Effect.sync(() => known.delete(id))
  }
})
