/**
 * The shell around the state. It runs a step, and carries out the step's actions. A launch, a check and a close may outlive the caller, so
 * each runs in a fiber of its own, with the context of the pool.
 */
import type { Clock, Latch } from "effect"
import { Cause, Context, Deferred, Effect, Exit, Fiber, Ref, Scope, Tracer } from "effect"
import { LookupTimeout, SessionPoolError } from "./errors.ts"
import type { Resolved } from "./options.ts"
import type { Reports } from "./reports.ts"
import { emit, log, logDefect } from "./reports.ts"
import type { Action, Check, Launch, Leaving, Session, State } from "./state.ts"
import { Draft } from "./state.ts"
import * as Transitions from "./transitions.ts"

/** The pool behind the public `SessionPool`. The mutable fields are bookkeeping of the shell. A step decides by the state only. */
export interface Pool<in out K, in out A, in out E> {
  readonly state: Ref.Ref<State<K, A, E>>
  readonly options: Resolved<K, A>
  readonly lookup: (key: K) => Effect.Effect<A, E, Scope.Scope>
  readonly closed: ((value: A, key: K) => Effect.Effect<unknown, unknown, Scope.Scope>) | undefined
  /** The context of the fiber that made the pool, without its scope and span. So no launch or close sees a caller's services. */
  readonly context: Context.Context<never>
  readonly clock: Clock.Clock
  /** The latest time that `timeOf` returned. */
  latest: number
  /** How far the clock has been set back since the pool was made, in milliseconds. */
  setBack: number
  /** The last id given to a launch. No id is given twice. */
  lastId: number
  /** The lookups that run, by the scope of their session. A close interrupts the lookup first. */
  readonly lookups: Map<Scope.Scope, Fiber.Fiber<A, E>>
  /** Actions of steps that are not carried out yet, in order. */
  readonly due: Array<Action<K, A, E>>
  /** True while `carryOut` runs or is scheduled. */
  isActing: boolean
  /** The shortest `idleTimeToLive` of a session so far, above zero. */
  shortestIdle: number
  /** Wakes the cleanup when `shortestIdle` gets shorter. */
  readonly hasShorter: Latch.Latch
  /** The fibers of the cleanup, `keepAlive` and leak detection, until the end. */
  readonly background: Scope.Closeable
  readonly reports: Reports<K, E>
}

/**
 * The time in milliseconds, which never goes back. Every time in the state comes from here. If the clock is set back, this time goes on
 * from the last reading, so no time to live gets longer. A jump forward, as after the machine slept, counts as elapsed time.
 */
export const timeOf = <K, A, E>(self: Pool<K, A, E>): number => {
  const time = self.clock.currentTimeMillisUnsafe() + self.setBack
  if (time < self.latest) self.setBack += self.latest - time
  else self.latest = time
  return self.latest
}

// -----------------------------------------------------------------------------
// Steps
// -----------------------------------------------------------------------------

/** Runs one step, then carries out its actions. Uninterruptible, so an interruption of the caller loses no action. */
export const step = <R, K, A, E>(self: Pool<K, A, E>, change: (d: Draft<K, A, E>) => R): Effect.Effect<R> =>
  Effect.uninterruptible(
    Effect.map(
      Ref.modify(self.state, (state) => {
        const d = new Draft(state, self.options, timeOf(self))
        const result = change(d)
        return [{ result, actions: d.actions, waiting: d.state.waiters - state.waiters }, d.state]
      }),
      ({ actions, result, waiting }) => {
        if (waiting !== 0) self.reports.metrics.waiting(waiting)
        if (actions.length > 0) perform(self, actions)
        return result
      }
    )
  )

/** How many actions run before a yield to the event loop, so that synchronous connections cannot starve it. */
const actionsPerTurn = 1024

/** Queues actions, and carries them out unless `carryOut` already runs. */
const perform = <K, A, E>(self: Pool<K, A, E>, actions: ReadonlyArray<Action<K, A, E>>): void => {
  for (const action of actions) self.due.push(action)
  if (!self.isActing) carryOut(self)
}

/**
 * Carries out the queued actions. An action may itself run steps before it returns. The actions of those steps are queued, not nested, so a
 * finalizer may call the pool and the stack does not grow.
 */
const carryOut = <K, A, E>(self: Pool<K, A, E>): void => {
  self.isActing = true
  let done = 0
  // The loop also visits the actions that are queued while it runs.
  for (const action of self.due) {
    if (done === actionsPerTurn) break
    done++
    act(self, action)
  }
  self.due.splice(0, done)
  self.isActing = self.due.length > 0
  if (self.isActing) fork(self, Effect.andThen(Effect.yieldNow, Effect.sync(() => carryOut(self))))
}

const act = <K, A, E>(self: Pool<K, A, E>, action: Action<K, A, E>): void => {
  switch (action._tag) {
    case "Launch":
      return launch(self, action.launch)
    case "Watch":
      return watch(self, action.session)
    case "Check":
      return fork(self, check(self, action.session, action.check))
    case "Close":
      return fork(self, close(self, action.leaving))
    case "Complete":
      Deferred.doneUnsafe(action.deferred, action.exit)
      return
    case "Emit":
      return emit(self.reports, action.event)
  }
}

/** Runs an effect in a fiber of its own, with the context of the pool. */
const fork = <K, A, E>(self: Pool<K, A, E>, effect: Effect.Effect<unknown>): void => {
  Effect.runForkWith(self.context)(effect)
}

/** The exit of a fiber, or `undefined` if it takes longer than `millis`. */
const within = <A, E>(fiber: Fiber.Fiber<A, E>, millis: number): Effect.Effect<Exit.Exit<A, E> | undefined> => {
  const exit = fiber.pollUnsafe()
  if (exit !== undefined) return Effect.succeed(exit)
  return Effect.raceFirst(Fiber.await(fiber), Effect.as(Effect.sleep(millis), undefined))
}

/** Adds a span, if a tracer other than Effect's own is installed. Effect's own exports no spans. */
const traced = <K, A, E, B, E2, R>(
  self: Pool<K, A, E>,
  name: string,
  { id, span }: { readonly id: number; readonly span?: Tracer.AnySpan | undefined },
  effect: Effect.Effect<B, E2, R>
): Effect.Effect<B, E2, R> => {
  if (Context.get(self.context, Tracer.Tracer) === Tracer.nativeTracer) return effect
  const attributes = { "session_pool.name": self.options.name, "session_pool.session.id": id }
  const links = span === undefined ? [] : [{ span, attributes: {} }]
  return Effect.withSpan(effect, name, { attributes, links, captureStackTrace: false })
}

// -----------------------------------------------------------------------------
// Launch, watch, check, close
// -----------------------------------------------------------------------------

/** Starts the lookup synchronously, so `close` always finds its fiber in `lookups`. */
const launch = <K, A, E>(self: Pool<K, A, E>, launch: Launch<K, A, E>): void => {
  const startedAt = timeOf(self)
  const lookup = traced(self, "SessionPool.launch", launch, Effect.suspend(() => self.lookup(launch.key)))
  const fiber = Effect.runForkWith(Context.add(self.context, Scope.Scope, launch.scope))(lookup)
  self.lookups.set(launch.scope, fiber)
  fork(self, awaitLookup(self, launch, fiber, startedAt))
}

/** Waits until the lookup ends or `lookupTimeout` has passed, then runs `land`, which closes a launch that opened no session. */
const awaitLookup = Effect.fnUntraced(function*<K, A, E>(
  self: Pool<K, A, E>,
  launch: Launch<K, A, E>,
  fiber: Fiber.Fiber<A, E>,
  startedAt: number
) {
  const { lookupTimeout: limit } = self.options
  const ended = yield* within(fiber, limit)
  const timedOut = ended === undefined
  if (!timedOut) self.lookups.delete(launch.scope)
  const duration = timeOf(self) - startedAt
  const exit: Exit.Exit<A, E | SessionPoolError> = ended ??
    Exit.fail(new SessionPoolError({ reason: new LookupTimeout({ limit, waited: duration }) }))
  yield* step(self, (d) => Transitions.land(d, launch, exit, duration, timedOut))
})

/**
 * Runs `closed`, and retires the session when it completes. The close of the session interrupts this watcher but does not wait for it,
 * because the watcher may itself wait for the close.
 */
const watch = <K, A, E>(self: Pool<K, A, E>, session: Session<K, A>): void => {
  noteIdleTime(self, session.idleTimeToLive)
  const { closed } = self
  const { key, scope, value } = session
  if (closed === undefined) return
  const died = Effect.flatMap(Effect.exit(Effect.suspend(() => closed(value, key))), (exit) => {
    if (Exit.isFailure(exit) && Cause.hasDies(exit.cause)) logDefect(self.reports, "closed", exit.cause, timeOf(self))
    return step(self, (d) => Transitions.retireById(d, session, "Disconnected"))
  })
  const fiber = Effect.runForkWith(Context.add(self.context, Scope.Scope, scope))(died)
  if (fiber.pollUnsafe() !== undefined) return
  fork(self, Scope.addFinalizer(scope, Effect.sync(() => fiber.interruptUnsafe())))
}

/**
 * Tells the cleanup how long an open session may idle. An idle time of zero does not count, because the last release closes such a session.
 * If `set` put it in and no caller leased it, the next sweep closes it.
 */
const noteIdleTime = <K, A, E>(self: Pool<K, A, E>, idleTimeToLive: number): void => {
  if (idleTimeToLive === 0 || idleTimeToLive >= self.shortestIdle) return
  self.shortestIdle = idleTimeToLive
  self.hasShorter.openUnsafe()
}

/** Runs `validate`, then the step `checked`. A close of the session interrupts `validate` and waits for its end. */
const check = Effect.fnUntraced(function*<K, A, E>(self: Pool<K, A, E>, session: Session<K, A>, check: Check) {
  const { validate, validateTimeout } = self.options
  const { key, scope, value } = session
  const asked = Effect.suspend(() => validate(value, key))
  const fiber = Fiber.runIn(Effect.runForkWith(self.context)(asked), scope)
  const exit = yield* within(fiber, validateTimeout)
  if (exit === undefined) fiber.interruptUnsafe()
  else if (Exit.isFailure(exit) && Cause.hasDies(exit.cause)) {
    logDefect(self.reports, "validate", exit.cause, timeOf(self))
  }
  const isValid = exit !== undefined && Exit.isSuccess(exit) && exit.value
  yield* step(self, (d) => Transitions.checked(d, session, check, isValid))
})

/** Interrupts the lookup if it still runs, then runs the finalizers. After `closeTimeout` it frees the place, and the finalizers go on. */
const close = Effect.fnUntraced(function*<K, A, E>(self: Pool<K, A, E>, leaving: Leaving<K, A, E>) {
  const { closeTimeout } = self.options
  const { id, scope } = leaving.opening
  const warn = (...message: ReadonlyArray<string>) => log(self.reports, Effect.logWarning(...message), id)
  const startedAt = timeOf(self)
  const lookup = self.lookups.get(scope)
  self.lookups.delete(scope)
  const stopped = lookup === undefined ? Effect.void : Fiber.interrupt(lookup)
  const finalizers = traced(self, "SessionPool.close", { id }, Effect.andThen(stopped, Scope.close(scope, Exit.void)))
  const fiber = Effect.runForkWith(self.context)(finalizers)
  if ((yield* within(fiber, closeTimeout)) === undefined) {
    yield* step(self, (d) => Transitions.closed(d, leaving, closeTimeout, undefined))
    warn(
      `A session takes longer than ${closeTimeout} ms to close (closeTimeout); its place is free, its finalizers go on`
    )
  }
  const exit = yield* Fiber.await(fiber)
  yield* step(self, (d) => Transitions.closed(d, leaving, d.now - startedAt, exit))
  if (Exit.isFailure(exit)) warn("A finalizer failed while a session was closed", Cause.pretty(exit.cause))
})
