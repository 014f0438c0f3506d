/** Writes an event stream to a client: server-sent events, heartbeats, and an end for a client that does not read. */
import type { Cause, Scope } from "effect"
import { Clock, Duration, Effect, Option, Predicate, Stream } from "effect"
import type { NonEmptyReadonlyArray } from "effect/Array"
import type { HttpServerRequest } from "effect/http"
import type { Reader, StreamEvent } from "./EventStreams.ts"

export interface Options {
  /** How often a silent stream gets a comment. */
  readonly heartbeat: Duration.Duration
  /** How long the client may leave what was written unread. */
  readonly stallTimeout: Duration.Duration
  /** Begin with an event without data (revision 2025-11-25), so that a client can resume from the start. */
  readonly prime: boolean
  /** Cuts the connection of a client that does not read. */
  readonly disconnect: Effect.Effect<void>
}

/** How long a client should wait before it comes back, in milliseconds. */
const retry = 1000

const encoder = new TextEncoder()
const comment = encoder.encode(": \n\n")

/** One message as a server-sent event. A JSON text has no line ends but white space, which a space can stand for. */
export const event = ({ id, text }: { readonly id?: string; readonly text: string }): Uint8Array =>
  encoder.encode(`${id === undefined ? "" : `id: ${id}\n`}event: message\ndata: ${text.replace(/[\r\n]/g, " ")}\n\n`)

const priming = (id: string): Uint8Array => encoder.encode(`id: ${id}\nretry: ${retry}\ndata: \n\n`)

/** The body of a response; `open` gives its reader when the response begins, `undefined` if there is nothing to read. */
export const make = (
  open: Effect.Effect<Reader | undefined, never, Scope.Scope>,
  { disconnect, heartbeat, prime, stallTimeout }: Options
): Stream.Stream<Uint8Array> =>
  Stream.scoped(Stream.fromPull(Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
    const reader = yield* restore(open)
    if (reader === undefined) return Stream.toPull(Stream.empty).pipe(Effect.flatten)
    yield* Effect.addFinalizer(() => Effect.sync(reader.close))
    const clock = yield* Clock.Clock
    let first = prime
    /** Since when the client has had something to read. */
    let writtenAt: number | undefined
    const next: Effect.Effect<NonEmptyReadonlyArray<Uint8Array>, Cause.Done> = Effect.suspend(() => {
      if (!first) return Effect.map(Effect.timeoutOption(reader.take, heartbeat), Option.match({ onNone, onSome }))
      first = false
      return Effect.succeed<NonEmptyReadonlyArray<Uint8Array>>([priming(reader.start)])
    })
    const watch = Effect.gen(function*() {
      yield* Effect.sleep(Duration.divideUnsafe(stallTimeout, 2))
      if (writtenAt === undefined) return
      if (clock.currentTimeMillisUnsafe() - writtenAt < Duration.toMillis(stallTimeout)) return
      yield* Effect.logWarning(`A client has not read its stream for ${Duration.format(stallTimeout)}; disconnected`)
      yield* disconnect
    })
    yield* Effect.forkScoped(Effect.forever(watch))
    return Effect.suspend(() => {
      writtenAt = undefined
      return Effect.tap(next, () =>
        Effect.sync(() => {
          writtenAt = clock.currentTimeMillisUnsafe()
        }))
    })
  }))))

const onNone = (): NonEmptyReadonlyArray<Uint8Array> => [comment]
const onSome = ([first, ...rest]: NonEmptyReadonlyArray<StreamEvent>): NonEmptyReadonlyArray<Uint8Array> => [
  event(first),
  ...rest.map(event)
]

/** Cuts the connection that a request came on. */
export const disconnect = ({ source }: HttpServerRequest.HttpServerRequest): Effect.Effect<void> =>
  Effect.sync(() => {
    const socket = Predicate.hasProperty(source, "socket") ? source.socket : undefined
    if (Predicate.hasProperty(socket, "destroy") && Predicate.isFunction(socket.destroy)) socket.destroy()
  })
