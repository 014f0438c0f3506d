/**
 * One client session: routes messages between the client's HTTP exchanges and the back-end process.
 *
 * Each message of the process goes to exactly one place: an answer and a progress notification to the exchange of their
 * request; anything else to the only request that runs, else to the GET stream, else to the oldest request.
 */
import type { Cause, Scope } from "effect"
import { Deferred, Effect, Option, Queue } from "effect"
import type { ChildProcessSpawner } from "effect/process"
import * as JsonRpc from "./JsonRpc.ts"
import * as StdioProcess from "./StdioProcess.ts"

/** One message on its way to the client; the last one of an exchange is the answer. */
export interface Outgoing {
  readonly text: string
  readonly last: boolean
}

/** A request that waits for its answer. */
export interface Exchange {
  /** What the process sends for this request, in order; ends after the answer. */
  readonly messages: Queue.Queue<Outgoing, Cause.Done>
}

interface Pending extends Exchange {
  readonly id: JsonRpc.Id
  readonly progressToken: JsonRpc.Id | undefined
  readonly release: Effect.Effect<void>
}

export interface Bridge {
  readonly pid: number
  /** Completes when the process has ended by itself, with why. */
  readonly ended: Deferred.Deferred<StdioProcess.BackendFailed>
  /** Completes when the process group is gone and everything is released. */
  readonly gone: Deferred.Deferred<void>
  /** Registers a request; `release` runs once, when it is answered or fails. `None`: the id is in use. */
  readonly begin: (
    request: Extract<JsonRpc.Message, { readonly _tag: "Request" }>,
    release: Effect.Effect<void>
  ) => Effect.Effect<Option.Option<Exchange>>
  readonly send: (text: string) => Effect.Effect<void>
  /** The client of this exchange has gone: what still comes for it is dropped, but for nobody else's loss. */
  readonly abandon: (exchange: Exchange) => void
  /** Messages for the GET stream, for as long as the scope is open; it ends with the session. */
  readonly listen: Effect.Effect<Queue.Dequeue<string, Cause.Done>, never, Scope.Scope>
  /** Ends the session from the gateway's side: every request gets an error, every stream ends. */
  readonly end: (reason: string) => Effect.Effect<void>
}

/** Messages kept for a GET stream that is not there. The oldest go first. */
const streamBuffer = 1000

/** Starts the process of a session. */
export const make = Effect.fnUntraced(function*(
  entry: StdioProcess.StdioEntry,
  environment: Readonly<Record<string, string | undefined>>,
  limits: StdioProcess.Limits
): Effect.fn.Return<
  Bridge,
  StdioProcess.BackendFailed,
  Scope.Scope | ChildProcessSpawner.ChildProcessSpawner
> {
  const gone = yield* Deferred.make<void>()
  // Registered first, so it runs last.
  yield* Effect.addFinalizer(() => Deferred.succeed(gone, undefined))
  const stream = yield* Queue.sliding<string, Cause.Done>(streamBuffer)
  const services = yield* Effect.context<never>()
  const run = Effect.runForkWith(services)
  const pending = new Map<string, Pending>()
  let listeners = 0
  let over: string | undefined

  const settle = (request: Pending, text: string) => {
    pending.delete(JsonRpc.idKey(request.id))
    Queue.offerUnsafe(request.messages, { text, last: true })
    Queue.endUnsafe(request.messages)
    run(request.release)
  }

  const end = (reason: string) =>
    Effect.sync(() => {
      if (over !== undefined) return
      over = reason
      for (const request of pending.values()) {
        settle(request, JsonRpc.error(request.id, JsonRpc.codes.gateway, reason))
      }
      Queue.endUnsafe(stream)
    })

  const route = (text: string, message: JsonRpc.Message): void => {
    if (message._tag === "Response") {
      const request = pending.get(JsonRpc.idKey(message.id))
      if (request !== undefined) settle(request, text)
      return
    }
    const request = owner(message)
    if (request === undefined) Queue.offerUnsafe(stream, text)
    else Queue.offerUnsafe(request.messages, { text, last: false })
  }

  const owner = (message: JsonRpc.Message): Pending | undefined => {
    if (message._tag === "Notification" && message.method === "notifications/progress") {
      for (const request of pending.values()) {
        if (request.progressToken !== undefined && request.progressToken === message.progressToken) return request
      }
    }
    if (pending.size === 0 || (pending.size > 1 && listeners > 0)) return undefined
    return pending.values().next().value
  }

  const process = yield* StdioProcess.start(entry, environment, limits, (line) => {
    const json = JsonRpc.parse(line)
    const message = Option.isSome(json) ? JsonRpc.classify(json.value) : undefined
    if (message === undefined) {
      run(
        Effect.logWarning(
          `The back end wrote ${line.length} characters on stdout that are no JSON-RPC message; skipped`
        )
      )
    } else {
      route(line, message)
    }
  })
  yield* Effect.addFinalizer(() => end("the session has ended"))
  yield* Effect.forkScoped(Effect.flatMap(Deferred.await(process.ended), (failure) => end(failure.message)))

  return {
    pid: process.pid,
    ended: process.ended,
    gone,
    begin: (request, release) =>
      Effect.map(Queue.unbounded<Outgoing, Cause.Done>(), (messages): Option.Option<Exchange> => {
        const key = JsonRpc.idKey(request.id)
        if (pending.has(key)) return Option.none()
        const exchange = { id: request.id, progressToken: request.progressToken, messages, release }
        pending.set(key, exchange)
        if (over !== undefined) settle(exchange, JsonRpc.error(request.id, JsonRpc.codes.gateway, over))
        return Option.some(exchange)
      }),
    send: (text) => process.send(JsonRpc.toLine(text)),
    abandon: (exchange) => {
      Queue.endUnsafe(exchange.messages)
    },
    listen: Effect.as(
      Effect.acquireRelease(
        Effect.sync(() => {
          listeners++
        }),
        () =>
          Effect.sync(() => {
            listeners--
          })
      ),
      stream
    ),
    end
  }
})
