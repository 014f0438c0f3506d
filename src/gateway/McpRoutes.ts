/**
 * MCP on Streamable HTTP (revisions 2025-03-26, 2025-06-18, 2025-11-25; basic/transports): what each request means for
 * the session that it belongs to.
 *
 * POSTs of revision 2026-07-28 go to `ModernRoutes`.
 *
 * A request's lease lasts until its answer, whether or not the client still listens: the specification says that a
 * disconnect is no cancellation.
 */
import type { FileSystem } from "effect"
import { ByteSize, Cause, Deferred, Effect, Exit, Option, Predicate, Scope, Stream } from "effect"
import type { HttpServerRequest } from "effect/http"
import { HttpIncomingMessage, HttpMiddleware, HttpRouter, HttpServerResponse } from "effect/http"
import type * as Access from "./Access.ts"
import type { RunningRequest, Taken } from "./Bridge.ts"
import * as EventStreamBody from "./EventStreamBody.ts"
import type { Reader } from "./EventStreams.ts"
import * as JsonRpc from "./JsonRpc.ts"
import * as JsonText from "./JsonText.ts"
import * as Masking from "./Masking.ts"
import * as Modern from "./Modern.ts"
import * as ModernRoutes from "./ModernRoutes.ts"
import type * as Parked from "./Parked.ts"
import type { Refusal } from "./Refusals.ts"
import { jsonResponse, refuse, refuseFailure, retryLater, shuttingDown, unknownSession } from "./Refusals.ts"
import type { Connection, Principal, Sessions } from "./Sessions.ts"
import type * as Settings from "./Settings.ts"

const protocolVersions = Modern.legacyVersions
/** From this revision on an event stream begins with an event without data, so that it can be resumed from the start. */
const primingVersion = "2025-11-25"
/** The last revision with batches. */
const batchVersion = "2025-03-26"
/** Longest that DELETE waits for the process group to be gone. */
const endTimeout = "10 seconds"

type Response = HttpServerResponse.HttpServerResponse
type Request = HttpServerRequest.HttpServerRequest

/** One request, as far as it has been checked. */
interface Caller {
  readonly request: Request
  readonly backend: string
  readonly principal: Principal
  readonly version: string | undefined
  readonly lastEventId: string | undefined
}

/** The handler of every MCP route; enters the event streams that it sends in `bodies`. */
export const make = (
  sessions: Sessions["Service"],
  settings: Settings.GatewaySettings,
  access: Access.Access,
  draining: Deferred.Deferred<void>,
  fs: FileSystem.FileSystem,
  bodies: Set<EventStreamBody.OpenBody>,
  parked: Parked.Parked
) => {
  // The way of a call is in plain functions and `flatMap`s. When they took the place of a dozen generators, when the lease's
  // scope became nobody's child and when a refusal was no longer made before it was needed, a call came to cost 160 instead of
  // 240 µs of CPU.
  const handle = (request: Request) => {
    const { headers } = request
    const host = access.host(headers["host"])
    if (host._tag === "Refused") return turnAway(host)
    const origin = access.origin(headers["origin"])
    if (origin._tag === "Refused") return turnAway(origin)
    const client = access.client(headers["authorization"])
    if (client._tag === "Refused") return turnAway(client)
    return Effect.flatMap(HttpRouter.params, (params) => dispatch(request, params["backend"], client.principal))
  }

  const turnAway = ({ message, status }: Extract<Access.Verdict, { readonly _tag: "Refused" }>) =>
    refuse(status, message, { headers: status === 401 ? { "www-authenticate": "Bearer" } : {} })

  const dispatch = (
    request: Request,
    named: string | undefined,
    principal: Principal
  ): Effect.Effect<Response, Refusal, Scope.Scope> => {
    const running = sessions.running()
    const backend = named ?? (running.size === 1 ? [...running.keys()][0] : undefined)
    if (backend === undefined || !running.has(backend)) {
      const paths = [...running.keys()].map((name) => `/mcp/${name}`)
      return refuse(404, `There is no such back end; there are: ${paths.join(", ")}`)
    }
    const version = request.headers["mcp-protocol-version"]
    // That of a POST is judged together with its body.
    if (request.method !== "POST" && version !== undefined && !protocolVersions.includes(version)) {
      return refuse(400, unsupported)
    }
    const caller: Caller = { request, backend, principal, version, lastEventId: request.headers["last-event-id"] }
    switch (request.method) {
      case "POST":
        return post(caller)
      case "GET":
        return listen(caller)
      case "DELETE":
        return end(caller)
      default:
        return refuse(405, "Use POST, GET or DELETE", { headers: { allow: "GET, POST, DELETE" } })
    }
  }

  const refuseWhileDraining = (id?: JsonRpc.Id): Effect.Effect<void, Refusal> =>
    Effect.suspend(() => Deferred.isDoneUnsafe(draining) ? shuttingDown(id) : Effect.void)

  // ---------------------------------------------------------------------------
  // POST
  // ---------------------------------------------------------------------------

  const post = (caller: Caller) => {
    const { request } = caller
    if (!accepts(request, "application/json") || !accepts(request, "text/event-stream")) {
      return refuse(406, "Accept must list application/json and text/event-stream")
    }
    const contentType = request.headers["content-type"]?.split(";")[0]?.trim().toLowerCase()
    if (contentType !== "application/json") return refuse(415, "Content-Type must be application/json")
    return Effect.flatMap(body(request), (text) => receive(caller, text))
  }

  const body = (request: Request) => {
    const limit = settings.maxBodyBytes
    const tooLarge = () => refuse(413, `The body is larger than ${limit} bytes`)
    if (Number(request.headers["content-length"] ?? 0) > limit) return tooLarge()
    return request.text.pipe(
      Effect.provideService(HttpIncomingMessage.MaxBodySize, ByteSize.bytes(limit)),
      Effect.catch((error) =>
        String(error.cause).includes("maxBytes exceeded")
          ? tooLarge()
          : refuse(400, "The body could not be read", { code: JsonRpc.codes.parseError })
      )
    )
  }

  const receive = (caller: Caller, text: string): Effect.Effect<Response, Refusal, Scope.Scope> => {
    const json = JsonRpc.parse(text)
    if (Option.isNone(json)) return refuse(400, "The body is no JSON", { code: JsonRpc.codes.parseError })
    const { headers } = caller.request
    const first = JsonRpc.classify(json.value)
    if (first !== undefined && Modern.isModern(first, headers)) {
      return Effect.andThen(annotate(caller, first, undefined), modern(caller, first, text))
    }
    if (caller.version !== undefined && !protocolVersions.includes(caller.version)) {
      return refuse(400, unsupported, first?._tag === "Request" ? { id: first.id } : {})
    }
    const isBatch = Array.isArray(json.value) && (caller.version ?? batchVersion) <= batchVersion
    if (isBatch) {
      const here = batch(caller, json.value, JsonText.elements(text))
      return isHttp(caller) ? forward(caller, text, undefined, here) : here
    }
    if (first === undefined) {
      return refuse(400, "The body is no single JSON-RPC 2.0 message", { code: JsonRpc.codes.invalidRequest })
    }
    const session = headers["mcp-session-id"]
    return Effect.andThen(annotate(caller, first, session ?? "new"), answer(caller, first, text, session))
  }

  /** By OpenTelemetry's semantic conventions for MCP; but no URI and no argument, which may be secret. */
  const annotate = (caller: Caller, message: JsonRpc.Message, session: string | undefined) =>
    Effect.annotateCurrentSpan({
      "mcp_gateway.backend": caller.backend,
      "mcp.method.name": message._tag === "Response" ? "response" : short(message.method),
      ...(caller.version === undefined ? {} : { "mcp.protocol.version": short(caller.version) }),
      ...(session === undefined ? {} : { "mcp.session.id": Masking.shortId(session) }),
      ...(message._tag === "Request" ? requestAttributes(message) : {})
    })

  const answer = (caller: Caller, message: JsonRpc.Message, text: string, session: string | undefined) => {
    if (message._tag === "Request" && message.method === "initialize" && !session) {
      return initialize(caller, message, text)
    }
    const here = message._tag === "Request"
      ? call(caller, message, text)
      : Effect.as(send(caller, message, text), HttpServerResponse.empty({ status: 202 }))
    return isHttp(caller) ? forward(caller, text, message, here) : here
  }

  const send = (caller: Caller, message: JsonRpc.Message, text: string) =>
    Effect.scoped(
      Effect.flatMap(lease(caller), (connection) =>
        connection._tag === "Stdio" ? connection.send(message, text) : unknownSession())
    )

  const isHttp = (caller: Caller) => sessions.running().get(caller.backend)?.backend.target._tag === "Http"

  /** Opens a session: a new id, and the client's own `initialize` as the first message of its process. */
  const initialize = Effect.fnUntraced(function*(caller: Caller, message: JsonRpc.Request, text: string) {
    const { backend, principal } = caller
    yield* refuseWhileDraining(message.id)
    const opened = yield* Effect.result(sessions.open(backend, principal, message, text))
    if (opened._tag === "Failure") {
      // Refused by the back end itself: the client's to read.
      if (opened.failure._tag === "InitializeRefused") return jsonResponse(opened.failure.answer, 200)
      yield* Effect.logWarning(`No session was opened: ${opened.failure.message}`).pipe(
        Effect.annotateLogs({ backend })
      )
      return yield* refuseFailure(opened.failure, message.id)
    }
    const { connection, id } = opened.success
    yield* Effect.logInfo("session opened").pipe(Effect.annotateLogs({ backend, session: Masking.shortId(id) }))
    return jsonResponse(connection.answer, 200, { "mcp-session-id": id })
  })

  /** A request within a session. */
  const call = (caller: Caller, message: JsonRpc.Request, text: string) =>
    Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(
        Effect.flatMap(
          begin(caller, message, text, restore),
          ({ abandon, reply }) => Effect.onInterrupt(restore(reply), () => abandon)
        ),
        (first) =>
          first._tag === "Answer"
            ? Effect.succeed(jsonResponse(first.text, 200))
            : Effect.map(
              readingOf(Effect.sync(first.open)),
              (reader) => EventStreamBody.response(events(caller, reader))
            )
      )
    )

  /** A reader, for as long as the request's scope is open: until its response has been sent. */
  const readingOf = (open: Effect.Effect<Reader>) =>
    Effect.acquireRelease(open, (reader) => Effect.sync(() => reader.close()))

  /** Passes a message on to the upstream session of an HTTP back end; `here`: it has none, the gateway keeps the session. */
  const forward = Effect.fnUntraced(function*(
    caller: Caller,
    body: string,
    message: JsonRpc.Message | undefined,
    here: Effect.Effect<Response, Refusal, Scope.Scope>
  ) {
    const id = message?._tag === "Request" ? message.id : undefined
    if (message?._tag !== "Notification" && message?._tag !== "Response") yield* refuseWhileDraining(id)
    const connection = yield* lease(caller, id)
    if (connection._tag === "Stdio") return yield* here
    if (connection._tag !== "Http") return yield* unknownSession(id)
    const { lastEventId, request, version } = caller
    const forwarded = connection.forward({
      method: request.method === "GET" ? "GET" : "POST",
      body,
      request: message?._tag === "Request" ? message : undefined,
      version,
      lastEventId,
      stream: streamOptions(caller)
    })
    return yield* Effect.catchTags(forwarded, {
      UpstreamGone: () => unknownSession(id),
      BackendFailed: (error) => refuse(502, error.message, id === undefined ? {} : { id })
    })
  })

  /**
   * Leases the session until the request is answered, and hands the request to the process. The lease belongs to the
   * request, not to the client's connection: it is registered and released without the handler's fiber. To be run
   * uninterruptible, with `restore` for what may wait.
   */
  const begin = (
    caller: Caller,
    message: JsonRpc.Request,
    text: string,
    restore: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  ): Effect.Effect<RunningRequest, Refusal> =>
    Effect.suspend(() => {
      const id = message.id
      if (Deferred.isDoneUnsafe(draining)) return shuttingDown(id)
      // Closed when the request is answered, which the end of its session does at the latest.
      // On purpose no child of the gateway's scope: with one, memory grew to 350 MiB in 40,000 calls, without it stays at 180.
      // So `release` is all that closes it.
      const leaseScope = Scope.makeUnsafe()
      const release = Scope.close(leaseScope, Exit.void)
      return Effect.flatMap(
        // A client that goes while its session wakes takes the launch with it.
        Effect.onError(restore(Scope.provide(lease(caller, id), leaseScope)), () => release),
        (connection) => {
          // The back end has become an HTTP one in the meantime.
          if (connection._tag !== "Stdio") return Effect.andThen(release, unknownSession(id))
          const taken = connection.request(message, text, release)
          return taken._tag === "Running" ? Effect.succeed(taken) : Effect.andThen(release, refuseRequest(taken, id))
        }
      )
    })

  const refuseRequest = (taken: Exclude<Taken, RunningRequest>, id: JsonRpc.Id) => {
    switch (taken._tag) {
      case "DuplicateId":
        return refuse(400, "A request with this id is running in this session", {
          id,
          code: JsonRpc.codes.invalidRequest
        })
      case "TooMany":
        return refuse(429, "Too many requests of this session are running", { id, headers: retryLater })
      case "Over":
        return unknownSession(id)
    }
  }

  /** Several messages in one body, as revision 2025-03-26 has it. Their answers come on one stream. */
  const batch = Effect.fnUntraced(function*(
    caller: Caller,
    values: ReadonlyArray<unknown>,
    texts: ReadonlyArray<string>
  ) {
    const messages = values.map(JsonRpc.classify)
    if (messages.length === 0 || !messages.every((message) => message !== undefined)) {
      return yield* refuse(400, "The batch is empty, or one of its elements is no JSON-RPC 2.0 message", {
        code: JsonRpc.codes.invalidRequest
      })
    }
    if (messages.some((message) => message._tag === "Request" && message.method === "initialize")) {
      return yield* refuse(400, "initialize must not be part of a batch", { code: JsonRpc.codes.invalidRequest })
    }
    const calls: Array<RunningRequest> = []
    // A client that goes has sent the whole batch all the same.
    yield* Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
      for (const [i, message] of messages.entries()) {
        const text = texts[i] ?? ""
        if (message._tag === "Request") calls.push(yield* begin(caller, message, text, restore))
        else yield* restore(send(caller, message, text))
      }
    }))
    if (calls.length === 0) return HttpServerResponse.empty({ status: 202 })
    const streams = calls.map((running) =>
      Stream.unwrap(Effect.gen(function*() {
        const first = yield* Effect.onInterrupt(running.reply, () => running.abandon)
        if (first._tag === "Answer") return Stream.succeed(EventStreamBody.event({ text: first.text }))
        return events(caller, yield* readingOf(Effect.sync(first.open)))
      }))
    )
    return EventStreamBody.response(Stream.mergeAll(streams, { concurrency: "unbounded" }))
  })

  // ---------------------------------------------------------------------------
  // GET and DELETE
  // ---------------------------------------------------------------------------

  /** The stream of what belongs to no request, or what is left of another. It leases the session while it is open. */
  const listen = Effect.fnUntraced(function*(caller: Caller) {
    const { request } = caller
    if (!accepts(request, "text/event-stream")) return yield* refuse(406, "Accept must list text/event-stream")
    yield* refuseWhileDraining()
    const here = listenHere(caller)
    return yield* isHttp(caller) ? forward(caller, "", undefined, here) : here
  })

  const listenHere = Effect.fnUntraced(function*(caller: Caller) {
    const connection = yield* lease(caller)
    if (connection._tag !== "Stdio") return yield* unknownSession()
    const reader = yield* Effect.acquireRelease(
      connection.listen(caller.lastEventId),
      (opened) => Effect.sync(() => Option.map(opened, ({ close }) => close()))
    )
    return Option.isSome(reader)
      ? EventStreamBody.response(events(caller, reader.value))
      : yield* refuse(429, "Too many streams of this session are open", { headers: retryLater })
  })

  /** Ends the session; answers when its process group is gone. */
  const end = Effect.fnUntraced(function*({ backend, principal, request }: Caller) {
    const id = yield* sessionId(request)
    const gone = yield* sessions.end(backend, principal, id)
    if (Option.isNone(gone)) return yield* unknownSession()
    yield* Effect.timeoutOption(gone.value, endTimeout)
    return HttpServerResponse.empty({ status: 204 })
  })

  const streamOptions = (caller: Caller): EventStreamBody.Options => ({
    ...streamOptionsOf(caller.request),
    greet: isListener(caller),
    // Those of a request go on until its answer.
    until: isListener(caller) ? Deferred.await(draining) : undefined
  })

  const streamOptionsOf = (request: Request): EventStreamBody.Options => ({
    heartbeat: settings.heartbeat,
    bodies,
    greet: false,
    until: undefined,
    client: EventStreamBody.clientOf(request)
  })

  const modern = ModernRoutes.make({ sessions, settings, parked, draining, fs, streamOptions: streamOptionsOf })

  const events = (caller: Caller, reader: Reader) =>
    EventStreamBody.make(
      EventStreamBody.fromReader(reader, (caller.version ?? "") >= primingVersion),
      streamOptions(caller)
    )

  // ---------------------------------------------------------------------------
  // Sessions
  // ---------------------------------------------------------------------------

  const sessionId = (request: Request): Effect.Effect<string, Refusal> => {
    const id = request.headers["mcp-session-id"]
    if (!id) return refuse(400, "The header Mcp-Session-Id is missing")
    // Ours are UUIDs; whatever has another form cannot be one, and must not be taken for another key of the pool.
    return uuid.test(id) ? Effect.succeed(id) : unknownSession()
  }

  /** The session of a request, leased for the current scope; 400 without an id, 404 for one that does not exist. */
  const lease = (caller: Caller, id?: JsonRpc.Id): Effect.Effect<Connection, Refusal, Scope.Scope> =>
    Effect.flatMap(sessionId(caller.request), (session) =>
      Effect.catch(
        sessions.lease(caller.backend, caller.principal, session),
        (error) => refuseFailure(error, id)
      ))

  const cors = HttpMiddleware.cors({
    allowedOrigins: access.isListedOrigin,
    allowedMethods: ["GET", "POST", "DELETE"],
    // Those that are asked for: a tool may name any header after Mcp-Param-.
    exposedHeaders: ["Mcp-Session-Id", "Retry-After", "WWW-Authenticate"],
    maxAge: 600
  })

  return (request: Request) => {
    const answered = handle(request).pipe(
      Effect.catch((refusal) => Effect.succeed(refusal.response)),
      Effect.catchCause((cause) =>
        Cause.hasInterruptsOnly(cause)
          ? Effect.failCause(cause)
          : Effect.as(
            Effect.logError("A request died", cause),
            jsonResponse(JsonRpc.error(null, JsonRpc.codes.internal, "Internal error"), 500)
          )
      )
    )
    return request.headers["origin"] === undefined ? answered : cors(answered)
  }
}

const uuid = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

const unsupported = `Unsupported MCP-Protocol-Version; supported: ${
  [...protocolVersions, ...Modern.supportedVersions].join(", ")
}`

/** What the official clients send, on every request. */
const usualAccept = "application/json, text/event-stream"

const isListener = (caller: Caller) => caller.request.method === "GET"

const accepts = (request: Request, type: string): boolean =>
  request.headers["accept"] === usualAccept || (request.headers["accept"] ?? "").split(",").some((range) => {
    const [name = ""] = range.trim().toLowerCase().split(";")
    return name === type || name === "*/*" || name === `${type.split("/")[0]}/*`
  })

const requestAttributes = ({ id, method, params }: JsonRpc.Request): Record<string, string> => {
  const attributes: Record<string, string> = { "jsonrpc.request.id": short(String(id)) }
  const name = Predicate.hasProperty(params, "name") && typeof params.name === "string" ? short(params.name) : undefined
  if (method === "tools/call") attributes["gen_ai.operation.name"] = "execute_tool"
  if (method === "tools/call" && name !== undefined) attributes["gen_ai.tool.name"] = name
  if (method === "prompts/get" && name !== undefined) attributes["gen_ai.prompt.name"] = name
  return attributes
}

/** What a client has written, cut to what a span should carry. */
const short = (text: string): string => text.slice(0, 100)
