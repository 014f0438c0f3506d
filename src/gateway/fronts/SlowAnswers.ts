/**
 * A request without an answer after `streamAfter` gets an event stream with heartbeats, so that neither its client nor
 * a proxy times out. The stream ends with the answer, or with a JSON-RPC error in place of the response's error status.
 */
import type { Scope } from "effect"
import { Cause, Duration, Effect, Fiber, Option, Stream } from "effect"
import type { HttpServerResponse } from "effect/http"
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import * as Settings from "../settings/Settings.ts"
import * as EventStreamBody from "./EventStreamBody.ts"
import * as Serving from "./Serving.ts"

type Response = HttpServerResponse.HttpServerResponse

/**
 * Methods that get no early stream. Their HTTP status reports whether the back end started, and `startTimeout` bounds
 * their wait.
 */
const neverStreamed: ReadonlyArray<string> = ["initialize", "server/discover"]

/**
 * The response, or an event stream that ends with it. A forwarded request gets no stream here, because the replica that
 * received it opens one.
 */
export const streamed = (
  serving: Serving.Serving,
  { carried, request }: Serving.Asking,
  messages: ReadonlyArray<JsonRpc.Message>,
  respond: Effect.Effect<Response, never, Scope.Scope>
): Effect.Effect<Response, never, Scope.Scope> => {
  const ids = messages.flatMap((message) =>
    message._tag === "Request" && !neverStreamed.includes(message.method) ? [message.id] : []
  )
  return carried !== undefined || ids.length === 0 ? respond : Effect.gen(function*() {
    const fiber = yield* Effect.forkScoped(respond)
    const soon = yield* Effect.timeoutOption(Fiber.join(fiber), Settings.firstSilence(serving.settings))
    if (Option.isSome(soon)) return soon.value
    const silence = EventStreamBody.make(Effect.andThen(Fiber.await(fiber), Cause.done()), {
      ...Serving.streamOptions(serving, request),
      greetAfter: Duration.zero
    })
    const rest = Effect.map(Fiber.join(fiber), (response) =>
      response.body._tag === "Stream"
        ? response.body.stream
        : Stream.succeed(EventStreamBody.chunk(answers(response, ids).map((text) => ({ text })))))
    return EventStreamBody.response(Stream.concat(silence, Stream.unwrap(rest)))
  })
}

/**
 * One JSON-RPC answer for each request, taken from a response that is no stream. A request that it does not answer gets
 * an error.
 */
const answers = ({ body, status }: Response, ids: ReadonlyArray<JsonRpc.Id>): ReadonlyArray<string> => {
  const text = body._tag === "Uint8Array" ? new TextDecoder().decode(body.body) : ""
  const found = new Map(
    [Option.getOrUndefined(Json.parse(text))].flat().flatMap((json) => {
      const message = JsonRpc.classify(json, Json.stringify(json))
      return message?._tag === "Response" ? [[JsonRpc.idKey(message.id), message] as const] : []
    })
  )
  const without = `the request got status ${status} and no JSON-RPC message; the gateway's log may have the cause`
  // A refusal of the whole body has the id null.
  const ofAll = found.get("null")
  return ids.map((id) => {
    const own = found.get(JsonRpc.idKey(id))
    if (own !== undefined) return own.text
    return ofAll === undefined
      ? JsonRpc.error(id, JsonRpc.codes.internal, without).text
      : JsonRpc.failure(id, ofAll.error).text
  })
}
