/**
 * One client session on an HTTP back end: an upstream session of its own, opened by the client's `initialize`. What the
 * two ends say to each other passes as it comes; event ids are the upstream's.
 */
import type { Scope } from "effect"
import { Deferred, Duration, Effect, Option, Schema, Stream } from "effect"
import type { HttpClientResponse } from "effect/http"
import type { HttpClient } from "effect/http"
import { HttpServerResponse } from "effect/http"
import type { Activity } from "./Bridge.ts"
import type { ClientRecord } from "./ClientRecord.ts"
import * as EventStreamBody from "./EventStreamBody.ts"
import type { BackendFailed } from "./GatewayErrors.ts"
import { InitializeRefused } from "./GatewayErrors.ts"
import type { GatewayMetrics } from "./GatewayMetrics.ts"
import * as JsonRpc from "./JsonRpc.ts"
import * as Remote from "./Remote.ts"
import type { BackendSettings } from "./Settings.ts"

/** A message of the client, or its wish to listen. */
export interface Forwarded {
  readonly method: "POST" | "GET"
  readonly body: string
  /** The request in it, if it is one. */
  readonly request: JsonRpc.Request | undefined
  readonly version: string | undefined
  readonly lastEventId: string | undefined
  readonly stream: EventStreamBody.Options
}

/** The upstream does not know its session any more. */
export class UpstreamGone extends Schema.TaggedError<UpstreamGone>()("UpstreamGone", {}) {}

export interface Upstream {
  readonly _tag: "Http"
  /** Completes when the session has ended by itself, with why. */
  readonly ended: Deferred.Deferred<BackendFailed>
  /** Completes when the upstream's session is ended and everything released. */
  readonly gone: Deferred.Deferred<void>
  readonly answer: string
  readonly record: ClientRecord
  /** Passes a message on, and gives back what the upstream says to it, as it comes. */
  readonly forward: (
    message: Forwarded
  ) => Effect.Effect<HttpServerResponse.HttpServerResponse, BackendFailed | UpstreamGone, Scope.Scope>
  readonly activity: () => Activity
  readonly end: (reason: string) => Effect.Effect<void>
}

export const make = Effect.fnUntraced(function*(
  target: Remote.Target,
  record: ClientRecord,
  settings: BackendSettings,
  metrics: GatewayMetrics,
  mask: (text: string) => string
): Effect.fn.Return<Upstream, BackendFailed | InitializeRefused, Scope.Scope | HttpClient.HttpClient> {
  const remote = yield* Remote.make(target, mask)
  const { failed } = remote
  const ended = yield* Deferred.make<BackendFailed>()
  const gone = yield* Deferred.make<void>()
  const over = yield* Deferred.make<string>()
  yield* Effect.addFinalizer(() => Deferred.succeed(gone, undefined))
  let upstreamSession: string | undefined
  let inFlight = 0
  let streams = 0
  let requests = 0
  let errors = 0

  const send = (method: "POST" | "GET" | "DELETE", own: Record<string, string | undefined>, body?: string) =>
    remote.send(method, { ...own, "mcp-session-id": upstreamSession }, body)

  const post = (body: string, version: string | undefined) =>
    send("POST", { accept: Remote.accept, "mcp-protocol-version": version }, body)

  // The handshake. Its response is read whole: it ends with the answer.
  const response = yield* post(record.initialize, undefined)
  if (response.status !== 200) {
    const text = yield* Effect.orElseSucceed(response.text, () => "")
    if (JsonRpc.isError(text)) return yield* new InitializeRefused({ answer: text })
    return yield* failed(`the back end answered initialize with status ${response.status}`)
  }
  upstreamSession = response.headers["mcp-session-id"]
  yield* Effect.addFinalizer(() =>
    upstreamSession === undefined
      ? Effect.void
      : Effect.ignore(Effect.timeout(Effect.scoped(send("DELETE", {})), Remote.closeTimeout))
  )
  const answer = yield* Effect.flatMap(
    answerOf(response, record.id, settings.maxLineBytes),
    (text) => text === undefined ? failed("the back end did not answer initialize") : Effect.succeed(text)
  )
  if (JsonRpc.isError(answer)) return yield* new InitializeRefused({ answer })

  yield* Effect.addFinalizer(() => Deferred.succeed(over, "the session has ended"))

  const forward: Upstream["forward"] = Effect.fnUntraced(function*(message) {
    const { request } = message
    const started = yield* Effect.clockWith((clock) => clock.currentTimeMillis)
    if (message.method === "GET") {
      yield* Effect.acquireRelease(Effect.sync(() => streams++), () => Effect.sync(() => streams--))
    } else if (request !== undefined) {
      requests++
      yield* Effect.acquireRelease(
        Effect.sync(() => inFlight++),
        (_, exit) =>
          Effect.clockWith((clock) =>
            Effect.map(clock.currentTimeMillis, (now) => {
              inFlight--
              if (exit._tag === "Failure") errors++
              metrics.request(request.method, exit._tag === "Failure" ? "error" : "ok", now - started)
            })
          )
      )
    }
    const sent = message.method === "POST"
      ? post(message.body, message.version)
      : send("GET", {
        accept: "text/event-stream",
        "mcp-protocol-version": message.version,
        "last-event-id": message.lastEventId
      })
    const answered = yield* Effect.raceFirst(sent, Effect.flatMap(Deferred.await(over), failed)).pipe(
      Effect.timeoutOption(request === undefined ? Duration.infinity : settings.requestTimeout)
    )
    if (Option.isNone(answered)) {
      return HttpServerResponse.text(yield* cancel(message), { contentType: "application/json" })
    }
    const upstream = answered.value
    if (upstream.status === 404 && upstreamSession !== undefined) {
      yield* Deferred.succeed(ended, failed("the back end does not know its session any more"))
      return yield* new UpstreamGone()
    }
    if (Remote.isRefusal(upstream.status)) return yield* Remote.refusal(remote, upstream.status)
    const contentType = upstream.headers["content-type"] ?? "application/json"
    if (!Remote.isEventStream(upstream)) {
      const text = yield* Effect.mapError(upstream.text, () => failed("the back end broke off its answer"))
      return HttpServerResponse.text(text, { status: upstream.status, contentType })
    }
    const chunks = yield* Remote.chunksOf(upstream, Deferred.await(over))
    const body = EventStreamBody.make(
      request === undefined ? chunks : yield* Remote.timed(chunks, settings.requestTimeout, cancel(message)),
      message.stream
    )
    return EventStreamBody.response(body, upstream.status)
  })

  /** Cancels a request that takes too long; what its client is told. */
  const cancel = Effect.fnUntraced(function*({ request, version }: Forwarded) {
    const id = request?.id ?? null
    const reason = Remote.timeoutReason(settings.requestTimeout)
    const params = { requestId: id, reason }
    const notification = JSON.stringify({ jsonrpc: "2.0", method: "notifications/cancelled", params })
    // The client's error does not wait for it.
    yield* Effect.forkDetach(
      Effect.ignore(Effect.timeout(Effect.scoped(post(notification, version)), Remote.closeTimeout))
    )
    return JsonRpc.error(id, JsonRpc.codes.timeout, reason)
  })

  return {
    _tag: "Http",
    ended,
    gone,
    answer,
    record,
    forward,
    activity: () => ({ pid: undefined, client: record.client, inFlight, streams, requests, errors }),
    end: (reason) => Effect.asVoid(Deferred.succeed(over, reason))
  }
})

/** The answer to a request in a response, which is JSON or an event stream. */
const answerOf = (response: HttpClientResponse.HttpClientResponse, id: JsonRpc.Id, maxBytes: number) =>
  Remote.isEventStream(response)
    ? Remote.events(response, maxBytes).pipe(
      Stream.map(({ data }) => data),
      Stream.filter((data) => {
        const json = JsonRpc.parse(data)
        const message = Option.isSome(json) ? JsonRpc.classify(json.value) : undefined
        return message?._tag === "Response" && JsonRpc.idKey(message.id) === JsonRpc.idKey(id)
      }),
      Stream.runHead,
      Effect.map(Option.getOrUndefined),
      Effect.orElseSucceed(() => undefined)
    )
    : Effect.orElseSucceed(response.text, () => undefined)
