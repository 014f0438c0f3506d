/** What clients ask the broker for. */
import type { Effect, Scope } from "effect"
import type { Exchange, Refusal } from "../conversation/Exchange.ts"
import type * as JsonRpc from "../protocol/JsonRpc.ts"
import type { Identity } from "./Identity.ts"

/** A client of one back end. */
export interface Client {
  readonly backend: string
  readonly principal: Identity
  /**
   * Whether the client can be told from others. Clients that cannot be told apart share no process. Read only for calls without a session,
   * and for new sessions of a back end that keeps sessions by caller.
   */
  readonly known: Effect.Effect<boolean>
  /** True if a light session calls for its client. */
  readonly light?: boolean | undefined
}

/** What a client asks for. */
export type Ask =
  /** Opens a session with the client's `initialize`. */
  | { readonly _tag: "Open"; readonly message: JsonRpc.Request }
  /** Hands messages over to a session, in order. All answers come in one exchange. */
  | { readonly _tag: "Send"; readonly session: string; readonly messages: ReadonlyArray<JsonRpc.Message> }
  /** Listens to the messages of a session that belong to no request, or resumes the stream of the event `from`. */
  | { readonly _tag: "Listen"; readonly session: string; readonly from: string | undefined }
  /** Ends a session. The exchange comes when its process is gone. */
  | { readonly _tag: "End"; readonly session: string }
  /** Makes a request of revision 2026-07-28, which has no sessions. */
  | { readonly _tag: "Call"; readonly request: JsonRpc.Request }

/** The requests of an ask. */
export const requestsOf = (ask: Ask): ReadonlyArray<JsonRpc.Request> => {
  if (ask._tag === "Send") return ask.messages.filter((message) => message._tag === "Request")
  return ask._tag === "Open" ? [ask.message] : ask._tag === "Call" ? [ask.request] : []
}

/** The id of the request of an ask, for its refusal. Several requests have none. */
export const idOf = (ask: Ask): JsonRpc.Id | undefined => {
  const [first, second] = requestsOf(ask)
  return second === undefined ? first?.id : undefined
}

/** Carries out an ask. The exchange lives as long as the scope. */
export type Carrying = Effect.Effect<Exchange, Refusal, Scope.Scope>
