/** The typed failures of the pool. Messages leave the key out, because keys are often secrets; the field has it. */
import { Schema } from "effect"

/**
 * The lookup did not finish within `lookupTimeout`; whatever it still acquires is closed.
 *
 * **Example** (A back end that does not start)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * const program = Effect.gen(function*() {
 *   const pool = yield* SessionPool.make({
 *     lookup: (_user: string) => Effect.never,
 *     lookupTimeout: "10 millis"
 *   })
 *   const error = yield* Effect.flip(SessionPool.get(pool, "ada"))
 *   return error._tag === "LookupTimeout" ? error.limit : undefined
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => 10
 * ```
 *
 * @category errors
 * @since 0.1.0
 */
export class LookupTimeout extends Schema.TaggedError<LookupTimeout>()("LookupTimeout", {
  /** The key that was asked for. */
  key: Schema.Unknown,
  /** `lookupTimeout` in milliseconds. */
  limit: Schema.Number,
  /** Milliseconds that the lookup ran. */
  waited: Schema.Number
}) {
  override get message(): string {
    return `The lookup did not open the session within ${this.limit} ms (it ran ${this.waited} ms). ` +
      `Look for what it waits for, or raise lookupTimeout.`
  }
}

/**
 * No place became free within `acquireTimeout`, or `maxWaiting` callers wait already.
 *
 * **Details**
 *
 * Places are taken by sessions that exist and are not closed, the retired ones included. An idle session makes room, one
 * that is leased does not.
 *
 * **Example** (Telling a client to come back later)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * const program = Effect.gen(function*() {
 *   const pool = yield* SessionPool.make({
 *     lookup: (user: string) => Effect.succeed(user),
 *     capacity: 1,
 *     acquireTimeout: "10 millis"
 *   })
 *   yield* SessionPool.get(pool, "ada")
 *   return yield* SessionPool.use(pool, "bob", Effect.succeed).pipe(
 *     Effect.catchTag("CapacityExceeded", ({ limit, scope }) => Effect.succeed(`the ${scope} is full at ${limit}`))
 *   )
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => "the pool is full at 1"
 * ```
 *
 * @category errors
 * @since 0.1.0
 */
export class CapacityExceeded extends Schema.TaggedError<CapacityExceeded>()("CapacityExceeded", {
  /** The key that was asked for. */
  key: Schema.Unknown,
  /** Which limit: of the pool, or of the key's group. */
  scope: Schema.Literals(["pool", "group"]),
  /** `capacity` or `groupCapacity`. */
  limit: Schema.Number,
  /** Milliseconds that the caller waited. */
  waited: Schema.Number,
  /** Callers that waited when this one was refused. */
  waiting: Schema.Number
}) {
  override get message(): string {
    const limit = this.scope === "pool" ? "capacity" : "groupCapacity"
    return `All ${this.limit} places are taken (${limit}) and no idle session could be evicted in time; ` +
      `waited ${this.waited} ms, ${this.waiting} waiting. Retry later, or raise ${limit}, acquireTimeout or maxWaiting.`
  }
}

/**
 * The pool's scope has closed, or is closing.
 *
 * **Example** (A pool that outlived its scope)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * const program = Effect.gen(function*() {
 *   const pool = yield* Effect.scoped(SessionPool.make({ lookup: (user: string) => Effect.succeed(user) }))
 *   return (yield* Effect.flip(SessionPool.get(pool, "ada")))._tag
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => "PoolClosed"
 * ```
 *
 * @category errors
 * @since 0.1.0
 */
export class PoolClosed extends Schema.TaggedError<PoolClosed>()("PoolClosed", {
  /** The key that was asked for. */
  key: Schema.Unknown
}) {
  override get message(): string {
    return "The session pool is closed: its scope has ended. Use it only while the layer or scope that made it is open."
  }
}

/**
 * `validate` said no to the session, and again to the one launched in its place.
 *
 * **Example** (A back end that is broken for good)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * const program = Effect.gen(function*() {
 *   const pool = yield* SessionPool.make({
 *     lookup: (user: string) => Effect.succeed(user),
 *     validate: () => Effect.succeed(false),
 *     validateAfter: 0
 *   })
 *   yield* Effect.scoped(SessionPool.get(pool, "ada"))
 *   const error = yield* SessionPool.get(pool, "ada").pipe(Effect.delay("5 millis"), Effect.flip)
 *   return error._tag
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => "ValidationFailed"
 * ```
 *
 * @category errors
 * @since 0.1.0
 */
export class ValidationFailed extends Schema.TaggedError<ValidationFailed>()("ValidationFailed", {
  /** The key that was asked for. */
  key: Schema.Unknown,
  /** Sessions found invalid by this one call. */
  attempts: Schema.Number
}) {
  override get message(): string {
    return `validate refused ${this.attempts} sessions in a row, the last one just launched. ` +
      `The back end is broken, or validate is wrong.`
  }
}

/**
 * Every way in which acquiring a session can fail, besides the lookup's own error.
 *
 * @category errors
 * @since 0.1.0
 */
export type AcquireError = LookupTimeout | CapacityExceeded | PoolClosed | ValidationFailed

/**
 * An option has a value that makes no sense: a programmer's error, thrown as a defect by `make`.
 *
 * **Example** (What it tells)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SessionPool } from "effect-session-pool"
 *
 * const program = Effect.gen(function*() {
 *   const pool = SessionPool.make({ lookup: (user: string) => Effect.succeed(user), capacity: 0 })
 *   const defect = yield* Effect.catchDefect(pool, Effect.succeed)
 *   return defect instanceof SessionPool.InvalidOptions ? [defect.option, defect.value, defect.allowed] : []
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => ["capacity", "0", "an integer of at least 1, or infinity"]
 * ```
 *
 * @category errors
 * @since 0.1.0
 */
export class InvalidOptions extends Schema.TaggedError<InvalidOptions>()("InvalidOptions", {
  /** Its name. */
  option: Schema.String,
  /** Its value, as text. */
  value: Schema.String,
  /** What it must be. */
  allowed: Schema.String
}) {
  override get message(): string {
    return `SessionPool: the option ${this.option} is ${this.value}; it must be ${this.allowed}.`
  }
}
