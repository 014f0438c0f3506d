/** The replies to a client, and the reasons why a message is refused. A front translates them, such as to HTTP responses. */
import type { Cause } from "effect"
import { Data, Effect } from "effect"
import * as JsonRpc from "../protocol/JsonRpc.ts"

/** Why a message gets an error. A front translates it, such as to an HTTP status. */
export type Reason =
  /** The message is not valid, or not valid now. */
  | "invalid"
  /** The session, the back end or the method does not exist. */
  | "unknown"
  /** The client does too much at once. */
  | "too many"
  /** The back end failed. */
  | "back end failed"
  /** Not now; the client may try again later. */
  | "unavailable"

/** A message that was not carried out. */
export class Refusal extends Data.TaggedClass("Refusal")<{
  readonly reason: Reason
  /** The error for the client. */
  readonly error: JsonRpc.Response
  /** When to try again, in seconds. */
  readonly retryAfter: number | undefined
}> {}

export interface RefusalOptions {
  readonly id?: JsonRpc.Id | undefined
  readonly code?: number | undefined
  readonly data?: unknown
  readonly retryAfter?: number | undefined
}

/** Makes a refusal. Default code: the gateway's own (-32000). */
export const refusal = (reason: Reason, message: string, options: RefusalOptions = {}): Refusal => {
  const { code = JsonRpc.codes.gateway, data, id = null, retryAfter } = options
  return new Refusal({ reason, error: JsonRpc.error(id, code, message, data), retryAfter })
}

/** A message for the client. */
export interface Event {
  /** A client whose connection broke can resume after the event with this id. */
  readonly id?: string | undefined
  readonly text: string
}

/** The next events, at least one. Waits if there are none. Fails with `Done` at the end. */
export type Take = Effect.Effect<ReadonlyArray<Event>, Cause.Done>

/** Takes `first` once, and then what `rest` takes. */
export const startWith = (first: ReadonlyArray<Event>, rest: Take): Take => {
  let isFirst = true
  return Effect.suspend(() => {
    if (!isFirst) return rest
    isFirst = false
    return Effect.succeed(first)
  })
}

/** The answer to a request. `reason` is set if the front must also report the error itself, such as by an HTTP status. */
export interface Answer extends Event {
  readonly _tag: "Answer"
  readonly reason?: Reason | undefined
}

/** Events that end with the answer to a request, or that never end because the client listens. */
export interface Events {
  readonly _tag: "Events"
  /** The id of the point before the first event, if a client can resume from it. */
  readonly start?: string | undefined
  readonly take: Take
  /** True if `take` would not wait. Without it, any `take` may wait. */
  readonly ready?: () => boolean
}

/** Nothing follows: a notification was accepted, a request was cancelled, or a stream is over. */
export interface Nothing {
  readonly _tag: "Nothing"
}

export type Reply = Answer | Events | Nothing

export const nothing: Reply = { _tag: "Nothing" }

/**
 * A message that has been handed over to its server. The exchange lives as long as its scope: when the client disconnects, a request of a
 * session goes on, and a call without a session is cancelled.
 */
export interface Exchange {
  /** The id of the session that the message opened. */
  readonly session?: string | undefined
  /** The first reply. It comes within `streamAfter`: a request that is not answered by then gets `Events`. */
  readonly reply: Effect.Effect<Reply, Refusal>
}

/** An exchange with a reply that is there. */
export const replyWith = (reply: Reply, session?: string): Exchange => ({ session, reply: Effect.succeed(reply) })
