/** What every HTTP route of the gateway needs: a literal path, and an answer when the server stops. */
import { Cause, Effect } from "effect"
import { HttpServerError, HttpServerResponse } from "effect/http"
import * as GatewayMetrics from "../telemetry/GatewayMetrics.ts"

/**
 * True if the URL's path is written literally as `path`. If `path` has a parameter, only the part before the parameter is compared.
 * The router also takes `//sessions`, `/Sessions` and `/%73essions` for `/sessions`. A proxy that blocks `/sessions` may let those through.
 */
export const isLiteral = (path: string, url: string): boolean => {
  const [given = ""] = url.split("?", 1)
  const parameter = path.indexOf(":")
  return parameter < 0 ? given === path : given.startsWith(path.slice(0, parameter))
}

export const jsonResponse = (
  text: string,
  status: number,
  headers?: Record<string, string>
): HttpServerResponse.HttpServerResponse =>
  HttpServerResponse.text(text, { status, contentType: "application/json", headers })

/**
 * Answers a request that the server's shutdown interrupts with 503. Effect's own 503 has no body and no `Retry-After`. Add the route as
 * uninterruptible; this makes the handler interruptible again.
 */
export const complete = <E, R>(
  handler: Effect.Effect<HttpServerResponse.HttpServerResponse, E, R>
): Effect.Effect<HttpServerResponse.HttpServerResponse, E, R> =>
  Effect.catchCause(
    Effect.interruptible(handler),
    (cause) =>
      Cause.hasInterruptsOnly(cause) && !cause.reasons.some(isClientAbort)
        ? Effect.as(GatewayMetrics.refused(503), stopping)
        : Effect.failCause(cause)
  )

const isClientAbort = (reason: Cause.Reason<unknown>): boolean =>
  reason.annotations.has(HttpServerError.ClientAbort.key)

const stopping = jsonResponse(
  JSON.stringify({ jsonrpc: "2.0", id: null, error: { code: -32000, message: "The gateway is shutting down" } }),
  503,
  { "retry-after": "10", connection: "close" }
)
