/**
 * What all connections in the pool have in common: a legacy client's session on a back end (`Bridge`), and a lane of a
 * modern client (`Lane`).
 */
import { Data, Deferred, Effect } from "effect"
import type * as JsonRpc from "../protocol/JsonRpc.ts"
import type { BackendFailed, Receiver, Transport } from "../transports/Transport.ts"

/** The back end answered the handshake with an error. The client gets it as the answer to its `initialize`. */
export class InitializeRefused extends Data.TaggedError("InitializeRefused")<{ readonly answer: JsonRpc.Response }> {}

export interface PooledConnection {
  /** Completes with the reason when the connection ends by itself. The pool then retires it. */
  readonly ended: Deferred.Deferred<BackendFailed>
  readonly activity: () => Activity
  /** Ends the connection: every request gets an error, every stream ends. */
  readonly end: (reason: string) => Effect.Effect<void>
}

/** The figures that the page and the list of sessions show. */
export interface Activity {
  readonly pid: number | undefined
  readonly client: string | undefined
  readonly inFlight: number
  readonly streams: number
  readonly requests: number
  readonly errors: number
}

/** The requests of a connection, which receive the messages of its server. */
export interface Requests extends Receiver {
  /** Ends all of them. `cause` is set if the server has failed. */
  readonly end: (reason: string, cause?: BackendFailed) => void
}

/** Connects requests to their server. They end with the server, or with the scope. */
export const attach = Effect.fnUntraced(function*(server: Transport, requests: Requests) {
  yield* server.attach(requests)
  yield* Effect.addFinalizer(() => Effect.sync(() => requests.end("the session has ended")))
  yield* Effect.forkScoped(
    Effect.map(Deferred.await(server.ended), (failure) => requests.end(failure.message, failure))
  )
})

/** The answer to a request of the handshake. Fails if the server ended before it answered. */
export const answerOf = (
  { ended }: Transport,
  asked: Effect.Effect<JsonRpc.Response>
): Effect.Effect<JsonRpc.Response, BackendFailed> =>
  Effect.flatMap(
    asked,
    (answer) => Deferred.isDoneUnsafe(ended) ? Effect.flip(Deferred.await(ended)) : Effect.succeed(answer)
  )
