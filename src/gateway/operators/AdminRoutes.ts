/** The operators' routes: the page, the sessions, metrics and health. */
import type { Scope } from "effect"
import { Deferred, Effect, FileSystem, Option, Ref, Schedule, Stream } from "effect"
import type { HttpServerRequest } from "effect/http"
import { HttpRouter, HttpServerResponse } from "effect/http"
import { PrometheusMetrics } from "effect/observability"
import { fileURLToPath } from "node:url"
import type { Authenticator, Challenge } from "../auth/Authenticator.ts"
import { open } from "../auth/Authenticator.ts"
import type { Hosts } from "../auth/Hosts.ts"
import { complete, isLiteral } from "../auth/Routes.ts"
import type * as Parked from "../conversation/Parked.ts"
import * as Cooldown from "../sessions/Cooldown.ts"
import type { Placement } from "../sessions/Placement.ts"
import type { Sessions } from "../sessions/Sessions.ts"
import type * as Settings from "../settings/Settings.ts"
import * as GatewayMetrics from "../telemetry/GatewayMetrics.ts"
import * as Overview from "./Overview.ts"

const page = fileURLToPath(new URL("../assets/page.html", import.meta.url))
const refresh = "2 seconds"

/** The page may run its inline script and style, and call this server. It may do nothing else. */
const pageHeaders = {
  "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; " +
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "cache-control": "no-cache"
}

/** Adds the operators' routes to the router. */
export const add = Effect.fnUntraced(function*(
  sessions: Sessions,
  parked: Parked.Parked,
  settings: Settings.GatewaySettings,
  hosts: Hosts,
  operators: Authenticator,
  draining: Deferred.Deferred<void>,
  placement: Placement
) {
  const router = yield* HttpRouter.HttpRouter
  const fs = yield* FileSystem.FileSystem
  // Read once, so a gateway that runs out of file handles can still serve the page.
  const text = yield* Effect.orDie(fs.readFileString(page))
  const { measure, snapshot } = yield* Overview.make(sessions, parked, settings, draining)
  const { replica } = placement
  // With several replicas, a session's entry names its replica, and its id begins with it.
  const named = <A extends { readonly id: number }>(session: A) =>
    replica === "" ? session : { ...session, id: `${replica}:${session.id}`, replica }
  const here = Effect.map(snapshot, (value) => value.sessions.map(named))
  const everywhere = Effect.zipWith(
    snapshot,
    placement.sessionsElsewhere,
    (value, others) => ({ ...value, sessions: [...value.sessions.map(named), ...others] }),
    { concurrent: true }
  )
  const events = yield* live(everywhere, draining)
  const add = (authenticator: Authenticator) =>
  (
    method: "GET" | "DELETE",
    path: `/${string}`,
    handler: Effect.Effect<HttpServerResponse.HttpServerResponse, never, HttpRouter.RouteContext | Scope.Scope>
  ) => router.add(method, path, guard(hosts, authenticator, path, handler), { uninterruptible: true })
  const forEveryone = add(open)
  const forOperators = add(operators)
  yield* forEveryone("GET", "/", Effect.succeed(pageOf(text)))
  yield* forOperators("GET", "/sessions", Effect.map(everywhere, (value) => json(value)))
  yield* forOperators("GET", "/sessions/events", Effect.succeed(events))
  yield* forOperators("DELETE", "/sessions/:id", end(sessions, placement))
  yield* forOperators("GET", "/metrics", Effect.andThen(measure, scraped))
  yield* forEveryone("GET", "/health", health(sessions))
  yield* forEveryone("GET", "/ready", ready(sessions, draining, placement))
  return { sessions: here }
})

/** Runs the handler if the path is written literally, and the host, the origin and the caller are accepted. */
const guard = <R>(
  hosts: Hosts,
  authenticator: Authenticator,
  path: string,
  handler: Effect.Effect<HttpServerResponse.HttpServerResponse, never, R>
) =>
(request: HttpServerRequest.HttpServerRequest) => {
  if (!isLiteral(path, request.url)) {
    const error = `Not found. Did you mean ${path}? Write it exactly so: paths are case-sensitive.`
    return Effect.succeed(json({ error }, 404))
  }
  const refusal = hosts.refusal(request.headers)
  if (refusal !== undefined) return refused(refusal)
  return complete(Effect.catch(Effect.andThen(authenticator.authenticate(request), handler), refused))
}

const refused = ({ headers, message, status }: Challenge) =>
  Effect.as(GatewayMetrics.refused(status), json({ error: message }, status, headers))

const pageOf = (text: string) =>
  HttpServerResponse.text(text, { contentType: "text/html; charset=utf-8", headers: pageHeaders })

/**
 * The event stream of snapshots, until the gateway drains. All readers share it. A slow reader misses some snapshots.
 */
const live = Effect.fnUntraced(function*(snapshot: Effect.Effect<unknown>, draining: Deferred.Deferred<void>) {
  const encoder = new TextEncoder()
  const shared = yield* Stream.fromEffectSchedule(snapshot, Schedule.spaced(refresh)).pipe(
    Stream.map((value) => encoder.encode(`event: snapshot\ndata: ${JSON.stringify(value)}\n\n`)),
    Stream.share({ capacity: 1, strategy: "sliding", replay: 1 })
  )
  return HttpServerResponse.stream(
    Stream.interruptWhen(shared, Deferred.await(draining)),
    { contentType: "text/event-stream", headers: { "cache-control": "no-cache, no-transform" } }
  )
})

/** Ends a session. `id` is its number, or `replica:number` for a session of another replica. */
const end = Effect.fnUntraced(function*(sessions: Sessions, placement: Placement) {
  const { id = "" } = yield* HttpRouter.params
  const [, replica = placement.replica, number] = /^(?:(\w+):)?(\d+)$/.exec(id) ?? []
  if (replica !== placement.replica) {
    const ended = yield* placement.endElsewhere(replica, Number(number))
    return ended ? HttpServerResponse.empty({ status: 204 }) : json({ error: "No live session has this id" }, 404)
  }
  const gone = yield* sessions.endNumber(Number(number))
  if (Option.isNone(gone)) return json({ error: "No live session has this id" }, 404)
  yield* Effect.timeoutOption(gone.value, "10 seconds")
  return HttpServerResponse.empty({ status: 204 })
})

const scraped = Effect.map(
  PrometheusMetrics.format(),
  (text) => HttpServerResponse.text(text, { contentType: "text/plain; version=0.0.4; charset=utf-8" })
)

/**
 * Liveness: always 200. It reports the states of the back ends, but a restart of the gateway would not repair a back
 * end that does not start.
 */
const health = (sessions: Sessions) =>
  Effect.map(backendStates(sessions), (backends) => json({ status: "ok", backends }))

/** Readiness: 200 while the gateway takes new sessions. */
const ready = (sessions: Sessions, draining: Deferred.Deferred<void>, placement: Placement) =>
  Effect.zipWith(backendStates(sessions), placement.status, (backends, replica) => {
    const cluster = Option.getOrUndefined(replica)
    // Only a back end that cools down counts as not starting. A failing one starts again at the next request, and a
    // gateway that is not ready gets no requests.
    const started = Object.values(backends).some((state) => state !== "cooling down") ? "ready" : "no back end starts"
    const here = cluster === undefined || cluster.state === "ready" ? started : cluster.state
    const status = Deferred.isDoneUnsafe(draining) ? "draining" : here
    const value = { status, backends, cluster }
    return status === "ready" ? json(value) : json(value, 503, { "retry-after": "10" })
  })

const backendStates = Effect.fnUntraced(function*(sessions: Sessions) {
  const now = yield* Effect.clockWith((clock) => clock.currentTimeMillis)
  const states: Record<string, GatewayMetrics.BackendState> = {}
  for (const { backend, cooldown } of sessions.running().values()) {
    states[backend.name] = Cooldown.stateOf(yield* Ref.get(cooldown), now)
  }
  return states
})

const json = (value: unknown, status = 200, headers: Record<string, string> = {}) =>
  HttpServerResponse.text(JSON.stringify(value), {
    status,
    contentType: "application/json",
    headers: { ...headers, "cache-control": "no-store", "x-content-type-options": "nosniff" }
  })
