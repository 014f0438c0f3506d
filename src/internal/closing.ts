/**
 * Closing what has left the pool. Nothing else closes a connection: a retired session is closed for the action `Close` of
 * the step that ended its last lease (or retired it without any), a launch without callers by its own fiber.
 *
 * Each close runs in its own fiber, so that none waits for another, and each is bounded by `closeTimeout`, after which its
 * place is free and the finalizer is left to itself. Before that it lingers (`lingersAfter`): nobody counts on its place any more.
 */
import { Cause, Effect, Exit, Fiber, Scope } from "effect"
import type { Pool } from "./pool.ts"
import { log, publish, raceTimer, step, timeOf, traced } from "./pool.ts"
import type { Launch, Offered, Reason, Session } from "./state.ts"
import type { Limits } from "./transitions.ts"
import * as Transitions from "./transitions.ts"

/** Runs the finalizers of a retired session, then frees its place. */
export const runClose = <K, A, E>(self: Pool<K, A, E>, session: Session<K, A>, reason: Reason) => {
  const { id, key } = session
  const finalizers: Finalizers = { fiber: undefined, close: Scope.close(session.scope, Exit.void) }
  return within(self, id, key, finalizers, {
    lingers: step(self, (state) => Transitions.lingers(state, self.options, id)),
    free: (end) => step(self, (state) => Transitions.closed(state, self.options, { session, reason, end }))
  })
}

/**
 * Ends the lookup of a launch that nobody gets, closes what it acquired, then frees its place. `id`: what the event of a close that
 * takes too long names; another one than the launch's where an adopted session may have taken that over.
 */
export const runDiscard = <K, A, E>(
  self: Pool<K, A, E>,
  launch: Launch<K, A, E>,
  lookup: Fiber.Fiber<A, E> | undefined,
  id: number
) =>
  within(
    self,
    id,
    launch.key,
    {
      fiber: undefined,
      close: Effect.andThen(
        lookup === undefined ? Effect.void : Fiber.interrupt(lookup),
        Scope.close(launch.scope, Exit.void)
      )
    },
    {
      lingers: step(self, (state) => Transitions.launchLingers(state, self.options, launch)),
      free: () => step(self, (state) => Transitions.launchClosed(state, self.options, launch))
    }
  )

/** Closes a connection that could not be adopted. */
export const runReject = <K, A, E>(self: Pool<K, A, E>, { id, key, scope }: Offered<K>) => {
  const finalizers: Finalizers = { fiber: undefined, close: Scope.close(scope, Exit.void) }
  return within(self, id, key, finalizers, {
    lingers: Effect.void,
    free: () => step(self, (state) => Transitions.rejected(state, self.options, id))
  })
}

/** What closes a connection, and the fiber that does, once it has begun: also if that which waits for it dies and is started anew. */
interface Finalizers {
  fiber: Fiber.Fiber<void> | undefined
  readonly close: Effect.Effect<void>
}

/** What becomes of the place of what is closed. */
interface Place {
  /** Nobody is to count on it any more. */
  readonly lingers: Effect.Effect<void>
  /** The close is over, or has timed out; a second time this changes nothing: the place is found by an id, which is gone. */
  readonly free: (end: Transitions.CloseEnd | undefined) => Effect.Effect<void>
}

/**
 * How long those who wait for a place count on one that is being closed, in milliseconds; then something idle is evicted too. Long
 * enough for a process to end in order: where all closes take longer, one more session is evicted each time, as long as anybody waits.
 */
const lingersAfter = ({ capacity, groupCapacity }: Limits): number =>
  capacity === Infinity && groupCapacity === Infinity ? Infinity : 5000

/** Runs a close, and frees the place when it is over or takes longer than `closeTimeout`, whichever comes first. */
const within = Effect.fnUntraced(function*<K, A, E>(
  self: Pool<K, A, E>,
  id: number,
  key: K,
  finalizers: Finalizers,
  { free, lingers }: Place
) {
  const { closeTimeout } = self.options
  const warn = (...message: ReadonlyArray<string>) =>
    log(self, Effect.annotateLogs(Effect.logWarning(...message), "session", id))
  const startedAt = timeOf(self)
  const fiber = finalizers.fiber ??= Effect.runForkWith(self.context)(
    traced(self, id, "SessionPool.close", Effect.asVoid(finalizers.close))
  )
  const lingersAt = Math.min(lingersAfter(self.options), closeTimeout)
  let exit = fiber.pollUnsafe() ?? (yield* raceTimer(Fiber.await(fiber), lingersAt))
  if (exit === undefined && lingersAt < closeTimeout) {
    yield* lingers
    exit = yield* raceTimer(Fiber.await(fiber), closeTimeout - lingersAt)
  }
  if (exit === undefined) {
    self.metrics.closeTimedOut(self.context)
    publish(self, { _tag: "CloseTimedOut", key, id, duration: closeTimeout })
    yield* free(undefined)
    warn(`A session takes longer than ${closeTimeout} ms to close; its place is free again`)
    exit = yield* Fiber.await(fiber)
  }
  yield* free({ exit, duration: timeOf(self) - startedAt })
  if (Exit.isFailure(exit)) warn("A finalizer failed while a session was closed", Cause.pretty(exit.cause))
})
