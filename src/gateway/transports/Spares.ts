/** Processes started in advance. Each serves one session only; then another starts in its place. */
import { Deferred, Effect, Exit, Latch, Scope } from "effect"
import type { BackendFailed, Transport } from "./Transport.ts"

export interface Spares {
  /** Takes a spare process, or starts one if none is ready. The process ends with the scope. */
  readonly take: Effect.Effect<Transport, BackendFailed, Scope.Scope>
  readonly size: () => number
}

/**
 * The wait after a spare was taken before another one starts. A start blocks the event loop for some milliseconds and occupies a
 * core for a while, which would delay the first answer of the taken spare. A loaded spare answers within this time.
 */
const replaceAfter = "100 millis"

/** The wait after a failed start, or after a spare that ended unused. */
const retryAfter = "10 seconds"

interface Spare {
  readonly process: Transport
  readonly scope: Scope.Closeable
}

const close = (spare: Spare) => Scope.close(spare.scope, Exit.void)

/**
 * Keeps `count` processes ready until the scope closes. Spares that died unused close in `processes`, a scope that must outlive
 * this one. Each start of a spare waits for a `turn`. `take` does not wait for one, because its caller has waited already.
 *
 * One function of more than sixty lines, because `add`, `take`, `bury` and the finalizer share one question over one set: which of
 * them owns a process and closes it.
 */
export const make = Effect.fnUntraced(function*(
  count: number,
  start: Effect.Effect<Transport, BackendFailed, Scope.Scope>,
  processes: Scope.Scope,
  turn: Effect.Effect<void, never, Scope.Scope>
) {
  const ready = new Set<Spare>()
  const missing = yield* Latch.make(false)
  /** Closes a spare that died. In the caller's fiber if `processes` is closed, because a closed scope takes no new fiber. */
  const bury = (spare: Spare) =>
    Effect.suspend(() =>
      processes.state._tag === "Closed"
        ? close(spare)
        : Effect.forkIn(close(spare), processes, { startImmediately: true })
    )

  const add = Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
    // Not a child of `processes`, which would close its children one after the other, and before their sessions. The scope always
    // has one owner that closes it: this effect, then the finalizer below, then `take`'s caller or `bury`.
    const scope = Scope.makeUnsafe()
    const process = yield* Effect.onError(
      restore(Scope.provide(start, scope)),
      (cause) => Scope.close(scope, Exit.failCause(cause))
    )
    const spare = { process, scope }
    ready.add(spare)
    // A spare that dies unused is replaced after `retryAfter`, so a crashing server does not cause a busy loop.
    yield* Effect.forkIn(
      Effect.gen(function*() {
        const { message } = yield* Deferred.await(process.ended)
        if (!ready.delete(spare)) return
        yield* Effect.logWarning(
          `A spare process ended before a session used it; another starts in ${retryAfter}. Reason: ${message}`
        )
        yield* Effect.forkIn(Effect.andThen(Effect.sleep(retryAfter), missing.open), processes)
        yield* bury(spare)
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
    yield* Effect.forkScoped(keepFull(() => ready.size >= count, Effect.andThen(turn, add), missing))
  }

  const take = Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
    for (const spare of ready) {
      ready.delete(spare)
      yield* missing.open
      if (Deferred.isDoneUnsafe(spare.process.ended)) {
        yield* bury(spare)
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

/** Starts spares until there are enough, and again each time that `missing` opens. */
const keepFull = (
  isFull: () => boolean,
  add: Effect.Effect<void, BackendFailed, Scope.Scope>,
  missing: Latch.Latch
) => {
  const fill = Effect.gen(function*() {
    while (!isFull()) {
      const exit = yield* Effect.exit(add)
      if (Exit.isSuccess(exit)) continue
      yield* Effect.logWarning(`A spare process did not start; the gateway tries again in ${retryAfter}`, exit.cause)
      yield* Effect.sleep(retryAfter)
    }
  })
  const nextMissing = Effect.andThen(missing.await, missing.close)
  const replace = Effect.andThen(nextMissing, Effect.andThen(Effect.sleep(replaceAfter), fill))
  return Effect.andThen(fill, Effect.forever(replace))
}
