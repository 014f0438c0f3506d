/** Writes event streams to clients: server-sent events and heartbeats. Disconnects clients that do not read. */
import { Cause, Clock, Duration, Effect, Option, Stream } from "effect"
import type { NonEmptyReadonlyArray } from "effect/Array"
import type { HttpServerRequest } from "effect/http"
import { HttpServerResponse } from "effect/http"
import * as PeerOwner from "../auth/PeerOwner.ts"
import type { Reader } from "../conversation/EventStreams.ts"

export interface Options {
  /** A silent stream sends a comment this often. */
  readonly heartbeat: Duration.Duration
  /** The open bodies, which `watch` checks. A body adds itself while it is open. */
  readonly bodies: Set<OpenBody>
  /** Silence before the first comment. Node sends the response's header with the first bytes. */
  readonly greetAfter: Duration.Duration
  /** If given, the stream ends when this completes. */
  readonly until: Effect.Effect<void> | undefined
  readonly client: Client
}

export interface Client {
  /** Destroys the client's connection. */
  readonly disconnect: Effect.Effect<void>
}

/** A body that is being sent. */
export interface OpenBody {
  readonly client: Client
  /** When the body wrote the chunk that the client has not read yet. Undefined if the client has read everything. */
  writtenAt: number | undefined
}

/** Milliseconds that a client should wait before it reconnects. */
const retry = 1000

const encoder = new TextEncoder()
const comment = encoder.encode(": \n\n")

interface Message {
  readonly id?: string
  readonly text: string
}

/** Line ends in valid JSON are white space only, so a space can stand for each. */
const format = ({ id, text }: Message): string =>
  `${id === undefined ? "" : `id: ${id}\n`}event: message\ndata: ${text.replace(/[\r\n]/g, " ")}\n\n`

/** One message as a server-sent event. */
export const event = (message: Message): Uint8Array => encoder.encode(format(message))

/** Several messages as one chunk. */
export const chunk = (messages: ReadonlyArray<Message>): Uint8Array => encoder.encode(messages.map(format).join(""))

/** The gateway's own last event on a stream that may have stopped inside an event, so it ends that event first. */
export const lastEvent = (text: string): Uint8Array => encoder.encode(`\n\nevent: message\ndata: ${text}\n\n`)

/** An event with an id and without data (revision 2025-11-25), so that a client can resume from the start. */
const priming = (id: string): Uint8Array => encoder.encode(`id: ${id}\nretry: ${retry}\ndata: \n\n`)

/** Takes the next chunks of an event stream. Fails with `Done` at its end. */
export type Take = Effect.Effect<NonEmptyReadonlyArray<Uint8Array>, Cause.Done>

/** Waits one microtask, so that a burst of the back end becomes one chunk. */
const arrived = Effect.callback<void>((resume) => queueMicrotask(() => resume(Effect.void)))

/**
 * The events of a reader as chunks, after the priming event if `prime` is set. Events that arrive together are one
 * chunk.
 */
export const fromReader = (reader: Reader, prime: boolean): Take => {
  const events = Effect.map(
    Effect.andThen(arrived, reader.take),
    (taken) => [chunk(taken)] as const
  )
  let first = prime
  return Effect.suspend(() => {
    if (!first) return events
    first = false
    return Effect.succeed<NonEmptyReadonlyArray<Uint8Array>>([priming(reader.start)])
  })
}

/**
 * Disconnects the clients of open bodies that leave data unread for `stallTimeout`: after one to one and a half times that.
 * One fiber checks all bodies, instead of a fiber with a timer for each.
 */
export const watch = Effect.fnUntraced(function*(bodies: ReadonlySet<OpenBody>, stallTimeout: Duration.Duration) {
  const clock = yield* Clock.Clock
  const check = Effect.fnUntraced(function*({ client, writtenAt }: OpenBody) {
    if (writtenAt === undefined) return
    if (clock.currentTimeMillisUnsafe() - writtenAt < Duration.toMillis(stallTimeout)) return
    yield* Effect.logWarning(
      `A client did not read its event stream for ${Duration.format(stallTimeout)}; the gateway closed its connection`
    )
    yield* client.disconnect
  })
  /** A defect in one check must not end the watch. */
  const guarded = (body: OpenBody) =>
    Effect.catchDefect(
      check(body),
      (defect) => Effect.logError("A check of an open event stream failed", Cause.die(defect))
    )
  const round = Effect.suspend(() => Effect.forEach([...bodies], guarded, { discard: true }))
  return yield* Effect.forever(Effect.andThen(Effect.sleep(Duration.divideUnsafe(stallTimeout, 2)), round))
})

/**
 * The body of a response: the chunks, with heartbeats between events. While `ready()` is true, `take` is known not to
 * wait and runs without a timeout, which would cost two fibers and a timer.
 */
export const make = (
  take: Take,
  { bodies, client, greetAfter, heartbeat, until }: Options,
  ready: () => boolean = () => false
): Stream.Stream<Uint8Array> => {
  const body = Stream.scoped(Stream.fromPull(Effect.clockWith((clock) => {
    const own: OpenBody = { client, writtenAt: undefined }
    /** True if the last chunk ended an event, so that a comment may follow. */
    let between = true
    let silence = greetAfter
    const written = (chunks: NonEmptyReadonlyArray<Uint8Array>) => {
      between = endsEvent(chunks[chunks.length - 1])
      silence = heartbeat
      own.writtenAt = clock.currentTimeMillisUnsafe()
      return chunks
    }
    const next: Take = Effect.suspend(() =>
      ready() ? Effect.map(take, written) : Effect.flatMap(Effect.timeoutOption(take, silence), (taken) => {
        if (Option.isSome(taken)) return Effect.succeed(written(taken.value))
        return between ? Effect.succeed(written([comment])) : next
      })
    )
    const pull = Effect.suspend(() => {
      own.writtenAt = undefined
      return next
    })
    const entered = Effect.acquireRelease(
      Effect.sync(() => bodies.add(own)),
      () => Effect.sync(() => bodies.delete(own))
    )
    return Effect.as(entered, pull)
  })))
  return until === undefined ? body : Stream.interruptWhen(body, until)
}

/** True if the chunk ends with an empty line, which ends an event. */
const endsEvent = (chunk: Uint8Array | undefined): boolean =>
  chunk !== undefined && /(\n\n|\r\r|\r\n\r\n)$/.test(String.fromCharCode(...chunk.subarray(-4)))

/** The response that streams a body. */
export const response = (
  body: Stream.Stream<Uint8Array, unknown>,
  status = 200
): HttpServerResponse.HttpServerResponse =>
  HttpServerResponse.stream(body, {
    status,
    contentType: "text/event-stream",
    headers: { "cache-control": "no-cache, no-transform", "x-accel-buffering": "no" }
  })

/**
 * The response to a request that its client has cancelled: an empty event stream. The specification requires an event
 * stream or JSON for a request, and no answer to a cancelled one. Official clients log an error if a cancelled request
 * is answered.
 */
export const unanswered: HttpServerResponse.HttpServerResponse = response(Stream.empty)

/** The client that a request came from. */
export const clientOf = (request: Pick<HttpServerRequest.HttpServerRequest, "source">): Client => ({
  disconnect: Effect.sync(() => void PeerOwner.socketOf(request)?.destroy())
})
