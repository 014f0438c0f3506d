/** What operators see: the page, the sessions, metrics, health. */
import type { Scope } from "effect"
import { Deferred, Effect, FileSystem, Option, Ref, Schedule, Stream } from "effect"
import type { HttpServerRequest } from "effect/http"
import { HttpRouter, HttpServerResponse } from "effect/http"
import { PrometheusMetrics } from "effect/observability"
import { fileURLToPath } from "node:url"
import * as Cooldown from "../backends/Cooldown.ts"
import * as GatewayMetrics from "../GatewayMetrics.ts"
import type * as Parked from "../modern/Parked.ts"
import type { Placement } from "../sessions/Placement.ts"
import type { Sessions } from "../sessions/Sessions.ts"
import type * as Settings from "../settings/Settings.ts"
import * as Access from "./Access.ts"
import * as Overview from "./Overview.ts"
import * as Paths from "./Paths.ts"
import { complete } from "./Refusals.ts"

const page = fileURLToPath(new URL("../assets/page.html", import.meta.url))
const refresh = "2 seconds"

/** The page may run what is written in it and ask this server, and nothing else. */
const pageHeaders = {
  "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; " +
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "cache-control": "no-cache"
}

/** Adds the routes to the router of the layer. */
export const add = Effect.fnUntraced(function*(
  sessions: Sessions["Service"],
  parked: Parked.Parked,
  settings: Settings.GatewaySettings,
  access: Access.Access,
  draining: Deferred.Deferred<void>,
  placement: Placement
) {
  const router = yield* HttpRouter.HttpRouter
  const fs = yield* FileSystem.FileSystem
  // Read once: a gateway that is short of file handles still shows it.
  const text = yield* Effect.orDie(fs.readFileString(page))
  const overview = yield* Overview.make(sessions, parked, settings)
  const snapshot = Effect.provideService(
    Effect.suspend(() => overview.snapshot(Deferred.isDoneUnsafe(draining))),
    FileSystem.FileSystem,
    fs
  )
  // Of each session the replica, where there are several.
  const here = Effect.map(
    snapshot,
    (value) =>
      placement.replica === ""
        ? value
        : {
          ...value,
          sessions: value.sessions.map((each) => ({
            ...each,
            id: `${placement.replica}:${each.id}`,
            replica: placement.replica
          }))
        }
  )
  const everywhere = Effect.zipWith(
    here,
    placement.sessionsElsewhere,
    (value, others) => others.length === 0 ? value : { ...value, sessions: [...value.sessions, ...others] },
    { concurrent: true }
  )
  const events = yield* live(everywhere, draining)
  /** Adds a route for who may come in: with an operator's key, or without. */
  const add = (who: "operators" | "everybody") =>
  (
    method: "GET" | "DELETE",
    path: `/${string}`,
    handler: Effect.Effect<HttpServerResponse.HttpServerResponse, never, HttpRouter.RouteContext | Scope.Scope>
  ) => router.add(method, path, guard(access, path, who, handler), { uninterruptible: true })
  const everybody = add("everybody")
  const operators = add("operators")
  yield* everybody("GET", "/", Effect.succeed(pageOf(text)))
  yield* operators("GET", "/sessions", Effect.map(everywhere, (value) => json(value)))
  yield* operators("GET", "/sessions/events", Effect.succeed(events))
  yield* operators("DELETE", "/sessions/:id", end(sessions, placement))
  yield* operators("GET", "/metrics", Effect.andThen(overview.measure, scraped))
  yield* everybody("GET", "/health", health(sessions))
  yield* everybody("GET", "/ready", ready(sessions, draining, placement))
  return { sessions: Effect.map(here, (value) => value.sessions) }
})

/** Answers whoever may come in, and in the end nothing that a cache may keep. */
const guard = <R>(
  access: Access.Access,
  path: string,
  who: "operators" | "everybody",
  handler: Effect.Effect<HttpServerResponse.HttpServerResponse, never, R>
) =>
({ headers, url }: HttpServerRequest.HttpServerRequest) => {
  if (!Paths.isLiteral(path, url)) {
    const error = `Not found. Did you mean ${path}? Paths are case-sensitive and taken literally.`
    return Effect.succeed(json({ error }, 404))
  }
  const { authorization, host, origin } = headers
  const verdicts = [access.host(host), access.origin(origin)]
  if (who === "operators") verdicts.push(access.operator(authorization))
  const refusal = verdicts.find((verdict) => verdict._tag === "Refused")
  if (refusal?._tag !== "Refused") return complete(handler)
  const { message, status } = refusal
  return Effect.as(GatewayMetrics.refused(status), json({ error: message }, status, Access.challengeOf(refusal)))
}

const pageOf = (text: string) =>
  HttpServerResponse.text(text, { contentType: "text/html; charset=utf-8", headers: pageHeaders })

/** What is to be seen, again and again until the gateway stops. All readers get the same; one that is slow misses some. */
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

/** `id` is the session's number; that of another replica's session follows the replica's name and a colon. */
const end = Effect.fnUntraced(function*(sessions: Sessions["Service"], placement: Placement) {
  const { id = "" } = yield* HttpRouter.params
  const [, replica = placement.replica, number] = /^(?:(\w+):)?(\d+)$/.exec(id) ?? []
  if (replica !== placement.replica) {
    const ended = yield* placement.endElsewhere(replica, Number(number))
    return ended ? HttpServerResponse.empty({ status: 204 }) : json({ error: "There is no such session" }, 404)
  }
  const gone = yield* sessions.endNumber(Number(number))
  if (Option.isNone(gone)) return json({ error: "There is no such session" }, 404)
  yield* Effect.timeoutOption(gone.value, "10 seconds")
  return HttpServerResponse.empty({ status: 204 })
})

const scraped = Effect.map(
  PrometheusMetrics.format(),
  (text) => HttpServerResponse.text(text, { contentType: "text/plain; version=0.0.4; charset=utf-8" })
)

/**
 * Alive: the gateway answers. What its back ends do is told, but a back end that does not start is no reason to restart the
 * gateway.
 */
const health = (sessions: Sessions["Service"]) =>
  Effect.map(backendStates(sessions), (backends) => json({ status: "ok", backends }))

/** Ready: it takes new sessions. */
const ready = (sessions: Sessions["Service"], draining: Deferred.Deferred<void>, placement: Placement) =>
  Effect.zipWith(backendStates(sessions), placement.status, (backends, cluster) => {
    // One that fails is tried again by the next client, which would not come to a gateway that is not ready.
    const some = Object.values(backends).some((state) => state !== "cooling down")
    const status = Deferred.isDoneUnsafe(draining)
      ? "draining"
      : Option.isSome(cluster) && cluster.value.state !== "ready"
      ? cluster.value.state
      : some
      ? "ready"
      : "no back end starts"
    return json(
      { status, backends, ...Option.getOrElse(Option.map(cluster, (it) => ({ cluster: it })), () => ({})) },
      status === "ready" ? 200 : 503
    )
  })

const backendStates = Effect.fnUntraced(function*(sessions: Sessions["Service"]) {
  const now = yield* Effect.clockWith((clock) => clock.currentTimeMillis)
  const states: Record<string, Cooldown.State> = {}
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
