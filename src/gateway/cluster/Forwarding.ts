/** Forwards requests to other replicas, and passes their responses to the clients as they arrive. */
import { Cause, Duration, Effect, Option, Result, Tracer } from "effect"
import type { Scope } from "effect"
import { HttpServerResponse, HttpTraceContext } from "effect/http"
import type { RpcClientError } from "effect/rpc"
import { Socket } from "effect/socket"
import * as EventStreamBody from "../fronts/EventStreamBody.ts"
import type { Refusal } from "../fronts/Refusals.ts"
import { refuse, retryLater } from "../fronts/Refusals.ts"
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import type { Asked, Carried } from "../sessions/Placement.ts"
import type { Links, Unreachable } from "./Links.ts"
import type * as Protocol from "./Protocol.ts"

type Response = HttpServerResponse.HttpServerResponse

/** How long the other replica may take to confirm that the rest of a response is not wanted. */
const abandonTimeout = "1 second"

/** The error of a request whose connection broke before the response was complete. */
const outcomeUnknown =
  "The connection to the replica of this session broke; the gateway cannot tell whether the request was carried out"

export interface Forwarding {
  /**
   * Has a replica carry out a request. With `shared`, the replica does so only if it has that shared id. `Moved` and `Unreachable` mean
   * that the request was not carried out.
   */
  readonly forward: (
    replica: string,
    asked: Asked,
    shared?: string
  ) => Effect.Effect<Response, Refusal | Protocol.Moved | Unreachable, Scope.Scope>
}

export const make = (links: Links): Forwarding => ({
  forward: (replica, { carried, stream }, shared) =>
    Effect.flatMap(
      Effect.all([links.to(replica), withTraceparent(carried)]),
      ([client, carried]) =>
        client.CarryOut({ ...carried, ...(shared === undefined ? {} : { shared }) }).pipe(
          Effect.flatMap((answer) =>
            answer._tag === "Whole" ? Effect.succeed(wholeResponse(answer)) : streamedResponse(answer, {
              next: client.Next({ id: answer.id }),
              abandon: client.Abandon({ id: answer.id }),
              asked: { carried, stream }
            })
          ),
          Effect.catchCause((cause) => failed(carried, cause))
        )
    )
})

/**
 * Adds the current span to a request as its `traceparent`, so that the other replica's span (`McpRoutes.carryOut`) is its child. Does
 * nothing without a tracer other than Effect's own.
 */
const withTraceparent = (carried: Carried): Effect.Effect<Carried> =>
  Effect.flatMap(Effect.tracer, (tracer) =>
    tracer === Tracer.nativeTracer
      ? Effect.succeed(carried)
      : Effect.match(Effect.currentSpan, {
        onFailure: () => carried,
        onSuccess: (span) => {
          const { traceparent } = HttpTraceContext.toHeaders(span)
          return traceparent === undefined ? carried : { ...carried, headers: { ...carried.headers, traceparent } }
        }
      }))

/** Turns a failure to forward into a refusal, or into `Moved` if the request may be retried. */
const failed = (
  carried: Carried,
  cause: Cause.Cause<Refusal | Protocol.Moved | RpcClientError.RpcClientError>
): Effect.Effect<never, Refusal | Protocol.Moved> => {
  const error = Option.getOrUndefined(Cause.findErrorOption(cause))
  switch (error?._tag) {
    case "Refusal":
    case "Moved":
      return Effect.fail(error)
    case "RpcClientError":
      return refuseCarried(carried, 502, outcomeUnknown)
    default:
      // An interruption means that the other replica ends. A socket error is a defect here: the message could not be written. Any other
      // defect is a bug, here or on the other replica.
      return Cause.hasInterruptsOnly(cause) || Socket.isSocketError(Result.getOrUndefined(Cause.findDefect(cause)))
        ? refuseCarried(carried, 502, outcomeUnknown)
        : Effect.andThen(
          Effect.logError("A request to another replica failed with a defect", cause),
          refuseCarried(carried, 502, "The replica of this session failed to answer; see the log of this gateway")
        )
  }
}

const wholeResponse = ({ body, headers, status }: typeof Protocol.Whole.Type): Response =>
  body.length === 0
    ? HttpServerResponse.empty({ status, headers })
    : HttpServerResponse.uint8Array(body, { status, headers, contentType: headers["content-type"] })

/** The response of a stream. Asks the other replica for the next chunks as the client reads. */
const streamedResponse = (
  { headers, status }: typeof Protocol.Streamed.Type,
  { abandon, asked: { carried, stream }, next }: {
    readonly next: Effect.Effect<ReadonlyArray<Uint8Array>, unknown>
    readonly abandon: Effect.Effect<void, unknown>
    readonly asked: Asked
  }
): Effect.Effect<Response, never, Scope.Scope> => {
  let isOver = false
  const ids = idsOf(carried)
  const unanswered = new Map(ids.map((id) => [JsonRpc.idKey(id), id]))
  // If the link breaks, only the requests without an answer get an error.
  const note = ids.length > 0 ? answersIn((id) => unanswered.delete(JsonRpc.idKey(id))) : () => {}
  const lost = Effect.suspend(() => {
    isOver = true
    const [first, ...others] = [...unanswered.values()].map((id) =>
      EventStreamBody.lastEvent(JsonRpc.error(id, JsonRpc.codes.gateway, outcomeUnknown).text)
    )
    return first === undefined ? Cause.done() : Effect.succeed([first, ...others] as const)
  })
  const take: EventStreamBody.Take = Effect.suspend(() =>
    isOver ? Cause.done() : Effect.matchCauseEffect(next, {
      onSuccess: ([first, ...rest]) => {
        if (first !== undefined) {
          for (const chunk of [first, ...rest]) note(chunk)
          return Effect.succeed([first, ...rest] as const)
        }
        isOver = true
        return Cause.done()
      },
      onFailure: () => lost
    })
  )
  // The other replica sends the heartbeats.
  const body = EventStreamBody.make(take, { ...stream, greetAfter: Duration.infinity, heartbeat: Duration.infinity })
  return Effect.acquireRelease(
    Effect.succeed(HttpServerResponse.stream(body, { status, headers, contentType: headers["content-type"] })),
    () => Effect.suspend(() => isOver ? Effect.void : Effect.ignore(Effect.timeout(abandon, abandonTimeout)))
  )
}

/** Reads an event stream chunk by chunk, and calls `answered` with the id of each answer in it. */
const answersIn = (answered: (id: JsonRpc.Id) => void) => {
  const decoder = new TextDecoder()
  let rest = ""
  return (chunk: Uint8Array): void => {
    const text = decoder.decode(chunk, { stream: true })
    const end = text.lastIndexOf("\n")
    if (end < 0) {
      rest += text
      return
    }
    for (const line of `${rest}${text.slice(0, end)}`.split("\n")) {
      const message = line.startsWith("data:") ? JsonRpc.read(line.slice("data:".length)) : undefined
      if (message?._tag === "Response") answered(message.id)
    }
    rest = text.slice(end)
  }
}

/** The ids of the requests in a carried body, which may be a batch. */
const idsOf = ({ body }: Carried): ReadonlyArray<JsonRpc.Id> =>
  [Option.getOrUndefined(Json.parse(body))].flat().flatMap((json) => {
    const message = JsonRpc.classify(json, "")
    return message?._tag === "Request" ? [message.id] : []
  })

/** The id of a carried request, for its error response. A batch has none. */
export const idOf = (carried: Carried): JsonRpc.Id | undefined => {
  const ids = idsOf(carried)
  return ids.length === 1 ? ids[0] : undefined
}

/** Refuses a carried request with a JSON-RPC error. */
export const refuseCarried = (carried: Carried, status: number, message: string): Effect.Effect<never, Refusal> => {
  const id = idOf(carried)
  return refuse(status, message, {
    ...(id === undefined ? {} : { id }),
    // In the later era, the MCP specification reserves the range of the gateway's own code, so `internal` replaces it.
    code: carried.headers["mcp-method"] === undefined ? JsonRpc.codes.gateway : JsonRpc.codes.internal,
    headers: status === 503 ? retryLater : {}
  })
}
