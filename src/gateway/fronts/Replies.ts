/**
 * The responses of Streamable HTTP, made from what the broker answers: JSON if a request's answer comes first and soon, else an event stream
 * that ends with the answer. A request without an answer after `streamAfter` gets its stream with heartbeats then, so that neither its
 * client nor a proxy times out.
 */
import type { Scope } from "effect"
import { Cause, Effect, Fiber, Option, Result, Stream } from "effect"
import type { HttpServerRequest } from "effect/http"
import { HttpServerResponse } from "effect/http"
import type { Exchange, Refusal, Reply } from "../conversation/Exchange.ts"
import { refusal } from "../conversation/Exchange.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import type { Ask, Carrying, Client } from "../sessions/Ask.ts"
import type { Broker } from "../sessions/Broker.ts"
import * as Settings from "../settings/Settings.ts"
import * as EventStreamBody from "./EventStreamBody.ts"
import { answerResponse } from "./Refusals.ts"

/** From this revision on, an event stream begins with an event without data, so that a client can resume from the start. */
const primingVersion = "2025-11-25"

/** The state of the front. */
export interface Web {
  readonly broker: Broker
  readonly settings: Settings.GatewaySettings
  /** The event streams that are open. */
  readonly bodies: Set<EventStreamBody.OpenBody>
}

/** A request whose host, origin and caller are accepted, and whose back end exists. */
export interface Asking {
  readonly request: HttpServerRequest.HttpServerRequest
  readonly client: Client
  /** When the client's credentials expire, in milliseconds since 1970. Its event streams end then. Undefined if never. */
  readonly expiresAt: number | undefined
  /** The revision in the header `MCP-Protocol-Version`. */
  readonly version: string | undefined
}

type Response = HttpServerResponse.HttpServerResponse
type Responding = Effect.Effect<Response, Refusal, Scope.Scope>

/** The response to a notification or a response. */
export const accepted: Response = HttpServerResponse.empty({ status: 202 })
const noContent: Response = HttpServerResponse.empty({ status: 204 })

/** Opens a session. Its status reports whether the back end started, so it gets no early stream. */
export const toInitialize = (web: Web, asking: Asking, message: JsonRpc.Request): Responding =>
  Effect.flatMap(
    web.broker.ask(asking.client, { _tag: "Open", message }),
    ({ reply, session }) =>
      Effect.map(reply, (reply) => {
        const response = responseOf(web, asking, reply, EventStreamBody.unanswered)
        return session === undefined ? response : HttpServerResponse.setHeader(response, "mcp-session-id", session)
      })
  )

/** Hands the messages of one body to a session. */
export const toMessages = (
  web: Web,
  asking: Asking,
  session: string,
  messages: ReadonlyArray<JsonRpc.Message>
): Responding => {
  const ids = messages.flatMap((message) => message._tag === "Request" ? [message.id] : [])
  return answered(web, asking, { _tag: "Send", session, messages }, ids)
}

/** Makes a call without a session. */
export const toCall = (web: Web, asking: Asking, request: JsonRpc.Request): Responding =>
  // The status of `server/discover` reports whether the back end started, so it gets no early stream.
  answered(web, asking, { _tag: "Call", request }, request.method === "server/discover" ? [] : [request.id])

/** Listens to a session. */
export const toListener = (web: Web, asking: Asking, session: string, from: string | undefined): Responding =>
  Effect.map(
    Effect.flatMap(web.broker.ask(asking.client, { _tag: "Listen", session, from }), replyOf),
    (reply) =>
      // 204 tells an EventSource not to reconnect. After an empty stream it would reconnect forever.
      reply._tag === "Nothing"
        ? noContent
        : EventStreamBody.response(Stream.interruptWhen(bodyOf(web, asking, reply), web.broker.draining))
  )

/** Ends a session, and responds when its process group has exited. Its GET streams end after the response. */
export const toDelete = ({ broker }: Web, { client }: Asking, session: string): Responding =>
  Effect.as(broker.ask(client, { _tag: "End", session }), noContent)

/**
 * Asks the broker, and responds with its reply. `ids` are the requests that get an early stream if the reply takes long. If the exchange is
 * there at once, the broker bounds the wait for the reply. Otherwise, such as while a session wakes, `orEarly` does.
 */
const answered = (web: Web, asking: Asking, ask: Ask, ids: ReadonlyArray<JsonRpc.Id>): Responding => {
  const asked = web.broker.ask(asking.client, ask)
  const otherwise = ids.length === 0 ? accepted : EventStreamBody.unanswered
  const respond = (asked: Carrying) =>
    Effect.map(Effect.flatMap(asked, replyOf), (reply) => responseOf(web, asking, reply, otherwise))
  if (ids.length === 0 || !web.broker.mayWait(asking.client, ask)) return respond(asked)
  return Effect.flatMap(Effect.forkScoped(asked, { startImmediately: true }), (fiber) => {
    const exchange = fiber.pollUnsafe()
    return exchange === undefined
      ? orEarly(web, asking, Effect.flatMap(Fiber.join(fiber), replyOf), ids)
      : respond(exchange)
  })
}

const replyOf = ({ reply }: Exchange) => reply

/** The response for a reply. If the reply does not come within `firstSilence`, a stream that ends with it. */
const orEarly = Effect.fnUntraced(
  function*(web: Web, asking: Asking, reply: Effect.Effect<Reply, Refusal>, ids: ReadonlyArray<JsonRpc.Id>) {
    // The status is sent before the reply, so a defect becomes an error of each request.
    const fiber = yield* Effect.forkScoped(Effect.catchDefect(reply, defective))
    const soon = yield* Effect.timeoutOption(Fiber.join(fiber), Settings.firstSilence(web.settings))
    if (Option.isSome(soon)) return responseOf(web, asking, soon.value, EventStreamBody.unanswered)
    const late = Effect.map(Effect.result(Fiber.join(fiber)), (result) => {
      if (Result.isSuccess(result)) return bodyOf(web, asking, result.success)
      // The status is sent already, so each request gets the error of the refusal.
      const { error } = result.failure.error
      return EventStreamBody.only(ids.map((id) => ({ text: JsonRpc.failure(id, error).text })))
    })
    // Without a reply, the silence has ended because the client's credentials have expired.
    const rest = Effect.suspend(() => fiber.pollUnsafe() === undefined ? Effect.succeed(Stream.empty) : late)
    const silence = EventStreamBody.silence(Fiber.await(fiber), optionsOf(web, asking))
    return EventStreamBody.response(Stream.concat(silence, Stream.unwrap(rest)))
  }
)

const defective = (defect: unknown) =>
  Effect.andThen(
    Effect.logError("A request failed with a defect; the gateway answered it with an error", Cause.die(defect)),
    Effect.fail(
      refusal("unavailable", "Internal error; the gateway's log has the cause", { code: JsonRpc.codes.internal })
    )
  )

/** The response for a reply. `otherwise` is the response for `Nothing`. */
const responseOf = (web: Web, asking: Asking, reply: Reply, otherwise: Response): Response => {
  switch (reply._tag) {
    case "Answer":
      return answerResponse(reply.text, reply.reason)
    case "Nothing":
      return otherwise
    case "Events":
      return EventStreamBody.response(bodyOf(web, asking, reply))
  }
}

const bodyOf = (web: Web, asking: Asking, reply: Reply): Stream.Stream<Uint8Array> => {
  switch (reply._tag) {
    case "Answer":
      return EventStreamBody.only([reply])
    case "Nothing":
      return Stream.empty
    case "Events":
      return EventStreamBody.make(reply, (asking.version ?? "") >= primingVersion, optionsOf(web, asking))
  }
}

const optionsOf = ({ bodies }: Web, { expiresAt = Infinity, request }: Asking): EventStreamBody.Options => ({
  bodies,
  expiresAt,
  disconnect: EventStreamBody.disconnectOf(request)
})
