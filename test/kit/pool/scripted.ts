/** A pool whose connections open and close as the test tells them, and its callers. */
import { Effect, Exit, Scope } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../../../src/index.ts"
import * as Backend from "./backend.ts"
import { fork } from "./fork.ts"

export type Pool<E = never> = SessionPool.SessionPool<string, Backend.Connection, E>

export interface Options<E = never>
  extends Omit<SessionPool.Options<string, Backend.Connection, E, Scope.Scope>, "lookup">
{
  /** Runs at the end of each lookup, with the connection open. */
  readonly opening?: (key: string) => Effect.Effect<unknown, E>
  /** Runs before the connection counts as closed. */
  readonly closing?: (key: string) => Effect.Effect<unknown>
}

export const make = <E = never>({ closing, opening, ...options }: Options<E> = {}) =>
  Effect.gen(function*() {
    const backend = Backend.make()
    let isOver = false
    const pool: Pool<E> = yield* SessionPool.make({
      ...options,
      lookup: (key: string) =>
        Effect.tap(backend.open(key), () =>
          Effect.andThen(
            closing === undefined ? Effect.void : Effect.addFinalizer(() => isOver ? Effect.void : closing(key)),
            opening === undefined ? Effect.void : opening(key)
          ))
    })
    // After the test no one moves the clock, so closes that still sleep would hang.
    yield* Effect.addFinalizer(() =>
      Effect.suspend(() => {
        isOver = true
        return TestClock.adjust("1 hour")
      })
    )
    return { backend, pool }
  })

/** Leases a session, and releases it at once. */
export const visit = <E>(pool: Pool<E>, key: string) => SessionPool.use(pool, key, Effect.succeed)

/** Runs `visit` in a fiber of its own. */
export const ask = <E>(pool: Pool<E>, key: string) => fork(visit(pool, key))

/** Leases a session until `release` runs. */
export const hold = Effect.fnUntraced(function*<E>(pool: Pool<E>, key: string) {
  const scope = yield* Scope.make()
  const value = yield* Scope.provide(SessionPool.get(pool, key), scope)
  return { value, release: Scope.close(scope, Exit.void) }
})

/** The reason of the error with which the pool refuses a call. */
export const refusal = <A>(call: Effect.Effect<A, SessionPool.SessionPoolError>) =>
  Effect.map(Effect.flip(call), ({ reason }) => reason)

export const keysOf = (connections: ReadonlyArray<Backend.Connection>) => connections.map(({ key }) => key)
