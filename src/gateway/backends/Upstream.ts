/**
 * One client session on an HTTP back end. It has its own upstream session, which the client's `initialize` opens. Messages pass
 * unchanged in both directions; event ids are the upstream's.
 */
import type { Scope } from "effect"
import { Clock, Deferred, Duration, Effect, Option, Schema, Stream } from "effect"
import type { HttpClientResponse } from "effect/http"
import type { HttpClient } from "effect/http"
import { HttpServerResponse } from "effect/http"
import type { BackendFailed } from "../GatewayErrors.ts"
import { InitializeRefused } from "../GatewayErrors.ts"
import type { GatewayMetrics } from "../GatewayMetrics.ts"
import * as EventStreamBody from "../http/EventStreamBody.ts"
import * as JsonRpc from "../messages/JsonRpc.ts"
import type { ClientRecord } from "../sessions/ClientRecord.ts"
import * as PooledConnection from "../sessions/PooledConnection.ts"
import type { BackendSettings } from "../settings/Settings.ts"
import * as Remote from "./Remote.ts"

/** A client's POST, or the GET that opens its stream. */
export interface Forwarded {
  readonly method: "POST" | "GET"
  readonly body: string
  /** The messages in the body. */
  readonly messages: ReadonlyArray<JsonRpc.Message>
  /** The request in the body. `undefined` for a batch and for other messages. */
  readonly request: JsonRpc.Request | undefined
  readonly version: string | undefined
  readonly lastEventId: string | undefined
  readonly stream: EventStreamBody.Options
}

/** The upstream no longer knows its session. */
export class UpstreamGone extends Schema.TaggedError<UpstreamGone>()("UpstreamGone", {}) {}

export interface Upstream extends PooledConnection.PooledConnection {
  readonly _tag: "Http"
  readonly record: ClientRecord
  /** Forwards a message and returns the upstream's response, whose body streams as it arrives. */
  readonly forward: (
    message: Forwarded
  ) => Effect.Effect<HttpServerResponse.HttpServerResponse, BackendFailed | UpstreamGone, Scope.Scope>
}

/** The state of an upstream session. */
interface State {
  readonly remote: Remote.Remote
  readonly settings: BackendSettings
  readonly metrics: GatewayMetrics
  readonly ended: Deferred.Deferred<BackendFailed>
  /** Completes with the reason when the gateway ends the session. */
  readonly over: Deferred.Deferred<string>
  /** The requests in flight, by id. Each completes when its client cancels the request. */
  readonly running: Map<string, Deferred.Deferred<void>>
  /** The session id from the upstream, if it gave one. */
  id: string | undefined
  inFlight: number
  streams: number
  requests: number
  errors: number
}

export const make = Effect.fnUntraced(function*(
  target: Remote.Target,
  record: ClientRecord,
  settings: BackendSettings,
  metrics: GatewayMetrics,
  mask: (text: string) => string
): Effect.fn.Return<Upstream, BackendFailed | InitializeRefused, Scope.Scope | HttpClient.HttpClient> {
  const gone = yield* PooledConnection.gone
  const state: State = {
    remote: yield* Remote.make(target, mask),
    settings,
    metrics,
    ended: yield* Deferred.make<BackendFailed>(),
    over: yield* Deferred.make<string>(),
    running: new Map(),
    id: undefined,
    inFlight: 0,
    streams: 0,
    requests: 0,
    errors: 0
  }
  const answer = yield* shakeHands(state, record)
  yield* Effect.addFinalizer(() => Deferred.succeed(state.over, "the session has ended"))
  return {
    _tag: "Http",
    ended: state.ended,
    gone,
    answer,
    record,
    forward: (message) => forward(state, message),
    activity: () => {
      const { errors, inFlight, requests, streams } = state
      return { pid: undefined, client: record.client, inFlight, streams, requests, errors }
    },
    end: (reason) => Effect.asVoid(Deferred.succeed(state.over, reason))
  }
})

const send = (
  { id, remote }: State,
  method: "POST" | "GET" | "DELETE",
  own: Record<string, string | undefined>,
  body?: string
) => remote.send(method, { ...own, "mcp-session-id": id }, body)

const post = (state: State, body: string, version: string | undefined) =>
  send(state, "POST", { accept: Remote.accept, "mcp-protocol-version": version }, body)

/** Opens the upstream's session, which ends with the scope. Returns the answer to `initialize`. */
const shakeHands = Effect.fnUntraced(function*(state: State, record: ClientRecord) {
  const { failed } = state.remote
  const response = yield* post(state, record.initialize, undefined)
  if (response.status !== 200) {
    const text = yield* Effect.orElseSucceed(response.text, () => "")
    if (JsonRpc.isError(text)) return yield* new InitializeRefused({ answer: text })
    return yield* failed(`the back end answered initialize with status ${response.status}`)
  }
  state.id = response.headers["mcp-session-id"]
  yield* Effect.addFinalizer(() =>
    state.id === undefined
      ? Effect.void
      : Effect.ignore(Effect.timeout(Effect.scoped(send(state, "DELETE", {})), Remote.closeTimeout))
  )
  const answer = yield* answerOf(response, record.id, state.settings.maxLineBytes)
  if (answer === undefined) return yield* failed("the back end did not answer initialize")
  if (JsonRpc.isError(answer)) return yield* new InitializeRefused({ answer })
  return answer
})

/**
 * Forwards messages. If the client cancels every request in them, the response ends `cancelGrace` later, because the upstream
 * need not answer cancelled requests.
 */
const forward = Effect.fnUntraced(function*(
  state: State,
  message: Forwarded
): Effect.fn.Return<HttpServerResponse.HttpServerResponse, BackendFailed | UpstreamGone, Scope.Scope> {
  const { over, remote, running } = state
  yield* counted(state, message)
  const waits: Array<Effect.Effect<void>> = []
  for (const each of message.messages) {
    if (each._tag === "Request") waits.push(Deferred.await(yield* cancellable(state, each)))
    const id = JsonRpc.cancelledId(each)
    const named = id === undefined ? undefined : running.get(JsonRpc.idKey(id))
    if (named !== undefined) yield* Deferred.succeed(named, undefined)
  }
  const cancelled = waits.length === 0
    ? Effect.never
    : Effect.andThen(Effect.all(waits), Effect.sleep(PooledConnection.cancelGrace))
  return yield* Effect.raceAllFirst([
    exchange(state, message, Effect.raceFirst(Deferred.await(over), cancelled)),
    Effect.flatMap(Deferred.await(over), remote.failed),
    Effect.as(cancelled, EventStreamBody.unanswered)
  ])
})

/** Registers a running request, so that a later `notifications/cancelled` can end it. */
const cancellable = ({ running }: State, { id }: JsonRpc.Request) => {
  const key = JsonRpc.idKey(id)
  return Effect.acquireRelease(
    Effect.sync(() => {
      const cancelled = Deferred.makeUnsafe<void>()
      running.set(key, cancelled)
      return cancelled
    }),
    (cancelled) => Effect.sync(() => running.get(key) === cancelled && running.delete(key))
  )
}

/** Sends a message and returns the response. An event stream ends when `over` completes. */
const exchange = Effect.fnUntraced(function*(
  state: State,
  message: Forwarded,
  over: Effect.Effect<unknown>
): Effect.fn.Return<HttpServerResponse.HttpServerResponse, BackendFailed | UpstreamGone, Scope.Scope> {
  const { remote, settings } = state
  const { request } = message
  const sent = message.method === "POST"
    ? post(state, message.body, message.version)
    : send(state, "GET", {
      accept: "text/event-stream",
      "mcp-protocol-version": message.version,
      "last-event-id": message.lastEventId
    })
  const answered = yield* Effect.timeoutOption(
    sent,
    request === undefined ? Duration.infinity : settings.requestTimeout
  )
  if (Option.isNone(answered)) {
    return HttpServerResponse.text(yield* cancel(state, message), { contentType: "application/json" })
  }
  const upstream = answered.value
  if (upstream.status === 404 && state.id !== undefined) {
    yield* Deferred.succeed(state.ended, remote.failed("the back end no longer knows its session"))
    return yield* new UpstreamGone()
  }
  if (Remote.isRefusal(upstream.status)) return yield* Remote.refusal(remote, upstream.status)
  const contentType = upstream.headers["content-type"] ?? "application/json"
  if (!Remote.isEventStream(upstream)) {
    const text = yield* Effect.mapError(upstream.text, () => remote.failed("the back end's answer ended early"))
    return HttpServerResponse.text(text, { status: upstream.status, contentType })
  }
  const chunks = yield* Remote.chunksOf(upstream, over)
  const body = EventStreamBody.make(
    request === undefined ? chunks : yield* Remote.timed(chunks, settings.requestTimeout, cancel(state, message)),
    message.stream
  )
  return EventStreamBody.response(body, upstream.status)
})

/** Counts a request or a stream as in flight until the scope ends, which is when its response has been sent. */
const counted = Effect.fnUntraced(function*(state: State, { method, request }: Forwarded) {
  if (method === "GET") {
    yield* Effect.acquireRelease(Effect.sync(() => state.streams++), () => Effect.sync(() => state.streams--))
    return
  }
  if (request === undefined) return
  const started = yield* Clock.currentTimeMillis
  state.requests++
  yield* Effect.acquireRelease(
    Effect.sync(() => state.inFlight++),
    (_, exit) =>
      Effect.map(Clock.currentTimeMillis, (now) => {
        state.inFlight--
        if (exit._tag === "Failure") state.errors++
        state.metrics.request(request.method, exit._tag === "Failure" ? "error" : "ok", now - started)
      })
  )
})

/** Cancels a request that timed out. Returns the error for its client. */
const cancel = Effect.fnUntraced(function*(state: State, { request, version }: Forwarded) {
  const id = request?.id ?? null
  const reason = Remote.timeoutReason(state.settings.requestTimeout)
  const params = { requestId: id, reason }
  const notification = JSON.stringify({ jsonrpc: "2.0", method: "notifications/cancelled", params })
  // Sent in a detached fiber, so the client's error does not wait for the upstream.
  yield* Effect.forkDetach(
    Effect.ignore(Effect.timeout(Effect.scoped(post(state, notification, version)), Remote.closeTimeout))
  )
  return JsonRpc.error(id, JsonRpc.codes.timeout, reason)
})

/** The answer to a request. The response is JSON or an event stream. */
const answerOf = (response: HttpClientResponse.HttpClientResponse, id: JsonRpc.Id, maxBytes: number) =>
  Remote.isEventStream(response)
    ? Remote.events(response, maxBytes).pipe(
      Stream.map(({ data }) => data),
      Stream.filter((data) => {
        const message = JsonRpc.read(data)
        return message?._tag === "Response" && JsonRpc.idKey(message.id) === JsonRpc.idKey(id)
      }),
      Stream.runHead,
      Effect.map(Option.getOrUndefined),
      Effect.orElseSucceed(() => undefined)
    )
    : Effect.orElseSucceed(response.text, () => undefined)
