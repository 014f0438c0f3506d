/** Responses that are streams, kept for other replicas, which take them piece by piece. */
import { Cause, Effect, Exit, Option, Scope, Stream } from "effect"
import type { Pull } from "effect"
import type { HttpServerResponse } from "effect/http"
import { randomUUID } from "node:crypto"
import * as Protocol from "./Protocol.ts"

/** How long it may take until the first piece is asked for. */
const firstTimeout = "5 seconds"

interface Kept {
  readonly pull: Pull.Pull<ReadonlyArray<Uint8Array>>
  /** Of the request that is answered. */
  readonly scope: Scope.Closeable
  /** The connection that the request came on. */
  readonly client: number
  isTaken: boolean
}

/** One function, for its members share the responses that are kept. */
export const make = () => {
  const all = new Map<string, Kept>()

  const abandon = (id: string) =>
    Effect.suspend(() => {
      const kept = all.get(id)
      return kept !== undefined && all.delete(id) ? Scope.close(kept.scope, Exit.void) : Effect.void
    })

  return {
    /** Keeps a response until it is over, or nobody wants it; then the scope is closed. */
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

    /** The next chunks, none at the end. Whoever is interrupted meanwhile does not come back. */
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

    /** A connection is gone: nobody asks for what was answered on it. */
    disconnected: (client: number) =>
      Effect.suspend(() =>
        Effect.forEach([...all].filter(([, kept]) => kept.client === client), ([id]) => abandon(id), { discard: true })
      )
  }
}
