/**
 * The calls of one lane: sends them to the server, and finds the call that each message of the server belongs to.
 *
 * Each call has its own number towards the server, because callers choose their ids independently. A question that a stateful server
 * asks during a call is kept until the call's client has answered it.
 *
 * A question or a log message of a stateful server belongs to the call that holds the lane exclusively, or to the only running call. A
 * question that the server asks by itself, such as for the roots at its start, looks like one of the running call. So that call's client
 * answers it.
 */
import type { Clock } from "effect"
import { Duration, Effect } from "effect"
import type { Dialect } from "../protocol/Dialect.ts"
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import * as Modern from "../protocol/Modern.ts"
import * as ParamHeaders from "../protocol/ParamHeaders.ts"
import type { RequestMetrics } from "../telemetry/GatewayMetrics.ts"
import type { Handshake, InputRequest, Options, RunningCall } from "./Lane.ts"
import type * as Mailbox from "./Mailbox.ts"
import { Mailboxes } from "./Mailbox.ts"
import * as Overdue from "./Overdue.ts"
import * as PooledConnection from "./PooledConnection.ts"

/** The parts of a lane that its calls need. */
export interface Connection {
  /** Sends one message, after all earlier ones. */
  readonly write: (message: JsonRpc.Message) => void
  /** True if the server leaves so many messages unread that the gateway should not read from it. */
  readonly isBehind: () => boolean
  /** Starts an effect in the background. */
  readonly run: (effect: Effect.Effect<unknown>) => void
  /** Starts an effect in the background that ends with the lane. */
  readonly fork: (effect: Effect.Effect<unknown>) => void
  readonly clock: Clock.Clock
}

/** A message for the client of a call. The client's ids are added when it is taken, because a parked call continues under another id. */
export type Queued =
  /** The server waits for the client's answers to its questions. */
  | { readonly _tag: "InputRequired" }
  /** A notification. `kind` decides whether the client gets it, and in which form. */
  | {
    readonly _tag: "Notification"
    readonly kind: "progress" | "log" | "subscription"
    readonly method: string
    readonly params: unknown
    /** Characters of the message. */
    readonly size: number
  }
  | Ended

export interface Ended {
  readonly _tag: "Ended"
  readonly member: "result" | "error"
  readonly value: unknown
}

interface Asked {
  readonly request: InputRequest
  /** The server's id of the question. `undefined` if the answer is to send the call again. */
  readonly id: JsonRpc.Id | undefined
}

interface LaneCall {
  /** The client's newest request for this call. */
  current: Modern.Call
  readonly exclusive: boolean
  /** Gives the lane back. */
  readonly release: Effect.Effect<void>
  readonly startedAt: number
  /** When the call gets a stream if it has no answer. */
  streamAt: number
  /** When the call ends if the server sends nothing for it. */
  dueAt: number
  /** The id of the call towards the server. */
  number: number
  readonly mailbox: Mailbox.Mailbox<Queued>
  /** The server's questions without an answer, by key. */
  readonly asked: Map<string, Asked>
  /** The number of questions that came without a name. */
  unnamed: number
}

/** Milliseconds to wait for further questions, so that the client gets them together. */
const gather = 20

export class LaneCalls {
  readonly #connection: Connection
  readonly #options: Options
  readonly #metrics: RequestMetrics
  readonly #calls = new Set<LaneCall>()
  /** The calls that the server has not answered, by number. */
  readonly #unanswered = new Map<number, LaneCall>()
  /** The gateway's own requests, by number. */
  readonly #own = new Map<number, (answer: JsonRpc.Response) => void>()
  readonly #mailboxes: Mailboxes<Queued>
  readonly #requestTimeout: number
  readonly #streamAfter: number
  readonly #startTimer: () => void
  #handshake: Handshake | undefined
  #dialect: Dialect | undefined
  /** The log level that the gateway has set at the server. */
  #level: string | undefined
  #over: string | undefined
  #isSpoilt = false
  #lastNumber = 0
  #requests = 0
  #errors = 0

  constructor(connection: Connection, options: Options, metrics: RequestMetrics) {
    this.#connection = connection
    this.#options = options
    this.#metrics = metrics
    this.#mailboxes = new Mailboxes(options.limits, (event) => event._tag === "Notification" ? event.size : 0, "")
    this.#requestTimeout = Duration.toMillis(options.requestTimeout)
    this.#streamAfter = Duration.toMillis(options.streamAfter)
    this.#startTimer = Overdue.make({
      interval: Overdue.intervalFor(this.#requestTimeout, this.#streamAfter),
      look: () => this.#endOverdue(),
      isNeeded: () => this.#over === undefined && this.#calls.size > 0,
      fork: connection.fork
    })
  }

  /** Ends the handshake. From now on there may be calls. */
  begin(handshake: Handshake, dialect: Dialect): void {
    this.#handshake = handshake
    this.#dialect = dialect
  }

  activity(): { readonly inFlight: number; readonly requests: number; readonly errors: number } {
    return { inFlight: this.#calls.size, requests: this.#requests, errors: this.#errors }
  }

  /**
   * True if the lane must not be used again. A call that held the lane exclusively was cancelled, and the server has not answered it: later
   * messages of the server may still belong to it.
   */
  isSpoilt(): boolean {
    return this.#isSpoilt
  }

  get over(): boolean {
    return this.#over !== undefined
  }

  readonly #isFull = (): boolean => this.#connection.isBehind() || this.#mailboxes.congested()

  /** Waits until there is room for more messages of the server. */
  get room(): Effect.Effect<void> {
    return this.#mailboxes.room(this.#isFull)
  }

  /** Wakes the waiters for room if there is some. Call it when the server has read a message. */
  announceRoom(): void {
    this.#mailboxes.announceRoom()
  }

  #now(): number {
    return this.#connection.clock.currentTimeMillisUnsafe()
  }

  /** Ends all calls. */
  end(reason: string): void {
    if (this.#over !== undefined) return
    this.#over = reason
    for (const call of this.#calls) this.#settle(call, failure(reason))
    for (const resume of this.#own.values()) resume(JsonRpc.error(null, JsonRpc.codes.internal, reason))
    this.#own.clear()
  }

  /** Sends a request of the gateway's own, and returns the answer. */
  request(method: string, params: unknown): Effect.Effect<JsonRpc.Response> {
    return Effect.callback((resume) => {
      if (this.#over !== undefined) {
        return resume(Effect.succeed(JsonRpc.error(null, JsonRpc.codes.internal, this.#over)))
      }
      const number = this.#ask(method, params, (answer) => resume(Effect.succeed(answer)))
      return Effect.sync(() => this.#own.delete(number))
    })
  }

  #ask(method: string, params: unknown, answered: (answer: JsonRpc.Response) => void): number {
    const number = ++this.#lastNumber
    this.#own.set(number, answered)
    this.#connection.write(JsonRpc.request(number, method, params))
    return number
  }

  // ---------------------------------------------------------------------------
  // From the client
  // ---------------------------------------------------------------------------

  /** Sends a call to the server. `release` runs once, when the call is over. */
  call(current: Modern.Call, exclusive: boolean, release: Effect.Effect<void>): RunningCall {
    this.#requests++
    const startedAt = this.#now()
    const call: LaneCall = {
      current,
      exclusive,
      release,
      startedAt,
      streamAt: startedAt + this.#streamAfter,
      dueAt: startedAt + this.#timeoutOf(current),
      number: 0,
      mailbox: this.#mailboxes.open(false),
      asked: new Map(),
      unnamed: 0
    }
    this.#calls.add(call)
    this.#startTimer()
    if (this.#over === undefined) this.#send(call)
    else this.#settle(call, failure(this.#over))
    return {
      call: () => call.current,
      read: () => this.#mailboxes.read(call.mailbox),
      inputRequests: () => [...call.asked.values()].map(({ request }) => request),
      park: () => {
        call.dueAt = Number.POSITIVE_INFINITY
      },
      resume: (next) => {
        call.current = next
        call.streamAt = this.#now() + this.#streamAfter
        call.dueAt = this.#now() + this.#requestTimeout
        if (call.mailbox.ended) return
        this.#reply(call, next.inputResponses ?? {})
        if (call.asked.size > 0) this.#tell(call, inputRequired)
      },
      cancel: (reason) => {
        this.#abort(call, failure(reason), reason)
        if (call.mailbox.reader === undefined) this.#mailboxes.discard(call.mailbox)
      },
      isOver: () => call.mailbox.ended
    }
  }

  #timeoutOf({ request }: Modern.Call): number {
    return request.method === "subscriptions/listen" ? Number.POSITIVE_INFINITY : this.#requestTimeout
  }

  /** Sends a call under a new number. */
  #send(call: LaneCall): void {
    const { current } = call
    const { method, params } = current.request
    const level = current.logLevel
    if (level !== undefined && level !== this.#level && this.#dialect?.isStateful === true && this.#logs()) {
      this.#level = level
      this.#ask("logging/setLevel", { level }, () => undefined)
    }
    call.number = ++this.#lastNumber
    this.#unanswered.set(call.number, call)
    this.#connection.write(JsonRpc.request(call.number, method, this.#dialect?.params(current, call.number) ?? params))
  }

  #logs(): boolean {
    return this.#handshake?.capabilities["logging"] !== undefined
  }

  /** Sends the client's answers to the server. */
  #reply(call: LaneCall, responses: Json.JsonObject): void {
    const visits: Array<boolean> = []
    for (const [key, { id }] of call.asked) {
      const response = Json.field(responses, key)
      if (response === undefined) continue
      call.asked.delete(key)
      if (id === undefined) visits.push(Json.field(response, "action") === "accept")
      else this.#connection.write(JsonRpc.result(id, response))
    }
    if (visits.length === 0) return
    // A client that declines a page declines the call.
    if (visits.includes(false)) this.#settle(call, failure("the client declined to visit the page"))
    else if (call.asked.size === 0) this.#send(call)
  }

  /** Ends a call before its server has answered it. */
  #abort(call: LaneCall, end: Ended, reason: string): void {
    if (call.mailbox.ended) return
    if (this.#unanswered.has(call.number)) {
      this.#connection.write(JsonRpc.cancellation(call.number, reason))
      if (call.exclusive && this.#dialect?.isStateful === true) this.#isSpoilt = true
    }
    this.#settle(call, end)
  }

  #settle(call: LaneCall, end: Ended): void {
    if (call.mailbox.ended) return
    this.#mailboxes.push(call.mailbox, end)
    this.#mailboxes.end(call.mailbox)
    for (const { id } of call.asked.values()) {
      if (id !== undefined && this.#over === undefined) this.#refuse(id, "The call of this request has ended")
    }
    call.asked.clear()
    this.#calls.delete(call)
    this.#unanswered.delete(call.number)
    const outcome = end.member === "error" ? "error" : "ok"
    if (outcome === "error") this.#errors++
    this.#metrics.request(call.current.request.method, outcome, this.#now() - call.startedAt)
    this.#connection.run(call.release)
    this.announceRoom()
  }

  #endOverdue(): void {
    const at = this.#now()
    for (const call of this.#calls) {
      if (at >= call.dueAt) {
        const reason = PooledConnection.timeoutReason(this.#options.requestTimeout)
        this.#abort(call, failure(reason), reason)
      } else if (at >= call.streamAt) {
        call.streamAt = Number.POSITIVE_INFINITY
        this.#mailboxes.nudge(call.mailbox)
      }
    }
  }

  // ---------------------------------------------------------------------------
  // From the server
  // ---------------------------------------------------------------------------

  /** Handles one message of the server. False if there is no room for more. */
  receive(message: JsonRpc.Message): boolean {
    switch (message._tag) {
      case "Response":
        this.#answered(message)
        break
      case "Request":
        this.#asked(message)
        break
      case "Notification":
        this.#heard(message)
    }
    return !this.#isFull()
  }

  /** Passes something to the client of a call, and restarts the time of the call. */
  #tell(call: LaneCall | undefined, event: Queued): void {
    if (call === undefined || call.mailbox.ended) return
    if (call.dueAt < Number.POSITIVE_INFINITY) call.dueAt = this.#now() + this.#requestTimeout
    this.#mailboxes.push(call.mailbox, event)
  }

  /** The call of a message that does not name its call. `undefined` if the call is uncertain. */
  #owner(): LaneCall | undefined {
    if (this.#isSpoilt) return undefined
    const calls = [...this.#calls]
    return calls.find(({ exclusive }) => exclusive) ?? (calls.length === 1 ? calls[0] : undefined)
  }

  #answered(answer: JsonRpc.Response): void {
    const { error, failed, id, result } = answer
    // The gateway's ids are numbers.
    const number = typeof id === "number" ? id : Number.NaN
    const own = this.#own.get(number)
    if (own !== undefined) {
      this.#own.delete(number)
      return own(answer)
    }
    const call = this.#unanswered.get(number)
    if (call === undefined || this.#dialect === undefined) return
    const { method } = call.current.request
    if (!failed) {
      if (method === "tools/list") ParamHeaders.note(this.#options.paramHeaders, answer)
      return this.#settle(call, ended("result", this.#dialect.result(method, result, this.#handshake?.serverInfo)))
    }
    if (this.#dialect.isStateful && JsonRpc.codeOf(error) === Modern.urlElicitationRequired) {
      return this.#sentToPages(call, error)
    }
    this.#settle(call, ended("error", this.#dialect.error(error)))
  }

  /** A server of revision 2025-11-25 wants the client to visit pages first, and to send the call again after that. */
  #sentToPages(call: LaneCall, error: unknown): void {
    this.#unanswered.delete(call.number)
    const missing = Modern.missing(call.current.client.capabilities, "elicitation/create", { mode: "url" })
    if (missing !== undefined) return this.#lacks(call, missing)
    const pages = Json.at(error, "data", "elicitations")
    const visits = Array.isArray(pages) ? pages.filter(Json.isObject) : []
    if (visits.length === 0) return this.#settle(call, ended("error", Modern.mappedError(error)))
    for (const page of visits) {
      this.#putToClient(call, "elicitation/create", { ...page, elicitationId: undefined }, undefined, undefined)
    }
  }

  #refuse(id: JsonRpc.Id, message: string, code: number = JsonRpc.codes.internal): void {
    this.#connection.write(JsonRpc.error(id, code, message))
  }

  #asked({ id, method, params }: JsonRpc.Request): void {
    if (method === "ping") return this.#connection.write(JsonRpc.result(id, {}))
    if (this.#dialect?.isStateful !== true || !Modern.inputMethods.includes(method)) {
      return this.#refuse(id, "Method not found", JsonRpc.codes.methodNotFound)
    }
    const call = this.#owner()
    if (call === undefined || !Modern.mayRequireInput.includes(call.current.request.method)) {
      return this.#refuse(id, "The gateway cannot tell which call this request belongs to")
    }
    const missing = Modern.missing(call.current.client.capabilities, method, params)
    if (missing !== undefined) {
      this.#refuse(id, "The client lacks the capability for this request", JsonRpc.codes.methodNotFound)
      return this.#lacks(call, missing)
    }
    this.#putToClient(call, method, params, id, typeof id === "string" ? id : undefined)
  }

  /** Passes a question of the server to the call's client. Its key is the server's name for it, or a name that the gateway makes. */
  #putToClient(
    call: LaneCall,
    method: string,
    params: unknown,
    id: JsonRpc.Id | undefined,
    name: string | undefined
  ): void {
    const key = name ?? freeKey(call, method)
    call.asked.set(key, { id, request: { key, method, params: Modern.withoutHop(params) } })
    const known = call.current.inputResponses
    // The client may have answered already: it has made the same call before, and the server uses the same name again.
    if (name !== undefined && known !== undefined && Object.hasOwn(known, name)) return this.#reply(call, known)
    if (call.asked.size > 1) return
    this.#connection.run(Effect.andThen(
      Effect.sleep(gather),
      Effect.sync(() => {
        if (call.asked.size > 0) this.#tell(call, inputRequired)
      })
    ))
  }

  #lacks(call: LaneCall, requiredCapabilities: object): void {
    const message =
      "The server needs a client capability that the request does not declare; see data.requiredCapabilities"
    const error = { code: Modern.codes.missingCapability, message, data: { requiredCapabilities } }
    this.#abort(call, ended("error", error), message)
  }

  #heard({ method, params, progressToken, text }: JsonRpc.Notification): void {
    const size = text.length
    switch (method) {
      case "notifications/progress":
        return this.#tell(this.#unanswered.get(Number(progressToken)), {
          _tag: "Notification",
          kind: "progress",
          method,
          params,
          size
        })
      case "notifications/message":
        return this.#tell(this.#owner(), { _tag: "Notification", kind: "log", method, params, size })
      case "notifications/cancelled":
        return this.#takenBack(Json.field(params, "requestId"))
    }
    const subscription = Json.at(params, "_meta", Modern.metaKeys.subscriptionId)
    if (this.#dialect?.isStateful !== true && subscription !== undefined) {
      const call = this.#unanswered.get(Number(subscription))
      this.#tell(call, { _tag: "Notification", kind: "subscription", method, params, size })
    } else if (method.endsWith("/list_changed") || method === "notifications/resources/updated") {
      const uri = Json.field(params, "uri")
      this.#options.changed({ method, uri: typeof uri === "string" ? uri : undefined, params })
    }
  }

  /** The server has cancelled this question. */
  #takenBack(taken: unknown): void {
    for (const { asked } of this.#calls) {
      for (const [key, { id }] of asked) {
        if (id !== undefined && Json.stringify(id) === Json.stringify(taken)) asked.delete(key)
      }
    }
  }
}

/** A key for a question without a name. It differs from all names that the server has used for this call. */
const freeKey = (call: LaneCall, method: string): string => {
  const key = `${method.split("/")[0] ?? ""}-${++call.unnamed}`
  return call.asked.has(key) ? freeKey(call, method) : key
}

const ended = (member: Ended["member"], value: unknown): Ended => ({ _tag: "Ended", member, value })

const failure = (message: string): Ended => ended("error", { code: JsonRpc.codes.internal, message })

const inputRequired = { _tag: "InputRequired" } as const
