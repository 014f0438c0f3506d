/**
 * The session of one client on a process, or on another `Transport`. Starts the process and opens the session with the client's
 * `initialize`. From then on `BridgeRequests` routes the messages between the two.
 */
import type { Scope } from "effect"
import { Deferred, Effect } from "effect"
import type * as JsonRpc from "../protocol/JsonRpc.ts"
import type { RequestMetrics } from "../telemetry/GatewayMetrics.ts"
import type { BackendFailed, Transport } from "../transports/Transport.ts"
import { BridgeRequests } from "./BridgeRequests.ts"
import type { Limits, Listening, Taken } from "./BridgeRequests.ts"
import type * as ClientRecord from "./ClientRecord.ts"
import * as InFlight from "./InFlight.ts"
import * as PooledConnection from "./PooledConnection.ts"

export interface Bridge extends PooledConnection.PooledConnection {
  readonly _tag: "Bridge"
  readonly record: ClientRecord.ClientRecord
  /** The server's answer to the client's `initialize`. */
  readonly answer: JsonRpc.Response
  /** Registers a request and sends it to the process. `release` runs once, when the request is answered or fails. */
  readonly request: (message: JsonRpc.Request, release: Effect.Effect<void>) => Taken
  /** Sends a notification or a response to the process at once. The effect that it returns waits until the process has read the message. */
  readonly send: (message: JsonRpc.Message) => Effect.Effect<void>
  /** Opens the stream of messages that belong to no request, or resumes the stream that `from` names. */
  readonly listen: (from: string | undefined) => Effect.Effect<Listening | "TooMany">
}

/**
 * Starts a process and opens a session on it. Sends the client's `initialize` first. For a session that wakes, the other messages of its
 * record follow.
 */
export const make = Effect.fnUntraced(function*<R>(
  start: Effect.Effect<Transport, BackendFailed, R | Scope.Scope>,
  record: ClientRecord.ClientRecord,
  limits: Limits,
  metrics: RequestMetrics
): Effect.fn.Return<Bridge, BackendFailed | PooledConnection.InitializeRefused, R | Scope.Scope> {
  const gone = yield* PooledConnection.gone
  const process = yield* start
  const requests = new BridgeRequests(process, yield* InFlight.background, record, limits, metrics)
  const end = (reason: string) => Effect.sync(() => requests.end(reason, false))
  yield* process.attach({
    receive: (message, request) => requests.receive(message, request),
    garbage: (text) => requests.garbage(text),
    room: requests.room
  })
  yield* Effect.addFinalizer(() => end("the session has ended"))
  yield* Effect.forkScoped(
    Effect.map(Deferred.await(process.ended), ({ forgotten, message }) => requests.end(message, forgotten === true))
  )
  const answer = yield* shakeHands(process, requests, record)
  return {
    _tag: "Bridge",
    ended: process.ended,
    gone,
    answer,
    record,
    request: (message, release) => requests.request(message, release),
    send: (message) => requests.send(message),
    listen: (from) => Effect.sync(() => requests.listen(from)),
    activity: () => ({ pid: process.pid, client: record.client, ...requests.activity() }),
    end
  }
})

/** Sends the messages of the client's record to the process. Returns the answer to `initialize`. */
const shakeHands = Effect.fnUntraced(function*(
  process: Transport,
  requests: BridgeRequests,
  record: ClientRecord.ClientRecord
) {
  const answer = yield* PooledConnection.answerOf(process, requests.ask(record.initialize))
  if (answer.failed) return yield* new PooledConnection.InitializeRefused({ answer })
  if (record.initialized !== undefined) {
    yield* process.send(record.initialized)
    if (record.level !== undefined) yield* requests.ask(record.level)
    for (const subscription of record.subscriptions.values()) yield* requests.ask(subscription)
  }
  return answer
})
