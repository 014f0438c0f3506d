/**
 * Handles requests of the revisions with sessions (2025-03-26, 2025-06-18, 2025-11-25; basic/transports) on Streamable
 * HTTP.
 *
 * `Placement.forNew` makes a session's id, and `initialize` returns it to the client. `Placement.ofSession` checks the
 * ids that clients send.
 *
 * A request leases its session until it is answered, even if its client disconnects. In the specification a disconnect
 * is no cancellation.
 */
import { Deferred, Duration, Effect, Exit, identity, Option, Queue, Result, Scope, Stream } from "effect"
import { Headers, HttpServerResponse } from "effect/http"
import type { RunningRequest, Taken } from "../conversation/BridgeRequests.ts"
import type { Reader } from "../conversation/EventStreams.ts"
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import type { Connection } from "../sessions/Registry.ts"
import * as Masking from "../settings/Masking.ts"
import * as EventStreamBody from "./EventStreamBody.ts"
import type { Refusal } from "./Refusals.ts"
import { jsonResponse, refuse, refuseFailure, retryLater, shuttingDown, unknownSession } from "./Refusals.ts"
import * as Serving from "./Serving.ts"

/**
 * From this revision on, an event stream begins with an event without data, so that a client can resume from the start.
 */
const primingVersion = "2025-11-25"
/** Longest time that DELETE waits for the process group to exit. */
const deleteTimeout = "10 seconds"

type Response = HttpServerResponse.HttpServerResponse

// ---------------------------------------------------------------------------
// POST
// ---------------------------------------------------------------------------

/** Handles a POST of one message. */
export const post = (
  serving: Serving.Serving,
  asking: Serving.Asking,
  message: JsonRpc.Message
): Effect.Effect<Response, Refusal, Scope.Scope> => {
  if (message._tag === "Request" && message.method === "initialize") {
    return initialize(serving, withoutSession(asking), message)
  }
  const here = message._tag === "Request"
    ? call(serving, asking, message)
    : Effect.as(send(serving, asking, message), HttpServerResponse.empty({ status: 202 }))
  return Serving.atSession(serving, asking, message.text, here)
}

/**
 * Some clients send the id of their earlier session when they initialize again. They get a new session even if the
 * earlier one is alive, because a server accepts `initialize` only once. The earlier session stays until it expires:
 * another client may use it, too.
 */
const withoutSession = (asking: Serving.Asking): Serving.Asking => {
  const { headers, method, source } = asking.request
  return { ...asking, request: { method, source, headers: Headers.remove(headers, "mcp-session-id") } }
}

/** Opens a session at the place that `Placement.forNew` finds. */
const initialize = (
  serving: Serving.Serving,
  asking: Serving.Asking,
  message: JsonRpc.Request
): Effect.Effect<Response, Refusal, Scope.Scope> => {
  // Servers drop such a message without an answer, so the process would run until `startTimeout`.
  if (typeof Json.field(message.params, "protocolVersion") !== "string") {
    return refuse(400, "The params of initialize must be an object with a protocolVersion, such as \"2025-11-25\"", {
      id: message.id,
      code: JsonRpc.codes.invalidParams
    })
  }
  const decided = asking.carried?.opens
  if (decided !== undefined) return open(serving, asking, message, decided)
  const { placement, sessions } = serving
  const movable = sessions.running().get(asking.backend)?.backend.settings.stateless === true
  return Effect.flatMap(placement.forNew(movable), ({ id, place }) => {
    if (id !== undefined) {
      return Serving.atPlace(serving, asking, place, message.text, open(serving, asking, message, id), { opens: id })
    }
    // Without an id the place is another replica, so `here` never runs. A forwarded request is not forwarded again.
    return asking.carried === undefined
      ? Serving.atPlace(serving, asking, place, message.text, Effect.never)
      : shuttingDown(message.id)
  })
}

/** Opens a session here. The client's own `initialize` is the first message that the process gets. */
const open = Effect.fnUntraced(function*(
  serving: Serving.Serving,
  { backend, principal }: Serving.Asking,
  message: JsonRpc.Request,
  session: string
) {
  if (Deferred.isDoneUnsafe(serving.draining)) return yield* shuttingDown(message.id)
  const opened = yield* Effect.result(serving.sessions.open(backend, principal, session, message))
  if (opened._tag === "Failure") {
    // The back end itself refused, so the client gets its answer.
    if (opened.failure._tag === "InitializeRefused") return jsonResponse(opened.failure.answer, 200)
    yield* Effect.logWarning(`No session was opened: ${opened.failure.message}`).pipe(
      Effect.annotateLogs({ backend })
    )
    return yield* refuseFailure(opened.failure, message.id)
  }
  const { success: bridge } = opened
  if (bridge._tag !== "Bridge") return yield* unknownSession(message.id)
  yield* Effect.logInfo("session opened").pipe(Effect.annotateLogs({ backend, session: Masking.shortId(session) }))
  return jsonResponse(bridge.answer.text, 200, { "mcp-session-id": session })
})

/**
 * Handles a request within a session. Responds with JSON if the answer is the first message and comes within
 * `streamAfter`, else with an event stream that ends with the answer.
 */
const call = (serving: Serving.Serving, asking: Serving.Asking, message: JsonRpc.Request) =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(
      Effect.flatMap(
        begin(serving, asking, message, restore),
        ({ abandon, reply }) => Effect.onInterrupt(restore(reply), () => abandon)
      ),
      (first) =>
        first._tag === "Answer"
          ? Effect.succeed(jsonResponse(first.answer.text, first.status))
          : first._tag === "Cancelled"
          ? Effect.succeed(EventStreamBody.unanswered)
          : Effect.map(
            readingOf(Effect.sync(first.open)),
            (reader) => EventStreamBody.response(events(serving, asking, reader))
          )
    )
  )

/**
 * Leases the session until the request is answered, and sends the request to the process. The lease belongs to the
 * request and not to the client's connection, so the handler's fiber does not release it. Run this uninterruptible;
 * `restore` makes its waits interruptible.
 */
const begin = (
  serving: Serving.Serving,
  asking: Serving.Asking,
  message: JsonRpc.Request,
  restore: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
): Effect.Effect<RunningRequest, Refusal> =>
  Effect.suspend(() => {
    const id = message.id
    if (Deferred.isDoneUnsafe(serving.draining)) return over(serving, id)
    // Closed when the request is answered, at the latest when its session ends.
    // The scope is deliberately no child of the gateway's scope, so only `release` closes it. As a child, memory grew
    // to 350 MiB in 40,000 calls; without a parent it stays at 180 MiB.
    const leaseScope = Scope.makeUnsafe()
    const release = Scope.close(leaseScope, Exit.void)
    return Effect.flatMap(
      // A client that disconnects while its session wakes stops waiting, which cancels the launch if no other caller
      // waits.
      Effect.onError(restore(Scope.provide(lease(serving, asking, id), leaseScope)), () => release),
      (connection) => {
        if (connection._tag !== "Bridge") return Effect.andThen(release, unknownSession(id))
        const taken = connection.request(message, release)
        return taken._tag === "Running" ? Effect.succeed(taken) : Effect.andThen(release, refuseRequest(taken, id))
      }
    )
  })

const refuseRequest = (taken: Exclude<Taken, RunningRequest>, id: JsonRpc.Id) => {
  switch (taken._tag) {
    case "DuplicateId":
      return refuse(400, "A request with this id is running in this session; use another id", {
        id,
        code: JsonRpc.codes.invalidRequest
      })
    case "TooMany":
      return refuse(429, "Too many requests of this session are running; try again later", { id, headers: retryLater })
    case "Over":
      return unknownSession(id)
  }
}

/**
 * Handles a notification or a response. Once the process has it, it stays delivered, even if the client disconnects.
 */
const send = (serving: Serving.Serving, asking: Serving.Asking, message: JsonRpc.Message) =>
  Effect.scoped(
    Effect.uninterruptibleMask((restore) => Effect.flatMap(handOver(serving, asking, message, restore), restore))
  )

/**
 * Leases the session for the scope and sends the message to the process. The effect that it returns waits until the
 * process has read the message.
 */
const handOver = (
  serving: Serving.Serving,
  asking: Serving.Asking,
  message: JsonRpc.Message,
  restore: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
): Effect.Effect<Effect.Effect<void>, Refusal, Scope.Scope> =>
  Effect.flatMap(
    restore(lease(serving, asking)),
    (connection) => connection._tag === "Bridge" ? Effect.sync(() => connection.send(message)) : unknownSession()
  )

/** Handles a POST of several messages, which revision 2025-03-26 allows. */
export const batch = (
  serving: Serving.Serving,
  asking: Serving.Asking,
  values: ReadonlyArray<unknown>,
  text: string
): Effect.Effect<Response, Refusal, Scope.Scope> => {
  const messages = values.map((value) => JsonRpc.classify(value, Json.stringify(value)))
  if (messages.length === 0 || !messages.every((message) => message !== undefined)) {
    return refuse(400, "The batch is empty, or one of its elements is not a JSON-RPC 2.0 message", {
      code: JsonRpc.codes.invalidRequest
    })
  }
  if (messages.some((message) => message._tag === "Request" && message.method === "initialize")) {
    return refuse(400, "initialize must not be part of a batch; send it alone", { code: JsonRpc.codes.invalidRequest })
  }
  return Serving.atSession(serving, asking, text, batchHere(serving, asking, messages))
}

/** Carries out a batch here. All answers come on one stream. */
const batchHere = Effect.fnUntraced(function*(
  serving: Serving.Serving,
  asking: Serving.Asking,
  messages: ReadonlyArray<JsonRpc.Message>
) {
  const answers: Array<Answer> = []
  /** The errors of refused calls. All share one stream, because a batch may have thousands. */
  const errors: Array<string> = []
  const writes: Array<Effect.Effect<void>> = []
  /** True once the process has a message of the batch, which it will carry out. */
  let isTaken = false
  const requestScope = yield* Effect.scope
  const handing = Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
    for (const message of messages) {
      // From the first delivered message on, a disconnect interrupts nothing: the client has sent the whole batch.
      const patiently: typeof restore = isTaken ? identity : restore
      const given = yield* Effect.result(
        message._tag === "Request"
          ? Effect.map(
            Effect.flatMap(
              begin(serving, asking, message, patiently),
              (running) => Scope.provide(answerOf(asking, running), requestScope)
            ),
            (answer) => void answers.push(answer)
          )
          : Effect.map(handOver(serving, asking, message, patiently), (written) => void writes.push(written))
      )
      // The whole batch is refused only while none of its messages runs, because their answers would be lost.
      if (Result.isFailure(given) && !isTaken) return yield* Effect.fail(given.failure)
      if (Result.isFailure(given) && message._tag === "Request") errors.push(given.failure.text)
      isTaken = true
    }
  }))
  // Notifications and responses lease the session until the process has read them. Otherwise the session could expire
  // before.
  yield* Effect.scoped(Effect.andThen(handing, Effect.suspend(() => Effect.all(writes, { discard: true }))))
  if (errors.length > 0) answers.push(eventsOf(errors))
  if (answers.length === 0) return HttpServerResponse.empty({ status: 202 })
  // One body for all streams, so that heartbeats come only between whole events. The streams feed a queue, because a
  // heartbeat interrupts the take that waits, which would end the streams.
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

/**
 * The answer to one call of a batch. Abandons the call if its stream has not been opened when the request's scope
 * closes.
 */
const answerOf = (asking: Serving.Asking, running: RunningRequest): Effect.Effect<Answer, never, Scope.Scope> =>
  Effect.suspend(() => {
    let isRead = false
    const answer = Stream.unwrap(Effect.gen(function*() {
      const first = yield* running.reply
      if (first._tag === "Answer") return eventsOf([first.answer.text])
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

/**
 * Handles GET: opens the stream of messages that belong to no request, or resumes another stream. Leases the session
 * while the stream is open.
 */
export const listen = Effect.fnUntraced(function*(serving: Serving.Serving, asking: Serving.Asking) {
  if (!Serving.accepts(asking.request, "text/event-stream")) {
    return yield* refuse(406, "Accept must list text/event-stream")
  }
  yield* refuseWhileDraining(serving)
  const here = outlastingDelete(serving, asking, listenHere(serving, asking))
  return yield* Serving.atSession(serving, asking, "", here)
})

/**
 * Keeps a GET stream open until the DELETE of its session is answered. Otherwise the official client reconnects in
 * between, gets 404 and reports an error. The stream's lease ends earlier, with its last event, because DELETE waits
 * for leases.
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
  if (connection._tag !== "Bridge") return yield* unknownSession()
  const reader = yield* Effect.acquireRelease(
    connection.listen(asking.lastEventId),
    (opened) => Effect.sync(() => Option.map(opened, ({ close }) => close()))
  )
  if (Option.isNone(reader)) {
    return yield* refuse(429, "Too many streams of this session are open; close one, or try again later", {
      headers: retryLater
    })
  }
  // 204 tells an EventSource not to reconnect. After an empty stream it would reconnect forever.
  return reader.value.isDone()
    ? HttpServerResponse.empty({ status: 204 })
    : EventStreamBody.response(events(serving, asking, reader.value))
})

/**
 * Handles DELETE: ends the session, and responds when its process group has exited. Its GET streams end after the
 * response.
 */
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
// Sessions and their streams
// ---------------------------------------------------------------------------

/**
 * The session of a request, leased for the current scope. Refuses with 400 without an id, and with 404 if the session
 * does not exist.
 */
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
  return id
    ? Effect.succeed(id)
    : refuse(400, "The header Mcp-Session-Id is missing; send the id that initialize returned")
}

const refuseWhileDraining = (serving: Serving.Serving, id?: JsonRpc.Id): Effect.Effect<void, Refusal> =>
  Effect.suspend(() => Deferred.isDoneUnsafe(serving.draining) ? over(serving, id) : Effect.void)

/**
 * Refuses a request while the gateway drains. With other replicas the client gets 404, so that it initializes again at
 * another replica at once.
 */
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
