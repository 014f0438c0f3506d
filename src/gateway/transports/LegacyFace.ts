/**
 * Makes a server of revision 2026-07-28 look like one of an earlier revision: a `Transport` over the server's `Transport`, for
 * the session of one legacy client.
 *
 * The server has no sessions, so the face keeps the session's data: the client's info and capabilities, which each request to the
 * server repeats; its log level; and its subscriptions. If the server answers that it needs input, the face asks the client with
 * a legacy request. Then it repeats the call with the answers (basic/patterns/mrtr in the specification).
 */
import type { Scope } from "effect"
import { Effect, Fiber } from "effect"
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import * as Modern from "../protocol/Modern.ts"
import * as LegacyForm from "./LegacyForm.ts"
import { lists, Subscriptions } from "./Subscriptions.ts"
import type { BackendFailed, Receiver, Transport } from "./Transport.ts"

/** How often the server may ask for input during one call. */
const maxRounds = 32
/** The wait before a call is repeated if the server asked only for the repetition, in milliseconds. */
const pause = 250

/** A client's request without an answer. */
interface Call {
  readonly id: JsonRpc.Id
  readonly method: string
  /** The parameters, as the client sent them. */
  readonly params: Json.JsonObject
  rounds: number
  /** Cancels the request to the server, or the questions to the client, that the call waits for. */
  stop: (reason: string) => void
}

/** The requests to one end of the conversation that have no answer yet. */
class Asked {
  readonly #send: (message: JsonRpc.Message) => void
  readonly #waiting = new Map<number, (answer: JsonRpc.Response) => void>()
  #last = 0

  constructor(send: (message: JsonRpc.Message) => void) {
    this.#send = send
  }

  /** Sends a request and returns its number. */
  ask(method: string, params: Json.JsonObject, answered: (answer: JsonRpc.Response) => void): number {
    const number = ++this.#last
    this.expect(number, answered)
    this.#send(JsonRpc.request(number, method, params))
    return number
  }

  /** Waits for an answer to a request, or for another one. */
  expect(number: number, answered: (answer: JsonRpc.Response) => void): void {
    this.#waiting.set(number, answered)
  }

  /** Takes the answer to a request. */
  answered(answer: JsonRpc.Response): void {
    const number = Json.numberOf(answer.id)
    const answered = this.#waiting.get(number)
    this.#waiting.delete(number)
    answered?.(answer)
  }

  /** Cancels a request. A no-op once it has its answer. */
  cancel(number: number, reason: string): void {
    if (this.#waiting.delete(number)) this.#send(JsonRpc.cancellation(number, reason))
  }
}

export interface LegacyFace extends Transport {
  /** Runs while the client reads a GET stream. */
  readonly listening: Effect.Effect<void, never, Scope.Scope>
}

/**
 * `of`: the face of a server, or of the gateway's own lanes (`sessions/LightSession`). Lanes keep a call that waits for input until it is
 * cancelled, and answer it again if it ends before. A listen keeps a lane busy, so there is one only while `listening` runs.
 */
export const make = Effect.fnUntraced(function*<R>(
  start: Effect.Effect<Transport, BackendFailed, R | Scope.Scope>,
  of: "server" | "lanes" = "server"
): Effect.fn.Return<LegacyFace, BackendFailed, R | Scope.Scope> {
  const server = yield* start
  const scope = yield* Effect.scope
  const run = Effect.runForkWith(yield* Effect.context<never>())
  const face = new Face(
    (message) => {
      if (!server.offer(message)) run(server.send(message))
    },
    (millis, what) => void Fiber.runIn(run(Effect.delay(Effect.sync(what), millis)), scope),
    of === "lanes"
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
    send: (message) => Effect.sync(() => face.fromClient(message)),
    listening: Effect.acquireRelease(
      Effect.sync(() => face.addListener(1)),
      () => Effect.sync(() => face.addListener(-1))
    )
  }
})

/** The conversation of one client and one server. Synchronous: each message is handled before the next one arrives. */
class Face {
  /** Receives the messages for the client. */
  client: Receiver | undefined
  readonly #toServer: (message: JsonRpc.Message) => void
  readonly #later: (millis: number, what: () => void) => void
  readonly #server: Asked
  readonly #questions = new Asked((message) => this.#toClient(message))
  readonly #subscriptions: Subscriptions
  /** The calls without an answer, by the client's id. */
  readonly #calls = new Map<JsonRpc.IdKey, Call>()
  #who: Pick<Modern.Client, "info" | "capabilities"> = { info: {}, capabilities: {} }
  /** The capabilities of the server. */
  #can: unknown
  #level: string | undefined
  /** False once the client has no room for more messages. `fromServer` sets it anew. */
  #roomy = true
  readonly #isOfLanes: boolean
  /** How many GET streams the client reads. The face of a server counts one more, so that there is always a listen. */
  #listeners: number

  constructor(
    toServer: (message: JsonRpc.Message) => void,
    later: (millis: number, what: () => void) => void,
    isOfLanes: boolean
  ) {
    this.#isOfLanes = isOfLanes
    this.#listeners = isOfLanes ? 0 : 1
    this.#toServer = toServer
    this.#later = later
    this.#server = new Asked(toServer)
    this.#subscriptions = new Subscriptions({
      open: (notifications) => this.#listen(notifications),
      cancel: (number) => this.#server.cancel(number, "the session's subscriptions have changed"),
      tell: (method, params) => this.#toClient(JsonRpc.notification(method, params)),
      after: later
    }, !isOfLanes)
  }

  /** Adds a listener, or removes one. */
  addListener(change: 1 | -1): void {
    const hadOne = this.#listeners > 0
    this.#listeners += change
    const hasOne = this.#listeners > 0
    if (hasOne !== hadOne) this.#subscriptions.setHeard(hasOne)
  }

  #toClient(message: JsonRpc.Message): void {
    if (this.client !== undefined) this.#roomy = this.client.receive(message)
  }

  #refuse(id: JsonRpc.Id, code: number, message: string): void {
    this.#toClient(JsonRpc.error(id, code, message))
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
        return this.#questions.answered(message)
      case "Notification":
        this.#cancelled(JsonRpc.cancelledId(message))
        if (message.method === "notifications/initialized") {
          this.#subscriptions.start(lists.filter((list) => Json.at(this.#can, list, "listChanged") === true))
        }
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
    const call: Call = { id, method, params, rounds: 0, stop: () => {} }
    this.#calls.set(JsonRpc.idKey(id), call)
    this.#begin(call, {})
  }

  #unknownMethod(id: JsonRpc.Id): void {
    this.#refuse(id, JsonRpc.codes.methodNotFound, "Method not found")
  }

  #invalid(id: JsonRpc.Id, wrong: string): void {
    this.#refuse(id, JsonRpc.codes.invalidParams, `Invalid params: ${wrong}`)
  }

  #setLevel(id: JsonRpc.Id, wanted: unknown): void {
    if (Json.field(this.#can, "logging") === undefined) return this.#unknownMethod(id)
    if (typeof wanted !== "string" || !Modern.logLevels.includes(wanted)) {
      return this.#invalid(id, `level must be one of ${Modern.logLevels.join(", ")}`)
    }
    this.#level = wanted
    this.#toClient(JsonRpc.result(id, {}))
  }

  #subscribe(id: JsonRpc.Id, wanted: boolean, uri: unknown): void {
    if (Json.at(this.#can, "resources", "subscribe") !== true) return this.#unknownMethod(id)
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
    const params = { ...call.params, ...again, _meta: this.#meta(call.params["_meta"]) }
    const { stop } = call
    const number = this.#server.ask(call.method, params, (answer) => {
      stop("the client has sent the call again")
      this.#settled(call, number, answer)
    })
    // Lanes have the input only once they have taken this request. Until then the call waits under its earlier number.
    call.stop = (reason) => {
      this.#server.cancel(number, reason)
      stop(reason)
    }
  }

  #drop(call: Call, reason: string): void {
    this.#calls.delete(JsonRpc.idKey(call.id))
    call.stop(reason)
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
    this.#server.ask("server/discover", { _meta: this.#meta({}) }, (answer) => this.#discovered(message, answer))
  }

  #discovered(initialize: JsonRpc.Request, { error, failed, result }: JsonRpc.Response): void {
    const { id } = initialize
    if (failed) return this.#toClient(JsonRpc.failure(id, error))
    if (!LegacyForm.isSupported(result)) {
      return this.#refuse(id, JsonRpc.codes.internal, `The back end does not speak revision ${Modern.version}`)
    }
    this.#can = Json.field(result, "capabilities")
    this.#toClient(JsonRpc.result(id, LegacyForm.initializeResult(result, LegacyForm.versionFor(initialize))))
  }

  // ---------------------------------------------------------------------------
  // From the server
  // ---------------------------------------------------------------------------

  /** Takes a message of the server. False if the client has no room for more. */
  fromServer(message: JsonRpc.Message): boolean {
    this.#roomy = true
    switch (message._tag) {
      case "Response":
        this.#server.answered(message)
        break
      case "Notification":
        this.#heard(message)
        break
      case "Request":
        // Servers of revision 2026-07-28 send no requests.
        this.#toServer(JsonRpc.error(message.id, JsonRpc.codes.methodNotFound, "Method not found"))
    }
    return this.#roomy
  }

  #settled(call: Call, number: number, { error, failed, result }: JsonRpc.Response): void {
    const type = Json.field(result, "resultType") ?? "complete"
    if (!failed && type === "input_required") return this.#ask(call, number, result)
    this.#calls.delete(JsonRpc.idKey(call.id))
    if (failed) return this.#toClient(JsonRpc.failure(call.id, error))
    if (type !== "complete") {
      const what = `The back end sent a result of the unknown type ${Json.stringify(type)}`
      return this.#refuse(call.id, JsonRpc.codes.internal, what)
    }
    this.#toClient(JsonRpc.result(call.id, LegacyForm.legacyResult(call.method, result)))
  }

  /** Opens a listen and returns its number. */
  #listen(notifications: Json.JsonObject): number {
    const number = this.#server.ask("subscriptions/listen", { _meta: this.#meta({}), notifications }, ({ error }) => {
      const why = Json.textOf(Json.field(error, "message") ?? streamEnded)
      this.#subscriptions.ended(number, why, JsonRpc.codeOf(error) !== JsonRpc.codes.methodNotFound)
    })
    return number
  }

  #heard(message: JsonRpc.Notification): void {
    const { method, params } = message
    if (method === "notifications/cancelled") {
      const number = Number(Json.textOf(Json.field(params, "requestId")))
      return this.#server.answered(JsonRpc.error(number, JsonRpc.codes.internal, streamEnded))
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

  /** Asks the client for all input that a call needs before it can continue. `number` is that of the request to the server. */
  #ask(call: Call, number: number, result: unknown): void {
    if (this.#isOfLanes) {
      this.#server.expect(number, (answer) => {
        call.stop("the call has ended")
        this.#settled(call, number, answer)
      })
    }
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
    const responses = new Map<string, unknown>()
    const numbers = questions.map(({ key, method, params }) =>
      this.#questions.ask(method, params, ({ error, failed, result }) => {
        if (failed && method !== "elicitation/create") {
          return this.#fail(call, `the client could not answer ${method}: ${Json.stringify(error)}`)
        }
        // An error means that the client could not show the form. The answer is `cancel`, because the user did not decline.
        responses.set(key, failed ? { action: "cancel" } : result)
        if (responses.size === questions.length) {
          this.#begin(call, { inputResponses: Object.fromEntries(responses), requestState })
        }
      })
    )
    const { stop } = call
    call.stop = (reason) => {
      numbers.forEach((number) => this.#questions.cancel(number, reason))
      stop(reason)
    }
  }
}

/** The reason for the end of a listen, if the server gives none. */
const streamEnded = "the server ended the stream"
