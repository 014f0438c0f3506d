/**
 * What runs in the background of a pool, and its end.
 *
 * Passes over all sessions walk an immutable snapshot in chunks, with a yield to the event loop after each; what they
 * find is only a candidate, and the step that retires it checks again.
 */
import { Deferred, Effect, Exit, HashMap, Ref, Scope } from "effect"
import { PoolClosed } from "./errors.ts"
import { startValidation } from "./leasing.ts"
import type { Pool } from "./pool.ts"
import { step, timeOf } from "./pool.ts"
import type { Slot, Validation } from "./state.ts"
import { keyOf } from "./state.ts"
import * as Transitions from "./transitions.ts"

/** The work of a pass between two yields, in visits. Small, because a pass may be the first to run its code. */
const chunk = 256
/** What the step of one candidate takes, its close included, where a visit takes one: so many may expire at once. */
const stepCost = 32
const probeConcurrency = 4

/**
 * Visits every slot of the present snapshot, without holding the event loop for longer than a chunk; `now` is the time at
 * which the chunk began.
 */
export const forEachSlot = Effect.fnUntraced(function*<K, A, E>(
  self: Pool<K, A, E>,
  visit: (slot: Slot<K, A, E>, now: number) => Effect.Effect<unknown> | undefined
) {
  let work = 0
  let now = timeOf(self)
  for (const slot of HashMap.values((yield* Ref.get(self.state)).slots)) {
    const effect = visit(slot, now)
    if (effect === undefined) {
      work++
    } else {
      yield* effect
      work += stepCost
    }
    if (work >= chunk) {
      yield* Effect.yieldNow
      work = 0
      now = timeOf(self)
    }
  }
})

/** One pass of the cleanup; the number of sessions retired. */
export const sweep = Effect.fnUntraced(function*<K, A, E>(self: Pool<K, A, E>) {
  let retired = 0
  yield* forEachSlot(
    self,
    (slot, now) =>
      Transitions.expiry(slot, now) === undefined ? undefined : Effect.map(
        step(self, (state, now) => Transitions.expire(state, self.options, keyOf(slot), now)),
        (expired) => {
          if (expired) retired++
        }
      )
  )
  return retired
})

/**
 * Retires every session, or those that satisfy the predicate; the number retired.
 *
 * The predicate is a user's function, which may call the pool, so it cannot run inside a step: the one place where something is
 * judged outside. `invalidateSeen` therefore retires only what is still the very slot that was judged; else it is judged again.
 */
export const invalidateAll = Effect.fnUntraced(function*<K, A, E>(
  self: Pool<K, A, E>,
  matches: (slot: Slot<K, A, E>) => boolean
) {
  let retired = 0
  /** What has become of a slot, if that is to be retired. */
  const ifMatching = (slot: Slot<K, A, E>): Slot<K, A, E> | undefined => {
    const present = presentOf(self, slot)
    // After the question too: the predicate may have changed it itself.
    return present !== undefined && matches(present) ? presentOf(self, present) : undefined
  }
  const retire = (seen: Slot<K, A, E>): Effect.Effect<void> =>
    Effect.flatMap(
      step(self, (state) => Transitions.invalidateSeen(state, self.options, keyOf(seen), seen)),
      (was) => {
        if (was === true) retired++
        const again = was === undefined ? ifMatching(seen) : undefined
        return again === undefined ? Effect.void : retire(again)
      }
    )
  yield* forEachSlot(self, (slot) => {
    // What waits for a place may get the one of a session retired here: it is newer than this call, and stays.
    const seen = slot._tag === "Waiting" ? undefined : ifMatching(slot)
    return seen === undefined ? undefined : retire(seen)
  })
  return retired
})

/** The present slot of the same session, launch or failure, as far as there is one. */
const presentOf = <K, A, E>(self: Pool<K, A, E>, slot: Slot<K, A, E>): Slot<K, A, E> | undefined => {
  const present = Transitions.slotOf(Ref.getUnsafe(self.state), keyOf(slot))
  return present !== undefined && identityOf(present) === identityOf(slot) ? present : undefined
}

const identityOf = <K, A, E>(slot: Slot<K, A, E>): unknown =>
  slot._tag === "Live" ? slot.session.id : slot._tag === "Failed" ? slot : slot.launch.id

/**
 * The cleanup: a sweep every `cleanupInterval`, on a fixed grid, whatever a sweep itself takes. `make` starts its fiber, in
 * the scope `background`; `end` below closes that scope, and so stops it.
 */
export const cleanup = <K, A, E>(self: Pool<K, A, E>): Effect.Effect<never> =>
  everyInterval(self, self.options.cleanupInterval, sweep(self))

/** Validates the idle sessions, a few at a time; those found dead are retired. */
export const keepAlive = <K, A, E>(self: Pool<K, A, E>): Effect.Effect<never> =>
  everyInterval(
    self,
    self.options.keepAlive,
    Effect.gen(function*() {
      const idle: Array<readonly [key: K, id: number]> = []
      yield* forEachSlot(self, (slot) => {
        if (slot._tag === "Live" && slot.leases === 0) idle.push([slot.session.key, slot.session.id])
        return undefined
      })
      yield* Effect.forEach(idle, ([key, id]) => probe(self, key, id), { concurrency: probeConcurrency, discard: true })
    })
  )

const probe = Effect.fnUntraced(function*<K, A, E>(self: Pool<K, A, E>, key: K, id: number) {
  const fresh: Validation = Deferred.makeUnsafe()
  const started = yield* Effect.uninterruptible(Effect.tap(
    step(self, (state) => Transitions.probe(state, self.options, key, id, fresh)),
    (started) => {
      if (started?.begin !== undefined) startValidation(self, started.begin, started.validation)
      return Effect.void
    }
  ))
  if (started !== undefined) yield* Deferred.await(started.validation)
})

const everyInterval = <K, A, E>(
  self: Pool<K, A, E>,
  interval: number,
  effect: Effect.Effect<unknown>
): Effect.Effect<never> =>
  interval === Infinity ? Effect.never : Effect.suspend(() => {
    const startedAt = timeOf(self)
    return Effect.forever(
      Effect.suspend(() =>
        Effect.andThen(
          Effect.sleep(interval - ((timeOf(self) - startedAt) % interval)),
          // A pass that dies is reported, and the next one runs on time.
          Effect.catchCause(effect, (cause) => Effect.logError("A cleanup pass of the session pool died", cause))
        )
      )
    )
  })

/**
 * Ends the pool: no new sessions from here on, waiting callers are refused, launches cancelled, idle sessions closed at
 * once and leased ones after `drainTimeout`; done when every close is over or has timed out.
 */
export const end = Effect.fnUntraced(function*<K, A, E>(self: Pool<K, A, E>) {
  const ended = Deferred.makeUnsafe<void>()
  const refusal = (key: K) => self.fail(new PoolClosed({ key }))
  yield* step(
    self,
    (state) => Transitions.shutdown(state, self.options, refusal, { _tag: "Closing", ended })
  )
  if (self.options.drainTimeout > 0) {
    const drained = Deferred.await(ended)
    yield* self.options.drainTimeout === Infinity
      ? drained
      : Effect.timeoutOption(drained, self.options.drainTimeout)
  }
  yield* step(self, (state) => Transitions.forceClose(state, self.options))
  yield* Deferred.await(ended)
  // Stops the cleanup, `keepAlive`, leak detection and whatever validation still runs.
  yield* Scope.close(self.background, Exit.void)
}, Effect.uninterruptible)
