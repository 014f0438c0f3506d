/**
 * The revisions with sessions (2025-03-26, 2025-06-18, 2025-11-25; basic/transports) on Streamable HTTP: what each request
 * means for the session that it belongs to.
 *
 * `Placement.forNew` mints a session's id, which `initialize` gives to the client; `Placement.ofSession` checks what a client sends
 * as one.
 *
 * A request's lease lasts until its answer, whether or not the client still listens: the specification says that a
 * disconnect is no cancellation.
 */
import { Deferred, Duration, Effect, Exit, identity, Option, Queue, Result, Scope, Stream } from "effect"
import { Headers, HttpServerResponse } from "effect/http"
import * as EventStreamBody from "../http/EventStreamBody.ts"
import type { Refusal } from "../http/Refusals.ts"
import { jsonResponse, refuse, refuseFailure, retryLater, shuttingDown, unknownSession } from "../http/Refusals.ts"
import * as Serving from "../http/Serving.ts"
import * as JsonRpc from "../messages/JsonRpc.ts"
import * as JsonText from "../messages/JsonText.ts"
import type { Connection } from "../sessions/Registry.ts"
import * as Masking from "../settings/Masking.ts"
import type { RunningRequest, Taken } from "./BridgeRequests.ts"
import type { Reader } from "./EventStreams.ts"

/** From this revision on an event stream begins with an event without data, so that it can be resumed from the start. */
const primingVersion = "2025-11-25"
/** Longest that DELETE waits for the process group to be gone. */
const deleteTimeout = "10 seconds"

type Response = HttpServerResponse.HttpServerResponse

// ---------------------------------------------------------------------------
// POST
// ---------------------------------------------------------------------------

/** One message. */
export const post = (
  serving: Serving.Serving,
  asking: Serving.Asking,
  message: JsonRpc.Message,
  text: string
): Effect.Effect<Response, Refusal, Scope.Scope> => {
  if (message._tag === "Request" && message.method === "initialize") {
    return initialize(serving, withoutSession(asking), message, text)
  }
  const here = message._tag === "Request"
    ? call(serving, asking, message, text)
    : Effect.as(send(serving, asking, message, text), HttpServerResponse.empty({ status: 202 }))
  return Serving.atSession(
    serving,
    asking,
    text,
    isHttp(serving, asking) ? forward(serving, asking, text, message, here) : here
  )
}

/**
 * Some clients send the id of their earlier session when they initialize again. They get a new session, even if the earlier one
 * is alive, because a server takes `initialize` only once. The earlier one keeps its idle time: another client may use it too.
 */
const withoutSession = (asking: Serving.Asking): Serving.Asking => {
  const { headers, method, source } = asking.request
  return { ...asking, request: { method, source, headers: Headers.remove(headers, "mcp-session-id") } }
}

/** Opens a session, at the place that is found for it. */
const initialize = (
  serving: Serving.Serving,
  asking: Serving.Asking,
  message: JsonRpc.Request,
  text: string
): Effect.Effect<Response, Refusal, Scope.Scope> => {
  // Servers drop such a message without an answer: the process would run for all of `startTimeout`.
  if (typeof JsonRpc.field(message.params, "protocolVersion") !== "string") {
    return refuse(400, "The params of initialize must be an object with a protocolVersion, such as \"2025-11-25\"", {
      id: message.id,
      code: JsonRpc.codes.invalidParams
    })
  }
  const decided = asking.carried?.opens
  if (decided !== undefined) return open(serving, asking, message, text, decided)
  const { placement, sessions } = serving
  const movable = sessions.running().get(asking.backend)?.backend.settings.stateless === true
  return Effect.flatMap(placement.forNew(movable), ({ id, place }) => {
    if (id !== undefined) {
      return Serving.atPlace(serving, asking, place, text, open(serving, asking, message, text, id), { opens: id })
    }
    // Without an id the place is another replica, never here. Those whom a replica sends on are not sent on again.
    return asking.carried === undefined
      ? Serving.atPlace(serving, asking, place, text, Effect.never)
      : shuttingDown(message.id)
  })
}

/** Opens a session here: the client's own `initialize` is the first message of its process. */
const open = Effect.fnUntraced(function*(
  serving: Serving.Serving,
  { backend, principal }: Serving.Asking,
  message: JsonRpc.Request,
  text: string,
  session: string
) {
  if (Deferred.isDoneUnsafe(serving.draining)) return yield* shuttingDown(message.id)
  const opened = yield* Effect.result(serving.sessions.open(backend, principal, session, message, text))
  if (opened._tag === "Failure") {
    // Refused by the back end itself: the client's to read.
    if (opened.failure._tag === "InitializeRefused") return jsonResponse(opened.failure.answer, 200)
    yield* Effect.logWarning(`No session was opened: ${opened.failure.message}`).pipe(
      Effect.annotateLogs({ backend })
    )
    return yield* refuseFailure(opened.failure, message.id)
  }
  yield* Effect.logInfo("session opened").pipe(Effect.annotateLogs({ backend, session: Masking.shortId(session) }))
  return jsonResponse(opened.success.answer, 200, { "mcp-session-id": session })
})

/** A request within a session: JSON if its answer comes first and soon (`streamAfter`), else an event stream that ends with it. */
const call = (serving: Serving.Serving, asking: Serving.Asking, message: JsonRpc.Request, text: string) =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(
      Effect.flatMap(
        begin(serving, asking, message, text, restore),
        ({ abandon, reply }) => Effect.onInterrupt(restore(reply), () => abandon)
      ),
      (first) =>
        first._tag === "Answer"
          ? Effect.succeed(jsonResponse(first.text, 200))
          : first._tag === "Cancelled"
          ? Effect.succeed(EventStreamBody.unanswered)
          : Effect.map(
            readingOf(Effect.sync(first.open)),
            (reader) => EventStreamBody.response(events(serving, asking, reader))
          )
    )
  )

/**
 * Leases the session until the request is answered, and hands the request to the process. The lease belongs to the
 * request, not to the client's connection: it is registered and released without the handler's fiber. To be run
 * uninterruptible, with `restore` for what may wait.
 */
const begin = (
  serving: Serving.Serving,
  asking: Serving.Asking,
  message: JsonRpc.Request,
  text: string,
  restore: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
): Effect.Effect<RunningRequest, Refusal> =>
  Effect.suspend(() => {
    const id = message.id
    if (Deferred.isDoneUnsafe(serving.draining)) return over(serving, id)
    // Closed when the request is answered, which the end of its session does at the latest.
    // On purpose no child of the gateway's scope: with one, memory grew to 350 MiB in 40,000 calls, without it stays at 180.
    // So `release` is all that closes it.
    const leaseScope = Scope.makeUnsafe()
    const release = Scope.close(leaseScope, Exit.void)
    return Effect.flatMap(
      // A client that goes while its session wakes takes the launch with it.
      Effect.onError(restore(Scope.provide(lease(serving, asking, id), leaseScope)), () => release),
      (connection) => {
        // The back end has become an HTTP one in the meantime.
        if (connection._tag !== "Stdio") return Effect.andThen(release, unknownSession(id))
        const taken = connection.request(message, text, release)
        return taken._tag === "Running" ? Effect.succeed(taken) : Effect.andThen(release, refuseRequest(taken, id))
      }
    )
  })

const refuseRequest = (taken: Exclude<Taken, RunningRequest>, id: JsonRpc.Id) => {
  switch (taken._tag) {
    case "DuplicateId":
      return refuse(400, "A request with this id is running in this session", {
        id,
        code: JsonRpc.codes.invalidRequest
      })
    case "TooMany":
      return refuse(429, "Too many requests of this session are running", { id, headers: retryLater })
    case "Over":
      return unknownSession(id)
  }
}

/** A notification or a response. Once it was handed to the process it stays so, whether or not its client waits. */
const send = (serving: Serving.Serving, asking: Serving.Asking, message: JsonRpc.Message, text: string) =>
  Effect.scoped(
    Effect.uninterruptibleMask((restore) => Effect.flatMap(handOver(serving, asking, message, text, restore), restore))
  )

/** Hands it to the process; gives what waits until the process has read it, for which the session is leased for the scope. */
const handOver = (
  serving: Serving.Serving,
  asking: Serving.Asking,
  message: JsonRpc.Message,
  text: string,
  restore: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
): Effect.Effect<Effect.Effect<void>, Refusal, Scope.Scope> =>
  Effect.flatMap(
    restore(lease(serving, asking)),
    (connection) => connection._tag === "Stdio" ? Effect.sync(() => connection.send(message, text)) : unknownSession()
  )

/** Several messages in one body, as revision 2025-03-26 has it. */
export const batch = (
  serving: Serving.Serving,
  asking: Serving.Asking,
  values: ReadonlyArray<unknown>,
  text: string
): Effect.Effect<Response, Refusal, Scope.Scope> => {
  const messages = values.map(JsonRpc.classify)
  if (messages.length === 0 || !messages.every((message) => message !== undefined)) {
    return refuse(400, "The batch is empty, or one of its elements is no JSON-RPC 2.0 message", {
      code: JsonRpc.codes.invalidRequest
    })
  }
  if (messages.some((message) => message._tag === "Request" && message.method === "initialize")) {
    return refuse(400, "initialize must not be part of a batch", { code: JsonRpc.codes.invalidRequest })
  }
  const here = batchHere(serving, asking, messages, JsonText.elements(text))
  return Serving.atSession(
    serving,
    asking,
    text,
    isHttp(serving, asking) ? forward(serving, asking, text, messages, here) : here
  )
}

/** Their answers come on one stream. */
const batchHere = Effect.fnUntraced(function*(
  serving: Serving.Serving,
  asking: Serving.Asking,
  messages: ReadonlyArray<JsonRpc.Message>,
  texts: ReadonlyArray<string>
) {
  const answers: Array<Answer> = []
  /** The errors of the calls that were refused; one stream for all, for a batch may have thousands. */
  const errors: Array<string> = []
  const writes: Array<Effect.Effect<void>> = []
  /** Something has been handed to the process, and will be carried out. */
  let isTaken = false
  const requestScope = yield* Effect.scope
  const handing = Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
    for (const [i, message] of messages.entries()) {
      const text = texts[i] ?? ""
      // A client that goes has sent the whole batch all the same.
      const patiently: typeof restore = isTaken ? identity : restore
      const given = yield* Effect.result(
        message._tag === "Request"
          ? Effect.map(
            Effect.flatMap(
              begin(serving, asking, message, text, patiently),
              (running) => Scope.provide(answerOf(asking, running), requestScope)
            ),
            (answer) => void answers.push(answer)
          )
          : Effect.map(handOver(serving, asking, message, text, patiently), (written) => void writes.push(written))
      )
      // Refused whole only while nothing of it runs: the answers to what does would be lost.
      if (Result.isFailure(given) && !isTaken) return yield* Effect.fail(given.failure)
      if (Result.isFailure(given) && message._tag === "Request") errors.push(given.failure.text)
      isTaken = true
    }
  }))
  // What is no call leases the session until the process has read it; without a lease it could be idle for too long before.
  yield* Effect.scoped(Effect.andThen(handing, Effect.suspend(() => Effect.all(writes, { discard: true }))))
  if (errors.length > 0) answers.push(eventsOf(errors))
  if (answers.length === 0) return HttpServerResponse.empty({ status: 202 })
  // One body for all: its heartbeats come between whole events of any of them. By way of a queue, because a heartbeat interrupts who
  // waits, which would end the streams.
  const body = Effect.map(
    Stream.toQueue(Stream.mergeAll(answers, { concurrency: "unbounded" }), { capacity: 1 }),
    (queue) => EventStreamBody.make(Queue.takeAll(queue), optionsOf(serving, asking))
  )
  return EventStreamBody.response(Stream.unwrap(body))
})

/** What one call of a batch adds to the batch's stream. */
type Answer = Stream.Stream<Uint8Array>

const eventsOf = (texts: ReadonlyArray<string>): Answer =>
  Stream.succeed(EventStreamBody.chunk(texts.map((text) => ({ text }))))

/** The answer to a call of a batch. What nobody has begun to read when the request's scope closes is abandoned. */
const answerOf = (asking: Serving.Asking, running: RunningRequest): Effect.Effect<Answer, never, Scope.Scope> =>
  Effect.suspend(() => {
    let isRead = false
    const answer = Stream.unwrap(Effect.gen(function*() {
      const first = yield* running.reply
      if (first._tag === "Answer") return eventsOf([first.text])
      if (first._tag === "Cancelled") return Stream.empty
      const reader = yield* readingOf(Effect.sync(() => {
        isRead = true
        return first.open()
      }))
      return Stream.fromPull(Effect.succeed(EventStreamBody.fromReader(reader, isPrimed(asking))))
    }))
    return Effect.as(Effect.addFinalizer(() => isRead ? Effect.void : running.abandon), answer)
  })

// ---------------------------------------------------------------------------
// GET and DELETE
// ---------------------------------------------------------------------------

/** The stream of what belongs to no request, or what is left of another. It leases the session while it is open. */
export const listen = Effect.fnUntraced(function*(serving: Serving.Serving, asking: Serving.Asking) {
  if (!Serving.accepts(asking.request, "text/event-stream")) {
    return yield* refuse(406, "Accept must list text/event-stream")
  }
  yield* refuseWhileDraining(serving)
  const here = listenHere(serving, asking)
  return yield* Serving.atSession(
    serving,
    asking,
    "",
    outlastingDelete(serving, asking, isHttp(serving, asking) ? forward(serving, asking, "", [], here) : here)
  )
})

/**
 * Keeps a GET stream open until the DELETE of its session is answered. Otherwise the official client reconnects in between, gets 404
 * and reports an error. The stream's lease ends earlier, with its last event, because DELETE waits for leases.
 */
const outlastingDelete = Effect.fnUntraced(function*(
  { deletions }: Serving.Serving,
  asking: Serving.Asking,
  open: Effect.Effect<Response, Refusal, Scope.Scope>
) {
  const own = yield* Effect.acquireRelease(Scope.make(), (own) => Scope.close(own, Exit.void))
  const response = yield* Scope.provide(open, own)
  if (response.body._tag !== "Stream") return response
  const session = yield* sessionId(asking)
  const answered = Effect.suspend(() => {
    const deletion = deletions.get(session)
    return deletion === undefined ? Effect.void : Deferred.await(deletion)
  })
  const body = Stream.ensuring(response.body.stream, Scope.close(own, Exit.void))
  return EventStreamBody.response(Stream.concat(body, Stream.fromEffectDrain(answered)), response.status)
})

const listenHere = Effect.fnUntraced(function*(serving: Serving.Serving, asking: Serving.Asking) {
  const connection = yield* lease(serving, asking)
  if (connection._tag !== "Stdio") return yield* unknownSession()
  const reader = yield* Effect.acquireRelease(
    connection.listen(asking.lastEventId),
    (opened) => Effect.sync(() => Option.map(opened, ({ close }) => close()))
  )
  if (Option.isNone(reader)) {
    return yield* refuse(429, "Too many streams of this session are open", { headers: retryLater })
  }
  // 204 tells an EventSource not to reconnect. After an empty stream it would reconnect forever.
  return reader.value.isDone()
    ? HttpServerResponse.empty({ status: 204 })
    : EventStreamBody.response(events(serving, asking, reader.value))
})

/** Ends the session; answers when its process group is gone. After that its streams end. */
export const end = (serving: Serving.Serving, asking: Serving.Asking) =>
  Serving.atSession(serving, asking, "", endHere(serving, asking))

const endHere = Effect.fnUntraced(function*(serving: Serving.Serving, asking: Serving.Asking) {
  const id = yield* sessionId(asking)
  yield* Effect.acquireRelease(
    Effect.sync(() => {
      const deletion = serving.deletions.get(id) ?? Deferred.makeUnsafe<void>()
      serving.deletions.set(id, deletion)
      return deletion
    }),
    (deletion) => Effect.andThen(Deferred.succeed(deletion, undefined), Effect.sync(() => serving.deletions.delete(id)))
  )
  const gone = yield* serving.sessions.end(asking.backend, asking.principal, id)
  if (Option.isNone(gone)) return yield* unknownSession()
  yield* Effect.timeoutOption(gone.value, deleteTimeout)
  return HttpServerResponse.empty({ status: 204 })
})

// ---------------------------------------------------------------------------
// HTTP back ends
// ---------------------------------------------------------------------------

const isHttp = ({ sessions }: Serving.Serving, { backend }: Serving.Asking) =>
  sessions.running().get(backend)?.backend.target._tag === "Http"

/** Passes a message or a batch on to the upstream session of an HTTP back end; `here`: it has none, the gateway keeps the session. */
const forward = Effect.fnUntraced(function*(
  serving: Serving.Serving,
  asking: Serving.Asking,
  body: string,
  said: JsonRpc.Message | ReadonlyArray<JsonRpc.Message>,
  here: Effect.Effect<Response, Refusal, Scope.Scope>
) {
  const message = "_tag" in said ? said : undefined
  const id = message?._tag === "Request" ? message.id : undefined
  if (message?._tag !== "Notification" && message?._tag !== "Response") yield* refuseWhileDraining(serving, id)
  const connection = yield* lease(serving, asking, id)
  if (connection._tag === "Stdio") return yield* here
  if (connection._tag !== "Http") return yield* unknownSession(id)
  const { lastEventId, request, version } = asking
  const forwarded = connection.forward({
    method: request.method === "GET" ? "GET" : "POST",
    body,
    messages: "_tag" in said ? [said] : said,
    request: message?._tag === "Request" ? message : undefined,
    version,
    lastEventId,
    stream: optionsOf(serving, asking)
  })
  return yield* Effect.catchTags(forwarded, {
    UpstreamGone: () => unknownSession(id),
    BackendFailed: (error) => refuse(502, error.message, id === undefined ? {} : { id })
  })
})

// ---------------------------------------------------------------------------
// Sessions and their streams
// ---------------------------------------------------------------------------

/** The session of a request, leased for the current scope; 400 without an id, 404 for one that does not exist. */
const lease = (
  { sessions }: Serving.Serving,
  asking: Serving.Asking,
  id?: JsonRpc.Id
): Effect.Effect<Connection, Refusal, Scope.Scope> =>
  Effect.flatMap(sessionId(asking), (session) =>
    Effect.catch(
      sessions.lease(asking.backend, asking.principal, session),
      (error) => refuseFailure(error, id)
    ))

const sessionId = ({ request }: Serving.Asking): Effect.Effect<string, Refusal> => {
  const id = request.headers["mcp-session-id"]
  return id ? Effect.succeed(id) : refuse(400, "The header Mcp-Session-Id is missing")
}

const refuseWhileDraining = (serving: Serving.Serving, id?: JsonRpc.Id): Effect.Effect<void, Refusal> =>
  Effect.suspend(() => Deferred.isDoneUnsafe(serving.draining) ? over(serving, id) : Effect.void)

/** Where there are other replicas, a client of one that ends had better go on with them at once. */
const over = ({ placement }: Serving.Serving, id?: JsonRpc.Id) =>
  placement.replica === "" ? shuttingDown(id) : unknownSession(id)

/** Opens a reader and closes it with the request's scope, after the response has been sent. */
const readingOf = (open: Effect.Effect<Reader>) =>
  Effect.acquireRelease(open, (reader) => Effect.sync(() => reader.close()))

const isPrimed = ({ version }: Serving.Asking): boolean => (version ?? "") >= primingVersion

const events = (serving: Serving.Serving, asking: Serving.Asking, reader: Reader) =>
  EventStreamBody.make(
    EventStreamBody.fromReader(reader, isPrimed(asking)),
    // Sends the header at once, even if no event is ready.
    { ...optionsOf(serving, asking), greetAfter: Duration.zero },
    reader.ready
  )

const optionsOf = (serving: Serving.Serving, { request }: Serving.Asking) =>
  request.method === "GET" ? Serving.listenOptions(serving, request) : Serving.streamOptions(serving, request)
