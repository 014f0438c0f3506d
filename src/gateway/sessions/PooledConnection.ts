/**
 * What the pool holds for one key, whichever it is: the session of a legacy client on a process (`Bridge`) or on an HTTP back
 * end (`Upstream`), or a process of a modern client (`Lane`).
 */
import type { Scope } from "effect"
import { Deferred, Duration, Effect } from "effect"
import type { BackendFailed } from "../GatewayErrors.ts"
import type { ClientRecord } from "./ClientRecord.ts"

/**
 * How long a server may still answer a request that its client has cancelled. An answer that was on its way arrives; the
 * specification asks for none, so a longer wait would only hold the request's place.
 */
export const cancelGrace = Duration.seconds(1)

export interface PooledConnection {
  /** Completes when it has ended by itself, with why: the pool retires it then. */
  readonly ended: Deferred.Deferred<BackendFailed>
  /** Completes when its process group, or the upstream's session, is gone and everything is released. */
  readonly gone: Deferred.Deferred<void>
  /** What the server answered when it was asked to begin; for a session that is what its client gets. */
  readonly answer: string
  /** What its client has said of itself; a lane has no client of its own. */
  readonly record: ClientRecord | undefined
  readonly activity: () => Activity
  /** Ends it from the gateway's side: every request gets an error, every stream ends. */
  readonly end: (reason: string) => Effect.Effect<void>
}

/** What the page and the list of sessions show. */
export interface Activity {
  readonly pid: number | undefined
  readonly client: string | undefined
  readonly inFlight: number
  readonly streams: number
  readonly requests: number
  readonly errors: number
}

/** Completes when the scope has closed. To be made first of all that the scope gets: finalizers run newest first. */
export const gone: Effect.Effect<Deferred.Deferred<void>, never, Scope.Scope> = Effect.acquireRelease(
  Deferred.make<void>(),
  (gone) => Deferred.succeed(gone, undefined)
)
