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
import type { Clock } from "effect"
import { Deferred, Duration, Effect } from "effect"
import { randomBytes } from "node:crypto"
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import type { RequestMetrics } from "../telemetry/GatewayMetrics.ts"
import { BackendFailed } from "../transports/Transport.ts"
import type { Transport } from "../transports/Transport.ts"
import * as ClientRecord from "./ClientRecord.ts"
import type { Answer, Events, Reply } from "./Exchange.ts"
import { nothing } from "./Exchange.ts"
import type * as Mailbox from "./Mailbox.ts"
import { Mailboxes } from "./Mailbox.ts"
import * as Overdue from "./Overdue.ts"
import * as PooledConnection from "./PooledConnection.ts"

const cancelGrace = Duration.toMillis(PooledConnection.cancelGrace)

export interface Limits {
  /** Longest time of a request. Progress restarts it. */
  readonly requestTimeout: Duration.Duration
  /** A request without an answer after this time gets a stream. */
  readonly streamAfter: Duration.Duration
  /** A session whose client's standalone stream broke off is ended if the client then sends nothing for this long. */
  readonly streamLostTimeToLive: Duration.Duration
  /** The most requests that may run at once, and the most streams that may be open. */
  readonly maxInFlight: number
  readonly replay: Mailbox.Limits
}

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

/** The parts of a session that its requests need. */
export interface Session {
  readonly process: Transport
  /** Starts an effect in the background. */
  readonly run: (effect: Effect.Effect<unknown>) => void
  /** Starts an effect in the background that ends with the session. */
  readonly fork: (effect: Effect.Effect<unknown>) => void
  readonly clock: Clock.Clock
}

type Stream = Mailbox.Mailbox<string>
type Reader = Mailbox.Reader<string>

/** What a request gets first: its answer, a stream that ends with the answer, or nothing, because its client has cancelled it. */
type First =
  | { readonly response: JsonRpc.Response; readonly forgotten: boolean }
  | { readonly stream: Stream }
  | undefined

interface Pending {
  readonly request: JsonRpc.Request
  readonly first: Deferred.Deferred<First>
  readonly release: Effect.Effect<void>
  readonly startedAt: number
  /** Longest time in milliseconds. Infinity for the gateway's own requests, which `startTimeout` bounds. */
  readonly timeout: number
  /** When the request ends if it has no answer. */
  dueAt: number
  /** True if the client has cancelled the request. Then the request ends at `dueAt` without an answer. */
  cancelled: boolean
  stream: Stream | undefined
  /** True if no client waits for the request: its client has disconnected, or the gateway itself sent it. */
  unheard: boolean
}

export class BridgeRequests {
  readonly #session: Session
  readonly #record: ClientRecord.ClientRecord
  readonly #limits: Limits
  readonly #metrics: RequestMetrics
  readonly #streams: Mailboxes<string>
  /** The standalone streams, the newest last. */
  #standalone: Array<Stream> = []
  readonly #pending = new Map<string, Pending>()
  readonly #requestTimeout: number
  readonly #streamAfter: number
  readonly #lostAfter: number
  readonly #startTimer: () => void
  readonly #startLostTimer: () => void
  /** Why the session has ended. Undefined until then. */
  #over: string | undefined
  /**
   * Completes when the session ends. A caller that waits for the process to read then stops waiting, because its lease would keep the
   * session open.
   */
  readonly #ended = Deferred.makeUnsafe<void>()
  /** When the client's standalone stream broke off. Infinity: no stream broke off, or the client has sent something since. */
  #lostStreamAt = Number.POSITIVE_INFINITY
  #requests = 0
  #errors = 0
  #garbage = 0

  constructor(session: Session, record: ClientRecord.ClientRecord, limits: Limits, metrics: RequestMetrics) {
    this.#session = session
    this.#record = record
    this.#limits = limits
    this.#metrics = metrics
    this.#streams = new Mailboxes(limits.replay, ({ length }) => length, randomBytes(4).toString("hex"))
    this.#requestTimeout = Duration.toMillis(limits.requestTimeout)
    this.#streamAfter = Duration.toMillis(limits.streamAfter)
    this.#lostAfter = Duration.toMillis(limits.streamLostTimeToLive)
    this.#startTimer = Overdue.make({
      interval: Overdue.intervalFor(this.#requestTimeout, this.#streamAfter),
      look: () => this.#endOverdue(),
      isNeeded: () => this.#over === undefined && this.#pending.size > 0,
      fork: session.fork
    })
    this.#startLostTimer = Overdue.make({
      interval: Math.max(10, Math.min(60_000, this.#lostAfter / 4)),
      look: () => this.#endLost(),
      isNeeded: () => this.#over === undefined && this.#lostStreamAt < Number.POSITIVE_INFINITY,
      fork: session.fork
    })
  }

  /** Completes when there is room for more messages of the process. */
  get room(): Effect.Effect<void> {
    return this.#streams.room()
  }

  activity(): Pick<PooledConnection.Activity, "inFlight" | "streams" | "requests" | "errors"> {
    return {
      inFlight: this.#pending.size,
      streams: this.#streams.readers(),
      requests: this.#requests,
      errors: this.#errors
    }
  }

  /** Ends the session: every request gets an error, every stream ends. `forgotten`: an HTTP back end no longer knows the session. */
  end(reason: string, forgotten: boolean): void {
    if (this.#over !== undefined) return
    this.#over = reason
    for (const entry of this.#pending.values()) this.#fail(entry, JsonRpc.codes.gateway, reason, forgotten)
    this.#streams.endAll()
    Deferred.doneUnsafe(this.#ended, Effect.void)
  }

  #now(): number {
    return this.#session.clock.currentTimeMillisUnsafe()
  }

  // ---------------------------------------------------------------------------
  // From the client
  // ---------------------------------------------------------------------------

  /** Registers a request and sends it to the process. `release` runs once, when the request is answered or fails. */
  request(request: JsonRpc.Request, release: Effect.Effect<void>): Taken {
    if (this.#over !== undefined) return { _tag: "Over" }
    if (this.#pending.has(JsonRpc.idKey(request.id))) return { _tag: "DuplicateId" }
    if (this.#pending.size >= this.#limits.maxInFlight && !this.#endOneCancelled()) return { _tag: "TooMany" }
    this.#requests++
    this.#heard(request)
    const entry = this.#take(request, release, false)
    // If the process does not read, the write waits in a fiber of its own, because the client may disconnect.
    if (!this.#session.process.offer(request)) this.#session.run(this.#session.process.send(request))
    let reader: Reader | undefined
    return {
      _tag: "Running",
      reply: Effect.map(Deferred.await(entry.first), (first) => {
        if (first === undefined) return nothing
        if ("response" in first) return answerOf(first.response, first.forgotten)
        reader = this.#read(first.stream)
        return eventsOf(reader)
      }),
      close: () => {
        entry.unheard = reader === undefined
        reader?.close()
      }
    }
  }

  /** Sends a notification or a response to the process at once. The effect that it returns waits until the process has read the message. */
  send(message: JsonRpc.Message): Effect.Effect<void> {
    this.#heard(message)
    this.#cancel(JsonRpc.cancelledId(message))
    const { process, run } = this.#session
    if (process.offer(message)) return Effect.void
    const written = Deferred.makeUnsafe<void>()
    // The write has a fiber of its own, as in `request`: the caller may be interrupted.
    run(Effect.andThen(process.send(message), Deferred.succeed(written, undefined)))
    return Effect.raceFirst(Deferred.await(written), Deferred.await(this.#ended))
  }

  /** Marks a request as cancelled. It keeps its place until the process answers it, for at most `cancelGrace`. */
  #cancel(id: JsonRpc.Id | undefined): void {
    const entry = id === undefined ? undefined : this.#pending.get(JsonRpc.idKey(id))
    if (entry === undefined || entry.cancelled) return
    entry.cancelled = true
    entry.dueAt = Math.min(entry.dueAt, this.#now() + cancelGrace)
  }

  /** Ends the oldest cancelled request, because a new request needs its place. False if there is none. */
  #endOneCancelled(): boolean {
    const entry = [...this.#pending.values()].find(({ cancelled }) => cancelled)
    if (entry !== undefined) this.#settle(entry, undefined)
    return entry !== undefined
  }

  /** Reads the stream of messages that belong to no request, or the rest of the stream that `from` names. */
  listen(from: string | undefined): Listening | "TooMany" {
    this.#heard(undefined)
    if (this.#streams.readers() >= this.#limits.maxInFlight) return "TooMany"
    const place = from === undefined ? undefined : this.#streams.find(from)
    const stream = place?.mailbox ?? this.#standaloneToRead()
    if (this.#over !== undefined) this.#streams.end(stream)
    const reader = this.#read(stream, place?.sequence)
    return {
      reply: reader.isDone() ? nothing : eventsOf(reader),
      close: () => {
        const isLost = !reader.isDone()
        reader.close()
        // This may be a request's stream that breaks after the standalone stream. Its client was connected until now, so the time starts
        // now.
        if (!isLost || this.#isStandaloneRead()) return
        this.#lostStreamAt = this.#now()
        this.#startLostTimer()
      }
    }
  }

  #read(stream: Stream, sequence?: number): Reader {
    const reader = this.#streams.read(stream, sequence)
    return {
      ...reader,
      close: () => {
        reader.close()
        this.#isThere()
      }
    }
  }

  /** Restarts the time of a lost stream. A client that waited for an answer, or read a stream, was connected until now. */
  #isThere(): void {
    if (this.#lostStreamAt < Number.POSITIVE_INFINITY) this.#lostStreamAt = this.#now()
  }

  /** Sends a request of the gateway's own while the session opens, and returns the answer. The client sees nothing of it. */
  ask(message: JsonRpc.Request): Effect.Effect<JsonRpc.Response> {
    return Effect.suspend(() => {
      const entry = this.#take(message, Effect.void, true)
      if (this.#over !== undefined) this.#fail(entry, JsonRpc.codes.gateway, this.#over)
      const asked = this.#over === undefined ? this.#session.process.send(message) : Effect.void
      return Effect.map(
        Effect.andThen(asked, Deferred.await(entry.first)),
        (first) =>
          first !== undefined && "response" in first
            ? first.response
            : JsonRpc.error(message.id, JsonRpc.codes.internal, "no answer")
      )
    })
  }

  #heard(message: JsonRpc.Message | undefined): void {
    // A client that sends messages while its stream is broken does not need the stream.
    this.#lostStreamAt = Number.POSITIVE_INFINITY
    if (message !== undefined) ClientRecord.note(this.#record, message)
  }

  #take(request: JsonRpc.Request, release: Effect.Effect<void>, unheard: boolean): Pending {
    const at = this.#now()
    const timeout = unheard ? Number.POSITIVE_INFINITY : this.#requestTimeout
    const entry: Pending = {
      request,
      first: Deferred.makeUnsafe(),
      release,
      startedAt: at,
      timeout,
      dueAt: at + timeout,
      cancelled: false,
      stream: undefined,
      unheard
    }
    this.#pending.set(JsonRpc.idKey(request.id), entry)
    this.#startTimer()
    return entry
  }

  // ---------------------------------------------------------------------------
  // The standalone streams, for messages that belong to no request
  // ---------------------------------------------------------------------------

  #isStandaloneRead(): boolean {
    return this.#standalone.some(({ reader }) => reader !== undefined)
  }

  /** The stream for a new message: the newest with a reader, else the newest. */
  #standaloneToWrite(): Stream {
    return this.#standalone.findLast(({ reader }) => reader !== undefined) ?? this.#standalone.at(-1) ??
      this.#addStandalone()
  }

  /** The stream for a new reader: the newest without a reader, else a new stream. */
  #standaloneToRead(): Stream {
    return this.#standalone.findLast(({ reader }) => reader === undefined) ?? this.#addStandalone()
  }

  #addStandalone(): Stream {
    const stream = this.#streams.open(true)
    // A stream without a reader and without unread messages ends, because a client has nothing to resume there.
    const isSpent = ({ delivered, reader, sequence }: Stream) => reader === undefined && sequence === delivered
    const spent = this.#standalone.filter(isSpent)
    this.#standalone = [...this.#standalone.filter((other) => !isSpent(other)), stream]
    for (const other of spent) this.#streams.end(other)
    return stream
  }

  // ---------------------------------------------------------------------------
  // From the process
  // ---------------------------------------------------------------------------

  /** Takes one message; false: there is no room for more. */
  receive(message: JsonRpc.Message, request?: JsonRpc.Id): boolean {
    this.#route(message, request)
    return !this.#streams.congested()
  }

  garbage(line: string): void {
    this.#metrics.garbage()
    // Logs the first, second, fourth, eighth… such line: a server that logs on stdout must not fill the gateway's log.
    if (!Number.isInteger(Math.log2(++this.#garbage))) return
    const why = Json.isTooDeep(line) ? Json.tooDeep : "not a JSON-RPC message"
    this.#session.run(Effect.logWarning(
      `The back end wrote a line of ${line.length} characters on stdout that is ${why}; lines skipped: ${this.#garbage}`
    ))
  }

  #route(message: JsonRpc.Message, request: JsonRpc.Id | undefined): void {
    if (message._tag === "Response") {
      const entry = this.#pending.get(JsonRpc.idKey(message.id))
      if (entry !== undefined) this.#settle(entry, message)
      return
    }
    const entry = this.#owner(message, request)
    // Clients forget a progress token when they cancel.
    if (entry?.cancelled === true && message.method === "notifications/progress") return
    this.#streams.push(entry === undefined ? this.#standaloneToWrite() : this.#streamOf(entry), message.text)
  }

  /** The stream of a request, opened if there is none. The answer then comes on this stream. */
  #streamOf(entry: Pending): Stream {
    if (entry.stream !== undefined) return entry.stream
    const stream = entry.stream = this.#streams.open(true)
    Deferred.doneUnsafe(entry.first, Effect.succeed({ stream }))
    return stream
  }

  /** The request that a message of the process belongs to. A cancelled request is the last choice. */
  #owner(message: JsonRpc.Message, request: JsonRpc.Id | undefined): Pending | undefined {
    if (message._tag === "Notification" && message.method === "notifications/progress") {
      const { progressToken = null } = message
      for (const entry of this.#pending.values()) {
        const token = entry.request.progressToken
        if (token !== undefined && JsonRpc.isSameId(token, progressToken)) {
          if (!entry.cancelled) entry.dueAt = this.#now() + entry.timeout
          return entry.unheard ? undefined : entry
        }
      }
    }
    const told = request === undefined ? undefined : this.#pending.get(JsonRpc.idKey(request))
    if (told !== undefined && !told.unheard) return told
    if (this.#isStandaloneRead() && (this.#pending.size > 1 || concernsSession(message))) return undefined
    let cancelled: Pending | undefined
    for (const entry of this.#pending.values()) {
      if (!entry.unheard && !entry.cancelled) return entry
      if (!entry.unheard) cancelled ??= entry
    }
    return cancelled
  }

  /** Ends a request. Without a response the client gets nothing, because it has cancelled the request. */
  #settle(entry: Pending, response: JsonRpc.Response | undefined, forgotten = false): void {
    const { first, release, request, startedAt, stream } = entry
    this.#pending.delete(JsonRpc.idKey(request.id))
    if (stream === undefined) {
      Deferred.doneUnsafe(first, Effect.succeed(response === undefined ? undefined : { response, forgotten }))
    } else {
      if (response !== undefined) this.#streams.push(stream, response.text)
      this.#streams.end(stream)
    }
    const outcome = response?.failed === true ? "error" : "ok"
    if (outcome === "error") this.#errors++
    this.#metrics.request(request.method, outcome, this.#now() - startedAt)
    this.#isThere()
    this.#session.run(release)
  }

  #fail(entry: Pending, code: number, reason: string, forgotten = false): void {
    this.#settle(entry, JsonRpc.error(entry.request.id, code, reason), forgotten)
  }

  // ---------------------------------------------------------------------------
  // Timeouts
  // ---------------------------------------------------------------------------

  #endOverdue(): void {
    const at = this.#now()
    for (const entry of this.#pending.values()) {
      if (at >= entry.dueAt) {
        if (entry.cancelled) this.#settle(entry, undefined)
        else this.#timeOut(entry)
      } else if (at - entry.startedAt >= this.#streamAfter && !entry.unheard && !entry.cancelled) this.#streamOf(entry)
    }
  }

  #endLost(): void {
    const isUsed = this.#pending.size + this.#streams.readers() > 0
    if (this.#over !== undefined || isUsed || this.#now() - this.#lostStreamAt < this.#lostAfter) return
    const reason = `the client's GET stream broke off, and the client sent nothing for ${
      Duration.format(this.#limits.streamLostTimeToLive)
    }`
    Deferred.doneUnsafe(
      this.#session.process.ended,
      Effect.succeed(new BackendFailed({ reason, stderr: "", ended: "client gone" }))
    )
    this.end(reason, false)
  }

  #timeOut(entry: Pending): void {
    const { process, run } = this.#session
    const reason = PooledConnection.timeoutReason(this.#limits.requestTimeout)
    this.#fail(entry, JsonRpc.codes.timeout, reason)
    run(process.send(JsonRpc.cancellation(entry.request.id, reason)))
  }
}

const answerOf = ({ text }: JsonRpc.Response, forgotten: boolean): Answer => ({
  _tag: "Answer",
  text,
  reason: forgotten ? "unknown" : undefined
})

const eventsOf = ({ ready, start, take }: Reader): Events => ({
  _tag: "Events",
  start,
  take: Effect.map(take, (events) => events.map(({ id, value }) => ({ id, text: value }))),
  ready
})

/** True for notifications that, by their method, concern the whole session. */
const concernsSession = (message: JsonRpc.Message): boolean =>
  message._tag === "Notification" &&
  (message.method.endsWith("/list_changed") || message.method === "notifications/resources/updated")
