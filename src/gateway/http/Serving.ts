/** What the handlers of MCP requests share: what they serve from, and one request as far as it has been checked. */
import type { FileSystem, Scope } from "effect"
import { Deferred, Duration, Effect, Option } from "effect"
import type { HttpServerRequest, HttpServerResponse } from "effect/http"
import type * as Parked from "../modern/Parked.ts"
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
  /** Completes when the gateway takes nothing new any more. */
  readonly draining: Deferred.Deferred<void>
  readonly fs: FileSystem.FileSystem
  /** The event streams that are being sent. */
  readonly bodies: Set<EventStreamBody.OpenBody>
  /** Running DELETEs by session id. Each completes when its DELETE has been answered. */
  readonly deletions: Map<string, Deferred.Deferred<void>>
  /** Where sessions are. */
  readonly placement: Placement
}

/** What of a request counts when it has been let in and its body read. One that came in at another replica has no more. */
export type Incoming =
  & Pick<HttpServerRequest.HttpServerRequest, "headers" | "source">
  & Readonly<Record<"method", string>>

/** A request that has come in: by host, origin and key it may, and there is such a back end. */
export interface Asking {
  readonly request: Incoming
  readonly backend: string
  readonly principal: Principal
  /** What its header says of the revision. */
  readonly version: string | undefined
  readonly lastEventId: string | undefined
  /** What came with it, if it came in at another replica, which has found that its place is here. */
  readonly carried: Carried | undefined
}

/** Has a request carried out where its session is: `here` if that is here. A request without a session is refused there. */
export const atSession = (
  serving: Serving,
  asking: Asking,
  body: string,
  here: Effect.Effect<Response, Refusal, Scope.Scope>
): Effect.Effect<Response, Refusal, Scope.Scope> => {
  const session = asking.request.headers["mcp-session-id"]
  if (!session || asking.carried !== undefined) return here
  // Whatever has another form cannot be the id of a session, and must not be taken for another key of the pool.
  const place = serving.placement.ofSession(session)
  return Option.isSome(place) ? atPlace(serving, asking, place.value, body, here) : unknownSession()
}

/** Has a request carried out at a place. */
export const atPlace = (
  serving: Serving,
  asking: Asking,
  place: Place,
  body: string,
  here: Effect.Effect<Response, Refusal, Scope.Scope>,
  more?: Partial<Carried>
): Effect.Effect<Response, Refusal, Scope.Scope> =>
  place._tag === "Here" ? here : Effect.andThen(
    // The gateway does not end before it.
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

/** The rest of a header is between the client and whom it speaks to. */
const isCarried = (name: string): boolean =>
  name.startsWith("mcp-") || name === "accept" || name === "content-type" || name === "last-event-id"

/** For a stream that goes on until the answer to its request. */
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

/** For a stream of who only listens: it ends with the gateway. */
export const listenOptions = (
  serving: Serving,
  request: Incoming
): EventStreamBody.Options => ({
  ...streamOptions(serving, request),
  greetAfter: Duration.zero,
  until: Deferred.await(serving.draining)
})

/** What the official clients send, on every request. */
const usualAccept = "application/json, text/event-stream"

/** Whether the client takes a response of this type. */
export const accepts = ({ headers }: Pick<Incoming, "headers">, type: string): boolean =>
  headers["accept"] === usualAccept || (headers["accept"] ?? "").split(",").some((range) => {
    const [name = ""] = range.trim().toLowerCase().split(";")
    return name === type || name === "*/*" || name === `${type.split("/")[0]}/*`
  })
