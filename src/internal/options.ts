/**
 * The options of a pool: types and defaults, checks, and `Config`.
 *
 * Inside the pool, every time is in milliseconds, and an option that is off is `Infinity`.
 */
import type { Cause, Scope } from "effect"
import { Config, Duration, Effect, Formatter, Option, Schema } from "effect"
import { constant } from "effect/Function"

/**
 * The options that an operator may set from the environment, see `config`. A duration is a `Duration.Input`: a number of
 * milliseconds, or a text such as `"30 minutes"`. `undefined` selects the default.
 *
 * @category options
 * @since 0.1.0
 * @stability unstable
 */
export interface OperatorOptions {
  /**
   * How many sessions may exist at once. Sessions that launch or close count too. A full pool evicts the least recently used idle
   * session for a caller. If no session is idle, the caller waits. Default: unbounded.
   */
  readonly capacity?: number | undefined
  /** As `capacity`, for each group of `groupBy`. Default: unbounded. */
  readonly groupCapacity?: number | undefined
  /**
   * Longest wait for a place before `CapacityExceeded`. Default: 30 seconds.
   *
   * A caller first waits for the place of a session that is already closing. After 5 seconds, or half of this time if that is less,
   * the pool evicts an idle session for it. With zero, a caller of a full pool succeeds only if an idle session closes synchronously.
   */
  readonly acquireTimeout?: Duration.Input | undefined
  /** How many callers may wait for a place. A further caller fails at once with `CapacityExceeded`. Default: unbounded. */
  readonly maxWaiting?: number | undefined
  /**
   * How often the cleanup runs: the longest time until it retires an expired session. In the meantime, no caller gets that session.
   * Default: a sixth of the shortest `idleTimeToLive` so far, at most 5 minutes, at least 1 second.
   */
  readonly cleanupInterval?: Duration.Input | undefined
  /** How many consecutive errors retire a session. `Infinity`: errors retire none. Default: 10. */
  readonly maxErrorCount?: number | undefined
  /**
   * How long after its opening a session expires, up to 10 % sooner at random. So sessions that were opened together do not all close
   * together. A caller may keep its lease beyond this time. Default: `Infinity`.
   */
  readonly maxLifetime?: Duration.Input | undefined
  /** Longest run of the lookup before `LookupTimeout`. Default: 1 minute. */
  readonly lookupTimeout?: Duration.Input | undefined
  /**
   * How long the pool remembers a failed launch. Until then, callers of the key fail at once with its error. The pool remembers at most
   * 1,024 failures. Default: zero.
   */
  readonly failureTimeToLive?: Duration.Input | undefined
  /** A session that was idle for longer than this is validated before it is leased. Default: 500 milliseconds. Needs `validate`. */
  readonly validateAfter?: Duration.Input | undefined
  /** Longest run of `validate`. A longer run counts as false. Default: `lookupTimeout`. Needs `validate`. */
  readonly validateTimeout?: Duration.Input | undefined
  /**
   * How often the pool validates idle sessions in the background. Such a check does not count as use, so an idle session still expires.
   * Default: off. Needs `validate`.
   */
  readonly keepAlive?: Duration.Input | undefined
  /**
   * Longest close of a session. If its finalizers run longer, the pool reports it, and the session no longer counts against `capacity`.
   * The finalizers go on. Default: 30 seconds.
   */
  readonly closeTimeout?: Duration.Input | undefined
  /** How long the ending pool waits for leases to end, before it closes their sessions. Default: zero. */
  readonly drainTimeout?: Duration.Input | undefined
  /**
   * A lease held for longer than this is reported once, with the span and the stack of the caller that took it. A `Service` whose
   * options are an effect reports the span only. Default: off.
   */
  readonly leakDetection?: Duration.Input | undefined
}

/**
 * All options of a pool. Only `lookup` is required. An invalid value is a defect of `make` that names the option.
 *
 * @category options
 * @since 0.1.0
 * @stability unstable
 */
export interface Options<K, A, E, R, RC = never> extends OperatorOptions {
  /** Opens the connection of a session. Runs in a fiber of the pool. Its `Scope` is the session's, and closes with the session. */
  readonly lookup: (key: K) => Effect.Effect<A, E, R>
  /** The name of the pool in logs, spans and metrics. Default: `"default"`. */
  readonly name?: string | undefined
  /**
   * How long after its last use an idle session expires: a duration, or a function of the key. Zero: it closes when its last lease ends.
   * `Infinity`: never. Default: 30 minutes.
   */
  readonly idleTimeToLive?: Duration.Input | ((key: K) => Duration.Input) | undefined
  /** Whether a failed `use` counts as an error of the session. Default: every failure and defect counts. */
  readonly isError?: ((cause: Cause.Cause<unknown>, key: K) => boolean) | undefined
  /** The group of a key, for `groupCapacity`: any hashable value. A key whose group is `undefined` has no group limit. Default: none. */
  readonly groupBy?: ((key: K) => unknown) | undefined
  /** Checks whether an idle connection still works. A failure counts as false. Default: no check. */
  readonly validate?: ((value: A, key: K) => Effect.Effect<boolean>) | undefined
  /**
   * Waits until the connection has died by itself. When it completes or fails, the session is retired. The pool interrupts it when the
   * session closes. Its `Scope` is the session's. Default: none.
   */
  readonly closed?: ((value: A, key: K) => Effect.Effect<unknown, unknown, RC>) | undefined
}

/** The services that `lookup` and `closed` require, except the session's `Scope`, which the pool provides. */
export type Services<R> = Exclude<R, Scope.Scope>

/** The options after the defaults are applied. Times are in milliseconds, and an option that is off is `Infinity`. */
export type Resolved<K, A> = ReturnType<typeof resolveUnsafe<K, A, unknown, unknown, unknown>>

/** Checks the options and applies the defaults. Throws an `Error` that names an invalid option. */
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
    /** Whether there is any limit. Only then the pool counts places and orders idle sessions. */
    isBounded: capacity !== Infinity || groupCapacity !== Infinity,
    acquireTimeout,
    /** How long a waiter counts on a closing place, before `serve` evicts an idle session for it. */
    patience: Math.min(5000, acquireTimeout / 2),
    maxWaiting: count("maxWaiting", options.maxWaiting, Infinity, 0),
    /** `undefined`: `cleanup` derives it from the shortest idle time. */
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
  // `Duration` would turn NaN into zero.
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

/** The config of an optional value. `parse` reads it from its text, and returns `undefined` for an invalid text. */
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
    // `Number` reads a blank text as zero, and does not read "infinity".
    const value = isInfinity(text) ? Infinity : text.trim() === "" ? NaN : Number(text)
    return isCount(value, minimum) ? value : undefined
  }, `an integer of at least ${minimum}, or Infinity`)

const timeConfig = (name: string, isPositive: boolean) =>
  optional(name, (text) => {
    // At run time `fromInput` accepts any text, and returns `None` for an invalid one.
    const duration = Duration.fromInput(isInfinity(text) ? Infinity : text as Duration.Input)
    return Option.getOrUndefined(Option.filter(duration, (value) => isAllowed(value, isPositive)))
  }, allowedTime(isPositive))

/** The config of `OperatorOptions`. The name of each variable is the option's in capitals, after the prefix. */
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
