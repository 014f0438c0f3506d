/**
 * A `SessionPool` keeps one long-lived connection per key: opened by the first caller, shared by all, closed when it
 * goes idle, breaks, is invalidated or when the pool's scope ends.
 *
 * The whole pool is one `Ref` of immutable data. Every operation is one pure transition run by one `Ref.modify`, so a
 * lookup and its touch are one atomic step, and no cleanup can come between.
 *
 * @module
 * @since 0.1.0
 */

// Long, because every public function stands here with its documentation: only a third of the lines are code.

import type { Config, Duration } from "effect"
import {
  Cause,
  Clock,
  Context,
  Effect,
  Formatter,
  HashMap,
  Layer,
  Option,
  PubSub,
  Random,
  Ref,
  Scheduler,
  Scope,
  Stream,
  Tracer
} from "effect"
import { dual } from "effect/Function"
import type { Inspectable } from "effect/Inspectable"
import { NodeInspectSymbol } from "effect/Inspectable"
import type { Pipeable } from "effect/Pipeable"
import { pipeArguments } from "effect/Pipeable"
import * as Adopting from "./internal/adopting.ts"
import type { AcquireError } from "./internal/errors.ts"
import type { Event } from "./internal/events.ts"
import * as Leaks from "./internal/leaks.ts"
import { callSite } from "./internal/leaks.ts"
import * as Leasing from "./internal/leasing.ts"
import * as Metrics from "./internal/metrics.ts"
import type { Options, Services } from "./internal/options.ts"
import * as OptionsModule from "./internal/options.ts"
import type { Pool } from "./internal/pool.ts"
import { forkIn, hit, publish, step } from "./internal/pool.ts"
import type { Live, Reason, Slot } from "./internal/state.ts"
import * as State from "./internal/state.ts"
import * as Sweeping from "./internal/sweeping.ts"
import * as Transitions from "./internal/transitions.ts"

export type { AcquireError } from "./internal/errors.ts"
export { CapacityExceeded, InvalidOptions, LookupTimeout, PoolClosed, ValidationFailed } from "./internal/errors.ts"
export type { Event } from "./internal/events.ts"
export type { OperatorOptions, Options } from "./internal/options.ts"
export type { Reason } from "./internal/state.ts"

const TypeId = "~effect-session-pool/SessionPool"

/**
 * A pool of sessions: keys `K`, connections `A`, and the errors `E` of opening one. Made by `make` or a `Service`. Printed it shows
 * its name only: keys and connections are often secrets.
 *
 * @category models
 * @since 0.1.0
 */
export interface SessionPool<in out K, in out A, in out E = never> extends Pipeable, Inspectable {
  readonly [TypeId]: typeof TypeId
  /**
   * For the functions of this module.
   *
   * @internal
   */
  readonly pool: Pool<K, A, E | AcquireError>
}

/**
 * What is known of a live session. Times are milliseconds since 1970, from the `Clock`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Info<out K> {
  /** The key that the session is under. */
  readonly key: K
  /** Never given to another session, not even to a later one under the same key. */
  readonly id: number
  /** Since when the key has had a session: `set` keeps it. */
  readonly createdAt: number
  /** Since when this connection is open. */
  readonly openedAt: number
  /** The last touch or release. */
  readonly lastUsedAt: number
  /** Touches since `createdAt`: every `get`, `use`, `getOption` and `touch` that found or opened it. */
  readonly requestCount: number
  /** Errors since the last success. */
  readonly errorCount: number
  /** Callers that hold the session now, and a check of it that runs. */
  readonly leases: number
  /** Idle: without leases. */
  readonly state: "idle" | "active"
}

/**
 * Counts of a pool: what it holds now, and totals since it was made.
 *
 * @category models
 * @since 0.1.0
 */
export interface Stats {
  /** Lookups that run for callers. */
  readonly launching: number
  /** Live sessions without leases. */
  readonly idle: number
  /** Live sessions with leases. */
  readonly active: number
  /** Sessions and launches that are no longer in the pool, but still leased or closing. */
  readonly retired: number
  /** Callers that wait for a place. */
  readonly waiting: number
  /** Calls that found a live session, since the pool was made; so are all counts below. */
  readonly hits: number
  /** Calls that found none, and launched or waited for a place. */
  readonly misses: number
  /** Callers that joined the launch of another. */
  readonly joins: number
  /** Lookups that opened a session. */
  readonly launches: number
  /** Lookups that failed, died, interrupted themselves or took longer than `lookupTimeout`; not those that were cancelled. */
  readonly launchFailures: number
  /** Sessions closed, by the reason of their retirement. */
  readonly closes: Readonly<Record<Reason, number>>
  /** Errors counted against sessions, by `use` and `recordError`. */
  readonly errors: number
}

/**
 * Whether a value is a `SessionPool`.
 *
 * **Example** (Telling a pool from another value)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * const program = Effect.gen(function*() {
 *   const pool = yield* SessionPool.make({ lookup: (user: string) => Effect.succeed(user) })
 *   return [SessionPool.isSessionPool(pool), SessionPool.isSessionPool({})]
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => [true, false]
 * ```
 *
 * @category guards
 * @since 0.1.0
 */
export const isSessionPool = (u: unknown): u is SessionPool<unknown, unknown, unknown> =>
  typeof u === "object" && u !== null && TypeId in u

// -----------------------------------------------------------------------------
// Constructors
// -----------------------------------------------------------------------------

/**
 * Makes a pool that belongs to the current `Scope`: when it closes, so does every session.
 *
 * **When to use**
 *
 * Use once for each kind of connection, where its scope is to end all of them: in a layer, mostly by way of `Service`.
 *
 * **Details**
 *
 * Options that make no sense (a negative duration, a zero `capacity`, `NaN`) are a defect: `InvalidOptions`, with the
 * option's name, its value and what is allowed.
 *
 * Finalizers, watchers and the functions among the options may call the pool. What such a call decides is decided at once, but
 * carried out only when what the pool is doing has been carried out. So `Effect.runSync` of a `get` that has to launch fails there;
 * use `yield*` where there is an effect.
 *
 * **Example** (One connection per user, closed after ten idle minutes)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * const program = Effect.gen(function*() {
 *   const pool = yield* SessionPool.make({
 *     lookup: (user: string) =>
 *       Effect.acquireRelease(Effect.succeed({ user }), () => Effect.log("closed")),
 *     idleTimeToLive: "10 minutes"
 *   })
 *   return yield* SessionPool.use(pool, "ada", (connection) => Effect.succeed(connection.user))
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => "ada"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <K, A, E, R>(
  options: Options<K, A, E, R>
): Effect.Effect<SessionPool<K, A, E>, never, Scope.Scope | Services<R>> =>
  Effect.uninterruptible(Effect.gen(function*() {
    const resolved = OptionsModule.resolveUnsafe(options)
    const scope = yield* Effect.scope
    // What outlives the maker must not hang on its scope or its span.
    const own = Context.omit(Scope.Scope, Tracer.ParentSpan)(yield* Effect.context<never>())
    const inherited = Context.get(own, Scheduler.Scheduler)
    // Of `runSync`: what it starts later would never give way to the event loop.
    const scheduler = inherited.executionMode === "async" ? inherited : new Scheduler.MixedScheduler()
    const context = Context.add(own, Scheduler.Scheduler, scheduler)
    const seed = Math.floor((yield* Random.next) * 4294967296)
    const pool: Pool<K, A, E | AcquireError> = {
      state: yield* Ref.make(State.make<K, A, E | AcquireError>(seed)),
      options: resolved,
      // The context above is what `R` asks for, and the launch adds the session's scope.
      lookup: options.lookup as (key: K) => Effect.Effect<A, E, Scope.Scope>,
      fail: Cause.fail,
      context,
      clock: Context.get(context, Clock.Clock),
      latest: 0,
      setBack: 0,
      tracer: Context.get(context, Tracer.Tracer),
      events: undefined,
      hasEnded: false,
      metrics: Metrics.make(resolved.name),
      leaks: resolved.leakDetection === Infinity ? undefined : Leaks.make<K>(),
      background: Scope.makeUnsafe("parallel"),
      lastId: 0,
      due: [],
      done: 0,
      isActing: false,
      dispatcher: scheduler.makeDispatcher()
    }
    // The end of the scope ends the pool, and with it what is started below.
    yield* Scope.addFinalizer(
      scope,
      Effect.andThen(
        Sweeping.end(pool),
        Effect.sync(() => {
          publish(pool, undefined)
          pool.hasEnded = true
        })
      )
    )
    forkIn(pool, Sweeping.cleanup(pool), pool.background)
    if (resolved.keepAlive !== Infinity) forkIn(pool, Sweeping.keepAlive(pool), pool.background)
    if (pool.leaks !== undefined) forkIn(pool, Leaks.watch(pool, pool.leaks), pool.background)
    const shown = { _id: "SessionPool", name: resolved.name }
    return {
      [TypeId]: TypeId,
      pool,
      pipe() {
        return pipeArguments(this, arguments)
      },
      toJSON: () => shown,
      toString: () => Formatter.format(shown),
      [NodeInspectSymbol]: () => shown
    }
  }))

/**
 * Reads the options that an operator sets from the configuration; what is not set keeps its default.
 *
 * **When to use**
 *
 * Use when operators are to set the limits and times by the environment, as all of `Config` does.
 *
 * **Details**
 *
 * The names are the options' in capitals, after the prefix: `IDLE_TIME_TO_LIVE`, `CAPACITY`, … Durations as
 * `"30 minutes"`, counts as integers or `Infinity`. A value that makes no sense is a `ConfigError` that names it.
 *
 * **Example** (A pool whose limits come from the environment)
 *
 * ```ts
 * import { ConfigProvider, Effect } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * const program = Effect.gen(function*() {
 *   const options = yield* SessionPool.config("SESSIONS")
 *   return options.capacity
 * })
 *
 * const provider = ConfigProvider.fromEnv({ env: { SESSIONS_CAPACITY: "100" } })
 * await Effect.runPromise(program.pipe(Effect.provideService(ConfigProvider.ConfigProvider, provider))) // => 100
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const config: (
  prefix?: string
) => Config.Config<
  & {
    readonly [
      // `Exclude` of nothing: the options are not optional here, but `undefined` where they are not set.
      P in Exclude<keyof OptionsModule.OperatorOptions, never>
    ]: OptionsModule.OperatorOptions[P] | undefined
  }
  & { readonly idleTimeToLive: Duration.Duration | undefined }
> = OptionsModule.config

// -----------------------------------------------------------------------------
// Getting a session
// -----------------------------------------------------------------------------

/**
 * Leases the session of a key for the current `Scope`, launching it if there is none.
 *
 * **When to use**
 *
 * Use when the session is needed for longer than one effect, or by several: it is leased until the scope closes. For one
 * effect take `use`.
 *
 * **Details**
 *
 * Fails with the lookup's error, or an `AcquireError`: `LookupTimeout` after `lookupTimeout`, `CapacityExceeded` where no
 * place became free within `acquireTimeout`, `ValidationFailed` where `validate` also refuses a new session, `PoolClosed`
 * after the pool's end. The scope's outcome counts no errors; see `use`.
 *
 * **Example** (Two gets share one session)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * const program = Effect.gen(function*() {
 *   let opened = 0
 *   const pool = yield* SessionPool.make({ lookup: (_: string) => Effect.sync(() => ++opened) })
 *   const first = yield* SessionPool.get(pool, "ada")
 *   const second = yield* SessionPool.get(pool, "ada")
 *   return [first, second]
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => [1, 1]
 * ```
 *
 * @function
 * @category combinators
 * @since 0.1.0
 */
export const get: {
  <K>(key: K): <A, E>(self: SessionPool<K, A, E>) => Effect.Effect<A, E | AcquireError, Scope.Scope>
  <K, A, E>(self: SessionPool<K, A, E>, key: K): Effect.Effect<A, E | AcquireError, Scope.Scope>
} = dual(2, <K, A, E>(self: SessionPool<K, A, E>, key: K) => Leasing.get(self.pool, key))

/**
 * Runs an effect with the session of a key, leased as long as the effect runs.
 *
 * **When to use**
 *
 * Use for each request: the lease ends with it, and how it went counts.
 *
 * **Details**
 *
 * Fails as the effect does, and as `get`. A failure or defect of the effect counts as an error of the session if `isError` says so, an interruption does not; a
 * success resets the count. At `maxErrorCount` the session is retired.
 *
 * **Example** (Using a connection)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * const program = Effect.gen(function*() {
 *   const pool = yield* SessionPool.make({ lookup: (user: string) => Effect.succeed({ user }) })
 *   return yield* SessionPool.use(pool, "ada", ({ user }) => Effect.succeed(user.length))
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => 3
 * ```
 *
 * @function
 * @category combinators
 * @since 0.1.0
 */
export const use: {
  <K, A, B, E2, R2>(
    key: K,
    f: (value: A) => Effect.Effect<B, E2, R2>
  ): <E>(self: SessionPool<K, A, E>) => Effect.Effect<B, E | E2 | AcquireError, R2>
  <K, A, E, B, E2, R2>(
    self: SessionPool<K, A, E>,
    key: K,
    f: (value: A) => Effect.Effect<B, E2, R2>
  ): Effect.Effect<B, E | E2 | AcquireError, R2>
} = dual(3, <K, A, E, B, E2, R2>(
  self: SessionPool<K, A, E>,
  key: K,
  f: (value: A) => Effect.Effect<B, E2, R2>
) => Leasing.use(self.pool, key, f))

/**
 * Looks a live session up and touches it in one atomic step: no launch, no lease.
 *
 * **When to use**
 *
 * Use when a session is used without the pool, such as by a stream that stays open: a heartbeat keeps it from its idle time-out.
 *
 * **Details**
 *
 * `None` for a key without a live session, also while it launches. The connection may close at any time after this, as
 * nothing is leased; what must not close under its user is got with `get`, `getOption` or `use`.
 *
 * **Example** (Keeping a session from going idle)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * const program = Effect.gen(function*() {
 *   const pool = yield* SessionPool.make({ lookup: (user: string) => Effect.succeed(user) })
 *   yield* SessionPool.get(pool, "ada")
 *   return [yield* SessionPool.touch(pool, "ada"), yield* SessionPool.touch(pool, "bob")]
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => [Option.some("ada"), Option.none()]
 * ```
 *
 * @function
 * @category combinators
 * @since 0.1.0
 */
export const touch: {
  <K>(key: K): <A, E>(self: SessionPool<K, A, E>) => Effect.Effect<Option.Option<A>>
  <K, A, E>(self: SessionPool<K, A, E>, key: K): Effect.Effect<Option.Option<A>>
} = dual(
  2,
  <K, A, E>({ pool }: SessionPool<K, A, E>, key: K) => hit(pool, (state, now) => Transitions.touch(state, key, now))
)

/**
 * Leases the session of a key for the current `Scope` if it is there or launching; never launches.
 *
 * **When to use**
 *
 * Use when a missing session is an answer, such as 404, instead of a reason to open one.
 *
 * **Details**
 *
 * `None` for a key without a session, and after the pool's end. Waits for a launch that runs, and fails as it does.
 *
 * **Example** (A request for a session that must exist)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * const program = Effect.gen(function*() {
 *   const pool = yield* SessionPool.make({ lookup: (user: string) => Effect.succeed(user) })
 *   return yield* SessionPool.getOption(pool, "ada")
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => Option.none()
 * ```
 *
 * @function
 * @category combinators
 * @since 0.1.0
 */
export const getOption: {
  <K>(key: K): <A, E>(self: SessionPool<K, A, E>) => Effect.Effect<Option.Option<A>, E | AcquireError, Scope.Scope>
  <K, A, E>(self: SessionPool<K, A, E>, key: K): Effect.Effect<Option.Option<A>, E | AcquireError, Scope.Scope>
} = dual(2, <K, A, E>(self: SessionPool<K, A, E>, key: K) => Leasing.getOption(self.pool, key))

/**
 * Puts a connection that is open already under its key; the present session is retired, its `createdAt` and counts go on.
 *
 * **When to use**
 *
 * Use when the connection comes from elsewhere: one that a client has opened, or one to take over.
 *
 * **Details**
 *
 * `finalizer` closes the connection; without one the pool leaves that to its owner. The connection is the pool's from the
 * moment this runs: it needs a place like a launch does and waits for one like `get`, and if it gets none
 * (`CapacityExceeded`, `PoolClosed`) or is interrupted, the finalizer runs. Callers that wait for a launch of this key
 * get the adopted connection.
 *
 * **Example** (Adopting a connection)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * const program = Effect.gen(function*() {
 *   const pool = yield* SessionPool.make({ lookup: (_: string) => Effect.succeed("launched") })
 *   yield* SessionPool.set(pool, "ada", "adopted", Effect.log("closed"))
 *   return yield* SessionPool.get(pool, "ada")
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => "adopted"
 * ```
 *
 * @function
 * @category combinators
 * @since 0.1.0
 */
export const set: {
  <K, A>(
    key: K,
    value: A,
    finalizer?: Effect.Effect<unknown>
  ): <E>(self: SessionPool<K, A, E>) => Effect.Effect<void, AcquireError | E>
  <K, A, E>(
    self: SessionPool<K, A, E>,
    key: K,
    value: A,
    finalizer?: Effect.Effect<unknown>
  ): Effect.Effect<void, AcquireError | E>
} = dual(
  (args) => isSessionPool(args[0]),
  <K, A, E>(self: SessionPool<K, A, E>, key: K, value: A, finalizer: Effect.Effect<unknown> = Effect.void) =>
    Adopting.set(self.pool, key, value, finalizer)
)

// -----------------------------------------------------------------------------
// Retiring sessions
// -----------------------------------------------------------------------------

/**
 * Retires the session of a key: the next `get` launches a new one. True if something was retired.
 *
 * **When to use**
 *
 * Use when a session is over, or known to be broken: the client logs out, its credentials have changed.
 *
 * **Details**
 *
 * The session closes with its last lease, at once if it has none; this does not wait for the close. Callers that wait
 * for a launch of this key still get its session, and nobody else does. A remembered failure is forgotten.
 *
 * **Example** (Ending a session)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * const program = Effect.gen(function*() {
 *   const pool = yield* SessionPool.make({ lookup: (user: string) => Effect.succeed(user) })
 *   yield* SessionPool.get(pool, "ada")
 *   return [yield* SessionPool.invalidate(pool, "ada"), yield* SessionPool.invalidate(pool, "ada")]
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => [true, false]
 * ```
 *
 * @function
 * @category combinators
 * @since 0.1.0
 */
export const invalidate: {
  <K>(key: K): <A, E>(self: SessionPool<K, A, E>) => Effect.Effect<boolean>
  <K, A, E>(self: SessionPool<K, A, E>, key: K): Effect.Effect<boolean>
} = dual(
  2,
  <K, A, E>({ pool }: SessionPool<K, A, E>, key: K) =>
    step(pool, (state) => Transitions.invalidate(state, pool.options, key))
)

/**
 * Retires every session, or every live one that satisfies the predicate when its turn comes; the number retired.
 *
 * **When to use**
 *
 * Use when a whole group is over: all sessions of a user, or of a back end whose configuration has changed.
 *
 * **Example** (Ending all sessions of a user)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * const program = Effect.gen(function*() {
 *   const pool = yield* SessionPool.make({ lookup: (key: string) => Effect.succeed(key) })
 *   yield* SessionPool.get(pool, "ada/1")
 *   yield* SessionPool.get(pool, "ada/2")
 *   yield* SessionPool.get(pool, "bob/1")
 *   return yield* SessionPool.invalidateAll(pool, ({ key }) => key.startsWith("ada/"))
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => 2
 * ```
 *
 * @function
 * @category combinators
 * @since 0.1.0
 */
export const invalidateAll: {
  <K>(predicate: (info: Info<K>) => boolean): <A, E>(self: SessionPool<K, A, E>) => Effect.Effect<number>
  <K, A, E>(self: SessionPool<K, A, E>, predicate?: (info: Info<K>) => boolean): Effect.Effect<number>
} = dual(
  (args) => isSessionPool(args[0]),
  <K, A, E>(self: SessionPool<K, A, E>, predicate?: (info: Info<K>) => boolean) =>
    Sweeping.invalidateAll(
      self.pool,
      (slot) => predicate === undefined || (slot._tag === "Live" && predicate(toInfo(self.pool, slot)))
    )
)

/**
 * Counts one error of a key's session; at `maxErrorCount` consecutive ones it is retired at once.
 *
 * **When to use**
 *
 * Use for errors that no `use` sees, such as those of a connection that `get` has leased.
 *
 * **Details**
 *
 * Does nothing for a key without a live session. A success of `use` starts the count anew.
 *
 * **Example** (Reporting an error that `use` did not see)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * const program = Effect.gen(function*() {
 *   const pool = yield* SessionPool.make({ lookup: (user: string) => Effect.succeed(user), maxErrorCount: 1 })
 *   yield* SessionPool.get(pool, "ada")
 *   yield* SessionPool.recordError(pool, "ada")
 *   return yield* SessionPool.size(pool)
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => 0
 * ```
 *
 * @function
 * @category combinators
 * @since 0.1.0
 */
export const recordError: {
  <K>(key: K): <A, E>(self: SessionPool<K, A, E>) => Effect.Effect<void>
  <K, A, E>(self: SessionPool<K, A, E>, key: K): Effect.Effect<void>
} = dual(
  2,
  <K, A, E>({ pool }: SessionPool<K, A, E>, key: K) =>
    step(pool, (state) => Transitions.recordError(state, pool.options, key))
)

/**
 * Runs one pass of the cleanup now; the number of sessions retired.
 *
 * **When to use**
 *
 * Use to clean up at once, such as in a test or before a measurement; the pool does it by itself each `cleanupInterval`.
 *
 * **Details**
 *
 * Retires what has been idle for `idleTimeToLive` or open for `maxLifetime`, as the cleanup does every `cleanupInterval`.
 *
 * **Example** (Cleaning up at a time of one's own)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * const program = Effect.gen(function*() {
 *   const pool = yield* SessionPool.make({ lookup: (user: string) => Effect.succeed(user) })
 *   yield* SessionPool.get(pool, "ada")
 *   return yield* SessionPool.sweep(pool)
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => 0
 * ```
 *
 * @category combinators
 * @since 0.1.0
 */
export const sweep = <K, A, E>(self: SessionPool<K, A, E>): Effect.Effect<number> => Sweeping.sweep(self.pool)

// -----------------------------------------------------------------------------
// Looking at the pool
// -----------------------------------------------------------------------------

/**
 * What is known of the live session of a key, without touching it; `None` while it launches, and where there is none.
 *
 * **When to use**
 *
 * Use to show one session, or to decide by its state; it does not touch it.
 *
 * **Example** (Reading the metadata)
 *
 * ```ts
 * import { Effect, Option } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * const program = Effect.gen(function*() {
 *   const pool = yield* SessionPool.make({ lookup: (user: string) => Effect.succeed(user) })
 *   yield* SessionPool.get(pool, "ada")
 *   return Option.map(yield* SessionPool.info(pool, "ada"), ({ leases, requestCount }) => [leases, requestCount])
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => Option.some([1, 1])
 * ```
 *
 * @function
 * @category getters
 * @since 0.1.0
 */
export const info: {
  <K>(key: K): <A, E>(self: SessionPool<K, A, E>) => Effect.Effect<Option.Option<Info<K>>>
  <K, A, E>(self: SessionPool<K, A, E>, key: K): Effect.Effect<Option.Option<Info<K>>>
} = dual(
  2,
  <K, A, E>({ pool }: SessionPool<K, A, E>, key: K) =>
    Effect.map(Ref.get(pool.state), ({ slots }) =>
      Option.flatMap(
        HashMap.get(slots, key),
        (slot): Option.Option<Info<K>> => slot._tag === "Live" ? Option.some(toInfo(pool, slot)) : Option.none()
      ))
)

const toInfo = <K, A>(
  { setBack }: { readonly setBack: number },
  { errorCount, lastUsedAt, leases, requestCount, session: { createdAt, id, key, openedAt } }: Live<K, A>
): Info<K> => ({
  key,
  id,
  // As the clock tells them now.
  createdAt: createdAt - setBack,
  openedAt: openedAt - setBack,
  lastUsedAt: lastUsedAt - setBack,
  requestCount,
  errorCount,
  leases,
  state: leases > 0 ? "active" : "idle"
})

const collect = <K, A, E, B>(self: SessionPool<K, A, E>, f: (live: Live<K, A>) => B): Effect.Effect<Array<B>> =>
  Effect.map(Ref.get(self.pool.state), ({ slots }) => {
    const all: Array<B> = []
    for (const slot of HashMap.values<K, Slot<K, A, E | AcquireError>>(slots)) {
      if (slot._tag === "Live") all.push(f(slot))
    }
    return all
  })

/**
 * What is known of every live session, in no particular order.
 *
 * **When to use**
 *
 * Use to list the sessions for people; for counts take `stats`, which visits none.
 *
 * **Example** (Listing the sessions)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * const program = Effect.gen(function*() {
 *   const pool = yield* SessionPool.make({ lookup: (user: string) => Effect.succeed(user) })
 *   yield* SessionPool.get(pool, "ada")
 *   const entries = yield* SessionPool.entries(pool)
 *   return entries.map(({ key, state }) => [key, state])
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => [["ada", "active"]]
 * ```
 *
 * @category getters
 * @since 0.1.0
 */
export const entries = <K, A, E>(self: SessionPool<K, A, E>): Effect.Effect<Array<Info<K>>> =>
  collect(self, (live) => toInfo(self.pool, live))

/**
 * The keys of all live sessions, in no particular order.
 *
 * **When to use**
 *
 * Use to go through the sessions by their keys.
 *
 * **Example** (Listing the keys)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * const program = Effect.gen(function*() {
 *   const pool = yield* SessionPool.make({ lookup: (user: string) => Effect.succeed(user) })
 *   yield* SessionPool.get(pool, "ada")
 *   return yield* SessionPool.keys(pool)
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => ["ada"]
 * ```
 *
 * @category getters
 * @since 0.1.0
 */
export const keys = <K, A, E>(self: SessionPool<K, A, E>): Effect.Effect<Array<K>> =>
  collect(self, (live) => live.session.key)

/**
 * How many sessions are live.
 *
 * **When to use**
 *
 * Use for the number of sessions alone.
 *
 * **Example** (Counting the sessions)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * const program = Effect.gen(function*() {
 *   const pool = yield* SessionPool.make({ lookup: (user: string) => Effect.succeed(user) })
 *   yield* SessionPool.get(pool, "ada")
 *   return yield* SessionPool.size(pool)
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => 1
 * ```
 *
 * @category getters
 * @since 0.1.0
 */
export const size = <K, A, E>(self: SessionPool<K, A, E>): Effect.Effect<number> =>
  Effect.map(Ref.get(self.pool.state), ({ inventory }) => inventory.live)

/**
 * Counts of the pool, in constant time.
 *
 * **When to use**
 *
 * Use for health checks and for pages that show the pool; `Metric` has the same for collectors.
 *
 * **Example** (Seeing what a pool does)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * const program = Effect.gen(function*() {
 *   const pool = yield* SessionPool.make({ lookup: (user: string) => Effect.succeed(user) })
 *   yield* SessionPool.get(pool, "ada")
 *   const { active, hits, misses } = yield* SessionPool.stats(pool)
 *   return { active, hits, misses }
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => { active: 1, hits: 0, misses: 1 }
 * ```
 *
 * @category getters
 * @since 0.1.0
 */
export const stats = <K, A, E>(self: SessionPool<K, A, E>): Effect.Effect<Stats> =>
  Effect.map(Ref.get(self.pool.state), ({ active, hits, inventory }) => ({
    launching: inventory.launching,
    idle: inventory.live - active,
    active,
    retired: HashMap.size(inventory.retired) + HashMap.size(inventory.detached),
    waiting: inventory.waiting,
    hits,
    ...inventory.totals
  }))

/**
 * What happens to the sessions from now on; ends with the pool.
 *
 * **When to use**
 *
 * Use to react to what becomes of sessions, such as to tell a client that its session has ended.
 *
 * **Details**
 *
 * A reader that lags 4,096 events behind loses the oldest; it never slows the pool. Each reader gets what happens after it
 * has begun to read.
 *
 * **Example** (Following the first two events)
 *
 * ```ts
 * import { Effect, Fiber, Stream } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * const program = Effect.gen(function*() {
 *   const pool = yield* SessionPool.make({ lookup: (user: string) => Effect.succeed(user) })
 *   const events = yield* SessionPool.events(pool).pipe(
 *     Stream.take(2),
 *     Stream.runCollect,
 *     Effect.forkScoped({ startImmediately: true })
 *   )
 *   yield* Effect.scoped(SessionPool.get(pool, "ada"))
 *   yield* SessionPool.invalidate(pool, "ada")
 *   return (yield* Fiber.join(events)).map(({ _tag }) => _tag)
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => ["Launched", "Retired"]
 * ```
 *
 * @category getters
 * @since 0.1.0
 */
export const events = <K, A, E>({ pool }: SessionPool<K, A, E>): Stream.Stream<Event<K, E | AcquireError>> =>
  Stream.unwrap(Effect.gen(function*() {
    // The buffer is made for the first reader; two first readers at once keep one of theirs.
    const made = pool.events ?? (yield* PubSub.sliding<Event<K, E | AcquireError> | undefined>(eventBuffer))
    // Subscribed before it is asked whether the pool has ended, so that the end cannot slip through between.
    const subscription = yield* PubSub.subscribe(pool.events ??= made)
    return pool.hasEnded
      ? Stream.empty
      : Stream.takeWhile(Stream.fromSubscription(subscription), (event) => event !== undefined)
  }))

/** Events that a reader may lag behind before it loses the oldest. */
const eventBuffer = 4096

// -----------------------------------------------------------------------------
// Service
// -----------------------------------------------------------------------------

/**
 * The functions of a pool, with the pool taken from the context.
 *
 * @category services
 * @since 0.1.0
 */
export interface Accessors<Self, K, A, E> {
  /** `SessionPool.get` of this pool. */
  readonly get: (key: K) => Effect.Effect<A, E | AcquireError, Self | Scope.Scope>
  /** `SessionPool.use` of this pool. */
  readonly use: <B, E2, R2>(
    key: K,
    f: (value: A) => Effect.Effect<B, E2, R2>
  ) => Effect.Effect<B, E | E2 | AcquireError, Self | R2>
  /** `SessionPool.touch` of this pool. */
  readonly touch: (key: K) => Effect.Effect<Option.Option<A>, never, Self>
  /** `SessionPool.getOption` of this pool. */
  readonly getOption: (key: K) => Effect.Effect<Option.Option<A>, E | AcquireError, Self | Scope.Scope>
  /** `SessionPool.set` of this pool. */
  readonly set: (key: K, value: A, finalizer?: Effect.Effect<unknown>) => Effect.Effect<void, E | AcquireError, Self>
  /** `SessionPool.invalidate` of this pool. */
  readonly invalidate: (key: K) => Effect.Effect<boolean, never, Self>
  /** `SessionPool.invalidateAll` of this pool. */
  readonly invalidateAll: (
    predicate?: (info: Info<K>) => boolean
  ) => Effect.Effect<number, never, Self>
  /** `SessionPool.recordError` of this pool. */
  readonly recordError: (key: K) => Effect.Effect<void, never, Self>
  /** `SessionPool.info` of this pool. */
  readonly info: (key: K) => Effect.Effect<Option.Option<Info<K>>, never, Self>
  /** `SessionPool.stats` of this pool. */
  readonly stats: Effect.Effect<Stats, never, Self>
}

/**
 * What `Service` returns: the service's class, its layer, and the accessors.
 *
 * @category services
 * @since 0.1.0
 */
export interface ServiceClass<Self, Id extends string, K, A, E, R, EX, RX>
  extends Context.ServiceClass<Self, Id, SessionPool<K, A, E>>, Omit<Accessors<Self, K, A, E>, "use">
{
  /** With a key: `use` of the pool. With a function alone: `use` of every service class, which gets the pool itself. */
  readonly use:
    & Accessors<Self, K, A, E>["use"]
    & Context.ServiceClass<Self, Id, SessionPool<K, A, E>>["use"]
  /** Makes the pool; it ends with the layer's scope. */
  readonly layer: Layer.Layer<Self, EX, Services<R> | Exclude<RX, Scope.Scope>>
}

/**
 * Makes a service class for a pool, so that a server composes it with `Layer.provide`.
 *
 * **When to use**
 *
 * Use to share one pool in a program, and to swap it for another layer in tests.
 *
 * **Details**
 *
 * The options may also be an effect of them, for instance one that reads `config`. The pool's `name` is the service's id
 * unless the options say otherwise.
 *
 * **Example** (A pool as a service)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * class Shells extends SessionPool.Service<Shells>()("app/Shells", {
 *   lookup: (user: string) => Effect.succeed(`shell of ${user}`)
 * }) {}
 *
 * const program = Shells.use("ada", (shell) => Effect.succeed(shell))
 *
 * await Effect.runPromise(program.pipe(Effect.provide(Shells.layer))) // => "shell of ada"
 * ```
 *
 * @category services
 * @since 0.1.0
 */
export const Service = <Self>() =>
<const Id extends string, K, A, E, R, EX = never, RX = never>(
  id: Id,
  options: Options<K, A, E, R> | Effect.Effect<Options<K, A, E, R>, EX, RX>
): ServiceClass<Self, Id, K, A, E, R, EX, RX> => {
  const tag = Context.Service<Self, SessionPool<K, A, E>>()(id)
  const pool = Effect.flatMap(
    Effect.isEffect(options) ? options : Effect.succeed(options),
    (options) => make({ ...options, name: options.name ?? id })
  )
  // Of the pool that was made last, so that the accessors know whether a call site is asked for when they are called.
  let leaks: SessionPool<K, A, E>["pool"]["leaks"]
  const layer = Layer.effect(
    tag,
    Effect.tap(pool, (made) =>
      Effect.sync(() => {
        leaks = made.pool.leaks
      }))
  )
  const accessors: Accessors<Self, K, A, E> = {
    get: (key) => {
      const at = callSite(leaks)
      return Effect.flatMap(tag, ({ pool }) => Leasing.get(pool, key, at))
    },
    use: (key, f) => {
      const at = callSite(leaks)
      return Effect.flatMap(tag, ({ pool }) => Leasing.use(pool, key, f, at))
    },
    touch: (key) => Effect.flatMap(tag, touch(key)),
    getOption: (key) => {
      const at = callSite(leaks)
      return Effect.flatMap(tag, ({ pool }) => Leasing.getOption(pool, key, at))
    },
    set: (key, value, finalizer) => Effect.flatMap(tag, (pool) => set(pool, key, value, finalizer)),
    invalidate: (key) => Effect.flatMap(tag, invalidate(key)),
    invalidateAll: (predicate) => Effect.flatMap(tag, (pool) => invalidateAll(pool, predicate)),
    recordError: (key) => Effect.flatMap(tag, recordError(key)),
    info: (key) => Effect.flatMap(tag, info(key)),
    stats: Effect.flatMap(tag, stats)
  }
  const useService = tag.use.bind(tag)
  return Object.assign(tag, accessors, {
    // One argument is a service class's own `use(f)`; the type of `ServiceClass.use` allows nothing in between.
    // oxlint-disable-next-line typescript/no-explicit-any
    use: (...args: [any, any?]) => args.length === 1 ? useService(args[0]) : accessors.use(args[0], args[1]),
    layer
  })
}
