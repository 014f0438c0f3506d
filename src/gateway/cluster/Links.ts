/**
 * The connections to the other replicas: one to each that is spoken with, in a pool of this package.
 *
 * A message is sent at most once. Whoever gets no connection knows that nothing was sent, and may try again; when a connection
 * breaks that has been had, nobody knows what has come of the requests on it, and a tool must not be called twice.
 */
import * as NodeSocket from "@effect/platform-node/NodeSocket"
import { Data, Deferred, Effect, Layer, Schedule } from "effect"
import type { Scope } from "effect"
import type { RunnerAddress } from "effect/cluster"
import { Runners } from "effect/cluster"
import { RpcClient, RpcSerialization } from "effect/rpc"
import type { RpcClientError } from "effect/rpc"
import { Socket } from "effect/socket"
import * as SessionPool from "../../SessionPool.ts"
import * as Protocol from "./Protocol.ts"

/** The other replica cannot be reached, so nothing was sent to it. */
export class Unreachable extends Data.TaggedError("Unreachable")<{ readonly replica: string }> {
  override get message(): string {
    return "The replica of this session cannot be reached; the request was not carried out"
  }
}

/** What asks of a replica. Its calls fail with an `RpcClientError` when the connection breaks: what has come of them is unknown. */
export type Client = RpcClient.FromGroup<typeof Protocol.Peers, RpcClientError.RpcClientError>

interface Link {
  readonly client: Client
  readonly closed: Deferred.Deferred<void>
}

export interface Links {
  /** The connection to a replica, for the scope. */
  readonly to: (replica: string) => Effect.Effect<Client, Unreachable, Scope.Scope>
}

/** A replica that says nothing for so long is taken for gone; a large body may be on its way. */
const pingTimeout = "10 seconds"

/** As the engine has it (`NodeClusterSocket`), but that nothing waits for more to be sent together: with that a call took 88 ms. */
const protocolTo = (
  { host, port }: RunnerAddress.RunnerAddress,
  options?: Parameters<typeof RpcClient.makeProtocolSocket>[0]
) =>
  Effect.flatMap(
    // The protocol pings every five seconds.
    NodeSocket.makeNet({ host, port, openTimeout: 1000, timeout: 5500, noDelay: true }),
    (socket) => Effect.provideService(RpcClient.makeProtocolSocket(options), Socket.Socket, socket)
  )

/** How the engine speaks with other replicas. */
export const layerEngine = Layer.effect(
  Runners.RpcClientProtocol,
  Effect.gen(function*() {
    const serialization = yield* RpcSerialization.RpcSerialization
    return {
      codecFor: serialization.codecFor,
      make: (address) => Effect.provideService(protocolTo(address), RpcSerialization.RpcSerialization, serialization)
    }
  })
)

/** The links of a replica that knows where others are by their names. */
export const make = Effect.fnUntraced(
  function*(addressOf: (replica: string) => RunnerAddress.RunnerAddress | undefined) {
    const pool = yield* SessionPool.make({
      name: "replicas",
      lookup: (replica: string) =>
        Effect.suspend(() => {
          const address = addressOf(replica)
          return address === undefined ? new Unreachable({ replica }) : open(replica, address)
        }),
      closed: ({ closed }) => Deferred.await(closed),
      idleTimeToLive: "5 minutes"
    })
    const links: Links = {
      to: (replica) =>
        SessionPool.get(pool, replica).pipe(
          Effect.catch(() => new Unreachable({ replica })),
          // Whoever comes just as it breaks has sent nothing yet.
          Effect.flatMap(({ client, closed }) =>
            Deferred.isDoneUnsafe(closed) ? new Unreachable({ replica }) : Effect.succeed(client)
          )
        )
    }
    return links
  }
)

/** A connection that is not opened again by itself: the pool opens another one. */
const open = Effect.fnUntraced(function*(replica: string, address: RunnerAddress.RunnerAddress) {
  const opened = Deferred.makeUnsafe<void>()
  const closed = Deferred.makeUnsafe<void>()
  const protocol = yield* Effect.provideService(
    protocolTo(address, { retryPolicy: Schedule.recurs(0), pingTimeout }),
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
  const link: Link = { client, closed }
  return link
})
