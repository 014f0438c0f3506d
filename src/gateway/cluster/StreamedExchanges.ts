/** Streamed exchanges that this replica keeps for other replicas, which fetch the events list by list. */
import { Cause, Effect, Exit, Scope } from "effect"
import { randomUUID } from "node:crypto"
import type { Take } from "../conversation/Exchange.ts"
import * as Protocol from "./Protocol.ts"

/** How long an exchange waits for its first `next`. Then it is abandoned. */
const firstTimeout = "5 seconds"

interface Kept {
  readonly take: Take
  readonly scope: Scope.Closeable
  /** The connection on which the ask came. */
  readonly client: number
  /** True once `next` was called. */
  isTaken: boolean
}

/** Makes the store. One function, because its members share the kept exchanges. */
export const make = () => {
  const all = new Map<string, Kept>()

  /** Drops an exchange and closes its scope. A no-op for an unknown id. */
  const abandon = (id: string) =>
    Effect.suspend(() => {
      const kept = all.get(id)
      return kept !== undefined && all.delete(id) ? Scope.close(kept.scope, Exit.void) : Effect.void
    })

  return {
    /** Keeps an exchange until its end or until it is abandoned, then closes its scope. Returns its id. */
    keep: Effect.fnUntraced(function*(take: Take, scope: Scope.Closeable, client: number) {
      const id = randomUUID()
      const kept: Kept = { take, scope, client, isTaken: false }
      all.set(id, kept)
      const unlessTaken = Effect.suspend(() => kept.isTaken ? Effect.void : abandon(id))
      yield* Effect.forkIn(Effect.delay(unlessTaken, firstTimeout), scope)
      return id
    }),

    /** The next events. An interruption ends the exchange, because the replica that asked for them does not ask again. */
    next: (id: string): Effect.Effect<typeof Protocol.Events.Type, Protocol.Moved> =>
      Effect.uninterruptibleMask((restore) =>
        Effect.suspend(() => {
          const kept = all.get(id)
          if (kept === undefined) return new Protocol.Moved()
          kept.isTaken = true
          all.delete(id)
          return Effect.matchCauseEffect(restore(kept.take), {
            onSuccess: (events) =>
              Effect.sync(() => {
                all.set(id, kept)
                return { events, done: false }
              }),
            onFailure: (cause) =>
              Effect.andThen(
                Scope.close(kept.scope, Exit.void),
                Cause.hasFails(cause)
                  ? Effect.succeed({ events: [], done: true })
                  : Effect.failCause(Cause.die(Cause.squash(cause)))
              )
          })
        })
      ),

    abandon,

    /** Abandons the exchanges whose ask came on a connection that has broken. */
    disconnected: (client: number) =>
      Effect.suspend(() =>
        Effect.forEach([...all].filter(([, kept]) => kept.client === client), ([id]) => abandon(id), { discard: true })
      )
  }
}
