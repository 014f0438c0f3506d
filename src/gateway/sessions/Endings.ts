/**
 * Why sessions end, in the operator's words. The pool knows only what it did (`Invalidated`, `Disconnected`). So the
 * code that ends a session, or sees its connection end, notes the reason here first.
 */
import { Duration } from "effect"
import type * as SessionPool from "../../SessionPool.ts"
import type { EndReason } from "../telemetry/GatewayMetrics.ts"
import type { BackendFailed } from "../transports/Transport.ts"
import type { Key } from "./Key.ts"

/** Why a session ended: `reason` is for the metrics, `text` for the log. */
export interface Ending {
  readonly reason: EndReason
  readonly text: string
}

export const deleted: Ending = { reason: "deleted", text: "the session was deleted" }
export const abandoned: Ending = { reason: "client gone", text: "the client disconnected before its session was open" }
export const byOperator: Ending = { reason: "ended by operator", text: "an operator ended the session" }
export const reloaded: Ending = { reason: "reloaded", text: "the configuration of the back end has changed" }
export const takenOver: Ending = { reason: "moved", text: "another replica took the session over" }
export const movesOn: Ending = { reason: "moved", text: "the session moves to another replica" }
export const replicaLost: Ending = {
  reason: "replica lost",
  text: "this replica was frozen for so long that the other replicas dropped it"
}
export const cancelled: Ending = {
  reason: "call cancelled",
  text: "a call that had the process to itself was cancelled, and the process has not answered it"
}

/** The ending of a connection that ended by itself. */
export const ofFailure = ({ ended, message }: BackendFailed): Ending => ({
  reason: ended ?? "backend failed",
  text: message
})

/** True for an ending that is logged as a warning. */
export const isFault = (reason: Ending["reason"]): boolean => reason === "process exited" || reason === "backend failed"

/** The ending of a session for which nothing was noted. */
export const ofPool = (reason: SessionPool.Reason, idleTimeToLive: Duration.Duration): Ending => {
  switch (reason) {
    case "IdleTimeout":
      return { reason: "idle", text: `no request and no stream for ${Duration.format(idleTimeToLive)}` }
    case "Evicted":
      return {
        reason: "evicted",
        text: "another session needed its place: maxSessions, or the caller's maxSessionsPerKey, was reached"
      }
    case "PoolClosed":
      return { reason: "shutdown", text: "the gateway is shutting down" }
    default:
      return { reason: "other", text: `the pool closed it: ${reason}` }
  }
}

/** Keeps a note by the key object of a launch, so two launches under equal keys have separate notes. */
export const make = () => {
  const noted = new WeakMap<Key, Ending>()
  const counts = new Map<string, number>()
  return {
    /** Notes why a session is about to end. Only the first note of a session counts. */
    note: (key: Key, ending: Ending): void => {
      if (!noted.has(key)) noted.set(key, ending)
    },
    noted: (key: Key): Ending | undefined => noted.get(key),
    /** Counts the end of a session, and returns its ending: the one that was noted, or `otherwise`. */
    closed: (key: Key, otherwise: Ending): Ending => {
      const ending = noted.get(key) ?? otherwise
      counts.set(ending.reason, (counts.get(ending.reason) ?? 0) + 1)
      return ending
    },
    /** The number of ends by reason, since the start. */
    counts: (): Readonly<Record<string, number>> => Object.fromEntries(counts)
  }
}
