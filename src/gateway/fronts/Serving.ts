/**
 * Shared by the handlers of MCP requests: the gateway's state (`Serving`), and a request that has passed the access
 * checks (`Asking`).
 */
import type { FileSystem, Scope } from "effect"
import { Deferred, Duration, Effect, Option } from "effect"
import type { HttpServerRequest, HttpServerResponse } from "effect/http"
import type * as Parked from "../conversation/Parked.ts"
import type { Asked, Carried, Place, Placement } from "../sessions/Placement.ts"
import type { Principal } from "../sessions/Registry.ts"
import type { Sessions } from "../sessions/Sessions.ts"
import * as Settings from "../settings/Settings.ts"
import * as EventStreamBody from "./EventStreamBody.ts"
import type { Refusal } from "./Refusals.ts"
import { unknownSession } from "./Refusals.ts"

type Response = HttpServerResponse.HttpServerResponse

export interface Serving {
  readonly sessions: Sessions["Service"]
  readonly settings: Settings.GatewaySettings
  readonly parked: Parked.Parked
  /** Completes when the gateway stops taking new work. */
  readonly draining: Deferred.Deferred<void>
  readonly fs: FileSystem.FileSystem
  /** The event streams that are open. */
  readonly bodies: Set<EventStreamBody.OpenBody>
  /** Running DELETEs by session id. Each completes when its DELETE has been answered. */
  readonly deletions: Map<string, Deferred.Deferred<void>>
  /** Finds where a session lives. */
  readonly placement: Placement
}

/**
 * The part of a request that is needed after the access checks, once its body is read. A forwarded request has only
 * this part.
 */
export type Incoming =
  & Pick<HttpServerRequest.HttpServerRequest, "headers" | "source">
  & Readonly<Record<"method", string>>

/** A request whose host, origin and key are accepted, and whose back end exists. */
export interface Asking {
  readonly request: Incoming
  readonly backend: string
  readonly principal: Principal
  /** The revision in the header `MCP-Protocol-Version`. */
  readonly version: string | undefined
  readonly lastEventId: string | undefined
  /** The forwarded request, if another replica received it and found that its place is here. */
  readonly carried: Carried | undefined
}

/**
 * Carries out a request where its session lives, and runs `here` if that is this replica. Also runs `here` for a
 * request without a session id, which `here` refuses.
 */
export const atSession = (
  serving: Serving,
  asking: Asking,
  body: string,
  here: Effect.Effect<Response, Refusal, Scope.Scope>
): Effect.Effect<Response, Refusal, Scope.Scope> => {
  const session = asking.request.headers["mcp-session-id"]
  if (!session || asking.carried !== undefined) return here
  // A header of another form is no session id, and must not be taken for another key of the pool.
  const place = serving.placement.ofSession(session)
  return Option.isSome(place) ? atPlace(serving, asking, place.value, body, here) : unknownSession()
}

/** Carries out a request at a place. Runs `here` if that is this replica. */
export const atPlace = (
  serving: Serving,
  asking: Asking,
  place: Place,
  body: string,
  here: Effect.Effect<Response, Refusal, Scope.Scope>,
  more?: Partial<Carried>
): Effect.Effect<Response, Refusal, Scope.Scope> =>
  place._tag === "Here" ? here : Effect.andThen(
    // Counted, so that the gateway does not end before the request does.
    Effect.acquireRelease(
      Effect.sync(() => serving.sessions.passing.count++),
      () => Effect.sync(() => serving.sessions.passing.count--)
    ),
    serving.placement.at(place, () => asked(serving, asking, body, more), here)
  )

const asked = (
  serving: Serving,
  { backend, principal, request }: Asking,
  body: string,
  more?: Partial<Carried>
): Asked => ({
  carried: {
    method: request.method,
    backend,
    principal,
    known: false,
    headers: Object.fromEntries(Object.entries(request.headers).filter(([name]) => isCarried(name))),
    body,
    ...more
  },
  stream: request.method === "GET" ? listenOptions(serving, request) : streamOptions(serving, request)
})

/** Other headers concern only the client and the replica that received the request. */
const isCarried = (name: string): boolean =>
  name.startsWith("mcp-") || name === "accept" || name === "content-type" || name === "last-event-id"

/** The options of a stream that ends with the answer to its request. */
export const streamOptions = (
  { bodies, settings }: Serving,
  request: Incoming
): EventStreamBody.Options => ({
  heartbeat: settings.heartbeat,
  bodies,
  greetAfter: Settings.firstSilence(settings),
  until: undefined,
  client: EventStreamBody.clientOf(request)
})

/** The options of a stream whose client only listens. It ends when the gateway drains. */
export const listenOptions = (
  serving: Serving,
  request: Incoming
): EventStreamBody.Options => ({
  ...streamOptions(serving, request),
  greetAfter: Duration.zero,
  until: Deferred.await(serving.draining)
})

/** The `Accept` header that the official clients send on every request. */
const usualAccept = "application/json, text/event-stream"

/** True if the client accepts a response of this type. */
export const accepts = ({ headers }: Pick<Incoming, "headers">, type: string): boolean =>
  headers["accept"] === usualAccept || (headers["accept"] ?? "").split(",").some((range) => {
    const [name = ""] = range.trim().toLowerCase().split(";")
    return name === type || name === "*/*" || name === `${type.split("/")[0]}/*`
  })
