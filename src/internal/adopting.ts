/** How `set` puts a connection that is open already into the pool. */
import { Clock, Deferred, Effect, Exit, Hash, Option, Scope } from "effect"
import type { Shortage } from "./draft.ts"
import { PoolClosed } from "./errors.ts"
import { jitteredLifetime } from "./launching.ts"
import type { Restore } from "./leasing.ts"
import { exceeded, waitedSince } from "./leasing.ts"
import type { Pool } from "./pool.ts"
import { step, stepAsIs } from "./pool.ts"
import type { Session } from "./state.ts"
import * as Transitions from "./transitions.ts"

/**
 * Adopts the connection, waiting for a place if need be. It is the pool's from the first moment: if it cannot be adopted
 * its finalizer runs, so that an interruption leaves no doubt about who closes it.
 */
export const set = <K, A, E>(
  self: Pool<K, A, E>,
  key: K,
  value: A,
  finalizer: Effect.Effect<unknown>
): Effect.Effect<void, E> =>
  Effect.uninterruptibleMask((restore) => {
    const scope = Scope.makeUnsafe()
    const id = ++self.lastId
    const adoption = Effect.gen(function*() {
      yield* step(self, (state) => Transitions.offer(state, self.options, id))
      yield* Scope.addFinalizer(scope, finalizer)
      const startedAt = yield* Clock.currentTimeMillis
      const hash = Hash.hash(key)
      const group = self.options.groupBy(key)
      const idleTimeToLive = self.options.idleTimeToLive(key)
      const granted = Deferred.makeUnsafe<boolean>()
      const sessionAt = (now: number, lifetime: number): Session<K, A> => ({
        id,
        key,
        hash,
        group,
        value,
        scope,
        createdAt: now,
        openedAt: now,
        expiresAt: now + lifetime,
        idleTimeToLive
      })
      const adopt = Effect.fnUntraced(function*(held: boolean, entry: Transitions.Entry | undefined) {
        const lifetime = yield* jitteredLifetime(self)
        return yield* step(self, (state, now) => {
          const fresh = entry ?? { createdAt: now, requestCount: 0, errorCount: 0 }
          return Transitions.adopt(state, self.options, sessionAt(now, lifetime), { granted, held }, fresh)
        })
      })
      let adopted = yield* adopt(false, undefined)
      if (adopted._tag === "Queued") {
        const { entry, ticket } = adopted
        const got = yield* awaitGrant(self, granted, ticket, group, restore)
        if (typeof got === "object") return yield* exceeded(self, key, got, yield* waitedSince(startedAt))
        adopted = yield* adopt(got, entry)
      }
      switch (adopted._tag) {
        case "Adopted":
          return
        case "Closed":
          return yield* Effect.failCause(self.fail(new PoolClosed({ key })))
        case "Full":
          return yield* exceeded(self, key, adopted.shortage, 0)
        case "Queued":
          // The place was handed to it, or the pool has closed.
          return yield* Effect.die(new Error("effect-session-pool: a second turn in the queue"))
      }
    })
    return Effect.onExit(adoption, (exit) =>
      Exit.isSuccess(exit)
        ? Effect.void
        : stepAsIs(self, (state) => Transitions.reject(state, { id, key, scope })))
  })

/**
 * Waits for the place, up to `acquireTimeout`; whoever does not get it leaves the queue, or returns it. False: the pool has closed;
 * a `Shortage`: the time is over.
 */
const awaitGrant = <K, A, E>(
  self: Pool<K, A, E>,
  granted: Deferred.Deferred<boolean>,
  ticket: number,
  group: unknown,
  restore: Restore
): Effect.Effect<boolean | Shortage> => {
  const { acquireTimeout } = self.options
  const place = Deferred.await(granted)
  const wait = acquireTimeout === Infinity ? Effect.asSome(place) : Effect.timeoutOption(place, acquireTimeout)
  const giveBack = step(self, (state) => Transitions.returnGrant(state, self.options, ticket, group))
  return Effect.flatMap(
    Effect.onError(restore(wait), () => giveBack),
    (got): Effect.Effect<boolean | Shortage> => Option.isSome(got) ? Effect.succeed(got.value) : giveBack
  )
}
