/** The refusals of the gateway: for each error of opening or finding a session, what its client is told. */
import type { Reason, Refusal, RefusalOptions } from "../conversation/Exchange.ts"
import { refusal } from "../conversation/Exchange.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import type { UnknownSession } from "./GatewayErrors.ts"
import type { AcquireError } from "./Sessions.ts"

/** When a client may try again, in seconds. */
export const retryAfter = 10

/** Uses the code and the message of the official SDK's servers, because clients look for them. */
export const unknownSession = (id?: JsonRpc.Id): Refusal =>
  refusal("unknown", "Session not found; initialize again", { id, code: JsonRpc.codes.sessionNotFound })

export const shuttingDown = (options: RefusalOptions): Refusal =>
  refusal("unavailable", ending, { ...options, retryAfter })

/** Refuses a message whose session could not be opened or found. `code` is that of the gateway's own errors in the client's era. */
export const ofError = (
  error: AcquireError,
  id: JsonRpc.Id | undefined,
  code: number = JsonRpc.codes.gateway
): Refusal => {
  if (error._tag === "UnknownSession") return unknownSession(id)
  const [reason, message, seconds] = describe(error)
  return refusal(reason, message, { id, code, retryAfter: seconds })
}

/** The reason, the message, and when to try again. */
const describe = (error: Exclude<AcquireError, UnknownSession>): readonly [Reason, string, number?] => {
  switch (error._tag) {
    case "TooManyCalls":
      return ["too many", error.message, retryAfter]
    case "BackendFailed":
      return error.shortage === true
        ? ["unavailable", error.message, retryAfter]
        : ["back end failed", error.message]
    case "InitializeRefused":
      return ["back end failed", "The back end answered the handshake (initialize or server/discover) with an error"]
    case "SessionPoolError":
      return ["unavailable", error.reason._tag === "CapacityExceeded" ? allInUse : ending, retryAfter]
    default:
      return ["unavailable", error.message, error.retryAfter ?? retryAfter]
  }
}

const allInUse =
  "All sessions that maxSessions, or maxSessionsPerKey for one caller, allows are in use; try again later"
const ending = "The gateway is shutting down"
