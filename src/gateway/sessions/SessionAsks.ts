/**
 * Carries out the asks of clients with a session (revisions 2025-03-26, 2025-06-18 and 2025-11-25): opens a session, sends it messages,
 * listens to it, and ends it.
 *
 * A request leases its session until it is answered, even if its client disconnects. In the specification a disconnect is no cancellation.
 */
import {
  Array as Arr,
  Cause,
  Deferred,
  Effect,
  Exit,
  identity,
  Option,
  Pull,
  Queue,
  Result,
  Scope,
  Stream
} from "effect"
import type { Event, Exchange, Refusal, Reply, Take } from "../conversation/Exchange.ts"
import { nothing, refusal, replyWith } from "../conversation/Exchange.ts"
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import * as Settings from "../settings/Settings.ts"
import type { Carrying } from "./Ask.ts"
import * as Identity from "./Identity.ts"
import type { Key } from "./Key.ts"
import * as Launching from "./Launching.ts"
import { ofError, retryAfter, shuttingDown, unknownSession } from "./Refusals.ts"
import type { Serving } from "./Serving.ts"

/** Longest time that the end of a session waits for its process group to exit. */
const endTimeout = "10 seconds"

/** Opens a session. The client's own `initialize` is the first message that the process gets. */
export const open = Effect.fnUntraced(function*({ draining, sessions }: Serving, key: Key, message: JsonRpc.Request) {
  const { id, params } = message
  // Servers drop such an `initialize` without an answer, so its process would run until `startTimeout`.
  if (typeof Json.field(params, "protocolVersion") !== "string") {
    const fault = "The params of initialize must be an object with a protocolVersion, such as \"2025-11-25\""
    return yield* Effect.fail(refusal("invalid", fault, { id, code: JsonRpc.codes.invalidParams }))
  }
  if (Deferred.isDoneUnsafe(draining)) return yield* Effect.fail(shuttingDown({ id }))
  const opened = yield* Effect.result(sessions.open(key, message))
  if (Result.isSuccess(opened)) {
    yield* Effect.annotateLogs(Effect.logInfo("session opened"), Launching.annotationsOf(key))
    return replyWith({ _tag: "Answer", text: opened.success.answer.text }, key.id)
  }
  // The back end itself refused, so the client gets its answer.
  if (opened.failure._tag === "InitializeRefused") {
    return replyWith({ _tag: "Answer", text: opened.failure.answer.text })
  }
  yield* Effect.logWarning(`No session was opened: ${opened.failure.message}`).pipe(
    Effect.annotateLogs({ backend: key.backend, ...Identity.annotation(key.principal) })
  )
  return yield* Effect.fail(ofError(opened.failure, id))
})

// ---------------------------------------------------------------------------
// Messages
// ---------------------------------------------------------------------------

type Restore = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/** A message that the session has taken. */
interface Taken {
  readonly reply: Effect.Effect<Reply>
}

type Taking = Effect.Effect<Taken, Refusal, Scope.Scope>

/** Hands messages over to the session, in order. */
export const send = (serving: Serving, key: Key, messages: ReadonlyArray<JsonRpc.Message>): Carrying => {
  const [message] = messages
  return message === undefined || messages.length > 1
    ? sendAll(serving, key, messages)
    : Effect.uninterruptibleMask((restore) => sendOne(serving, key, message, restore))
}

/** Hands one message over. Run this uninterruptible; `restore` makes its waits interruptible. */
const sendOne = (serving: Serving, key: Key, message: JsonRpc.Message, restore: Restore): Taking =>
  message._tag === "Request" ? request(serving, key, message, restore) : Effect.map(
    // The lease lasts as long as the exchange. Otherwise the session could expire before its process has read the message.
    restore(lease(serving, key)),
    // Once the process has the message, it stays delivered, even if the client disconnects.
    (connection): Taken => ({ reply: Effect.as(connection.requests.send(message), nothing) })
  )

/**
 * Leases the session until the request is answered, and sends the request to the process. The lease belongs to the request and not to the
 * client: when the scope closes, the client is gone, and the request goes on.
 */
const request = (serving: Serving, key: Key, message: JsonRpc.Request, restore: Restore): Taking =>
  Effect.flatMap(Effect.scope, (scope) => {
    const { id } = message
    if (Deferred.isDoneUnsafe(serving.draining)) return Effect.fail(over(serving, id))
    // Only `release` closes this scope: when the request is answered, at the latest when its session ends. The scope has no parent,
    // because as a child of the gateway's scope it grew memory to 350 MiB in 40,000 calls, instead of 180 MiB.
    const leaseScope = Scope.makeUnsafe()
    const release = Scope.close(leaseScope, Exit.void)
    return Effect.flatMap(
      // A client that disconnects while its session wakes stops waiting, which cancels the launch if no other caller waits.
      Effect.onError(restore(Scope.provide(lease(serving, key, id), leaseScope)), () => release),
      (connection): Effect.Effect<Taken, Refusal> => {
        const taken = connection.requests.request(message, release)
        return taken._tag === "Running"
          // `Effect.acquireRelease` would provide its context to the release, which costs 16 µs a call.
          ? Effect.as(Scope.addFinalizer(scope, Effect.sync(taken.close)), taken)
          : Effect.andThen(release, Effect.fail(refusedRequest(taken._tag, id)))
      }
    )
  })

const refusedRequest = (reason: "DuplicateId" | "TooMany" | "Over", id: JsonRpc.Id): Refusal => {
  switch (reason) {
    case "DuplicateId":
      return refusal("invalid", "A request with this id is running in this session; use another id", {
        id,
        code: JsonRpc.codes.invalidRequest
      })
    case "TooMany":
      return refusal("too many", "Too many requests of this session are running; try again later", { id, retryAfter })
    case "Over":
      return unknownSession(id)
  }
}

/** Hands several messages over. All answers come on one stream. */
const sendAll = Effect.fnUntraced(function*(serving: Serving, key: Key, messages: ReadonlyArray<JsonRpc.Message>) {
  const running: Array<Taken> = []
  const writes: Array<Taken> = []
  /** The errors of refused calls. All share one stream, because a batch may have thousands. */
  const errors: Array<Event> = []
  const scope = yield* Effect.scope
  // A client may leave the answers unread, so the leases of notifications and responses end before the exchange.
  const writing = yield* Scope.fork(scope)
  yield* Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
    for (const [index, message] of messages.entries()) {
      // From the first delivered message on, a disconnect interrupts nothing: the client has sent the whole batch.
      const isRequest = message._tag === "Request"
      const taken = yield* sendOne(serving, key, message, index === 0 ? restore : identity).pipe(
        Scope.provide(isRequest ? scope : writing),
        Effect.result
      )
      if (Result.isSuccess(taken)) (isRequest ? running : writes).push(taken.success)
      // A later failure does not refuse the whole batch, because the answers of running messages would be lost.
      else if (index === 0) return yield* Effect.fail(taken.failure)
      else if (isRequest) errors.push({ text: taken.failure.error.text })
    }
  }))
  yield* Effect.forEach(writes, ({ reply }) => reply, { discard: true })
  yield* Scope.close(writing, Exit.void)
  if (running.length + errors.length === 0) return replyWith(nothing)
  const streams = [...running.map(streamOf), Stream.fromIterable(errors)]
  // A queue, because a front may interrupt a take that waits, which would end the streams.
  const queue = yield* Stream.toQueue(Stream.mergeAll(streams, { concurrency: "unbounded" }), { capacity: 1 })
  const events: Reply = { _tag: "Events", take: Queue.takeAll(queue) }
  const first = Effect.timeoutOption(Effect.exit(Queue.peek(queue)), Settings.firstSilence(serving.settings))
  const isOver = Option.match({ onNone: () => false, onSome: Exit.isFailure })
  const exchange: Exchange = { reply: Effect.map(first, (first) => isOver(first) ? nothing : events) }
  return exchange
})

/** What one call of a batch adds to the batch's stream. */
const streamOf = ({ reply }: Taken): Stream.Stream<Event> =>
  Stream.unwrap(Effect.map(reply, (reply): Stream.Stream<Event> => {
    switch (reply._tag) {
      case "Answer":
        return Stream.succeed(reply)
      case "Nothing":
        return Stream.empty
      case "Events":
        return Stream.fromPull(Effect.succeed(nonEmpty(reply.take)))
    }
  }))

const nonEmpty = (take: Take): Pull.Pull<Arr.NonEmptyReadonlyArray<Event>> =>
  Effect.flatMap(take, (events) => Arr.isReadonlyArrayNonEmpty(events) ? Effect.succeed(events) : nonEmpty(take))

// ---------------------------------------------------------------------------
// Listening and the end
// ---------------------------------------------------------------------------

/**
 * Opens the stream of messages that belong to no request, or resumes another stream. Leases the session until it ends. If the client is
 * ending the session, the stream stays open until that `End` is answered. Otherwise the official client reconnects in between, gets 404
 * and reports an error.
 */
export const listen = Effect.fnUntraced(function*(serving: Serving, key: Key, from: string | undefined) {
  if (Deferred.isDoneUnsafe(serving.draining)) return yield* Effect.fail(over(serving))
  const leaseScope = yield* Scope.fork(yield* Effect.scope)
  const connection = yield* Scope.provide(lease(serving, key), leaseScope)
  const listening = yield* Effect.acquireRelease(
    Effect.sync(() => connection.requests.listen(from)),
    (listening) => Effect.sync(() => listening !== "TooMany" && listening.close())
  )
  if (listening === "TooMany") {
    const message = "Too many streams of this session are open; close one, or try again later"
    return yield* Effect.fail(refusal("too many", message, { retryAfter }))
  }
  const { reply } = listening
  if (reply._tag !== "Events") return replyWith(reply)
  yield* connection.listening
  // The end of the session waits for leases, and the client may leave the last events unread.
  yield* Effect.forkScoped(
    Effect.andThen(Deferred.await(connection.requests.ended), Scope.close(leaseScope, Exit.void))
  )
  const ended = Effect.suspend(() => {
    const end = serving.ends.get(key.text)
    return end === undefined ? Effect.void : Deferred.await(end)
  })
  const take = Pull.catchDone(reply.take, () => Effect.andThen(ended, Cause.done()))
  return replyWith({ ...reply, take })
})

/** Ends the session. Completes when its process group has exited. */
export const end = Effect.fnUntraced(function*({ ends, sessions }: Serving, key: Key) {
  // If several `End` asks run at once, the streams wait for the first one.
  if (!ends.has(key.text)) {
    yield* Effect.acquireRelease(
      Effect.sync(() => {
        const end = Deferred.makeUnsafe<void>()
        ends.set(key.text, end)
        return end
      }),
      (end) => Effect.andThen(Effect.sync(() => ends.delete(key.text)), Deferred.succeed(end, undefined))
    )
  }
  const gone = yield* sessions.end(key)
  if (Option.isNone(gone)) return yield* Effect.fail(unknownSession())
  yield* Effect.timeoutOption(gone.value, endTimeout)
  return replyWith(nothing)
})

const lease = ({ sessions }: Serving, key: Key, id?: JsonRpc.Id) =>
  Effect.mapError(sessions.lease(key), (error) => ofError(error, id))

/**
 * Refuses a request while the gateway drains. With other replicas the client gets "session not found", so that it initializes again at
 * another replica at once.
 */
const over = ({ placement }: Serving, id?: JsonRpc.Id): Refusal =>
  placement.replica === "" ? shuttingDown({ id }) : unknownSession(id)
