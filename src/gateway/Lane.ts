/**
 * One pooled process (or upstream session) that carries out the calls of modern clients.
 *
 * Each call gets a number of its own towards the server, because callers choose theirs without knowing of one another; the
 * number is its progress token too. With a legacy server the gateway is the client: it does the handshake, and what the
 * server asks for in the middle of a call is kept until the call's client has answered it.
 *
 * No message is attributed by guessing. What a legacy server asks or logs belongs to the call that has the lane to itself, or
 * to the only one that runs; after a call that was cancelled without an answer it may be that one's, and is refused.
 */
import type { Scope } from "effect"
import { Clock, Deferred, Effect, Option, Predicate } from "effect"
import type { NonEmptyReadonlyArray } from "effect/Array"
import type { Activity } from "./Bridge.ts"
import type { BackendFailed } from "./GatewayErrors.ts"
import { InitializeRefused } from "./GatewayErrors.ts"
import type { GatewayMetrics } from "./GatewayMetrics.ts"
import * as JsonRpc from "./JsonRpc.ts"
import * as JsonText from "./JsonText.ts"
import * as Modern from "./Modern.ts"
import * as ParamHeaders from "./ParamHeaders.ts"
import type { Transport } from "./Transport.ts"
import { version as ownVersion } from "./version.ts"

/** Which revisions a server speaks. */
export type Era = "legacy" | "modern"

/** What a server has said of itself. */
export interface Handshake {
  readonly era: Era
  /** JSON of each, as this revision has it. */
  readonly capabilities: string
  readonly serverInfo: string | undefined
  readonly instructions: string | undefined
}

/** What a call's client hears, in order. After an answer nothing follows. */
export type Event =
  | { readonly _tag: "Notification"; readonly text: string }
  /** The server waits for what the call asks of its client. */
  | { readonly _tag: "InputRequired" }
  | Answer

/** How a call ends. */
export interface Answer {
  readonly _tag: "Answer"
  readonly text: string
  readonly status: number
}

/** What a server asks a call's client. */
export interface InputRequest {
  readonly key: string
  /** JSON of its method and parameters. */
  readonly text: string
}

/** A call that runs. */
export interface RunningCall {
  /** The next events, at once or when there are some. */
  readonly take: Effect.Effect<NonEmptyReadonlyArray<Event>>
  /** What is asked and not answered yet. */
  readonly inputRequests: () => ReadonlyArray<InputRequest>
  /** Nobody reads the events for now: notifications are kept within limits only. */
  readonly park: () => void
  /** Goes on for another request of the client, with its answers by key to what was asked. */
  readonly resume: (call: Modern.Call) => void
  /** Ends it; the server is told why. Does nothing once it is over. */
  readonly cancel: (reason: string) => void
}

/** The server's news that belong to no call. */
export interface Change {
  readonly method: string
  readonly uri: string | undefined
  /** JSON of the parameters. */
  readonly params: string
}

export interface Lane {
  readonly _tag: "Lane"
  readonly ended: Deferred.Deferred<BackendFailed>
  readonly gone: Deferred.Deferred<void>
  readonly answer: string
  readonly record: undefined
  readonly handshake: Handshake
  /** Hands a call to the server; `release` runs once, when it is over. */
  readonly call: (call: Modern.Call, exclusive: boolean, release: Effect.Effect<void>) => RunningCall
  /** Hears of changes of these resources for as long as the scope is open. */
  readonly watchResources: (uris: ReadonlyArray<string>) => Effect.Effect<void, never, Scope.Scope>
  /** It cannot be told any more which call a message is for, and the server is one that asks. */
  readonly isSpoilt: () => boolean
  readonly activity: () => Activity
  readonly end: (reason: string) => Effect.Effect<void>
}

export interface Options {
  readonly client: Modern.Client
  /** What is known of the server; `undefined`: it is asked. */
  readonly era: Era | undefined
  /** How long a server may take to say that it does not know `server/discover`. */
  readonly probeTimeout: number
  readonly maxNotifications: number
  readonly changed: (change: Change) => void
  /** Whether a process of this back end has ever asked a client for something; and that this one has now. */
  readonly asks: { asked: boolean }
  readonly paramHeaders: ParamHeaders.ParamHeaders
}

/** How long to wait for further requests of the server, in milliseconds, before its client is asked. */
const gather = 20
/** Cancelled calls without an answer that are told apart. */
const maxSuspects = 1000

const clientInfo = JSON.stringify({ name: "effect-session-pool", version: ownVersion })

interface Asked {
  readonly request: InputRequest
  /** The server's id for it, as JSON; `undefined`: the call has to be made anew with the answer. */
  readonly id: string | undefined
}

interface Running {
  /** The client's newest request for it. */
  current: Modern.Call
  readonly exclusive: boolean
  readonly release: Effect.Effect<void>
  readonly startedAt: number
  /** The call's number towards the server. */
  number: number
  readonly events: Array<Queued>
  readonly asked: Map<string, Asked>
  /** Of requests that had no name of their own. */
  inputs: number
  parked: boolean
  over: boolean
  wake: (() => void) | undefined
}

/** What waits to be taken. The client's ids are put in then: a parked call goes on under the id of another request. */
type Queued = { readonly _tag: "InputRequired" } | Raw | Ended

interface Ended {
  readonly _tag: "Ended"
  readonly member: "result" | "error"
  readonly value: string
  readonly status: number
}

interface Raw {
  readonly _tag: "Raw"
  readonly kind: "progress" | "log" | "subscription"
  readonly params: string
  readonly method: string
  readonly level: number
}

/** Opens a connection to a server for a caller. */
export const make = Effect.fnUntraced(function*<R>(
  start: Effect.Effect<Transport, BackendFailed, R | Scope.Scope>,
  options: Options,
  metrics: GatewayMetrics
): Effect.fn.Return<Lane, BackendFailed | InitializeRefused, R | Scope.Scope> {
  const gone = yield* Deferred.make<void>()
  // Registered first, so it runs last.
  yield* Effect.addFinalizer(() => Deferred.succeed(gone, undefined))
  const server = yield* start
  const clock = yield* Clock.Clock
  const run = Effect.runForkWith(yield* Effect.context<never>())
  const now = () => clock.currentTimeMillisUnsafe()
  const running = new Set<Running>()
  /** Those that the server has not answered, by number. */
  const calls = new Map<number, Running>()
  /** The gateway's own requests. */
  const own = new Map<number, (answer: string) => void>()
  /** Cancelled calls that have not been answered: the server may still speak for them. */
  const suspects = new Set<number>()
  const watched = new Map<string, number>()
  let lastNumber = 0
  let over: string | undefined
  let requests = 0
  let errors = 0
  let level: string | undefined
  const waitingForRoom = new Set<() => void>()

  const write = (text: string) => {
    const line = JsonRpc.toLine(text)
    if (!server.offer(line)) run(server.send(line))
  }
  const notify = (method: string, params: object) => write(JSON.stringify({ jsonrpc: "2.0", method, params }))

  // ---------------------------------------------------------------------------
  // A call's events
  // ---------------------------------------------------------------------------

  const push = (call: Running, event: Queued) => {
    if (call.over) return
    call.events.push(event)
    if (call.parked && call.events.length > options.maxNotifications) {
      const oldest = call.events.findIndex(({ _tag }) => _tag === "Raw")
      if (oldest >= 0) call.events.splice(oldest, 1)
    }
    call.wake?.()
  }

  const settle = (call: Running, end: Ended, outcome: "ok" | "error") => {
    if (call.over) return
    push(call, end)
    call.over = true
    call.asked.clear()
    running.delete(call)
    calls.delete(call.number)
    if (outcome === "error") errors++
    metrics.request(call.current.request.method, outcome, now() - call.startedAt)
    run(call.release)
  }

  const fail = (call: Running, message: string) => settle(call, failure(message), "error")

  const isFull = () => {
    for (const call of running) if (!call.parked && call.events.length > options.maxNotifications) return true
    return false
  }

  const room = Effect.callback<void>((resume) => {
    if (!isFull()) return resume(Effect.void)
    const waiter = () => resume(Effect.void)
    waitingForRoom.add(waiter)
    return Effect.sync(() => waitingForRoom.delete(waiter))
  })

  const announceRoom = () => {
    if (waitingForRoom.size === 0 || isFull()) return
    for (const waiter of waitingForRoom) waiter()
    waitingForRoom.clear()
  }

  const take = (call: Running): Effect.Effect<NonEmptyReadonlyArray<Event>> =>
    Effect.callback((resume) => {
      const look = () => {
        const events: Array<Event> = []
        while (call.events.length > 0 && events.at(-1)?._tag !== "InputRequired") {
          const event = render(call, call.events.shift())
          if (event !== undefined) events.push(event)
        }
        announceRoom()
        const [first, ...others] = events
        if (first === undefined) return
        call.wake = undefined
        resume(Effect.succeed([first, ...others]))
      }
      call.wake = look
      look()
      return Effect.sync(() => {
        if (call.wake === look) call.wake = undefined
      })
    })

  // ---------------------------------------------------------------------------
  // From the server
  // ---------------------------------------------------------------------------

  /** The call that a message without a name of its own is for, if that is certain. */
  const owner = (): Running | undefined => {
    if (suspects.size > 0) return undefined
    const all = [...running]
    return all.find(({ exclusive }) => exclusive) ?? (all.length === 1 ? all[0] : undefined)
  }

  const receive = (line: string): boolean => {
    const json = Option.getOrUndefined(JsonRpc.parse(line))
    const message = JsonRpc.classify(json)
    if (message === undefined) {
      metrics.garbage()
      return true
    }
    switch (message._tag) {
      case "Response":
        answered(message, line)
        break
      case "Request":
        asked(message, line)
        break
      case "Notification":
        heard(message, line)
    }
    return !isFull()
  }

  const answered = ({ failed, id }: Extract<JsonRpc.Message, { readonly _tag: "Response" }>, line: string) => {
    const number = typeof id === "number" ? id : Number.NaN
    const mine = own.get(number)
    if (mine !== undefined) {
      own.delete(number)
      return mine(line)
    }
    suspects.delete(number)
    const call = calls.get(number)
    if (call === undefined) return
    const { method } = call.current.request
    if (!failed) {
      const result = JsonText.member(line, "result") ?? "{}"
      if (method === "tools/list") ParamHeaders.note(options.paramHeaders, result)
      const completed = handshake.era === "modern" || !JsonText.isObject(result)
        ? result
        : Modern.completed(method, result, handshake.serverInfo)
      return settle(call, ended("result", completed, 200), "ok")
    }
    const error = JsonText.member(line, "error") ?? "{}"
    if (!JsonText.isObject(error)) return settle(call, ended("error", error, 200), "error")
    if (handshake.era === "legacy" && Number(JsonText.member(error, "code")) === Modern.urlElicitationRequired) {
      return sentToPages(call, error)
    }
    const mapped = handshake.era === "modern" ? error : Modern.mappedError(error)
    settle(call, ended("error", mapped, statusOf(Number(JsonText.member(mapped, "code")))), "error")
  }

  /** A server of 2025-11-25 wants the client to visit pages first, and to be called again then. */
  const sentToPages = (call: Running, error: string) => {
    const pages = JsonText.member(JsonText.member(error, "data") ?? "{}", "elicitations") ?? "[]"
    const { capabilities } = call.current.client
    const missing = Modern.missing(capabilities, "elicitation/create", { mode: "url" })
    if (missing !== undefined) return lacks(call, missing)
    const visits = pages.startsWith("[") ? JsonText.elements(pages).filter(JsonText.isObject) : []
    if (visits.length === 0) return settle(call, ended("error", Modern.mappedError(error), 200), "error")
    calls.delete(call.number)
    for (const page of visits) {
      const params = JsonText.edit(page, { elicitationId: undefined })
      ask(call, "elicitation/create", params, undefined, undefined)
    }
  }

  const asked = ({ id, method, params }: JsonRpc.Request, line: string) => {
    const serverId = JSON.stringify(id)
    const refuse = (message: string, code: number = JsonRpc.codes.internal) => write(JsonRpc.error(id, code, message))
    if (method === "ping") return write(`{"jsonrpc":"2.0","id":${serverId},"result":{}}`)
    if (handshake.era === "modern" || !Modern.inputMethods.includes(method)) {
      return refuse("Method not found", Modern.codes.methodNotFound)
    }
    options.asks.asked = true
    const call = owner()
    if (call === undefined || !Modern.mayRequireInput.includes(call.current.request.method)) {
      refuse("No call is running of which it is certain that this belongs to it")
      if (suspects.size === 0) return
      for (const other of running) if (other.exclusive) abort(other, failure(unattributable), unattributable)
      return
    }
    const missing = Modern.missing(call.current.client.capabilities, method, params)
    if (missing !== undefined) {
      refuse("The client has no such capability", Modern.codes.methodNotFound)
      return lacks(call, missing)
    }
    ask(call, method, JsonText.member(line, "params") ?? "{}", serverId, typeof id === "string" ? id : undefined)
  }

  /** Puts a request of the server to the call's client. */
  const ask = (call: Running, method: string, params: string, id: string | undefined, name: string | undefined) => {
    const key = name ?? `${method.split("/")[0] ?? ""}-${++call.inputs}`
    const text = JsonText.make([["method", JSON.stringify(method)], ["params", Modern.withoutHop(params)]])
    call.asked.set(key, { id, request: { key, text } })
    const known = call.current.inputResponses
    // A client may have answered before it was asked: it has made the same call before.
    if (known?.has(key) === true) return reply(call, known)
    if (call.asked.size === 1) {
      run(Effect.andThen(
        Effect.sleep(gather),
        Effect.sync(() => {
          if (call.asked.size > 0) push(call, inputRequired)
        })
      ))
    }
  }

  /** Hands the client's answers to the server. */
  const reply = (call: Running, responses: ReadonlyMap<string, string>) => {
    let again: boolean | undefined
    for (const [key, { id }] of call.asked) {
      const response = responses.get(key)
      if (response === undefined) continue
      call.asked.delete(key)
      if (id !== undefined) write(`{"jsonrpc":"2.0","id":${id},"result":${response}}`)
      else again = again !== false && JsonText.member(response, "action") === "\"accept\""
    }
    if (again === undefined) return
    // Whoever declines a page has declined the call.
    if (!again) return fail(call, "the client did not agree to visit the page")
    if (call.asked.size === 0) begin(call)
  }

  const lacks = (call: Running, requiredCapabilities: object) => {
    const message = "The server needs a capability of the client that the request does not declare"
    const error = JSON.stringify({ code: Modern.codes.missingCapability, message, data: { requiredCapabilities } })
    abort(call, ended("error", error, 400), message)
  }

  const heard = (
    { method, params, progressToken }: Extract<JsonRpc.Message, { readonly _tag: "Notification" }>,
    line: string
  ) => {
    const text = JsonText.member(line, "params") ?? "{}"
    const raw = (kind: Raw["kind"], level = 0): Raw => ({ _tag: "Raw", kind, method, params: text, level })
    if (method === "notifications/progress") {
      const call = calls.get(Number(progressToken))
      return call === undefined ? undefined : push(call, raw("progress"))
    }
    if (method === "notifications/message") {
      const call = owner()
      const severity = Modern.logLevels.indexOf(String(field(params, "level")))
      return call === undefined ? undefined : push(call, raw("log", severity))
    }
    const subscription = field(field(params, "_meta"), Modern.metaKeys.subscriptionId)
    if (handshake.era === "modern" && subscription !== undefined) {
      const call = calls.get(Number(subscription))
      return call === undefined ? undefined : push(call, raw("subscription"))
    }
    if (method === "notifications/cancelled") {
      // The server no longer wants to know.
      const id = JSON.stringify(field(params, "requestId"))
      for (const call of running) {
        for (const [key, { id: serverId }] of call.asked) if (serverId === id) call.asked.delete(key)
      }
      return
    }
    if (method.endsWith("/list_changed") || method === "notifications/resources/updated") {
      const uri = field(params, "uri")
      options.changed({ method, uri: typeof uri === "string" ? uri : undefined, params: text })
    }
  }

  // ---------------------------------------------------------------------------
  // Calls
  // ---------------------------------------------------------------------------

  /** Hands a call to the server under a new number. */
  const begin = (call: Running) => {
    const { current } = call
    const number = call.number = ++lastNumber
    calls.set(number, call)
    const legacy = handshake.era === "legacy"
    if (legacy && current.logLevel !== undefined && current.logLevel !== level && logs) {
      level = current.logLevel
      own.set(++lastNumber, () => undefined)
      write(JSON.stringify({ jsonrpc: "2.0", id: lastNumber, method: "logging/setLevel", params: { level } }))
    }
    const meta = JsonText.member(current.params, "_meta") ?? "{}"
    const progressToken = current.request.progressToken === undefined ? undefined : String(number)
    const newMeta = JsonText.edit(legacy ? Modern.withoutHopKeys(meta) : meta, { progressToken })
    const params = JsonText.edit(current.params, {
      _meta: legacy && newMeta === "{}" ? undefined : newMeta,
      ...(legacy ? { inputResponses: undefined, requestState: undefined } : {})
    })
    const method = JSON.stringify(current.request.method)
    write(`{"jsonrpc":"2.0","id":${number},"method":${method},"params":${params}}`)
  }

  /** Ends a call before its server does. */
  const abort = (call: Running, end: Ended, reason: string) => {
    if (call.over) return
    for (const { id } of call.asked.values()) {
      if (id !== undefined) write(`{"jsonrpc":"2.0","id":${id},"error":{"code":-32000,"message":"cancelled"}}`)
    }
    if (calls.has(call.number)) {
      notify("notifications/cancelled", { requestId: call.number, reason })
      if (handshake.era === "legacy" && suspects.size < maxSuspects) suspects.add(call.number)
    }
    settle(call, end, "error")
  }

  const end = (reason: string) =>
    Effect.sync(() => {
      if (over !== undefined) return
      over = reason
      for (const call of running) fail(call, reason)
      for (const resume of own.values()) resume(JsonRpc.error(null, JsonRpc.codes.gateway, reason))
      own.clear()
    })

  /** The gateway's own request: its answer. */
  const request = (method: string, params: string): Effect.Effect<string> =>
    Effect.callback((resume) => {
      if (over !== undefined) return resume(Effect.succeed(JsonRpc.error(null, JsonRpc.codes.gateway, over)))
      const number = ++lastNumber
      own.set(number, (answer) => resume(Effect.succeed(answer)))
      write(`{"jsonrpc":"2.0","id":${number},"method":${JSON.stringify(method)},"params":${params}}`)
      return Effect.sync(() => own.delete(number))
    })

  // ---------------------------------------------------------------------------
  // The handshake
  // ---------------------------------------------------------------------------

  let handshake: Handshake = { era: "legacy", capabilities: "{}", serverInfo: undefined, instructions: undefined }
  yield* server.attach({ receive, room })
  yield* Effect.addFinalizer(() => end("the session has ended"))
  yield* Effect.forkScoped(Effect.flatMap(Deferred.await(server.ended), (failure) => end(failure.message)))

  const info = options.client.info ?? clientInfo
  const capabilities = Modern.legacyCapabilities(options.client.capabilities)
  let answer = ""
  if (options.era !== "legacy") {
    const meta = Modern.ownMeta(info, capabilities)
    const asked = request("server/discover", JsonText.make([["_meta", meta]]))
    // A server that says nothing is asked in the other way; one that is asked again knows the answer.
    answer = Option.getOrElse(
      yield* options.era === "modern" ? Effect.asSome(asked) : Effect.timeoutOption(asked, options.probeTimeout),
      () => ""
    )
    if (Deferred.isDoneUnsafe(server.ended)) return yield* Effect.flatMap(Deferred.await(server.ended), Effect.fail)
  }
  const result = (name: string) => JsonText.member(JsonText.member(answer, "result") ?? "{}", name)
  if (options.era === "modern" || (answer !== "" && Modern.speaksModern(answer))) {
    if (JsonRpc.isError(answer)) return yield* new InitializeRefused({ answer })
    handshake = {
      era: "modern",
      capabilities: result("capabilities") ?? "{}",
      serverInfo: JsonText.member(result("_meta") ?? "{}", Modern.metaKeys.serverInfo),
      instructions: result("instructions")
    }
  } else {
    const params = JsonText.make([
      ["protocolVersion", JSON.stringify("2025-11-25")],
      ["capabilities", capabilities],
      ["clientInfo", info]
    ])
    answer = yield* request("initialize", params)
    if (Deferred.isDoneUnsafe(server.ended)) return yield* Effect.flatMap(Deferred.await(server.ended), Effect.fail)
    if (JsonRpc.isError(answer)) return yield* new InitializeRefused({ answer })
    handshake = {
      era: "legacy",
      capabilities: Modern.serverCapabilities(result("capabilities") ?? "{}"),
      serverInfo: result("serverInfo"),
      instructions: result("instructions")
    }
    write("{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}")
  }
  const logs = JsonText.member(handshake.capabilities, "logging") !== undefined

  return {
    _tag: "Lane",
    ended: server.ended,
    gone,
    answer,
    record: undefined,
    handshake,
    call: (current, exclusive, release) => {
      requests++
      const call: Running = {
        current,
        exclusive,
        release,
        startedAt: now(),
        number: 0,
        events: [],
        asked: new Map(),
        inputs: 0,
        parked: false,
        over: false,
        wake: undefined
      }
      running.add(call)
      if (over === undefined) begin(call)
      else fail(call, over)
      return {
        take: take(call),
        inputRequests: () => [...call.asked.values()].map(({ request }) => request),
        park: () => {
          call.parked = true
          announceRoom()
        },
        resume: (next) => {
          call.current = next
          call.parked = false
          if (call.over) return
          reply(call, next.inputResponses ?? new Map())
          if (call.asked.size > 0) push(call, inputRequired)
        },
        cancel: (reason) => abort(call, failure(reason), reason)
      }
    },
    watchResources: (uris) =>
      Effect.acquireRelease(
        Effect.forEach(uris, (uri) => {
          const others = watched.get(uri) ?? 0
          watched.set(uri, others + 1)
          return others > 0 ? Effect.void : request("resources/subscribe", JSON.stringify({ uri }))
        }, { discard: true }),
        () =>
          Effect.sync(() => {
            for (const uri of uris) {
              const left = (watched.get(uri) ?? 1) - 1
              watched.set(uri, left)
              if (left > 0) continue
              watched.delete(uri)
              if (over === undefined) run(request("resources/unsubscribe", JSON.stringify({ uri })))
            }
          })
      ),
    isSpoilt: () => suspects.size > 0 && options.asks.asked,
    activity: () => ({
      pid: server.pid,
      client: options.client.name,
      inFlight: running.size,
      streams: 0,
      requests,
      errors
    }),
    end
  }
})

const unattributable =
  "the server asks for input, and it cannot be told whether for this call or for an earlier one that was cancelled; try again"

const field = (value: unknown, name: string): unknown => Predicate.hasProperty(value, name) ? value[name] : undefined

/** What a queued event is for the client's newest request; `undefined`: nothing. */
const render = (call: Running, event: Queued | undefined): Event | undefined => {
  const { request } = call.current
  switch (event?._tag) {
    case "InputRequired":
      // What was asked may have been answered or taken back in the meantime.
      return call.asked.size === 0 ? undefined : event
    case "Ended": {
      const text = `{"jsonrpc":"2.0","id":${JSON.stringify(request.id)},"${event.member}":${event.value}}`
      return { _tag: "Answer", text, status: event.status }
    }
    case "Raw": {
      const params = forClient(call.current, event)
      if (params === undefined) return undefined
      const text = `{"jsonrpc":"2.0","method":${JSON.stringify(event.method)},"params":${params}}`
      return { _tag: "Notification", text }
    }
  }
}

const forClient = ({ logLevel, request }: Modern.Call, { kind, level, params }: Raw): string | undefined => {
  switch (kind) {
    case "progress":
      return request.progressToken === undefined
        ? undefined
        : JsonText.edit(params, { progressToken: JSON.stringify(request.progressToken) })
    case "log":
      return logLevel !== undefined && level >= Modern.logLevels.indexOf(logLevel) ? params : undefined
    case "subscription":
      return Modern.tagged(params, request.id)
  }
}

const ended = (member: "result" | "error", value: string, status: number): Ended => ({
  _tag: "Ended",
  member,
  value,
  status
})

const failure = (message: string): Ended =>
  ended("error", JSON.stringify({ code: JsonRpc.codes.internal, message }), 200)

const inputRequired: Queued = { _tag: "InputRequired" }

const statusOf = (code: number): number =>
  code === Modern.codes.methodNotFound ? 404 : code === Modern.codes.missingCapability ? 400 : 200
