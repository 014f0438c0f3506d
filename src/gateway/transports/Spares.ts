/** Processes started in advance. Each serves one session only; then another starts in its place. */
import { Deferred, Effect, Exit, Schedule, Scope, Semaphore } from "effect"
import type { BackendFailed, Transport } from "./Transport.ts"

export type Spares = Effect.Success<ReturnType<typeof make>>

/**
 * The wait after a spare was taken before another one starts. A start blocks the event loop for some milliseconds and occupies a
 * core for a while, which would delay the first answer of the taken spare. A loaded spare answers within this time.
 */
const replaceAfter = "100 millis"

/** The wait after a failed start, or after a spare that ended unused. A crashing server would cause a busy loop without it. */
const retryAfter = "10 seconds"

interface Spare {
  readonly process: Transport
  readonly scope: Scope.Closeable
  readonly taken: Deferred.Deferred<void>
}

/**
 * Keeps `count` processes ready until the scope closes. Each start of a spare waits for a `turn`. `take` does not wait for one,
 * because its caller has waited already.
 */
export const make = Effect.fnUntraced(function*(
  count: number,
  start: Effect.Effect<Transport, BackendFailed, Scope.Scope>,
  turn: Effect.Effect<void, never, Scope.Scope>
) {
  // The caller that removes a spare from this set closes its scope.
  const ready = new Set<Spare>()
  const close = ({ scope }: Spare) => Scope.close(scope, Exit.void)
  /** Closes a spare that no session has taken. False if a session has taken it. */
  const closeUnused = (spare: Spare) =>
    Effect.uninterruptible(
      Effect.suspend(() => ready.delete(spare) ? Effect.as(close(spare), true) : Effect.succeed(false))
    )
  yield* Effect.addFinalizer(() => Effect.forEach([...ready], closeUnused, { concurrency: "unbounded", discard: true }))

  const add = Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
    yield* restore(turn)
    const scope = Scope.makeUnsafe()
    const process = yield* Effect.onError(
      restore(Scope.provide(start, scope)),
      (cause) => Scope.close(scope, Exit.failCause(cause))
    )
    const spare: Spare = { process, scope, taken: Deferred.makeUnsafe() }
    ready.add(spare)
    return spare
  }))
  const retried = add.pipe(
    Effect.tapError((error) =>
      Effect.logWarning(`A spare process did not start; the gateway tries again in ${retryAfter}`, error)
    ),
    Effect.retry(Schedule.spaced(retryAfter))
  )
  const oneAtATime = Semaphore.makeUnsafe(1)
  /** Keeps one spare ready, until a session takes it or it ends. */
  const keepOne = Effect.gen(function*() {
    const spare = yield* oneAtATime.withPermit(retried)
    const { ended } = spare.process
    yield* Effect.raceFirst(Deferred.await(spare.taken), Deferred.await(ended))
    if (!(yield* closeUnused(spare))) return yield* Effect.sleep(replaceAfter)
    const { message } = yield* Deferred.await(ended)
    yield* Effect.logWarning(
      `A spare process ended before a session used it; another starts in ${retryAfter}. Reason: ${message}`
    )
    yield* Effect.sleep(retryAfter)
  })
  for (let kept = 0; kept < count; kept++) yield* Effect.forkScoped(Effect.forever(keepOne))

  /** Takes a spare process, or starts one if none is ready. The process ends with the scope. */
  const take = Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
    const spare = [...ready].find(({ process }) => !Deferred.isDoneUnsafe(process.ended))
    if (spare === undefined) return yield* restore(start)
    ready.delete(spare)
    yield* Deferred.succeed(spare.taken, undefined)
    yield* Effect.addFinalizer(() => close(spare))
    return spare.process
  }))

  return { take, size: () => ready.size }
})
