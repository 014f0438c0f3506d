/** Refused requests: the status and the message that the client gets. */
import { Cause, Effect } from "effect"
import { HttpServerError, HttpServerResponse } from "effect/http"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import type * as Modern from "../protocol/Modern.ts"
import type { AcquireError } from "../sessions/Sessions.ts"
import * as GatewayMetrics from "../telemetry/GatewayMetrics.ts"

/** A refused request: its response, and in `text` the JSON-RPC error of that response. */
export class Refusal {
  readonly _tag = "Refusal"
  readonly text: string
  readonly response: HttpServerResponse.HttpServerResponse
  constructor(text: string, status: number, headers?: Record<string, string>) {
    this.text = text
    this.response = jsonResponse(text, status, headers)
  }
}

export interface RefusalOptions {
  readonly id?: JsonRpc.Id
  readonly code?: number
  readonly headers?: Record<string, string>
}

export const refuse = (status: number, message: string, options?: RefusalOptions): Effect.Effect<never, Refusal> =>
  Effect.andThen(
    GatewayMetrics.refused(status),
    Effect.fail(
      new Refusal(
        JsonRpc.error(options?.id ?? null, options?.code ?? JsonRpc.codes.gateway, message).text,
        status,
        options?.headers
      )
    )
  )

/**
 * Refuses a request of revision 2026-07-28. The specification reserves the codes below -32000, so a fault without a
 * code of its own gets that of an internal error.
 */
export const refuseModern = (
  id: JsonRpc.Id,
  { code, data, message, status }: Modern.Fault
): Effect.Effect<never, Refusal> =>
  Effect.andThen(
    GatewayMetrics.refused(status),
    Effect.fail(new Refusal(JsonRpc.error(id, code, message, data).text, status))
  )

export const retryLater = { "retry-after": "10" }

/** Uses the code and the message of the official SDK's servers, because clients look for them. */
export const unknownSession = (id?: JsonRpc.Id) =>
  refuse(404, "Session not found; initialize again", {
    ...(id === undefined ? {} : { id }),
    code: JsonRpc.codes.sessionNotFound
  })

export const shuttingDown = (id?: JsonRpc.Id, code: number = JsonRpc.codes.gateway) =>
  refuse(503, "The gateway is shutting down", { ...(id === undefined ? {} : { id }), code, headers: retryLater })

/**
 * Gives every 503 a body and `Retry-After`. An empty 503 has two sources: the server's shutdown interrupts a request,
 * or a back end answers with one. Add the route as uninterruptible; this makes the handler interruptible again.
 */
export const complete = <E, R>(
  handler: Effect.Effect<HttpServerResponse.HttpServerResponse, E, R>
): Effect.Effect<HttpServerResponse.HttpServerResponse, E, R> =>
  Effect.matchCauseEffect(Effect.interruptible(handler), {
    onSuccess: (response) => Effect.succeed(response.status === 503 ? withReason(response) : response),
    onFailure: (cause) =>
      Cause.hasInterruptsOnly(cause) && !cause.reasons.some(isClientAbort)
        ? Effect.as(GatewayMetrics.refused(503), HttpServerResponse.setHeader(stopping, "connection", "close"))
        : Effect.failCause(cause)
  })

const isClientAbort = (reason: Cause.Reason<unknown>): boolean =>
  reason.annotations.has(HttpServerError.ClientAbort.key)

const withReason = (response: HttpServerResponse.HttpServerResponse): HttpServerResponse.HttpServerResponse => {
  const { body, headers } = response
  const isEmpty = body._tag === "Empty" || body._tag === "Uint8Array" && body.body.length === 0
  const whole = isEmpty ? unavailable : response
  return headers["retry-after"] === undefined ? HttpServerResponse.setHeaders(whole, retryLater) : whole
}

/**
 * Refuses a request whose session could not be opened or found. `code` is that of the gateway's own errors in the
 * client's era.
 */
export const refuseFailure = (
  error: AcquireError,
  id: JsonRpc.Id | undefined,
  code: number = JsonRpc.codes.gateway
): Effect.Effect<never, Refusal> => {
  const options = { ...(id === undefined ? {} : { id }), code }
  const later = { ...options, headers: retryLater }
  switch (error._tag) {
    case "UnknownSession":
      return unknownSession(id)
    case "BackendFull":
    case "LanesTaken":
      return refuse(503, error.message, later)
    case "TooManyCalls":
      return refuse(429, error.message, later)
    case "RecordsUnreachable":
    case "SessionMoved":
      return refuse(503, error.message, later)
    case "CoolingDown":
      return refuse(503, error.message, { ...options, headers: { "retry-after": String(error.seconds) } })
    case "SessionPoolError":
      switch (error.reason._tag) {
        case "CapacityExceeded":
          return refuse(
            503,
            "All sessions that maxSessions or maxSessionsPerKey allows are in use; try again later",
            later
          )
        case "PoolClosed":
          return shuttingDown(id, code)
        case "LookupTimeout":
          return refuse(502, error.message, options)
      }
    case "InitializeRefused":
      return refuse(502, "The back end answered the handshake (initialize or server/discover) with an error", options)
    case "BackendFailed":
      return error.shortage === true ? refuse(503, error.message, later) : refuse(502, error.message, options)
  }
}

export const jsonResponse = (
  text: string,
  status: number,
  headers: Record<string, string> = {}
): HttpServerResponse.HttpServerResponse =>
  HttpServerResponse.text(text, { status, contentType: "application/json", headers })

const own503 = (message: string): HttpServerResponse.HttpServerResponse =>
  jsonResponse(JsonRpc.error(null, JsonRpc.codes.gateway, message).text, 503, retryLater)
const stopping = own503("The gateway is shutting down")
const unavailable = own503("The back end is not available now; try again later")
