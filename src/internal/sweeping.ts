/**
 * The cleanup, the other passes over all sessions, the fibers that run them, and the end of the pool.
 *
 * The cleanup is one fiber. Every `cleanupInterval` it runs `sweep`: a pass that retires each session that has idled for `idleTimeToLive`
 * or has lived for `maxLifetime`, and forgets each failure older than `failureTimeToLive`. A session without leases then closes. The
 * cleanup never closes a leased session, and never waits for a close. It stops when the pool's scope closes.
 *
 * A pass walks an immutable snapshot in chunks, and yields to the event loop after each chunk. A session may be used between the snapshot
 * and its turn. So the step that retires it checks again whether it has expired.
 */
import { Deferred, Effect, Exit, Fiber, HashMap, Ref, Scope } from "effect"
import { publish, reportLeaks } from "./reports.ts"
import type { Pool } from "./shell.ts"
import { step, timeOf } from "./shell.ts"
import type { Slot } from "./state.ts"
import { openingOf } from "./state.ts"
import * as Transitions from "./transitions.ts"

/** How much work a pass does between two yields, in visits. Small, because V8 may not have compiled the first pass. */
const chunk = 256
/** The cost of a step, in visits. A step may close a session. */
const stepCost = 32

/** Visits every slot of a snapshot. `now` is the time at which the chunk began. Returns how many visits returned true. */
const forEachSlot = Effect.fnUntraced(function*<K, A, E>(
  self: Pool<K, A, E>,
  visit: (slot: Slot<K, A, E>, now: number) => Effect.Effect<boolean | void> | undefined
) {
  let work = 0
  let count = 0
  let now = timeOf(self)
  for (const slot of HashMap.values((yield* Ref.get(self.state)).slots)) {
    const effect = visit(slot, now)
    if (effect !== undefined && (yield* effect) === true) count++
    work += effect === undefined ? 1 : stepCost
    if (work >= chunk) {
      yield* Effect.yieldNow
      work = 0
      now = timeOf(self)
    }
  }
  return count
})

/** One pass of the cleanup: retires the expired sessions and forgets the expired failures. Returns how many sessions it retired. */
export const sweep = <K, A, E>(self: Pool<K, A, E>): Effect.Effect<number> =>
  forEachSlot(
    self,
    (slot, now) =>
      Transitions.isExpired(slot, now) ? step(self, (d) => Transitions.expire(d, openingOf(slot))) : undefined
  )

/**
 * Retires every session and running launch whose slot `matches`. Each gets a step of its own, which checks it again. Returns how many it
 * retired.
 */
export const invalidateAll = <K, A, E>(
  self: Pool<K, A, E>,
  matches: (slot: Slot<K, A, E>) => boolean
): Effect.Effect<number> =>
  forEachSlot(self, (slot) => {
    // A waiting launch may start during this pass, in the place of a session retired here. It is newer than the call, so it stays.
    if (slot._tag === "Waiting") return undefined
    const opening = openingOf(slot)
    return step(self, (d) =>
      Transitions.invalidate(d, opening, (present) =>
        openingOf(present).scope === opening.scope && matches(present)))
  })

/** Starts a background check of every idle session. Does not wait for the checks, so a slow one delays no other. */
const checkAllIdle = <K, A, E>(self: Pool<K, A, E>): Effect.Effect<number> =>
  forEachSlot(self, (slot) =>
    slot._tag === "Live" && slot.leases === 0
      ? step(
        self,
        (d) => Transitions.startCheck(d, slot.session, { isValid: Deferred.makeUnsafe(), isBackground: true })
      )
      : undefined)

/** Runs a pass every `interval` milliseconds, for ever. */
const everyInterval = <K, A, E>(
  self: Pool<K, A, E>,
  interval: number,
  pass: Effect.Effect<unknown>
): Effect.Effect<never> => {
  const startedAt = timeOf(self)
  // The passes start on a fixed grid, so the duration of a pass does not delay the next one.
  const wait = Effect.suspend(() => Effect.sleep(interval - ((timeOf(self) - startedAt) % interval)))
  return Effect.forever(Effect.andThen(wait, pass))
}

/** Starts the fibers of the pool; `end` stops them. */
export const start = <K, A, E>(self: Pool<K, A, E>): void => {
  const { keepAlive, leakDetection } = self.options
  const fibers = [cleanup(self)]
  if (keepAlive !== Infinity) fibers.push(everyInterval(self, keepAlive, checkAllIdle(self)))
  if (leakDetection !== Infinity) fibers.push(watchLeases(self))
  for (const fiber of fibers) Fiber.runIn(Effect.runForkWith(self.context)(fiber), self.background)
}

/** Bounds of the default of `cleanupInterval`, which is a sixth of the shortest idle time. In milliseconds. */
const longestInterval = 300_000
const shortestInterval = 1000

/** The cleanup: a sweep every interval, on a fixed grid. When a session with a shorter idle time opens, the next sweep comes sooner. */
const cleanup = <K, A, E>(self: Pool<K, A, E>): Effect.Effect<never> => {
  let sweptAt = timeOf(self)
  return Effect.forever(Effect.suspend(() => {
    const byIdleTime = Math.max(shortestInterval, Math.min(longestInterval, Math.floor(self.shortestIdle / 6)))
    const interval = self.options.cleanupInterval ?? byIdleTime
    const passed = timeOf(self) - sweptAt
    self.hasShorter.closeUnsafe()
    if (passed < interval) return Effect.raceFirst(Effect.sleep(interval - passed), self.hasShorter.await)
    sweptAt += passed - passed % interval
    return sweep(self)
  }))
}

/** Leak detection: sleeps until the oldest lease can reach the limit, then reports. */
const watchLeases = <K, A, E>(self: Pool<K, A, E>): Effect.Effect<never> =>
  Effect.forever(
    Effect.suspend(() => Effect.sleep(reportLeaks(self.reports, self.options.leakDetection, timeOf(self))))
  )

/**
 * Ends the pool. From the first step on no session launches, waiting callers fail with `PoolClosed`, and launches are cancelled. Idle
 * sessions close at once, leased ones when their last lease ends, at the latest after `drainTimeout`. Waits until every close has ended
 * or has taken longer than `closeTimeout`.
 */
export const end = Effect.fnUntraced(function*<K, A, E>(self: Pool<K, A, E>) {
  const { drainTimeout } = self.options
  const ending = Deferred.makeUnsafe<void>()
  const ended = Deferred.await(ending)
  yield* step(self, (d) => Transitions.shutdown(d, ending))
  if (drainTimeout > 0) yield* Effect.timeoutOption(ended, drainTimeout)
  yield* step(self, (d) => Transitions.forceClose(d))
  yield* ended
  yield* Scope.close(self.background, Exit.void)
  publish(self.reports, undefined)
  self.reports.hasEnded = true
})
