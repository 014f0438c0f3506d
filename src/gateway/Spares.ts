/** Started processes that nobody uses yet: each is given to one session only, and another is started in its place. */
import { Deferred, Effect, Exit, Latch, Scope } from "effect"
import type { BackendFailed } from "./GatewayErrors.ts"
import type { Transport } from "./Transport.ts"

export interface Spares {
  /** A spare process, or a new one; it ends with the scope. */
  readonly take: Effect.Effect<Transport, BackendFailed, Scope.Scope>
  readonly size: () => number
}

/**
 * How long after a spare was taken another is started: the start of a process stops the gateway for some milliseconds and
 * takes a core for a while, and whoever took the spare is still waiting for the first answer.
 */
const replaceAfter = "100 millis"

/** How long to wait after a process that did not start. */
const retryAfter = "10 seconds"

/**
 * Keeps `count` processes ready until the scope closes. Processes that were taken live in `processes`, which must outlive
 * both.
 */
export const make = Effect.fnUntraced(function*(
  count: number,
  start: Effect.Effect<Transport, BackendFailed, Scope.Scope>,
  processes: Scope.Scope
) {
  interface Spare {
    readonly process: Transport
    readonly scope: Scope.Closeable
  }
  const ready = new Set<Spare>()
  const missing = yield* Latch.make(true)
  const close = (spare: Spare) => Scope.close(spare.scope, Exit.void)

  const add = Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
    const scope = yield* Scope.fork(processes)
    const process = yield* Effect.onError(
      restore(Scope.provide(start, scope)),
      (cause) => Scope.close(scope, Exit.failCause(cause))
    )
    const spare = { process, scope }
    ready.add(spare)
    // One that dies unused makes room for another, but not in a busy loop.
    yield* Effect.forkIn(
      Effect.gen(function*() {
        yield* Deferred.await(process.ended)
        if (!ready.delete(spare)) return
        yield* Effect.logWarning("A spare process ended before it was used")
        yield* Effect.forkIn(
          Effect.andThen(close(spare), Effect.andThen(Effect.sleep(retryAfter), missing.open)),
          processes
        )
      }),
      scope
    )
  }))

  if (count > 0) {
    yield* Effect.addFinalizer(() =>
      Effect.suspend(() => {
        const unused = [...ready]
        ready.clear()
        return Effect.forEach(unused, close, { concurrency: "unbounded", discard: true })
      })
    )
    let started = false
    yield* Effect.forkScoped(Effect.forever(Effect.gen(function*() {
      yield* missing.await
      yield* missing.close
      if (started) yield* Effect.sleep(replaceAfter)
      started = true
      while (ready.size < count) {
        const exit = yield* Effect.exit(add)
        if (Exit.isSuccess(exit)) continue
        yield* Effect.logWarning("A spare process did not start", exit.cause)
        yield* Effect.sleep(retryAfter)
      }
    })))
  }

  const take = Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
    for (const spare of ready) {
      ready.delete(spare)
      yield* missing.open
      if (Deferred.isDoneUnsafe(spare.process.ended)) {
        yield* Effect.forkIn(close(spare), processes)
        continue
      }
      yield* Effect.addFinalizer(() => close(spare))
      return spare.process
    }
    return yield* restore(start)
  }))

  const spares: Spares = { take, size: () => ready.size }
  return spares
})
