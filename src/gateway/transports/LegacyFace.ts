/**
 * Makes a server of revision 2026-07-28 look like one of an earlier revision: a `Transport` over the server's `Transport`, for
 * the session of one legacy client.
 *
 * The server has no sessions, so the face keeps the session's data: the client's info and capabilities, which each request to the
 * server repeats; its log level; and its subscriptions. If the server answers that it needs input, the face asks the client with
 * a legacy request. Then it repeats the call with the answers (basic/patterns/mrtr in the specification).
 */
import type { Scope } from "effect"
import { Deferred, Effect, Fiber } from "effect"
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import * as Modern from "../protocol/Modern.ts"
import * as LegacyForm from "./LegacyForm.ts"
import { Subscriptions } from "./Subscriptions.ts"
import type { BackendFailed, Receiver, Transport } from "./Transport.ts"

/** How often the server may ask for input during one call. */
const maxRounds = 32
/** The wait before a call is repeated if the server asked only for the repetition, in milliseconds. */
const pause = 250

/** A client's request without an answer. It is in flight to the server, or waits for input. */
interface Call {
  readonly id: JsonRpc.Id
  readonly method: string
  /** The parameters, as the client sent them. */
  readonly params: Json.JsonObject
  /** The id of the request that is in flight to the server for this call. */
  number: number | undefined
  rounds: number
  /** The input that the call waits for. */
  input: Input | undefined
}

interface Input {
  /** The server's state, if it gave one. */
  readonly requestState: unknown
  readonly responses: Map<string, unknown>
  /** The questions that the client has not answered, by the id of the client's request. */
  readonly open: Map<string, LegacyForm.Question>
}

export const make = Effect.fnUntraced(function*<R>(
  start: Effect.Effect<Transport, BackendFailed, R | Scope.Scope>
): Effect.fn.Return<Transport, BackendFailed, R | Scope.Scope> {
  const server = yield* start
  const scope = yield* Effect.scope
  const run = Effect.runForkWith(yield* Effect.context<never>())
  const face = new Face(
    (message) => {
      if (!server.offer(message)) run(server.send(message))
    },
    (millis, what) => {
      const unlessEnded = Effect.sync(() => {
        if (!Deferred.isDoneUnsafe(server.ended)) what()
      })
      Fiber.runIn(run(Effect.delay(unlessEnded, millis)), scope)
    }
  )
  return {
    pid: server.pid,
    ended: server.ended,
    failed: server.failed,
    attach: (receiver) =>
      Effect.suspend(() => {
        face.client = receiver
        return server.attach({
          receive: (message) => face.fromServer(message),
          garbage: (text) => receiver.garbage(text),
          room: receiver.room
        })
      }),
    offer: (message) => {
      face.fromClient(message)
      return true
    },
    send: (message) => Effect.sync(() => face.fromClient(message))
  }
})

/** The conversation of one client and one server. Synchronous: each message is handled before the next one arrives. */
class Face {
  /** Receives the messages for the client. */
  client: Receiver | undefined
  readonly #toServer: (message: JsonRpc.Message) => void
  readonly #later: (millis: number, what: () => void) => void
  readonly #subscriptions: Subscriptions
  /** The calls without an answer, by the client's id. */
  readonly #calls = new Map<string, Call>()
  /** The client's `initialize`, until the server answers `server/discover`. */
  #discovering: { readonly number: number; readonly id: JsonRpc.Id; readonly version: string } | undefined
  #who = LegacyForm.unknownClient
  #abilities = LegacyForm.noAbilities
  #level: string | undefined
  #roomy = true
  #lastNumber = 0
  #lastInput = 0

  constructor(toServer: (message: JsonRpc.Message) => void, later: (millis: number, what: () => void) => void) {
    this.#toServer = toServer
    this.#later = later
    this.#subscriptions = new Subscriptions({
      open: (notifications) => this.#request("subscriptions/listen", { _meta: this.#meta({}), notifications }),
      cancel: (number) => toServer(JsonRpc.cancellation(number, "the session's subscriptions have changed")),
      tell: (method, params) => this.#toClient(JsonRpc.notification(method, params)),
      after: later
    })
  }

  #toClient(message: JsonRpc.Message): void {
    if (this.client !== undefined) this.#roomy = this.client.receive(message)
  }

  #refuse(id: JsonRpc.Id, code: number, message: string): void {
    this.#toClient(JsonRpc.error(id, code, message))
  }

  #request(method: string, params: Json.JsonObject): number {
    const number = ++this.#lastNumber
    this.#toServer(JsonRpc.request(number, method, params))
    return number
  }

  /** The `_meta` of a request to the server: the gateway's own keys, and all other keys that the client has set. */
  #meta(own: unknown): Json.JsonObject {
    return {
      ...Modern.withoutHopKeys(own),
      ...Modern.ownMeta(this.#who.info, this.#who.capabilities),
      [Modern.metaKeys.logLevel]: this.#level
    }
  }

  // ---------------------------------------------------------------------------
  // From the client
  // ---------------------------------------------------------------------------

  /** Takes a message of the client. */
  fromClient(message: JsonRpc.Message): void {
    switch (message._tag) {
      case "Request":
        return this.#requested(message)
      case "Response":
        return this.#answered(message)
      case "Notification":
        this.#cancelled(JsonRpc.cancelledId(message))
        if (message.method === "notifications/initialized") this.#subscriptions.start(this.#abilities.lists)
        // A server of revision 2026-07-28 knows no other notifications of a client.
    }
  }

  #requested(message: JsonRpc.Request): void {
    const { id, method, params = {} } = message
    switch (method) {
      case "initialize":
        return this.#initialize(message)
      case "ping":
        return this.#toClient(JsonRpc.result(id, {}))
      case "logging/setLevel":
        return this.#setLevel(id, Json.field(params, "level"))
      case "resources/subscribe":
      case "resources/unsubscribe":
        return this.#subscribe(id, method === "resources/subscribe", Json.field(params, "uri"))
    }
    if (Modern.removedMethods.includes(method)) return this.#unknownMethod(id)
    if (!Json.isObject(params)) return this.#invalid(id, "must be an object")
    const call: Call = { id, method, params, number: undefined, rounds: 0, input: undefined }
    this.#calls.set(JsonRpc.idKey(id), call)
    this.#begin(call, {})
  }

  #callWith(matches: (call: Call) => boolean): Call | undefined {
    return [...this.#calls.values()].find(matches)
  }

  #unknownMethod(id: JsonRpc.Id): void {
    this.#refuse(id, JsonRpc.codes.methodNotFound, "Method not found")
  }

  #invalid(id: JsonRpc.Id, wrong: string): void {
    this.#refuse(id, JsonRpc.codes.invalidParams, `Invalid params: ${wrong}`)
  }

  #setLevel(id: JsonRpc.Id, wanted: unknown): void {
    if (!this.#abilities.logging) return this.#unknownMethod(id)
    if (typeof wanted !== "string" || !Modern.logLevels.includes(wanted)) {
      return this.#invalid(id, `level must be one of ${Modern.logLevels.join(", ")}`)
    }
    this.#level = wanted
    this.#toClient(JsonRpc.result(id, {}))
  }

  #subscribe(id: JsonRpc.Id, wanted: boolean, uri: unknown): void {
    if (!this.#abilities.subscribe) return this.#unknownMethod(id)
    if (typeof uri !== "string") return this.#invalid(id, "uri must be a string")
    if (!wanted) {
      this.#subscriptions.remove(uri)
      return this.#toClient(JsonRpc.result(id, {}))
    }
    this.#subscriptions.add(uri, (refused) =>
      refused === undefined
        ? this.#toClient(JsonRpc.result(id, {}))
        : this.#refuse(id, JsonRpc.codes.invalidParams, `The subscription was refused: ${refused}`))
  }

  #cancelled(id: JsonRpc.Id | undefined): void {
    const call = id === undefined ? undefined : this.#calls.get(JsonRpc.idKey(id))
    if (call !== undefined) this.#drop(call, "the client has cancelled the request")
  }

  /** Sends a call to the server. `again` holds the input that the server asked for, if this repeats the call. */
  #begin(call: Call, again: Json.JsonObject): void {
    call.input = undefined
    call.number = this.#request(call.method, { ...call.params, ...again, _meta: this.#meta(call.params["_meta"]) })
  }

  /** Abandons a call: cancels its request to the server, or its questions to the client. */
  #drop(call: Call, reason: string): void {
    this.#calls.delete(JsonRpc.idKey(call.id))
    if (call.number !== undefined) this.#toServer(JsonRpc.cancellation(call.number, reason))
    for (const question of call.input?.open.keys() ?? []) this.#toClient(JsonRpc.cancellation(question, reason))
  }

  #fail(call: Call, message: string): void {
    this.#drop(call, message)
    this.#refuse(call.id, JsonRpc.codes.internal, message)
  }

  // ---------------------------------------------------------------------------
  // The handshake
  // ---------------------------------------------------------------------------

  #initialize(message: JsonRpc.Request): void {
    this.#who = LegacyForm.clientOf(message)
    const number = this.#request("server/discover", { _meta: this.#meta({}) })
    this.#discovering = { number, id: message.id, version: LegacyForm.versionFor(message) }
  }

  #discovered({ error, failed, result }: JsonRpc.Response, id: JsonRpc.Id, version: string): void {
    if (failed) return this.#toClient(JsonRpc.failure(id, error))
    const found = LegacyForm.abilitiesOf(result)
    if (found === undefined) {
      return this.#refuse(id, JsonRpc.codes.internal, `The back end does not speak revision ${Modern.version}`)
    }
    this.#abilities = found
    this.#toClient(JsonRpc.result(id, LegacyForm.initializeResult(result, version)))
  }

  // ---------------------------------------------------------------------------
  // From the server
  // ---------------------------------------------------------------------------

  /** Takes a message of the server. False if the client has no room for more. */
  fromServer(message: JsonRpc.Message): boolean {
    this.#roomy = true
    switch (message._tag) {
      case "Response":
        this.#settled(message)
        break
      case "Notification":
        this.#heard(message)
        break
      case "Request":
        // Servers of revision 2026-07-28 send no requests.
        this.#toServer(
          message.method === "ping"
            ? JsonRpc.result(message.id, {})
            : JsonRpc.error(message.id, JsonRpc.codes.methodNotFound, "Method not found")
        )
    }
    return this.#roomy
  }

  #settled(message: JsonRpc.Response): void {
    const { error, failed, result } = message
    const number = Json.numberOf(message.id)
    if (number === this.#discovering?.number) {
      const { id, version } = this.#discovering
      this.#discovering = undefined
      return this.#discovered(message, id, version)
    }
    if (this.#subscriptions.owns(number)) {
      const why = Json.textOf(Json.field(error, "message") ?? "the server ended the stream")
      return this.#subscriptions.ended(number, why, JsonRpc.codeOf(error) !== JsonRpc.codes.methodNotFound)
    }
    const call = this.#callWith((call) => call.number === number)
    if (call === undefined) return
    call.number = undefined
    const type = Json.field(result, "resultType") ?? "complete"
    if (!failed && type === "input_required") return this.#ask(call, result)
    this.#calls.delete(JsonRpc.idKey(call.id))
    if (failed) return this.#toClient(JsonRpc.failure(call.id, error))
    if (type !== "complete") {
      const what = `The back end sent a result of the unknown type ${Json.stringify(type)}`
      return this.#refuse(call.id, JsonRpc.codes.internal, what)
    }
    this.#toClient(JsonRpc.result(call.id, LegacyForm.legacyResult(call.method, result)))
  }

  #heard(message: JsonRpc.Notification): void {
    const { method, params } = message
    if (method === "notifications/cancelled") {
      return this.#subscriptions.ended(
        Number(Json.textOf(Json.field(params, "requestId"))),
        "the server ended the stream",
        true
      )
    }
    const subscription = Json.at(params, "_meta", Modern.metaKeys.subscriptionId)
    if (subscription === undefined) return this.#toClient(message)
    const number = Number(Json.textOf(subscription))
    if (method === "notifications/subscriptions/acknowledged") {
      return this.#subscriptions.acknowledged(number, Json.field(params, "notifications"))
    }
    if (!this.#subscriptions.hears(number, `${method} ${Json.textOf(Json.field(params, "uri"))}`)) return
    this.#toClient(JsonRpc.notification(method, Modern.withoutHop(params)))
  }

  // ---------------------------------------------------------------------------
  // Input
  // ---------------------------------------------------------------------------

  /** Asks the client for all input that a call needs before it can continue. */
  #ask(call: Call, result: unknown): void {
    if (++call.rounds > maxRounds) return this.#fail(call, `the server asked for input more than ${maxRounds} times`)
    const questions = LegacyForm.questionsOf(result)
    const requestState = Json.field(result, "requestState")
    if (questions.length === 0) {
      if (requestState === undefined) return this.#fail(call, "the server asked for input, but did not say for which")
      return this.#later(pause, () => {
        if (this.#calls.get(JsonRpc.idKey(call.id)) === call) this.#begin(call, { requestState })
      })
    }
    const wrong = questions.flatMap((question) => LegacyForm.unaskable(this.#who, question) ?? [])
    if (wrong[0] !== undefined) return this.#fail(call, wrong[0])
    const open = new Map(questions.map((question) => [`input-${++this.#lastInput}`, question]))
    call.input = { requestState, responses: new Map(), open }
    // The client may answer at once, so all questions are recorded before the first one is sent.
    for (const [id, { method, params }] of open) this.#toClient(JsonRpc.request(id, method, params))
  }

  #answered({ error, failed, id, result }: JsonRpc.Response): void {
    const name = Json.textOf(id)
    const call = this.#callWith(({ input }) => input?.open.has(name) === true)
    const question = call?.input?.open.get(name)
    if (call?.input === undefined || question === undefined) return
    const { open, requestState, responses } = call.input
    open.delete(name)
    if (failed && question.method !== "elicitation/create") {
      return this.#fail(call, `the client could not answer ${question.method}: ${Json.stringify(error)}`)
    }
    // An error means that the client could not show the form. The answer is `cancel`, because the user did not decline.
    responses.set(question.key, failed ? { action: "cancel" } : result)
    if (open.size === 0) this.#begin(call, { inputResponses: Object.fromEntries(responses), requestState })
  }
}
