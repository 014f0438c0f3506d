/**
 * An MCP server on Streamable HTTP as a `Transport`: each line becomes a POST, and each message of the response becomes a line of
 * the server.
 *
 * The transport speaks both eras. It sends a request of revision 2026-07-28 without a session. An `initialize` opens a session of
 * an earlier revision and its GET stream; both end with the scope. A caller that does not know the server's era can therefore try
 * both on one transport.
 */
import type { Scope } from "effect"
import { Deferred, Duration, Effect, Fiber, Option, Queue, Stream } from "effect"
import type { HttpClient, HttpClientResponse } from "effect/http"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import * as JsonText from "../protocol/JsonText.ts"
import * as Modern from "../protocol/Modern.ts"
import * as ParamHeaders from "../protocol/ParamHeaders.ts"
import { BackendFailed } from "../sessions/GatewayErrors.ts"
import * as Remote from "./Remote.ts"
import type { Receiver, Transport } from "./Transport.ts"

export interface Limits {
  readonly maxLineBytes: number
  /** How long the server may take to accept a notification or a response. */
  readonly writeTimeout: Duration.Duration
}

type Response = HttpClientResponse.HttpClientResponse

/** A request that is in flight. */
interface Post {
  readonly modern: boolean
  readonly fiber: Fiber.Fiber<void>
}

/** How far an event stream has been read. */
interface Progress {
  answered: boolean
  lastId: string | undefined
  /** How long to wait before the stream is reopened, in milliseconds. */
  retry: number
}

/** The wait before a stream is reopened, in milliseconds, if the server gives none. */
const defaultRetry = 1000
/** Most lines that wait for the server to take the lines before them. */
const maxLines = 16
/** The session ends after more failures in a row than this to reopen its GET stream. */
const maxFailures = 3

/** The state of one transport. */
interface Server {
  readonly remote: Remote.Remote
  readonly limits: Limits
  readonly ended: Deferred.Deferred<BackendFailed>
  /** The requests in flight, by id. */
  readonly posts: Map<string, Post>
  readonly paramHeaders: ParamHeaders.ParamHeaders
  /** Runs an effect in a fiber that ends with the scope. */
  readonly fork: (effect: Effect.Effect<void>) => Fiber.Fiber<void>
  /** The session of an earlier revision, if there is one. */
  readonly session: { id: string | undefined; version: string | undefined }
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
  // Its end lets a `send` go that waits for the server.
  const lines = yield* Effect.acquireRelease(Queue.bounded<string>(maxLines), Queue.shutdown)
  const server: Server = {
    remote,
    limits,
    ended: Deferred.makeUnsafe(),
    posts: new Map(),
    paramHeaders: new Map(),
    fork: (effect) => {
      const fiber = run(effect)
      Fiber.runIn(fiber, scope)
      return fiber
    },
    session: { id: undefined, version: undefined },
    established: false
  }
  yield* Effect.addFinalizer(() =>
    server.session.id === undefined || Deferred.isDoneUnsafe(server.ended)
      ? Effect.void
      : Effect.ignore(
        Effect.timeout(Effect.scoped(remote.send("DELETE", sessionHeaders(server))), Remote.closeTimeout)
      )
  )
  return {
    pid: undefined,
    ended: server.ended,
    failed: remote.failed,
    attach: (to) =>
      Effect.sync(() =>
        void server.fork(Effect.forever(Effect.flatMap(Queue.take(lines), (line) => write(server, line, to))))
      ),
    offer: (line) => Queue.offerUnsafe(lines, line),
    send: (line) => Effect.asVoid(Queue.offer(lines, line))
  }
})

const end = ({ ended }: Server, failure: BackendFailed) => Effect.asVoid(Deferred.succeed(ended, failure))

const forgotten = (server: Server) =>
  Effect.suspend(() => {
    const { reason, stderr } = server.remote.failed("the back end no longer knows its session")
    return end(server, new BackendFailed({ reason, stderr, forgotten: true }))
  })

const sessionHeaders = ({ session }: Server) => ({
  "mcp-session-id": session.id,
  "mcp-protocol-version": session.version
})

/** Delivers a line, and waits while the receiver has no room for more. `request`: the id of the request that got the response. */
const deliver = (server: Server, text: string, to: Receiver, request?: JsonRpc.Id): Effect.Effect<void> =>
  Effect.suspend(() => {
    server.established = true
    return to.receive(text, request) ? Effect.void : to.room
  })

// ---------------------------------------------------------------------------
// Lines
// ---------------------------------------------------------------------------

/** Sends one line. Completes when the next line may be sent. A line that changes the session must arrive before the next one. */
const write = (server: Server, line: string, to: Receiver): Effect.Effect<unknown> => {
  const { posts } = server
  const message = JsonRpc.read(line)
  if (message === undefined) return Effect.void
  if (message._tag === "Request") {
    const modern = Modern.isModern(message, {})
    const fiber = server.fork(request(server, message, line, modern, to))
    const key = JsonRpc.idKey(message.id)
    const post: Post = { modern, fiber }
    posts.set(key, post)
    fiber.addObserver(() => posts.get(key) === post && posts.delete(key))
    return message.method === "initialize" || message.method === "logging/setLevel"
      ? Fiber.await(fiber)
      : Effect.void
  }
  const cancelled = JsonRpc.cancelledId(message)
  const post = cancelled === undefined ? undefined : posts.get(JsonRpc.idKey(cancelled))
  // A modern request is cancelled by closing its connection.
  if (post?.modern === true) return Fiber.interrupt(post.fiber)
  const sent = notify(server, line)
  // After a cancellation a server may leave the response stream open, so the gateway closes it.
  if (post !== undefined) return Effect.andThen(sent, Fiber.interrupt(post.fiber))
  return message._tag === "Notification" && message.method === "notifications/initialized"
    ? Effect.map(sent, () => void server.fork(standalone(server, to)))
    : sent
}

/** Sends a message that gets no answer. */
const notify = (server: Server, line: string) => {
  const { limits, remote } = server
  return Effect.scoped(Effect.gen(function*() {
    const headers = { accept: Remote.accept, ...sessionHeaders(server) }
    const { status } = yield* remote.send("POST", headers, line.trimEnd())
    if (status === 404 && server.session.id !== undefined) return yield* forgotten(server)
    if (status >= 400) yield* Effect.logWarning(`The back end refused a notification or response with status ${status}`)
  })).pipe(
    Effect.timeoutOrElse({
      duration: limits.writeTimeout,
      orElse: () => remote.failed(`the back end has not accepted a message for ${Duration.format(limits.writeTimeout)}`)
    }),
    // The message is lost. A request that waits for its effect would never end, so the session ends.
    Effect.catch((failure) => end(server, failure))
  )
}

// ---------------------------------------------------------------------------
// Requests
// ---------------------------------------------------------------------------

const request = (server: Server, message: JsonRpc.Request, line: string, modern: boolean, to: Receiver) =>
  Effect.scoped(Effect.gen(function*() {
    const { session } = server
    const response = yield* send(server, message, line, modern)
    const { headers, status } = response
    if (message.method === "initialize" && status === 200) session.id = headers["mcp-session-id"]
    if (!modern && status === 404 && session.id !== undefined) return yield* forgotten(server)
    if (status === 200 && Remote.isEventStream(response)) return yield* stream(server, response, message, modern, to)
    const text = yield* textOf(server, response)
    if (status === 200) return yield* body(server, text, message, to)
    if (modern && message.method === "tools/call" && isHeaderMismatch(text)) {
      return yield* callAgain(server, message, line, to)
    }
    yield* refused(server, status, text, message, to)
  })).pipe(Effect.catch((error) => {
    const failure = error._tag === "BackendFailed" ? error : server.remote.failed(error.message)
    // A modern request can be repeated, so it gets an error. In a session, a lost response may have held other messages too, so the
    // session ends. A response over the limit is the fault of its request alone.
    const isLost = error._tag === "BackendFailed" || error.limit === undefined
    return server.established && (modern || !isLost)
      ? deliver(server, failedAnswer(message.id, failure.message), to)
      : end(server, failure)
  }))

const send = (server: Server, message: JsonRpc.Request, line: string, modern: boolean) =>
  server.remote.send("POST", {
    accept: Remote.accept,
    ...(modern
      ? {
        ...Modern.headersOf(message.method, message.params),
        ...(message.method === "tools/call" ? ParamHeaders.headersOf(server.paramHeaders, message.params) : {})
      }
      : message.method === "initialize"
      ? {}
      : sessionHeaders(server))
  }, line.trimEnd())

const textOf = ({ limits }: Server, response: Response) => Remote.textOf(response, limits.maxLineBytes)

/** Reads a response with status 200 that is not a stream. */
const body = Effect.fnUntraced(function*(server: Server, text: string, message: JsonRpc.Request, to: Receiver) {
  const texts = text.trimStart().startsWith("[") && Option.isSome(JsonRpc.parse(text))
    ? JsonText.elements(text)
    : [text]
  let answered = false
  for (const each of texts) {
    answered ||= isAnswer(each, message)
    yield* deliverFor(server, message, each, to)
  }
  if (!answered) yield* unanswered(server, message, "the back end sent no answer", to)
})

/** Answers a request with an error. Without an answer to `initialize`, ends the connection. */
const unanswered = (server: Server, message: JsonRpc.Request, reason: string, to: Receiver) =>
  message.method === "initialize"
    ? end(server, server.remote.failed(reason))
    : deliver(server, failedAnswer(message.id, reason), to)

/** Answers a request whose response has a status other than 200, or ends the connection. */
const refused = (server: Server, status: number, text: string, message: JsonRpc.Request, to: Receiver) => {
  const { remote } = server
  if (Remote.isRefusal(status) && !server.established) return end(server, Remote.refusal(remote, status))
  const probing = message.method === "server/discover"
  if (probing && Remote.isNoVerdict(status)) {
    return end(server, remote.failed(`the back end answered server/discover with status ${status}`))
  }
  const error = Modern.errorOf(text, message.id)
  if (error !== undefined) return deliver(server, error, to)
  if (message.method === "initialize") {
    return end(server, remote.failed(`the back end answered initialize with status ${status}`))
  }
  return deliver(server, failedAnswer(message.id, `the back end answered with status ${status}`), to)
}

/** Learns from `tools/list` which arguments a call must repeat in headers, and then repeats the call with these headers. */
const callAgain = Effect.fnUntraced(function*(server: Server, message: JsonRpc.Request, line: string, to: Receiver) {
  let cursor: string | undefined
  for (let page = 0; page === 0 || (cursor !== undefined && page < maxPages); page++) {
    const params = { _meta: JsonRpc.field(message.params, "_meta"), cursor }
    const list = { jsonrpc: "2.0", id: `tools of ${JSON.stringify(message.id)}`, method: "tools/list", params }
    const headers = { accept: Remote.accept, ...Modern.headersOf(list.method, params) }
    const answer = yield* textOf(server, yield* server.remote.send("POST", headers, JSON.stringify(list)))
    ParamHeaders.note(server.paramHeaders, resultOf(answer))
    const next = JsonRpc.field(Option.getOrUndefined(JsonRpc.parse(resultOf(answer))), "nextCursor")
    cursor = typeof next === "string" ? next : undefined
  }
  const response = yield* send(server, message, line, true)
  const { status } = response
  if (status === 200 && Remote.isEventStream(response)) return yield* stream(server, response, message, true, to)
  const text = yield* textOf(server, response)
  yield* status === 200 ? body(server, text, message, to) : refused(server, status, text, message, to)
})

/** Delivers a line from the response to this request. Learns from it the revision of the session and the headers of tools. */
const deliverFor = (server: Server, message: JsonRpc.Request, text: string, to: Receiver) => {
  if (message.method === "tools/list") ParamHeaders.note(server.paramHeaders, resultOf(text))
  if (message.method === "initialize" && isAnswer(text, message)) {
    const version = JsonRpc.field(Option.getOrUndefined(JsonRpc.parse(resultOf(text))), "protocolVersion")
    server.session.version = typeof version === "string" ? version : undefined
  }
  return deliver(server, text, to, message.id)
}

// ---------------------------------------------------------------------------
// Streams
// ---------------------------------------------------------------------------

/** Reads the event stream of a response. Resumes a broken stream if the server gave event ids. */
const stream = Effect.fnUntraced(function*(
  server: Server,
  response: Response,
  message: JsonRpc.Request,
  modern: boolean,
  to: Receiver
) {
  const progress: Progress = { answered: false, lastId: undefined, retry: defaultRetry }
  yield* events(server, response, progress, message, to)
  // Revision 2026-07-28 has no way to resume a stream.
  const resumable = () => !modern && !progress.answered && progress.lastId !== undefined
  while (resumable()) {
    yield* Effect.sleep(progress.retry)
    const again = yield* listen(server, progress.lastId)
    if (again.status === 404 && server.session.id !== undefined) return yield* forgotten(server)
    if (again.status !== 200 || !Remote.isEventStream(again)) break
    yield* events(server, again, progress, message, to)
  }
  if (!progress.answered) yield* unanswered(server, message, "the back end's answer ended early", to)
})

/** Reads a stream to its end. After the answer, waits for the end no longer than `Remote.closeTimeout`. */
const events = (
  server: Server,
  response: Response,
  progress: Progress,
  message: JsonRpc.Request | undefined,
  to: Receiver
) => {
  const answered = Deferred.makeUnsafe<void>()
  const read = Stream.runForEach(Remote.events(response, server.limits.maxLineBytes), ({ data, id, retry }) => {
    progress.lastId = id ?? progress.lastId
    progress.retry = retry ?? progress.retry
    if (data === "") return Effect.void
    if (message === undefined) return deliver(server, data, to)
    if (isAnswer(data, message)) {
      progress.answered = true
      Deferred.doneUnsafe(answered, Effect.void)
    }
    return deliverFor(server, message, data, to)
  })
  return Effect.raceFirst(
    Effect.catch(read, (error) => {
      if (error.limit === undefined) return Effect.void
      if (message === undefined) return end(server, server.remote.failed(error.message))
      progress.answered = true
      return deliver(server, failedAnswer(message.id, error.message), to)
    }),
    Effect.andThen(Deferred.await(answered), Effect.sleep(Remote.closeTimeout))
  )
}

const listen = (server: Server, lastId: string | undefined) =>
  server.remote.send("GET", { accept: "text/event-stream", ...sessionHeaders(server), "last-event-id": lastId })

/** Reads the GET stream of a session, for messages that belong to no request. A server need not have one. */
const standalone = Effect.fnUntraced(function*(server: Server, to: Receiver) {
  const progress: Progress = { answered: false, lastId: undefined, retry: defaultRetry }
  let opened = false
  let failures = 0
  const once = Effect.scoped(Effect.gen(function*() {
    const response = yield* listen(server, progress.lastId)
    const { status } = response
    if (status === 200 && Remote.isEventStream(response)) {
      opened = true
      failures = 0
      yield* events(server, response, progress, undefined, to)
      return true
    }
    // A server that had a stream and now refuses one was restarted.
    if (server.session.id !== undefined && (status === 404 || (opened && status === 400))) yield* forgotten(server)
    return false
  })).pipe(Effect.catch((failure) => {
    if (++failures <= maxFailures) return Effect.succeed(true)
    return Effect.as(end(server, failure), false)
  }))
  while ((yield* once) && !Deferred.isDoneUnsafe(server.ended)) yield* Effect.sleep(progress.retry)
})

/** Most pages of `tools/list` that are read for one call. */
const maxPages = 20

const failedAnswer = (id: JsonRpc.Id, reason: string): string => JsonRpc.error(id, JsonRpc.codes.internal, reason)

/** The JSON of an answer's result. */
const resultOf = (text: string): string =>
  JsonText.isObject(text) && Option.isSome(JsonRpc.parse(text)) ? JsonText.member(text, "result") ?? "{}" : "{}"

const isHeaderMismatch = (text: string): boolean =>
  JsonRpc.field(JsonRpc.field(Option.getOrUndefined(JsonRpc.parse(text)), "error"), "code") ===
    Modern.codes.headerMismatch

const isAnswer = (text: string, { id }: JsonRpc.Request): boolean => {
  const message = JsonRpc.read(text)
  return message?._tag === "Response" && JsonRpc.idKey(message.id) === JsonRpc.idKey(id)
}
