/**
 * A `SessionPool` keeps one long-lived connection per key. The first caller opens it and all callers share it. It closes when it goes
 * idle, breaks, is invalidated, or when the pool's scope closes.
 *
 * The whole pool is one `Ref` of immutable data. Every change is one pure step in one `Ref.modify`. The lookup and its touch are the
 * same step, so no cleanup can come between them.
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
 * A pool of sessions with keys `K`, connections `A` and lookup errors `E`; made by `make` or a `Service`. It prints its name only,
 * because keys and connections are often secrets.
 *
 * @category models
 * @since 0.1.0
 * @stability unstable
 */
export interface SessionPool<in out K, in out A, in out E = never> extends Pipeable, Inspectable {
  readonly [TypeId]: typeof TypeId
  /**
   * For the functions of this module.
   *
   * @internal
   */
  readonly pool: Pool<K, A, E>
}

/**
 * What is known of a live session. Times are milliseconds since 1970, from the `Clock`.
 *
 * @category models
 * @since 0.1.0
 * @stability unstable
 */
export interface Info<out K> {
  /** The key that the session is under. */
  readonly key: K
  /** Never given to another session, not even to a later one under the same key. */
  readonly id: number
  /** When the key got its first session; `set` keeps it. */
  readonly createdAt: number
  /** When this connection was opened. */
  readonly openedAt: number
  /** The last touch or release. */
  readonly lastUsedAt: number
  /** Touches since `createdAt`: every `get`, `use`, `getOption` and `touch` that found or opened it. */
  readonly requestCount: number
  /** Errors since the last success. */
  readonly errorCount: number
  /** Leases held now. */
  readonly leases: number
  /** Idle without leases, active with some. */
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
  /** Lookups that run for callers. */
  readonly launching: number
  /** Live sessions without leases. */
  readonly idle: number
  /** Live sessions with leases. */
  readonly active: number
  /** Sessions and launches that have left the pool but are still leased or closing. */
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
 * Use once for each kind of connection, in the scope of the server. In a server of layers take `Service`.
 *
 * **Details**
 *
 * Options that make no sense (a negative duration, a zero `capacity`, `NaN`) are a defect that names the option, its value and what is
 * allowed.
 *
 * Keys are compared by value. A good key is a string, a struct or a `Data.Class`; a key whose state is private, such as `Headers`, is
 * refused at its launch.
 *
 * Finalizers may call the pool.
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
    // Sessions outlive the maker's scope and span, so they must not capture them.
    const context = Context.omit(Scope.Scope, Tracer.ParentSpan)(yield* Effect.context<never>())
    const pool: Pool<K, A, E> = {
      state: yield* Ref.make(State.make<K, A, E>()),
      options: resolved,
      // The context above has what `R` and `RC` ask for; the session's scope is added to it.
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
      hasShorter: Latch.makeUnsafe(false),
      background: Scope.makeUnsafe("parallel"),
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
 * Reads the options that an operator may set from the configuration. An option that is not set keeps its default.
 *
 * **When to use**
 *
 * Use to let operators set limits and times by environment variables.
 *
 * **Details**
 *
 * The variables are the options in capitals, after the prefix: `IDLE_TIME_TO_LIVE`, `CAPACITY`. A duration is a text such as
 * `"30 minutes"`, a count is an integer or `infinity`. A value that makes no sense is a `ConfigError` that names the variable.
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
 * Leases the session of a key for the current `Scope`, and launches one if there is none.
 *
 * **When to use**
 *
 * Use when the session is needed for longer than one effect: it is leased until the scope closes.
 *
 * **Details**
 *
 * Fails with the lookup's error, or with a `SessionPoolError` whose reason is `LookupTimeout` after `lookupTimeout`, `CapacityExceeded`
 * if no place became free within `acquireTimeout`, or `PoolClosed`
 * after the end of the pool. The outcome of the scope does not count as an error of the session.
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
 * Use when a holder may find its connection broken. `invalidate` of a lease retires the session that it holds, never one that another
 * caller launched in its place.
 *
 * **Example** (Retiring the session that one holds)
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
 * Runs an effect with the session of a key, leased as long as the effect runs. Its outcome counts for or against the session.
 *
 * **When to use**
 *
 * Use for each request of a session.
 *
 * **Details**
 *
 * Fails as the effect does, and as `get`. A failure or defect of the effect counts as an error of the session if `isError` says so. An
 * interruption does not count, and a success resets the count. At `maxErrorCount` the session is retired.
 *
 * The effect also gets its lease, which can retire this very session: `lease.invalidate`.
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
 * Looks a live session up and touches it in one atomic step: no launch, no lease.
 *
 * **When to use**
 *
 * Use for a heartbeat that keeps a session from its idle timeout.
 *
 * **Details**
 *
 * `None` for a key without a live session, also while it launches. A touch takes no lease: the connection may close right after it.
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
 * Leases the session of a key for the current `Scope` if it is live or launching. Never launches.
 *
 * **When to use**
 *
 * Use when a missing session is an answer, such as HTTP 404.
 *
 * **Details**
 *
 * `None` for a key without a session, and after the end of the pool. Joins a launch that runs or waits for a place, and fails as `get`
 * does.
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
 * Puts an open connection under a key. The present session is retired; its `createdAt`, request and error counts go on.
 *
 * **When to use**
 *
 * Use when the connection comes from elsewhere, for example from a client that connected to the server.
 *
 * **Details**
 *
 * `finalizer` closes the connection. The pool owns the connection from the call on: if it gets no place (`CapacityExceeded`,
 * `PoolClosed`) or the caller is interrupted, the finalizer runs. Without callers, and with an `idleTimeToLive` of zero, the next sweep
 * closes it. It takes effect in one step if there is room, else it waits for a
 * place as `get` does. Callers that wait for a launch of the key get this connection.
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
 * Retires the session of a key, so that the next `get` launches a new one. True if a session or launch was retired.
 *
 * **When to use**
 *
 * Use when a session is over: the client logs out, or its credentials have changed.
 *
 * **Details**
 *
 * The session closes with its last lease, at once if it has none. This does not wait for the close. Callers that wait for a launch of
 * the key still get its session, and no other caller does. A remembered failure is forgotten.
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
 * @see {@link lease} to retire the session that one holds
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
 * Retires every session, or every live one that satisfies a predicate. Returns how many were retired.
 *
 * **When to use**
 *
 * Use to end all sessions of a user, or of a back end whose configuration has changed.
 *
 * **Details**
 *
 * The predicate must be pure: it runs inside the step that retires the session. Sessions that are launched meanwhile are not asked.
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
 * Use for errors that no `use` sees. A holder of a lease takes `lease.recordError`, which never counts against a later session.
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
 * Runs one pass of the cleanup now: retires every expired session. Returns how many were retired.
 *
 * **When to use**
 *
 * Use in a test, or before a measurement. The pool sweeps by itself every `cleanupInterval`.
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
 * @stability unstable
 */
export const sweep = <K, A, E>(self: SessionPool<K, A, E>): Effect.Effect<number> => Sweeping.sweep(self.pool)

// -----------------------------------------------------------------------------
// Looking at the pool
// -----------------------------------------------------------------------------

/**
 * Reads what is known of the live session of a key, without a touch. `None` while it launches, and if there is none.
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

/** Live, and not overdue. */
const isPresent = <K, A, E>(pool: Pool<K, A, E>, slot: Slot<K, A, E>): slot is Live<K, A> =>
  slot._tag === "Live" && Transitions.overdue(slot, timeOf(pool)) === undefined

const infoOf = <K, A>(
  { setBack }: { readonly setBack: number },
  { errorCount, lastUsedAt, leases, requestCount, session: { createdAt, id, key, openedAt } }: Live<K, A>
): Info<K> => ({
  key,
  id,
  // `timeOf` runs ahead of the clock by `setBack`.
  createdAt: createdAt - setBack,
  openedAt: openedAt - setBack,
  lastUsedAt: lastUsedAt - setBack,
  requestCount,
  errorCount,
  leases,
  state: leases > 0 ? "active" : "idle"
})

/**
 * Reads what is known of every live session, in no particular order.
 *
 * **When to use**
 *
 * Use to list the sessions. It visits all of them; for counts take `stats`.
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
 * Reads how many sessions are live. A session that has expired counts until the cleanup retires it.
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
 * Use for health checks and status pages. `Metric` has the same for collectors.
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
 * Streams what happens to the sessions from now on. Ends with the pool.
 *
 * **When to use**
 *
 * Use to react to the end of sessions, for example to tell a client.
 *
 * **Details**
 *
 * A reader that lags 4,096 events behind loses the oldest. It never slows the pool.
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
    // Two concurrent first readers may each make a buffer; one is kept.
    const made = reports.events ?? (yield* PubSub.sliding<Event<K, E | SessionPoolError> | undefined>(eventBuffer))
    // Subscribe before reading `hasEnded`, so the end cannot come in between.
    const subscription = yield* PubSub.subscribe(reports.events ??= made)
    return reports.hasEnded
      ? Stream.empty
      : Stream.takeWhile(Stream.fromSubscription(subscription), (event) => event !== undefined)
  }))

/** Events that a reader may lag behind before it loses the oldest. */
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
 * What `Service` returns: the service's class, its layer, and the operations.
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
  /** Makes the pool; it ends with the layer's scope. */
  readonly layer: Layer.Layer<Self, EX, Services<R> | Exclude<RX, Scope.Scope>>
}

/** Turns a wrong use into a type error that says what is missing. */
type Checked<Self, K> = [Self] extends [never] ? "Name the class: Service<Self>()"
  : unknown extends K ? "Give the key of lookup a type"
  : unknown

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
