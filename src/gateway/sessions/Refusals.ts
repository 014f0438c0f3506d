/** The refusals of the gateway: for each error of opening or finding a session, what its client is told. */
import type { SessionPoolError } from "../../SessionPool.ts"
import type { Reason, Refusal, RefusalOptions } from "../conversation/Exchange.ts"
import { refusal } from "../conversation/Exchange.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import type { AcquireError } from "./Sessions.ts"

/** When a client may try again, in seconds. */
export const retryAfter = 10

/** Uses the code and the message of the official SDK's servers, because clients look for them. */
export const unknownSession = (id?: JsonRpc.Id): Refusal =>
  refusal("unknown", "Session not found; initialize again", { id, code: JsonRpc.codes.sessionNotFound })

export const shuttingDown = (options: RefusalOptions): Refusal =>
  refusal("unavailable", "The gateway is shutting down", { ...options, retryAfter })

/** Refuses a message whose session could not be opened or found. `code` is that of the gateway's own errors in the client's era. */
export const ofError = (
  error: AcquireError,
  id: JsonRpc.Id | undefined,
  code: number = JsonRpc.codes.gateway
): Refusal => {
  const refuse = (reason: Reason, message: string, retryAfter?: number) =>
    refusal(reason, message, { id, code, retryAfter })
  switch (error._tag) {
    case "UnknownSession":
      return unknownSession(id)
    case "SessionPoolError":
      return ofPool(error, id, code)
    case "InitializeRefused":
      return refuse(
        "back end failed",
        "The back end answered the handshake (initialize or server/discover) with an error"
      )
    case "BackendFailed":
      return error.shortage === true
        ? refuse("unavailable", error.message, retryAfter)
        : refuse("back end failed", error.message)
    default:
      return refuse(
        error._tag === "TooManyCalls" ? "too many" : "unavailable",
        error.message,
        error.retryAfter ?? retryAfter
      )
  }
}

const ofPool = ({ message, reason }: SessionPoolError, id: JsonRpc.Id | undefined, code: number): Refusal => {
  switch (reason._tag) {
    case "CapacityExceeded":
      return refusal(
        "unavailable",
        "All sessions that maxSessions or maxSessionsPerKey allows are in use; try again later",
        {
          id,
          code,
          retryAfter
        }
      )
    case "PoolClosed":
      return shuttingDown({ id, code })
    case "LookupTimeout":
      return refusal("back end failed", message, { id, code })
  }
}
