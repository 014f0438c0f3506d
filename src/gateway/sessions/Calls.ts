/**
 * Carries out requests of revision 2026-07-28. Each request is complete in itself, and becomes a call on one of its caller's pooled lanes.
 * If the server asks for input during the call, the call is parked (`Parked`) until its client sends the request again with the answers.
 *
 * A call's lease is a scope of its own. `begin` owns the scope until the lane has the call. From then on the lane owns it, and closes it
 * once, when the call is over: answered, cancelled (disconnect, timeout, no retry in time, drain), or failed with its process. Parking does
 * not move the lease. In this revision a disconnect is a cancellation (basic/patterns/cancellation).
 */
import { Cause, Deferred, Duration, Effect, Exit, Predicate, Result, Scope } from "effect"
import type { Answer, Event, Exchange, Refusal, Reply } from "../conversation/Exchange.ts"
import { refusal, replyWith, startWith } from "../conversation/Exchange.ts"
import type { Handshake } from "../conversation/Handshake.ts"
import type { Queued, RunningCall } from "../conversation/LaneCalls.ts"
import type * as Mailbox from "../conversation/Mailbox.ts"
import type * as Parked from "../conversation/Parked.ts"
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import * as Modern from "../protocol/Modern.ts"
import * as RequestState from "../protocol/RequestState.ts"
import type * as Settings from "../settings/Settings.ts"
import type { Carrying, Client } from "./Ask.ts"
import type * as Callers from "./Callers.ts"
import * as Listening from "./Listening.ts"
import { ofError, shuttingDown } from "./Refusals.ts"
import * as RunningBackend from "./RunningBackend.ts"
import type { Serving } from "./Serving.ts"
import type { AcquireError } from "./Sessions.ts"

/** Clients may cache the answer to `server/discover` for this many milliseconds: a restarted back end can have changed. */
const discoverTimeToLive = 60_000

/** Checks a request. */
export const read = ({ draining }: Serving, request: JsonRpc.Request): Effect.Effect<Modern.Call, Refusal> => {
  const { id } = request
  const parsed = Modern.read(request)
  if (Result.isFailure(parsed)) return Effect.fail(faulty(id, parsed.failure))
  return Deferred.isDoneUnsafe(draining)
    ? Effect.fail(shuttingDown({ id, code: JsonRpc.codes.internal }))
    : Effect.succeed(parsed.success)
}

export const faulty = (id: JsonRpc.Id, { code, data, message, reason }: Modern.Fault): Refusal =>
  refusal(reason, message, { id, code, data })

/** Carries out a request on its caller's lanes. */
export const call = (serving: Serving, client: Client, call: Modern.Call): Carrying => {
  switch (call.request.method) {
    case "server/discover":
      return discover(serving, client, call)
    case "subscriptions/listen":
      return listen(serving, client, call)
    default:
      return call.requestState === undefined ? begin(serving, client, call) : Effect.flatMap(
        handshakeOf(serving, client, call),
        // A modern server makes its own request states, so the call goes to it.
        ({ era }) => era === "legacy" ? retry(serving, client, call) : begin(serving, client, call)
      )
  }
}

export const callerOf = ({ settings }: Serving, asking: Client, { client }: Modern.Call) => {
  const { backend, light, principal } = asking
  return Effect.map(
    isKnown(settings, asking),
    (known): Callers.Caller => ({ backend, principal, known, light, client })
  )
}

/** Whether a client can be told from others. */
export const isKnown = (
  { shareWithoutKeys }: Pick<Settings.GatewaySettings, "shareWithoutKeys">,
  { known, principal }: Client
): Effect.Effect<boolean> => principal.id !== "" || shareWithoutKeys ? Effect.succeed(true) : known

// ---------------------------------------------------------------------------
// Calls
// ---------------------------------------------------------------------------

const begin = (serving: Serving, client: Client, call: Modern.Call): Carrying =>
  Effect.uninterruptibleMask((restore) => {
    const leaseScope = Scope.makeUnsafe()
    const release = Scope.close(leaseScope, Exit.void)
    const exclusive = needsOwnLane(serving, client, call)
    const leased = Effect.flatMap(callerOf(serving, client, call), (caller) => serving.sessions.lane(caller, exclusive))
    return Effect.flatMap(
      Effect.onError(restore(Scope.provide(leased, leaseScope)), () => release),
      ({ lane }) => attach(serving, client, lane.calls.call(call, exclusive, release))
    ).pipe(Effect.mapError(refused(call)))
  })

/** Resumes a parked call with the client's input. */
const retry = (serving: Serving, client: Client, call: Modern.Call): Carrying =>
  Effect.uninterruptible(Effect.flatMap(
    Effect.sync(() => serving.parked.take(call.requestState ?? "", ownerOf(client, call))),
    (taken) => {
      if (Result.isFailure(taken)) {
        const message = `Invalid params: requestState is not valid here: ${taken.failure}`
        return Effect.fail(refusal("invalid", message, { id: call.request.id, code: JsonRpc.codes.invalidParams }))
      }
      taken.success.resume(call)
      return attach(serving, client, taken.success)
    }
  ))

const refused = ({ request }: Modern.Call) => (error: AcquireError): Refusal =>
  ofError(error, request.id, JsonRpc.codes.internal)

/** True if the server may send messages for this call that do not name the call. */
const needsOwnLane = (
  { sessions }: Serving,
  { backend }: Client,
  { client, logLevel, request }: Modern.Call
): boolean => {
  const target = sessions.running().get(backend)
  const isAsked = Modern.mayRequireInput.includes(request.method) && Modern.canBeAsked(client.capabilities)
  if (RunningBackend.knownEra(target) !== "modern") return logLevel !== undefined || isAsked
  // A modern HTTP server sends the log messages of a call in the call's own response.
  return logLevel !== undefined && target?.backend.transport.startsServer !== false
}

// ---------------------------------------------------------------------------
// Replies
// ---------------------------------------------------------------------------

/** The client of a running call. */
interface Attached {
  readonly serving: Serving
  readonly client: Client
  readonly running: RunningCall
  readonly reader: Mailbox.Reader<Queued>
  /**
   * Set once the call is parked. Then the exchange ends, and its end does not cancel the call. The exchange of a light session goes on: the
   * call may end before its client answers, and a question of a session must end with the session.
   */
  parked: Parked.ParkedCall | undefined
}

/** The next events for the client. An answer is the last one. Empty if the client must get a stream now. */
type Step = ReadonlyArray<Event | Answer>

const isAnswer = (event: Event | Answer | undefined): event is Answer => Predicate.isTagged(event, "Answer")

/** Ties a call to its client's exchange: a client that disconnects before the answer cancels it. */
const attach = (serving: Serving, client: Client, running: RunningCall): Effect.Effect<Exchange, never, Scope.Scope> =>
  Effect.uninterruptible(Effect.flatMap(Effect.scope, (scope) => {
    const attached: Attached = { serving, client, running, reader: running.read(), parked: undefined }
    const leave = Effect.sync(() => {
      attached.reader.close()
      if (attached.parked === undefined) running.cancel("the client disconnected")
      else if (client.light === true) {
        attached.parked.cancel("the client has cancelled the request, or its session has ended")
      }
    })
    const reply = Effect.map(Effect.orDie(nextStep(attached)), (first): Reply => {
      const [only] = first
      if (first.length === 1 && isAnswer(only)) return only
      return { _tag: "Events", take: startWith(first, nextStep(attached)) }
    })
    // Not `acquireRelease`, for the reason that `SessionAsks` gives.
    return Effect.as(Scope.addFinalizer(scope, leave), { reply })
  }))

/** Waits for the next step of a call. Fails with `Done` after the answer. */
const nextStep = (attached: Attached): Effect.Effect<Step, Cause.Done> =>
  Effect.suspend(() => {
    const { client, parked, reader } = attached
    if (parked !== undefined && client.light !== true) return Cause.done()
    return Effect.flatMap(reader.take, (queued) => {
      const step = stepOf(attached, queued.map(({ value }) => value))
      return step === undefined ? nextStep(attached) : Effect.succeed(step)
    })
  })

/** The step that a call's messages make. Parks the call if its server waits for input. `undefined` if nothing is for the client. */
const stepOf = (attached: Attached, queued: ReadonlyArray<Queued>): Step | undefined => {
  const { running } = attached
  const call = running.call()
  const step = queued.flatMap((message): Step => {
    if (message._tag === "Ended") return [answerOf(call, message)]
    return message._tag === "Notification" ? notificationOf(call, message) : []
  })
  // The questions may have been answered or cancelled meanwhile.
  const isAsked = queued.some(({ _tag }) => _tag === "InputRequired") && running.inputRequests().length > 0
  if (isAsked && attached.parked === undefined && !isAnswer(step.at(-1))) step.push(park(attached))
  const isStreamDue = queued.some(({ _tag }) => _tag === "StreamDue")
  return step.length > 0 || isStreamDue ? step : undefined
}

const answerOf = (
  { request }: Modern.Call,
  { isOfBackend, member, value }: Queued & { readonly _tag: "Ended" }
): Answer =>
  member === "result" ? { _tag: "Answer", text: JsonRpc.result(request.id, value).text } : {
    _tag: "Answer",
    text: JsonRpc.failure(request.id, value).text,
    reason: isOfBackend === true ? "back end failed" : reasonOf(JsonRpc.codeOf(value))
  }

const reasonOf = (code: number): Answer["reason"] =>
  code === JsonRpc.codes.methodNotFound ? "unknown" : invalidCodes.includes(code) ? "invalid" : undefined

/** The errors of revision 2026-07-28 that say that the request is not valid (basic/transports/streamable-http). */
const invalidCodes: ReadonlyArray<number> = [
  Modern.codes.missingCapability,
  Modern.codes.headerMismatch,
  Modern.codes.unsupportedVersion
]

/** A notification in the form for the client's current request. Empty if the client does not get it. */
const notificationOf = (
  { logLevel, request: { id, progressToken } }: Modern.Call,
  { kind, method, params }: Queued & { readonly _tag: "Notification" }
): ReadonlyArray<Event> => {
  switch (kind) {
    case "progress":
      return progressToken === undefined
        ? []
        : [JsonRpc.notification(method, { ...Json.objectOf(params), progressToken })]
    case "log": {
      const level = Modern.logLevels.indexOf(Json.textOf(Json.field(params, "level")))
      return logLevel !== undefined && level >= Modern.logLevels.indexOf(logLevel)
        ? [JsonRpc.notification(method, params)]
        : []
    }
    case "subscription":
      return [JsonRpc.notification(method, Modern.tagged(params, id))]
    case "other":
      return [JsonRpc.notification(method, params)]
  }
}

/**
 * Parks a call that waits for its client's input, and returns the answer for the client. `retry` resumes the call. A light session gets an
 * event, because its exchange goes on. There is no limit of time: the session's `requestTimeout` bounds the wait.
 */
const park = (attached: Attached): Answer | Event => {
  const { client, running, serving } = attached
  const call = running.call()
  const { id } = call.request
  const cancelledWith = (message: string): Answer => {
    attached.reader.close()
    running.cancel(message)
    const { text } = JsonRpc.error(id, JsonRpc.codes.internal, message)
    return { _tag: "Answer", text, reason: "unavailable" }
  }
  // No client could come back to a call that is parked now.
  if (Deferred.isDoneUnsafe(serving.draining)) return cancelledWith("the gateway is shutting down")
  const { parkedTimeToLive } = serving.sessions.running().get(client.backend)?.backend.settings ?? serving.settings
  const timeToLive = client.light === true ? Duration.infinity : parkedTimeToLive
  const parked = serving.parked.park(running, ownerOf(client, call), timeToLive)
  if (Result.isFailure(parked)) {
    return cancelledWith(
      `${parked.failure} calls already wait for input, which is the limit; answer one of them, or try again later`
    )
  }
  attached.parked = parked.success
  const inputRequests = Object.fromEntries(
    running.inputRequests().map(({ key, method, params }) => [key, { method, params }])
  )
  const { requestState } = parked.success
  const { text } = JsonRpc.result(id, { resultType: "input_required", inputRequests, requestState })
  return client.light === true ? { text } : { _tag: "Answer", text }
}

/** The owner of a call and a digest of its request. Only the same request of the same client may continue the call. */
const ownerOf = ({ backend, principal }: Client, { request }: Modern.Call): Parked.Owner => {
  const params = { ...Json.objectOf(request.params), _meta: null, inputResponses: null, requestState: null }
  return { backend, principal: principal.id, digest: RequestState.digest(request.method, params) }
}

// ---------------------------------------------------------------------------
// server/discover and subscriptions/listen
// ---------------------------------------------------------------------------

const discover = (serving: Serving, client: Client, call: Modern.Call): Carrying =>
  Effect.map(handshakeOf(serving, client, call), (handshake) => {
    const { text } = JsonRpc.result(call.request.id, discovered(handshake))
    return replyWith({ _tag: "Answer", text })
  })

/** The back end's handshake. Starts a process if no process has done one yet. */
const handshakeOf = (serving: Serving, client: Client, call: Modern.Call): Effect.Effect<Handshake, Refusal> =>
  Effect.suspend(() => {
    const known = serving.sessions.running().get(client.backend)?.handshake
    return known === undefined
      ? Effect.map(Effect.scoped(leaseFirst(serving, client, call)), ({ lane }) => lane.handshake)
      : Effect.succeed(known)
  })

const leaseFirst = (serving: Serving, client: Client, call: Modern.Call) =>
  Effect.mapError(Effect.flatMap(callerOf(serving, client, call), serving.sessions.firstLane), refused(call))

/** The answer to `server/discover`, from what a back end has said in its handshake. */
const discovered = ({ capabilities, instructions, serverInfo }: Handshake) => ({
  resultType: "complete",
  supportedVersions: Modern.supportedVersions,
  capabilities,
  instructions,
  ttlMs: discoverTimeToLive,
  // Other callers may get other answers.
  cacheScope: "private",
  _meta: serverInfo === undefined ? undefined : { [Modern.metaKeys.serverInfo]: serverInfo }
})

/** Streams the changes that the caller's lanes report. Leases the first lane for as long as the client listens. */
const listen = Effect.fnUntraced(function*(serving: Serving, client: Client, call: Modern.Call) {
  const { id, params } = call.request
  const filter = Listening.filterOf(params)
  if (filter === undefined) {
    const message =
      "Invalid params: notifications must be an object that names kinds of change, such as {\"toolsListChanged\": true}"
    return yield* Effect.fail(refusal("invalid", message, { id, code: JsonRpc.codes.invalidParams }))
  }
  const { lane, profile } = yield* leaseFirst(serving, client, call)
  if (lane.handshake.era === "modern") {
    const running = lane.calls.call(call, false, Effect.void)
    const exchange = yield* attach(serving, client, running)
    const over = Effect.sync(() => running.complete(Listening.completed(id), "the gateway is shutting down"))
    yield* Effect.forkScoped(Effect.andThen(Deferred.await(serving.draining), over))
    return exchange
  }
  const take = yield* Listening.subscribe(lane, profile, id, filter, serving.draining)
  return replyWith({ _tag: "Events", take })
})
