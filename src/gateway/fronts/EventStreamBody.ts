/** Writes event streams to clients: server-sent events and heartbeats. Disconnects clients that do not read. */
import { Cause, Clock, Duration, Effect, Fiber, Option, Stream } from "effect"
import type { NonEmptyReadonlyArray } from "effect/Array"
import { Sse } from "effect/encoding"
import type { HttpServerRequest } from "effect/http"
import { HttpServerResponse } from "effect/http"
import * as PeerOwner from "../auth/PeerOwner.ts"
import type { Event, Events } from "../conversation/Exchange.ts"

export interface Options {
  /** A silent stream sends a comment this often. */
  readonly heartbeat: Duration.Duration
  /** The open bodies, which `watch` checks. A body adds itself while it is open. */
  readonly bodies: Set<OpenBody>
  /** Destroys the client's connection. */
  readonly disconnect: Effect.Effect<void>
}

/** A body that is being sent. */
export interface OpenBody {
  readonly disconnect: Effect.Effect<void>
  /** When the body wrote the chunk that the client has not read yet. Undefined if the client has read everything. */
  writtenAt: number | undefined
}

/** Milliseconds that a client should wait before it reconnects. */
const retry = 1000

const encoder = new TextEncoder()
const comment = encoder.encode(": \n\n")

/** Line ends in valid JSON are white space only, so a space can stand for each. */
const format = ({ id, text }: Event): string =>
  Sse.encoder.write({ _tag: "Event", event: "message", id, data: text.replace(/[\r\n]/g, " ") })

/** Events as one chunk. */
const chunk = (events: ReadonlyArray<Event>): Uint8Array => encoder.encode(events.map(format).join(""))

/** An event with an id and without data (revision 2025-11-25), so that a client can resume from the start. */
const priming = (id: string): Uint8Array => encoder.encode(`id: ${id}\nretry: ${retry}\ndata: \n\n`)

/** Takes the next chunks of an event stream. Fails with `Done` at its end. */
type Take = Effect.Effect<NonEmptyReadonlyArray<Uint8Array>, Cause.Done>

/** Waits one microtask, so that a burst of the back end becomes one chunk. */
const arrived = Effect.callback<void>((resume) => queueMicrotask(() => resume(Effect.void)))

/** The events as chunks, after the priming event if `prime` is set. Events that arrive together are one chunk. */
const chunksOf = ({ start, take }: Events, prime: boolean): Take => {
  const next: Take = Effect.flatMap(
    Effect.andThen(arrived, take),
    (events) => events.length === 0 ? next : Effect.succeed([chunk(events)])
  )
  let first = prime ? start : undefined
  return Effect.suspend(() => {
    if (first === undefined) return next
    const primed = priming(first)
    first = undefined
    return Effect.succeed([primed])
  })
}

/**
 * Disconnects the clients of open bodies that leave data unread for `stallTimeout`: after one to one and a half times that.
 * One fiber checks all bodies, instead of a fiber with a timer for each.
 */
export const watch = Effect.fnUntraced(function*(bodies: ReadonlySet<OpenBody>, stallTimeout: Duration.Duration) {
  const clock = yield* Clock.Clock
  const check = Effect.fnUntraced(function*({ disconnect, writtenAt }: OpenBody) {
    if (writtenAt === undefined) return
    if (clock.currentTimeMillisUnsafe() - writtenAt < Duration.toMillis(stallTimeout)) return
    yield* Effect.logWarning(
      `A client did not read its event stream for ${Duration.format(stallTimeout)}; the gateway closed its connection`
    )
    yield* disconnect
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
 * The body of a response: the events, with heartbeats in between. Each `take` runs in a fiber of its own, because a heartbeat that
 * interrupted it would lose the events that it has taken. While `ready()` is true, `take` does not wait and needs no fiber and no timer.
 */
export const make = (events: Events, prime: boolean, options: Options): Stream.Stream<Uint8Array> =>
  body(chunksOf(events, prime), events.ready, options)

/** A body of heartbeats only, until an effect completes. */
export const silence = (until: Effect.Effect<unknown>, options: Options): Stream.Stream<Uint8Array> =>
  body(Effect.andThen(until, Cause.done()), () => false, options)

const body = (take: Take, ready: () => boolean, { bodies, disconnect, heartbeat }: Options) =>
  Stream.scoped(Stream.fromPull(Effect.gen(function*() {
    const clock = yield* Clock.Clock
    const scope = yield* Effect.scope
    const own: OpenBody = { disconnect, writtenAt: undefined }
    // The first comment comes at once, because Node sends the response's header with the first bytes.
    let pause = Duration.zero
    let coming: Fiber.Fiber<NonEmptyReadonlyArray<Uint8Array>, Cause.Done> | undefined
    const written = (chunks: NonEmptyReadonlyArray<Uint8Array>) => {
      pause = heartbeat
      own.writtenAt = clock.currentTimeMillisUnsafe()
      return chunks
    }
    const begun = Effect.suspend(() =>
      coming === undefined
        ? Effect.tap(Effect.forkIn(take, scope, { startImmediately: true }), (fiber) =>
          Effect.sync(() => {
            coming = fiber
          }))
        : Effect.succeed(coming)
    )
    const waited: Take = Effect.flatMap(begun, (fiber) =>
      Effect.flatMap(
        fiber.pollUnsafe() === undefined
          ? Effect.timeoutOption(Fiber.join(fiber), pause)
          : Effect.asSome(Fiber.join(fiber)),
        Option.match({
          onNone: () => Effect.succeed([comment] as const),
          onSome: (chunks) => {
            coming = undefined
            return Effect.succeed(chunks)
          }
        })
      ))
    yield* Effect.acquireRelease(Effect.sync(() => bodies.add(own)), () => Effect.sync(() => bodies.delete(own)))
    return Effect.suspend(() => {
      own.writtenAt = undefined
      return Effect.map(coming === undefined && ready() ? take : waited, written)
    })
  })))

/** The response that streams a body. */
export const response = (body: Stream.Stream<Uint8Array, unknown>): HttpServerResponse.HttpServerResponse =>
  HttpServerResponse.stream(body, {
    contentType: "text/event-stream",
    headers: { "cache-control": "no-cache, no-transform", "x-accel-buffering": "no" }
  })

/** One chunk with events of the gateway's own. */
export const only = (events: ReadonlyArray<Event>): Stream.Stream<Uint8Array> => Stream.succeed(chunk(events))

/**
 * The response to a request that its client has cancelled: an empty event stream. The specification requires an event stream or JSON for a
 * request, and no answer to a cancelled one. Official clients log an error if a cancelled request is answered.
 */
export const unanswered: HttpServerResponse.HttpServerResponse = response(Stream.empty)

/** Destroys the connection that a request came on. */
export const disconnectOf = (request: Pick<HttpServerRequest.HttpServerRequest, "source">): Effect.Effect<void> =>
  Effect.sync(() => void PeerOwner.socketOf(request)?.destroy())
