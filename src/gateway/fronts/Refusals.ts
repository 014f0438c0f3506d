/** Refused requests on HTTP: the status and the headers for each refusal. */
import { Effect } from "effect"
import { HttpServerResponse } from "effect/http"
import { jsonResponse } from "../auth/Routes.ts"
import type { Reason, Refusal } from "../conversation/Exchange.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import * as GatewayMetrics from "../telemetry/GatewayMetrics.ts"

const statuses: Readonly<Record<Reason, number>> = {
  "invalid": 400,
  "unknown": 404,
  "too many": 429,
  "back end failed": 502,
  "unavailable": 503
}

export interface RefusalOptions {
  readonly id?: JsonRpc.Id
  readonly code?: number
  readonly headers?: Record<string, string>
}

/** Fails with the response to a request that HTTP itself refuses, such as one with a wrong `Accept`. */
export const refuse = (
  status: number,
  message: string,
  { code = JsonRpc.codes.gateway, headers, id = null }: RefusalOptions = {}
): Effect.Effect<never, HttpServerResponse.HttpServerResponse> =>
  Effect.fail(jsonResponse(JsonRpc.error(id, code, message).text, status, headers))

/** The response to a refused request. Counts it. */
export const responseTo = (
  refusal: Refusal | HttpServerResponse.HttpServerResponse
): Effect.Effect<HttpServerResponse.HttpServerResponse> => {
  const response = HttpServerResponse.isHttpServerResponse(refusal) ? refusal : responseOf(refusal)
  return Effect.as(GatewayMetrics.refused(response.status), response)
}

const responseOf = ({ error, reason, retryAfter }: Refusal) =>
  jsonResponse(error.text, statuses[reason], retryAfter === undefined ? {} : { "retry-after": String(retryAfter) })

/** The response with a request's answer. `reason` decides the status; without a reason it is 200. */
export const answerResponse = (text: string, reason: Reason | undefined): HttpServerResponse.HttpServerResponse =>
  reason === undefined
    ? jsonResponse(text, 200)
    : jsonResponse(text, statuses[reason], reason === "unavailable" ? { "retry-after": "10" } : {})
