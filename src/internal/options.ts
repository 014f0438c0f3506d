/**
 * The options of a pool: their types and defaults, their validation, and their `Config`.
 *
 * Inside the pool all times are milliseconds and what is off is infinity.
 */
import type { Cause, Effect, Scope } from "effect"
import { Config, Duration, Formatter, Option, Schema } from "effect"
import { isDurationInput } from "./durations.ts"
import { InvalidOptions } from "./errors.ts"

/**
 * The options that an operator may set from the environment, see `config`. Durations are `Duration.Input`: a number is
 * milliseconds, `"30 minutes"` a text; `undefined` is the default.
 *
 * @category options
 * @since 0.1.0
 */
export interface OperatorOptions {
  /**
   * Bounds how many sessions exist and are not closed. At the limit the idle session used longest ago is evicted for the caller, or
   * the caller waits. A place whose session is being closed is waited for first, for 5 seconds. Default: unbounded.
   */
  readonly capacity?: number | undefined
  /** The same limit for each group of `groupBy`. Default: none. */
  readonly groupCapacity?: number | undefined
  /** Longest wait at capacity before `CapacityExceeded`. Default: 30 seconds. */
  readonly acquireTimeout?: Duration.Input | undefined
  /** Callers that may wait at capacity at once; one more fails at once with `CapacityExceeded`. Default: unbounded. */
  readonly maxWaiting?: number | undefined
  /** How often the cleanup runs: an idle session is closed no later than its time to live plus this. Default: 5 minutes. */
  readonly cleanupInterval?: Duration.Input | undefined
  /** Consecutive errors at which a session is retired; infinity: never. Default: 10. */
  readonly maxErrorCount?: number | undefined
  /** Longest life of a session since it was opened, shortened by up to a tenth at random. Default: infinity. */
  readonly maxLifetime?: Duration.Input | undefined
  /** Longest run of the lookup (and of `validate`) before `LookupTimeout`. Default: 1 minute. */
  readonly lookupTimeout?: Duration.Input | undefined
  /** How long a failed launch is remembered and fails callers at once. Default: zero. */
  readonly failureTimeToLive?: Duration.Input | undefined
  /** A session idle for longer is validated before it is leased. Default: 500 milliseconds; needs `validate`. */
  readonly validateAfter?: Duration.Input | undefined
  /** How often idle sessions are validated in the background. Default: off; needs `validate`. */
  readonly keepAlive?: Duration.Input | undefined
  /** A finalizer that runs longer is reported and no longer counts against `capacity`. Default: 30 seconds. */
  readonly closeTimeout?: Duration.Input | undefined
  /** How long the closing pool waits for leases to end. Default: zero. */
  readonly drainTimeout?: Duration.Input | undefined
  /** A lease held for longer is reported once, with where it was taken. Default: off. */
  readonly leakDetection?: Duration.Input | undefined
}

/**
 * All options of a pool; only `lookup` is required. What makes no sense is refused by `make`, see `InvalidOptions`.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options<K, A, E, R> extends OperatorOptions {
  /** Opens the connection of a session. Runs in a fiber of the pool; what it adds to its `Scope` closes the session. */
  readonly lookup: (key: K) => Effect.Effect<A, E, R>
  /** Names the pool in logs, spans and metrics. Default: `default`. */
  readonly name?: string | undefined
  /** How long a session lives without leases; zero: until the last release; infinity: for ever. Default: 30 minutes. */
  readonly idleTimeToLive?: Duration.Input | ((key: K) => Duration.Input) | undefined
  /** Which failures of `use` count against the session. Default: every failure and defect. */
  readonly isError?: ((cause: Cause.Cause<unknown>, key: K) => boolean) | undefined
  /** The group of a key, for `groupCapacity`: any hashable value. */
  readonly groupBy?: ((key: K) => unknown) | undefined
  /** Whether an idle connection still works. A failure counts as false. */
  readonly validate?: ((value: A, key: K) => Effect.Effect<boolean>) | undefined
  /** Completes when the connection has died by itself. Interrupted when the session closes, which waits a second for it at most. */
  readonly closed?: ((value: A, key: K) => Effect.Effect<unknown, unknown>) | undefined
}

/** What `lookup` needs from outside: everything but its session's scope. */
export type Services<R> = Exclude<R, Scope.Scope>

export interface Resolved<K, A> {
  readonly name: string
  readonly capacity: number
  readonly groupCapacity: number
  readonly acquireTimeout: number
  readonly maxWaiting: number
  readonly cleanupInterval: number
  readonly maxErrorCount: number
  readonly maxLifetime: number
  readonly lookupTimeout: number
  readonly failureTimeToLive: number
  readonly validateAfter: number
  readonly keepAlive: number
  readonly closeTimeout: number
  readonly drainTimeout: number
  readonly leakDetection: number
  readonly idleTimeToLive: (key: K) => number
  readonly isError: (cause: Cause.Cause<unknown>, key: K) => boolean
  readonly groupBy: (key: K) => unknown
  readonly validate: ((value: A, key: K) => Effect.Effect<boolean>) | undefined
  readonly closed: ((value: A, key: K) => Effect.Effect<unknown, unknown>) | undefined
}

/** Checks the options and fills in the defaults; throws `InvalidOptions`. */
export const resolveUnsafe = <K, A, E, R>(options: Options<K, A, E, R>): Resolved<K, A> => {
  const { idleTimeToLive = Duration.minutes(30), validate } = options
  const functions = { lookup: options.lookup, validate, closed: options.closed, groupBy: options.groupBy }
  if (options.name !== undefined && typeof options.name !== "string") throw invalid("name", options.name, "a text")
  for (const [name, value] of Object.entries({ ...functions, isError: options.isError })) {
    if ((name === "lookup" || value !== undefined) && typeof value !== "function") {
      throw invalid(name, value, "a function")
    }
  }
  if (options.groupCapacity !== undefined && options.groupBy === undefined) {
    throw invalid("groupBy", undefined, "a function when groupCapacity is set")
  }
  for (const name of ["keepAlive", "validateAfter"] as const) {
    if (options[name] !== undefined && validate === undefined) {
      throw invalid("validate", undefined, `a function when ${name} is set`)
    }
  }
  const resolved = {
    name: options.name ?? "default",
    capacity: count("capacity", options.capacity, Infinity, 1),
    groupCapacity: count("groupCapacity", options.groupCapacity, Infinity, 1),
    acquireTimeout: time("acquireTimeout", options.acquireTimeout, 30_000),
    maxWaiting: count("maxWaiting", options.maxWaiting, Infinity, 0),
    cleanupInterval: positiveTime("cleanupInterval", options.cleanupInterval, 300_000),
    maxErrorCount: count("maxErrorCount", options.maxErrorCount, 10, 1),
    maxLifetime: positiveTime("maxLifetime", options.maxLifetime, Infinity),
    lookupTimeout: positiveTime("lookupTimeout", options.lookupTimeout, 60_000),
    failureTimeToLive: time("failureTimeToLive", options.failureTimeToLive, 0),
    validateAfter: validate === undefined ? Infinity : time("validateAfter", options.validateAfter, 500),
    keepAlive: positiveTime("keepAlive", options.keepAlive, Infinity),
    closeTimeout: positiveTime("closeTimeout", options.closeTimeout, 30_000),
    drainTimeout: time("drainTimeout", options.drainTimeout, 0),
    leakDetection: positiveTime("leakDetection", options.leakDetection, Infinity),
    isError: options.isError ?? (() => true),
    groupBy: options.groupBy ?? (() => undefined),
    validate,
    closed: options.closed
  }
  if (typeof idleTimeToLive === "function") {
    return { ...resolved, idleTimeToLive: (key) => millisOf("idleTimeToLive", idleTimeToLive(key)) }
  }
  const fixed = time("idleTimeToLive", idleTimeToLive, 0)
  return { ...resolved, idleTimeToLive: () => fixed }
}

const invalid = (option: string, value: unknown, allowed: string) => {
  const shown = Duration.isDuration(value) ? Duration.format(value) : Formatter.format(value)
  return new InvalidOptions({ option, value: shown, allowed })
}

const count = (option: string, value: number | undefined, orElse: number, minimum: number): number => {
  if (value === undefined) return orElse
  if (value === Infinity || (Number.isInteger(value) && value >= minimum)) return value
  throw invalid(option, value, `an integer of at least ${minimum}, or infinity`)
}

const time = (option: string, value: Duration.Input | undefined, orElse: number): number =>
  value === undefined ? orElse : millisOf(option, value)

/** A user's function may return `undefined`, whatever its type says: a table has no value for an unknown key. */
const millisOf = (option: string, value: Duration.Input): number => {
  const read = isDurationInput(value) ? Duration.fromInput(value) : Option.none()
  const millis = Option.map(read, Duration.toMillis)
  if (Option.isSome(millis) && millis.value >= 0) return millis.value
  throw invalid(option, value, "a duration that is not negative, such as \"30 minutes\" or 500 (milliseconds)")
}

const positiveTime = (option: string, value: Duration.Input | undefined, orElse: number): number => {
  const millis = time(option, value, orElse)
  if (millis > 0) return millis
  throw invalid(option, value, "a duration greater than zero, such as \"5 minutes\"")
}

// -----------------------------------------------------------------------------
// Config
// -----------------------------------------------------------------------------

const countConfig = (name: string, minimum: number) =>
  optional(
    // Blanks would be zero.
    Schema.String.check(Schema.isPattern(/\S/)).pipe(Schema.decodeTo(Schema.NumberFromString)).check(
      Schema.makeFilter((value: number) =>
        value === Infinity || (Number.isInteger(value) && value >= minimum)
          ? undefined
          : `an integer of at least ${minimum}, or Infinity`
      )
    ),
    name
  )

const timeConfig = (name: string, positive: boolean) =>
  optional(
    Schema.DurationFromString.check(
      Schema.makeFilter((value: Duration.Duration) =>
        Duration.isNegative(value) || (positive && Duration.isZero(value))
          ? `a duration ${positive ? "greater than zero" : "that is not negative"}, such as "30 minutes"`
          : undefined
      )
    ),
    name
  )

const optional = <T>(schema: Schema.ConstraintCodec<T, unknown>, name: string) =>
  Config.map(Config.option(Config.schema(schema, name)), Option.getOrUndefined)

/** The options that an operator sets, from the environment; each name in capitals after the prefix. */
export const config = (prefix?: string) => {
  const options = Config.all({
    capacity: countConfig("CAPACITY", 1),
    groupCapacity: countConfig("GROUP_CAPACITY", 1),
    acquireTimeout: timeConfig("ACQUIRE_TIMEOUT", false),
    maxWaiting: countConfig("MAX_WAITING", 0),
    idleTimeToLive: timeConfig("IDLE_TIME_TO_LIVE", false),
    cleanupInterval: timeConfig("CLEANUP_INTERVAL", true),
    maxErrorCount: countConfig("MAX_ERROR_COUNT", 1),
    maxLifetime: timeConfig("MAX_LIFETIME", true),
    lookupTimeout: timeConfig("LOOKUP_TIMEOUT", true),
    failureTimeToLive: timeConfig("FAILURE_TIME_TO_LIVE", false),
    validateAfter: timeConfig("VALIDATE_AFTER", false),
    keepAlive: timeConfig("KEEP_ALIVE", true),
    closeTimeout: timeConfig("CLOSE_TIMEOUT", true),
    drainTimeout: timeConfig("DRAIN_TIMEOUT", false),
    leakDetection: timeConfig("LEAK_DETECTION", true)
  })
  return prefix === undefined ? options : Config.nested(options, prefix)
}
