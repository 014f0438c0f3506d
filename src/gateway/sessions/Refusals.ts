/** The refusals of the gateway: for each error of opening or finding a session, what its client is told. */
import type { Refusal, RefusalOptions } from "../conversation/Exchange.ts"
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
  const options = { id, code }
  const later = { ...options, retryAfter }
  switch (error._tag) {
    case "UnknownSession":
      return unknownSession(id)
    case "TooManyCalls":
      return refusal("too many", error.message, later)
    case "BackendFull":
    case "LanesTaken":
    case "RecordsUnreachable":
    case "SessionMoved":
      return refusal("unavailable", error.message, later)
    case "CoolingDown":
      return refusal("unavailable", error.message, { ...options, retryAfter: error.seconds })
    case "SessionPoolError":
      switch (error.reason._tag) {
        case "CapacityExceeded": {
          const message = "All sessions that maxSessions or maxSessionsPerKey allows are in use; try again later"
          return refusal("unavailable", message, later)
        }
        case "PoolClosed":
          return shuttingDown(options)
        case "LookupTimeout":
          return refusal("back end failed", error.message, options)
      }
    case "InitializeRefused": {
      const message = "The back end answered the handshake (initialize or server/discover) with an error"
      return refusal("back end failed", message, options)
    }
    case "BackendFailed":
      return error.shortage === true
        ? refusal("unavailable", error.message, later)
        : refusal("back end failed", error.message, options)
  }
}
