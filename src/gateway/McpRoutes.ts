/**
 * MCP on Streamable HTTP (revisions 2025-03-26, 2025-06-18, 2025-11-25; basic/transports): what each request means for
 * the session that it belongs to.
 *
 * A request's lease lasts until its answer, whether or not the client still listens: the specification says that a
 * disconnect is no cancellation.
 */
import { ByteSize, Cause, Deferred, Effect, Exit, Option, Queue, Scope, Stream } from "effect"
import type { HttpServerRequest } from "effect/http"
import { HttpIncomingMessage, HttpRouter, HttpServerResponse } from "effect/http"
import { randomUUID } from "node:crypto"
import * as SessionKey from "../SessionKey.ts"
import * as SessionPool from "../SessionPool.ts"
import type { Bridge, Exchange, Outgoing } from "./Bridge.ts"
import type { GatewayOptions, Sessions } from "./Gateway.ts"
import * as JsonRpc from "./JsonRpc.ts"

const protocolVersions = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"]
const loopbackHosts = ["127.0.0.1", "localhost", "[::1]"]
const defaultMaxBodyBytes = 4 * 1024 * 1024
const heartbeat = "15 seconds"
/** Longest that DELETE waits for the process group to be gone. */
const endTimeout = "10 seconds"

type Response = HttpServerResponse.HttpServerResponse
type Request = HttpServerRequest.HttpServerRequest

/** A request that is refused, with its response. */
class Refusal {
  readonly _tag = "Refusal"
  readonly response: Response
  constructor(response: Response) {
    this.response = response
  }
}

const refuse = (
  status: number,
  message: string,
  options?: { readonly id?: JsonRpc.Id; readonly code?: number; readonly headers?: Record<string, string> }
): Effect.Effect<never, Refusal> =>
  Effect.fail(
    new Refusal(HttpServerResponse.text(
      JsonRpc.error(options?.id ?? null, options?.code ?? JsonRpc.codes.gateway, message),
      { status, contentType: "application/json", headers: options?.headers ?? {} }
    ))
  )

/** The handler of every MCP route. `scope` is the gateway's: work that outlives a request ends with it. */
export const make = (sessions: Sessions["Service"], options: GatewayOptions, scope: Scope.Scope) => {
  const names = Object.keys(options.backends)
  const hosts = options.allowedHosts ?? loopbackHosts
  const maxBodyBytes = options.maxBodyBytes ?? defaultMaxBodyBytes

  const handle = Effect.fnUntraced(function*(request: Request) {
    yield* checkHost(request, hosts)
    const params = yield* HttpRouter.params
    const backend = params["backend"] ?? (names.length === 1 ? names[0] : undefined)
    if (backend === undefined || !Object.hasOwn(options.backends, backend)) {
      return yield* refuse(
        404,
        `There is no such back end; there are: ${names.map((name) => `/mcp/${name}`).join(", ")}`
      )
    }
    const version = request.headers["mcp-protocol-version"]
    if (version !== undefined && !protocolVersions.includes(version)) {
      return yield* refuse(400, `Unsupported MCP-Protocol-Version; supported: ${protocolVersions.join(", ")}`)
    }
    switch (request.method) {
      case "POST":
        return yield* post(request, backend)
      case "GET":
        return yield* listen(request, backend)
      case "DELETE":
        return yield* end(request, backend)
      default:
        return yield* refuse(405, "Use POST, GET or DELETE", { headers: { allow: "GET, POST, DELETE" } })
    }
  })

  // ---------------------------------------------------------------------------
  // POST
  // ---------------------------------------------------------------------------

  const post = Effect.fnUntraced(function*(request: Request, backend: string) {
    if (!accepts(request, "application/json") || !accepts(request, "text/event-stream")) {
      return yield* refuse(406, "Accept must list application/json and text/event-stream")
    }
    const contentType = request.headers["content-type"]?.split(";")[0]?.trim().toLowerCase()
    if (contentType !== "application/json") return yield* refuse(415, "Content-Type must be application/json")
    const text = yield* body(request)
    const json = JsonRpc.parse(text)
    if (Option.isNone(json)) {
      return yield* refuse(400, "The body is no JSON", { code: JsonRpc.codes.parseError })
    }
    const message = JsonRpc.classify(json.value)
    if (message === undefined) {
      return yield* refuse(400, "The body is no single JSON-RPC 2.0 message (batches are not supported)", {
        code: JsonRpc.codes.invalidRequest
      })
    }
    if (message._tag === "Request") {
      return message.method === "initialize" && request.headers["mcp-session-id"] === undefined
        ? yield* initialize(backend, message, text)
        : yield* call(request, backend, message, text)
    }
    yield* Effect.scoped(Effect.flatMap(bridgeOf(request, backend), (bridge) => bridge.send(text)))
    return HttpServerResponse.empty({ status: 202 })
  })

  const body = (request: Request) => {
    const length = Number(request.headers["content-length"] ?? 0)
    const tooLarge = refuse(413, `The body is larger than ${maxBodyBytes} bytes`)
    if (length > maxBodyBytes) return tooLarge
    return request.text.pipe(
      Effect.provideService(HttpIncomingMessage.MaxBodySize, ByteSize.bytes(maxBodyBytes)),
      Effect.catch((error) =>
        String(error.cause).includes("maxBytes exceeded")
          ? tooLarge
          : refuse(400, "The body could not be read", { code: JsonRpc.codes.parseError })
      )
    )
  }

  type Call = Extract<JsonRpc.Message, { readonly _tag: "Request" }>

  /** Opens a session: a new id, a new process, and the client's own `initialize` as its first message. */
  const initialize = Effect.fnUntraced(function*(backend: string, message: Call, text: string) {
    const session = randomUUID()
    const key = SessionKey.makeUnsafe(backend, session)
    const annotate = Effect.annotateLogs({ backend, session: session.slice(0, 8) })
    const exchange = yield* hold(message, text, SessionPool.get(sessions, key)).pipe(
      Effect.catchTags({
        BackendFailed: (error) => refuse(502, error.message, { id: message.id }),
        CapacityExceeded: () =>
          refuse(503, "The gateway is at its limit of sessions; try again later", {
            id: message.id,
            headers: { "retry-after": "10" }
          }),
        LookupTimeout: (error) => refuse(502, error.message, { id: message.id }),
        ValidationFailed: (error) => refuse(502, error.message, { id: message.id }),
        PoolClosed: () => refuse(503, "The gateway is shutting down", { id: message.id })
      })
    )
    // Nobody would ever learn the id of this session.
    const unheard = SessionPool.invalidate(sessions, key)
    const first = yield* Effect.onInterrupt(
      takeFirst(exchange),
      () => Effect.andThen(unheard, exchange.bridge.end("the client has gone"))
    )
    if (first.last && isError(first.text)) {
      // Refused by the back end, which is the client's to read, or by the gateway because the back end died.
      yield* SessionPool.invalidate(sessions, key)
      return jsonResponse(first.text, Deferred.isDoneUnsafe(exchange.bridge.ended) ? 502 : 200)
    }
    yield* annotate(Effect.logInfo("session opened"))
    return yield* respond(exchange.bridge, exchange, first, { "mcp-session-id": session })
  })

  /** A request within a session. */
  const call = Effect.fnUntraced(function*(request: Request, backend: string, message: Call, text: string) {
    const acquire = bridgeOf(request, backend)
    const exchange = yield* hold(message, text, acquire)
    const first = yield* takeFirst(exchange)
    return yield* respond(exchange.bridge, exchange, first, {})
  })

  /**
   * Leases the session until the request is answered, and hands the request to the process. The lease belongs to the
   * exchange, not to the client's connection: it is registered and released without the handler's fiber.
   */
  const hold = <E>(message: Call, text: string, acquire: Effect.Effect<Bridge, E, Scope.Scope>) =>
    Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
      const lease = yield* Scope.fork(scope)
      const release = Scope.close(lease, Exit.void)
      // A client that goes while its session launches takes the launch with it.
      const bridge = yield* Effect.onError(restore(Scope.provide(acquire, lease)), () => release)
      const exchange = yield* bridge.begin(message, release)
      if (Option.isNone(exchange)) {
        yield* release
        return yield* refuse(400, "A request with this id is running in this session", {
          id: message.id,
          code: JsonRpc.codes.invalidRequest
        })
      }
      // The write may have to wait for a process that does not read; it must not wait with the client.
      yield* Effect.forkIn(bridge.send(text), lease)
      return { ...exchange.value, bridge }
    }))

  /** Waits for the first message; a client that goes meanwhile leaves its request running, and nobody to collect for. */
  const takeFirst = (exchange: Exchange & { readonly bridge: Bridge }): Effect.Effect<Outgoing, Refusal> =>
    Queue.take(exchange.messages).pipe(
      Effect.onInterrupt(() => Effect.sync(() => exchange.bridge.abandon(exchange))),
      Effect.catch(() => refuse(500, "The request ended without an answer"))
    )

  /** JSON when the answer comes first, else a stream that ends with the answer. */
  const respond = (bridge: Bridge, exchange: Exchange, first: Outgoing, headers: Record<string, string>) => {
    if (first.last) return Effect.succeed(jsonResponse(first.text, 200, headers))
    const rest = Stream.fromQueue(exchange.messages)
    const messages = Stream.map(Stream.concat(Stream.succeed(first), rest), ({ text }) => text)
    return Effect.succeed(sseResponse(
      Stream.ensuring(messages, Effect.sync(() => bridge.abandon(exchange))),
      headers
    ))
  }

  // ---------------------------------------------------------------------------
  // GET and DELETE
  // ---------------------------------------------------------------------------

  /** The stream of what belongs to no request. It leases the session for as long as the client listens. */
  const listen = Effect.fnUntraced(function*(request: Request, backend: string) {
    if (!accepts(request, "text/event-stream")) return yield* refuse(406, "Accept must list text/event-stream")
    // Asked once before the response begins, so that an unknown session is a 404 and not an empty stream.
    yield* Effect.scoped(bridgeOf(request, backend))
    const messages = Stream.unwrap(Effect.gen(function*() {
      const bridge = yield* bridgeOf(request, backend)
      return Stream.fromQueue(yield* bridge.listen)
    }))
    return sseResponse(Stream.catch(messages, () => Stream.empty), {})
  })

  /** Ends the session; answers when its process group is gone. */
  const end = Effect.fnUntraced(function*(request: Request, backend: string) {
    const bridge = yield* Effect.scoped(
      Effect.uninterruptible(Effect.tap(bridgeOf(request, backend), (bridge) =>
        Effect.andThen(
          SessionPool.invalidate(sessions, keyOf(request, backend)),
          bridge.end("the session was deleted")
        )))
    )
    yield* Effect.timeoutOption(Deferred.await(bridge.gone), endTimeout)
    return HttpServerResponse.empty({ status: 204 })
  })

  const keyOf = (request: Request, backend: string) =>
    SessionKey.makeUnsafe(backend, request.headers["mcp-session-id"] ?? "-")

  /** The session of a request, leased for the current scope; 400 without an id, 404 for one that does not exist. */
  const bridgeOf = (request: Request, backend: string): Effect.Effect<Bridge, Refusal, Scope.Scope> => {
    if (!request.headers["mcp-session-id"]) return refuse(400, "The header Mcp-Session-Id is missing")
    const unknown = refuse(404, "There is no such session; initialize again")
    return SessionPool.getOption(sessions, keyOf(request, backend)).pipe(
      Effect.catch(() => unknown),
      Effect.flatMap(Option.match({ onNone: () => unknown, onSome: Effect.succeed }))
    )
  }

  return (request: Request) =>
    handle(request).pipe(
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
}

const isError = (text: string): boolean => {
  const json = JsonRpc.parse(text)
  const message = Option.isSome(json) ? JsonRpc.classify(json.value) : undefined
  return message?._tag === "Response" && message.failed
}

/** Against DNS rebinding: the host must be one that is served, and a browser's origin must be that host. */
const checkHost = (request: Request, hosts: ReadonlyArray<string>) => {
  const host = (request.headers["host"] ?? "").replace(/:\d+$/, "").toLowerCase()
  if (!hosts.includes(host)) return refuse(403, "This Host is not served here")
  const origin = request.headers["origin"]
  if (origin === undefined) return Effect.void
  const name = /^https?:\/\/(\[[^\]]*\]|[^:/]*)(:\d+)?$/.exec(origin.toLowerCase())?.[1]
  return name !== undefined && hosts.includes(name) ? Effect.void : refuse(403, "This Origin is not allowed")
}

const accepts = (request: Request, type: string): boolean =>
  (request.headers["accept"] ?? "").split(",").some((range) => {
    const [name = ""] = range.trim().toLowerCase().split(";")
    return name === type || name === "*/*" || name === `${type.split("/")[0]}/*`
  })

const jsonResponse = (text: string, status: number, headers: Record<string, string> = {}): Response =>
  HttpServerResponse.text(text, { status, contentType: "application/json", headers })

const encoder = new TextEncoder()

/** Server-sent events, one a message, with comments in between so that no one takes silence for death. */
const sseResponse = (messages: Stream.Stream<string>, headers: Record<string, string>): Response =>
  HttpServerResponse.stream(
    Stream.merge(
      Stream.map(messages, (text) => encoder.encode(`event: message\ndata: ${text}\n\n`)),
      Stream.map(Stream.tick(heartbeat), () => encoder.encode(": \n\n")),
      { haltStrategy: "left" }
    ),
    { contentType: "text/event-stream", headers: { ...headers, "cache-control": "no-cache, no-transform" } }
  )
