/**
 * One run of the lookup, in a fiber of the pool: single flight is the slot's, time-out and cancellation are handled
 * here, and whatever ends without a session closes what the lookup acquired.
 */
import { Cause, Context, Deferred, Effect, Exit, Fiber, Random, Scope } from "effect"
import { runDiscard } from "./closing.ts"
import { LookupTimeout } from "./errors.ts"
import type { Pool } from "./pool.ts"
import { fork, raceTimer, step, timeOf, traced } from "./pool.ts"
import type { Launch, Session } from "./state.ts"
import * as Transitions from "./transitions.ts"

type End<A, E> = Exit.Exit<A, E> | "Cancelled" | "TimedOut"

/** Where the fiber of a lookup is found when that of its launch has died. */
export interface Started<out A, out E> {
  lookup: Fiber.Fiber<A, E> | undefined
}

/** Runs the lookup of a launch to its end: landed, failed, timed out or cancelled. Nothing interrupts this. */
export const runLaunch = Effect.fnUntraced(function*<K, A, E>(
  self: Pool<K, A, E>,
  launch: Launch<K, A, E>,
  started: Started<A, E>
) {
  const startedAt = timeOf(self)
  const fiber = Effect.runForkWith(Context.add(self.context, Scope.Scope, launch.scope))(
    traced(self, launch.id, "SessionPool.launch", Effect.suspend(() => self.lookup(launch.key)))
  )
  started.lookup = fiber
  const end: End<A, E> = fiber.pollUnsafe() ?? (yield* awaitEnd(self, launch, fiber))
  if (end === "Cancelled") return yield* runDiscard(self, launch, fiber, ++self.lastId)
  const duration = timeOf(self) - startedAt
  if (end !== "TimedOut" && Exit.isSuccess(end)) {
    const lifetime = self.options.maxLifetime === Infinity ? Infinity : yield* jitteredLifetime(self)
    const session = yield* step(
      self,
      (state, now) => Transitions.landed(state, self.options, launch, end.value, startedAt, now, now + lifetime)
    )
    return session === undefined ? yield* runDiscard(self, launch, fiber, ++self.lastId) : undefined
  }
  const timedOut = end === "TimedOut"
  const failure = { cause: timedOut ? lookupTimedOut(self, launch, duration) : end.cause, duration, timedOut }
  // An interrupted lookup was given up, it did not fail: nobody is to be turned away because of it.
  const remember = !Cause.hasInterruptsOnly(failure.cause)
  yield* step(self, (state, now) => Transitions.launchFailed(state, self.options, launch, failure, remember, now))
  return yield* runDiscard(self, launch, fiber, launch.id)
})

/** Ends a launch whose own fiber has died. */
export const failLaunch = <K, A, E>(
  self: Pool<K, A, E>,
  launch: Launch<K, A, E>,
  { lookup }: Started<A, E>,
  cause: Cause.Cause<never>
) => {
  const failure = { cause, duration: 0, timedOut: false }
  return Effect.flatMap(
    step(self, (state, now) => Transitions.launchFailed(state, self.options, launch, failure, false, now)),
    (failed) => failed ? runDiscard(self, launch, lookup, launch.id) : Effect.void
  )
}

const awaitEnd = <K, A, E>(self: Pool<K, A, E>, launch: Launch<K, A, E>, fiber: Fiber.Fiber<A, E>) => {
  const { lookupTimeout } = self.options
  const ends: Array<Effect.Effect<End<A, E>>> = [
    Fiber.await(fiber),
    Effect.as(Deferred.await(launch.cancelled), "Cancelled")
  ]
  if (lookupTimeout !== Infinity) ends.push(Effect.as(Effect.sleep(lookupTimeout), "TimedOut"))
  return Effect.raceAllFirst(ends)
}

const lookupTimedOut = <K, A, E>(self: Pool<K, A, E>, launch: Launch<K, A, E>, waited: number): Cause.Cause<E> =>
  self.fail(new LookupTimeout({ key: launch.key, limit: self.options.lookupTimeout, waited }))

/** How long a session may live: up to a tenth less than `maxLifetime`, so that a burst does not end as a burst. */
export const jitteredLifetime = <K, A, E>(self: Pool<K, A, E>): Effect.Effect<number> =>
  // Without a limit still infinity.
  Effect.map(Random.next, (random) => self.options.maxLifetime * (1 - random / 10))

/** How long a close waits for the watcher that it has interrupted, in milliseconds. */
const watcherPatience = 1000

/**
 * Retires the session as soon as its connection has died by itself. The close interrupts this, and does not wait for ever: a watcher
 * that cannot be interrupted may itself wait for the connection to be closed.
 */
export const watch = <K, A, E>(self: Pool<K, A, E>, session: Session<K, A>): void => {
  const { closed } = self.options
  if (closed === undefined) return
  const retire = step(self, (state) => Transitions.disconnected(state, self.options, session.key, session.id))
  const died = Effect.exit(Effect.suspend(() => closed(session.value, session.key)))
  const fiber = Effect.runForkWith(self.context)(Effect.andThen(died, retire))
  if (fiber.pollUnsafe() !== undefined) return
  const stop = Effect.suspend(() => {
    fiber.interruptUnsafe()
    return fiber.pollUnsafe() === undefined
      ? raceTimer(Fiber.await(fiber), Math.min(watcherPatience, self.options.closeTimeout / 2))
      : Effect.void
  })
  fork(self, Scope.addFinalizer(session.scope, stop))
}
