/**
 * Runners of one cluster in one process and on one clock: the engine's own `Sharding` for each, over shared locks, with a
 * transport in memory that serializes as the real one does.
 */
import { Context, Deferred, Effect, Exit, Layer, Option, Schema, Scope } from "effect"
import { RunnerUnavailable } from "effect/cluster/ClusterError"
import * as Message from "effect/cluster/Message"
import * as MessageStorage from "effect/cluster/MessageStorage"
import * as Reply from "effect/cluster/Reply"
import { RunnerAddress } from "effect/cluster/RunnerAddress"
import * as RunnerHealth from "effect/cluster/RunnerHealth"
import * as Runners from "effect/cluster/Runners"
import * as RunnerStorage from "effect/cluster/RunnerStorage"
import * as Sharding from "effect/cluster/Sharding"
import * as ShardingConfig from "effect/cluster/ShardingConfig"
import * as Snowflake from "effect/cluster/Snowflake"
import type { CodecFor } from "effect/rpc/RpcSerialization"
import * as SharedLocks from "../fixtures/sharedLocks.ts"

export interface Runner {
  readonly name: string
  readonly sharding: Sharding.Sharding["Service"]
  /** The runner's end: its entities, then its locks. */
  readonly stop: Effect.Effect<void>
}

export interface Cluster {
  /** Starts a runner, with a layer of entities made for it. */
  readonly start: <R>(
    name: string,
    entities: Layer.Layer<never, never, R | Sharding.Sharding>
  ) => Effect.Effect<Runner, never, Exclude<R, Sharding.Sharding> | Scope.Scope>
}

// As in the engine's own runners without a transport.
const codecFor = Schema.toCodecJson as CodecFor

/** One function: all runners share the locks, the addresses and the transport. */
export const make = (config?: Partial<ShardingConfig.ShardingConfig["Service"]>): Cluster => {
  const locks = SharedLocks.make()
  const running = new Map<string, Sharding.Sharding["Service"]>()
  let ports = 0

  const find = (address: RunnerAddress) =>
    Effect.suspend(() => {
      const sharding = running.get(String(address.port))
      return sharding === undefined ? Effect.fail(new RunnerUnavailable({ address })) : Effect.succeed(sharding)
    })

  const runners = Layer.effect(
    Runners.Runners,
    Runners.make({
      codecFor,
      ping: (address) => Effect.asVoid(find(address)),
      onRunnerUnavailable: () => Effect.void,
      send: ({ address, message }) =>
        Effect.scoped(Effect.gen(function*() {
          const sharding = yield* find(address)
          if (message._tag === "OutgoingEnvelope") {
            return yield* sharding.send(new Message.IncomingEnvelope({ envelope: message.envelope }))
          }
          // As `RunnerServer` does: the request ends with its caller, and each reply crosses the wire as text.
          const done = Deferred.makeUnsafe<void>()
          yield* sharding.send(
            new Message.IncomingRequest({
              envelope: yield* Effect.orDie(Message.serializeRequest(message, codecFor)),
              lastSentReply: Option.none(),
              codecFor,
              callerScope: yield* Effect.scope,
              respond: (reply) =>
                Effect.gen(function*() {
                  const encoded = yield* Reply.serializeOrDefect(reply, codecFor)
                  const decoded = yield* Effect.orDie(
                    Effect.provideContext(
                      Schema.decodeEffect(Reply.Reply(message.rpc, codecFor))(encoded),
                      message.context
                    )
                  )
                  yield* message.respond(decoded)
                  if (decoded._tag === "WithExit") Deferred.doneUnsafe(done, Effect.void)
                })
            })
          )
          yield* Deferred.await(done)
        })),
      notify: ({ address, message }) =>
        Effect.gen(function*() {
          if (Option.isNone(address)) return
          const sharding = yield* find(address.value)
          if (message._tag === "OutgoingEnvelope") {
            return yield* sharding.send(new Message.IncomingEnvelope({ envelope: message.envelope }))
          }
          yield* sharding.send(
            new Message.IncomingRequest({
              envelope: yield* Effect.orDie(Message.serializeRequest(message, codecFor)),
              lastSentReply: Option.none(),
              codecFor,
              respond: () => Effect.void
            })
          )
        })
    })
  ).pipe(Layer.provide(Snowflake.layerGenerator))

  return {
    start: Effect.fnUntraced(function*(name, entities) {
      const port = ++ports
      const address = RunnerAddress.make({ host: name, port })
      const engine = Sharding.layer.pipe(
        Layer.provide(runners),
        Layer.provide([
          MessageStorage.layerNoop,
          RunnerHealth.layerNoop,
          Layer.succeed(RunnerStorage.RunnerStorage, locks)
        ]),
        Layer.provide(ShardingConfig.layer({ ...config, runnerAddress: Option.some(address) }))
      )
      const scope = yield* Scope.fork(yield* Effect.scope)
      // Reached by the others until its end is over.
      yield* Scope.addFinalizer(scope, Effect.sync(() => void running.delete(String(port))))
      const context = yield* Layer.buildWithScope(Layer.provideMerge(entities, Layer.fresh(engine)), scope)
      const sharding = Context.get(context, Sharding.Sharding)
      running.set(String(port), sharding)
      return { name, sharding, stop: Scope.close(scope, Exit.void) }
    })
  }
}
