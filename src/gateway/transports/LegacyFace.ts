/**
 * Makes a server of revision 2026-07-28 look like one of an earlier revision: a `Transport` over the server's `Transport`, for
 * the session of one legacy client.
 *
 * The server has no sessions, so the face keeps the session's data: the client's info and capabilities, which each request to the
 * server repeats; its log level; and its subscriptions. If the server answers that it needs input, the face asks the client with
 * a legacy request. Then it repeats the call with the answers (basic/patterns/mrtr in the specification).
 */
import type { Scope } from "effect"
import { Deferred, Effect, Fiber, Option } from "effect"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import * as JsonText from "../protocol/JsonText.ts"
import * as Modern from "../protocol/Modern.ts"
import type { BackendFailed } from "../sessions/GatewayErrors.ts"
import * as LegacyForm from "./LegacyForm.ts"
import * as Subscriptions from "./Subscriptions.ts"
import type { Receiver, Transport } from "./Transport.ts"

/** How often the server may ask for input during one call. */
const maxRounds = 32
/** The wait before a call is repeated if the server asked only for the repetition, in milliseconds. */
const pause = 250

/** A client's request that is in flight to the server or waits for input. */
interface Call {
  readonly id: JsonRpc.Id
  readonly method: string
  /** The JSON of the parameters, as the client sent it. */
  readonly params: string
  /** The id of the newest request to the server for this call. */
  number: number
  rounds: number
  input: Input | undefined
  over: boolean
}

/** The input that a call waits for. */
interface Input {
  /** The server's state as JSON, if it gave one. */
  readonly requestState: string | undefined
  readonly responses: Map<string, string>
  /** The ids of the questions that the client has not answered. */
  readonly open: Set<string>
}

interface Asked {
  readonly call: Call
  readonly key: string
  readonly method: string
}

export const make = Effect.fnUntraced(function*<R>(
  start: Effect.Effect<Transport, BackendFailed, R | Scope.Scope>
): Effect.fn.Return<Transport, BackendFailed, R | Scope.Scope> {
  const server = yield* start
  const scope = yield* Effect.scope
  const run = Effect.runForkWith(yield* Effect.context<never>())
  const face = new Face(
    (line) => {
      if (!server.offer(line)) run(server.send(line))
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
        return server.attach({ receive: (line) => face.fromServer(line), room: receiver.room })
      }),
    offer: (line) => {
      face.fromClient(line)
      return true
    },
    send: (line) => Effect.sync(() => face.fromClient(line))
  }
})

/** The conversation of one client and one server. Synchronous: each line is handled before the next one arrives. */
class Face {
  /** Receives the lines for the client. */
  client: Receiver | undefined
  readonly #write: (line: string) => void
  readonly #later: (millis: number, what: () => void) => void
  readonly #subscriptions: Subscriptions.Subscriptions
  /** The calls in flight to the server, by the id of their request. */
  readonly #calls = new Map<number, Call>()
  /** All calls without an answer, by the client's id. */
  readonly #byId = new Map<string, Call>()
  /** The questions that the client has not answered, by the id of the question. */
  readonly #asked = new Map<string, Asked>()
  /** The client's `initialize`, until the server answers `server/discover`. */
  #discovering: { readonly number: number; readonly id: JsonRpc.Id; readonly version: string } | undefined
  #who = LegacyForm.unknownClient
  #abilities = LegacyForm.noAbilities
  #level: string | undefined
  #roomy = true
  #lastNumber = 0
  #lastInput = 0

  constructor(write: (line: string) => void, later: (millis: number, what: () => void) => void) {
    this.#write = write
    this.#later = later
    this.#subscriptions = Subscriptions.make({
      open: (notifications) =>
        this.#request(
          "subscriptions/listen",
          JsonText.make([["_meta", this.#meta("{}")], ["notifications", JSON.stringify(notifications)]])
        ),
      cancel: (number) => this.#cancel(number, "the session's subscriptions have changed"),
      tell: (method, params) => this.#toClient(notification(method, params)),
      after: later
    })
  }

  #toServer(text: string): void {
    this.#write(JsonRpc.toLine(text))
  }

  #toClient(text: string): void {
    if (this.client !== undefined) this.#roomy = this.client.receive(text)
  }

  #answer(id: JsonRpc.Id, member: "result" | "error", value: string): void {
    this.#toClient(`{"jsonrpc":"2.0","id":${JSON.stringify(id)},"${member}":${value}}`)
  }

  #refuse(id: JsonRpc.Id, code: number, message: string): void {
    this.#toClient(JsonRpc.error(id, code, message))
  }

  #request(method: string, params: string): number {
    const number = ++this.#lastNumber
    this.#toServer(`{"jsonrpc":"2.0","id":${number},"method":${JSON.stringify(method)},"params":${params}}`)
    return number
  }

  #cancel(number: number, reason: string): void {
    this.#toServer(notification("notifications/cancelled", { requestId: number, reason }))
  }

  /** The `_meta` of a request to the server: the gateway's own keys, and all other keys that the client has set. */
  #meta(own: string): string {
    return JsonText.make([
      ...JsonText.members(Modern.withoutHopKeys(own)),
      ...JsonText.members(Modern.ownMeta(this.#who.info, this.#who.json)),
      ...(this.#level === undefined ? [] : [[Modern.metaKeys.logLevel, JSON.stringify(this.#level)] as const])
    ])
  }

  // ---------------------------------------------------------------------------
  // From the client
  // ---------------------------------------------------------------------------

  /** Takes a line of the client. */
  fromClient(line: string): void {
    const message = JsonRpc.read(line)
    switch (message?._tag) {
      case "Request":
        return this.#requested(message, line)
      case "Response":
        return this.#answered(message, line)
      case "Notification":
        this.#cancelled(JsonRpc.cancelledId(message))
        if (message.method === "notifications/initialized") this.#subscriptions.start(this.#abilities.lists)
        // A server of revision 2026-07-28 knows no other notifications of a client.
    }
  }

  #requested(message: JsonRpc.Request, line: string): void {
    const { id, method, params } = message
    switch (method) {
      case "initialize":
        return this.#initialize(message, line)
      case "ping":
        return this.#answer(id, "result", "{}")
      case "logging/setLevel":
        return this.#setLevel(id, JsonRpc.field(params, "level"))
      case "resources/subscribe":
      case "resources/unsubscribe":
        return this.#subscribe(id, method === "resources/subscribe", JsonRpc.field(params, "uri"))
    }
    if (Modern.removedMethods.includes(method)) return this.#refuse(id, Modern.codes.methodNotFound, "Method not found")
    const own = JsonText.member(line, "params") ?? "{}"
    if (!JsonText.isObject(own)) {
      return this.#refuse(id, Modern.codes.invalidParams, "Invalid params: must be an object")
    }
    const call: Call = { id, method, params: own, number: 0, rounds: 0, input: undefined, over: false }
    this.#byId.set(JsonRpc.idKey(id), call)
    this.#begin(call, {})
  }

  #setLevel(id: JsonRpc.Id, wanted: unknown): void {
    if (!this.#abilities.logging) return this.#refuse(id, Modern.codes.methodNotFound, "Method not found")
    if (typeof wanted !== "string" || !Modern.logLevels.includes(wanted)) {
      return this.#refuse(
        id,
        Modern.codes.invalidParams,
        `Invalid params: level must be one of ${Modern.logLevels.join(", ")}`
      )
    }
    this.#level = wanted
    this.#answer(id, "result", "{}")
  }

  #subscribe(id: JsonRpc.Id, wanted: boolean, uri: unknown): void {
    if (!this.#abilities.subscribe) return this.#refuse(id, Modern.codes.methodNotFound, "Method not found")
    if (typeof uri !== "string") {
      return this.#refuse(id, Modern.codes.invalidParams, "Invalid params: uri must be a string")
    }
    if (!wanted) {
      this.#subscriptions.remove(uri)
      return this.#answer(id, "result", "{}")
    }
    this.#subscriptions.add(uri, (refused) =>
      refused === undefined
        ? this.#answer(id, "result", "{}")
        : this.#refuse(id, Modern.codes.invalidParams, `The subscription was refused: ${refused}`))
  }

  #cancelled(id: JsonRpc.Id | undefined): void {
    const call = id === undefined ? undefined : this.#byId.get(JsonRpc.idKey(id))
    if (call !== undefined) this.#drop(call, "the client has cancelled the request")
  }

  /** Sends a call to the server. `again` holds the input that the server asked for, if this repeats the call. */
  #begin(call: Call, again: Readonly<Record<string, string | undefined>>): void {
    const params = JsonText.edit(call.params, {
      ...again,
      _meta: this.#meta(JsonText.member(call.params, "_meta") ?? "{}")
    })
    call.input = undefined
    call.number = this.#request(call.method, params)
    this.#calls.set(call.number, call)
  }

  /** Abandons a call: cancels its request to the server, or its questions to the client. */
  #drop(call: Call, reason: string): void {
    call.over = true
    this.#byId.delete(JsonRpc.idKey(call.id))
    if (this.#calls.delete(call.number)) this.#cancel(call.number, reason)
    for (const requestId of call.input?.open ?? []) {
      this.#asked.delete(requestId)
      this.#toClient(notification("notifications/cancelled", { requestId, reason }))
    }
  }

  #fail(call: Call, message: string): void {
    this.#drop(call, message)
    this.#refuse(call.id, JsonRpc.codes.internal, message)
  }

  // ---------------------------------------------------------------------------
  // The handshake
  // ---------------------------------------------------------------------------

  #initialize(message: JsonRpc.Request, line: string): void {
    this.#who = LegacyForm.clientOf(message, line)
    const number = this.#request("server/discover", JsonText.make([["_meta", this.#meta("{}")]]))
    this.#discovering = { number, id: message.id, version: LegacyForm.versionFor(message) }
  }

  #discovered(line: string, failed: boolean, id: JsonRpc.Id, version: string): void {
    if (failed) return this.#answer(id, "error", JsonText.member(line, "error") ?? "{}")
    const result = JsonText.member(line, "result") ?? "{}"
    const found = LegacyForm.abilitiesOf(result)
    if (found === undefined) {
      return this.#refuse(id, JsonRpc.codes.internal, `The back end does not speak revision ${Modern.version}`)
    }
    this.#abilities = found
    this.#answer(id, "result", LegacyForm.initializeResult(result, version))
  }

  // ---------------------------------------------------------------------------
  // From the server
  // ---------------------------------------------------------------------------

  /** Takes a line of the server. False if the client has no room for more. */
  fromServer(line: string): boolean {
    this.#roomy = true
    const json = Option.getOrUndefined(JsonRpc.parse(line))
    const message = JsonRpc.classify(json)
    switch (message?._tag) {
      case undefined: {
        const error = JsonRpc.errorForTooDeep(line)
        if (error !== undefined) return this.fromServer(error)
        // `Bridge` counts invalid lines, so it gets this one unchanged.
        this.#toClient(line)
        break
      }
      case "Response":
        this.#settled(message, json, line)
        break
      case "Notification":
        this.#heard(message, line)
        break
      case "Request":
        // Servers of revision 2026-07-28 send no requests.
        this.#toServer(
          message.method === "ping"
            ? `{"jsonrpc":"2.0","id":${JSON.stringify(message.id)},"result":{}}`
            : JsonRpc.error(message.id, Modern.codes.methodNotFound, "Method not found")
        )
    }
    return this.#roomy
  }

  #settled(
    { failed, id }: JsonRpc.Response,
    json: unknown,
    line: string
  ): void {
    const number = typeof id === "number" ? id : Number.NaN
    if (number === this.#discovering?.number) {
      const { id, version } = this.#discovering
      this.#discovering = undefined
      return this.#discovered(line, failed, id, version)
    }
    if (this.#subscriptions.owns(number)) {
      const error = JsonRpc.field(json, "error")
      const isUnknown = JsonRpc.field(error, "code") === Modern.codes.methodNotFound
      return this.#subscriptions.ended(
        number,
        String(JsonRpc.field(error, "message") ?? "the server ended the stream"),
        !isUnknown
      )
    }
    const call = this.#calls.get(number)
    if (call === undefined) return
    this.#calls.delete(number)
    const type = JsonRpc.field(JsonRpc.field(json, "result"), "resultType") ?? "complete"
    if (!failed && type === "input_required") return this.#ask(call, JsonRpc.field(json, "result"), line)
    this.#byId.delete(JsonRpc.idKey(call.id))
    call.over = true
    if (failed) return this.#answer(call.id, "error", JsonText.member(line, "error") ?? "{}")
    if (type !== "complete") {
      return this.#refuse(
        call.id,
        JsonRpc.codes.internal,
        `The back end sent a result of the unknown type ${JSON.stringify(type)}`
      )
    }
    this.#answer(call.id, "result", LegacyForm.legacyResult(call.method, JsonText.member(line, "result") ?? "{}"))
  }

  #heard(
    { method, params }: JsonRpc.Notification,
    line: string
  ): void {
    if (method === "notifications/cancelled") {
      return this.#subscriptions.ended(Number(JsonRpc.field(params, "requestId")), "the server ended the stream", true)
    }
    const subscription = JsonRpc.field(JsonRpc.field(params, "_meta"), Modern.metaKeys.subscriptionId)
    if (subscription === undefined) return this.#toClient(line)
    const number = Number(subscription)
    if (method === "notifications/subscriptions/acknowledged") {
      return this.#subscriptions.acknowledged(number, JsonRpc.field(params, "notifications"))
    }
    if (!this.#subscriptions.hears(number, `${method} ${String(JsonRpc.field(params, "uri"))}`)) return
    this.#toClient(JsonText.edit(line, { params: Modern.withoutHop(JsonText.member(line, "params") ?? "{}") }))
  }

  // ---------------------------------------------------------------------------
  // Input
  // ---------------------------------------------------------------------------

  /** Asks the client for all input that a call needs before it can continue. */
  #ask(call: Call, result: unknown, line: string): void {
    if (++call.rounds > maxRounds) return this.#fail(call, `the server asked for input more than ${maxRounds} times`)
    const text = JsonText.member(line, "result") ?? "{}"
    const given = JsonText.member(text, "inputRequests") ?? "{}"
    const requests = JsonText.isObject(given) ? JsonText.members(given) : []
    const requestState = JsonText.member(text, "requestState")
    if (requests.length === 0) {
      if (requestState === undefined) return this.#fail(call, "the server asked for input, but did not say for which")
      call.input = { requestState, responses: new Map(), open: new Set() }
      return this.#later(pause, () => {
        if (!call.over) this.#begin(call, { requestState })
      })
    }
    const questions = requests.map(([key, json]) =>
      LegacyForm.questionOf(key, json, JsonRpc.field(JsonRpc.field(result, "inputRequests"), key))
    )
    const wrong = questions.map((question) => LegacyForm.unaskable(this.#who, question)).find((why) =>
      why !== undefined
    )
    if (wrong !== undefined) return this.#fail(call, wrong)
    const input: Input = { requestState, responses: new Map(), open: new Set() }
    call.input = input
    const lines = questions.map(({ key, method, params }) => {
      const id = `input-${++this.#lastInput}`
      input.open.add(id)
      this.#asked.set(id, { call, key, method })
      return `{"jsonrpc":"2.0","id":"${id}","method":${JSON.stringify(method)},"params":${params}}`
    })
    for (const each of lines) this.#toClient(each)
  }

  #answered({ failed, id }: JsonRpc.Response, line: string): void {
    const question = this.#asked.get(String(id))
    if (question === undefined) return
    this.#asked.delete(String(id))
    const { call, key, method } = question
    const { input } = call
    if (input === undefined) return
    input.open.delete(String(id))
    if (failed && method !== "elicitation/create") {
      return this.#fail(call, `the client could not answer ${method}: ${JsonText.member(line, "error") ?? "{}"}`)
    }
    // An error means that the client could not show the form. The answer is `cancel`, because the user did not decline.
    input.responses.set(key, failed ? "{\"action\":\"cancel\"}" : JsonText.member(line, "result") ?? "{}")
    if (input.open.size > 0) return
    this.#begin(call, { inputResponses: JsonText.make([...input.responses]), requestState: input.requestState })
  }
}

const notification = (method: string, params: object): string => JSON.stringify({ jsonrpc: "2.0", method, params })
