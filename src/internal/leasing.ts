/**
 * How a caller gets a session and returns it.
 *
 * A caller's claim is a lease of a session, or a share in a launch. The step that grants a claim counts it. The caller returns every
 * claim, also when it is interrupted. Only the wait is interruptible: if it succeeds, the claim is a lease; else the claim is returned.
 */
import { Cause, Context, Deferred, Effect, Exit, Hash, Inspectable, Option, Random, Ref, Scope } from "effect"
import { CapacityExceeded, SessionPoolError } from "./errors.ts"
import { checkUnsafe } from "./keys.ts"
import type { Shortage } from "./places.ts"
import type { LeaseTrace } from "./reports.ts"
import { currentSpan, logDefect } from "./reports.ts"
import type { Pool } from "./shell.ts"
import { step, timeOf } from "./shell.ts"
import type { Check, Identity, Launch } from "./state.ts"
import * as Transitions from "./transitions.ts"

/**
 * A caller's hold on one session. `invalidate` and `recordError` act on this session, never on a later one under the same key.
 *
 * @category models
 * @since 0.1.0
 * @stability unstable
 */
export interface Lease<out K, out A> {
  /** The key of the session. */
  readonly key: K
  /** The id of the session. */
  readonly id: number
  /** The connection. */
  readonly value: A
  /** Retires the session. Returns false if it was retired already. */
  readonly invalidate: Effect.Effect<boolean>
  /** Counts one error of the session. At `maxErrorCount` consecutive errors the session is retired. */
  readonly recordError: Effect.Effect<void>
}

/**
 * The one implementation of `Lease`. A class with getters, so a use allocates no effects for `invalidate` and `recordError` unless they are
 * read. A lease prints its id only, because keys and connections are often secrets.
 */
class Held<in out K, in out A, in out E> extends Inspectable.Class implements Lease<K, A> {
  readonly pool: Pool<K, A, E>
  readonly session: Identity<K>
  readonly value: A
  readonly takenAt: number
  trace: LeaseTrace<K> | undefined = undefined

  constructor(pool: Pool<K, A, E>, session: Identity<K>, value: A, takenAt: number) {
    super()
    this.pool = pool
    this.session = session
    this.value = value
    this.takenAt = takenAt
    pool.reports.metrics.leases.modify(1, pool.context)
  }
  toJSON(): unknown {
    return { _id: "SessionPool.Lease", id: this.id }
  }
  get key(): K {
    return this.session.key
  }
  get id(): number {
    return this.session.id
  }
  get invalidate(): Effect.Effect<boolean> {
    return step(this.pool, (d) => Transitions.retireById(d, this.session, "Invalidated"))
  }
  get recordError(): Effect.Effect<void> {
    return step(this.pool, (d) => Transitions.recordError(d, this.session))
  }
}

/** Makes a wait within a mask interruptible again. */
type Restore = <B, E2, R>(effect: Effect.Effect<B, E2, R>) => Effect.Effect<B, E2, R>

type Failure<E> = E | SessionPoolError

/** Leases the session of a key for the caller's scope, and returns what `select` takes from the lease. */
export const lease = <K, A, E, B>(
  self: Pool<K, A, E>,
  key: K,
  site: Error | undefined,
  select: (lease: Lease<K, A>) => B
): Effect.Effect<B, Failure<E>, Scope.Scope> =>
  Effect.uninterruptibleMask((restore) => {
    const taken = Effect.flatMap(
      hit(self, key),
      (found) => found === undefined ? claim(self, key, restore) : Effect.succeed(found)
    )
    return Effect.flatMap(taken, (lease) => holdForScope(lease, site, select))
  })

/** Leases the session of a key for the caller's scope, if it is live or launching. */
export const leaseOption = <K, A, E>(
  self: Pool<K, A, E>,
  key: K,
  site: Error | undefined
): Effect.Effect<Option.Option<A>, Failure<E>, Scope.Scope> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(
      claimWith(self, key, restore, undefined),
      (lease) => lease === undefined ? Effect.succeedNone : holdForScope(lease, site, ({ value }) => Option.some(value))
    )
  )

/** Releases a lease when the caller's scope closes. */
const holdForScope = <K, A, E, B>(
  lease: Held<K, A, E>,
  site: Error | undefined,
  select: (lease: Lease<K, A>) => B
): Effect.Effect<B, never, Scope.Scope> =>
  // With `Effect.addFinalizer`, which provides its context to the finalizer, a `get` would take 1.8 times as long.
  Effect.contextWith((context: Context.Context<Scope.Scope>) => {
    traceLease(lease, site)
    const releaseAtEnd = Scope.addFinalizerExit(Context.get(context, Scope.Scope), () => release(lease, "neither"))
    return Effect.as(releaseAtEnd, select(lease))
  })

/**
 * Leases a session while `f` runs. The step that ends the lease counts the outcome.
 *
 * A live session needs no mask. The step that takes the lease stores it in `holding`, and the `onExit` registered before that step releases
 * it. A mask would make a use take a sixth more time.
 */
export const use = <K, A, E, B, E2, R>(
  self: Pool<K, A, E>,
  key: K,
  f: (value: A, lease: Lease<K, A>) => Effect.Effect<B, E2, R>,
  site: Error | undefined
): Effect.Effect<B, Failure<E> | E2, R> =>
  Effect.suspend(() => {
    const holding: Holding<K, A, E> = { lease: undefined }
    const used = Effect.flatMap(hit(self, key, holding), (found): Effect.Effect<B, Failure<E> | E2, R> => {
      if (found === undefined) return useClaimed(self, key, f, holding, site)
      traceLease(found, site)
      return f(found.value, found)
    })
    return Effect.onExit(used, (exit) => holding.lease === undefined ? Effect.void : endUse(holding.lease, exit))
  })

/** The lease of a `use`, for its `onExit`. */
interface Holding<in out K, in out A, in out E> {
  lease: Held<K, A, E> | undefined
}

/** The part of `use` for a session that is not live, or that needs a check. */
const useClaimed = <K, A, E, B, E2, R>(
  self: Pool<K, A, E>,
  key: K,
  f: (value: A, lease: Lease<K, A>) => Effect.Effect<B, E2, R>,
  holding: Holding<K, A, E>,
  site: Error | undefined
): Effect.Effect<B, Failure<E> | E2, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(claim(self, key, restore), (lease) => {
      holding.lease = lease
      traceLease(lease, site)
      return restore(Effect.suspend(() => f(lease.value, lease)))
    })
  )

/** Ends the lease of a `use`, and decides from its exit whether to count a success or an error. */
const endUse = <K, A, E>(lease: Held<K, A, E>, exit: Exit.Exit<unknown, unknown>): Effect.Effect<void> => {
  if (Exit.isSuccess(exit)) return release(lease, "success")
  if (Cause.hasInterruptsOnly(exit.cause)) return release(lease, "neither")
  const { options } = lease.pool
  const isError = callOption(lease.pool, "isError", () => options.isError(exit.cause, lease.key))
  // If `isError` throws, the failure counts as an error.
  return Effect.flatMap(
    Effect.exit(isError),
    (told) => release(lease, Exit.isSuccess(told) && !told.value ? "neither" : "error")
  )
}

/** Ends a lease. */
const release = <K, A, E>(lease: Held<K, A, E>, outcome: Transitions.Outcome): Effect.Effect<void> => {
  const { pool, session, takenAt, trace } = lease
  const { leaseDuration, leases } = pool.reports.metrics
  leases.modify(-1, pool.context)
  leaseDuration.update((timeOf(pool) - takenAt) / 1000, pool.context)
  if (trace !== undefined) pool.reports.leases?.delete(trace)
  return step(pool, (d) => Transitions.release(d, session, outcome))
}

/** Records a lease of the running fiber, if `leakDetection` is on. */
const traceLease = <K, A, E>(lease: Held<K, A, E>, site: Error | undefined): void => {
  const { pool: { reports: { leases } }, session, takenAt } = lease
  if (leases === undefined) return
  lease.trace = { session, takenAt, span: currentSpan(), site }
  leases.add(lease.trace)
}

/** Calls a function of the options, and logs its defect if it throws. */
const callOption = <B, K, A, E>(self: Pool<K, A, E>, option: string, f: () => B): Effect.Effect<B> =>
  Effect.tapCause(Effect.sync(f), (cause) => Effect.sync(() => logDefect(self.reports, option, cause, timeOf(self))))

// -----------------------------------------------------------------------------
// Claims
// -----------------------------------------------------------------------------

/** Leases a live session that needs no check, and stores the lease in `holding` within the step. */
const hit = <K, A, E>(
  self: Pool<K, A, E>,
  key: K,
  holding?: Holding<K, A, E>
): Effect.Effect<Held<K, A, E> | undefined> =>
  Ref.modify(self.state, (state) => {
    const now = timeOf(self)
    const [session, next] = Transitions.hit(state, self.options, key, now, 1)
    const lease = session === undefined ? undefined : new Held(self, session, session.value, now)
    if (holding !== undefined) holding.lease = lease
    return [lease, next]
  })

/** Leases the session of a key, and launches it if there is none. */
const claim = <K, A, E>(self: Pool<K, A, E>, key: K, restore: Restore): Effect.Effect<Held<K, A, E>, Failure<E>> =>
  Effect.flatMap(
    prepare(self, key, Scope.makeUnsafe(), undefined),
    // `claimWith` returns `undefined` only without a launch.
    (launch) => claimWith(self, key, restore, launch) as Effect.Effect<Held<K, A, E>, Failure<E>>
  )

/** Leases the session of a key. If there is none, starts `launch`; without a `launch`, returns `undefined`. */
const claimWith = Effect.fnUntraced(function*<K, A, E>(
  self: Pool<K, A, E>,
  key: K,
  restore: Restore,
  launch: Launch<K, A, E> | undefined
): Effect.fn.Return<Held<K, A, E> | undefined, Failure<E>> {
  const identity = launch ?? { key, hash: Hash.hash(key) }
  // A second round runs only if `validate` refused the session, which is retired now. The next session is not checked.
  const fresh: Check = { isValid: Deferred.makeUnsafe(), isBackground: false }
  for (let check: Check | undefined = fresh;; check = undefined) {
    const acquired = yield* step(self, (d) => Transitions.acquire(d, identity, launch, check))
    switch (acquired._tag) {
      case "Leased": {
        const { check: awaited, session } = acquired
        if (awaited === undefined || (yield* passesCheck(self, session, awaited, restore))) {
          return new Held(self, session, session.value, timeOf(self))
        }
        break
      }
      case "Joined": {
        const { launch: joined, waits } = acquired
        const value = yield* waits ? awaitPlace(self, joined, restore) : awaitLaunch(self, joined, restore)
        return new Held(self, joined, value, timeOf(self))
      }
      case "Failed":
        return yield* Effect.failCause(acquired.cause)
      case "Full":
        self.reports.metrics.refused()
        return yield* exceeded(acquired.shortage, 0)
      case "Absent":
        return undefined
    }
  }
})

/** Makes a launch that has not started. A bad key, or a function of the options that throws, is a defect. */
const prepare = Effect.fnUntraced(function*<K, A, E>(
  self: Pool<K, A, E>,
  key: K,
  scope: Scope.Closeable,
  adopts: Launch<K, A, E>["adopts"]
): Effect.fn.Return<Launch<K, A, E>> {
  const { options } = self
  const idleTimeToLive = yield* callOption(self, "idleTimeToLive", () => options.idleTimeToLive(key))
  const group = yield* callOption(self, "groupBy", () => options.groupBy(key))
  checkUnsafe("key", key)
  checkUnsafe("group", group)
  return {
    id: ++self.lastId,
    key,
    hash: Hash.hash(key),
    group,
    scope,
    idleTimeToLive,
    // Up to 10 % shorter, so sessions opened together do not all close together.
    lifetime: options.maxLifetime * (1 - Context.get(self.context, Random.Random).nextDoubleUnsafe() / 10),
    done: Deferred.makeUnsafe(),
    adopts,
    span: currentSpan()
  }
})

/** Waits for a check of a leased session. If the session is refused or the wait is interrupted, the lease ends. */
const passesCheck = <K, A, E>(
  self: Pool<K, A, E>,
  session: Identity<K>,
  check: Check,
  restore: Restore
): Effect.Effect<boolean> =>
  Effect.onExit(restore(Deferred.await(check.isValid)), (exit) =>
    Exit.isSuccess(exit) && exit.value
      ? Effect.void
      : step(self, (d) => Transitions.release(d, session, "neither")))

/** Runs a wait of a launch's caller. If the wait fails or is interrupted, the caller leaves the launch. */
const orAbandon = <B, K, A, E, E2>(
  self: Pool<K, A, E>,
  launch: Launch<K, A, E>,
  wait: Effect.Effect<B, E2>
): Effect.Effect<B, E2> =>
  Effect.onExit(
    wait,
    (exit) => Exit.isSuccess(exit) ? Effect.void : step(self, (d) => Transitions.abandon(d, launch))
  )

/** Waits for the result of a launch that has its place. */
const awaitLaunch = <K, A, E>(
  self: Pool<K, A, E>,
  launch: Launch<K, A, E>,
  restore: Restore
): Effect.Effect<A, Failure<E>> => orAbandon(self, launch, restore(Deferred.await(launch.done)))

/**
 * Waits for a launch that has no place yet, up to `acquireTimeout`.
 *
 * Three things wake the caller: the result of the launch, its `patience` and its `acquireTimeout`. After `patience`, `serveAgain` evicts an
 * idle session for it instead of waiting for a slow close.
 */
const awaitPlace = Effect.fnUntraced(function*<K, A, E>(
  self: Pool<K, A, E>,
  launch: Launch<K, A, E>,
  restore: Restore
): Effect.fn.Return<A, Failure<E>> {
  const { acquireTimeout, patience } = self.options
  const done = Deferred.await(launch.done)
  const startedAt = timeOf(self)
  let due = patience
  for (let left = acquireTimeout; left > 0;) {
    const wait = Math.min(left, due)
    const value = yield* orAbandon(self, launch, restore(Effect.timeoutOption(done, wait)))
    if (Option.isSome(value)) return value.value
    left -= wait
    due = yield* step(self, (d) => Transitions.serveAgain(d, launch))
  }
  // Lets the close of a session that was evicted just now finish, if it is synchronous.
  yield* Effect.yieldNow
  const shortage = yield* step(self, (d) => Transitions.giveUp(d, launch))
  // No shortage: the launch got its place in time. From here on `lookupTimeout` bounds the wait.
  if (shortage === undefined) return yield* awaitLaunch(self, launch, restore)
  const waited = timeOf(self) - startedAt
  self.reports.metrics.timedOut()
  return yield* exceeded(shortage, waited)
})

const exceeded = (shortage: Shortage, waited: number): Effect.Effect<never, SessionPoolError> =>
  Effect.fail(new SessionPoolError({ reason: new CapacityExceeded({ ...shortage, waited }) }))

// -----------------------------------------------------------------------------
// Adopting
// -----------------------------------------------------------------------------

/** Puts an open connection into the pool. The pool owns it from the start, so its finalizer also runs if this fails or is interrupted. */
export const set = <K, A, E>(
  self: Pool<K, A, E>,
  key: K,
  value: A,
  finalizer: Effect.Effect<unknown>
): Effect.Effect<void, Failure<E>> =>
  Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore: Restore) {
    const scope = Scope.makeUnsafe()
    yield* Scope.addFinalizer(scope, finalizer)
    const launch = yield* Effect.onError(prepare(self, key, scope, { value }), () => Scope.close(scope, Exit.void))
    const shortage = yield* step(self, (d) => Transitions.adopt(d, launch, value))
    if (shortage !== undefined) {
      self.reports.metrics.refused()
      return yield* exceeded(shortage, 0)
    }
    if (Deferred.isDoneUnsafe(launch.done)) yield* Deferred.await(launch.done)
    else yield* awaitPlace(self, launch, restore)
  }))
