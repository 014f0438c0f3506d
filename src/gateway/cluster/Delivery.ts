/**
 * Sends messages to other replicas at most once.
 *
 * The engine sends a volatile request anew when the connection breaks, which would carry out a tool call twice. Here it is sent
 * anew only if it cannot have arrived, and not for ever; else its sender is told that nobody knows.
 */
import * as NodeSocket from "@effect/platform-node/NodeSocket"
import { Clock, Context, Data, Duration, Effect, Exit, Layer } from "effect"
import type { Message, RunnerAddress } from "effect/cluster"
import { Reply, Runners, Snowflake } from "effect/cluster"
import type { Rpc } from "effect/rpc"
import { RpcClient, RpcSerialization } from "effect/rpc"
import { Socket } from "effect/socket"

/** The connection to the other replica broke while the request was there. */
export class OutcomeUnknown extends Data.TaggedError("OutcomeUnknown")<{ readonly address: string }> {
  override get message(): string {
    return "The connection to the replica of this session broke; whether the request was carried out is not known"
  }
}

/** The other replica cannot be reached, so the request was not carried out. */
export class Unreachable extends Data.TaggedError("Unreachable")<{ readonly address: string }> {
  override get message(): string {
    return "The replica of this session cannot be reached; the request was not carried out"
  }
}

/** How long a replica that cannot be reached is tried: one that leaves is known to all after some seconds. */
const patience = Duration.toMillis("8 seconds")

interface Connection {
  isOpen: boolean
  /** How often it has been opened. */
  opened: number
}

class Connections extends Context.Service<Connections, {
  readonly of: (address: RunnerAddress.RunnerAddress) => Connection
}>()("effect-session-pool/gateway/cluster/Connections") {}

const layerConnections = Layer.sync(Connections, () => {
  const connections = new Map<string, Connection>()
  return {
    of: (address) => {
      const name = nameOf(address)
      const known = connections.get(name) ?? { isOpen: false, opened: 0 }
      connections.set(name, known)
      return known
    }
  }
})

/**
 * The engine's protocol between replicas, but that it tells when connections are open, and that nothing waits for more to be
 * sent together (`noDelay`): with Nagle's algorithm each call took 88 milliseconds.
 */
const layerProtocol = Layer.effect(
  Runners.RpcClientProtocol,
  Effect.gen(function*() {
    const connections = yield* Connections
    const serialization = yield* RpcSerialization.RpcSerialization
    return {
      codecFor: serialization.codecFor,
      make: Effect.fnUntraced(function*(address) {
        const { host, port } = address
        // As in `NodeClusterSocket`: the protocol pings every five seconds.
        const socket = yield* NodeSocket.makeNet({ host, port, openTimeout: 1000, timeout: 5500, noDelay: true })
        const connection = connections.of(address)
        return yield* RpcClient.makeProtocolSocket().pipe(
          Effect.provideService(Socket.Socket, socket),
          Effect.provideService(RpcSerialization.RpcSerialization, serialization),
          Effect.provideService(RpcClient.ConnectionHooks, {
            onConnect: Effect.sync(() => {
              connection.isOpen = true
              connection.opened++
            }),
            onDisconnect: Effect.sync(() => {
              connection.isOpen = false
            })
          })
        )
      })
    }
  })
)

const nameOf = ({ host, port }: RunnerAddress.RunnerAddress) => `${host}:${port}`

const make = Effect.gen(function*() {
  const connections = yield* Connections
  const runners = yield* Runners.makeRpc
  const ids = yield* Snowflake.Generator
  const clock = yield* Clock.Clock
  /** Since when requests have not reached their replica. */
  const since = new WeakMap<object, number>()

  const giveUp = <R extends Rpc.Any>(message: Message.OutgoingRequest<R>, defect: Unreachable | OutcomeUnknown) =>
    message.respond(
      new Reply.WithExit({ id: ids.nextUnsafe(), requestId: message.envelope.requestId, exit: Exit.die(defect) })
    )

  return Runners.Runners.of({
    ...runners,
    send: (options) => {
      const { address, message } = options
      if (message._tag !== "OutgoingRequest") return runners.send(options)
      return Effect.suspend(() => {
        const connection = connections.of(address)
        const { isOpen, opened } = connection
        return Effect.catchTag(runners.send(options), "RunnerUnavailable", (error) => {
          const name = nameOf(address)
          if (isOpen || connection.opened > opened) return giveUp(message, new OutcomeUnknown({ address: name }))
          const now = clock.currentTimeMillisUnsafe()
          const first = since.get(message) ?? now
          since.set(message, first)
          return now - first < patience ? Effect.fail(error) : giveUp(message, new Unreachable({ address: name }))
        })
      })
    }
  })
})

/** The engine's way of sending to other replicas. */
export const layer = Layer.effect(Runners.Runners, make).pipe(
  Layer.provide([layerProtocol, Snowflake.layerGenerator]),
  Layer.provide(layerConnections)
)
