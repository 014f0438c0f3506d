/**
 * Writes event streams to clients: server-sent events and heartbeats. Ends the streams of clients whose credentials expire, and
 * disconnects clients that do not read.
 */
import type { Fiber } from "effect"
import { Cause, Clock, Duration, Effect, Stream } from "effect"
import type { NonEmptyReadonlyArray } from "effect/Array"
import { Sse } from "effect/encoding"
import type { HttpServerRequest } from "effect/http"
import { HttpServerResponse } from "effect/http"
import * as PeerOwner from "../auth/PeerOwner.ts"
import type { Event, Events } from "../conversation/Exchange.ts"
import type { GatewaySettings } from "../settings/Settings.ts"

export interface Options {
  /** The open bodies, which `watch` checks. A body adds itself while it is open. */
  readonly bodies: Set<OpenBody>
  /** Destroys the client's connection. */
  readonly disconnect: Effect.Effect<void>
  /** When the client's credentials expire, in milliseconds since 1970. */
  readonly expiresAt: number
}

/** A body that is being sent. It waits either for events, or for its client to read the chunk that it wrote last. */
export interface OpenBody {
  readonly disconnect: Effect.Effect<void>
  readonly expiresAt: number
  /** When the wait began. */
  since: number
  /** Continues with a heartbeat or the end instead of events. Undefined if the body does not wait for events. */
  resume: ((instead: Take) => void) | undefined
}

/** Milliseconds that a client should wait before it reconnects. */
const retry = 1000

const encoder = new TextEncoder()
const heartbeatNow: Take = Effect.succeed([encoder.encode(": \n\n")])

/** The longest time between two checks of a body, so that it ends within 5 seconds after `expiresAt`. In milliseconds. */
const longestInterval = 3000

/** Line ends in valid JSON are white space only, so a space can stand for each. */
const format = ({ id, text }: Event): string =>
  Sse.encoder.write({ _tag: "Event", event: "message", id, data: text.replace(/[\r\n]/g, " ") })

/** Events as one chunk. */
const chunk = (events: ReadonlyArray<Event>): Uint8Array => encoder.encode(events.map(format).join(""))

/** An event with an id and without data (revision 2025-11-25), so that a client can resume from the start. */
const priming = (id: string): Uint8Array => encoder.encode(`id: ${id}\nretry: ${retry}\ndata: \n\n`)

/** Waits one microtask, so that a burst of the back end becomes one chunk. */
const arrived = Effect.callback<void>((resume) => queueMicrotask(() => resume(Effect.void)))

/** Takes the next chunks. Fails with `Done` at the end. */
type Take = Effect.Effect<NonEmptyReadonlyArray<Uint8Array>, Cause.Done>

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

type Times = Pick<GatewaySettings, "heartbeat" | "stallTimeout">

/**
 * Sends heartbeats on open bodies that are silent, ends bodies at `expiresAt`, and disconnects clients that leave data unread: after one
 * to one and a half times `stallTimeout`. One fiber checks all bodies, instead of a fiber with a timer for each.
 */
export const watch = Effect.fnUntraced(function*(bodies: ReadonlySet<OpenBody>, times: Times) {
  const clock = yield* Clock.Clock
  const [heartbeat, stallTimeout] = [Duration.toMillis(times.heartbeat), Duration.toMillis(times.stallTimeout)]
  const interval = Math.min(heartbeat / 4, stallTimeout / 2, longestInterval)
  const check = Effect.fnUntraced(function*({ disconnect, expiresAt, resume, since }: OpenBody) {
    const now = clock.currentTimeMillisUnsafe()
    const waited = now - since
    if (resume !== undefined) {
      if (now >= expiresAt) return resume(Cause.done())
      // The next check would be too late for this heartbeat.
      return waited + interval > heartbeat ? resume(heartbeatNow) : undefined
    }
    if (now >= expiresAt) return yield* disconnect
    if (waited < stallTimeout) return
    yield* Effect.logWarning(
      `A client did not read its event stream for ${
        Duration.format(times.stallTimeout)
      }; the gateway closed its connection`
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
  return yield* Effect.forever(Effect.andThen(Effect.sleep(interval), round))
})

/** The body of a response: the events, with heartbeats in between. */
export const make = (events: Events, prime: boolean, options: Options): Stream.Stream<Uint8Array> =>
  body(chunksOf(events, prime), events.ready ?? never, options)

/** A body of heartbeats only, until an effect completes. */
export const silence = (until: Effect.Effect<unknown>, options: Options): Stream.Stream<Uint8Array> =>
  body(Effect.andThen(until, Cause.done()), never, options)

const never = () => false

/**
 * While `ready()` is true, `take` does not wait. Otherwise it runs in a fiber of its own, because a heartbeat that interrupted it would lose
 * the events that it has taken.
 */
const body = (take: Take, ready: () => boolean, { bodies, disconnect, expiresAt }: Options) =>
  Stream.scoped(Stream.fromPull(Effect.gen(function*() {
    const clock = yield* Clock.Clock
    const scope = yield* Effect.scope
    const own: OpenBody = { disconnect, expiresAt, since: clock.currentTimeMillisUnsafe(), resume: undefined }
    yield* Effect.acquireRelease(Effect.sync(() => bodies.add(own)), () => Effect.sync(() => bodies.delete(own)))
    /** True until the first chunk. */
    let isNew = true
    /** The fiber of a `take` that has not completed. Undefined while there is none. */
    let taking: Fiber.Fiber<NonEmptyReadonlyArray<Uint8Array>, Cause.Done> | undefined
    const startTaking = Effect.forkIn(take, scope, { startImmediately: true })
    /**
     * The chunks of `fiber`, or what `watch` sends instead. The first heartbeat comes at once, because Node sends the response's header
     * with the first chunk.
     */
    const next = (fiber: NonNullable<typeof taking>): Take => {
      const exit = fiber.pollUnsafe()
      taking = exit === undefined ? fiber : undefined
      if (exit !== undefined) return exit
      return isNew ? heartbeatNow : Effect.callback((resume) => {
        const stop = fiber.addObserver(() => resume(next(fiber)))
        own.resume = (instead) => {
          stop()
          resume(instead)
        }
      })
    }
    const written = (chunks: NonEmptyReadonlyArray<Uint8Array>) => {
      isNew = false
      own.since = clock.currentTimeMillisUnsafe()
      own.resume = undefined
      return chunks
    }
    return Effect.suspend(() => {
      own.since = clock.currentTimeMillisUnsafe()
      if (own.since >= expiresAt) return Cause.done()
      if (taking !== undefined) return Effect.map(next(taking), written)
      return Effect.map(ready() ? take : Effect.flatMap(startTaking, next), written)
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
