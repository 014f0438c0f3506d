/**
 * The calls of one lane: sends them to the server, and finds the call that each message of the server belongs to.
 *
 * Each call has its own number towards the server, because callers choose their ids independently. A question that a
 * stateful server asks during a call is kept until the call's client has answered it.
 *
 * A question or a log message of a stateful server belongs to the call that holds the lane exclusively, or to the only
 * running call. After a call that was cancelled without an answer it may belong to that call, so the gateway refuses
 * it. A question that the server asks by itself, such as for the roots at its start, looks like one of the running
 * call. So that call's client answers it.
 */
import type { Clock } from "effect"
import { Effect } from "effect"
import type { Dialect } from "../protocol/Dialect.ts"
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import * as Modern from "../protocol/Modern.ts"
import * as ParamHeaders from "../protocol/ParamHeaders.ts"
import type { GatewayMetrics } from "../telemetry/GatewayMetrics.ts"
import { CallEvents, render, Room } from "./CallEvents.ts"
import type { Ended, Raw } from "./CallEvents.ts"
import type { Handshake, InputRequest, Options, RunningCall } from "./Lane.ts"

/** The parts of a lane that its calls need. */
export interface Connection {
  /** Sends one message, after all earlier ones. */
  readonly write: (message: JsonRpc.Message) => void
  /** True if the server leaves so many messages unread that the gateway should not read from it. */
  readonly isBehind: () => boolean
  /** Starts an effect in the background. */
  readonly run: (effect: Effect.Effect<unknown>) => void
  readonly clock: Clock.Clock
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
  /** The id of the call towards the server. */
  number: number
  readonly events: CallEvents
  /** The server's questions without an answer, by key. */
  readonly asked: Map<string, Asked>
  /** The number of questions that came without a name. */
  unnamed: number
}

/** Milliseconds to wait for further questions, so that the client gets them together. */
const gather = 20
/** The most cancelled calls without an answer that are remembered. */
const maxSuspects = 1000

export class LaneCalls {
  readonly #connection: Connection
  readonly #options: Options
  readonly #metrics: GatewayMetrics
  readonly #calls = new Set<LaneCall>()
  /** The calls that the server has not answered, by number. */
  readonly #unanswered = new Map<number, LaneCall>()
  /** The gateway's own requests, by number. */
  readonly #own = new Map<number, (answer: JsonRpc.Response) => void>()
  /** Cancelled calls that the server has not answered, by number. The server may still send messages for them. */
  readonly #suspects = new Set<number>()
  readonly room = new Room(() => this.#connection.isBehind() || [...this.#calls].some(({ events }) => events.isFull()))
  #handshake: Handshake | undefined
  #dialect: Dialect | undefined
  /** The log level that the gateway has set at the server. */
  #level: string | undefined
  #over: string | undefined
  #lastNumber = 0
  #requests = 0
  #errors = 0

  constructor(connection: Connection, options: Options, metrics: GatewayMetrics) {
    this.#connection = connection
    this.#options = options
    this.#metrics = metrics
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
   * True if the gateway can no longer tell which call a message belongs to, and there may be such messages: the server
   * has asked clients before, or has a log level.
   */
  isSpoilt(): boolean {
    return this.#suspects.size > 0 && (this.#options.asks.asked || this.#level !== undefined)
  }

  get over(): boolean {
    return this.#over !== undefined
  }

  /** Ends all calls. */
  end(reason: string): void {
    if (this.#over !== undefined) return
    this.#over = reason
    for (const call of this.#calls) this.#settle(call, failure(reason), "error")
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
    const call: LaneCall = {
      current,
      exclusive,
      release,
      startedAt: this.#connection.clock.currentTimeMillisUnsafe(),
      number: 0,
      events: new CallEvents(this.#options.limits),
      asked: new Map(),
      unnamed: 0
    }
    this.#calls.add(call)
    if (this.#over === undefined) this.#send(call)
    else this.#settle(call, failure(this.#over), "error")
    return {
      take: call.events.take((event) => render(call.current, call.asked.size, event), this.room),
      inputRequests: () => [...call.asked.values()].map(({ request }) => request),
      park: () => {
        call.events.park()
        this.room.announce()
      },
      resume: (next) => {
        call.current = next
        call.events.resume()
        if (call.events.over) return
        this.#reply(call, next.inputResponses ?? {})
        if (call.asked.size > 0) call.events.push(inputRequired)
      },
      cancel: (reason) => this.#abort(call, failure(reason), reason),
      isOver: () => call.events.over
    }
  }

  /** Sends a call under a new number. */
  #send(call: LaneCall): void {
    const { current } = call
    const { method } = current.request
    const level = current.logLevel
    if (level !== undefined && level !== this.#level && this.#dialect?.isStateful === true && this.#logs()) {
      this.#level = level
      this.#ask("logging/setLevel", { level }, () => undefined)
    }
    call.number = ++this.#lastNumber
    this.#unanswered.set(call.number, call)
    const params = this.#dialect?.params(current, call.number) ?? current.request.params
    this.#connection.write(JsonRpc.request(call.number, method, params))
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
    if (visits.includes(false)) this.#settle(call, failure("the client declined to visit the page"), "error")
    else if (call.asked.size === 0) this.#send(call)
  }

  /** Ends a call before its server has answered it. */
  #abort(call: LaneCall, end: Ended, reason: string): void {
    if (call.events.over) return
    if (this.#unanswered.has(call.number)) {
      this.#connection.write(JsonRpc.cancellation(call.number, reason))
      if (this.#dialect?.isStateful === true && this.#suspects.size < maxSuspects) this.#suspects.add(call.number)
    }
    this.#settle(call, end, "error")
  }

  #settle(call: LaneCall, end: Ended, outcome: "ok" | "error"): void {
    if (call.events.over) return
    call.events.push(end)
    for (const { id } of call.asked.values()) {
      if (id !== undefined && this.#over === undefined) this.#refuse(id, "The call of this request has ended")
    }
    call.asked.clear()
    this.#calls.delete(call)
    this.#unanswered.delete(call.number)
    if (outcome === "error") this.#errors++
    const millis = this.#connection.clock.currentTimeMillisUnsafe() - call.startedAt
    this.#metrics.request(call.current.request.method, outcome, millis)
    this.#connection.run(call.release)
    this.room.announce()
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
    return !this.room.isFull()
  }

  /** The call of a message that does not name its call. `undefined` if the call is uncertain. */
  #owner(): LaneCall | undefined {
    if (this.#suspects.size > 0) return undefined
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
    this.#suspects.delete(number)
    const call = this.#unanswered.get(number)
    if (call === undefined || this.#dialect === undefined) return
    const { method } = call.current.request
    if (!failed) {
      if (method === "tools/list") ParamHeaders.note(this.#options.paramHeaders, answer)
      const value = this.#dialect.result(method, result, this.#handshake?.serverInfo)
      return this.#settle(call, ended("result", value, 200), "ok")
    }
    if (this.#dialect.isStateful && JsonRpc.codeOf(error) === Modern.urlElicitationRequired) {
      return this.#sentToPages(call, error)
    }
    const mapped = this.#dialect.error(error)
    this.#settle(call, ended("error", mapped, statusOf(JsonRpc.codeOf(mapped))), "error")
  }

  /** A server of revision 2025-11-25 wants the client to visit pages first, and to send the call again after that. */
  #sentToPages(call: LaneCall, error: unknown): void {
    this.#unanswered.delete(call.number)
    const missing = Modern.missing(call.current.client.capabilities, "elicitation/create", { mode: "url" })
    if (missing !== undefined) return this.#lacks(call, missing)
    const pages = Json.at(error, "data", "elicitations")
    const visits = Array.isArray(pages) ? pages.filter(Json.isObject) : []
    if (visits.length === 0) return this.#settle(call, ended("error", Modern.mappedError(error), 200), "error")
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
    this.#options.asks.asked = true
    const call = this.#owner()
    if (call === undefined || !Modern.mayRequireInput.includes(call.current.request.method)) {
      this.#refuse(id, "The gateway cannot tell which call this request belongs to")
      // The question may be of the cancelled call or of the running one. The gateway can never know, so it ends the
      // running call, and the process takes no further calls.
      if (this.#suspects.size === 0) return
      for (const other of this.#calls) {
        if (other.exclusive) this.#abort(other, failure(unattributable), unattributable)
      }
      return
    }
    const missing = Modern.missing(call.current.client.capabilities, method, params)
    if (missing !== undefined) {
      this.#refuse(id, "The client lacks the capability for this request", JsonRpc.codes.methodNotFound)
      return this.#lacks(call, missing)
    }
    this.#putToClient(call, method, params, id, typeof id === "string" ? id : undefined)
  }

  /**
   * Passes a question of the server to the call's client. Its key is the server's name for it, or a name that the
   * gateway makes.
   */
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
        if (call.asked.size > 0) call.events.push(inputRequired)
      })
    ))
  }

  #lacks(call: LaneCall, requiredCapabilities: object): void {
    const message =
      "The server needs a client capability that the request does not declare; see data.requiredCapabilities"
    const error = { code: Modern.codes.missingCapability, message, data: { requiredCapabilities } }
    this.#abort(call, ended("error", error, 400), message)
  }

  #heard({ method, params, progressToken, text }: JsonRpc.Notification): void {
    const raw = (kind: Raw["kind"], level = 0): Raw => ({ _tag: "Raw", kind, method, params, size: text.length, level })
    switch (method) {
      case "notifications/progress":
        this.#unanswered.get(Number(progressToken))?.events.push(raw("progress"))
        return
      case "notifications/message":
        this.#owner()?.events.push(raw("log", Modern.logLevels.indexOf(String(Json.field(params, "level")))))
        return
      case "notifications/cancelled":
        return this.#takenBack(Json.field(params, "requestId"))
    }
    const subscription = Json.at(params, "_meta", Modern.metaKeys.subscriptionId)
    if (this.#dialect?.isStateful !== true && subscription !== undefined) {
      this.#unanswered.get(Number(subscription))?.events.push(raw("subscription"))
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

const unattributable =
  "the server asked for input, and the gateway cannot tell whether for this call or for a cancelled earlier one; try again"

const ended = (member: "result" | "error", value: unknown, status: number): Ended => ({
  _tag: "Ended",
  member,
  value,
  status
})

const failure = (message: string): Ended => ended("error", { code: JsonRpc.codes.internal, message }, 200)

const inputRequired = { _tag: "InputRequired" } as const

const statusOf = (code: number): number =>
  code === JsonRpc.codes.methodNotFound ? 404 : code === Modern.codes.missingCapability ? 400 : 200
