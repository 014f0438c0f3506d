/** Writes event streams to clients: server-sent events, heartbeats, and an end for a client that does not read. */
import type { FileSystem } from "effect"
import { Cause, Clock, Duration, Effect, Option, Predicate, Stream } from "effect"
import type { NonEmptyReadonlyArray } from "effect/Array"
import type { HttpServerRequest } from "effect/http"
import { HttpServerResponse } from "effect/http"
import { Socket } from "node:net"
import type { Reader } from "../legacy/EventStreams.ts"
import * as PeerWatch from "./PeerWatch.ts"

export interface Options {
  /** How often a silent stream gets a comment. */
  readonly heartbeat: Duration.Duration
  /** Where the body is entered while it is open, for `watch`. */
  readonly bodies: Set<OpenBody>
  /** After this much silence a stream gets its first comment. Node sends the header with the first bytes. */
  readonly greetAfter: Duration.Duration
  /** Ends the stream when it completes, if given. */
  readonly until: Effect.Effect<void> | undefined
  readonly client: Client
}

export interface Client {
  /** Of its connection, if it is one of TCP. */
  readonly ports: { readonly local: number; readonly remote: number } | undefined
  /** Cuts the connection of a client that does not read, or is no longer there. */
  readonly disconnect: Effect.Effect<void>
}

/** A body that is being sent. */
export interface OpenBody {
  readonly client: Client
  /** Since when the client has had something to read. */
  writtenAt: number | undefined
}

/** How long a client should wait before it comes back, in milliseconds. */
const retry = 1000

const encoder = new TextEncoder()
const comment = encoder.encode(": \n\n")

interface Message {
  readonly id?: string
  readonly text: string
}

/** A JSON text has no line ends but white space, which a space can stand for. */
const format = ({ id, text }: Message): string =>
  `${id === undefined ? "" : `id: ${id}\n`}event: message\ndata: ${text.replace(/[\r\n]/g, " ")}\n\n`

/** One message as a server-sent event. */
export const event = (message: Message): Uint8Array => encoder.encode(format(message))

/** Several messages as one chunk. */
export const chunk = (messages: ReadonlyArray<Message>): Uint8Array => encoder.encode(messages.map(format).join(""))

/** The gateway's own last word on a stream that may have broken off within an event. */
export const lastEvent = (text: string): Uint8Array => encoder.encode(`\n\nevent: message\ndata: ${text}\n\n`)

/** An event without data (revision 2025-11-25), so that a client can resume from the start. */
const priming = (id: string): Uint8Array => encoder.encode(`id: ${id}\nretry: ${retry}\ndata: \n\n`)

/** Chunks of an event stream, as they come; done at its end. */
export type Take = Effect.Effect<NonEmptyReadonlyArray<Uint8Array>, Cause.Done>

/** Over when what the back end has sent at once has arrived: the first of it opens the stream, often the last ends it. */
const arrived = Effect.callback<void>((resume) => queueMicrotask(() => resume(Effect.void)))

/** The events of a reader, after the priming event if one is due. What is there at once is one chunk. */
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
 * Keeps an eye on the clients of open bodies, and disconnects those that leave what was written unread for `stallTimeout`,
 * or have vanished. One fiber for all of them, instead of a fiber with a timer for each. A stalled client is cut after one to
 * one and a half `stallTimeout`.
 */
export const watch = Effect.fnUntraced(function*(
  bodies: ReadonlySet<OpenBody>,
  stallTimeout: Duration.Duration,
  fs: FileSystem.FileSystem
) {
  const clock = yield* Clock.Clock
  const check = Effect.fnUntraced(function*(
    { client, writtenAt }: OpenBody,
    hasVanished: (localPort: number, remotePort: number) => boolean
  ) {
    const unread = writtenAt !== undefined &&
      clock.currentTimeMillisUnsafe() - writtenAt >= Duration.toMillis(stallTimeout)
    if (!unread && (client.ports === undefined || !hasVanished(client.ports.local, client.ports.remote))) return
    const what = unread ? `has not read its stream for ${Duration.format(stallTimeout)}` : "has vanished"
    yield* Effect.logWarning(`A client ${what}; disconnected`)
    yield* client.disconnect
  })
  /** One client's trouble, or one round's, is not the others'. */
  const guarded = <A>(effect: Effect.Effect<A>) =>
    Effect.catchDefect(effect, (defect) => Effect.logError("A check of the open streams died", Cause.die(defect)))
  const round = Effect.gen(function*() {
    if (bodies.size === 0) return
    const hasVanished = yield* PeerWatch.look(fs)
    yield* Effect.forEach([...bodies], (body) => guarded(check(body, hasVanished)), { discard: true })
  })
  return yield* Effect.forever(Effect.andThen(Effect.sleep(Duration.divideUnsafe(stallTimeout, 2)), guarded(round)))
})

/**
 * The body of a response: the chunks, with heartbeats between events. `ready` tells whether `take` would not wait: a take
 * with a time-out is two fibers and a timer.
 */
export const make = (
  take: Take,
  { bodies, client, greetAfter, heartbeat, until }: Options,
  ready: () => boolean = () => false
): Stream.Stream<Uint8Array> => {
  const body = Stream.scoped(Stream.fromPull(Effect.clockWith((clock) => {
    const own: OpenBody = { client, writtenAt: undefined }
    /** The last chunk ended with an event, so that a comment may follow. */
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

/** Two line ends in a row. */
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
 * The response to a request that its client has cancelled: the specification has a stream or JSON for a request, and no answer for
 * this one. Official clients log an error for an answer to a request that they have cancelled.
 */
export const unanswered: HttpServerResponse.HttpServerResponse = response(Stream.empty)

/** The connection that a request came on, if it is one of `node:net`. */
export const socketOf = ({ source }: Pick<HttpServerRequest.HttpServerRequest, "source">): Socket | undefined => {
  const socket = Predicate.hasProperty(source, "socket") ? source.socket : undefined
  return socket instanceof Socket ? socket : undefined
}

/** The client that a request came from. */
export const clientOf = (request: Pick<HttpServerRequest.HttpServerRequest, "source">): Client => {
  const socket = socketOf(request)
  const { localPort: local, remotePort: remote } = socket ?? {}
  return {
    ports: local === undefined || remote === undefined ? undefined : { local, remote },
    disconnect: Effect.sync(() => void socket?.destroy())
  }
}
