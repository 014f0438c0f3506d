/** The operators' routes: the page, the sessions, metrics and health. */
import type { Scope } from "effect"
import { Clock, Deferred, Effect, FileSystem, Option, Schedule, Stream } from "effect"
import type { HttpServerRequest } from "effect/http"
import { HttpRouter, HttpServerResponse } from "effect/http"
import { PrometheusMetrics } from "effect/observability"
import { fileURLToPath } from "node:url"
import type { Authenticator, Challenge } from "../auth/Authenticator.ts"
import { open } from "../auth/Authenticator.ts"
import type { Hosts } from "../auth/Hosts.ts"
import { complete, isLiteral } from "../auth/Routes.ts"
import * as Cooldown from "../sessions/Cooldown.ts"
import type { Serving } from "../sessions/Serving.ts"
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

/** Adds the operators' routes to the router. Returns the sessions of this replica, as `/sessions` lists them. */
export const add = Effect.fnUntraced(function*(serving: Serving, hosts: Hosts, operators: Authenticator) {
  const router = yield* HttpRouter.HttpRouter
  const fs = yield* FileSystem.FileSystem
  // Read once, so a gateway that runs out of file handles can still serve the page.
  const text = yield* Effect.orDie(fs.readFileString(page))
  const { measure, snapshot } = yield* Overview.make(serving)
  const { replica, sessionsElsewhere } = serving.placement
  // With several replicas, a session's entry names its replica, and its id begins with that name.
  const named = <A extends { readonly id: number }>(session: A) =>
    replica === "" ? session : { ...session, id: `${replica}:${session.id}`, replica }
  const everywhere = Effect.zipWith(
    snapshot,
    sessionsElsewhere,
    (value, others) => ({ ...value, sessions: [...value.sessions.map(named), ...others] }),
    { concurrent: true }
  )
  const events = yield* live(everywhere, serving.draining)
  const add = (
    method: "GET" | "DELETE",
    path: `/${string}`,
    authenticator: Authenticator,
    handler: Effect.Effect<HttpServerResponse.HttpServerResponse, never, HttpRouter.RouteContext | Scope.Scope>
  ) => router.add(method, path, guard(hosts, authenticator, path, handler), { uninterruptible: true })
  yield* add("GET", "/", open, Effect.succeed(pageOf(text)))
  yield* add("GET", "/sessions", operators, Effect.map(everywhere, (value) => json(value)))
  yield* add("GET", "/sessions/events", operators, Effect.succeed(events))
  yield* add("DELETE", "/sessions/:id", operators, end(serving))
  yield* add("GET", "/metrics", operators, Effect.andThen(measure, scraped))
  yield* add("GET", "/health", open, health(serving))
  yield* add("GET", "/ready", open, ready(serving))
  return Effect.map(snapshot, (value) => value.sessions.map(named))
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
  return complete(Effect.catch(Effect.andThen(authenticator.authenticate(request, undefined), handler), refused))
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
const end = Effect.fnUntraced(function*({ placement, sessions }: Serving) {
  const { id = "" } = yield* HttpRouter.params
  const [, replica = placement.replica, number] = /^(?:(\w+):)?(-?\d+)$/.exec(id) ?? []
  const ended = yield* replica === placement.replica
    ? sessions.endNumber(Number(number))
    : placement.endElsewhere(replica, Number(number))
  return ended ? HttpServerResponse.empty({ status: 204 }) : json({ error: "No live session has this id" }, 404)
})

const scraped = Effect.map(
  PrometheusMetrics.format(),
  (text) => HttpServerResponse.text(text, { contentType: "text/plain; version=0.0.4; charset=utf-8" })
)

/**
 * Liveness: always 200. It reports the states of the back ends, but a restart of the gateway would not repair a back
 * end that does not start.
 */
const health = ({ sessions }: Serving) =>
  Effect.map(backendStates(sessions), (backends) => json({ status: "ok", backends }))

/** Readiness: 200 while the gateway takes new sessions. */
const ready = ({ draining, placement, sessions }: Serving) =>
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

const backendStates = (sessions: Serving["sessions"]) =>
  Effect.map(Clock.currentTimeMillis, (now) =>
    Object.fromEntries(
      Array.from(sessions.running(), ([name, { cooldown }]) => [name, Cooldown.stateOf(cooldown, now)])
    ))

const json = (value: unknown, status = 200, headers: Record<string, string> = {}) =>
  HttpServerResponse.text(JSON.stringify(value), {
    status,
    contentType: "application/json",
    headers: { ...headers, "cache-control": "no-store", "x-content-type-options": "nosniff" }
  })
