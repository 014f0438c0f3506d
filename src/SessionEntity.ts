/**
 * An entity of Effect's cluster per session key, whose handlers use the `SessionPool` of the runner they run on.
 *
 * Take `EntityResource` of `effect/cluster` for a resource outside the runner, such as a Kubernetes Pod: it survives shard moves and
 * needs a `MessageStorage`. Take this module for a connection of the runner's own process: it needs no storage and closes before the
 * lock of its shard goes. All entities of a runner share one pool, with its `capacity`, eviction, validation, events and metrics.
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
 * The session of one entity, as its handlers see it.
 *
 * @category models
 * @since 0.1.0
 * @stability unstable
 */
export interface Session<out A, out E = never> {
  /** The entity's id. */
  readonly key: string
  /** `SessionPool.use` of this key. */
  readonly use: <B, E2, R2>(
    f: (value: A, lease: SessionPool.Lease<string, A>) => Effect.Effect<B, E2, R2>
  ) => Effect.Effect<B, E | E2 | SessionPool.SessionPoolError, R2>
  /** `SessionPool.get` of this key. A handler's scope ends with its request, a stream's scope with the stream. */
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
  /** True: a defect of a handler fails only its request. False: it restarts the entity and closes its session. Default: true. */
  readonly disableFatalDefects?: boolean | undefined
  /** How long an entity without session and requests stays. Default: the cluster's `entityMaxIdleTime`, 1 minute. */
  readonly maxIdleTime?: Duration.Input | undefined
  /** How many requests of one entity may run or wait. One more fails with `MailboxFull`. Default: the cluster's, 4,096. */
  readonly mailboxCapacity?: number | "unbounded" | undefined
  /** Whether each entity's mailbox has a metric. Default: the cluster's, off. */
  readonly mailboxMetrics?: boolean | undefined
  /** When an entity restarts after a defect. Default: the cluster's, exponential from 500 milliseconds. */
  readonly defectRetryPolicy?: Schedule.Schedule<unknown, unknown> | undefined
  /** Attributes of the requests' spans. Default: none. */
  readonly spanAttributes?: Record<string, string> | undefined
}

/**
 * The options of `SessionPool.make` and of the engine, and the handlers. A session's key is its entity's id. `lookup` and `handlers`
 * are required. `name` defaults to the entity's type.
 *
 * @category options
 * @since 0.1.0
 * @stability unstable
 */
export interface Options<Handlers, A, E, R, RC = never>
  extends SessionPool.Options<string, A, E, R, RC>, EntityOptions
{
  /** The handlers of one entity, as in `Entity.toLayer`. Called each time the entity starts on a runner. */
  readonly handlers: (session: Session<A, E>) => Handlers
}

/**
 * Registers an entity whose handlers use the session under the entity's id. Each runner has one pool for all of them.
 *
 * **When to use**
 *
 * Use when the sessions need more than one machine, or when another machine must take over when one goes away.
 *
 * **Details**
 *
 * The engine sends every request of a key to the one runner that holds the lock of its shard. The first request opens the
 * connection there, and the others share it.
 *
 * While the connection is open, the session's `idleTimeToLive` decides, not the engine's `maxIdleTime`. An entity must end when
 * its shard moves, when its runner shuts down, or when the scope of the layer closes. Its running requests then have the engine's
 * `entityTerminationTimeout`, 15 seconds by default. After that the session closes, and only then the runner gives the lock of the
 * shard back. A finalizer that hangs delays this by at most `closeTimeout`. The next runner opens a new connection.
 *
 * An `Rpc` without the annotation `Persisted` needs no `MessageStorage` and is never replayed.
 *
 * `use` and `get` fail with the error of `lookup` or a `SessionPoolError`. The handler maps them to errors of its `Rpc`. A fiber that
 * outlives its entity gets the reason `PoolClosed`.
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
    // Made before the entities, so it ends after them.
    const pool = yield* SessionPool.make({
      ...options,
      name: options.name ?? entity.type,
      lookup: (key: string) => Effect.andThen(occupy(activations.get(key)), options.lookup(key))
    })
    const end = (activation: Activation) =>
      Effect.gen(function*() {
        activation.ending = true
        // Without a session, `invalidate` would only forget a failed launch.
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

/** One life of an entity on this runner: from the making of its handlers until its last session is closed. */
interface Activation {
  readonly key: string
  readonly residency: Residency
  /** The handlers are gone. No session is opened from now on. */
  ending: boolean
  readonly ended: Latch.Latch
}

/** Waits until the predecessor's session is closed. The engine starts a new entity while the old one still ends. */
const activate = Effect.fnUntraced(function*(activations: Map<string, Activation>) {
  const { entityId: key } = yield* Entity.CurrentAddress
  const activation: Activation = { key, residency: yield* residency, ending: false, ended: Latch.makeUnsafe() }
  for (let before = activations.get(key); before !== undefined; before = activations.get(key)) {
    yield* before.ended.await
  }
  activations.set(key, activation)
  return activation
})

/** Holds the entity in the session's scope. The hold is the scope's first finalizer, so it ends after the connection is closed. */
const occupy = (activation: Activation | undefined) =>
  // A fiber that outlived its entity waited for room. Interruption is not remembered as a failed launch.
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
 * Keeps an entity on its runner while anything holds it. Otherwise the engine reaps it after `maxIdleTime` without requests.
 *
 * @internal
 */
export interface Residency {
  /** Only while a request of the entity runs: an entity that is still building cannot be called. */
  readonly hold: Effect.Effect<void>
  readonly release: Effect.Effect<void>
  readonly isHeld: () => boolean
  /** Waits until nothing holds the entity. */
  readonly released: Effect.Effect<void>
}

/** `Entity.keepAlive` sends a persisted message, which needs a `MessageStorage`. This is the same message, volatile. */
const volatile = Rpc.make(Entity.KeepAliveRpc._tag)

/**
 * The residency of the entity that is being built, for the scope of its handlers.
 *
 * @internal
 */
export const residency: Effect.Effect<Residency, never, Sharding | Entity.CurrentAddress | Scope.Scope> = Effect.gen(
  function*() {
    const sharding = yield* Sharding
    const held = Latch.makeUnsafe()
    const free = Latch.makeUnsafe(true)
    // The engine answers when it turns its keep-alive off. A message sent before the answer would have no effect.
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
      // Also ends a keep-alive that another runner sent here because the shard had moved.
      yield* Entity.keepAlive(false)
      yield* answered.await
      yield* held.await
      yield* Entity.keepAlive(true).pipe(
        Effect.provideService(Sharding, { ...sharding, sendOutgoing }),
        // Without its keep-alive the entity ends after `maxIdleTime` and closes its session.
        Effect.catchCause((cause) => Effect.andThen(answered.open, Effect.logDebug("No keep-alive", cause)))
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
