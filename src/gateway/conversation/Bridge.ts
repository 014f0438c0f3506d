/**
 * The session of one client on a process, or on another `Transport`. Starts the process and opens the session with the client's
 * `initialize`. From then on `BridgeRequests` routes the messages between the two.
 */
import type { Scope } from "effect"
import { Effect } from "effect"
import type * as JsonRpc from "../protocol/JsonRpc.ts"
import type { RequestMetrics } from "../telemetry/GatewayMetrics.ts"
import type { BackendFailed, Transport } from "../transports/Transport.ts"
import { BridgeRequests } from "./BridgeRequests.ts"
import type { Limits } from "./BridgeRequests.ts"
import type * as ClientRecord from "./ClientRecord.ts"
import * as InFlight from "./InFlight.ts"
import * as PooledConnection from "./PooledConnection.ts"

export interface Bridge extends PooledConnection.PooledConnection {
  readonly _tag: "Bridge"
  /** The server's answer to the client's `initialize`. */
  readonly answer: JsonRpc.Response
  readonly requests: BridgeRequests
  /** Runs for as long as the client reads a GET stream. */
  readonly listening: Effect.Effect<void, never, Scope.Scope>
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
  const process = yield* start
  const requests = new BridgeRequests(process, yield* InFlight.background, record, limits, metrics)
  yield* PooledConnection.attach(process, requests)
  const answer = yield* shakeHands(process, requests, record)
  return {
    _tag: "Bridge",
    ended: process.ended,
    answer,
    requests,
    listening: Effect.void,
    activity: () => ({ pid: process.pid, client: record.client, ...requests.activity() }),
    end: (reason) => Effect.sync(() => requests.end(reason))
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
