/**
 * The shell around the state: what a pool is made of, how a step is run, and what each action means.
 *
 * A step is one `Ref.modify`; its actions follow at once and uninterruptibly, so no decision is ever lost. Whatever
 * outlives the caller (a launch, a close, a validation) runs in a fiber of its own with the context of the pool.
 */
import type { Clock, Scope } from "effect"
import { Cause, Deferred, Effect, Exit, Fiber, PubSub, Ref, Result, Tracer } from "effect"
import type { Context, Scheduler } from "effect"
import { runClose, runReject } from "./closing.ts"
import type { Hit, Outcome, Step } from "./draft.ts"
import type { AcquireError } from "./errors.ts"
import type { Event } from "./events.ts"
import type { Started } from "./launching.ts"
import { failLaunch, runLaunch, watch } from "./launching.ts"
import type { LeakDetector } from "./leaks.ts"
import type { PoolMetrics } from "./metrics.ts"
import type { Resolved } from "./options.ts"
import type { Action, State } from "./state.ts"

/** What a `SessionPool` holds inside. `E` includes `AcquireError`: callers of one launch share one failure. */
export interface Pool<in out K, in out A, in out E> {
  readonly state: Ref.Ref<State<K, A, E>>
  readonly options: Resolved<K, A>
  readonly lookup: (key: K) => Effect.Effect<A, E, Scope.Scope>
  /** Puts a failure of the pool itself into the error channel of its callers. */
  readonly fail: (error: AcquireError) => Cause.Cause<E>
  /**
   * Of the fiber that made the pool, so launches and closes see no caller's spans or references; with a scheduler whose yields give
   * way to the event loop, where that fiber was one of `Effect.runSync`.
   */
  readonly context: Context.Context<never>
  /**
   * Of the same fiber: every time in the state comes from the clock that the cleanup sleeps by. The pool's own fibers find
   * it in their context. Only how long a caller has waited for a place is measured by the caller's clock, which its
   * time-out runs by.
   */
  readonly clock: Clock.Clock
  /** The latest time that `timeOf` has told. */
  latest: number
  /** How far the clock has been set back since the pool was made, in milliseconds: what `timeOf` adds to it. */
  setBack: number
  readonly tracer: Tracer.Tracer
  /** Made by the first reader of `events`; in it, `undefined` is the end of the pool. */
  events: PubSub.PubSub<Event<K, E> | undefined> | undefined
  /** Its end has been told: no event comes any more. */
  hasEnded: boolean
  readonly metrics: PoolMetrics
  readonly leaks: LeakDetector<K> | undefined
  /** The fibers of the cleanup, of `keepAlive`, leak detection and validations: interrupted when the pool has closed. */
  readonly background: Scope.Closeable
  /** The last id given to a launch or an adopted session; never given again. 0 is the id of none. */
  lastId: number
  /** What steps have decided and nobody has carried out yet, in their order. */
  readonly due: Array<Action<K, A, E>>
  /** How many of `due` have been carried out. */
  done: number
  /** Somebody carries out what is due, and what is added meanwhile. */
  isActing: boolean
  /** Has the event loop call a function. */
  readonly dispatcher: Scheduler.SchedulerDispatcher
}

/**
 * The time in milliseconds; all in the state comes from here. The system's clock may be set back, by hours: then this goes on from
 * where it was. So no time to live gets longer, and no duration is negative; a step forward counts as time that has passed.
 */
export const timeOf = <K, A, E>(self: Pool<K, A, E>): number => {
  const time = self.clock.currentTimeMillisUnsafe() + self.setBack
  if (time < self.latest) self.setBack += self.latest - time
  else self.latest = time
  return self.latest
}

/**
 * Runs one step and carries out what it says, whatever happens to the caller in between. The time is read inside the
 * step: read before it, it would be old by whatever ran in between, and a touch could set `lastUsedAt` back.
 */
export const step = <R, K, A, E>(
  self: Pool<K, A, E>,
  f: (state: State<K, A, E>, now: number) => Step<R, K, A, E>
): Effect.Effect<R> => Effect.uninterruptible(stepAsIs(self, f))

/**
 * As `step`, without its mask, which the way of a `get` or a `use` would pay for. Only where nothing can interrupt (in a
 * mask, an exit handler or a finalizer); elsewhere take `step`.
 */
export const stepAsIs = <R, K, A, E>(
  self: Pool<K, A, E>,
  f: (state: State<K, A, E>, now: number) => Step<R, K, A, E>
): Effect.Effect<R> =>
  Effect.map(
    Ref.modify(self.state, (state) => f(state, timeOf(self))),
    (outcome) => perform(self, outcome)
  )

/**
 * Runs a step that finds a session and touches it: nothing is to be done after it. This `Ref.modify` is what makes the
 * two one atomic step.
 */
export const hit = <R, K, A, E>(
  self: Pool<K, A, E>,
  f: (state: State<K, A, E>, now: number) => Hit<R, K, A, E>
): Effect.Effect<R> => Ref.modify(self.state, (state) => f(state, timeOf(self)))

/**
 * Carries out the actions of a step, in order, and says what the step decided. None of them waits for anything.
 *
 * An action runs the fibers that it starts or wakes until they wait, and so their steps: what those decide is carried out after
 * it, in the order of the steps, by whoever carries out already. Each within the other, a row of waiters whose connections open and
 * close without a wait would fill the stack, and what was decided there would be lost.
 */
export const perform = <R, K, A, E>(self: Pool<K, A, E>, { actions, result }: Outcome<R, K, A, E>): R => {
  for (const action of actions) self.due.push(action)
  if (self.due.length > 0 && !self.isActing) carryOut(self)
  return result
}

/**
 * So many connections and callers may follow from a step before the event loop has its turn: callers that wake each other, or
 * whoever replaces a connection as soon as it has died, would keep it for ever.
 */
const actionsPerTurn = 1024
const counted: ReadonlyArray<Action<never, never, never>["_tag"]> = [
  "Launch",
  "Deliver",
  "Refuse",
  "Grant",
  "Open",
  "Adopt",
  "Close",
  "Reject"
]

const carryOut = <K, A, E>(self: Pool<K, A, E>): void => {
  const { due } = self
  self.isActing = true
  // Near the end of the stack any call throws a `RangeError`: `try`, and what must hold after it, are none.
  try {
    let left = actionsPerTurn + due.length
    // What is added meanwhile is met too.
    for (let action = due[self.done]; action !== undefined && left > 0; action = due[self.done]) {
      if (counted.includes(action._tag)) left--
      self.done++
      act(self, action)
    }
  } catch {
    // Its fiber has not begun, or has died and nothing could be scheduled that ends it. All else that is thrown is caught where it is.
    const failed = due[self.done - 1]?._tag
    if (failed === "Launch" || failed === "Close" || failed === "Reject") self.done--
  }
  if (self.done === due.length) {
    due.length = self.done = 0
    self.isActing = false
    return
  }
  // `try` as above: an `Effect.try` is a call too, and this one throws where the stack is full.
  try {
    self.dispatcher.scheduleTask(() => {
      due.splice(0, self.done)
      self.done = 0
      carryOut(self)
    }, 0)
  } catch {
    // Not even that: the next step goes on.
    self.isActing = false
  }
}

const act = <K, A, E>(self: Pool<K, A, E>, action: Action<K, A, E>): void => {
  switch (action._tag) {
    case "Launch": {
      const { launch } = action
      const started: Started<A, E> = { lookup: undefined }
      return forkAnyhow(self, runLaunch(self, launch, started), (cause) => failLaunch(self, launch, started, cause))
    }
    case "Cancel":
      return complete(self, action.launch.cancelled, Effect.void)
    case "Open": {
      const { session, startedAt } = action
      const duration = session.openedAt - startedAt
      self.metrics.launched(self.context, duration)
      publish(self, { _tag: "Launched", key: session.key, id: session.id, duration })
      return watch(self, session)
    }
    case "Adopt":
      self.metrics.adopted(self.context)
      publish(self, { _tag: "Adopted", key: action.session.key, id: action.session.id })
      return watch(self, action.session)
    case "Deliver":
      return complete(self, action.launch.done, Effect.succeed(action.value))
    case "TellFailed": {
      const { cause, duration, launch: { id, key }, timedOut } = action
      self.metrics.launchFailed(self.context, timedOut ? "timeout" : "failure", duration)
      return publish(self, { _tag: "LaunchFailed", key, id, duration, cause })
    }
    case "Refuse":
      return complete(self, action.launch.done, Effect.failCause(action.cause))
    case "Grant":
      return complete(self, action.granted, Effect.succeed(action.place))
    case "Retire": {
      const { reason, session } = action
      self.metrics.retired(self.context, reason)
      return publish(self, { _tag: "Retired", key: session.key, id: session.id, reason })
    }
    case "Close": {
      const close = runClose(self, action.session, action.reason)
      return forkAnyhow(self, close, () => close)
    }
    case "Reject": {
      const close = runReject(self, action.offered)
      return forkAnyhow(self, close, () => close)
    }
    case "TellClosed": {
      const { duration, exit, reason, session: { id, key } } = action
      self.metrics.closed(self.context, duration)
      return publish(self, { _tag: "Closed", key, id, reason, duration, exit })
    }
    case "End":
      return complete(self, action.ended, Effect.void)
  }
}

/**
 * Completes a deferred and wakes who waits for it: as `Deferred.doneUnsafe`, where an observer of one of those fibers that throws
 * would leave the others asleep.
 */
export const complete = <K, A, E, B, E2>(
  self: Pool<K, A, E>,
  deferred: Deferred.Deferred<B, E2>,
  effect: Effect.Effect<B, E2>
): void => {
  const waiters = deferred.resumes
  deferred.resumes = undefined
  Deferred.doneUnsafe(deferred, effect)
  if (waiters === undefined) return
  for (const resume of waiters) guard(self, () => resume(effect))
}

/** Wakes a fiber. An observer of it that throws is no fault of whoever wakes it, whose own claim it would cost. */
const guard = <K, A, E>(self: Pool<K, A, E>, wake: () => void): boolean => {
  const woken = Result.try(wake)
  if (Result.isFailure(woken)) log(self, Effect.logError("A fiber's observer threw", Cause.die(woken.failure)))
  return Result.isSuccess(woken)
}

/** In a fiber of its own: a logger that throws costs nothing else. */
export const log = <K, A, E>(self: Pool<K, A, E>, message: Effect.Effect<void>): void =>
  fork(self, Effect.annotateLogs(message, { pool: self.options.name }))

/** Starts a fiber that belongs to the pool and that nothing interrupts: a launch or a close. */
export const fork = <K, A, E>(self: Pool<K, A, E>, effect: Effect.Effect<unknown>): void => {
  Effect.runForkWith(self.context)(effect)
}

/**
 * Starts a fiber that must not die, and another one if it does: at the end of the stack, or by a service of the pool's context that
 * throws. Else callers would wait for ever, and so would the end.
 */
const forkAnyhow = <K, A, E>(
  self: Pool<K, A, E>,
  effect: Effect.Effect<unknown>,
  otherwise: (cause: Cause.Cause<never>) => Effect.Effect<unknown>
): void => {
  Effect.runForkWith(self.context)(effect).addObserver((exit) => {
    if (Exit.isFailure(exit)) self.dispatcher.scheduleTask(() => fork(self, otherwise(exit.cause)), 0)
  })
}

/** Waits for an effect, but not for longer than a number of milliseconds; `undefined`: it takes longer, and is interrupted. */
export const raceTimer = <B>(effect: Effect.Effect<B>, millis: number): Effect.Effect<B | undefined> =>
  millis === Infinity ? effect : Effect.raceAllFirst([effect, Effect.as(Effect.sleep(millis), undefined)])

/** A span of the pool's own, only if a tracer sees it: without them a launch takes 10 instead of 14.4 µs. */
export const traced = <K, A, E, B, E2, R>(
  self: Pool<K, A, E>,
  id: number,
  name: string,
  effect: Effect.Effect<B, E2, R>
): Effect.Effect<B, E2, R> =>
  self.tracer === Tracer.nativeTracer ? effect : Effect.suspend(() => {
    let begun = false
    const run = Effect.suspend(() => {
      begun = true
      return effect
    })
    const attributes = { "session_pool.name": self.options.name, "session_pool.session.id": id }
    return Effect.catchCause(
      Effect.withSpan(run, name, { attributes, captureStackTrace: false }),
      // A tracer that throws keeps no connection open.
      (cause) => begun ? Effect.failCause(cause) : run
    )
  })

/**
 * Starts a fiber that is interrupted with this scope; an uninterruptible one where its effect allows it. What must be done
 * in any case needs that: an interruption can come before the first step of the effect.
 */
export const forkIn = <K, A, E>(
  self: Pool<K, A, E>,
  effect: Effect.Effect<unknown>,
  scope: Scope.Scope,
  options?: { readonly uninterruptible: boolean }
): void => {
  Fiber.runIn(Effect.runForkWith(self.context)(effect, options), scope)
}

/** Tells the readers of `events`; a reader that is too slow loses the oldest ones, and never slows the pool. */
export const publish = <K, A, E>(self: Pool<K, A, E>, event: Event<K, E> | undefined): void => {
  const { events, hasEnded } = self
  // After the end, which a reader has to find, closes may still end that had timed out.
  if (events === undefined || hasEnded) return
  const woken = guard(self, () => {
    // A full buffer refuses the direct way; the other one makes room by dropping the oldest, and does not wait either.
    if (!PubSub.publishUnsafe(events, event)) fork(self, PubSub.publish(events, event))
  })
  if (!woken) wakeReaders(self, events)
}

/** Wakes the readers after one whose observer threw: publishing nothing does that. */
const wakeReaders = <K, A, E>(self: Pool<K, A, E>, events: PubSub.PubSub<Event<K, E> | undefined>): void =>
  fork(self, Effect.catchDefect(PubSub.publishAll(events, []), () => Effect.sync(() => wakeReaders(self, events))))
