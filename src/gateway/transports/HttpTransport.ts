/**
 * An MCP server on Streamable HTTP as a `Transport`: each message becomes a POST, and each message of the response is a message of
 * the server.
 *
 * The transport speaks both eras. It sends a request of revision 2026-07-28 without a session. An `initialize` opens a session of
 * an earlier revision and its GET stream; both end with the scope. A caller that does not know the server's era can therefore try
 * both on one transport.
 */
import type { Scope } from "effect"
import { Deferred, Duration, Effect, Fiber, Option, Queue, Stream } from "effect"
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
  /** The session of an earlier revision, if there is one. */
  readonly session: { id: string | undefined; version: string | undefined }
  readonly to: Receiver
  /** The requests in flight, by id. */
  readonly posts: Map<string, { readonly modern: boolean; readonly fiber: Fiber.Fiber<void> }>
  readonly paramHeaders: RequestHeaders.ParamHeaders
  /** Runs an effect in a fiber that ends with the scope. */
  readonly fork: (effect: Effect.Effect<void>) => Fiber.Fiber<void>
  /** Whether the server has sent a message, which proves that it can be reached and speaks MCP. */
  established: boolean
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
  const session: Server["session"] = { id: undefined, version: undefined }
  const fork: Server["fork"] = (effect) => {
    const fiber = run(effect)
    Fiber.runIn(fiber, scope)
    return fiber
  }
  yield* Effect.addFinalizer(() =>
    session.id === undefined || Deferred.isDoneUnsafe(ended) ? Effect.void : Effect.ignore(
      Effect.timeout(Effect.scoped(remote.send("DELETE", sessionHeaders(session))), Remote.closeTimeout)
    )
  )
  return {
    pid: undefined,
    ended,
    failed: remote.failed,
    attach: (to) =>
      Effect.sync(() => {
        const server: Server = {
          remote,
          limits,
          ended,
          session,
          to,
          fork,
          posts: new Map(),
          paramHeaders: new Map(),
          established: false
        }
        fork(Effect.forever(Effect.flatMap(Queue.take(messages), (message) => write(server, message))))
      }),
    offer: (message) => Queue.offerUnsafe(messages, message),
    send: (message) => Effect.asVoid(Queue.offer(messages, message))
  }
})

const sessionHeaders = ({ id, version }: Server["session"]): Remote.Headers => ({
  "mcp-session-id": id,
  "mcp-protocol-version": version
})

const end = ({ ended }: Server, failure: BackendFailed) => Effect.asVoid(Deferred.succeed(ended, failure))

const forgotten = (server: Server) =>
  Effect.suspend(() => {
    const { reason, stderr } = server.remote.failed("the back end no longer knows its session")
    return end(server, new BackendFailed({ reason, stderr, forgotten: true }))
  })

/** Sends one message. Completes when the next one may be sent: a message that changes the session must arrive before the next. */
const write = (server: Server, message: JsonRpc.Message): Effect.Effect<unknown> => {
  const { posts } = server
  if (message._tag === "Request") {
    const post = postOf(server, message)
    const fiber = server.fork(request(server, post))
    const key = JsonRpc.idKey(message.id)
    const entry = { modern: post.modern, fiber }
    posts.set(key, entry)
    fiber.addObserver(() => posts.get(key) === entry && posts.delete(key))
    return message.method === "initialize" || message.method === "logging/setLevel"
      ? Fiber.await(fiber)
      : Effect.void
  }
  const cancelled = JsonRpc.cancelledId(message)
  const post = cancelled === undefined ? undefined : posts.get(JsonRpc.idKey(cancelled))
  // A modern request is cancelled by closing its connection.
  if (post?.modern === true) return Fiber.interrupt(post.fiber)
  const sent = notify(server, message)
  // After a cancellation a server may leave the response stream open, so the gateway closes it.
  if (post !== undefined) return Effect.andThen(sent, Fiber.interrupt(post.fiber))
  return message._tag === "Notification" && message.method === "notifications/initialized"
    ? Effect.map(sent, () => void server.fork(standalone(server)))
    : sent
}

/** Sends a message that gets no answer. */
const notify = (server: Server, { text }: JsonRpc.Message) => {
  const { limits, remote, session } = server
  return Effect.scoped(Effect.gen(function*() {
    const { status } = yield* remote.send("POST", sessionHeaders(session), text)
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

/** A request that is in flight. */
interface Post {
  readonly request: JsonRpc.Request
  readonly modern: boolean
  /** Receives the messages of the response. */
  readonly to: Receiver
  readonly answered: Deferred.Deferred<void>
}

const postOf = (server: Server, request: JsonRpc.Request): Post => {
  const { to } = server
  const answered = Deferred.makeUnsafe<void>()
  return {
    request,
    modern: Modern.isModern(request, {}),
    answered,
    to: {
      receive: (message, id) => {
        server.established = true
        if (message._tag === "Response" && JsonRpc.idKey(message.id) === JsonRpc.idKey(request.id)) {
          Deferred.doneUnsafe(answered, Effect.void)
          learn(server, request, message)
        }
        return to.receive(message, id)
      },
      garbage: (text) => to.garbage(text),
      room: to.room
    }
  }
}

/** Learns from an answer the revision of the session and the headers of tools. */
const learn = ({ paramHeaders, session }: Server, { method }: JsonRpc.Request, answer: JsonRpc.Response) => {
  if (method === "tools/list") RequestHeaders.note(paramHeaders, answer)
  if (method !== "initialize") return
  const version = Json.field(answer.result, "protocolVersion")
  session.version = typeof version === "string" ? version : undefined
}

/** Hands a text of the server to its receiver. Waits while the receiver has no room for more. */
const handOver = (to: Receiver, text: string, request?: JsonRpc.Id): Effect.Effect<void> =>
  Effect.suspend(() => deliver(to, text, request) ? Effect.void : to.room)

/** Answers a request with an error of the back end, or of the gateway. */
const answer = ({ to }: Server, response: JsonRpc.Response): Effect.Effect<void> =>
  Effect.suspend(() => to.receive(response, response.id) ? Effect.void : to.room)

const failedAnswer = (id: JsonRpc.Id, reason: string): JsonRpc.Response => ({
  ...JsonRpc.error(id, JsonRpc.codes.internal, reason),
  unanswered: true
})

/** Answers a request with an error. Without an answer to `initialize`, ends the connection. */
const unanswered = (server: Server, { request }: Post, reason: string) =>
  request.method === "initialize"
    ? end(server, server.remote.failed(reason))
    : answer(server, failedAnswer(request.id, reason))

const request = (server: Server, post: Post): Effect.Effect<void> =>
  Effect.catch(Effect.scoped(exchange(server, post, true)), (error) => {
    const failure = error._tag === "BackendFailed" ? error : server.remote.failed(error.message)
    // A modern request can be repeated, so it gets an error. In a session, a lost response may have held other messages too, so the
    // session ends. A response over the limit is the fault of its request alone.
    const isLost = error._tag === "BackendFailed" || error.limit === undefined
    return server.established && (post.modern || !isLost)
      ? answer(server, failedAnswer(post.request.id, failure.message))
      : end(server, failure)
  })

/** Sends a request and delivers the response. `mayRepeat`: a call that lacks headers is sent again with them. */
const exchange = Effect.fnUntraced(function*(
  server: Server,
  post: Post,
  mayRepeat: boolean
): Effect.fn.Return<void, BackendFailed | Remote.ResponseFailed, Scope.Scope> {
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

const send = (
  { paramHeaders, remote, session }: Server,
  { method, params, text }: JsonRpc.Request,
  modern: boolean
) => {
  if (method === "initialize") return remote.send("POST", {}, text)
  if (!modern) return remote.send("POST", sessionHeaders(session), text)
  // A header of the back end's entry wins over a header that repeats an argument.
  const repeated = Object.entries(RequestHeaders.headersOf(method, params, paramHeaders))
    .filter(([name]) => !name.startsWith("mcp-param-") || !remote.given.has(name))
  return remote.send("POST", Object.fromEntries(repeated), text)
}

/** Delivers a response with status 200 that is not a stream. Before revision 2025-06-18 it may be a batch. */
const body = Effect.fnUntraced(function*(server: Server, post: Post, text: string) {
  const batch = text.trimStart().startsWith("[") ? Option.getOrUndefined(Json.parse(text)) : undefined
  for (const each of Array.isArray(batch) ? batch.map(Json.stringify) : [text]) {
    yield* handOver(post.to, each, post.request.id)
  }
  if (!Deferred.isDoneUnsafe(post.answered)) yield* unanswered(server, post, "the back end sent no answer")
})

/** Answers a request whose response has a status other than 200, or ends the connection. `error` is that of the response. */
const refused = (server: Server, post: Post, status: number, error: unknown) => {
  const { id, method } = post.request
  const isRefusal = Remote.isRefusal(status)
  const reason = isRefusal ? Remote.refusal(status) : `the back end answered ${method} with status ${status}`
  // Such a status says nothing about the server's era, so the connection ends without a verdict.
  const isNoAnswer = method === "server/discover" && Remote.isNoVerdict(status)
  if (isNoAnswer || (isRefusal && !server.established)) return end(server, server.remote.failed(reason))
  if (Json.isObject(error) && !isRefusal) return answer(server, JsonRpc.failure(id, error))
  // A modern server answers a call with a JSON-RPC error, so a server of an earlier revision may have replaced it.
  if (post.modern && method !== "server/discover" && unlikeModern.includes(status)) {
    return end(server, server.remote.failed(reason))
  }
  return unanswered(server, post, reason)
}

/** Statuses with which a server that has sessions refuses a request without a session id. */
const unlikeModern = [400, 404, 405]

/** Most pages of `tools/list` that are read for one call. */
const maxPages = 20

/** Learns from `tools/list` which arguments a call must repeat in headers. */
const listTools = Effect.fnUntraced(function*(server: Server, call: JsonRpc.Request) {
  const id = `tools of ${JsonRpc.idKey(call.id)}`
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
  const progress: Progress = { lastId: undefined, retry: defaultRetry }
  // After the answer, waits only a short time for the end.
  const overdue = Effect.andThen(Deferred.await(post.answered), Effect.sleep(Remote.closeTimeout))
  const read = (from: Remote.Response) =>
    Effect.raceFirst(events(server, from, progress, post.to, post.request.id), overdue)
  yield* read(response)
  // Revision 2026-07-28 has no way to resume a stream.
  while (!post.modern && !Deferred.isDoneUnsafe(post.answered) && progress.lastId !== undefined) {
    yield* Effect.sleep(progress.retry)
    const again = yield* listen(server, progress)
    if (again.status === 404 && server.session.id !== undefined) return yield* forgotten(server)
    if (again.status !== 200 || !Remote.isEventStream(again)) break
    yield* read(again)
  }
  if (!Deferred.isDoneUnsafe(post.answered)) yield* unanswered(server, post, "the back end's answer ended early")
})

/** Delivers the messages of a stream until it ends or breaks. Fails if a message exceeds the limit. */
const events = (server: Server, response: Remote.Response, progress: Progress, to: Receiver, request?: JsonRpc.Id) =>
  Stream.runForEach(Remote.events(response, server.limits.maxLineBytes), ({ data, id, retry }) => {
    progress.lastId = id ?? progress.lastId
    progress.retry = retry ?? progress.retry
    return data === "" ? Effect.void : handOver(to, data, request)
  }).pipe(Effect.catchIf(({ limit }) => limit === undefined, () => Effect.void))

const listen = ({ remote, session }: Server, { lastId }: Progress) =>
  remote.send("GET", { ...sessionHeaders(session), "last-event-id": lastId })

/** Reads the GET stream of a session, for messages that belong to no request. A server need not have one. */
const standalone = Effect.fnUntraced(function*(server: Server) {
  const { ended, remote, session, to } = server
  const progress: Progress = { lastId: undefined, retry: defaultRetry }
  let opened = false
  let failures = 0
  const once = Effect.scoped(Effect.gen(function*() {
    const response = yield* listen(server, progress)
    const { status } = response
    if (status === 200 && Remote.isEventStream(response)) {
      opened = true
      failures = 0
      yield* events(server, response, progress, to)
      return true
    }
    // A server that had a stream and now refuses one was restarted.
    if (session.id !== undefined && (status === 404 || (opened && status === 400))) yield* forgotten(server)
    return false
  })).pipe(Effect.catch((error) => {
    if (error._tag === "ResponseFailed") return Effect.as(end(server, remote.failed(error.message)), false)
    return ++failures <= maxFailures ? Effect.succeed(true) : Effect.as(end(server, error), false)
  }))
  while ((yield* once) && !Deferred.isDoneUnsafe(ended)) yield* Effect.sleep(progress.retry)
})
