/** The typed failures of the pool. None carries the key: errors are logged and printed, and keys are often secrets. */
import { Schema } from "effect"

/**
 * The lookup did not open the session within `lookupTimeout`. What it still acquires is closed.
 *
 * @category errors
 * @since 0.1.0
 * @stability unstable
 */
export class LookupTimeout extends Schema.TaggedError<LookupTimeout>()("LookupTimeout", {
  /** `lookupTimeout` in milliseconds. */
  limit: Schema.Number,
  /** Milliseconds that the lookup ran. */
  waited: Schema.Number
}) {
  override get message(): string {
    return `The lookup did not open the session within ${this.limit} ms (it ran ${this.waited} ms). ` +
      `Find out what it waits for, or raise lookupTimeout.`
  }
}

/**
 * No place became free within `acquireTimeout`, or `maxWaiting` callers were waiting already.
 *
 * **Details**
 *
 * Every session that is not closed takes a place, retired ones included. An idle session is evicted to make room, a leased one is not.
 *
 * @category errors
 * @since 0.1.0
 * @stability unstable
 */
export class CapacityExceeded extends Schema.TaggedError<CapacityExceeded>()("CapacityExceeded", {
  /** Which limit was reached: the pool's, or that of the key's group. */
  scope: Schema.Literals(["pool", "group"]),
  /** `capacity` or `groupCapacity`. */
  limit: Schema.Number,
  /** Milliseconds that the caller waited. */
  waited: Schema.Number,
  /** Callers that were waiting when this one failed. */
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
 * @category errors
 * @since 0.1.0
 * @stability unstable
 */
export class PoolClosed extends Schema.TaggedError<PoolClosed>()("PoolClosed", {}) {
  override get message(): string {
    return "The session pool is closed: its scope has ended. Use it only while the layer or scope that made it is open."
  }
}

/**
 * Every failure of the pool itself; `reason` says which, with the numbers that a person needs.
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
 *     Effect.catchReason("SessionPoolError", "CapacityExceeded", ({ limit, scope }) =>
 *       Effect.succeed(`the ${scope} is full at ${limit}`))
 *   )
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => "the pool is full at 1"
 * ```
 *
 * @category errors
 * @since 0.1.0
 * @stability unstable
 */
export class SessionPoolError extends Schema.TaggedError<SessionPoolError>()("SessionPoolError", {
  /** What went wrong. */
  reason: Schema.Union([LookupTimeout, CapacityExceeded, PoolClosed])
}) {
  override get message(): string {
    return this.reason.message
  }
}

export const poolClosed = (): SessionPoolError => new SessionPoolError({ reason: new PoolClosed() })
