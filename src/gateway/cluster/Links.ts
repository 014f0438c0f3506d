/**
 * The connections to the other replicas, one per replica, in a `SessionPool`.
 *
 * A message is sent at most once. A caller without a connection (`Unreachable`) has sent nothing, and may retry. If a connection breaks
 * while a request runs on it, the gateway cannot tell whether the request was carried out. It does not retry, because a tool must not be
 * called twice.
 */
import { Data, Deferred, Effect, Layer, Schedule } from "effect"
import type { Scope } from "effect"
import type { RunnerAddress } from "effect/cluster"
import { Runners } from "effect/cluster"
import { RpcClient, RpcSerialization } from "effect/rpc"
import type { RpcClientError } from "effect/rpc"
import { Socket } from "effect/socket"
import * as SessionPool from "../../SessionPool.ts"
import * as Protocol from "./Protocol.ts"
import * as ReplicaTls from "./ReplicaTls.ts"

/** The other replica cannot be reached, so nothing was sent to it. */
export class Unreachable extends Data.TaggedError("Unreachable")<{ readonly replica: string }> {
  override get message(): string {
    return "The replica of this session cannot be reached; the request was not carried out"
  }
}

/** The client of a replica. If the connection breaks, a call fails with an `RpcClientError`, and its outcome is unknown. */
export type Client = RpcClient.FromGroup<typeof Protocol.Peers, RpcClientError.RpcClientError>

export type Links = Effect.Success<ReturnType<typeof make>>

/** How long a replica may leave a ping unanswered before its connection counts as broken. Long enough for a large body before the pong. */
const pingTimeout = "10 seconds"

/** The protocol of the engine (`NodeClusterSocket`), over TLS. */
const protocolTo = (
  { host, port }: RunnerAddress.RunnerAddress,
  key: ReplicaTls.Key,
  options?: Parameters<typeof RpcClient.makeProtocolSocket>[0]
) =>
  Effect.flatMap(
    ReplicaTls.connect({ host, port }, key),
    (socket) => Effect.provideService(RpcClient.makeProtocolSocket(options), Socket.Socket, socket)
  )

/** The protocol with which the engine reaches other replicas. */
export const layerEngine = (key: ReplicaTls.Key) =>
  Layer.effect(
    Runners.RpcClientProtocol,
    Effect.gen(function*() {
      const serialization = yield* RpcSerialization.RpcSerialization
      return {
        codecFor: serialization.codecFor,
        make: (address) =>
          Effect.provideService(protocolTo(address, key), RpcSerialization.RpcSerialization, serialization)
      }
    })
  )

/** Makes the links. `addressOf` finds the address of a replica by its name. */
export const make = Effect.fnUntraced(
  function*(addressOf: (replica: string) => RunnerAddress.RunnerAddress | undefined, key: ReplicaTls.Key) {
    const pool = yield* SessionPool.make({
      name: "replicas",
      lookup: (replica: string) =>
        Effect.suspend(() => {
          const address = addressOf(replica)
          return address === undefined ? new Unreachable({ replica }) : open(replica, address, key)
        }),
      closed: ({ closed }) => Deferred.await(closed),
      idleTimeToLive: "5 minutes"
    })
    return {
      /** Leases the connection to a replica for the scope. */
      to: (replica: string): Effect.Effect<Client, Unreachable, Scope.Scope> =>
        SessionPool.get(pool, replica).pipe(
          Effect.catch(() => new Unreachable({ replica })),
          // The connection broke before this caller sent anything.
          Effect.flatMap(({ client, closed }) =>
            Deferred.isDoneUnsafe(closed) ? new Unreachable({ replica }) : Effect.succeed(client)
          )
        )
    }
  }
)

/** Opens a connection. `closed` completes when it breaks. It does not reconnect by itself; when it breaks, the pool opens another one. */
const open = Effect.fnUntraced(function*(replica: string, address: RunnerAddress.RunnerAddress, key: ReplicaTls.Key) {
  const opened = Deferred.makeUnsafe<void>()
  const closed = Deferred.makeUnsafe<void>()
  const protocol = yield* Effect.provideService(
    protocolTo(address, key, { retryPolicy: Schedule.recurs(0), pingTimeout }),
    RpcClient.ConnectionHooks,
    {
      onConnect: Effect.asVoid(Deferred.succeed(opened, undefined)),
      onDisconnect: Effect.asVoid(Deferred.succeed(closed, undefined))
    }
  )
  const client = yield* Effect.provideService(
    RpcClient.make(Protocol.Peers, { disableTracing: true }),
    RpcClient.Protocol,
    protocol
  )
  yield* Effect.raceFirst(
    Deferred.await(opened),
    Effect.andThen(Deferred.await(closed), new Unreachable({ replica }))
  )
  return { client, closed }
})
