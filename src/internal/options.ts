/**
 * The options of a pool: types and defaults, checks, and `Config`.
 *
 * Inside the pool every time is in milliseconds, and an option that is off is infinity.
 */
import type { Cause, Scope } from "effect"
import { Config, Duration, Effect, Formatter, Option, Schema } from "effect"
import { constant } from "effect/Function"

/**
 * The options that an operator may set from the environment, see `config`. Durations are `Duration.Input`: a number is in
 * milliseconds, a text is such as `"30 minutes"`. `undefined` is the default.
 *
 * @category options
 * @since 0.1.0
 * @stability unstable
 */
export interface OperatorOptions {
  /**
   * Bounds the sessions that exist and are not closed. In a full pool the least recently used idle session is evicted for the caller;
   * if none is idle, the caller waits. Default: unbounded.
   */
  readonly capacity?: number | undefined
  /** The same limit for each group of `groupBy`. Default: none. */
  readonly groupCapacity?: number | undefined
  /**
   * Longest wait for a place before `CapacityExceeded`. A waiter counts on a place that is closing for at most the lesser of 5 seconds
   * and half of this time, then an idle session is evicted for it. With zero, a caller gets in only if an idle session closes
   * synchronously. Default: 30 seconds.
   */
  readonly acquireTimeout?: Duration.Input | undefined
  /** Callers that may wait for a place at once; one more fails immediately with `CapacityExceeded`. Default: unbounded. */
  readonly maxWaiting?: number | undefined
  /**
   * How often the cleanup runs. An expired session is closed within this time; `get` never hands it out. Default: a sixth of the
   * shortest `idleTimeToLive` so far, at most 5 minutes, at least 1 second.
   */
  readonly cleanupInterval?: Duration.Input | undefined
  /** Consecutive errors at which a session is retired; infinity: never. Default: 10. */
  readonly maxErrorCount?: number | undefined
  /**
   * Longest life of a session since it was opened, up to 10 % shorter at random. So sessions that were opened together do not all close
   * together. Default: infinity.
   */
  readonly maxLifetime?: Duration.Input | undefined
  /** Longest run of the lookup before `LookupTimeout`. Default: 1 minute. */
  readonly lookupTimeout?: Duration.Input | undefined
  /** How long a failed launch is remembered and fails callers at once. At most 1,024 failures are remembered. Default: zero. */
  readonly failureTimeToLive?: Duration.Input | undefined
  /** A session that was idle for longer is validated before it is leased. Default: 500 milliseconds; needs `validate`. */
  readonly validateAfter?: Duration.Input | undefined
  /** Longest run of `validate`, which then counts as false. Default: `lookupTimeout`; needs `validate`. */
  readonly validateTimeout?: Duration.Input | undefined
  /** How often idle sessions are validated in the background. Such a check is no use and no lease. Default: off; needs `validate`. */
  readonly keepAlive?: Duration.Input | undefined
  /** A finalizer that runs longer is reported and no longer counts against `capacity`. Default: 30 seconds. */
  readonly closeTimeout?: Duration.Input | undefined
  /** How long the ending pool waits for leases. Default: zero. */
  readonly drainTimeout?: Duration.Input | undefined
  /**
   * A lease held for longer is reported once, with the span and the stack that took it. A `Service` whose options are an effect has the
   * span only. Default: off.
   */
  readonly leakDetection?: Duration.Input | undefined
}

/**
 * All options of a pool; only `lookup` is required. `make` refuses values that make no sense with a defect that names the option.
 *
 * @category options
 * @since 0.1.0
 * @stability unstable
 */
export interface Options<K, A, E, R, RC = never> extends OperatorOptions {
  /** Opens the connection of a session. Runs in a fiber of the pool; its `Scope` is the session's. */
  readonly lookup: (key: K) => Effect.Effect<A, E, R>
  /** Names the pool in logs, spans and metrics. Default: `default`. */
  readonly name?: string | undefined
  /** Closes a session this long after its last use; zero: at the last release; infinity: never. Default: 30 minutes. */
  readonly idleTimeToLive?: Duration.Input | ((key: K) => Duration.Input) | undefined
  /** Which failures of `use` count against the session. Default: every failure and defect. */
  readonly isError?: ((cause: Cause.Cause<unknown>, key: K) => boolean) | undefined
  /** The group of a key, for `groupCapacity`: any hashable value. A key whose group is `undefined` has no group limit. */
  readonly groupBy?: ((key: K) => unknown) | undefined
  /** Whether an idle connection still works. A failure counts as false. */
  readonly validate?: ((value: A, key: K) => Effect.Effect<boolean>) | undefined
  /** Completes when the connection has died by itself. Interrupted when the session closes. Its `Scope` is the session's. */
  readonly closed?: ((value: A, key: K) => Effect.Effect<unknown, unknown, RC>) | undefined
}

/** What `lookup` and `closed` need from outside: everything but the session's scope. */
export type Services<R> = Exclude<R, Scope.Scope>

/** The options with their defaults. Times are in milliseconds, and an option that is off is infinity. */
export type Resolved<K, A> = ReturnType<typeof resolveUnsafe<K, A, unknown, unknown, unknown>>

/** Checks the options and fills in the defaults; throws an `Error` that names the option. */
export const resolveUnsafe = <K, A, E, R, RC>(options: Options<K, A, E, R, RC>) => {
  const { idleTimeToLive = Duration.minutes(30), validate } = options
  if (options.groupCapacity !== undefined && options.groupBy === undefined) {
    throw invalid("groupBy", undefined, "a function when groupCapacity is set")
  }
  for (const name of ["keepAlive", "validateAfter", "validateTimeout"] as const) {
    if (options[name] !== undefined && validate === undefined) {
      throw invalid("validate", undefined, `a function when ${name} is set`)
    }
  }
  const capacity = count("capacity", options.capacity, Infinity, 1)
  const groupCapacity = count("groupCapacity", options.groupCapacity, Infinity, 1)
  const acquireTimeout = time("acquireTimeout", options.acquireTimeout, 30_000)
  const lookupTimeout = positiveTime("lookupTimeout", options.lookupTimeout, 60_000)
  const { cleanupInterval } = options
  return {
    name: options.name ?? "default",
    capacity,
    groupCapacity,
    /** Whether any limit holds: only then the pool counts places and orders idle sessions. */
    isBounded: capacity !== Infinity || groupCapacity !== Infinity,
    acquireTimeout,
    /** How long a waiter counts on a closing place. */
    patience: Math.min(5000, acquireTimeout / 2),
    maxWaiting: count("maxWaiting", options.maxWaiting, Infinity, 0),
    /** `undefined`: by the shortest idle time. */
    cleanupInterval: cleanupInterval === undefined ? undefined : positiveTime("cleanupInterval", cleanupInterval, 0),
    maxErrorCount: count("maxErrorCount", options.maxErrorCount, 10, 1),
    maxLifetime: positiveTime("maxLifetime", options.maxLifetime, Infinity),
    lookupTimeout,
    failureTimeToLive: time("failureTimeToLive", options.failureTimeToLive, 0),
    validateAfter: validate === undefined ? Infinity : time("validateAfter", options.validateAfter, 500),
    validateTimeout: positiveTime("validateTimeout", options.validateTimeout, lookupTimeout),
    keepAlive: positiveTime("keepAlive", options.keepAlive, Infinity),
    closeTimeout: positiveTime("closeTimeout", options.closeTimeout, 30_000),
    drainTimeout: time("drainTimeout", options.drainTimeout, 0),
    leakDetection: positiveTime("leakDetection", options.leakDetection, Infinity),
    idleTimeToLive: typeof idleTimeToLive === "function"
      ? (key: K) => millisOf("idleTimeToLive", idleTimeToLive(key), false)
      : constant(millisOf("idleTimeToLive", idleTimeToLive, false)),
    isError: options.isError ?? (() => true),
    groupBy: options.groupBy ?? (() => undefined),
    validate: validate ?? (() => Effect.succeed(true))
  }
}

const invalid = (option: string, value: unknown, allowed: string): Error => {
  const shown = Duration.isDuration(value) ? Duration.format(value) : Formatter.format(value)
  return new Error(`SessionPool: the option ${option} is ${shown}; it must be ${allowed}.`)
}

const isCount = (value: number, minimum: number): boolean =>
  value === Infinity || (Number.isInteger(value) && value >= minimum)

const count = (option: string, value: number | undefined, orElse: number, minimum: number): number => {
  if (value === undefined) return orElse
  if (isCount(value, minimum)) return value
  throw invalid(option, value, `an integer of at least ${minimum}, or infinity`)
}

const time = (option: string, value: Duration.Input | undefined, orElse: number): number =>
  value === undefined ? orElse : millisOf(option, value, false)

const positiveTime = (option: string, value: Duration.Input | undefined, orElse: number): number =>
  value === undefined ? orElse : millisOf(option, value, true)

const millisOf = (option: string, value: Duration.Input, isPositive: boolean): number => {
  // `Duration` takes NaN for zero.
  const duration = Number.isNaN(value) ? Option.none() : Duration.fromInput(value)
  if (Option.isSome(duration) && isAllowed(duration.value, isPositive)) return Duration.toMillis(duration.value)
  throw invalid(option, value, allowedTime(isPositive))
}

const isAllowed = (duration: Duration.Duration, isPositive: boolean): boolean =>
  isPositive ? Duration.isPositive(duration) : !Duration.isNegative(duration)

const allowedTime = (isPositive: boolean): string =>
  `a duration ${isPositive ? "greater than zero" : "that is not negative"}, such as "30 minutes"`

// -----------------------------------------------------------------------------
// Config
// -----------------------------------------------------------------------------

/** An optional value, read from its text; `parse` gives `undefined` for a text that makes no sense. */
const optional = <T>(name: string, parse: (text: string) => T | undefined, allowed: string) => {
  const valid = Schema.makeFilter((text: string) => parse(text) === undefined ? allowed : undefined)
  return Config.map(
    Config.option(Config.schema(Schema.String.check(valid), name)),
    (text) => Option.isSome(text) ? parse(text.value) : undefined
  )
}

const isInfinity = (text: string): boolean => text.trim().toLowerCase() === "infinity"

const countConfig = (name: string, minimum: number) =>
  optional(name, (text) => {
    // `Number` takes blanks for zero, and knows no "infinity".
    const value = isInfinity(text) ? Infinity : text.trim() === "" ? NaN : Number(text)
    return isCount(value, minimum) ? value : undefined
  }, `an integer of at least ${minimum}, or Infinity`)

const timeConfig = (name: string, isPositive: boolean) =>
  optional(name, (text) => {
    // `fromInput` takes any text, and says none where it makes no sense.
    const duration = Duration.fromInput(isInfinity(text) ? Infinity : text as Duration.Input)
    return Option.getOrUndefined(Option.filter(duration, (value) => isAllowed(value, isPositive)))
  }, allowedTime(isPositive))

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
    validateTimeout: timeConfig("VALIDATE_TIMEOUT", true),
    keepAlive: timeConfig("KEEP_ALIVE", true),
    closeTimeout: timeConfig("CLOSE_TIMEOUT", true),
    drainTimeout: timeConfig("DRAIN_TIMEOUT", false),
    leakDetection: timeConfig("LEAK_DETECTION", true)
  })
  return prefix === undefined ? options : Config.nested(options, prefix)
}
