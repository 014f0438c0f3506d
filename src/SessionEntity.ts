/**
 * One entity of `effect/cluster` per session key. The handlers of an entity use the `SessionPool` of their runner.
 *
 * Use this module for a connection of the runner's own process. The connection needs no storage, and closes before the runner releases
 * the lock of its shard. All entities of a runner share one pool, with its `capacity`, eviction, validation, events and metrics.
 *
 * Use `EntityResource` of `effect/cluster` for a resource outside the runner, such as a Kubernetes Pod. Such a resource survives shard
 * moves, and needs a `MessageStorage`.
 *
 * Below, the engine is the sharding engine of `effect/cluster`.
 *
 * @module
 * @since 0.1.0
 * @stability unstable
 */
import type { Duration, Schedule, Scope } from "effect"
import { Effect, Latch, Layer } from "effect"
import * as Entity from "effect/cluster/Entity"
import * as Message from "effect/cluster/Message"
import { Sharding } from "effect/cluster/Sharding"
import * as Rpc from "effect/rpc/Rpc"
import type * as RpcGroup from "effect/rpc/RpcGroup"
import { poolClosed } from "./internal/errors.ts"
import * as SessionPool from "./SessionPool.ts"

/**
 * The operations on its session that an entity's handlers get.
 *
 * @category models
 * @since 0.1.0
 * @stability unstable
 */
export interface Session<out A, out E = never> {
  /** The key of the session: the entity's id. */
  readonly key: string
  /** `SessionPool.use` of this key. */
  readonly use: <B, E2, R2>(
    f: (value: A, lease: SessionPool.Lease<string, A>) => Effect.Effect<B, E2, R2>
  ) => Effect.Effect<B, E | E2 | SessionPool.SessionPoolError, R2>
  /** `SessionPool.get` of this key. The scope of a handler ends with its request; the scope of a stream ends with the stream. */
  readonly get: Effect.Effect<A, E | SessionPool.SessionPoolError, Scope.Scope>
  /** `SessionPool.invalidate` of this key. */
  readonly invalidate: Effect.Effect<boolean>
}

/**
 * The engine's options for one type of entity, as in `Entity.toLayer`.
 *
 * @category options
 * @since 0.1.0
 * @stability unstable
 */
export interface EntityOptions {
  /** How many requests of one entity run at once. Default: `"unbounded"`, because callers share a session. */
  readonly concurrency?: number | "unbounded" | undefined
  /** True: a defect of a handler fails only its request. False: a defect restarts the entity and closes its session. Default: true. */
  readonly disableFatalDefects?: boolean | undefined
  /** An entity that has had no session and no request for this long ends. Default: the cluster's `entityMaxIdleTime`, 1 minute. */
  readonly maxIdleTime?: Duration.Input | undefined
  /** How many requests of one entity may run or wait. A further request fails with `MailboxFull`. Default: the cluster's, 4,096. */
  readonly mailboxCapacity?: number | "unbounded" | undefined
  /** Whether each entity's mailbox has a metric. Default: the cluster's, off. */
  readonly mailboxMetrics?: boolean | undefined
  /** When an entity restarts after a defect. Default: the cluster's, exponential from 500 milliseconds. */
  readonly defectRetryPolicy?: Schedule.Schedule<unknown, unknown> | undefined
  /** Attributes of the requests' spans. Default: none. */
  readonly spanAttributes?: Record<string, string> | undefined
}

/**
 * The options of `SessionPool.make`, the options of the engine, and the handlers.
 *
 * `lookup` and `handlers` are required. `lookup` gets the entity's id as the key. `name` defaults to the entity's type.
 *
 * @category options
 * @since 0.1.0
 * @stability unstable
 */
export interface Options<Handlers, A, E, R, RC = never>
  extends SessionPool.Options<string, A, E, R, RC>, EntityOptions
{
  /** Makes the handlers of one entity, as in `Entity.toLayer`. Called each time the entity starts on a runner. */
  readonly handlers: (session: Session<A, E>) => Handlers
}

/**
 * Registers an entity whose handlers use the session under the entity's id. All entities of a runner share one pool.
 *
 * **When to use**
 *
 * Use when the sessions need more than one machine, or when another machine must take over after a failure.
 *
 * **Details**
 *
 * The engine sends every request of a key to the one runner that holds the lock of its shard. The first request opens the
 * connection there, and later requests share it.
 *
 * While the connection is open, the engine's `maxIdleTime` does not end the entity. The session's `idleTimeToLive` closes the connection.
 *
 * An entity must end when its shard moves, when its runner shuts down, or when the scope of the layer closes:
 *
 * 1. Its running requests have the engine's `entityTerminationTimeout` to finish, 15 seconds by default.
 * 2. The session closes. A finalizer that hangs delays the next step by at most `closeTimeout`.
 * 3. The runner releases the lock of the shard. The next runner opens a new connection.
 *
 * An `Rpc` without the annotation `Persisted` needs no `MessageStorage` and is never replayed.
 *
 * `use` and `get` fail with the error of `lookup` or a `SessionPoolError`. The handler must map both to errors of its `Rpc`. In a fiber
 * that outlives its entity, both fail with the reason `PoolClosed`.
 *
 * **Example** (A counter per session)
 *
 * ```ts
 * import { Effect, Layer, Schema } from "effect"
 * import { Entity, TestRunner } from "effect/cluster"
 * import { Rpc } from "effect/rpc"
 * import * as SessionEntity from "effect-session-pool/cluster"
 *
 * const Counter = Entity.make("Counter", [Rpc.make("Add", { payload: { by: Schema.Number }, success: Schema.Number })])
 *
 * const CounterLive = SessionEntity.toLayer(Counter, {
 *   lookup: (_key) => Effect.succeed({ count: 0 }),
 *   idleTimeToLive: "10 minutes",
 *   handlers: (session) => ({
 *     Add: ({ payload }) =>
 *       Effect.orDie(session.use((counter) => Effect.sync(() => counter.count += payload.by)))
 *   })
 * })
 *
 * const program = Effect.gen(function*() {
 *   const client = yield* Counter.client
 *   return [yield* client("ada").Add({ by: 1 }), yield* client("ada").Add({ by: 2 }), yield* client("bob").Add({ by: 1 })]
 * })
 *
 * const layer = Layer.provideMerge(CounterLive, TestRunner.layer)
 * await Effect.runPromise(program.pipe(Effect.provide(layer))) // => [1, 3, 1]
 * ```
 *
 * @category constructors
 * @since 0.1.0
 * @stability unstable
 */
export const toLayer = <
  Type extends string,
  Rpcs extends Rpc.Any,
  Handlers extends Entity.HandlersFrom<Rpcs>,
  A,
  E,
  R,
  RC = never
>(
  entity: Entity.Entity<Type, Rpcs>,
  options: Options<Handlers, A, E, R, RC>
): Layer.Layer<
  never,
  never,
  | SessionPool.Services<R | RC>
  | RpcGroup.HandlersServices<Rpcs, Handlers>
  | Rpc.ServicesClient<Rpcs>
  | Rpc.ServicesServer<Rpcs>
  | Rpc.Middleware<Rpcs>
  | Sharding
> =>
  Layer.effectDiscard(Effect.gen(function*() {
    const sharding = yield* Sharding
    const activations = new Map<string, Activation>()
    // The pool is made before the entities are registered, so it ends after them.
    const pool = yield* SessionPool.make({
      ...options,
      name: options.name ?? entity.type,
      lookup: (key: string) => Effect.andThen(occupy(activations.get(key)), options.lookup(key))
    })
    const end = (activation: Activation) =>
      Effect.gen(function*() {
        activation.ending = true
        // Without a session there is nothing to close. `invalidate` would only forget a failed launch.
        if (!activation.residency.isHeld()) return
        yield* SessionPool.invalidate(pool, activation.key)
        yield* Effect.timeoutOption(activation.residency.released, options.closeTimeout ?? "30 seconds")
      }).pipe(Effect.ensuring(Effect.suspend(() => {
        activations.delete(activation.key)
        return activation.ended.open
      })))
    const handlers = Effect.map(
      Effect.acquireRelease(activate(activations), end),
      (activation) => options.handlers(sessionOf(activation, pool))
    )
    yield* sharding.registerEntity(entity, handlers, {
      ...options,
      concurrency: options.concurrency ?? "unbounded",
      disableFatalDefects: options.disableFatalDefects ?? true
    })
  }))

/** One run of an entity on this runner, from the construction of its handlers until its last session is closed. */
interface Activation {
  readonly key: string
  readonly residency: Residency
  /** True once the engine ends the entity. From then on no session is opened for it. */
  ending: boolean
  readonly ended: Latch.Latch
}

/**
 * Makes the activation of an entity that starts. Waits first until the previous activation of the key has closed its session, because the
 * engine may start a new entity while the old one is still ending.
 */
const activate = Effect.fnUntraced(function*(activations: Map<string, Activation>) {
  const { entityId: key } = yield* Entity.CurrentAddress
  const activation: Activation = { key, residency: yield* residency, ending: false, ended: Latch.makeUnsafe() }
  for (let before = activations.get(key); before !== undefined; before = activations.get(key)) {
    yield* before.ended.await
  }
  activations.set(key, activation)
  return activation
})

/**
 * Keeps the entity on its runner for the scope of the session. The release is the scope's first finalizer, so it runs last: after the
 * connection is closed.
 */
const occupy = (activation: Activation | undefined) =>
  // A fiber that outlives its entity can still wait for a place. When it gets the place, the lookup must open nothing. It interrupts
  // itself, because an interruption is not remembered as a failed launch.
  activation === undefined || activation.ending
    ? Effect.interrupt
    : Effect.acquireRelease(activation.residency.hold, () => activation.residency.release)

const sessionOf = <A, E>(
  activation: Activation,
  pool: SessionPool.SessionPool<string, A, E>
): Session<A, E> => {
  const { key } = activation
  const whileAlive = <B, E2, R2>(effect: Effect.Effect<B, E2, R2>) =>
    Effect.andThen(Effect.suspend(() => activation.ending ? Effect.fail(poolClosed()) : Effect.void), effect)
  return {
    key,
    use: (f) => whileAlive(SessionPool.use(pool, key, f)),
    get: whileAlive(SessionPool.get(pool, key)),
    invalidate: SessionPool.invalidate(pool, key)
  }
}

/**
 * Keeps an entity on its runner while its hold count is above zero. Otherwise the engine ends it after `maxIdleTime` without requests.
 *
 * @internal
 */
export interface Residency {
  /**
   * Adds one to the hold count. Call it only while a request of the entity runs: it sends the entity a message, and an entity whose
   * handlers are still being built receives none.
   */
  readonly hold: Effect.Effect<void>
  /** Takes one from the hold count. */
  readonly release: Effect.Effect<void>
  readonly isHeld: () => boolean
  /** Waits until the hold count is zero. */
  readonly released: Effect.Effect<void>
}

/** `Entity.keepAlive` sends a persisted message, which needs a `MessageStorage`. This is the same message, but not persisted. */
const volatile = Rpc.make(Entity.KeepAliveRpc._tag)

/**
 * Makes the residency of the entity whose handlers are being built. It lasts for the scope of the handlers.
 *
 * @internal
 */
export const residency: Effect.Effect<Residency, never, Sharding | Entity.CurrentAddress | Scope.Scope> = Effect.gen(
  function*() {
    const sharding = yield* Sharding
    const held = Latch.makeUnsafe()
    const free = Latch.makeUnsafe(true)
    // The engine answers a keep-alive message when keep-alive is turned off again. A message sent before that has no effect.
    const answered = Latch.makeUnsafe(true)
    const sendOutgoing: typeof sharding.sendOutgoing = (message, discard) => {
      if (message._tag === "OutgoingEnvelope") return sharding.sendOutgoing(message, discard)
      answered.closeUnsafe()
      const { annotations } = volatile
      const respond = () => Effect.asVoid(answered.open)
      return sharding.sendOutgoing(
        new Message.OutgoingRequest({ ...message, rpc: volatile, annotations, respond }),
        discard
      )
    }
    yield* Effect.gen(function*() {
      // Also turns off a keep-alive whose message came from another runner, because the shard moved in between.
      yield* Entity.keepAlive(false)
      yield* answered.await
      yield* held.await
      yield* Entity.keepAlive(true).pipe(
        Effect.provideService(Sharding, { ...sharding, sendOutgoing }),
        // Without keep-alive the entity ends after `maxIdleTime` without requests, and its session closes.
        Effect.catchCause((cause) =>
          Effect.andThen(
            answered.open,
            Effect.logDebug(
              "Keep-alive failed; without requests the session closes after maxIdleTime",
              cause
            )
          )
        )
      )
      yield* free.await
    }).pipe(Effect.forever, Effect.forkScoped({ startImmediately: true }))
    let holds = 0
    return {
      hold: Effect.suspend(() => {
        holds++
        free.closeUnsafe()
        return Effect.asVoid(held.open)
      }),
      release: Effect.suspend(() => {
        holds--
        if (holds > 0) return Effect.void
        held.closeUnsafe()
        return Effect.asVoid(free.open)
      }),
      isHeld: () => holds > 0,
      released: free.await
    }
  }
)
