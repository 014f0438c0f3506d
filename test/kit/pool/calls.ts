/** Pools and calls that many tests share. */
import type { Scope as ScopeType } from "effect"
import { Effect, Exit, Scope, Stream } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../../../src/index.ts"
import * as Backend from "./backend.ts"

export { fork } from "./fork.ts"

export type Options = Partial<SessionPool.Options<string, Backend.Connection, never, ScopeType.Scope>>

/** A pool on a counting back end. */
export const makePool = Effect.fnUntraced(function*(options: Options = {}) {
  const backend = Backend.make()
  const pool = yield* SessionPool.make({ lookup: backend.open, ...options })
  return { backend, pool }
})

/** Leases a session, and releases it at once. */
export const visit = <K, A, E>(pool: SessionPool.SessionPool<K, A, E>, key: K) =>
  Effect.scoped(SessionPool.get(pool, key))

/** Leases a session until `release` runs. */
export const hold = Effect.fnUntraced(function*<K, A, E>(pool: SessionPool.SessionPool<K, A, E>, key: K) {
  const scope = yield* Scope.make()
  const value = yield* Scope.provide(SessionPool.get(pool, key), scope)
  return { value, release: Scope.close(scope, Exit.void) }
})

/** Collects all events from now on. */
export const listen = Effect.fnUntraced(function*<K, A, E>(pool: SessionPool.SessionPool<K, A, E>) {
  const seen: Array<SessionPool.Event<K, unknown>> = []
  yield* Effect.forkScoped(
    Stream.runForEach(SessionPool.events(pool), (event) => Effect.sync(() => seen.push(event))),
    { startImmediately: true }
  )
  yield* TestClock.adjust(0)
  return seen
})

/** Gives other fibers this many turns. */
export const turns = (count: number) =>
  Effect.forEach(Array.from({ length: count }), () => Effect.yieldNow, { discard: true })

export const keysOf = (connections: ReadonlyArray<Backend.Connection>) => connections.map(({ key }) => key)

export const idsOf = (connections: ReadonlyArray<Backend.Connection>) => connections.map(({ id }) => id)

/** What the pool holds now. */
export const held = Effect.fnUntraced(function*<K, A, E>(pool: SessionPool.SessionPool<K, A, E>) {
  const { active, idle, launching, retired, waiting } = yield* SessionPool.stats(pool)
  return { active, idle, launching, retired, waiting }
})

export const nothing = { active: 0, idle: 0, launching: 0, retired: 0, waiting: 0 }
