/** Started processes that nobody uses yet: each is given to one session only, and another is started in its place. */
import { Deferred, Effect, Exit, Latch, Scope } from "effect"
import type { BackendFailed } from "../GatewayErrors.ts"
import type { Transport } from "./Transport.ts"

export interface Spares {
  /** A spare process, or a new one; it ends with the scope. */
  readonly take: Effect.Effect<Transport, BackendFailed, Scope.Scope>
  readonly size: () => number
}

/**
 * How long after a spare was taken another is started: the start of a process stops the gateway for some milliseconds and
 * takes a core for a while, and whoever took the spare is still waiting for the first answer. When that comes is not known
 * here; a spare that has loaded answers within this time.
 */
const replaceAfter = "100 millis"

/** How long to wait after a process that did not start. */
const retryAfter = "10 seconds"

/**
 * Keeps `count` processes ready until the scope closes. Those that died unused are closed in `processes`, which must outlive
 * it. Each start of a spare waits for a `turn`. `take` does not: its caller waited.
 *
 * One function of more than sixty lines, because the question is always who owns a process and closes it: who adds it, who takes
 * it, who buries it and the finalizer answer it together, over one set.
 */
export const make = Effect.fnUntraced(function*(
  count: number,
  start: Effect.Effect<Transport, BackendFailed, Scope.Scope>,
  processes: Scope.Scope,
  turn: Effect.Effect<void, never, Scope.Scope>
) {
  interface Spare {
    readonly process: Transport
    readonly scope: Scope.Closeable
  }
  const ready = new Set<Spare>()
  const missing = yield* Latch.make(false)
  const close = (spare: Spare) => Scope.close(spare.scope, Exit.void)
  /** Closes one that died. A scope that closes takes no new fiber, but waits for those that it has. */
  const bury = (spare: Spare) =>
    Effect.suspend(() =>
      processes.state._tag === "Closed"
        ? close(spare)
        : Effect.forkIn(close(spare), processes, { startImmediately: true })
    )

  const add = Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
    // On purpose no child of `processes`, which would close its children one after the other, and before their sessions. It
    // always has one owner that closes it: this effect, then the finalizer below, then whoever took it or buries it.
    const scope = Scope.makeUnsafe()
    const process = yield* Effect.onError(
      restore(Scope.provide(start, scope)),
      (cause) => Scope.close(scope, Exit.failCause(cause))
    )
    const spare = { process, scope }
    ready.add(spare)
    // One that dies unused makes room for another, but not in a busy loop.
    yield* Effect.forkIn(
      Effect.gen(function*() {
        const { message } = yield* Deferred.await(process.ended)
        if (!ready.delete(spare)) return
        yield* Effect.logWarning(
          `A spare process ended before it was used; another is started in ${retryAfter}. Why it ended: ${message}`
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
    const fill = Effect.gen(function*() {
      while (ready.size < count) {
        const exit = yield* Effect.exit(Effect.andThen(turn, add))
        if (Exit.isSuccess(exit)) continue
        yield* Effect.logWarning(`A spare process did not start; it is tried again in ${retryAfter}`, exit.cause)
        yield* Effect.sleep(retryAfter)
      }
    })
    const replace = Effect.andThen(
      Effect.andThen(missing.await, missing.close),
      Effect.andThen(Effect.sleep(replaceAfter), fill)
    )
    yield* Effect.forkScoped(Effect.andThen(fill, Effect.forever(replace)))
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
