/**
 * An MCP server on Streamable HTTP as a `Transport`: each line is a POST, and what its response holds are lines of the
 * server.
 *
 * It speaks both forms: a request of revision 2026-07-28 says so itself and is sent without a session; an `initialize` opens
 * a session of the earlier form, with its stream of GET, which ends with the scope. So who does not know the server's era
 * may ask it on the same transport.
 */
import type { Scope } from "effect"
import { Deferred, Duration, Effect, Fiber, Option, Predicate, Queue, Stream } from "effect"
import type { HttpClient, HttpClientResponse } from "effect/http"
import type { BackendFailed } from "./GatewayErrors.ts"
import * as JsonRpc from "./JsonRpc.ts"
import * as JsonText from "./JsonText.ts"
import * as Modern from "./Modern.ts"
import * as ParamHeaders from "./ParamHeaders.ts"
import * as Remote from "./Remote.ts"
import type { Receiver, Transport } from "./Transport.ts"

export interface Limits {
  readonly maxLineBytes: number
  /** How long the server may take to accept a message that has no answer. */
  readonly writeTimeout: Duration.Duration
}

type Response = HttpClientResponse.HttpClientResponse

/** A request that has been sent. */
interface Post {
  readonly modern: boolean
  readonly fiber: Fiber.Fiber<void>
}

/** Where a response's stream has come to. */
interface Progress {
  answered: boolean
  lastId: string | undefined
  /** In milliseconds. */
  retry: number
}

/** How long to wait before a stream is opened anew, in milliseconds. */
const defaultRetry = 1000
/** Failures in a row to open the stream of GET anew, before the session is given up. */
const maxFailures = 3

/** Lives until the scope closes. Fails never: what is wrong with the server shows with the first message. */
export const make = Effect.fnUntraced(function*(
  target: Remote.Target,
  limits: Limits,
  mask: (text: string) => string
): Effect.fn.Return<Transport, never, Scope.Scope | HttpClient.HttpClient> {
  const remote = yield* Remote.make(target, mask)
  const scope = yield* Effect.scope
  const run = Effect.runForkWith(yield* Effect.context<never>())
  const ended = Deferred.makeUnsafe<BackendFailed>()
  const lines = yield* Queue.unbounded<string>()
  const posts = new Map<string, Post>()
  const paramHeaders: ParamHeaders.ParamHeaders = new Map()
  /** Of the earlier form. */
  const session: { id: string | undefined; version: string | undefined } = { id: undefined, version: undefined }
  /** The server has answered something: it is there, and speaks MCP. */
  let established = false

  const end = (failure: BackendFailed) => Effect.asVoid(Deferred.succeed(ended, failure))
  const forgotten = end(remote.failed("the back end does not know its session any more"))

  yield* Effect.addFinalizer(() =>
    session.id === undefined || Deferred.isDoneUnsafe(ended)
      ? Effect.void
      : Effect.ignore(Effect.timeout(Effect.scoped(remote.send("DELETE", sessionHeaders())), Remote.closeTimeout))
  )

  const sessionHeaders = () => ({ "mcp-session-id": session.id, "mcp-protocol-version": session.version })

  // ---------------------------------------------------------------------------
  // Requests
  // ---------------------------------------------------------------------------

  const request = (message: JsonRpc.Request, line: string, modern: boolean, to: Receiver) =>
    Effect.scoped(Effect.gen(function*() {
      const response = yield* send(message, line, modern)
      const { headers, status } = response
      if (message.method === "initialize" && status === 200) session.id = headers["mcp-session-id"]
      if (!modern && status === 404 && session.id !== undefined) return yield* forgotten
      if (status === 200 && Remote.isEventStream(response)) return yield* stream(response, message, modern, to)
      const text = yield* textOf(response)
      if (status === 200) return yield* body(text, message, to)
      if (modern && message.method === "tools/call" && isHeaderMismatch(text)) {
        return yield* callAgain(message, line, to)
      }
      yield* refused(status, text, message, to)
    })).pipe(Effect.catch((failure) =>
      // What a session has lost with a request it never learns; a request without one can be made again.
      established && modern ? deliver(failedAnswer(message.id, failure.message), to) : end(failure)
    ))

  const send = (message: JsonRpc.Request, line: string, modern: boolean) =>
    remote.send("POST", {
      accept: Remote.accept,
      ...(modern
        ? {
          ...Modern.headersOf(message.method, message.params),
          ...(message.method === "tools/call" ? ParamHeaders.headersOf(paramHeaders, message.params) : {})
        }
        : message.method === "initialize"
        ? {}
        : sessionHeaders())
    }, line.trimEnd())

  const textOf = (response: Response) => Remote.textOf(remote, response, limits.maxLineBytes)

  /** A response with status 200 that is no stream. */
  const body = Effect.fnUntraced(function*(text: string, message: JsonRpc.Request, to: Receiver) {
    const texts = text.trimStart().startsWith("[") && Option.isSome(JsonRpc.parse(text))
      ? JsonText.elements(text)
      : [text]
    let answered = false
    for (const each of texts) {
      answered ||= isAnswer(each, message)
      yield* deliverFor(message, each, to)
    }
    if (!answered) yield* deliver(failedAnswer(message.id, "the back end sent no answer"), to)
  })

  /** What a status other than 200 means for its request. */
  const refused = (status: number, text: string, message: JsonRpc.Request, to: Receiver) => {
    if (Remote.isRefusal(status) && !established) return end(Remote.refusal(remote, status))
    const probing = message.method === "server/discover"
    if (probing && Remote.isNoVerdict(status)) {
      return end(remote.failed(`the back end answered server/discover with status ${status}`))
    }
    const error = Modern.errorOf(text, message.id)
    if (error !== undefined) return deliver(error, to)
    if (message.method === "initialize") {
      return end(remote.failed(`the back end answered initialize with status ${status}`))
    }
    return deliver(failedAnswer(message.id, `the back end answered with status ${status}`), to)
  }

  /** Reads the stream of a response; one that breaks off is gone on with, where the server has made that possible. */
  const stream = Effect.fnUntraced(function*(
    response: Response,
    message: JsonRpc.Request,
    modern: boolean,
    to: Receiver
  ) {
    const progress: Progress = { answered: false, lastId: undefined, retry: defaultRetry }
    yield* events(response, progress, message, to)
    // Revision 2026-07-28 cannot go on with a stream.
    const resumable = () => !modern && !progress.answered && progress.lastId !== undefined
    while (resumable()) {
      yield* Effect.sleep(progress.retry)
      const again = yield* listen(progress.lastId)
      if (again.status === 404 && session.id !== undefined) return yield* forgotten
      if (again.status !== 200 || !Remote.isEventStream(again)) break
      yield* events(again, progress, message, to)
    }
    if (!progress.answered) yield* deliver(failedAnswer(message.id, "the back end broke off its answer"), to)
  })

  /** Reads a stream to its end, which may be left out after the answer. */
  const events = (response: Response, progress: Progress, message: JsonRpc.Request | undefined, to: Receiver) => {
    const answered = Deferred.makeUnsafe<void>()
    const read = Stream.runForEach(Remote.events(response, limits.maxLineBytes), ({ data, id, retry }) => {
      progress.lastId = id ?? progress.lastId
      progress.retry = retry ?? progress.retry
      if (data === "") return Effect.void
      if (message === undefined) return deliver(data, to)
      if (isAnswer(data, message)) {
        progress.answered = true
        Deferred.doneUnsafe(answered, Effect.void)
      }
      return deliverFor(message, data, to)
    })
    return Effect.raceFirst(
      Effect.ignore(read),
      Effect.andThen(Deferred.await(answered), Effect.sleep(Remote.closeTimeout))
    )
  }

  const listen = (lastId: string | undefined) =>
    remote.send("GET", { accept: "text/event-stream", ...sessionHeaders(), "last-event-id": lastId })

  /** Hands a line on, and waits while the receiver has no room for more. */
  const deliver = (text: string, to: Receiver): Effect.Effect<void> =>
    Effect.suspend(() => {
      established = true
      return to.receive(text) ? Effect.void : to.room
    })

  /** The same, for a line that a response to this request holds. */
  const deliverFor = (message: JsonRpc.Request, text: string, to: Receiver) => {
    if (message.method === "tools/list") ParamHeaders.note(paramHeaders, resultOf(text))
    if (message.method === "initialize" && isAnswer(text, message)) {
      const version = field(Option.getOrUndefined(JsonRpc.parse(resultOf(text))), "protocolVersion")
      session.version = typeof version === "string" ? version : undefined
    }
    return deliver(text, to)
  }

  /** Learns which arguments the headers of tools repeat, and makes a call once more with them. */
  const callAgain = Effect.fnUntraced(function*(message: JsonRpc.Request, line: string, to: Receiver) {
    let cursor: string | undefined
    for (let page = 0; page === 0 || (cursor !== undefined && page < maxPages); page++) {
      const params = { _meta: field(message.params, "_meta"), cursor }
      const list = { jsonrpc: "2.0", id: `tools of ${JSON.stringify(message.id)}`, method: "tools/list", params }
      const response = yield* remote.send("POST", {
        accept: Remote.accept,
        ...Modern.headersOf(list.method, params)
      }, JSON.stringify(list))
      const answer = yield* textOf(response)
      ParamHeaders.note(paramHeaders, resultOf(answer))
      const next = field(Option.getOrUndefined(JsonRpc.parse(resultOf(answer))), "nextCursor")
      cursor = typeof next === "string" ? next : undefined
    }
    const response = yield* send(message, line, true)
    if (response.status === 200 && Remote.isEventStream(response)) return yield* stream(response, message, true, to)
    const text = yield* textOf(response)
    yield* response.status === 200 ? body(text, message, to) : refused(response.status, text, message, to)
  })

  // ---------------------------------------------------------------------------
  // Messages without an answer, and the stream of GET
  // ---------------------------------------------------------------------------

  const notify = (line: string) =>
    Effect.scoped(Effect.gen(function*() {
      const { status } = yield* remote.send("POST", { accept: Remote.accept, ...sessionHeaders() }, line.trimEnd())
      if (status === 404 && session.id !== undefined) return yield* forgotten
      if (status >= 400) yield* Effect.logWarning(`The back end refused a message with status ${status}`)
    })).pipe(
      Effect.timeoutOrElse({
        duration: limits.writeTimeout,
        orElse: () => remote.failed(`the back end has not taken a message for ${Duration.format(limits.writeTimeout)}`)
      }),
      // It is lost, and whoever waits for what it was to bring about would wait for ever.
      Effect.catch(end)
    )

  /** The stream of what belongs to no request, for as long as the session lives; a server need not have one. */
  const standalone = Effect.fnUntraced(function*(to: Receiver) {
    const progress: Progress = { answered: false, lastId: undefined, retry: defaultRetry }
    let opened = false
    let failures = 0
    const once = Effect.scoped(Effect.gen(function*() {
      const response = yield* listen(progress.lastId)
      if (response.status === 200 && Remote.isEventStream(response)) {
        opened = true
        failures = 0
        yield* events(response, progress, undefined, to)
        return true
      }
      // A server that has had a stream and now refuses one has been started anew.
      if (session.id !== undefined && (response.status === 404 || (opened && response.status === 400))) yield* forgotten
      return false
    })).pipe(Effect.catch((failure) => {
      if (++failures <= maxFailures) return Effect.succeed(true)
      return Effect.as(end(failure), false)
    }))
    while (yield* once) yield* Effect.sleep(progress.retry)
  })

  // ---------------------------------------------------------------------------
  // Lines
  // ---------------------------------------------------------------------------

  const fork = (effect: Effect.Effect<void>) => {
    const fiber = run(effect)
    Fiber.runIn(fiber, scope)
    return fiber
  }

  /** Sends one line. Completes when the next one may go: what changes the session must have arrived before. */
  const write = (line: string, to: Receiver): Effect.Effect<unknown> => {
    const message = JsonRpc.classify(Option.getOrUndefined(JsonRpc.parse(line)))
    if (message === undefined) return Effect.void
    if (message._tag === "Request") {
      const modern = Modern.isModern(message, {})
      const fiber = fork(request(message, line, modern, to))
      const key = JsonRpc.idKey(message.id)
      const post: Post = { modern, fiber }
      posts.set(key, post)
      fiber.addObserver(() => posts.get(key) === post && posts.delete(key))
      return message.method === "initialize" || message.method === "logging/setLevel"
        ? Fiber.await(fiber)
        : Effect.void
    }
    const post = message._tag === "Notification" && message.method === "notifications/cancelled"
      ? posts.get(JsonRpc.idKey(cancelledId(message.params)))
      : undefined
    // The end of its connection is the cancellation.
    if (post?.modern === true) return Fiber.interrupt(post.fiber)
    const sent = notify(line)
    // A server that has cancelled a request leaves its stream without an end.
    if (post !== undefined) return Effect.andThen(sent, Fiber.interrupt(post.fiber))
    return message._tag === "Notification" && message.method === "notifications/initialized"
      ? Effect.map(sent, () => void fork(standalone(to)))
      : sent
  }

  return {
    pid: undefined,
    ended,
    attach: (to) =>
      Effect.sync(() => void fork(Effect.forever(Effect.flatMap(Queue.take(lines), (line) => write(line, to))))),
    offer: (line) => Queue.offerUnsafe(lines, line),
    send: (line) => Effect.asVoid(Queue.offer(lines, line))
  }
})

/** Pages of tools that are looked through for one call. */
const maxPages = 20

const failedAnswer = (id: JsonRpc.Id, reason: string): string => JsonRpc.error(id, JsonRpc.codes.internal, reason)

/** JSON of an answer's result. */
const resultOf = (text: string): string =>
  JsonText.isObject(text) && Option.isSome(JsonRpc.parse(text)) ? JsonText.member(text, "result") ?? "{}" : "{}"

const isHeaderMismatch = (text: string): boolean =>
  field(field(Option.getOrUndefined(JsonRpc.parse(text)), "error"), "code") === Modern.codes.headerMismatch

const isAnswer = (text: string, { id }: JsonRpc.Request): boolean => {
  const message = JsonRpc.classify(Option.getOrUndefined(JsonRpc.parse(text)))
  return message?._tag === "Response" && JsonRpc.idKey(message.id) === JsonRpc.idKey(id)
}

const cancelledId = (params: unknown): JsonRpc.Id => {
  const id = field(params, "requestId")
  return typeof id === "string" || typeof id === "number" ? id : null
}

const field = (value: unknown, name: string): unknown => Predicate.hasProperty(value, name) ? value[name] : undefined
