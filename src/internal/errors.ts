/** The typed failures of the pool. No failure contains the key, because errors are logged and keys are often secrets. */
import { Schema } from "effect"

/**
 * The lookup did not open the session within `lookupTimeout`. The pool interrupts the lookup and closes what it acquired.
 *
 * @category errors
 * @since 0.1.0
 * @stability unstable
 */
export class LookupTimeout extends Schema.TaggedError<LookupTimeout>()("LookupTimeout", {
  /** `lookupTimeout` in milliseconds. */
  limit: Schema.Number,
  /** How long the lookup ran, in milliseconds. */
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
 * Every session that is not closed takes a place, also a retired one. The pool evicts idle sessions to make room, never leased ones.
 *
 * @category errors
 * @since 0.1.0
 * @stability unstable
 */
export class CapacityExceeded extends Schema.TaggedError<CapacityExceeded>()("CapacityExceeded", {
  /** Which limit was reached: `capacity` of the pool, or `groupCapacity` of the key's group. */
  scope: Schema.Literals(["pool", "group"]),
  /** The value of that option. */
  limit: Schema.Number,
  /** How long the caller waited, in milliseconds. Zero if it was refused at once. */
  waited: Schema.Number,
  /** How many callers were waiting when this one failed. */
  waiting: Schema.Number
}) {
  override get message(): string {
    const limit = this.scope === "pool" ? "capacity" : "groupCapacity"
    return `All ${this.limit} places are taken (${limit}) and no idle session could be evicted in time; this caller waited ` +
      `${this.waited} ms, callers waiting: ${this.waiting}. Retry later, or raise ${limit}, acquireTimeout or maxWaiting.`
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
 * A failure of the pool itself, as opposed to one of the lookup. `reason` says which failure, with its limits and times.
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
  /** The failure. */
  reason: Schema.Union([LookupTimeout, CapacityExceeded, PoolClosed])
}) {
  override get message(): string {
    return this.reason.message
  }
}

export const poolClosed = (): SessionPoolError => new SessionPoolError({ reason: new PoolClosed() })
