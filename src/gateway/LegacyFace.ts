/**
 * Makes a server of revision 2026-07-28 look like one of the revisions before: a `Transport` over its `Transport`, for the
 * session of one legacy client. The server knows no sessions, so what belongs to one is kept here: who the client is and what it can do, which each request
 * has to say; the level of its log; what it wants to hear of. Where the server answers that it needs input, the client is
 * asked as it is used to, and the call is made again with its answers (basic/patterns/mrtr).
 */
import type { Scope } from "effect"
import { Deferred, Effect, Fiber, Option, Predicate } from "effect"
import { randomUUID } from "node:crypto"
import type { BackendFailed } from "./GatewayErrors.ts"
import * as JsonRpc from "./JsonRpc.ts"
import * as JsonText from "./JsonText.ts"
import * as Modern from "./Modern.ts"
import * as Subscriptions from "./Subscriptions.ts"
import type { Receiver, Transport } from "./Transport.ts"

/** How often one call may come back for input. */
const maxRounds = 32
/** How long to wait before a call is made again that asked for nothing but to be, in milliseconds. */
const pause = 250

/** A request of the client that the server has. */
interface Call {
  readonly id: JsonRpc.Id
  readonly method: string
  /** JSON of its parameters, as they came. */
  readonly params: string
  /** Its newest number towards the server. */
  number: number
  rounds: number
  input: Input | undefined
  over: boolean
}

/** What a call waits for. */
interface Input {
  /** JSON, if the server gave one. */
  readonly requestState: string | undefined
  readonly responses: Map<string, string>
  /** The ids under which the client was asked and has not answered. */
  readonly open: Set<string>
}

interface Asked {
  readonly call: Call
  readonly key: string
  readonly method: string
}

interface Client {
  readonly info: string
  /** JSON, as it came. */
  readonly json: string
  readonly capabilities: Modern.Capabilities
}

/** What a server can do, as far as it matters here. */
interface Abilities {
  readonly logging: boolean
  readonly subscribe: boolean
  readonly lists: Subscriptions.Filter
}

export const make = Effect.fnUntraced(function*<R>(
  start: Effect.Effect<Transport, BackendFailed, R | Scope.Scope>
): Effect.fn.Return<Transport, BackendFailed, R | Scope.Scope> {
  const server = yield* start
  const scope = yield* Effect.scope
  const run = Effect.runForkWith(yield* Effect.context<never>())
  const calls = new Map<number, Call>()
  const byId = new Map<string, Call>()
  const asked = new Map<string, Asked>()
  let lastNumber = 0
  let lastInput = 0
  let discovering: { readonly number: number; readonly id: JsonRpc.Id; readonly version: string } | undefined
  let client: Client = { info: "{}", json: "{}", capabilities: Modern.capabilitiesOf({}, "{}") }
  let abilities: Abilities = { logging: false, subscribe: false, lists: {} }
  let level: string | undefined
  let out: Receiver | undefined
  let roomy = true

  const toServer = (text: string) => {
    const line = JsonRpc.toLine(text)
    if (!server.offer(line)) run(server.send(line))
  }

  const toClient = (text: string) => {
    if (out !== undefined) roomy = out.receive(text)
  }

  const answer = (id: JsonRpc.Id, member: "result" | "error", value: string) =>
    toClient(`{"jsonrpc":"2.0","id":${JSON.stringify(id)},"${member}":${value}}`)

  const refuse = (id: JsonRpc.Id, code: number, message: string) => toClient(JsonRpc.error(id, code, message))

  const notify = (method: string, params: object) => JSON.stringify({ jsonrpc: "2.0", method, params })

  const request = (method: string, params: string): number => {
    const number = ++lastNumber
    toServer(`{"jsonrpc":"2.0","id":${number},"method":${JSON.stringify(method)},"params":${params}}`)
    return number
  }

  const cancel = (number: number, reason: string) =>
    toServer(notify("notifications/cancelled", { requestId: number, reason }))

  /** `_meta` of this hop, with whatever else the client has put there. */
  const meta = (own: string): string =>
    JsonText.make([
      ...JsonText.members(Modern.withoutHopKeys(own)),
      ...JsonText.members(Modern.ownMeta(client.info, client.json)),
      ...(level === undefined ? [] : [[Modern.metaKeys.logLevel, JSON.stringify(level)] as const])
    ])

  const subscriptions = Subscriptions.make({
    open: (notifications) =>
      request(
        "subscriptions/listen",
        JsonText.make([["_meta", meta("{}")], ["notifications", JSON.stringify(notifications)]])
      ),
    cancel: (number) => cancel(number, "the session hears of something else now"),
    tell: (method, params) => toClient(notify(method, params)),
    after: (millis, what) => later(millis, what)
  })

  function later(millis: number, what: () => void) {
    const fiber = run(Effect.delay(
      Effect.sync(() => {
        if (!Deferred.isDoneUnsafe(server.ended)) what()
      }),
      millis
    ))
    Fiber.runIn(fiber, scope)
  }

  // ---------------------------------------------------------------------------
  // From the client
  // ---------------------------------------------------------------------------

  const fromClient = (line: string) => {
    const message = JsonRpc.classify(Option.getOrUndefined(JsonRpc.parse(line)))
    switch (message?._tag) {
      case "Request":
        return requested(message, line)
      case "Response":
        return answered(message, line)
      case "Notification":
        if (message.method === "notifications/cancelled") cancelled(message.params)
        if (message.method === "notifications/initialized") subscriptions.start(abilities.lists)
        // There are no others that a server of this revision knows.
    }
  }

  const requested = (message: JsonRpc.Request, line: string) => {
    const { id, method, params } = message
    switch (method) {
      case "initialize":
        return initialize(message, line)
      case "ping":
        return answer(id, "result", "{}")
      case "logging/setLevel":
        return setLevel(id, field(params, "level"))
      case "resources/subscribe":
      case "resources/unsubscribe":
        return subscribe(id, method === "resources/subscribe", field(params, "uri"))
    }
    if (Modern.removedMethods.includes(method)) return refuse(id, Modern.codes.methodNotFound, "Method not found")
    const own = JsonText.member(line, "params") ?? "{}"
    if (!JsonText.isObject(own)) return refuse(id, Modern.codes.invalidParams, "Invalid params: must be an object")
    const call: Call = { id, method, params: own, number: 0, rounds: 0, input: undefined, over: false }
    byId.set(JsonRpc.idKey(id), call)
    begin(call, {})
  }

  const setLevel = (id: JsonRpc.Id, wanted: unknown) => {
    if (!abilities.logging) return refuse(id, Modern.codes.methodNotFound, "Method not found")
    if (typeof wanted !== "string" || !Modern.logLevels.includes(wanted)) {
      return refuse(
        id,
        Modern.codes.invalidParams,
        `Invalid params: level must be one of ${Modern.logLevels.join(", ")}`
      )
    }
    level = wanted
    answer(id, "result", "{}")
  }

  const subscribe = (id: JsonRpc.Id, wanted: boolean, uri: unknown) => {
    if (!abilities.subscribe) return refuse(id, Modern.codes.methodNotFound, "Method not found")
    if (typeof uri !== "string") return refuse(id, Modern.codes.invalidParams, "Invalid params: uri must be a string")
    if (!wanted) {
      subscriptions.remove(uri)
      return answer(id, "result", "{}")
    }
    subscriptions.add(uri, (refused) =>
      refused === undefined
        ? answer(id, "result", "{}")
        : refuse(id, Modern.codes.invalidParams, `The subscription was refused: ${refused}`))
  }

  const cancelled = (params: unknown) => {
    const id = field(params, "requestId")
    const call = typeof id === "string" || typeof id === "number" ? byId.get(JsonRpc.idKey(id)) : undefined
    if (call === undefined) return
    drop(call, "the client has cancelled the request")
    // Nobody reads it, but then the request is over for all.
    refuse(call.id, JsonRpc.codes.gateway, "The request was cancelled")
  }

  /** Hands a call to the server; again with what it asked for. */
  const begin = (call: Call, again: Readonly<Record<string, string | undefined>>) => {
    const params = JsonText.edit(call.params, {
      ...again,
      _meta: meta(JsonText.member(call.params, "_meta") ?? "{}")
    })
    call.input = undefined
    call.number = request(call.method, params)
    calls.set(call.number, call)
  }

  /** Takes a call back from wherever it is. */
  const drop = (call: Call, reason: string) => {
    call.over = true
    byId.delete(JsonRpc.idKey(call.id))
    if (calls.delete(call.number)) cancel(call.number, reason)
    for (const requestId of call.input?.open ?? []) {
      asked.delete(requestId)
      toClient(notify("notifications/cancelled", { requestId, reason }))
    }
  }

  const fail = (call: Call, message: string) => {
    drop(call, message)
    refuse(call.id, JsonRpc.codes.internal, message)
  }

  // ---------------------------------------------------------------------------
  // The handshake
  // ---------------------------------------------------------------------------

  const initialize = ({ id, params }: JsonRpc.Request, line: string) => {
    const own = JsonText.member(line, "params") ?? "{}"
    const text = (name: string) => JsonText.isObject(own) ? JsonText.member(own, name) : undefined
    const given = text("capabilities") ?? "{}"
    // Tasks are an extension of another form now, and changes of roots are not told of any more.
    const json = JsonText.isObject(given)
      ? JsonText.edit(given, {
        tasks: undefined,
        ...(field(field(params, "capabilities"), "roots") ? { roots: "{}" } : {})
      })
      : "{}"
    client = {
      info: text("clientInfo") ?? "{\"name\":\"unknown\",\"version\":\"0\"}",
      json,
      capabilities: Modern.capabilitiesOf(field(params, "capabilities"), json)
    }
    const wanted = field(params, "protocolVersion")
    const version = Modern.legacyVersions.find((each) => each === wanted) ?? newestLegacy
    const number = request("server/discover", JsonText.make([["_meta", meta("{}")]]))
    discovering = { number, id, version }
  }

  const discovered = (line: string, failed: boolean, id: JsonRpc.Id, version: string) => {
    if (failed) return answer(id, "error", JsonText.member(line, "error") ?? "{}")
    const result = JsonText.member(line, "result") ?? "{}"
    const json = Option.getOrUndefined(JsonRpc.parse(result))
    const versions = field(json, "supportedVersions")
    if (!Array.isArray(versions) || !versions.includes(Modern.version)) {
      return refuse(id, JsonRpc.codes.internal, `The back end does not speak revision ${Modern.version}`)
    }
    const can = field(json, "capabilities")
    const listChanged = (what: string) => field(field(can, what), "listChanged") === true
    abilities = {
      logging: Predicate.isObject(field(can, "logging")),
      subscribe: field(field(can, "resources"), "subscribe") === true,
      lists: {
        ...(listChanged("tools") ? { toolsListChanged: true } : {}),
        ...(listChanged("prompts") ? { promptsListChanged: true } : {}),
        ...(listChanged("resources") ? { resourcesListChanged: true } : {})
      }
    }
    const serverInfo = JsonText.member(JsonText.member(result, "_meta") ?? "{}", Modern.metaKeys.serverInfo)
    const instructions = JsonText.member(result, "instructions")
    answer(
      id,
      "result",
      JsonText.make([
        ["protocolVersion", JSON.stringify(version)],
        ["capabilities", JsonText.member(result, "capabilities") ?? "{}"],
        ["serverInfo", serverInfo ?? "{\"name\":\"unknown\",\"version\":\"0\"}"],
        ...(instructions === undefined ? [] : [["instructions", instructions] as const])
      ])
    )
  }

  // ---------------------------------------------------------------------------
  // From the server
  // ---------------------------------------------------------------------------

  const fromServer = (line: string): boolean => {
    roomy = true
    const json = Option.getOrUndefined(JsonRpc.parse(line))
    const message = JsonRpc.classify(json)
    switch (message?._tag) {
      case undefined:
        // For whoever counts these.
        toClient(line)
        break
      case "Response":
        settled(message, json, line)
        break
      case "Notification":
        heard(message, line)
        break
      case "Request":
        // Servers of this revision send none.
        toServer(
          message.method === "ping"
            ? `{"jsonrpc":"2.0","id":${JSON.stringify(message.id)},"result":{}}`
            : JsonRpc.error(message.id, Modern.codes.methodNotFound, "Method not found")
        )
    }
    return roomy
  }

  const settled = (
    { failed, id }: Extract<JsonRpc.Message, { readonly _tag: "Response" }>,
    json: unknown,
    line: string
  ) => {
    const number = typeof id === "number" ? id : Number.NaN
    if (number === discovering?.number) {
      const { id, version } = discovering
      discovering = undefined
      return discovered(line, failed, id, version)
    }
    if (subscriptions.owns(number)) {
      const error = field(json, "error")
      const isUnknown = field(error, "code") === Modern.codes.methodNotFound
      return subscriptions.ended(number, String(field(error, "message") ?? "the server has ended it"), !isUnknown)
    }
    const call = calls.get(number)
    if (call === undefined) return
    calls.delete(number)
    const type = field(field(json, "result"), "resultType") ?? "complete"
    if (!failed && type === "input_required") return ask(call, field(json, "result"), line)
    byId.delete(JsonRpc.idKey(call.id))
    call.over = true
    if (failed) return answer(call.id, "error", JsonText.member(line, "error") ?? "{}")
    if (type !== "complete") {
      return refuse(call.id, JsonRpc.codes.internal, `The back end gave a result of the type ${JSON.stringify(type)}`)
    }
    answer(call.id, "result", legacyResult(call.method, JsonText.member(line, "result") ?? "{}"))
  }

  const heard = (
    { method, params }: Extract<JsonRpc.Message, { readonly _tag: "Notification" }>,
    line: string
  ) => {
    if (method === "notifications/cancelled") {
      return subscriptions.ended(Number(field(params, "requestId")), "the server has ended it", true)
    }
    const subscription = field(field(params, "_meta"), Modern.metaKeys.subscriptionId)
    if (subscription === undefined) return toClient(line)
    const number = Number(subscription)
    if (method === "notifications/subscriptions/acknowledged") {
      return subscriptions.acknowledged(number, field(params, "notifications"))
    }
    if (!subscriptions.hears(number, `${method} ${String(field(params, "uri"))}`)) return
    toClient(JsonText.edit(line, { params: Modern.withoutHop(JsonText.member(line, "params") ?? "{}") }))
  }

  // ---------------------------------------------------------------------------
  // Input
  // ---------------------------------------------------------------------------

  /** Asks the client for all that a call needs before it can go on. */
  const ask = (call: Call, result: unknown, line: string) => {
    if (++call.rounds > maxRounds) return fail(call, `the server asked for input more than ${maxRounds} times`)
    const text = JsonText.member(line, "result") ?? "{}"
    const given = JsonText.member(text, "inputRequests") ?? "{}"
    const requests = JsonText.isObject(given) ? JsonText.members(given) : []
    const requestState = JsonText.member(text, "requestState")
    if (requests.length === 0) {
      if (requestState === undefined) return fail(call, "the server asked for input, but not for which")
      call.input = { requestState, responses: new Map(), open: new Set() }
      return later(pause, () => {
        if (!call.over) begin(call, { requestState })
      })
    }
    const questions = requests.map(([key, json]) => questionOf(key, json, field(field(result, "inputRequests"), key)))
    const wrong = questions.map((question) => unaskable(client, question)).find((why) => why !== undefined)
    if (wrong !== undefined) return fail(call, wrong)
    const input: Input = { requestState, responses: new Map(), open: new Set() }
    call.input = input
    const lines = questions.map(({ key, method, params }) => {
      const id = `input-${++lastInput}`
      input.open.add(id)
      asked.set(id, { call, key, method })
      return `{"jsonrpc":"2.0","id":"${id}","method":${JSON.stringify(method)},"params":${params}}`
    })
    for (const each of lines) toClient(each)
  }

  const answered = ({ failed, id }: Extract<JsonRpc.Message, { readonly _tag: "Response" }>, line: string) => {
    const question = asked.get(String(id))
    if (question === undefined) return
    asked.delete(String(id))
    const { call, key, method } = question
    const { input } = call
    if (input === undefined) return
    input.open.delete(String(id))
    if (failed && method !== "elicitation/create") {
      return fail(call, `the client could not answer ${method}: ${JsonText.member(line, "error") ?? "{}"}`)
    }
    // A form that could not be shown has not been declined.
    input.responses.set(key, failed ? "{\"action\":\"cancel\"}" : JsonText.member(line, "result") ?? "{}")
    if (input.open.size > 0) return
    begin(call, { inputResponses: JsonText.make([...input.responses]), requestState: input.requestState })
  }

  return {
    pid: server.pid,
    ended: server.ended,
    attach: (receiver) =>
      Effect.suspend(() => {
        out = receiver
        return server.attach({ receive: fromServer, room: receiver.room })
      }),
    offer: (line) => {
      fromClient(line)
      return true
    },
    send: (line) => Effect.sync(() => fromClient(line))
  }
})

const newestLegacy = "2025-11-25"

/** Something that the server wants to know of the client. */
interface Question {
  readonly key: string
  readonly method: string
  /** JSON. */
  readonly params: string
  readonly value: unknown
}

const questionOf = (key: string, json: string, value: unknown): Question => {
  const method = String(field(value, "method"))
  const params = Modern.withoutHop(JsonText.isObject(json) ? JsonText.member(json, "params") ?? "{}" : "{}")
  const isPage = method === "elicitation/create" && field(field(value, "params"), "mode") === "url"
  return {
    key,
    method,
    // Earlier revisions know a visit by an id; of its end the client learns by the result of the call.
    params: isPage ? JsonText.edit(params, { elicitationId: JSON.stringify(randomUUID()) }) : params,
    value: field(value, "params")
  }
}

/** Why a client cannot be asked. */
const unaskable = ({ capabilities }: Client, { method, value }: Question): string | undefined => {
  if (!Modern.inputMethods.includes(method)) return `the server asked the client for ${JSON.stringify(method)}`
  const missing = Modern.missing(capabilities, method, value)
  return missing === undefined
    ? undefined
    : `the server needs a capability that the client has not declared: ${JSON.stringify(missing)}`
}

/** A result without what earlier revisions do not know, as far as that would be in their way. */
const legacyResult = (method: string, result: string): string => {
  if (!JsonText.isObject(result)) return result
  const meta = JsonText.member(result, "_meta") ?? "{}"
  const kept = JsonText.isObject(meta) ? Modern.withoutHopKeys(meta) : meta
  const structured = method === "tools/call" ? JsonText.member(result, "structuredContent") : undefined
  const tools = method === "tools/list" ? JsonText.member(result, "tools") : undefined
  return JsonText.edit(result, {
    resultType: undefined,
    ttlMs: undefined,
    cacheScope: undefined,
    _meta: kept === "{}" ? undefined : kept,
    // Earlier revisions have objects only, here and in the schemas of results.
    ...(structured === undefined || JsonText.isObject(structured) ? {} : { structuredContent: undefined }),
    ...(tools === undefined || !tools.includes("\"outputSchema\"") ? {} : { tools: legacyTools(tools) })
  })
}

const legacyTools = (tools: string): string => {
  const list = JsonText.elements(tools).map((tool) => {
    const schema = JsonText.isObject(tool) ? JsonText.member(tool, "outputSchema") : undefined
    const isOfObjects = schema === undefined ||
      (JsonText.isObject(schema) && JsonText.member(schema, "type") === "\"object\"")
    return isOfObjects ? tool : JsonText.edit(tool, { outputSchema: undefined })
  })
  return `[${list.join(",")}]`
}

const field = (value: unknown, name: string): unknown => Predicate.hasProperty(value, name) ? value[name] : undefined
