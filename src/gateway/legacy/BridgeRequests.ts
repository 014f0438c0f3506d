/**
 * What a legacy client and its process say to each other: routes messages between the client's HTTP exchanges and the process.
 *
 * Each message of the process goes to exactly one place: an answer and a progress notification to the exchange of their
 * request; what concerns the whole session to the GET stream; anything else to the only request that runs, else to the
 * GET stream, else to the oldest request.
 */
import type { Clock } from "effect"
import { Deferred, Duration, Effect, Option } from "effect"
import { randomBytes } from "node:crypto"
import type { Transport } from "../backends/Transport.ts"
import { BackendFailed } from "../GatewayErrors.ts"
import type { GatewayMetrics } from "../GatewayMetrics.ts"
import * as JsonRpc from "../messages/JsonRpc.ts"
import * as ClientRecord from "../sessions/ClientRecord.ts"
import * as Overdue from "../sessions/Overdue.ts"
import * as PooledConnection from "../sessions/PooledConnection.ts"
import type { EventStream, Reader, ReplayLimits } from "./EventStreams.ts"
import { EventStreams } from "./EventStreams.ts"
import { StandaloneStreams } from "./StandaloneStreams.ts"

const cancelGrace = Duration.toMillis(PooledConnection.cancelGrace)

export interface Limits {
  /** How long a request may take; progress starts the time anew. */
  readonly requestTimeout: Duration.Duration
  /** When a request without an answer gets a stream. */
  readonly streamAfter: Duration.Duration
  /** A session whose client's GET stream broke off is ended when the client is silent for so long from then on. */
  readonly streamLostTimeToLive: Duration.Duration
  /** Requests that may run at once; as many streams may be open. */
  readonly maxInFlight: number
  readonly replay: ReplayLimits
}

/** What a request gets first: its answer, or a stream that ends with it; nothing if its client has cancelled it. */
export type Reply =
  | { readonly _tag: "Answer"; readonly text: string }
  | { readonly _tag: "Cancelled" }
  | { readonly _tag: "Stream"; readonly open: () => Reader }

/** A request that runs. */
export interface RunningRequest {
  readonly _tag: "Running"
  readonly reply: Effect.Effect<Reply>
  /** Its client has gone before the reply: nothing of it is kept for anybody. */
  readonly abandon: Effect.Effect<void>
}

/** A request that was taken on, or why it was not. */
export type Taken =
  | RunningRequest
  | { readonly _tag: "DuplicateId" | "TooMany" | "Over" }

/** What the requests of a session need of it. */
export interface Session {
  readonly process: Transport
  /** Starts an effect that nobody waits for. */
  readonly run: (effect: Effect.Effect<unknown>) => void
  /** The same, but it ends with the session. */
  readonly fork: (effect: Effect.Effect<unknown>) => void
  readonly clock: Clock.Clock
}

interface Pending {
  readonly request: JsonRpc.Request
  readonly first: Deferred.Deferred<Reply>
  readonly release: Effect.Effect<void>
  readonly startedAt: number
  /** How long it may take, in milliseconds; progress starts the time anew. Infinity for the gateway's own: `startTimeout` bounds it. */
  readonly timeout: number
  /** When it ends if no answer has come. */
  dueAt: number
  /** Its client cancelled it: `dueAt` then ends it without an answer. */
  cancelled: boolean
  stream: EventStream | undefined
  /** Nobody waits for it: its client has gone, or it is the gateway's own. */
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
  /** Why it has ended, if it has. */
  #over: string | undefined
  /** Completes then: who waits for the process to read waits no longer, for it keeps the session. */
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

  /** Completes when the process may say more. */
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

  /** Every request gets an error, every stream ends. */
  end(reason: string): void {
    if (this.#over !== undefined) return
    this.#over = reason
    for (const entry of this.#pending.values()) this.#fail(entry, JsonRpc.codes.gateway, reason)
    this.#streams.endAll()
    Deferred.doneUnsafe(this.#ended, Effect.void)
  }

  #now(): number {
    return this.#session.clock.currentTimeMillisUnsafe()
  }

  // ---------------------------------------------------------------------------
  // From the client
  // ---------------------------------------------------------------------------

  /** Takes a request on and hands it to the process; `release` runs once, when it is answered or fails. */
  request(request: JsonRpc.Request, text: string, release: Effect.Effect<void>): Taken {
    if (this.#over !== undefined) return { _tag: "Over" }
    if (this.#pending.has(JsonRpc.idKey(request.id))) return { _tag: "DuplicateId" }
    if (this.#pending.size >= this.#limits.maxInFlight && !this.#endOneCancelled()) return { _tag: "TooMany" }
    this.#requests++
    this.#heard(request.method, request.params, text)
    const entry = this.#take(request, release, false)
    // Where the process does not read, the write waits; not with the client, who may go.
    if (!this.#session.process.offer(JsonRpc.toLine(text))) this.#session.run(this.write(text))
    return {
      _tag: "Running",
      reply: Deferred.await(entry.first),
      abandon: Effect.sync(() => {
        entry.unheard = true
      })
    }
  }

  /** Hands a notification or a response to the process at once; what it gives waits until the process has read so far. */
  send(message: JsonRpc.Message, text: string): Effect.Effect<void> {
    if (message._tag === "Notification") this.#heard(message.method, message.params, text)
    else this.#heard(undefined, undefined, text)
    this.#cancel(JsonRpc.cancelledId(message))
    if (this.#session.process.offer(JsonRpc.toLine(text))) return Effect.void
    const written = Deferred.makeUnsafe<void>()
    // As of a request: who waits may go.
    this.#session.run(Effect.andThen(this.write(text), Deferred.succeed(written, undefined)))
    return Effect.raceFirst(Deferred.await(written), Deferred.await(this.#ended))
  }

  /** Gives a cancelled request a grace (`cancelGrace`) to be answered, then frees its place. */
  #cancel(id: JsonRpc.Id | undefined): void {
    const entry = id === undefined ? undefined : this.#pending.get(JsonRpc.idKey(id))
    if (entry === undefined || entry.cancelled) return
    entry.cancelled = true
    entry.dueAt = Math.min(entry.dueAt, this.#now() + cancelGrace)
  }

  /** Ends the grace of the oldest cancelled request, if there is one: a new request needs its place. */
  #endOneCancelled(): boolean {
    const entry = [...this.#pending.values()].find(({ cancelled }) => cancelled)
    if (entry !== undefined) this.#settle(entry, undefined, "ok")
    return entry !== undefined
  }

  /** The stream of what belongs to no request, or what is left of the one of a `Last-Event-ID`. */
  listen(lastEventId: string | undefined): Option.Option<Reader> {
    this.#heard(undefined, undefined, "")
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
        // The stream of a request may break after it: until then its client is there.
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

  /** A client that waited for an answer, or read, was not silent until now. */
  #isThere(): void {
    if (this.#lostStreamAt < Number.POSITIVE_INFINITY) this.#lostStreamAt = this.#now()
  }

  /** The gateway's own request, while the session opens: its answer, and nothing of it to the client. */
  ask(text: string): Effect.Effect<string> {
    return Effect.suspend(() => {
      const message = JsonRpc.read(text)
      if (message?._tag !== "Request") return Effect.succeed("")
      const entry = this.#take(message, Effect.void, true)
      const answer = Effect.map(Deferred.await(entry.first), (reply) => reply._tag === "Answer" ? reply.text : "")
      if (this.#over === undefined) return Effect.andThen(this.write(text), answer)
      this.#fail(entry, JsonRpc.codes.gateway, this.#over)
      return answer
    })
  }

  /** Sends one message to the process, after all earlier ones; waits while it does not read. */
  write(text: string): Effect.Effect<void> {
    return this.#session.process.send(JsonRpc.toLine(text))
  }

  #heard(method: string | undefined, params: unknown, text: string): void {
    // A client that speaks without its stream does not need one.
    this.#lostStreamAt = Number.POSITIVE_INFINITY
    if (method !== undefined) ClientRecord.note(this.#record, method, params, text)
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

  /** Takes one line; false: there is no room for more. */
  receive(line: string): boolean {
    const message = JsonRpc.read(line)
    if (message !== undefined) this.#route(line, message)
    else {
      this.#skip(line)
      const error = JsonRpc.errorForTooDeep(line)
      if (error !== undefined) this.receive(error)
    }
    return !this.#streams.congested()
  }

  #skip(line: string): void {
    this.#metrics.garbage()
    // The first, the second, the fourth, the eighth…: a server that logs on stdout must not fill our log.
    if (!Number.isInteger(Math.log2(++this.#garbage))) return
    const why = JsonRpc.isTooDeep(line) ? JsonRpc.tooDeep : "no JSON-RPC message"
    this.#session.run(Effect.logWarning(
      `The back end wrote ${line.length} characters on stdout that are ${why}; skipped (line ${this.#garbage} of these)`
    ))
  }

  #route(text: string, message: JsonRpc.Message): void {
    if (message._tag === "Response") {
      const entry = this.#pending.get(JsonRpc.idKey(message.id))
      if (entry !== undefined) this.#settle(entry, text, message.failed ? "error" : "ok")
      return
    }
    const entry = this.#owner(message)
    // Clients forget a progress token when they cancel.
    if (entry?.cancelled === true && message.method === "notifications/progress") return
    if (entry === undefined) return this.#streams.push(this.#standalone.toWrite(), text)
    this.#streams.push(this.#streamOf(entry), text)
  }

  /** The stream of a request, on which its answer comes from now on. */
  #streamOf(entry: Pending): EventStream {
    if (entry.stream !== undefined) return entry.stream
    const stream = entry.stream = this.#streams.open()
    Deferred.doneUnsafe(entry.first, Effect.succeed({ _tag: "Stream", open: () => this.#read(stream) }))
    return stream
  }

  /** The request that a message of the process belongs to. A cancelled request is the last choice. */
  #owner(message: JsonRpc.Message): Pending | undefined {
    if (message._tag === "Notification" && message.method === "notifications/progress") {
      for (const entry of this.#pending.values()) {
        const token = entry.request.progressToken
        if (token !== undefined && token === message.progressToken) {
          if (!entry.cancelled) entry.dueAt = this.#now() + entry.timeout
          return entry.unheard ? undefined : entry
        }
      }
    }
    if (this.#standalone.isRead() && (this.#pending.size > 1 || concernsSession(message))) return undefined
    let cancelled: Pending | undefined
    for (const entry of this.#pending.values()) {
      if (!entry.unheard && !entry.cancelled) return entry
      if (!entry.unheard) cancelled ??= entry
    }
    return cancelled
  }

  /** Ends a request. Without a text the client gets no answer (it cancelled). */
  #settle(entry: Pending, text: string | undefined, outcome: "ok" | "error"): void {
    this.#pending.delete(JsonRpc.idKey(entry.request.id))
    if (entry.stream === undefined) {
      Deferred.doneUnsafe(
        entry.first,
        Effect.succeed(text === undefined ? { _tag: "Cancelled" } : { _tag: "Answer", text })
      )
    } else {
      if (text !== undefined) this.#streams.push(entry.stream, text)
      this.#streams.end(entry.stream)
    }
    if (outcome === "error") this.#errors++
    this.#metrics.request(entry.request.method, outcome, this.#now() - entry.startedAt)
    this.#isThere()
    this.#session.run(entry.release)
  }

  #fail(entry: Pending, code: number, reason: string): void {
    this.#settle(entry, JsonRpc.error(entry.request.id, code, reason), "error")
  }

  // ---------------------------------------------------------------------------
  // Time
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
    const reason = `the client lost its stream and said nothing for ${
      Duration.format(this.#limits.streamLostTimeToLive)
    }`
    Deferred.doneUnsafe(
      this.#session.process.ended,
      Effect.succeed(new BackendFailed({ reason, stderr: "", ended: "client gone" }))
    )
    this.end(reason)
  }

  #timeOut(entry: Pending): void {
    const reason = `no answer within ${
      Duration.format(this.#limits.requestTimeout)
    }; the gateway has cancelled the request`
    this.#fail(entry, JsonRpc.codes.timeout, reason)
    const params = { requestId: entry.request.id, reason }
    this.#session.run(this.write(JSON.stringify({ jsonrpc: "2.0", method: "notifications/cancelled", params })))
  }
}

/** Messages of a server that belong to no request by what they say. */
const concernsSession = (message: JsonRpc.Message): boolean =>
  message._tag === "Notification" &&
  (message.method.endsWith("/list_changed") || message.method === "notifications/resources/updated")
