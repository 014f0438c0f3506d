/**
 * Forwards requests of modern clients to modern HTTP back ends. Both ends speak revision 2026-07-28, which has no
 * sessions, so their messages pass unchanged.
 */
import type { Scope } from "effect"
import { Duration, Effect, Option } from "effect"
import type { HttpClientResponse } from "effect/http"
import { HttpServerResponse } from "effect/http"
import type { Era } from "../protocol/Dialect.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import * as JsonText from "../protocol/JsonText.ts"
import * as Modern from "../protocol/Modern.ts"
import { version } from "../protocol/version.ts"
import type { BackendFailed } from "../sessions/GatewayErrors.ts"
import type { BackendSettings } from "../settings/Settings.ts"
import type { GatewayMetrics } from "../telemetry/GatewayMetrics.ts"
import * as Remote from "../transports/Remote.ts"
import * as EventStreamBody from "./EventStreamBody.ts"

/** A message of a client. */
export interface Forwarded {
  readonly body: string
  readonly headers: Modern.Headers
  /** The request in the body, if the message is one. */
  readonly request: JsonRpc.Request | undefined
  readonly stream: EventStreamBody.Options
  /** Called when an answer is not that of a modern server. */
  readonly doubted: () => void
}

/** The requests in flight that no session stands for. */
export interface Passing {
  count: number
  /** Completes when these requests must end. */
  readonly over: Effect.Effect<void>
}

/** Forwards a message, and returns what the back end answers as it comes. Closing the scope aborts it. */
export const forward = Effect.fnUntraced(function*(
  remote: Remote.Remote,
  message: Forwarded,
  settings: BackendSettings,
  metrics: GatewayMetrics,
  passing: Passing
): Effect.fn.Return<HttpServerResponse.HttpServerResponse, BackendFailed, Scope.Scope> {
  const { request } = message
  const id = request?.id ?? null
  const outcome = { failed: false }
  yield* Effect.acquireRelease(Effect.sync(() => passing.count++), () => Effect.sync(() => passing.count--))
  if (request !== undefined) yield* measured(request.method, metrics, outcome)
  const limit = request === undefined || request.method === "subscriptions/listen"
    ? Duration.infinity
    : settings.requestTimeout
  const timedOut = Effect.sync(() => {
    outcome.failed = true
    return JsonRpc.error(id, JsonRpc.codes.internal, Remote.timeoutReason(limit))
  })
  const untilEnd = <A>(effect: Effect.Effect<A, BackendFailed, Scope.Scope>) =>
    Effect.timeoutOption(
      Effect.raceFirst(
        effect,
        Effect.andThen(passing.over, remote.failed("the gateway is shutting down"))
      ),
      limit
    )
  const answered = yield* untilEnd(
    remote.send("POST", { ...forwardedHeaders(remote, message.headers), accept: Remote.accept }, message.body)
  )
  if (Option.isNone(answered)) return json(yield* timedOut, 200)
  const upstream = answered.value
  const { status } = upstream
  if (Remote.isRefusal(status)) return yield* Remote.refusal(remote, status)
  if (status === 200 && Remote.isEventStream(upstream)) {
    const timed = yield* Remote.timed(yield* Remote.chunksOf(upstream, passing.over), limit, timedOut)
    const body = EventStreamBody.make(timed, message.stream)
    return EventStreamBody.response(body)
  }
  const text = yield* untilEnd(textOf(remote, upstream, settings))
  if (Option.isNone(text)) return json(yield* timedOut, 200)
  if (status === 202 && request === undefined) return HttpServerResponse.empty({ status })
  const error = Modern.errorOf(text.value, id)
  outcome.failed = error !== undefined || status !== 200
  if (status === 200) return json(text.value, status)
  if (!Remote.isNoVerdict(status) && (error === undefined || !isUsual(error))) message.doubted()
  // An error about the request is for the client. Anything else is a failure of the back end.
  if (error !== undefined && status >= 400) return json(error, status)
  return yield* remote.failed(`the back end answered with status ${status}`)
})

const textOf = (remote: Remote.Remote, response: HttpClientResponse.HttpClientResponse, settings: BackendSettings) =>
  Effect.mapError(Remote.textOf(response, settings.maxLineBytes), ({ message }) => remote.failed(message))

/** True for an error that a modern server gives: one of JSON-RPC itself, or one of the revision's own. */
const isUsual = (error: string): boolean => {
  const code = Number(JsonText.member(JsonText.member(error, "error") ?? "{}", "code"))
  return (code >= JsonRpc.codes.parseError && code <= JsonRpc.codes.invalidRequest) || Modern.speaksModern(error)
}

const json = (text: string, status: number) =>
  HttpServerResponse.text(text, { status, contentType: "application/json" })

/** Counts a request when its response has been sent. */
const measured = (method: string, metrics: GatewayMetrics, outcome: { readonly failed: boolean }) =>
  Effect.acquireRelease(
    Effect.clockWith((clock) => clock.currentTimeMillis),
    (started, exit) =>
      Effect.clockWith((clock) =>
        Effect.map(
          clock.currentTimeMillis,
          (now) => metrics.request(method, outcome.failed || exit._tag === "Failure" ? "error" : "ok", now - started)
        )
      )
  )

/**
 * The client's headers that the back end gets. `Authorization` is left out because it holds the gateway's own key, and
 * `Mcp-Session-Id` because this revision has no sessions. A client cannot change headers that the back end's entry
 * sets.
 */
const forwardedHeaders = ({ given }: Remote.Remote, headers: Modern.Headers): Record<string, string | undefined> =>
  Object.fromEntries(
    Object.entries(headers).filter(([name]) => name.startsWith("mcp-") && name !== "mcp-session-id" && !given.has(name))
  )

/**
 * Asks a back end for its era. Fails if the answer says nothing of the era, such as when the back end does not answer.
 */
export const probe = (remote: Remote.Remote, settings: BackendSettings): Effect.Effect<Era, BackendFailed> =>
  Effect.scoped(Effect.gen(function*() {
    const meta = Modern.ownMeta(JSON.stringify({ name: "effect-session-pool", version }), "{}")
    const response = yield* remote.send(
      "POST",
      { ...Modern.headersOf("server/discover", {}), accept: Remote.accept },
      JsonText.make([
        ["jsonrpc", "\"2.0\""],
        ["id", "0"],
        ["method", "\"server/discover\""],
        ["params", JsonText.make([["_meta", meta]])]
      ])
    )
    const { status } = response
    if (status !== 200 && Remote.isNoVerdict(status)) {
      return yield* Remote.isRefusal(status)
        ? Remote.refusal(remote, status)
        : remote.failed(`the back end answered server/discover with status ${status}`)
    }
    const text = yield* textOf(remote, response, settings)
    return Modern.speaksModern(text) ? "modern" : "legacy"
  }))
