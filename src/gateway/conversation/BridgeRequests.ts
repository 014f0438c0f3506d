/**
 * Routes messages between a client with a session and its process.
 *
 * Each message of the process goes to exactly one place:
 * - an answer or a progress notification: the exchange of its request;
 * - a message of an HTTP back end that came in the response to a request: the exchange of that request;
 * - a notification about the whole session: the standalone stream, if the client reads it;
 * - any other message: the request, if only one is running; else the standalone stream, if the client reads it; else the oldest
 *   request, or the standalone stream if no request is running.
 */
import { Deferred, Effect, Fiber } from "effect"
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import type { RequestMetrics } from "../telemetry/GatewayMetrics.ts"
import { BackendFailed } from "../transports/Transport.ts"
import type { Transport } from "../transports/Transport.ts"
import * as ClientRecord from "./ClientRecord.ts"
import type { Events, Reply } from "./Exchange.ts"
import { nothing } from "./Exchange.ts"
import type { Background, Entry, Figures, Timeouts } from "./InFlight.ts"
import { InFlight } from "./InFlight.ts"
import type { Reader } from "./Mailbox.ts"
import type * as PooledConnection from "./PooledConnection.ts"
import type { Limits as StreamLimits, Stream } from "./SessionStreams.ts"
import { SessionStreams } from "./SessionStreams.ts"

/**
 * How long a server may still answer a request that its client has cancelled, in milliseconds. Long enough for an answer in flight. The
 * specification requires no answer, so a longer wait would only hold the request's place.
 */
const cancelGrace = 1000

export interface Limits extends Timeouts, StreamLimits {}

/** A request that the process has not answered yet. */
export interface RunningRequest {
  readonly _tag: "Running"
  readonly reply: Effect.Effect<Reply>
  /** The client has gone. If it has a stream, its events wait for a reader that resumes; otherwise none are kept. */
  readonly close: () => void
}

/** A request that was registered, or the reason why it was refused. */
export type Taken =
  | RunningRequest
  | { readonly _tag: "DuplicateId" | "TooMany" | "Over" }

/** The standalone stream, or the rest of another stream, while a client reads it. */
export interface Listening {
  readonly reply: Reply
  readonly close: () => void
}

/**
 * What a request gets first: its answer, a stream that ends with the answer, or nothing, because its client has cancelled it.
 * `forgotten`: the back end no longer knows the session.
 */
type First =
  | { readonly response: JsonRpc.Response; readonly forgotten: boolean }
  | { readonly stream: Stream }
  | undefined

interface Pending extends Entry {
  readonly request: JsonRpc.Request
  readonly first: Deferred.Deferred<First>
  /** True if the client has cancelled the request. It then ends within `cancelGrace`, without an answer. */
  cancelled: boolean
  stream: Stream | undefined
  /** True if no client waits for the request: its client has disconnected, or the gateway itself sent it. */
  unawaited: boolean
}

export class BridgeRequests implements PooledConnection.Requests {
  readonly #process: Transport
  readonly #background: Background
  readonly #record: ClientRecord.ClientRecord
  readonly #limits: Limits
  readonly #metrics: RequestMetrics
  readonly #streams: SessionStreams
  readonly #inFlight: InFlight<Pending>
  /** The requests in flight by the keys of their ids. */
  readonly #pending = new Map<JsonRpc.IdKey, Pending>()
  /** Why the session has ended. Undefined until then. */
  #over: string | undefined
  /**
   * Completes when the session ends. A caller that waits for the process to read, or for its client, then ends its lease, which would
   * keep the session open.
   */
  readonly ended = Deferred.makeUnsafe<void>()
  #garbage = 0

  constructor(
    process: Transport,
    background: Background,
    record: ClientRecord.ClientRecord,
    limits: Limits,
    metrics: RequestMetrics
  ) {
    this.#process = process
    this.#background = background
    this.#record = record
    this.#limits = limits
    this.#metrics = metrics
    this.#streams = new SessionStreams(background, limits, {
      isBusy: () => this.#over !== undefined || this.#inFlight.size > 0,
      endLost: (reason) => {
        const failure = new BackendFailed({ reason, stderr: "", ended: "client gone" })
        Deferred.doneUnsafe(process.ended, Effect.succeed(failure))
        this.end(reason)
      }
    })
    this.#inFlight = new InFlight(background, metrics, limits, {
      stream: (entry) => {
        if (!entry.unawaited) this.#streamOf(entry)
      },
      timeOut: (entry, reason) => this.#timeOut(entry, reason)
    })
  }

  activity(): Figures & Pick<PooledConnection.Activity, "streams"> {
    return { streams: this.#streams.readers(), ...this.#inFlight.figures() }
  }

  /** Ends the session: every request gets an error, every stream ends. `cause` is set if the process has failed. */
  end(reason: string, cause?: BackendFailed): void {
    if (this.#over !== undefined) return
    this.#over = reason
    const forgotten = cause?.forgotten === true
    for (const entry of this.#inFlight.entries()) {
      this.#settle(entry, JsonRpc.error(entry.request.id, JsonRpc.codes.gateway, reason), forgotten)
    }
    this.#streams.endAll()
    Deferred.doneUnsafe(this.ended, Effect.void)
  }

  // ---------------------------------------------------------------------------
  // From the client
  // ---------------------------------------------------------------------------

  /** Registers a request and sends it to the process. `release` runs once, when the request is answered or fails. */
  request(request: JsonRpc.Request, release: Effect.Effect<void>): Taken {
    if (this.#over !== undefined) return { _tag: "Over" }
    if (this.#pending.has(JsonRpc.idKey(request.id))) return { _tag: "DuplicateId" }
    if (this.#inFlight.size >= this.#limits.maxInFlight && !this.#endOneCancelled()) return { _tag: "TooMany" }
    this.#heard(request)
    const entry = this.#take(request, release, false)
    // If the process does not read, the write waits in a fiber of its own, because the client may disconnect.
    if (!this.#process.offer(request)) this.#background.run(this.#process.send(request))
    let reader: Reader<string> | undefined
    return {
      _tag: "Running",
      reply: Effect.map(Deferred.await(entry.first), (first): Reply => {
        if (first === undefined) return nothing
        if ("response" in first) {
          return { _tag: "Answer", text: first.response.text, reason: first.forgotten ? "unknown" : undefined }
        }
        reader = this.#streams.read(first.stream)
        return eventsOf(reader)
      }),
      close: () => {
        entry.unawaited = reader === undefined
        reader?.close()
      }
    }
  }

  /** Sends a notification or a response to the process at once. The effect that it returns waits until the process has read the message. */
  send(message: JsonRpc.Message): Effect.Effect<void> {
    this.#heard(message)
    this.#cancel(JsonRpc.cancelledId(message))
    if (this.#process.offer(message)) return Effect.void
    // The write has a fiber of its own, as in `request`: the caller may be interrupted.
    const writing = this.#background.run(this.#process.send(message))
    return Effect.raceFirst(Effect.asVoid(Fiber.await(writing)), Deferred.await(this.ended))
  }

  /** Marks a request as cancelled. It keeps its place until the process answers it, for at most `cancelGrace`. */
  #cancel(id: JsonRpc.Id | undefined): void {
    const entry = id === undefined ? undefined : this.#pending.get(JsonRpc.idKey(id))
    if (entry === undefined || entry.cancelled) return
    entry.cancelled = true
    this.#inFlight.endWithin(entry, cancelGrace)
  }

  /** Ends the oldest cancelled request, because a new request needs its place. False if there is none. */
  #endOneCancelled(): boolean {
    const entry = this.#inFlight.entries().find(({ cancelled }) => cancelled)
    if (entry !== undefined) this.#settle(entry, undefined)
    return entry !== undefined
  }

  /** Reads the stream of messages that belong to no request, or the rest of the stream that `from` names. */
  listen(from: string | undefined): Listening | "TooMany" {
    this.#heard(undefined)
    const reader = this.#streams.listen(from)
    if (reader === "TooMany") return reader
    if (this.#over !== undefined) this.#streams.endAll()
    return { reply: reader.isDone() ? nothing : eventsOf(reader), close: reader.close }
  }

  /** Sends a request of the gateway's own while the session opens, and returns the answer. The client sees nothing of it. */
  ask(message: JsonRpc.Request): Effect.Effect<JsonRpc.Response> {
    return Effect.suspend(() => {
      const failed = (reason: string) => JsonRpc.error(message.id, JsonRpc.codes.gateway, reason)
      if (this.#over !== undefined) return Effect.succeed(failed(this.#over))
      const { first } = this.#take(message, Effect.void, true)
      return Effect.map(
        Effect.andThen(this.#process.send(message), Deferred.await(first)),
        (first) => first !== undefined && "response" in first ? first.response : failed("no answer")
      )
    })
  }

  /** Notes that the client shows life, and records its message if a new process would need it. */
  #heard(message: JsonRpc.Message | undefined): void {
    this.#streams.heard()
    if (message !== undefined) ClientRecord.note(this.#record, message)
  }

  /** `isOwn`: the gateway's own request, which `startTimeout` bounds. */
  #take(request: JsonRpc.Request, release: Effect.Effect<void>, isOwn: boolean): Pending {
    const entry: Pending = {
      ...this.#inFlight.times(isOwn),
      request,
      method: request.method,
      release,
      first: Deferred.makeUnsafe(),
      cancelled: false,
      stream: undefined,
      unawaited: isOwn
    }
    this.#pending.set(JsonRpc.idKey(request.id), entry)
    this.#inFlight.add(entry, isOwn)
    return entry
  }

  // ---------------------------------------------------------------------------
  // From the process
  // ---------------------------------------------------------------------------

  /** Completes when there is room for more messages of the process. */
  readonly room: Effect.Effect<void> = Effect.suspend(() => this.#streams.room())

  receive(message: JsonRpc.Message, request?: JsonRpc.Id): boolean {
    this.#route(message, request)
    return !this.#streams.congested()
  }

  garbage(line: string): void {
    this.#metrics.garbage()
    // Logs the first, second, fourth, eighth… such line: a server that logs on stdout must not fill the gateway's log.
    if (!Number.isInteger(Math.log2(++this.#garbage))) return
    const why = Json.isTooDeep(line) ? Json.tooDeep : "not a JSON-RPC message"
    this.#background.run(Effect.logWarning(
      `The back end wrote a line of ${line.length} characters on stdout that is ${why}; lines skipped: ${this.#garbage}`
    ))
  }

  #route(message: JsonRpc.Message, request: JsonRpc.Id | undefined): void {
    if (message._tag === "Response") {
      const entry = this.#pending.get(JsonRpc.idKey(message.id))
      if (entry !== undefined) this.#settle(entry, message)
      return
    }
    const progressed = this.#progressed(message)
    const entry = progressed ?? this.#owner(message, request)
    // Clients forget a progress token when they cancel.
    if (entry?.cancelled === true && message.method === "notifications/progress") return
    if (progressed !== undefined) this.#inFlight.progressed(progressed)
    const stream = entry === undefined || entry.unawaited ? this.#streams.standalone() : this.#streamOf(entry)
    this.#streams.push(stream, message.text, message.text.length)
  }

  /** The stream of a request, opened if there is none. The answer then comes on this stream. */
  #streamOf(entry: Pending): Stream {
    if (entry.stream !== undefined) return entry.stream
    const stream = entry.stream = this.#streams.open()
    Deferred.doneUnsafe(entry.first, Effect.succeed({ stream }))
    return stream
  }

  /** The request whose progress a message reports. */
  #progressed(message: JsonRpc.Message): Pending | undefined {
    if (message._tag !== "Notification" || message.method !== "notifications/progress") return undefined
    const { progressToken = null } = message
    return this.#inFlight.entries().find(({ request }) =>
      request.progressToken !== undefined && JsonRpc.isSameId(request.progressToken, progressToken)
    )
  }

  /** The request that any other message of the process belongs to. A cancelled request is the last choice. */
  #owner(message: JsonRpc.Message, request: JsonRpc.Id | undefined): Pending | undefined {
    const told = request === undefined ? undefined : this.#pending.get(JsonRpc.idKey(request))
    if (told !== undefined && !told.unawaited) return told
    if (this.#streams.isStandaloneRead() && (this.#inFlight.size > 1 || concernsSession(message))) return undefined
    const awaited = this.#inFlight.entries().filter(({ unawaited }) => !unawaited)
    return awaited.find(({ cancelled }) => !cancelled) ?? awaited[0]
  }

  /** Ends a request. Without a response the client gets nothing, because it has cancelled the request. */
  #settle(entry: Pending, response: JsonRpc.Response | undefined, forgotten = false): void {
    const { first, request, stream } = entry
    this.#pending.delete(JsonRpc.idKey(request.id))
    if (stream === undefined) {
      Deferred.doneUnsafe(first, Effect.succeed(response === undefined ? undefined : { response, forgotten }))
    } else {
      if (response !== undefined) this.#streams.push(stream, response.text, response.text.length)
      this.#streams.end(stream)
    }
    this.#streams.connectedUntilNow()
    this.#inFlight.end(entry, response?.failed === true)
  }

  // ---------------------------------------------------------------------------
  // Timeouts
  // ---------------------------------------------------------------------------

  #timeOut(entry: Pending, reason: string): void {
    if (entry.cancelled) return this.#settle(entry, undefined)
    const { id } = entry.request
    this.#settle(entry, JsonRpc.error(id, JsonRpc.codes.timeout, reason))
    this.#background.run(this.#process.send(JsonRpc.cancellation(id, reason)))
  }
}

const eventsOf = ({ ready, start, take }: Reader<string>): Events => ({
  _tag: "Events",
  start,
  take: Effect.map(take, (events) => events.map(({ id, value }) => ({ id, text: value }))),
  ready
})

/** True for notifications that, by their method, concern the whole session. */
const concernsSession = (message: JsonRpc.Message): boolean =>
  message._tag === "Notification" &&
  (message.method.endsWith("/list_changed") || message.method === "notifications/resources/updated")
