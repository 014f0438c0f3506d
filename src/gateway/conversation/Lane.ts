/**
 * One connection to a server (a process, or another `Transport`) that carries out calls of modern clients. `LaneCalls` routes the messages
 * between the two.
 */
import type { Scope } from "effect"
import { Effect, Option, RcMap } from "effect"
import type { RequestMetrics } from "../telemetry/GatewayMetrics.ts"
import type { BackendFailed, Transport } from "../transports/Transport.ts"
import * as Handshake from "./Handshake.ts"
import * as InFlight from "./InFlight.ts"
import * as LaneCalls from "./LaneCalls.ts"
import * as PooledConnection from "./PooledConnection.ts"

export interface Lane extends PooledConnection.PooledConnection {
  readonly _tag: "Lane"
  readonly handshake: Handshake.Handshake
  readonly calls: LaneCalls.LaneCalls
  /**
   * Subscribes to changes of these resources, for the scope. Returns the resources whose changes the server reports.
   */
  readonly watchResources: (
    uris: ReadonlyArray<string>
  ) => Effect.Effect<ReadonlyArray<string>, never, Scope.Scope>
}

export interface Options extends LaneCalls.Options, Handshake.Options {
  /** The handshake, if it need not be repeated. */
  readonly handshake: Handshake.Handshake | undefined
}

/** Opens a connection to a server for a caller. */
export const make = Effect.fnUntraced(function*<R>(
  start: Effect.Effect<Transport, BackendFailed, R | Scope.Scope>,
  options: Options,
  metrics: RequestMetrics
): Effect.fn.Return<Lane, BackendFailed | PooledConnection.InitializeRefused, R | Scope.Scope> {
  const server = yield* start
  const calls = new LaneCalls.LaneCalls(server, yield* InFlight.background, options, metrics)
  yield* PooledConnection.attach(server, calls)
  const request = (method: string, params: unknown) => calls.request(method, params)
  const handshake = options.handshake ?? (yield* Handshake.make(server, request, options))
  calls.handshake = handshake
  return {
    _tag: "Lane",
    ended: server.ended,
    handshake,
    calls,
    watchResources: yield* watcher(calls),
    activity: () => ({ pid: server.pid, client: options.client.name, streams: 0, ...calls.activity() }),
    end: (reason) => Effect.sync(() => calls.end(reason))
  }
})

/** Longest wait for the answer to `resources/subscribe`. */
const subscribeTimeout = "5 seconds"

/** Keeps a subscription to each resource while at least one client watches it. */
const watcher = Effect.fnUntraced(function*(calls: LaneCalls.LaneCalls) {
  /** True for resources whose changes the server reports. */
  const watched = yield* RcMap.make({
    lookup: (uri: string) =>
      // The wait for the server's answer is not part of the acquisition, so a client that disconnects interrupts it.
      Effect.acquireRelease(
        Effect.void,
        () => Effect.sync(() => calls.command("resources/unsubscribe", { uri }))
      ).pipe(
        Effect.andThen(calls.request("resources/subscribe", { uri })),
        Effect.timeoutOption(subscribeTimeout),
        Effect.map((answer) => Option.isSome(answer) && !answer.value.failed)
      )
  })
  return (uris: ReadonlyArray<string>) => Effect.filter(uris, (uri) => RcMap.get(watched, uri), { concurrency: 10 })
})
