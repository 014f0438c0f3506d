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
import { Deferred, Effect } from "effect"
import * as Dialect from "../protocol/Dialect.ts"
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import * as Modern from "../protocol/Modern.ts"
import * as RequestHeaders from "../protocol/RequestHeaders.ts"
import type { RequestMetrics } from "../telemetry/GatewayMetrics.ts"
import type { BackendFailed, Transport } from "../transports/Transport.ts"
import type { Handshake } from "./Handshake.ts"
import type { Background, Entry, Figures, Timeouts } from "./InFlight.ts"
import { InFlight } from "./InFlight.ts"
import type * as Mailbox from "./Mailbox.ts"
import { Mailboxes } from "./Mailbox.ts"
import type { Requests } from "./PooledConnection.ts"
import { Questions } from "./Questions.ts"

export interface Options extends Timeouts {
  readonly limits: Mailbox.Limits
  readonly changed: (change: Change) => void
  /** Called when the server gave a call no answer, with the reason. */
  readonly unanswered: (reason: string) => void
  readonly paramHeaders: RequestHeaders.ParamHeaders
}

/** A change that the server reports and that belongs to no call. */
export interface Change {
  readonly method: string
  readonly uri: string | undefined
  readonly params: unknown
}

/** A call on a lane, until it is over. */
export interface RunningCall {
  /** The client's newest request for this call. */
  readonly call: () => Modern.Call
  /**
   * Reads the events of the call, in place of an earlier reader. The first `take` waits at most for `streamAfter`. The last event is
   * `Ended`.
   */
  readonly read: () => Mailbox.Reader<Queued>
  /** The questions that are not answered yet. */
  readonly inputRequests: () => ReadonlyArray<Modern.InputRequest>
  /** Parks the call: without a reader, its notifications are kept only within limits. */
  readonly park: () => void
  /** Continues the call for another request of the client, which carries answers by key. */
  readonly resume: (call: Modern.Call) => void
  /** Ends the call with this result, and tells the server why. No-op once the call is over. */
  readonly complete: (result: Json.JsonObject, reason: string) => void
  /** Ends the call, and tells the server why. Without a reader, drops its events. */
  readonly cancel: (reason: string) => void
  readonly isOver: () => boolean
}

type Kind = "progress" | "log" | "subscription" | "other"

/**
 * A message for the client of a call. The client's ids are added when the client takes the message, because a parked call continues under
 * another id.
 */
export type Queued =
  /** The server waits for the client's answers to its questions. */
  | { readonly _tag: "InputRequired" }
  /** The call has no answer after `streamAfter`, so its client gets a stream. */
  | { readonly _tag: "StreamDue" }
  /** A notification. `kind` decides whether the client gets it, and in which form. */
  | {
    readonly _tag: "Notification"
    readonly kind: Kind
    readonly method: string
    readonly params: unknown
  }
  | Ended

export interface Ended {
  readonly _tag: "Ended"
  readonly member: "result" | "error"
  readonly value: unknown
  /** True if there is no answer because the back end failed. */
  readonly isOfBackend?: boolean
}

interface LaneCall extends Entry {
  /** The client's newest request for this call. */
  current: Modern.Call
  readonly exclusive: boolean
  /** The id of the call towards the server. */
  number: number
  readonly mailbox: Mailbox.Mailbox<Queued>
  readonly questions: Questions
}

/** Milliseconds to wait for further questions, so that the client gets them together. */
const gather = 20
/** If a server leaves more messages than this unread, the gateway stops reading from it. */
const maxUnread = 1000

export class LaneCalls implements Requests {
  /** Completes when the lane takes no further calls: it has ended, or is about to. */
  readonly retired = Deferred.makeUnsafe<void>()
  /**
   * True if the lane must not be used again. A call that held the lane exclusively was cancelled, and the server has not answered it: later
   * messages of the server may still belong to it.
   */
  isSpoilt = false
  /** Set once the handshake is done. Before that, there are no calls. */
  handshake: Handshake | undefined
  readonly #server: Transport
  readonly #background: Background
  readonly #options: Options
  readonly #metrics: RequestMetrics
  readonly #inFlight: InFlight<LaneCall>
  /** The calls that the server has not answered, by number. */
  readonly #unanswered = new Map<number, LaneCall>()
  /** The answers to the gateway's own requests, by number. */
  readonly #own = new Map<number, Deferred.Deferred<JsonRpc.Response>>()
  readonly #mailboxes: Mailboxes<Queued>
  /** The log level that the gateway has set at the server. */
  #level: string | undefined
  /** The error of every call once the lane has ended. */
  #over: Ended | undefined
  #lastNumber = 0
  /** The number of messages that wait for the server to read. */
  #unread = 0

  constructor(server: Transport, background: Background, options: Options, metrics: RequestMetrics) {
    this.#server = server
    this.#background = background
    this.#options = options
    this.#metrics = metrics
    this.#mailboxes = new Mailboxes(options.limits)
    this.#inFlight = new InFlight(background, metrics, options, {
      stream: ({ mailbox }) => this.#mailboxes.push(mailbox, { _tag: "StreamDue" }, 0),
      timeOut: (call, reason) => this.#abort(call, failure(reason), reason)
    })
  }

  get #dialect(): Dialect.Dialect {
    return this.handshake?.era === "legacy" ? Dialect.legacy : Dialect.modern
  }

  activity(): Figures {
    return this.#inFlight.figures()
  }

  /** Ends all calls. `cause` is set if the server has failed. */
  end(reason: string, cause?: BackendFailed): void {
    if (this.#over !== undefined) return
    this.#over = { ...failure(reason), isOfBackend: cause !== undefined }
    for (const call of this.#inFlight.entries()) this.#settle(call, this.#over)
    for (const answer of this.#own.values()) {
      Deferred.doneUnsafe(answer, Effect.succeed(JsonRpc.failure(null, this.#over.value)))
    }
    Deferred.doneUnsafe(this.retired, Effect.void)
  }

  /** Sends a request of the gateway's own, and returns the answer. */
  request(method: string, params: unknown): Effect.Effect<JsonRpc.Response> {
    return Effect.suspend(() => {
      if (this.#over !== undefined) return Effect.succeed(JsonRpc.failure(null, this.#over.value))
      const number = ++this.#lastNumber
      const answer = Deferred.makeUnsafe<JsonRpc.Response>()
      this.#own.set(number, answer)
      this.#write(JsonRpc.request(number, method, params))
      return Effect.ensuring(Deferred.await(answer), Effect.sync(() => this.#own.delete(number)))
    })
  }

  /** Sends a request of the gateway's own. The answer does not matter. */
  command(method: string, params: unknown): void {
    this.#background.run(this.request(method, params))
  }

  /** Sends a message to the server, after all earlier ones. */
  #write(message: JsonRpc.Message): void {
    if (this.#server.offer(message)) return
    this.#unread++
    this.#background.run(Effect.ensuring(
      this.#server.send(message),
      Effect.sync(() => {
        this.#unread--
        this.#mailboxes.announceRoom()
      })
    ))
  }

  // ---------------------------------------------------------------------------
  // From the client
  // ---------------------------------------------------------------------------

  /** Sends a call to the server. `release` runs once, when the call is over. */
  call(current: Modern.Call, exclusive: boolean, release: Effect.Effect<void>): RunningCall {
    const { method } = current.request
    const call: LaneCall = {
      current,
      method,
      ...this.#inFlight.times(method === "subscriptions/listen"),
      exclusive,
      release,
      number: 0,
      mailbox: this.#mailboxes.open(),
      questions: new Questions()
    }
    this.#inFlight.add(call)
    if (this.#over === undefined) this.#send(call)
    else this.#settle(call, this.#over)
    return {
      call: () => call.current,
      read: () => this.#mailboxes.read(call.mailbox),
      inputRequests: () => call.questions.requests(),
      park: () => this.#inFlight.stop(call),
      resume: (next) => {
        call.current = next
        this.#inFlight.restart(call)
        if (call.mailbox.ended) return
        this.#reply(call, next.inputResponses ?? {})
        if (call.questions.size > 0) this.#tell(call, inputRequired)
      },
      complete: (result, reason) => this.#abort(call, ended("result", result), reason),
      cancel: (reason) => {
        this.#abort(call, failure(reason), reason)
        if (call.mailbox.reader === undefined) this.#mailboxes.discard(call.mailbox)
      },
      isOver: () => call.mailbox.ended
    }
  }

  /** Sends a call under a new number. */
  #send(call: LaneCall): void {
    const { current } = call
    const level = current.logLevel
    const canLog = this.#dialect.isStateful && this.handshake?.capabilities["logging"] !== undefined
    if (level !== undefined && level !== this.#level && canLog) {
      this.#level = level
      this.command("logging/setLevel", { level })
    }
    call.number = ++this.#lastNumber
    this.#unanswered.set(call.number, call)
    this.#write(JsonRpc.request(call.number, call.method, this.#dialect.params(current, call.number)))
  }

  /** Sends the client's answers to the server. */
  #reply(call: LaneCall, responses: Json.JsonObject): void {
    const answers = call.questions.answer(responses)
    /** The answers to `#sentToPages`: such a question has no id. */
    const visits = answers.filter(({ id }) => id === undefined)
    for (const { id, response } of answers) {
      if (id !== undefined) this.#write(JsonRpc.result(id, response))
    }
    if (visits.length === 0) return
    // A client that declines to visit a page declines the whole call.
    if (visits.some(({ response }) => Json.field(response, "action") !== "accept")) {
      this.#settle(call, failure("the client declined to visit the page"))
    } else if (call.questions.size === 0) this.#send(call)
  }

  /** Ends a call before its server has answered it. */
  #abort(call: LaneCall, end: Ended, reason: string): void {
    if (call.mailbox.ended) return
    if (this.#unanswered.has(call.number)) {
      this.#write(JsonRpc.cancellation(call.number, reason))
      if (call.exclusive && this.#dialect.isStateful) this.isSpoilt = true
    }
    this.#settle(call, end)
  }

  #settle(call: LaneCall, end: Ended): void {
    if (call.mailbox.ended) return
    this.#mailboxes.push(call.mailbox, end, 0)
    this.#mailboxes.end(call.mailbox)
    for (const id of call.questions.clear()) {
      if (this.#over === undefined) this.#refuse(id, "The call of this request has ended")
    }
    this.#unanswered.delete(call.number)
    this.#inFlight.end(call, end.member === "error")
    this.#mailboxes.announceRoom()
  }

  // ---------------------------------------------------------------------------
  // From the server
  // ---------------------------------------------------------------------------

  receive(message: JsonRpc.Message, request?: JsonRpc.Id): boolean {
    if (message._tag === "Response") this.#answered(message)
    else if (message._tag === "Request") this.#asked(message, request)
    else this.#heard(message, request)
    return !this.#isFull()
  }

  garbage(): void {
    this.#metrics.garbage()
  }

  /** Waits until there is room for more messages of the server. */
  readonly room: Effect.Effect<void> = Effect.suspend(() => this.#mailboxes.room(this.#isFull))

  /** True if the server leaves messages unread, or clients leave events. */
  readonly #isFull = (): boolean => this.#unread > maxUnread || this.#mailboxes.congested()

  /** Passes an event to the client of a call, and restarts the timeout of the call. */
  #tell(call: LaneCall | undefined, event: Queued, size = 0): void {
    if (call === undefined || call.mailbox.ended) return
    this.#inFlight.progressed(call)
    this.#mailboxes.push(call.mailbox, event, size)
  }

  /**
   * The call of a message that does not name its call. `request` is the id of the request whose response holds it, if the transport knows
   * it. `undefined` if the call is uncertain.
   */
  #owner(request: JsonRpc.Id | undefined): LaneCall | undefined {
    const named = this.#unanswered.get(Json.numberOf(request))
    if (named !== undefined || this.isSpoilt) return named
    const calls = this.#inFlight.entries()
    return calls.find(({ exclusive }) => exclusive) ?? (calls.length === 1 ? calls[0] : undefined)
  }

  #answered(answer: JsonRpc.Response): void {
    const { error, failed, id, result, unanswered } = answer
    // The gateway's ids are numbers.
    const number = Json.numberOf(id)
    const own = this.#own.get(number)
    if (own !== undefined) return void Deferred.doneUnsafe(own, Effect.succeed(answer))
    const call = this.#unanswered.get(number)
    if (call === undefined) return
    if (!failed) {
      if (call.method === "tools/list") RequestHeaders.note(this.#options.paramHeaders, answer)
      return this.#settle(call, ended("result", this.#dialect.result(call.method, result, this.handshake?.serverInfo)))
    }
    if (this.#dialect.isStateful && JsonRpc.codeOf(error) === Modern.urlElicitationRequired) {
      return this.#sentToPages(call, error)
    }
    if (unanswered === true) this.#options.unanswered(Json.textOf(Json.field(error, "message")))
    this.#settle(call, { ...ended("error", this.#dialect.error(error)), isOfBackend: unanswered === true })
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
      this.#putToClient(call, undefined, "elicitation/create", { ...page, elicitationId: undefined })
    }
  }

  #refuse(id: JsonRpc.Id, message: string, code: number = JsonRpc.codes.internal): void {
    this.#write(JsonRpc.error(id, code, message))
  }

  #asked({ id, method, params }: JsonRpc.Request, request: JsonRpc.Id | undefined): void {
    if (method === "ping") return this.#write(JsonRpc.result(id, {}))
    if (!this.#dialect.isStateful || !Modern.inputMethods.includes(method)) {
      return this.#refuse(id, "Method not found", JsonRpc.codes.methodNotFound)
    }
    const call = this.#owner(request)
    if (call === undefined || !Modern.mayRequireInput.includes(call.method)) {
      return this.#refuse(id, "The gateway cannot tell which call this request belongs to")
    }
    const missing = Modern.missing(call.current.client.capabilities, method, params)
    if (missing !== undefined) {
      this.#refuse(id, "The client lacks the capability for this request", JsonRpc.codes.methodNotFound)
      return this.#lacks(call, missing)
    }
    this.#putToClient(call, id, method, params)
  }

  /** Passes a question of the server to the call's client. */
  #putToClient(call: LaneCall, id: JsonRpc.Id | undefined, method: string, params: unknown): void {
    call.questions.add(id, method, params)
    const known = call.current.inputResponses
    // The client may have answered already: it has made the same call before, and the server uses the same name again.
    if (typeof id === "string" && known !== undefined && Object.hasOwn(known, id)) return this.#reply(call, known)
    if (call.questions.size > 1) return
    this.#background.run(Effect.andThen(
      Effect.sleep(gather),
      Effect.sync(() => {
        if (call.questions.size > 0) this.#tell(call, inputRequired)
      })
    ))
  }

  /** Ends a call, because the server needs a capability that the call's client lacks. */
  #lacks(call: LaneCall, requiredCapabilities: object): void {
    const message =
      "The server needs a client capability that the request does not declare; see data.requiredCapabilities"
    const error = { code: Modern.codes.missingCapability, message, data: { requiredCapabilities } }
    this.#abort(call, ended("error", error), message)
  }

  #heard({ method, params, progressToken, text }: JsonRpc.Notification, request: JsonRpc.Id | undefined): void {
    const tell = (call: LaneCall | undefined, kind: Kind) =>
      this.#tell(call, { _tag: "Notification", kind, method, params }, text.length)
    if (method === "notifications/progress") return tell(this.#numbered(progressToken), "progress")
    if (method === "notifications/message") return tell(this.#owner(request), "log")
    if (method === "notifications/cancelled") {
      const taken = Json.field(params, "requestId")
      return this.#inFlight.entries().forEach(({ questions }) => questions.takeBack(taken))
    }
    const subscription = Json.at(params, "_meta", Modern.metaKeys.subscriptionId)
    if (!this.#dialect.isStateful && subscription !== undefined) {
      tell(this.#numbered(subscription), "subscription")
    } else if (method.endsWith("/list_changed") || method === "notifications/resources/updated") {
      const uri = Json.field(params, "uri")
      this.#options.changed({ method, uri: typeof uri === "string" ? uri : undefined, params })
    } else {
      // A notification of an extension.
      tell(this.#unanswered.get(Json.numberOf(request)), "other")
    }
  }

  /** The call with this number. A server may return the number as a string. */
  #numbered(number: unknown): LaneCall | undefined {
    return this.#unanswered.get(Number(Json.textOf(number)))
  }
}

const ended = (member: Ended["member"], value: unknown): Ended => ({ _tag: "Ended", member, value })

const failure = (message: string): Ended => ended("error", { code: JsonRpc.codes.internal, message })

const inputRequired = { _tag: "InputRequired" } as const
