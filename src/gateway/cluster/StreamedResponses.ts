/** Streamed responses that this replica keeps for other replicas, which fetch them chunk by chunk. */
import { Cause, Effect, Exit, Option, Scope, Stream } from "effect"
import type { Pull } from "effect"
import type { HttpServerResponse } from "effect/http"
import { randomUUID } from "node:crypto"
import * as Protocol from "./Protocol.ts"

/** How long a response waits for its first `next`. Then it is abandoned. */
const firstTimeout = "5 seconds"

interface Kept {
  readonly pull: Pull.Pull<ReadonlyArray<Uint8Array>>
  /** The scope of the request. */
  readonly scope: Scope.Closeable
  /** The connection on which the request came. */
  readonly client: number
  /** True once `next` was called. */
  isTaken: boolean
}

/** Makes the store. One function, because its members share the kept responses. */
export const make = () => {
  const all = new Map<string, Kept>()

  /** Drops a response and closes the scope of its request. A no-op for an unknown id. */
  const abandon = (id: string) =>
    Effect.suspend(() => {
      const kept = all.get(id)
      return kept !== undefined && all.delete(id) ? Scope.close(kept.scope, Exit.void) : Effect.void
    })

  return {
    /** Keeps a response until its end or until it is abandoned, then closes the scope of the request. */
    keep: Effect.fnUntraced(function*(
      { headers, status }: HttpServerResponse.HttpServerResponse,
      body: Stream.Stream<Uint8Array, unknown>,
      scope: Scope.Closeable,
      client: number
    ) {
      const id = randomUUID()
      const pull = yield* Scope.provide(Stream.toPull(Stream.orDie(body)), scope)
      const kept: Kept = { pull, scope, client, isTaken: false }
      all.set(id, kept)
      const unlessTaken = Effect.suspend(() => kept.isTaken ? Effect.void : abandon(id))
      yield* Effect.forkIn(Effect.delay(unlessTaken, firstTimeout), scope)
      const answer: typeof Protocol.Streamed.Type = { _tag: "Streamed", status, headers: { ...headers }, id }
      return answer
    }),

    /**
     * The next chunks; an empty list at the end. An interruption ends the response, because the replica that asked for it does not ask
     * again.
     */
    next: (id: string): Effect.Effect<ReadonlyArray<Uint8Array>, Protocol.Moved> =>
      Effect.uninterruptibleMask((restore) =>
        Effect.suspend(() => {
          const kept = all.get(id)
          if (kept === undefined) return new Protocol.Moved()
          kept.isTaken = true
          all.delete(id)
          return Effect.matchCauseEffect(restore(kept.pull), {
            onSuccess: (chunks) =>
              Effect.sync(() => {
                all.set(id, kept)
                return chunks
              }),
            onFailure: (cause) =>
              Effect.andThen(
                Scope.close(kept.scope, Exit.void),
                Cause.isDone(Option.getOrUndefined(Cause.findErrorOption(cause)))
                  ? Effect.succeed([])
                  : Effect.failCause(Cause.die(Cause.squash(cause)))
              )
          })
        })
      ),

    abandon,

    /** Abandons the responses to the requests of a connection that has broken. */
    disconnected: (client: number) =>
      Effect.suspend(() =>
        Effect.forEach([...all].filter(([, kept]) => kept.client === client), ([id]) => abandon(id), { discard: true })
      )
  }
}
