/**
 * A `SessionPool` keeps one long-lived connection per key. The first caller opens it and all callers share it. It closes when it goes
 * idle, breaks, is invalidated, or when the pool's scope closes.
 *
 * The whole pool is one `Ref` of immutable data. Every change is one pure step in one `Ref.modify`. Finding a session and touching it
 * are the same step, so the cleanup cannot close the session in between.
 *
 * @module
 * @since 0.1.0
 * @stability unstable
 */

import type { Config, Duration } from "effect"
import {
  Clock,
  Context,
  Effect,
  Formatter,
  Hash,
  HashMap,
  Latch,
  Layer,
  Option,
  PubSub,
  Ref,
  Scope,
  Stream,
  Tracer
} from "effect"
import { dual, identity } from "effect/Function"
import type { Inspectable } from "effect/Inspectable"
import { NodeInspectSymbol } from "effect/Inspectable"
import type { Pipeable } from "effect/Pipeable"
import { pipeArguments } from "effect/Pipeable"
import type { SessionPoolError } from "./internal/errors.ts"
import type { Lease } from "./internal/leasing.ts"
import * as Leasing from "./internal/leasing.ts"
import type { OperatorOptions, Options, Services } from "./internal/options.ts"
import * as OptionsModule from "./internal/options.ts"
import * as Reports from "./internal/reports.ts"
import type { Pool } from "./internal/shell.ts"
import { step, timeOf } from "./internal/shell.ts"
import type { Event, Live, Slot, Totals } from "./internal/state.ts"
import * as State from "./internal/state.ts"
import * as Sweeping from "./internal/sweeping.ts"
import * as Transitions from "./internal/transitions.ts"

export { CapacityExceeded, LookupTimeout, PoolClosed, SessionPoolError } from "./internal/errors.ts"
export type { Lease } from "./internal/leasing.ts"
export type { OperatorOptions, Options, Services } from "./internal/options.ts"
export type { Event, Reason, Totals } from "./internal/state.ts"

const TypeId = "~effect-session-pool/SessionPool"

/**
 * A pool of sessions with keys `K`, connections `A` and lookup errors `E`, made by `make` or a `Service`.
 *
 * A pool prints its name only, because keys and connections are often secrets.
 *
 * @category models
 * @since 0.1.0
 * @stability unstable
 */
export interface SessionPool<in out K, in out A, in out E = never> extends Pipeable, Inspectable {
  readonly [TypeId]: typeof TypeId
  /**
   * The state and options that the functions of this module work on.
   *
   * @internal
   */
  readonly pool: Pool<K, A, E>
}

/**
 * The metadata of a live session. Times are milliseconds since 1970, from the `Clock`.
 *
 * @category models
 * @since 0.1.0
 * @stability unstable
 */
export interface Info<out K> {
  /** The key of the session. */
  readonly key: K
  /** The id of the session. No other session gets it, not even a later one under the same key. */
  readonly id: number
  /** When the session was opened. A session of `set` keeps the time of the session that it replaced. */
  readonly createdAt: number
  /** When this connection was opened, or put in by `set`. */
  readonly openedAt: number
  /** When the session was last touched, or a lease of it last ended. */
  readonly lastUsedAt: number
  /** Touches since `createdAt`. Each `get`, `lease`, `use`, `getOption` and `touch` of the session counts one. */
  readonly requestCount: number
  /** Errors since the last success. */
  readonly errorCount: number
  /** Leases held now. */
  readonly leases: number
  /** `active` with leases, `idle` without. */
  readonly state: "idle" | "active"
}

/**
 * Counts of a pool: what it holds now, and totals since it was made.
 *
 * @category models
 * @since 0.1.0
 * @stability unstable
 */
export interface Stats extends Totals {
  /** Lookups that run now, without invalidated and cancelled ones. */
  readonly launching: number
  /** Live sessions without leases. */
  readonly idle: number
  /** Live sessions with leases. */
  readonly active: number
  /** Sessions and launches that callers cannot find any more but that are not closed yet: still leased, awaited or closing. */
  readonly retired: number
  /** Leases held now, those of retired sessions included. */
  readonly leases: number
  /** Callers that wait for a place. */
  readonly waiting: number
  /** Failed launches that are remembered. */
  readonly failures: number
  /** Calls that found a live session, since the pool was made. */
  readonly hits: number
}

/**
 * Tells whether a value is a `SessionPool`.
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
 * @stability unstable
 */
export const isSessionPool = (u: unknown): u is SessionPool<unknown, unknown, unknown> =>
  typeof u === "object" && u !== null && TypeId in u

// -----------------------------------------------------------------------------
// Constructors
// -----------------------------------------------------------------------------

/**
 * Makes a pool that belongs to the current `Scope`: when the scope closes, every session closes.
 *
 * **When to use**
 *
 * Use once for each kind of connection, in the scope of the server. A server made of layers uses `Service` instead.
 *
 * **Details**
 *
 * An invalid option (a negative duration, a zero `capacity`, `NaN`) is a defect. Its message names the option, the value and the allowed
 * values.
 *
 * Keys are compared by value. A good key is a string, a struct or a `Data.Class`. All instances of a class with private state, such as
 * `Headers`, are equal, so such a key is a defect of the call that would launch its session.
 *
 * Finalizers of sessions may call the pool.
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
 * @see {@link Service} for a pool as a service
 *
 * @category constructors
 * @since 0.1.0
 * @stability unstable
 */
export const make = <K, A, E, R, RC = never>(
  options: Options<K, A, E, R, RC>
): Effect.Effect<SessionPool<K, A, E>, never, Scope.Scope | Services<R | RC>> =>
  Effect.uninterruptible(Effect.gen(function*() {
    const resolved = OptionsModule.resolveUnsafe(options)
    // A session has its own scope, and outlives the span that is current here. So neither is captured.
    const context = Context.omit(Scope.Scope, Tracer.ParentSpan)(yield* Effect.context<never>())
    const pool: Pool<K, A, E> = {
      state: yield* Ref.make(State.make<K, A, E>()),
      options: resolved,
      // `context` provides the services `R` and `RC`. `shell.ts` adds the session's scope.
      lookup: options.lookup as Pool<K, A, E>["lookup"],
      closed: options.closed as Pool<K, A, E>["closed"],
      context,
      clock: Context.get(context, Clock.Clock),
      latest: 0,
      setBack: 0,
      lastId: 0,
      lookups: new Map(),
      due: [],
      isActing: false,
      shortestIdle: Infinity,
      hasShorter: Latch.makeUnsafe(),
      background: Scope.makeUnsafe(),
      reports: Reports.make(resolved.name, context, resolved.leakDetection !== Infinity)
    }
    yield* Effect.addFinalizer(() => Sweeping.end(pool))
    Sweeping.start(pool)
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
 * Reads the operator's options from the configuration. An option that is not set keeps its default.
 *
 * **When to use**
 *
 * Use to let operators set limits and times by environment variables.
 *
 * **Details**
 *
 * A variable is the option's name in capitals, after the prefix: `SESSIONS_CAPACITY` sets `capacity` with the prefix `SESSIONS`. A
 * duration is a text such as `"30 minutes"`. A count is an integer or `infinity`. An invalid value fails with a `ConfigError` that names
 * the variable.
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
 * @stability unstable
 */
export const config: (
  prefix?: string
) => Config.Config<OperatorOptions & { readonly idleTimeToLive?: Duration.Duration | undefined }> = OptionsModule.config

// -----------------------------------------------------------------------------
// Getting a session
// -----------------------------------------------------------------------------

/**
 * Leases the session of a key for the current `Scope`. Launches a session if the key has none.
 *
 * **When to use**
 *
 * Use when one effect is not enough: the lease lasts until the scope closes.
 *
 * **Details**
 *
 * Fails with the lookup's error, or with a `SessionPoolError`. Its `reason` is one of:
 *
 * - `LookupTimeout`: the lookup took longer than `lookupTimeout`.
 * - `CapacityExceeded`: no place became free within `acquireTimeout`, or `maxWaiting` callers were waiting already.
 * - `PoolClosed`: the pool has ended.
 *
 * The exit of the scope counts neither for nor against the session. Only `use` counts outcomes.
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
 * @see {@link use} for one effect, whose outcome counts
 * @see {@link getOption} to launch nothing
 *
 * @function
 * @category combinators
 * @since 0.1.0
 * @stability unstable
 */
export const get: {
  <K>(key: K): <A, E>(self: SessionPool<K, A, E>) => Effect.Effect<A, E | SessionPoolError, Scope.Scope>
  <K, A, E>(self: SessionPool<K, A, E>, key: K): Effect.Effect<A, E | SessionPoolError, Scope.Scope>
} = dual(
  2,
  <K, A, E>(self: SessionPool<K, A, E>, key: K) => Leasing.lease(self.pool, key, callSite(self), ({ value }) => value)
)

/**
 * As `get`, but returns the `Lease`: the connection with the key and id of its session.
 *
 * **When to use**
 *
 * Use when the caller may find its connection broken. `invalidate` of a lease retires the leased session, never a later one under the
 * same key.
 *
 * **Example** (Retiring the leased session)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * const program = Effect.gen(function*() {
 *   const pool = yield* SessionPool.make({ lookup: (user: string) => Effect.succeed(user) })
 *   const lease = yield* SessionPool.lease(pool, "ada")
 *   return [lease.id, yield* lease.invalidate, yield* lease.invalidate]
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => [1, true, false]
 * ```
 *
 * @see {@link get} for the connection alone
 *
 * @function
 * @category combinators
 * @since 0.1.0
 * @stability unstable
 */
export const lease: {
  <K>(key: K): <A, E>(
    self: SessionPool<K, A, E>
  ) => Effect.Effect<Lease<K, A>, E | SessionPoolError, Scope.Scope>
  <K, A, E>(self: SessionPool<K, A, E>, key: K): Effect.Effect<Lease<K, A>, E | SessionPoolError, Scope.Scope>
} = dual(2, <K, A, E>(self: SessionPool<K, A, E>, key: K) => Leasing.lease(self.pool, key, callSite(self), identity))

const callSite = <K, A, E>({ pool }: SessionPool<K, A, E>): Error | undefined =>
  Reports.callSite(pool.reports.leases !== undefined)

/**
 * Leases the session of a key while an effect runs. The outcome of the effect counts for or against the session.
 *
 * **When to use**
 *
 * Use for each request of a client session.
 *
 * **Details**
 *
 * Fails with the error of the effect, or as `get` does. A failure or defect of the effect counts as an error of the session if `isError`
 * returns true. An interruption does not count. A success resets the count. At `maxErrorCount` consecutive errors the session is retired.
 *
 * The effect also gets the lease. `lease.invalidate` retires the leased session, never a later one under the same key.
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
 * @see {@link get} for a lease that lasts as long as a scope
 *
 * @function
 * @category combinators
 * @since 0.1.0
 * @stability unstable
 */
export const use: {
  <K, A, B, E2, R2>(
    key: K,
    f: (value: A, lease: Lease<K, A>) => Effect.Effect<B, E2, R2>
  ): <E>(self: SessionPool<K, A, E>) => Effect.Effect<B, E | E2 | SessionPoolError, R2>
  <K, A, E, B, E2, R2>(
    self: SessionPool<K, A, E>,
    key: K,
    f: (value: A, lease: Lease<K, A>) => Effect.Effect<B, E2, R2>
  ): Effect.Effect<B, E | E2 | SessionPoolError, R2>
} = dual(3, <K, A, E, B, E2, R2>(
  self: SessionPool<K, A, E>,
  key: K,
  f: (value: A, lease: Lease<K, A>) => Effect.Effect<B, E2, R2>
) => Leasing.use(self.pool, key, f, callSite(self)))

/**
 * Finds a live session and touches it, in one atomic step. Launches nothing and takes no lease.
 *
 * **When to use**
 *
 * Use for a heartbeat, so that an idle session does not expire.
 *
 * **Details**
 *
 * A touch sets `lastUsedAt` to now and adds 1 to `requestCount`. Returns `None` if the key has no live session, also while it launches.
 * Without a lease, the connection may close right after the touch.
 *
 * **Example** (Keeping a session from expiring)
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
 * @see {@link getOption} for a lease
 *
 * @function
 * @category combinators
 * @since 0.1.0
 * @stability unstable
 */
export const touch: {
  <K>(key: K): <A, E>(self: SessionPool<K, A, E>) => Effect.Effect<Option.Option<A>>
  <K, A, E>(self: SessionPool<K, A, E>, key: K): Effect.Effect<Option.Option<A>>
} = dual(
  2,
  <K, A, E>({ pool }: SessionPool<K, A, E>, key: K) =>
    Ref.modify(pool.state, (state) => {
      const [session, next] = Transitions.hit(state, pool.options, key, timeOf(pool), 0)
      return [session === undefined ? Option.none() : Option.some(session.value), next]
    })
)

/**
 * Leases the session of a key for the current `Scope`, if it is live or launching. Never launches one.
 *
 * **When to use**
 *
 * Use when a missing session is a normal answer, such as HTTP 404.
 *
 * **Details**
 *
 * Returns `None` if the key has no session, and after the end of the pool. If a launch of the key runs or waits for a place, the caller
 * joins that launch, and fails as `get` does.
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
 * @stability unstable
 */
export const getOption: {
  <K>(key: K): <A, E>(self: SessionPool<K, A, E>) => Effect.Effect<Option.Option<A>, E | SessionPoolError, Scope.Scope>
  <K, A, E>(self: SessionPool<K, A, E>, key: K): Effect.Effect<Option.Option<A>, E | SessionPoolError, Scope.Scope>
} = dual(2, <K, A, E>(self: SessionPool<K, A, E>, key: K) => Leasing.leaseOption(self.pool, key, callSite(self)))

/**
 * Puts an open connection under a key, and retires the present session. The new session inherits `createdAt` and both counts.
 *
 * **When to use**
 *
 * Use when the connection comes from elsewhere, for example from a client that connected to the server.
 *
 * **Details**
 *
 * `finalizer` closes the connection. Default: the pool closes nothing. The pool owns the connection from the start of `set`. So if `set`
 * fails (`CapacityExceeded`, `PoolClosed`) or is interrupted, the pool runs the finalizer.
 *
 * `set` is one step if there is room. Otherwise it waits for a place, as `get` does. Callers that wait for a launch of the key get this
 * connection.
 *
 * If `idleTimeToLive` is zero and no caller leases the connection, the next sweep closes it.
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
 * @stability unstable
 */
export const set: {
  <K, A>(
    key: K,
    value: A,
    finalizer?: Effect.Effect<unknown>
  ): <E>(self: SessionPool<K, A, E>) => Effect.Effect<void, E | SessionPoolError>
  <K, A, E>(
    self: SessionPool<K, A, E>,
    key: K,
    value: A,
    finalizer?: Effect.Effect<unknown>
  ): Effect.Effect<void, E | SessionPoolError>
} = dual(
  (args) => isSessionPool(args[0]),
  <K, A, E>(self: SessionPool<K, A, E>, key: K, value: A, finalizer: Effect.Effect<unknown> = Effect.void) =>
    Leasing.set(self.pool, key, value, finalizer)
)

// -----------------------------------------------------------------------------
// Retiring sessions
// -----------------------------------------------------------------------------

/**
 * Retires the session of a key, so that the next `get` launches a new one. Returns true if it retired a session or launch.
 *
 * **When to use**
 *
 * Use when a session must end: the client has logged out, or its credentials have changed.
 *
 * **Details**
 *
 * A session without leases closes at once. Otherwise it closes when its last lease ends. `invalidate` does not wait for the close.
 *
 * Callers that wait for a running launch of the key still get its session, and no later caller does. A launch that waits for a place goes
 * on, because its lookup has not started. A remembered failure of the key is forgotten.
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
 * @see {@link lease} to retire the leased session
 *
 * @function
 * @category combinators
 * @since 0.1.0
 * @stability unstable
 */
export const invalidate: {
  <K>(key: K): <A, E>(self: SessionPool<K, A, E>) => Effect.Effect<boolean>
  <K, A, E>(self: SessionPool<K, A, E>, key: K): Effect.Effect<boolean>
} = dual(
  2,
  <K, A, E>({ pool }: SessionPool<K, A, E>, key: K) =>
    step(pool, (d) => Transitions.invalidate(d, { key, hash: Hash.hash(key) }, () => true))
)

/**
 * Retires every session and running launch, or every live session that satisfies a predicate. Returns how many it retired.
 *
 * **When to use**
 *
 * Use to end all sessions of a user, or of a back end whose configuration has changed.
 *
 * **Details**
 *
 * The predicate must be pure, because it runs inside the step that retires the session. Sessions launched after the call are kept.
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
 * @stability unstable
 */
export const invalidateAll: {
  <K>(predicate: (info: Info<K>) => boolean): <A, E>(self: SessionPool<K, A, E>) => Effect.Effect<number>
  <K, A, E>(self: SessionPool<K, A, E>, predicate?: (info: Info<K>) => boolean): Effect.Effect<number>
} = dual(
  (args) => isSessionPool(args[0]),
  <K, A, E>(self: SessionPool<K, A, E>, predicate?: (info: Info<K>) => boolean) =>
    Sweeping.invalidateAll(
      self.pool,
      (slot) => predicate === undefined || (slot._tag === "Live" && predicate(infoOf(self.pool, slot)))
    )
)

/**
 * Counts one error of the present session of a key. At `maxErrorCount` consecutive errors the session is retired at once.
 *
 * **When to use**
 *
 * Use for errors that no `use` sees. With a lease, use `lease.recordError`: it never counts against a later session.
 *
 * **Details**
 *
 * A no-op for a key without a live session. A success of `use` resets the count.
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
 * @stability unstable
 */
export const recordError: {
  <K>(key: K): <A, E>(self: SessionPool<K, A, E>) => Effect.Effect<void>
  <K, A, E>(self: SessionPool<K, A, E>, key: K): Effect.Effect<void>
} = dual(
  2,
  <K, A, E>({ pool }: SessionPool<K, A, E>, key: K) =>
    step(pool, (d) => Transitions.recordError(d, { key, hash: Hash.hash(key) }))
)

/**
 * Runs one pass of the cleanup now: retires every expired session. Returns how many it retired.
 *
 * **When to use**
 *
 * Use in a test, or before a measurement. The pool itself sweeps every `cleanupInterval`.
 *
 * **Example** (Running the cleanup)
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
 * @stability unstable
 */
export const sweep = <K, A, E>(self: SessionPool<K, A, E>): Effect.Effect<number> => Sweeping.sweep(self.pool)

// -----------------------------------------------------------------------------
// Looking at the pool
// -----------------------------------------------------------------------------

/**
 * Reads the metadata of the live session of a key, without a touch. Returns `None` if there is none, also while it launches.
 *
 * **When to use**
 *
 * Use to show one session.
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
 * @stability unstable
 */
export const info: {
  <K>(key: K): <A, E>(self: SessionPool<K, A, E>) => Effect.Effect<Option.Option<Info<K>>>
  <K, A, E>(self: SessionPool<K, A, E>, key: K): Effect.Effect<Option.Option<Info<K>>>
} = dual(
  2,
  <K, A, E>({ pool }: SessionPool<K, A, E>, key: K) =>
    Effect.map(
      Ref.get(pool.state),
      ({ slots }) =>
        Option.flatMap(HashMap.get(slots, key), (slot): Option.Option<Info<K>> =>
          isPresent(pool, slot) ? Option.some(infoOf(pool, slot)) : Option.none())
    )
)

/** Whether a session is live and has not expired. */
const isPresent = <K, A, E>(pool: Pool<K, A, E>, slot: Slot<K, A, E>): slot is Live<K, A> =>
  slot._tag === "Live" && Transitions.overdue(slot, timeOf(pool)) === undefined

const infoOf = <K, A>(
  { setBack }: { readonly setBack: number },
  { errorCount, lastUsedAt, leases, requestCount, session: { createdAt, id, key, openedAt } }: Live<K, A>
): Info<K> => ({
  key,
  id,
  // Times in the state come from `timeOf`, which runs ahead of the clock by `setBack`.
  createdAt: createdAt - setBack,
  openedAt: openedAt - setBack,
  lastUsedAt: lastUsedAt - setBack,
  requestCount,
  errorCount,
  leases,
  state: leases > 0 ? "active" : "idle"
})

/**
 * Reads the metadata of every live session, in no particular order.
 *
 * **When to use**
 *
 * Use to list the sessions. `entries` visits every session; `stats` reads counts without a visit.
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
 * @stability unstable
 */
export const entries = <K, A, E>(self: SessionPool<K, A, E>): Effect.Effect<Array<Info<K>>> =>
  Effect.map(Ref.get(self.pool.state), ({ slots }) => {
    const all: Array<Info<K>> = []
    for (const slot of HashMap.values(slots)) {
      if (isPresent(self.pool, slot)) all.push(infoOf(self.pool, slot))
    }
    return all
  })

/**
 * Reads the keys of all live sessions, in no particular order.
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
 * @stability unstable
 */
export const keys = <K, A, E>(self: SessionPool<K, A, E>): Effect.Effect<Array<K>> =>
  Effect.map(entries(self), (all) => all.map(({ key }) => key))

/**
 * Reads how many sessions are live. An expired session counts until it is retired.
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
 * @stability unstable
 */
export const size = <K, A, E>(self: SessionPool<K, A, E>): Effect.Effect<number> =>
  Effect.map(Ref.get(self.pool.state), ({ live }) => live)

/**
 * Reads the counts of the pool, without visiting its sessions.
 *
 * **When to use**
 *
 * Use for health checks and status pages. For a metrics collector, the pool also updates Effect's metrics.
 *
 * **Example** (Reading the counts)
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
 * @stability unstable
 */
export const stats = <K, A, E>(self: SessionPool<K, A, E>): Effect.Effect<Stats> =>
  Effect.map(Ref.get(self.pool.state), (state) => ({
    ...state.totals,
    launching: state.launching,
    idle: state.live - state.active,
    active: state.active,
    retired: HashMap.size(state.leaving),
    leases: state.leases,
    waiting: state.waiters,
    failures: Transitions.countFailures(state, timeOf(self.pool)),
    hits: state.hits
  }))

/**
 * Streams the events of the sessions, from the subscription on. The stream ends with the pool.
 *
 * **When to use**
 *
 * Use to react to the end of a session, for example to notify its client.
 *
 * **Details**
 *
 * A reader that lags 4,096 events behind loses the oldest events. A slow reader never slows the pool.
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
 * @stability unstable
 */
export const events = <K, A, E>(
  { pool: { reports } }: SessionPool<K, A, E>
): Stream.Stream<Event<K, E | SessionPoolError>> =>
  Stream.unwrap(Effect.gen(function*() {
    // Two concurrent first readers may each make a buffer. Only the first buffer is kept.
    const made = reports.events ?? (yield* PubSub.sliding<Event<K, E | SessionPoolError> | undefined>(eventBuffer))
    // Subscribe before reading `hasEnded`, so the end cannot come in between.
    const subscription = yield* PubSub.subscribe(reports.events ??= made)
    return reports.hasEnded
      ? Stream.empty
      : Stream.takeWhile(Stream.fromSubscription(subscription), (event) => event !== undefined)
  }))

/** How many events a reader may lag behind before it loses the oldest. */
const eventBuffer = 4096

// -----------------------------------------------------------------------------
// Service
// -----------------------------------------------------------------------------

/**
 * The operations of a pool, with the pool taken from the context.
 *
 * @category services
 * @since 0.1.0
 * @stability unstable
 */
export interface Accessors<Self, K, A, E> {
  /** `SessionPool.get` of this pool. */
  readonly get: (key: K) => Effect.Effect<A, E | SessionPoolError, Self | Scope.Scope>
  /** `SessionPool.lease` of this pool. */
  readonly lease: (key: K) => Effect.Effect<Lease<K, A>, E | SessionPoolError, Self | Scope.Scope>
  /** `SessionPool.use` of this pool. */
  readonly use: <B, E2, R2>(
    key: K,
    f: (value: A, lease: Lease<K, A>) => Effect.Effect<B, E2, R2>
  ) => Effect.Effect<B, E | E2 | SessionPoolError, Self | R2>
  /** `SessionPool.getOption` of this pool. */
  readonly getOption: (key: K) => Effect.Effect<Option.Option<A>, E | SessionPoolError, Self | Scope.Scope>
  /** `SessionPool.touch` of this pool. */
  readonly touch: (key: K) => Effect.Effect<Option.Option<A>, never, Self>
  /** `SessionPool.set` of this pool. */
  readonly set: (
    key: K,
    value: A,
    finalizer?: Effect.Effect<unknown>
  ) => Effect.Effect<void, E | SessionPoolError, Self>
  /** `SessionPool.invalidate` of this pool. */
  readonly invalidate: (key: K) => Effect.Effect<boolean, never, Self>
  /** `SessionPool.invalidateAll` of this pool. */
  readonly invalidateAll: (predicate?: (info: Info<K>) => boolean) => Effect.Effect<number, never, Self>
  /** `SessionPool.recordError` of this pool. */
  readonly recordError: (key: K) => Effect.Effect<void, never, Self>
  /** `SessionPool.sweep` of this pool. */
  readonly sweep: Effect.Effect<number, never, Self>
  /** `SessionPool.info` of this pool. */
  readonly info: (key: K) => Effect.Effect<Option.Option<Info<K>>, never, Self>
  /** `SessionPool.entries` of this pool. */
  readonly entries: Effect.Effect<Array<Info<K>>, never, Self>
  /** `SessionPool.keys` of this pool. */
  readonly keys: Effect.Effect<Array<K>, never, Self>
  /** `SessionPool.size` of this pool. */
  readonly size: Effect.Effect<number, never, Self>
  /** `SessionPool.stats` of this pool. */
  readonly stats: Effect.Effect<Stats, never, Self>
  /** `SessionPool.events` of this pool. */
  readonly events: Stream.Stream<Event<K, E | SessionPoolError>, never, Self>
}

/**
 * The class that `Service` returns, with its layer and the operations.
 *
 * @category services
 * @since 0.1.0
 * @stability unstable
 */
export interface ServiceClass<Self, Id extends string, K, A, E, R, EX, RX>
  extends Omit<Context.Service<Self, SessionPool<K, A, E>>, "key" | "use">, Accessors<Self, K, A, E>
{
  new(_: never): Context.ServiceClass.Shape<Id, SessionPool<K, A, E>>
  readonly key: Id
  /** Makes the pool, which ends with the layer's scope. */
  readonly layer: Layer.Layer<Self, EX, Services<R> | Exclude<RX, Scope.Scope>>
}

/** Turns a missing type into a compile error whose text names it. */
type Checked<Self, K> = [Self] extends [never] ? "Name the class: Service<Self>()"
  : unknown extends K ? "Give the key of lookup a type"
  : unknown

/**
 * Makes a service class for a pool, so that a server can provide the pool as a layer.
 *
 * **When to use**
 *
 * Use to share one pool in a program, and to replace it by another layer in tests.
 *
 * **Details**
 *
 * `options` may also be an effect that returns the options, such as one that reads `config`. The option `name` defaults to the service's
 * id.
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
 * @see {@link make} for a pool without a service
 *
 * @category services
 * @since 0.1.0
 * @stability unstable
 */
export const Service = <Self = never>() =>
<const Id extends string, K, A, E, R, RC = never, EX = never, RX = never>(
  id: Id,
  options: (Options<K, A, E, R, RC> | Effect.Effect<Options<K, A, E, R, RC>, EX, RX>) & Checked<Self, K>
): ServiceClass<Self, Id, K, A, E, R | RC, EX, RX> => {
  const tag = Context.Service<Self, SessionPool<K, A, E>>()(id)
  const given: Options<K, A, E, R, RC> | Effect.Effect<Options<K, A, E, R, RC>, EX, RX> = options
  const isTraced = !Effect.isEffect(given) && given.leakDetection !== undefined
  const pool = Effect.flatMap(
    Effect.isEffect(given) ? given : Effect.succeed(given),
    (options) => make({ ...options, name: options.name ?? id })
  )
  const withSite = <B, E2, R2>(
    f: (pool: SessionPool<K, A, E>, site: Error | undefined) => Effect.Effect<B, E2, R2>
  ): Effect.Effect<B, E2, R2 | Self> => {
    const site = Reports.callSite(isTraced)
    return Effect.flatMap(tag, (pool) => f(pool, site))
  }
  const accessors: Accessors<Self, K, A, E> = {
    get: (key) => Effect.map(accessors.lease(key), ({ value }) => value),
    lease: (key) => withSite(({ pool }, site) => Leasing.lease(pool, key, site, identity)),
    use: (key, f) => withSite(({ pool }, site) => Leasing.use(pool, key, f, site)),
    getOption: (key) => withSite(({ pool }, site) => Leasing.leaseOption(pool, key, site)),
    touch: (key) => Effect.flatMap(tag, touch(key)),
    set: (key, value, finalizer) => Effect.flatMap(tag, (pool) => set(pool, key, value, finalizer)),
    invalidate: (key) => Effect.flatMap(tag, invalidate(key)),
    invalidateAll: (predicate) => Effect.flatMap(tag, (pool) => invalidateAll(pool, predicate)),
    recordError: (key) => Effect.flatMap(tag, recordError(key)),
    sweep: Effect.flatMap(tag, sweep),
    info: (key) => Effect.flatMap(tag, info(key)),
    entries: Effect.flatMap(tag, entries),
    keys: Effect.flatMap(tag, keys),
    size: Effect.flatMap(tag, size),
    stats: Effect.flatMap(tag, stats),
    events: Stream.unwrap(Effect.map(tag, events))
  }
  return Object.assign(tag, accessors, { layer: Layer.effect(tag, pool) })
}
