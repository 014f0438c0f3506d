/**
 * How a caller gets a session and gives it back.
 *
 * A claim (on a launch, a place, a validation) is counted by the step that grants it and given back by the very
 * caller, whatever interrupts it: the wait is the only interruptible part, and its exit decides between lease and return.
 */
import { Cause, Clock, Context, Deferred, Effect, Exit, Fiber, Hash, Scope } from "effect"
import type { Option } from "effect"
import type { Shortage } from "./draft.ts"
import { CapacityExceeded, PoolClosed, ValidationFailed } from "./errors.ts"
import * as Leaks from "./leaks.ts"
import type { Pool } from "./pool.ts"
import { complete, forkIn, hit, raceTimer, step, stepAsIs, timeOf } from "./pool.ts"
import type { Identity, Launch, Session, Validation } from "./state.ts"
import * as Transitions from "./transitions.ts"

/** What a caller holds until its release. */
interface Lease<out K, out A> extends Identity<K> {
  readonly value: A
}

const leaseOf = <K, A>({ hash, id, key }: Identity<K>, value: A): Lease<K, A> => ({ hash, id, key, value })

/** Makes a wait within a mask interruptible again. */
export type Restore = <B, E2, R>(effect: Effect.Effect<B, E2, R>) => Effect.Effect<B, E2, R>

/** Leases a session for the caller's scope. */
export const get = <K, A, E>(
  self: Pool<K, A, E>,
  key: K,
  at: Leaks.CallSite | undefined = Leaks.callSite(self.leaks)
): Effect.Effect<A, E, Scope.Scope> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(leasePresent(self, key), (session): Effect.Effect<A, E, Scope.Scope> =>
      session !== undefined
        ? leaseForScope(self, session, at)
        : Effect.flatMap(claim(self, key, restore, 1), (lease) => leaseForScope(self, lease, at)))
  )

const leaseForScope = <K, A, E>(
  self: Pool<K, A, E>,
  lease: Lease<K, A>,
  at: Leaks.CallSite | undefined
): Effect.Effect<A, never, Scope.Scope> =>
  Effect.withFiber((fiber) => {
    const trace = takeTrace(self, lease, fiber.context, at)
    // As `Effect.scope` finds it, without an effect of its own. The types demand a scope; a JavaScript program may run without one.
    const scope = Context.getOrUndefined(fiber.context, Scope.Scope)
    if (scope === undefined) {
      return Effect.andThen(
        release(self, lease, trace, "neither"),
        Effect.die(
          new Error(
            "SessionPool.get and getOption need a Scope to hold the lease: run them in Effect.scoped, or call SessionPool.use"
          )
        )
      )
    }
    return Effect.as(Scope.addFinalizerExit(scope, () => release(self, lease, trace, "neither")), lease.value)
  })

/** What a run of `use` holds, if anything yet. */
interface Holding<in out K, in out A> {
  lease: Lease<K, A> | undefined
  trace: Leaks.LeaseTrace<K> | undefined
}

/**
 * Leases a session for the run of `f`, and counts how it went in the step that ends the lease.
 *
 * The release is registered first, and the step that takes a lease notes it in `holding` itself: whatever interrupts or
 * throws after that step finds the lease there. So a session that is there needs no mask, which would cost a third more.
 */
export const use = <K, A, E, B, E2, R>(
  self: Pool<K, A, E>,
  key: K,
  f: (value: A) => Effect.Effect<B, E2, R>,
  at: Leaks.CallSite | undefined = Leaks.callSite(self.leaks)
): Effect.Effect<B, E | E2, R> =>
  Effect.suspend(() => {
    const holding: Holding<K, A> = { lease: undefined, trace: undefined }
    return Effect.onExit(
      Effect.flatMap(leasePresent(self, key, holding), (session): Effect.Effect<B, E | E2, R> =>
        session !== undefined && self.leaks === undefined ? f(session.value) : useSlowly(self, key, f, holding, at)),
      (exit) =>
        endUse(self, holding, exit)
    )
  })

/** As `use`, where the session must be launched, waited for or validated, or where leases are traced. */
const useSlowly = <K, A, E, B, E2, R>(
  self: Pool<K, A, E>,
  key: K,
  f: (value: A) => Effect.Effect<B, E2, R>,
  holding: Holding<K, A>,
  at: Leaks.CallSite | undefined
): Effect.Effect<B, E | E2, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(
      holding.lease !== undefined ? Effect.succeed(holding.lease) : claim(self, key, restore, 1),
      (lease) =>
        Effect.withFiber((fiber) => {
          holding.lease = lease
          holding.trace = takeTrace(self, lease, fiber.context, at)
          return restore(Effect.suspend(() => f(lease.value)))
        })
    )
  )

const endUse = <K, A, E>(
  self: Pool<K, A, E>,
  { lease, trace }: Holding<K, A>,
  exit: Exit.Exit<unknown, unknown>
): Effect.Effect<void> => {
  if (lease === undefined) return Effect.void
  return Exit.isSuccess(exit)
    ? release(self, lease, trace, "success")
    : Effect.flatMap(judge(self, lease.key, exit.cause), (how) => release(self, lease, trace, how))
}

/** Whether a failed `use` counts as an error. An `isError` that throws cannot tell, so it counts. */
const judge = <K, A, E>(
  self: Pool<K, A, E>,
  key: K,
  cause: Cause.Cause<unknown>
): Effect.Effect<Transitions.Result> =>
  Cause.hasInterruptsOnly(cause)
    ? Effect.succeed("neither")
    : Effect.map(
      Effect.exit(Effect.sync(() => self.options.isError(cause, key))),
      (exit) => Exit.isSuccess(exit) && !exit.value ? "neither" : "error"
    )

/** Leases a present or launching session for the caller's scope; never launches. */
export const getOption = <K, A, E>(
  self: Pool<K, A, E>,
  key: K,
  at: Leaks.CallSite | undefined = Leaks.callSite(self.leaks)
): Effect.Effect<Option.Option<A>, E, Scope.Scope> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(
      leasePresent(self, key),
      (session): Effect.Effect<Option.Option<A>, E, Scope.Scope> =>
        session !== undefined
          ? Effect.asSome(leaseForScope(self, session, at))
          : Effect.flatMap(
            claimPresent(self, key, restore),
            (lease) => lease === undefined ? Effect.succeedNone : Effect.asSome(leaseForScope(self, lease, at))
          )
    )
  )

const takeTrace = <K, A, E>(
  self: Pool<K, A, E>,
  lease: Lease<K, A>,
  context: Context.Context<never>,
  at: Leaks.CallSite | undefined
): Leaks.LeaseTrace<K> | undefined => {
  if (self.leaks === undefined) return undefined
  const takenAt = timeOf(self)
  const trace = { key: lease.key, id: lease.id, takenAt, span: Leaks.spanOf(context), at }
  self.leaks.add(trace)
  return trace
}

/** Ends a lease. For exit handlers and finalizers, which Effect runs uninterruptibly. */
const release = <K, A, E>(
  self: Pool<K, A, E>,
  lease: Lease<K, A>,
  trace: Leaks.LeaseTrace<K> | undefined,
  how: Transitions.Result
): Effect.Effect<void> =>
  stepAsIs(self, (state, now) => {
    if (trace !== undefined) self.leaks?.delete(trace)
    return Transitions.release(state, self.options, lease, now, how)
  })

// -----------------------------------------------------------------------------
// Claims
// -----------------------------------------------------------------------------

/** Leases a session that is there and needs no validation, and notes it in `holding`, within the step. */
const leasePresent = <K, A, E>(
  self: Pool<K, A, E>,
  key: K,
  holding?: Holding<K, A>
): Effect.Effect<Session<K, A> | undefined> =>
  hit(self, (state, now) => {
    const leased = Transitions.lease(state, self.options, key, Hash.hash(key), now)
    if (holding !== undefined) holding.lease = leased[0]
    return leased
  })

/** The launch that a caller brings along, in case its key is absent. User functions run here, before the step. */
const makeLaunch = <K, A, E>(self: Pool<K, A, E>, key: K): Launch<K, A, E> => ({
  id: ++self.lastId,
  key,
  hash: Hash.hash(key),
  group: self.options.groupBy(key),
  idleTimeToLive: self.options.idleTimeToLive(key),
  scope: Scope.makeUnsafe(),
  done: Deferred.makeUnsafe(),
  cancelled: Deferred.makeUnsafe()
})

/** Gets hold of a session, launching it if need be. Runs uninterruptibly but for its waits. */
const claim = <K, A, E>(
  self: Pool<K, A, E>,
  key: K,
  restore: Restore,
  attempt: number
): Effect.Effect<Lease<K, A>, E> => {
  const launch = makeLaunch(self, key)
  const validation: Validation = Deferred.makeUnsafe()
  const acquiring = stepAsIs(
    self,
    (state, now) => Transitions.acquire(state, self.options, now, launch, validation)
  )
  return Effect.flatMap(acquiring, (acquired) =>
    // A lookup that waits for nothing has ended within the step's own actions.
    acquired._tag === "Join" && attempt === 1 && Deferred.isDoneUnsafe(acquired.launch.done)
      ? Effect.map(Deferred.await(acquired.launch.done), (value) => leaseOf(acquired.launch, value))
      : claimSlowly(self, key, restore, attempt, acquired))
}

/** As `claim`, where there is something to wait for, or no session. */
const claimSlowly = Effect.fnUntraced(function*<K, A, E>(
  self: Pool<K, A, E>,
  key: K,
  restore: Restore,
  attempt: number,
  acquired: Transitions.Acquired<K, A, E>
): Effect.fn.Return<Lease<K, A>, E> {
  const lease = yield* settle(self, key, restore, acquired)
  // The first invalid session is replaced; what comes in its place must prove itself before it is handed out.
  if (lease !== undefined) {
    if (attempt === 1 || (yield* isValid(self, lease, restore))) return lease
  } else if (attempt === 1) {
    return yield* claim(self, key, restore, 2)
  }
  return yield* Effect.failCause(self.fail(new ValidationFailed({ key, attempts: attempt })))
})

/** Leases a session that is there or coming; `undefined` if there is none. */
const claimPresent = Effect.fnUntraced(function*<K, A, E>(
  self: Pool<K, A, E>,
  key: K,
  restore: Restore
): Effect.fn.Return<Lease<K, A> | undefined, E> {
  const validation: Validation = Deferred.makeUnsafe()
  const acquired = yield* stepAsIs(
    self,
    (state, now) => Transitions.join(state, self.options, key, now, validation)
  )
  return yield* settle(self, key, restore, acquired)
})

/** Turns what the step decided into a lease; `undefined`: there is none, or it was found invalid. */
const settle = Effect.fnUntraced(function*<K, A, E>(
  self: Pool<K, A, E>,
  key: K,
  restore: Restore,
  acquired: Transitions.Acquired<K, A, E>
): Effect.fn.Return<Lease<K, A> | undefined, E> {
  switch (acquired._tag) {
    case "Leased":
      return acquired.session
    case "Validate": {
      const { begin, session, validation } = acquired
      if (begin) startValidation(self, session, validation)
      return (yield* awaitValidation(self, session, validation, restore)) ? session : undefined
    }
    case "Join": {
      const { launch, queued } = acquired
      const value = queued
        ? yield* awaitPlace(self, launch, restore)
        : yield* held(self, launch.key, launch.id, restore(Deferred.await(launch.done)))
      return leaseOf(launch, value)
    }
    case "Failed":
      return yield* Effect.failCause(acquired.cause)
    case "Full":
      return yield* exceeded(self, key, acquired.shortage, 0)
    case "Closed":
      return yield* Effect.failCause(self.fail(new PoolClosed({ key })))
    case "Absent":
      return undefined
  }
})

/** Waits with a claim in hand: if the wait fails or is interrupted, the claim goes back. */
const held = <B, K, A, E, E2>(
  self: Pool<K, A, E>,
  key: K,
  id: number,
  wait: Effect.Effect<B, E2>
): Effect.Effect<B, E2> =>
  Effect.onExit(wait, (exit) =>
    Exit.isSuccess(exit)
      ? Effect.void
      : step(self, (state, now) => Transitions.abandon(state, self.options, key, id, now)))

const awaitPlace = Effect.fnUntraced(function*<K, A, E>(
  self: Pool<K, A, E>,
  launch: Launch<K, A, E>,
  restore: Restore
): Effect.fn.Return<A, E> {
  const { id, key } = launch
  const { acquireTimeout } = self.options
  const done = Deferred.await(launch.done)
  if (acquireTimeout !== Infinity) {
    const startedAt = yield* Clock.currentTimeMillis
    const value = yield* held(self, key, id, restore(Effect.timeoutOption(done, acquireTimeout)))
    if (value._tag === "Some") return value.value
    // It may have got its place just now: then the launch runs, and lookupTimeout bounds the rest of the wait.
    const shortage = yield* step(self, (state) => Transitions.giveUp(state, self.options, key, id))
    if (shortage !== undefined) return yield* exceeded(self, key, shortage, yield* waitedSince(startedAt))
  }
  return yield* held(self, key, id, restore(done))
})

/** How long a caller has waited, by its own clock, which its time-out runs by. */
export const waitedSince = (startedAt: number): Effect.Effect<number> =>
  // The clock may have been set back.
  Effect.map(Clock.currentTimeMillis, (now) => Math.max(0, now - startedAt))

/** The error for a caller that got no place. */
export const exceeded = <K, A, E>(
  self: Pool<K, A, E>,
  key: K,
  shortage: Shortage,
  waited: number
): Effect.Effect<never, E> => Effect.failCause(self.fail(new CapacityExceeded({ key, ...shortage, waited })))

// -----------------------------------------------------------------------------
// Validation
// -----------------------------------------------------------------------------

/** Has a leased session validated now; a session found invalid loses its lease. */
const isValid = Effect.fnUntraced(function*<K, A, E>(self: Pool<K, A, E>, lease: Lease<K, A>, restore: Restore) {
  const fresh: Validation = Deferred.makeUnsafe()
  const started = yield* step(
    self,
    (state) => Transitions.revalidate(state, self.options, lease.key, lease.id, fresh)
  )
  // Retired meanwhile: the caller keeps what it leased, as any holder does.
  if (started === undefined) return true
  if (started === "Invalid") {
    yield* release(self, lease, undefined, "neither")
    return false
  }
  if (started.begin !== undefined) startValidation(self, started.begin, started.validation)
  return yield* awaitValidation(self, lease, started.validation, restore)
})

const awaitValidation = Effect.fnUntraced(function*<K, A, E>(
  self: Pool<K, A, E>,
  lease: Lease<K, A>,
  validation: Validation,
  restore: Restore
) {
  const valid = yield* held(self, lease.key, lease.id, restore(Deferred.await(validation)))
  if (!valid) yield* release(self, lease, undefined, "neither")
  return valid
})

/**
 * Runs `validate` in a fiber of the pool, which has a lease of its own; everyone interested waits for `validation`. After
 * `lookupTimeout` they have their answer and the check is interrupted. Only this fiber, and so the end of the pool, still waits for
 * its clean-up, which may hang as well: for `closeTimeout` at most.
 */
export const startValidation = <K, A, E>(self: Pool<K, A, E>, session: Session<K, A>, validation: Validation): void => {
  const { closeTimeout, validate } = self.options
  const { id, key, value } = session
  const check = validate === undefined ? Effect.succeed(true) : Effect.suspend(() => validate(value, key))
  const run = Effect.gen(function*() {
    const fiber = Effect.runForkWith(self.context)(check)
    const end = fiber.pollUnsafe() ?? (yield* awaitCheck(self, fiber))
    const valid = end !== undefined && Exit.isSuccess(end) && end.value
    if (end === undefined) fiber.interruptUnsafe()
    const goesOn = fiber.pollUnsafe() === undefined
    yield* step(self, (state, now) => Transitions.validated(state, self.options, key, id, valid, now, goesOn))
    complete(self, validation, Effect.succeed(valid))
    if (!goesOn) return
    // Nothing closes the connection under the check.
    yield* raceTimer(Fiber.await(fiber), closeTimeout)
    yield* step(self, (state, now) => Transitions.release(state, self.options, session, now, "neither"))
  })
  // Whoever waits for the answer gets one, also if the pool ends before this fiber has begun.
  forkIn(self, run, self.background, { uninterruptible: true })
}

/** How a check has ended; `undefined`: not within `lookupTimeout`, or before the end of the pool. */
const awaitCheck = <K, A, E>(self: Pool<K, A, E>, check: Fiber.Fiber<boolean>) =>
  Effect.map(
    Effect.exit(Effect.interruptible(raceTimer(Fiber.await(check), self.options.lookupTimeout))),
    (exit) => Exit.isSuccess(exit) ? exit.value : undefined
  )
