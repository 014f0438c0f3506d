/**
 * An MCP server on Streamable HTTP as a `Transport`: each message becomes a POST, and each message of the response is a message of
 * the server.
 *
 * The transport speaks both eras. It sends a request of revision 2026-07-28 without a session. An `initialize` opens a session of
 * an earlier revision and its GET stream; both end with the scope. A caller that does not know the server's era can therefore try
 * both on one transport.
 */
import { Deferred, Duration, Effect, Fiber, Option, Queue, Scope, Stream } from "effect"
import type { HttpClient } from "effect/http"
import * as Json from "../protocol/Json.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import * as Modern from "../protocol/Modern.ts"
import * as RequestHeaders from "../protocol/RequestHeaders.ts"
import type { BackendSettings } from "../settings/Settings.ts"
import * as Remote from "./Remote.ts"
import type { Receiver, Transport } from "./Transport.ts"
import { BackendFailed, deliver } from "./Transport.ts"

type Limits = Pick<BackendSettings, "maxLineBytes" | "writeTimeout">

/** Most messages that wait for the server to take the messages before them. */
const maxWaiting = 16

/** The state of one transport. */
interface Server {
  readonly remote: Remote.Remote
  readonly limits: Limits
  readonly ended: Deferred.Deferred<BackendFailed>
  readonly to: Receiver
  /** The session of an earlier revision, if there is one. */
  readonly session: { id: string | undefined; version: string | undefined }
  /** The requests in flight, by id. */
  readonly posts: Map<JsonRpc.IdKey, { readonly post: Post; readonly fiber: Fiber.Fiber<void> }>
  readonly paramHeaders: RequestHeaders.ParamHeaders
  /** Runs an effect in a fiber that ends with the scope. */
  readonly fork: (effect: Effect.Effect<void>) => Fiber.Fiber<void>
  /** Whether the server has sent a message, which proves that it can be reached and speaks MCP. */
  established: boolean
}

/** A request that is in flight. */
interface Post {
  readonly request: JsonRpc.Request
  readonly modern: boolean
  readonly answered: Deferred.Deferred<void>
}

/** Makes a transport that lives until the scope closes. Never fails, because nothing is sent before the first message. */
export const make = Effect.fnUntraced(function*(
  target: Remote.Target,
  limits: Limits,
  mask: (text: string) => string
): Effect.fn.Return<Transport, never, Scope.Scope | HttpClient.HttpClient> {
  const remote = yield* Remote.make(target, mask)
  const scope = yield* Effect.scope
  const run = Effect.runForkWith(yield* Effect.context<never>())
  // The shutdown releases a `send` that waits for the server.
  const messages = yield* Effect.acquireRelease(Queue.bounded<JsonRpc.Message>(maxWaiting), Queue.shutdown)
  const ended = Deferred.makeUnsafe<BackendFailed>()
  return {
    pid: undefined,
    ended,
    failed: remote.failed,
    attach: Effect.fnUntraced(function*(to) {
      const server: Server = {
        remote,
        limits,
        ended,
        to: {
          receive: (message, id) => {
            learn(server, message)
            return to.receive(message, id)
          },
          garbage: (text) => to.garbage(text),
          room: to.room
        },
        session: { id: undefined, version: undefined },
        posts: new Map(),
        paramHeaders: new Map(),
        fork: (effect) => Fiber.runIn(run(effect), scope),
        established: false
      }
      yield* Scope.addFinalizer(scope, endSession(server))
      server.fork(Effect.forever(Effect.flatMap(Queue.take(messages), (message) => write(server, message))))
    }),
    offer: (message) => Queue.offerUnsafe(messages, message),
    send: (message) => Effect.asVoid(Queue.offer(messages, message))
  }
})

const sessionHeaders = ({ session: { id, version } }: Server): Modern.Headers => ({
  "mcp-session-id": id,
  "mcp-protocol-version": version
})

const endSession = (server: Server) =>
  Effect.suspend(() =>
    server.session.id === undefined || Deferred.isDoneUnsafe(server.ended) ? Effect.void : Effect.ignore(
      Effect.timeout(Effect.scoped(server.remote.send("DELETE", sessionHeaders(server))), Remote.closeTimeout)
    )
  )

const end = ({ ended, remote }: Server, error: BackendFailed | Remote.MessageTooLong) =>
  Effect.asVoid(Deferred.succeed(ended, error._tag === "BackendFailed" ? error : remote.failed(error.message)))

const forgotten = (server: Server) =>
  Effect.suspend(() => {
    const reason = "the back end no longer knows its session"
    return end(server, new BackendFailed({ reason, stderr: "", forgotten: true }))
  })

/** Sends one message. Completes when the next one may be sent: a message that changes the session must arrive before the next. */
const write = (server: Server, message: JsonRpc.Message): Effect.Effect<unknown> => {
  if (message._tag === "Request") {
    const fiber = start(server, message)
    return ["initialize", "logging/setLevel"].includes(message.method) ? Fiber.await(fiber) : Effect.void
  }
  const cancelled = JsonRpc.cancelledId(message)
  const running = cancelled === undefined ? undefined : server.posts.get(JsonRpc.idKey(cancelled))
  // A modern request is cancelled by closing its connection.
  if (running?.post.modern === true) return Fiber.interrupt(running.fiber)
  const sent = notify(server, message)
  // After a cancellation a server may leave the response stream open, so the gateway closes it.
  if (running !== undefined) return Effect.andThen(sent, Fiber.interrupt(running.fiber))
  return message._tag === "Notification" && message.method === "notifications/initialized"
    ? Effect.map(sent, () => void server.fork(standalone(server)))
    : sent
}

/** Sends a message that gets no answer. */
const notify = (server: Server, { text }: JsonRpc.Message) => {
  const { limits, remote, session } = server
  return Effect.scoped(Effect.gen(function*() {
    const { status } = yield* remote.send("POST", sessionHeaders(server), text)
    if (status === 404 && session.id !== undefined) return yield* forgotten(server)
    if (status >= 400) yield* Effect.logWarning(`The back end refused a notification or response with status ${status}`)
  })).pipe(
    Effect.timeoutOrElse({
      duration: limits.writeTimeout,
      orElse: () => remote.failed(`the back end has not accepted a message for ${Duration.format(limits.writeTimeout)}`)
    }),
    // The message is lost. A request may wait for the message's effect forever, so the session ends.
    Effect.catch((failure) => end(server, failure))
  )
}

// ---------------------------------------------------------------------------
// Requests
// ---------------------------------------------------------------------------

const start = (server: Server, message: JsonRpc.Request): Fiber.Fiber<void> => {
  const { posts } = server
  const post: Post = { request: message, modern: Modern.isModern(message, {}), answered: Deferred.makeUnsafe() }
  const fiber = server.fork(request(server, post))
  const key = JsonRpc.idKey(message.id)
  const running = { post, fiber }
  posts.set(key, running)
  fiber.addObserver(() => posts.get(key) === running && posts.delete(key))
  return fiber
}

/** Hands a text of the server to its receiver. Waits while the receiver has no room for more. */
const handOver = (server: Server, text: string, request?: JsonRpc.Id): Effect.Effect<void> =>
  Effect.suspend(() => deliver(server.to, text, request) ? Effect.void : server.to.room)

/** Learns from a message before the receiver gets it. */
const learn = (server: Server, message: JsonRpc.Message) => {
  const isResponse = message._tag === "Response"
  server.established ||= !isResponse || message.unanswered !== true
  const post = isResponse ? server.posts.get(JsonRpc.idKey(message.id))?.post : undefined
  if (!isResponse || post === undefined) return
  Deferred.doneUnsafe(post.answered, Effect.void)
  const { method } = post.request
  if (method === "tools/list") RequestHeaders.note(server.paramHeaders, message)
  const version = Json.field(message.result, "protocolVersion")
  if (method === "initialize") server.session.version = typeof version === "string" ? version : undefined
}

/** Answers a request with an error of the back end, or of the gateway. */
const answer = ({ to }: Server, response: JsonRpc.Response): Effect.Effect<void> =>
  Effect.suspend(() => to.receive(response, response.id) ? Effect.void : to.room)

/** Answers a request with an error of the gateway. Without an answer to `initialize`, ends the connection. */
const unanswered = (server: Server, { request: { id, method } }: Post, reason: string) =>
  method === "initialize"
    ? end(server, server.remote.failed(reason))
    : answer(server, { ...JsonRpc.error(id, JsonRpc.codes.internal, reason), unanswered: true })

const request = (server: Server, post: Post): Effect.Effect<void> =>
  Effect.catch(Effect.scoped(exchange(server, post, true)), (error) => {
    // A modern request can be repeated, so it gets an error. In a session, a lost response may have held other messages too, so the
    // session ends. A response over the limit is the fault of its request alone.
    const isOfRequest = post.modern || error._tag === "MessageTooLong"
    return server.established && isOfRequest ? unanswered(server, post, error.message) : end(server, error)
  })

/** Sends a request and delivers the response. `mayRepeat`: a call that lacks headers is sent again with them. */
const exchange = Effect.fnUntraced(function*(
  server: Server,
  post: Post,
  mayRepeat: boolean
): Effect.fn.Return<void, BackendFailed | Remote.MessageTooLong, Scope.Scope> {
  const { limits, session } = server
  const { modern, request: { method } } = post
  const response = yield* send(server, post.request, modern)
  const { headers, status } = response
  if (method === "initialize" && status === 200) session.id = headers["mcp-session-id"]
  if (!modern && status === 404 && session.id !== undefined) return yield* forgotten(server)
  if (status === 200 && Remote.isEventStream(response)) return yield* stream(server, post, response)
  const text = yield* Remote.textOf(response, limits.maxLineBytes)
  if (status === 200) return yield* body(server, post, text)
  const error = Json.field(Option.getOrUndefined(Json.parse(text)), "error")
  if (modern && mayRepeat && method === "tools/call" && JsonRpc.codeOf(error) === Modern.codes.headerMismatch) {
    yield* listTools(server, post.request)
    return yield* exchange(server, post, false)
  }
  yield* refused(server, post, status, error)
})

const send = (server: Server, { method, params, text }: JsonRpc.Request, modern: boolean) => {
  const headers = modern ? RequestHeaders.headersOf(method, params, server.paramHeaders) : sessionHeaders(server)
  return server.remote.send("POST", headers, text)
}

/** Delivers a response with status 200 that is not a stream. Before revision 2025-06-18 it may be a batch. */
const body = Effect.fnUntraced(function*(server: Server, post: Post, text: string) {
  const batch = text.trimStart().startsWith("[") ? Option.getOrUndefined(Json.parse(text)) : undefined
  for (const each of Array.isArray(batch) ? batch.map(Json.stringify) : [text]) {
    yield* handOver(server, each, post.request.id)
  }
  if (!Deferred.isDoneUnsafe(post.answered)) yield* unanswered(server, post, "the back end sent no answer")
})

/** Answers a request whose response has a status other than 200, or ends the connection. `error` is that of the response. */
const refused = (server: Server, post: Post, status: number, error: unknown) => {
  const { id, method } = post.request
  const isProbe = method === "server/discover"
  // The server refuses the gateway's credentials, not the client's request.
  const isUnauthorized = status === 401 || status === 403
  const reason = isUnauthorized
    ? `the back end refused the gateway's credentials (status ${status}); check the headers of its entry`
    : `the back end answered ${method} with status ${status}`
  const failed = end(server, server.remote.failed(reason))
  // These statuses tell nothing about the era of the server, so the connection ends without a verdict.
  if (isProbe && (status < 400 || status >= 500 || status === 408 || status === 429)) return failed
  if (isUnauthorized) return isProbe || !server.established ? failed : unanswered(server, post, reason)
  if (Json.isObject(error)) return answer(server, JsonRpc.failure(id, error))
  // A modern server would answer a call with a JSON-RPC error. So a server of an earlier revision may have replaced it.
  return post.modern && !isProbe && unlikeModern.includes(status) ? failed : unanswered(server, post, reason)
}

/** Statuses with which a server that has sessions refuses a request without a session id. */
const unlikeModern = [400, 404, 405]

/** Most pages of `tools/list` that are read for one call. */
const maxPages = 20

/** Learns from `tools/list` which arguments a call must repeat in headers. */
const listTools = Effect.fnUntraced(function*(server: Server, call: JsonRpc.Request) {
  const id = `tools of ${Json.stringify(call.id)}`
  let cursor: unknown
  let pages = 0
  do {
    const list = JsonRpc.request(id, "tools/list", { _meta: Json.field(call.params, "_meta"), cursor })
    const text = yield* Remote.textOf(yield* send(server, list, true), server.limits.maxLineBytes)
    const listed = JsonRpc.read(text)
    if (listed?._tag !== "Response") return
    RequestHeaders.note(server.paramHeaders, listed)
    cursor = Json.field(listed.result, "nextCursor")
  } while (typeof cursor === "string" && ++pages < maxPages)
})

// ---------------------------------------------------------------------------
// Streams
// ---------------------------------------------------------------------------

/** How far an event stream has been read. */
interface Progress {
  lastId: string | undefined
  /** How long to wait before the stream is reopened, in milliseconds. */
  retry: number
}

/** The wait before a stream is reopened, in milliseconds, if the server gives none. */
const defaultRetry = 1000
/** The session ends after more failures in a row than this to reopen its GET stream. */
const maxFailures = 3

/** Reads the event stream of a response. Resumes a broken stream if the server gave event ids. */
const stream = Effect.fnUntraced(function*(server: Server, post: Post, response: Remote.Response) {
  const { answered, request: { id } } = post
  const progress: Progress = { lastId: undefined, retry: defaultRetry }
  // After the answer, waits only a short time for the end.
  const overdue = Effect.andThen(Deferred.await(answered), Effect.sleep(Remote.closeTimeout))
  const isOver = () => Deferred.isDoneUnsafe(answered) || Deferred.isDoneUnsafe(server.ended)
  yield* Effect.raceFirst(events(server, response, progress, id), overdue)
  // Revision 2026-07-28 has no way to resume a stream.
  while (!post.modern && !isOver() && progress.lastId !== undefined) {
    yield* Effect.sleep(progress.retry)
    const refusal = yield* Effect.raceFirst(listen(server, progress, id), overdue)
    if (refusal !== undefined) break
  }
  if (!isOver()) yield* unanswered(server, post, "the back end's answer ended early")
})

/** Delivers the messages of a stream until it ends or breaks. Fails if a message exceeds the limit. */
const events = (server: Server, response: Remote.Response, progress: Progress, request?: JsonRpc.Id) =>
  Stream.runForEach(Remote.events(response, server.limits.maxLineBytes), (event) => {
    if (event._tag === "Retry") {
      progress.retry = Duration.toMillis(event.duration)
      return Effect.void
    }
    progress.lastId = event.id ?? progress.lastId
    return event.data === "" ? Effect.void : handOver(server, event.data, request)
  }).pipe(Effect.catchTag("BackendFailed", () => Effect.void))

/** Opens the GET stream of a session, or resumes a stream, and delivers its messages. Returns the status if the server refuses. */
const listen = Effect.fnUntraced(function*(server: Server, progress: Progress, request?: JsonRpc.Id) {
  const response = yield* server.remote.send("GET", { ...sessionHeaders(server), "last-event-id": progress.lastId })
  const { status } = response
  if (status === 200 && Remote.isEventStream(response)) return yield* events(server, response, progress, request)
  if (status === 404 && server.session.id !== undefined) yield* forgotten(server)
  return status
}, Effect.scoped)

/** Reads the GET stream of a session, for messages that belong to no request. A server need not have one. */
const standalone = Effect.fnUntraced(function*(server: Server) {
  const progress: Progress = { lastId: undefined, retry: defaultRetry }
  const pause = Effect.suspend(() => Effect.sleep(progress.retry))
  const listened = Effect.retry(Effect.tapError(listen(server, progress), () => pause), {
    times: maxFailures,
    while: ({ _tag }) => _tag === "BackendFailed"
  })
  let opened = false
  while (!Deferred.isDoneUnsafe(server.ended)) {
    const refusal = yield* listened
    // A server that had a stream and now refuses one was restarted.
    if (refusal === 400 && opened && server.session.id !== undefined) yield* forgotten(server)
    if (refusal !== undefined) return
    opened = true
    yield* pause
  }
}, (effect, server) => Effect.catch(effect, (error) => end(server, error)))
