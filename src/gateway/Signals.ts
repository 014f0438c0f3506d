/**
 * What signals do to the command: the first ends it in order, the second at once. SIGHUP, a reload, is heard in `bin.ts` and
 * `CommandLine.ts`.
 */
import { Cause, Console, Duration, Effect, Exit, Queue, Runtime } from "effect"
import * as ProcessGroup from "./backends/ProcessGroup.ts"

/** Signals, as they come. */
export const of = (...names: ReadonlyArray<NodeJS.Signals>) =>
  Effect.gen(function*() {
    const queue = yield* Queue.unbounded<NodeJS.Signals>()
    const listener = (name: NodeJS.Signals) => void Queue.offerUnsafe(queue, name)
    yield* Effect.acquireRelease(
      Effect.sync(() => names.forEach((name) => process.on(name, listener))),
      () => Effect.sync(() => names.forEach((name) => process.off(name, listener)))
    )
    return queue
  })

/** In which one Ctrl-C may arrive twice: a terminal gives it to the whole group, and `npm` hands its own on to this process. */
const relayed = Duration.seconds(1)

/** The first signal is NodeRuntime's, which ends everything in order; the second ends everything. */
export const hurry = Effect.fnUntraced(function*(drainTimeout: Duration.Duration) {
  const queue = yield* of("SIGINT", "SIGTERM")
  yield* Queue.take(queue)
  const time = Duration.isFinite(drainTimeout)
    ? `up to ${Duration.toSeconds(drainTimeout)} seconds`
    : "all the time they need"
  yield* Console.error(
    `Stopping: running requests have ${time} (drainTimeout). Send the signal again to end at once.`
  )
  yield* Effect.sleep(relayed)
  yield* Queue.clear(queue)
  yield* Queue.take(queue)
  return yield* Effect.sync((): never => {
    ProcessGroup.killAll()
    return process.exit(130)
  })
})

/** What a signal has ended in order has not failed: supervisors take every other code for a fault. */
export const teardown: Runtime.Teardown = (exit, onExit) =>
  Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause) ? onExit(0) : Runtime.defaultTeardown(exit, onExit)
