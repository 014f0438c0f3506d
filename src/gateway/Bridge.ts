/**
 * One client session on a stdio back end: routes messages between the client's HTTP exchanges and the process.
 *
 * Each message of the process goes to exactly one place: an answer and a progress notification to the exchange of their
 * request; what concerns the whole session to the GET stream; anything else to the only request that runs, else to the
 * GET stream, else to the oldest request.
 */
import { Array as Arr, Clock, Deferred, Duration, Effect, Fiber, Option, Result } from "effect"
import type { Scope } from "effect"
import { randomBytes } from "node:crypto"
import * as ClientRecord from "./ClientRecord.ts"
import type { EventStream, Reader, ReplayLimits } from "./EventStreams.ts"
import { EventStreams } from "./EventStreams.ts"
import { BackendFailed, InitializeRefused } from "./GatewayErrors.ts"
import type { GatewayMetrics } from "./GatewayMetrics.ts"
import * as JsonRpc from "./JsonRpc.ts"
import type { Transport } from "./Transport.ts"

export interface Limits {
  /** How long a request may take; progress starts the time anew. */
  readonly requestTimeout: Duration.Duration
  /** A session whose client had a GET stream, lost it and says nothing for so long is ended. */
  readonly streamLostTimeToLive: Duration.Duration
  /** Requests that may run at once; as many streams may be open. */
  readonly maxInFlight: number
  readonly replay: ReplayLimits
}

/** What a request gets first: its answer, or a stream that ends with it. */
export type Reply =
  | { readonly _tag: "Answer"; readonly text: string }
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

/** What the page and the list of sessions show. */
export interface Activity {
  readonly pid: number | undefined
  readonly client: string | undefined
  readonly inFlight: number
  readonly streams: number
  readonly requests: number
  readonly errors: number
}

export interface Bridge {
  readonly _tag: "Stdio"
  /** Completes when the session has ended by itself, with why. */
  readonly ended: Deferred.Deferred<BackendFailed>
  /** Completes when the process group is gone and everything is released. */
  readonly gone: Deferred.Deferred<void>
  /** The answer to the client's `initialize`. */
  readonly answer: string
  readonly record: ClientRecord.ClientRecord
  /** Takes a request on and hands it to the process; `release` runs once, when it is answered or fails. */
  readonly request: (message: JsonRpc.Request, text: string, release: Effect.Effect<void>) => Taken
  /** Hands a notification or a response to the process. */
  readonly send: (message: JsonRpc.Message, text: string) => Effect.Effect<void>
  /**
   * Opens the stream of what belongs to no request, or goes on with the stream of a `Last-Event-ID`. `None`: too many are
   * open already.
   */
  readonly listen: (lastEventId: string | undefined) => Effect.Effect<Option.Option<Reader>>
  readonly activity: () => Activity
  /** Ends the session from the gateway's side: every request gets an error, every stream ends. */
  readonly end: (reason: string) => Effect.Effect<void>
}

interface Pending {
  readonly request: JsonRpc.Request
  readonly first: Deferred.Deferred<Reply>
  readonly release: Effect.Effect<void>
  readonly startedAt: number
  /** Since when there has been no progress. */
  since: number
  stream: EventStream | undefined
  /** Nobody waits for it: its client has gone, or it is the gateway's own. */
  unheard: boolean
}

/** Opens a session on a started process: the client's `initialize` first, and for one that wakes what followed it. */
export const make = Effect.fnUntraced(function*<R>(
  start: Effect.Effect<Transport, BackendFailed, R | Scope.Scope>,
  record: ClientRecord.ClientRecord,
  limits: Limits,
  metrics: GatewayMetrics
): Effect.fn.Return<Bridge, BackendFailed | InitializeRefused, R | Scope.Scope> {
  const gone = yield* Deferred.make<void>()
  // Registered first, so it runs last.
  yield* Effect.addFinalizer(() => Deferred.succeed(gone, undefined))
  const process = yield* start
  const clock = yield* Clock.Clock
  const services = yield* Effect.context<never>()
  const run = Effect.runForkWith(services)
  const scope = yield* Effect.scope
  const now = () => clock.currentTimeMillisUnsafe()
  const streams = new EventStreams(limits.replay, randomBytes(4).toString("hex"))
  const pending = new Map<string, Pending>()
  /** The streams of GET, the newest last. */
  let standalone: Array<EventStream> = []
  let over: string | undefined
  // A client that says nothing after its `initialize` may never have got its answer.
  let lostStreamAt = record.initialized === undefined ? now() : Number.POSITIVE_INFINITY
  let requests = 0
  let errors = 0
  let garbage = 0

  // ---------------------------------------------------------------------------
  // From the process
  // ---------------------------------------------------------------------------

  const settle = (entry: Pending, text: string, outcome: "ok" | "error") => {
    pending.delete(JsonRpc.idKey(entry.request.id))
    if (entry.stream === undefined) {
      Deferred.doneUnsafe(entry.first, Effect.succeed({ _tag: "Answer", text }))
    } else {
      streams.push(entry.stream, text)
      streams.end(entry.stream)
    }
    if (outcome === "error") errors++
    metrics.request(entry.request.method, outcome, now() - entry.startedAt)
    // A client that waited for this answer was not silent.
    if (lostStreamAt < Number.POSITIVE_INFINITY) lostStreamAt = now()
    run(entry.release)
  }

  const end = (reason: string) =>
    Effect.sync(() => {
      if (over !== undefined) return
      over = reason
      for (const entry of pending.values()) {
        settle(entry, JsonRpc.error(entry.request.id, JsonRpc.codes.gateway, reason), "error")
      }
      streams.endAll()
    })

  const route = (text: string, message: JsonRpc.Message): void => {
    if (message._tag === "Response") {
      const entry = pending.get(JsonRpc.idKey(message.id))
      if (entry !== undefined) settle(entry, text, message.failed ? "error" : "ok")
      return
    }
    const entry = owner(message)
    if (entry === undefined) return streams.push(standaloneStream(), text)
    if (entry.stream === undefined) {
      const stream = entry.stream = streams.open()
      Deferred.doneUnsafe(entry.first, Effect.succeed({ _tag: "Stream", open: () => streams.read(stream) }))
    }
    streams.push(entry.stream, text)
  }

  /** The request that a message of the process belongs to. */
  const owner = (message: JsonRpc.Message): Pending | undefined => {
    if (message._tag === "Notification" && message.method === "notifications/progress") {
      for (const entry of pending.values()) {
        const token = entry.request.progressToken
        if (token !== undefined && token === message.progressToken) {
          entry.since = now()
          return entry.unheard ? undefined : entry
        }
      }
    }
    const listening = standalone.some((stream) => stream.reader !== undefined)
    if (listening && (pending.size > 1 || concernsSession(message))) return undefined
    for (const entry of pending.values()) if (!entry.unheard) return entry
    return undefined
  }

  /** Where a message goes that belongs to no request: the newest stream with a reader, else the newest. */
  const standaloneStream = (): EventStream => {
    const stream = standalone.findLast(({ reader }) => reader !== undefined) ?? standalone.at(-1)
    return stream ?? openStandalone()
  }

  const openStandalone = (): EventStream => {
    const stream = streams.open()
    // Of those that nobody reads, one with unread messages is enough to come back to.
    const [useful, spent] = Arr.partition(
      standalone,
      (other) =>
        other.reader === undefined && other.sequence === other.delivered ? Result.fail(other) : Result.succeed(other)
    )
    standalone = [...useful, stream]
    for (const other of spent) streams.end(other)
    return stream
  }

  yield* process.attach({
    receive: (line) => {
      const json = JsonRpc.parse(line)
      const message = Option.isSome(json) ? JsonRpc.classify(json.value) : undefined
      if (message === undefined) {
        metrics.garbage()
        // The first, the second, the fourth, the eighth…: a server that logs on stdout must not fill our log.
        if (Number.isInteger(Math.log2(++garbage))) {
          run(Effect.logWarning(
            `The back end wrote ${line.length} characters on stdout that are no JSON-RPC message; skipped (line ${garbage} of these)`
          ))
        }
      } else {
        route(line, message)
      }
      return !streams.congested()
    },
    room: streams.room
  })

  yield* Effect.addFinalizer(() => end("the session has ended"))
  yield* Effect.forkScoped(Effect.flatMap(Deferred.await(process.ended), (failure) => end(failure.message)))

  // ---------------------------------------------------------------------------
  // From the client
  // ---------------------------------------------------------------------------

  const write = (text: string) => process.send(JsonRpc.toLine(text))

  const take = (request: JsonRpc.Request, release: Effect.Effect<void>, unheard: boolean): Pending => {
    const at = now()
    const entry: Pending = {
      request,
      first: Deferred.makeUnsafe(),
      release,
      startedAt: at,
      since: at,
      stream: undefined,
      unheard
    }
    pending.set(JsonRpc.idKey(request.id), entry)
    startTimer()
    return entry
  }

  const heard = (method: string | undefined, params: unknown, text: string) => {
    // A client that speaks without its stream does not need one.
    lostStreamAt = Number.POSITIVE_INFINITY
    if (method !== undefined) ClientRecord.note(record, method, params, text)
  }

  const running = (entry: Pending): RunningRequest => ({
    _tag: "Running",
    reply: Deferred.await(entry.first),
    abandon: Effect.sync(() => {
      entry.unheard = true
    })
  })

  /** The gateway's own request: its answer, and nothing of it to the client. */
  const ask = Effect.fnUntraced(function*(text: string) {
    const json = JsonRpc.parse(text)
    const message = Option.isSome(json) ? JsonRpc.classify(json.value) : undefined
    if (message?._tag !== "Request") return ""
    const entry = take(message, Effect.void, true)
    if (over === undefined) yield* write(text)
    else settle(entry, JsonRpc.error(message.id, JsonRpc.codes.gateway, over), "error")
    const reply = yield* Deferred.await(entry.first)
    return reply._tag === "Answer" ? reply.text : ""
  })

  // ---------------------------------------------------------------------------
  // Time
  //
  // One timer for all that may take too long. It runs only while there is something of this kind, and whoever adds to it
  // starts it: a thousand idle sessions would wake a thousand times a second.
  // ---------------------------------------------------------------------------

  const timeOut = (entry: Pending) => {
    const { id } = entry.request
    const reason = `no answer within ${Duration.format(limits.requestTimeout)}; the gateway has cancelled the request`
    settle(entry, JsonRpc.error(id, JsonRpc.codes.timeout, reason), "error")
    const params = { requestId: id, reason }
    run(write(JSON.stringify({ jsonrpc: "2.0", method: "notifications/cancelled", params })))
  }

  const requestTimeout = Duration.toMillis(limits.requestTimeout)
  const lostAfter = Duration.toMillis(limits.streamLostTimeToLive)
  const interval = Math.max(10, Math.min(1000, requestTimeout / 4, lostAfter / 4))

  /** Ends what has taken too long. Synchronous: no message comes in between. */
  const endOverdue = Effect.sync(() => {
    const at = now()
    for (const entry of pending.values()) if (at - entry.since >= requestTimeout) timeOut(entry)
    if (over === undefined && pending.size + streams.readers() === 0 && at - lostStreamAt >= lostAfter) {
      const reason = `the client lost its stream and said nothing for ${Duration.format(limits.streamLostTimeToLive)}`
      Deferred.doneUnsafe(process.ended, Effect.succeed(new BackendFailed({ reason, stderr: "" })))
      run(end(reason))
    }
  })

  let timerRuns = false
  const timerIsNeeded = () => over === undefined && (pending.size > 0 || lostStreamAt < Number.POSITIVE_INFINITY)
  function startTimer() {
    if (timerRuns || !timerIsNeeded()) return
    timerRuns = true
    const timer = Effect.repeat(Effect.andThen(Effect.sleep(interval), endOverdue), {
      while: () => {
        timerRuns = timerIsNeeded()
        return timerRuns
      }
    })
    Fiber.runIn(run(timer), scope)
  }
  startTimer()

  // ---------------------------------------------------------------------------
  // The handshake
  // ---------------------------------------------------------------------------

  const answer = yield* ask(record.initialize)
  if (Deferred.isDoneUnsafe(process.ended)) return yield* Effect.flatMap(Deferred.await(process.ended), Effect.fail)
  if (JsonRpc.isError(answer)) return yield* new InitializeRefused({ answer })
  if (record.initialized !== undefined) {
    yield* write(record.initialized)
    if (record.level !== undefined) yield* ask(record.level)
    for (const subscription of record.subscriptions.values()) yield* ask(subscription)
  }

  return {
    _tag: "Stdio",
    ended: process.ended,
    gone,
    answer,
    record,
    request: (request, text, release) => {
      if (over !== undefined) return { _tag: "Over" }
      if (pending.has(JsonRpc.idKey(request.id))) return { _tag: "DuplicateId" }
      if (pending.size >= limits.maxInFlight) return { _tag: "TooMany" }
      requests++
      heard(request.method, request.params, text)
      const entry = take(request, release, false)
      // Where the process does not read, the write waits; not with the client, who may go.
      if (!process.offer(JsonRpc.toLine(text))) run(write(text))
      return running(entry)
    },
    send: (message, text) =>
      Effect.suspend(() => {
        heard(
          message._tag === "Notification" ? message.method : undefined,
          message._tag === "Notification" ? message.params : undefined,
          text
        )
        return write(text)
      }),
    listen: (lastEventId) =>
      Effect.sync(() => {
        heard(undefined, undefined, "")
        if (streams.readers() >= limits.maxInFlight) return Option.none()
        const place = lastEventId === undefined ? undefined : streams.find(lastEventId)
        const stream = place?.stream ??
          standalone.findLast(({ reader }) => reader === undefined) ?? openStandalone()
        if (over !== undefined) streams.end(stream)
        const reader = streams.read(stream, place?.sequence)
        return Option.some({
          ...reader,
          close: () => {
            reader.close()
            if (streams.readers() > 0) return
            lostStreamAt = now()
            startTimer()
          }
        })
      }),
    activity: () => ({
      pid: process.pid,
      client: record.client,
      inFlight: pending.size,
      streams: streams.readers(),
      requests,
      errors
    }),
    end
  }
})

/** Messages of a server that belong to no request by what they say. */
const concernsSession = (message: JsonRpc.Message): boolean =>
  message._tag === "Notification" &&
  (message.method.endsWith("/list_changed") || message.method === "notifications/resources/updated")
