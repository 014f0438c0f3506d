/**
 * Closing what has left the pool. Nothing else closes a connection: a retired session is closed for the action `Close` of
 * the step that ended its last lease (or retired it without any), a launch without callers by its own fiber.
 *
 * Each close runs in its own fiber, so that none waits for another, and each is bounded by `closeTimeout`, after which its
 * place is free and the finalizer is left to itself.
 */
import { Cause, Clock, Effect, Exit, Fiber, Scope } from "effect"
import type { Pool } from "./pool.ts"
import { publish, step, traced } from "./pool.ts"
import type { Launch, Reason, Session } from "./state.ts"
import * as Transitions from "./transitions.ts"

/** Runs the finalizers of a retired session, then frees its place. */
export const runClose = Effect.fnUntraced(
  function*<K, A, E>(self: Pool<K, A, E>, session: Session<K, A>, reason: Reason) {
    const { id, key } = session
    const { duration, exit } = yield* within(
      self,
      id,
      key,
      Scope.close(session.scope, Exit.void),
      step(self, (state) => Transitions.closed(state, self.options, id))
    )
    self.metrics.closed(self.context, duration)
    publish(self, { _tag: "Closed", key, id, reason, duration, exit })
  }
)

/** Ends the lookup of a launch that nobody gets, closes what it acquired, then frees its place. */
export const runDiscard = <K, A, E>(self: Pool<K, A, E>, launch: Launch<K, A, E>, lookup: Fiber.Fiber<A, E>) =>
  within(
    self,
    launch.id,
    launch.key,
    Effect.andThen(Fiber.interrupt(lookup), Scope.close(launch.scope, Exit.void)),
    step(self, (state) => Transitions.launchClosed(state, self.options, launch))
  )

/** Closes a connection that could not be adopted. */
export const runReject = <K, A, E>(self: Pool<K, A, E>, id: number, key: K, scope: Scope.Closeable) =>
  within(self, id, key, Scope.close(scope, Exit.void), Effect.void)

/** Runs a close, and frees the place when it is over or takes longer than `closeTimeout`, whichever comes first. */
const within = Effect.fnUntraced(function*<K, A, E>(
  self: Pool<K, A, E>,
  id: number,
  key: K,
  close: Effect.Effect<void>,
  free: Effect.Effect<void>
) {
  const { closeTimeout, name } = self.options
  const annotations = { pool: name, session: id }
  const startedAt = yield* Clock.currentTimeMillis
  const fiber = Effect.runForkWith(self.context)(
    traced(self, id, "SessionPool.close", Effect.asVoid(close))
  )
  let exit = fiber.pollUnsafe()
  if (exit === undefined && closeTimeout !== Infinity) {
    exit = yield* Effect.raceAllFirst([Fiber.await(fiber), Effect.as(Effect.sleep(closeTimeout), undefined)])
    if (exit === undefined) {
      self.metrics.closeTimedOut(self.context)
      publish(self, { _tag: "CloseTimedOut", key, id, duration: closeTimeout })
      yield* free
      yield* Effect.logWarning(`A session takes longer than ${closeTimeout} ms to close; its place is free again`).pipe(
        Effect.annotateLogs(annotations)
      )
      exit = yield* Fiber.await(fiber)
    }
  }
  exit ??= yield* Fiber.await(fiber)
  // A second time this changes nothing: the place is found by the session's id, which is gone.
  yield* free
  if (Exit.isFailure(exit)) {
    yield* Effect.logWarning("A finalizer failed while a session was closed", Cause.pretty(exit.cause)).pipe(
      Effect.annotateLogs(annotations)
    )
  }
  return { exit, duration: (yield* Clock.currentTimeMillis) - startedAt }
})
