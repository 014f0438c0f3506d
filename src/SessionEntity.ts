/**
 * An entity of Effect's cluster per session key, whose handlers use the `SessionPool` of the runner they run on: any
 * runner takes any request, and a key has its connection on one of them.
 *
 * The entity lives as long as its session. It is not reaped while the connection is open, and it does not end before the
 * connection is closed.
 *
 * @module
 * @since 0.1.0
 */
import type { Duration, Schedule, Scope } from "effect"
import { Deferred, Effect, Layer, Option } from "effect"
import * as Entity from "effect/cluster/Entity"
import { Sharding } from "effect/cluster/Sharding"
import type * as Rpc from "effect/rpc/Rpc"
import type * as RpcGroup from "effect/rpc/RpcGroup"
import { PoolClosed } from "./internal/errors.ts"
import type { Residency } from "./internal/residency.ts"
import * as Residencies from "./internal/residency.ts"
import * as SessionPool from "./SessionPool.ts"

/**
 * The session of the entity whose handlers run: what they have of the pool.
 *
 * @category models
 * @since 0.1.0
 */
export interface Session<out A, out E = never> {
  /** The entity's id. */
  readonly key: string
  /** `SessionPool.use` of this key. */
  readonly use: <B, E2, R2>(
    f: (value: A) => Effect.Effect<B, E2, R2>
  ) => Effect.Effect<B, E | E2 | SessionPool.AcquireError, R2>
  /** `SessionPool.get` of this key; the scope of a handler ends with its request, that of a stream with the stream. */
  readonly get: Effect.Effect<A, E | SessionPool.AcquireError, Scope.Scope>
  /** `SessionPool.invalidate` of this key, for a request that ends the session. */
  readonly invalidate: Effect.Effect<boolean>
}

/**
 * The options of the engine for the entities of one type, as in `Entity.toLayer`.
 *
 * @category options
 * @since 0.1.0
 */
export interface EntityOptions {
  /** How many requests of one session run at once. Default: `"unbounded"`, as callers share a session. */
  readonly concurrency?: number | "unbounded" | undefined
  /** Whether a defect of a handler fails its request alone; if not, the entity is built anew and its session closed. Default: true. */
  readonly disableFatalDefects?: boolean | undefined
  /** How long an entity stays that has neither session nor requests. Default: the `entityMaxIdleTime` of the cluster, 1 minute. */
  readonly maxIdleTime?: Duration.Input | undefined
  /** Requests of one session that run or wait; one more fails with `MailboxFull`. Default: the cluster's, 4,096. */
  readonly mailboxCapacity?: number | "unbounded" | undefined
  /** Whether the mailbox of each entity has a metric. Default: the cluster's, off. */
  readonly mailboxMetrics?: boolean | undefined
  /** When an entity is built anew after a defect. Default: the cluster's, exponentially from 500 milliseconds. */
  readonly defectRetryPolicy?: Schedule.Schedule<unknown, unknown> | undefined
  /** Attributes of the spans of requests. Default: none. */
  readonly spanAttributes?: Record<string, string> | undefined
}

/**
 * All options of `SessionPool.make` for keys that are entity ids, the engine's, and the handlers. Required are `lookup` and
 * `handlers`; the pool's `name` is the entity's type unless it is given.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options<Handlers, A, E, R> extends SessionPool.Options<string, A, E, R>, EntityOptions {
  /** The handlers of one entity, as in `Entity.toLayer`. Called once for each time the entity begins to live on a runner. */
  readonly handlers: (session: Session<A, E>) => Handlers
}

/**
 * Registers an entity whose handlers use the session under the entity's id, in one pool for each runner.
 *
 * **When to use**
 *
 * Use when one machine has not room for all sessions, or when they are to survive that it is taken away.
 *
 * **Details**
 *
 * The entity's id is the session's key. The engine sends every request of a key to the one runner that holds the lock of
 * its shard; there the first request opens the connection and the others share it.
 *
 * While the connection is open the engine's `maxIdleTime` does not count: the session's own `idleTimeToLive` decides. When
 * the entity must go (its shard moves, the runner shuts down, the layer's scope closes), running requests have the engine's
 * `entityTerminationTimeout`, 15 seconds by default; then the session is retired and closed, and only then the lock of the
 * shard is given back. A finalizer that hangs delays it by `closeTimeout` at the most. The next runner opens anew.
 *
 * Nothing is stored: an `Rpc` without the annotation `Persisted` needs no `MessageStorage` and is not replayed.
 *
 * `use` and `get` fail with the lookup's error or an `AcquireError`, which the handler maps to errors of its `Rpc`; with
 * `PoolClosed` too for what a handler left running after the end of its entity.
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
 */
export const toLayer = <Type extends string, Rpcs extends Rpc.Any, Handlers extends Entity.HandlersFrom<Rpcs>, A, E, R>(
  entity: Entity.Entity<Type, Rpcs>,
  options: Options<Handlers, A, E, R>
): Layer.Layer<
  never,
  never,
  | Exclude<R, Scope.Scope>
  | RpcGroup.HandlersServices<Rpcs, Handlers>
  | Rpc.ServicesClient<Rpcs>
  | Rpc.ServicesServer<Rpcs>
  | Rpc.Middleware<Rpcs>
  | Sharding
> =>
  Layer.effectDiscard(Effect.gen(function*() {
    const sharding = yield* Sharding
    const activations: Activations = new Map()
    // Made first, so ended last: the entities end their sessions one by one before.
    const pool = yield* SessionPool.make({
      ...options,
      name: options.name ?? entity.type,
      lookup: (key: string) => Effect.andThen(occupy(activations, key), options.lookup(key))
    })
    const handlers = Effect.gen(function*() {
      const activation = yield* activate(activations, pool)
      return options.handlers(sessionOf(activation, pool))
    })
    yield* sharding.registerEntity(entity, handlers, {
      concurrency: options.concurrency ?? "unbounded",
      disableFatalDefects: options.disableFatalDefects ?? true,
      maxIdleTime: options.maxIdleTime,
      mailboxCapacity: options.mailboxCapacity,
      mailboxMetrics: options.mailboxMetrics,
      defectRetryPolicy: options.defectRetryPolicy,
      spanAttributes: options.spanAttributes
    })
  }))

/** One life of an entity on this runner: from the making of its handlers until its last connection is closed. */
interface Activation {
  readonly key: string
  readonly residency: Residency
  /** Its handlers are gone, and nothing is opened any more. */
  ending: boolean
  readonly ended: Deferred.Deferred<void>
}

/** At most one for each key. */
type Activations = Map<string, Activation>

/** Begins the life of the entity that is being built, and ends it with the scope of its handlers. */
const activate = <A, E>(activations: Activations, pool: SessionPool.SessionPool<string, A, E>) =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function*() {
      const { entityId: key } = yield* Entity.CurrentAddress
      const residency = yield* Residencies.make
      // Whoever calls an entity that is ending gets its successor: their connections follow one another all the same.
      for (let before = activations.get(key); before !== undefined; before = activations.get(key)) {
        yield* restore(Deferred.await(before.ended))
      }
      const activation: Activation = { key, residency, ending: false, ended: Deferred.makeUnsafe() }
      activations.set(key, activation)
      yield* Effect.addFinalizer(() => end(activations, activation, pool))
      return activation
    })
  )

/** Retires the session and waits until it is closed. The handlers have ended before, and with them their leases. */
const end = <A, E>(
  activations: Activations,
  activation: Activation,
  pool: SessionPool.SessionPool<string, A, E>
) =>
  Effect.gen(function*() {
    const { key, residency } = activation
    activation.ending = true
    // Without a connection there may still be a failure to remember, for `failureTimeToLive`.
    if (!(yield* residency.held)) return
    yield* SessionPool.invalidate(pool, key)
    const { closeTimeout } = pool.pool.options
    if (Option.isNone(yield* Effect.timeoutOption(residency.released, closeTimeout))) {
      yield* Effect.logWarning(`An entity ends before its session, which takes longer than ${closeTimeout} ms to close`)
    }
  }).pipe(Effect.ensuring(Effect.sync(() => {
    activations.delete(activation.key)
    Deferred.doneUnsafe(activation.ended, Effect.void)
  })))

/** Makes the entity stay until what is opened now is closed: its finalizer is the session's first one, so it runs last. */
const occupy = (activations: Activations, key: string) =>
  Effect.suspend(() => {
    const activation = activations.get(key)
    // Asked for by what a handler left running, in a queue for a place. No failure of the back end, so none to remember.
    if (activation === undefined || activation.ending) return Effect.interrupt
    return Effect.acquireRelease(activation.residency.hold, () => activation.residency.release)
  })

const sessionOf = <A, E>(
  activation: Activation,
  pool: SessionPool.SessionPool<string, A, E>
): Session<A, E> => {
  const { key } = activation
  const whileAlive = <B, E2, R2>(effect: Effect.Effect<B, E2, R2>): Effect.Effect<B, E2 | PoolClosed, R2> =>
    Effect.suspend((): Effect.Effect<B, E2 | PoolClosed, R2> =>
      activation.ending ? Effect.fail(new PoolClosed({ key })) : effect
    )
  return {
    key,
    use: (f) => whileAlive(SessionPool.use(pool, key, f)),
    get: whileAlive(SessionPool.get(pool, key)),
    invalidate: Effect.suspend(() => activation.ending ? Effect.succeed(false) : SessionPool.invalidate(pool, key))
  }
}
