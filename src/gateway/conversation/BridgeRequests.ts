/**
 * Routes messages between a legacy client's HTTP exchanges and its process.
 *
 * Each message of the process goes to exactly one place:
 * - an answer or a progress notification: the exchange of its request;
 * - a message of an HTTP back end that came in the response to a request: the exchange of that request;
 * - a notification about the whole session: the GET stream, if the client reads it;
 * - any other message: the request, if only one is running; else the GET stream, if the client reads it; else the
 *   oldest request, or the GET stream if no request is running.
 */
import type { Clock } from "effect"
import { Deferred, Duration, Effect, Option } from "effect"
import { randomBytes } from "node:crypto"
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import type { GatewayMetrics } from "../telemetry/GatewayMetrics.ts"
import { BackendFailed } from "../transports/Transport.ts"
import type { Transport } from "../transports/Transport.ts"
import * as ClientRecord from "./ClientRecord.ts"
import type { EventStream, Reader, ReplayLimits } from "./EventStreams.ts"
import { EventStreams } from "./EventStreams.ts"
import * as Overdue from "./Overdue.ts"
import * as PooledConnection from "./PooledConnection.ts"
import { StandaloneStreams } from "./StandaloneStreams.ts"

const cancelGrace = Duration.toMillis(PooledConnection.cancelGrace)

export interface Limits {
  /** Longest time of a request. Progress restarts it. */
  readonly requestTimeout: Duration.Duration
  /** A request without an answer after this time gets a stream. */
  readonly streamAfter: Duration.Duration
  /** A session whose client's GET stream broke off is ended if the client then sends nothing for this long. */
  readonly streamLostTimeToLive: Duration.Duration
  /** The most requests that may run at once, and the most streams that may be open. */
  readonly maxInFlight: number
  readonly replay: ReplayLimits
}

/**
 * The first reply to a request: its answer, a stream that ends with the answer, or nothing if the client has cancelled
 * it. Status 404 means that the back end no longer knows the session.
 */
export type Reply =
  | { readonly _tag: "Answer"; readonly answer: JsonRpc.Response; readonly status: 200 | 404 }
  | { readonly _tag: "Cancelled" }
  | { readonly _tag: "Stream"; readonly open: () => Reader }

/** A request that the process has not answered yet. */
export interface RunningRequest {
  readonly _tag: "Running"
  readonly reply: Effect.Effect<Reply>
  /** For a client that disconnects before the reply: from then on no message is kept for the request. */
  readonly abandon: Effect.Effect<void>
}

/** A request that was registered, or the reason why it was refused. */
export type Taken =
  | RunningRequest
  | { readonly _tag: "DuplicateId" | "TooMany" | "Over" }

/** The parts of a session that its requests need. */
export interface Session {
  readonly process: Transport
  /** Starts an effect in the background. */
  readonly run: (effect: Effect.Effect<unknown>) => void
  /** Starts an effect in the background that ends with the session. */
  readonly fork: (effect: Effect.Effect<unknown>) => void
  readonly clock: Clock.Clock
}

interface Pending {
  readonly request: JsonRpc.Request
  readonly first: Deferred.Deferred<Reply>
  readonly release: Effect.Effect<void>
  readonly startedAt: number
  /**
   * Longest time in milliseconds. Progress restarts it. Infinity for the gateway's own requests, which `startTimeout`
   * bounds.
   */
  readonly timeout: number
  /** When the request ends if it has no answer. */
  dueAt: number
  /** True if the client has cancelled the request. Then the request ends at `dueAt` without an answer. */
  cancelled: boolean
  stream: EventStream | undefined
  /** True if no client waits for the request: its client has disconnected, or the gateway itself sent it. */
  unheard: boolean
}

export class BridgeRequests {
  readonly #session: Session
  readonly #record: ClientRecord.ClientRecord
  readonly #limits: Limits
  readonly #metrics: GatewayMetrics
  readonly #streams: EventStreams
  readonly #standalone: StandaloneStreams
  readonly #pending = new Map<string, Pending>()
  readonly #requestTimeout: number
  readonly #streamAfter: number
  readonly #lostAfter: number
  readonly #startTimer: () => void
  readonly #startLostTimer: () => void
  /** Why the session has ended. Undefined until then. */
  #over: string | undefined
  /**
   * Completes when the session ends. A caller that waits for the process to read then stops waiting, because its lease
   * would keep the session open.
   */
  readonly #ended = Deferred.makeUnsafe<void>()
  /** When the client's GET stream broke off. Infinity: no stream broke off, or the client has sent something since. */
  #lostStreamAt = Number.POSITIVE_INFINITY
  #requests = 0
  #errors = 0
  #garbage = 0

  constructor(session: Session, record: ClientRecord.ClientRecord, limits: Limits, metrics: GatewayMetrics) {
    this.#session = session
    this.#record = record
    this.#limits = limits
    this.#metrics = metrics
    this.#streams = new EventStreams(limits.replay, randomBytes(4).toString("hex"))
    this.#standalone = new StandaloneStreams(this.#streams)
    this.#requestTimeout = Duration.toMillis(limits.requestTimeout)
    this.#streamAfter = Duration.toMillis(limits.streamAfter)
    this.#lostAfter = Duration.toMillis(limits.streamLostTimeToLive)
    this.#startTimer = Overdue.make({
      interval: Math.max(10, Math.min(1000, this.#requestTimeout / 4, this.#streamAfter / 4)),
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
    return this.#streams.room
  }

  activity(): Pick<PooledConnection.Activity, "inFlight" | "streams" | "requests" | "errors"> {
    return {
      inFlight: this.#pending.size,
      streams: this.#streams.readers(),
      requests: this.#requests,
      errors: this.#errors
    }
  }

  /** Ends the session: every request gets an error (404 if the back end has forgotten the session), every stream ends. */
  end(reason: string, forgotten: boolean): void {
    if (this.#over !== undefined) return
    this.#over = reason
    for (const entry of this.#pending.values()) this.#fail(entry, JsonRpc.codes.gateway, reason, forgotten ? 404 : 200)
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
    if (!this.#session.process.offer(request)) this.#session.run(this.write(request))
    return {
      _tag: "Running",
      reply: Deferred.await(entry.first),
      abandon: Effect.sync(() => {
        entry.unheard = true
      })
    }
  }

  /**
   * Sends a notification or a response to the process at once. The effect that it returns waits until the process has
   * read the message.
   */
  send(message: JsonRpc.Message): Effect.Effect<void> {
    this.#heard(message)
    this.#cancel(JsonRpc.cancelledId(message))
    if (this.#session.process.offer(message)) return Effect.void
    const written = Deferred.makeUnsafe<void>()
    // The write has a fiber of its own, as in `request`: the caller may be interrupted.
    this.#session.run(Effect.andThen(this.write(message), Deferred.succeed(written, undefined)))
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
    if (entry !== undefined) this.#settle(entry, undefined, "ok")
    return entry !== undefined
  }

  /**
   * Reads the stream of messages that belong to no request, or the rest of the stream that `lastEventId` names. `None`
   * if too many streams are open.
   */
  listen(lastEventId: string | undefined): Option.Option<Reader> {
    this.#heard(undefined)
    if (this.#streams.readers() >= this.#limits.maxInFlight) return Option.none()
    const place = lastEventId === undefined ? undefined : this.#streams.find(lastEventId)
    const stream = place?.stream ?? this.#standalone.toRead()
    if (this.#over !== undefined) this.#streams.end(stream)
    const reader = this.#read(stream, place?.sequence)
    return Option.some({
      ...reader,
      close: () => {
        const isLost = !reader.isDone()
        reader.close()
        // This may be a request's stream that breaks after the GET stream. Its client was connected until now, so the
        // time starts now.
        if (!isLost || this.#standalone.isRead()) return
        this.#lostStreamAt = this.#now()
        this.#startLostTimer()
      }
    })
  }

  #read(stream: EventStream, sequence?: number): Reader {
    const reader = this.#streams.read(stream, sequence)
    return {
      ...reader,
      close: () => {
        reader.close()
        this.#isThere()
      }
    }
  }

  /**
   * Restarts the time of a lost stream. A client that waited for an answer, or read a stream, was connected until now.
   */
  #isThere(): void {
    if (this.#lostStreamAt < Number.POSITIVE_INFINITY) this.#lostStreamAt = this.#now()
  }

  /**
   * Sends a request of the gateway's own while the session opens, and returns the answer. The client sees nothing of
   * it.
   */
  ask(message: JsonRpc.Request): Effect.Effect<JsonRpc.Response> {
    return Effect.suspend(() => {
      const entry = this.#take(message, Effect.void, true)
      const answer = Effect.map(
        Deferred.await(entry.first),
        (reply) => reply._tag === "Answer" ? reply.answer : unanswered(message.id)
      )
      if (this.#over === undefined) return Effect.andThen(this.write(message), answer)
      this.#fail(entry, JsonRpc.codes.gateway, this.#over)
      return answer
    })
  }

  /** Sends one message to the process, after all earlier ones. Waits while the process does not read. */
  write(message: JsonRpc.Message): Effect.Effect<void> {
    return this.#session.process.send(message)
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
      if (entry !== undefined) this.#settle(entry, message, message.failed ? "error" : "ok")
      return
    }
    const entry = this.#owner(message, request)
    // Clients forget a progress token when they cancel.
    if (entry?.cancelled === true && message.method === "notifications/progress") return
    if (entry === undefined) return this.#streams.push(this.#standalone.toWrite(), message.text)
    this.#streams.push(this.#streamOf(entry), message.text)
  }

  /** The stream of a request, opened if there is none. The answer then comes on this stream. */
  #streamOf(entry: Pending): EventStream {
    if (entry.stream !== undefined) return entry.stream
    const stream = entry.stream = this.#streams.open()
    Deferred.doneUnsafe(entry.first, Effect.succeed({ _tag: "Stream", open: () => this.#read(stream) }))
    return stream
  }

  /** The request that a message of the process belongs to. A cancelled request is the last choice. */
  #owner(message: JsonRpc.Message, request: JsonRpc.Id | undefined): Pending | undefined {
    if (message._tag === "Notification" && message.method === "notifications/progress") {
      for (const entry of this.#pending.values()) {
        const token = entry.request.progressToken
        if (token !== undefined && token === message.progressToken) {
          if (!entry.cancelled) entry.dueAt = this.#now() + entry.timeout
          return entry.unheard ? undefined : entry
        }
      }
    }
    const told = request === undefined ? undefined : this.#pending.get(JsonRpc.idKey(request))
    if (told !== undefined && !told.unheard) return told
    if (this.#standalone.isRead() && (this.#pending.size > 1 || concernsSession(message))) return undefined
    let cancelled: Pending | undefined
    for (const entry of this.#pending.values()) {
      if (!entry.unheard && !entry.cancelled) return entry
      if (!entry.unheard) cancelled ??= entry
    }
    return cancelled
  }

  /** Ends a request. Without an answer the client gets nothing (it cancelled). */
  #settle(
    entry: Pending,
    answer: JsonRpc.Response | undefined,
    outcome: "ok" | "error",
    status: 200 | 404 = 200
  ): void {
    this.#pending.delete(JsonRpc.idKey(entry.request.id))
    if (entry.stream === undefined) {
      Deferred.doneUnsafe(
        entry.first,
        Effect.succeed(answer === undefined ? { _tag: "Cancelled" } : { _tag: "Answer", answer, status })
      )
    } else {
      if (answer !== undefined) this.#streams.push(entry.stream, answer.text)
      this.#streams.end(entry.stream)
    }
    if (outcome === "error") this.#errors++
    this.#metrics.request(entry.request.method, outcome, this.#now() - entry.startedAt)
    this.#isThere()
    this.#session.run(entry.release)
  }

  #fail(entry: Pending, code: number, reason: string, status: 200 | 404 = 200): void {
    this.#settle(entry, JsonRpc.error(entry.request.id, code, reason), "error", status)
  }

  // ---------------------------------------------------------------------------
  // Timeouts
  // ---------------------------------------------------------------------------

  #endOverdue(): void {
    const at = this.#now()
    for (const entry of this.#pending.values()) {
      if (at >= entry.dueAt) {
        if (entry.cancelled) this.#settle(entry, undefined, "ok")
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
    const reason = `no answer within ${
      Duration.format(this.#limits.requestTimeout)
    }; the gateway has cancelled the request`
    this.#fail(entry, JsonRpc.codes.timeout, reason)
    this.#session.run(this.write(JsonRpc.cancellation(entry.request.id, reason)))
  }
}

/** Stands for the answer to a request of the gateway's own that got a stream. */
const unanswered = (id: JsonRpc.Id) => JsonRpc.error(id, JsonRpc.codes.internal, "no answer")

/** True for notifications that, by their method, concern the whole session. */
const concernsSession = (message: JsonRpc.Message): boolean =>
  message._tag === "Notification" &&
  (message.method.endsWith("/list_changed") || message.method === "notifications/resources/updated")
