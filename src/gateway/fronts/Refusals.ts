/** Refused requests on HTTP: the status and the headers for each refusal. */
import { Effect } from "effect"
import type { HttpServerResponse } from "effect/http"
import { HttpServerRespondable } from "effect/http"
import { jsonResponse } from "../auth/Routes.ts"
import type { Reason } from "../conversation/Exchange.ts"
import type { Refusal } from "../conversation/Exchange.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import * as GatewayMetrics from "../telemetry/GatewayMetrics.ts"

const statuses: Readonly<Record<Reason, number>> = {
  "invalid": 400,
  "unknown": 404,
  "too many": 429,
  "back end failed": 502,
  "unavailable": 503
}

/** A request that HTTP itself refuses, such as one with a wrong `Accept`. */
export class HttpRefusal implements HttpServerRespondable.Respondable {
  readonly _tag = "HttpRefusal"
  readonly error: JsonRpc.Response
  readonly status: number
  readonly headers: Record<string, string>
  constructor(status: number, error: JsonRpc.Response, headers: Record<string, string> = {}) {
    this.status = status
    this.error = error
    this.headers = headers
  }

  [HttpServerRespondable.symbol]() {
    return Effect.succeed(jsonResponse(this.error.text, this.status, this.headers))
  }
}

export interface RefusalOptions {
  readonly id?: JsonRpc.Id
  readonly code?: number
  readonly headers?: Record<string, string>
}

export const refuse = (
  status: number,
  message: string,
  options: RefusalOptions = {}
): Effect.Effect<never, HttpRefusal> => {
  const { code = JsonRpc.codes.gateway, headers, id = null } = options
  return Effect.fail(new HttpRefusal(status, JsonRpc.error(id, code, message), headers))
}

/** The response to a refused request. Counts it. */
export const responseTo = (refusal: Refusal | HttpRefusal): Effect.Effect<HttpServerResponse.HttpServerResponse> => {
  const { error, headers, status } = refusal._tag === "HttpRefusal" ? refusal : asHttp(refusal)
  return Effect.as(GatewayMetrics.refused(status), jsonResponse(error.text, status, headers))
}

const asHttp = ({ error, reason, retryAfter }: Refusal) => ({
  error,
  status: statuses[reason],
  headers: retryAfter === undefined ? {} : { "retry-after": String(retryAfter) }
})

/** The response with a request's answer. `reason` decides the status; without a reason it is 200. */
export const answerResponse = (text: string, reason: Reason | undefined): HttpServerResponse.HttpServerResponse =>
  reason === undefined
    ? jsonResponse(text, 200)
    : jsonResponse(text, statuses[reason], reason === "unavailable" ? { "retry-after": "10" } : {})
