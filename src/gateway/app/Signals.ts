/**
 * How signals stop the command: the first SIGINT or SIGTERM stops it in order, the second at once. SIGHUP asks for a reload; see
 * `bin.ts` and `reloads` in `CommandLine.ts`.
 */
import { Cause, Console, Duration, Effect, Exit, Queue, Runtime } from "effect"
import * as ProcessGroup from "../transports/ProcessGroup.ts"

/** A queue of the signals with these names. */
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

/**
 * A second signal within this time does not count, because one Ctrl-C may arrive twice: the terminal sends it to the whole
 * process group, and `npm` forwards it to this process.
 */
const relayed = Duration.seconds(1)

/** `NodeRuntime` handles the first signal and stops everything in order. At the second, this kills all processes and exits. */
export const hurry = Effect.fnUntraced(function*(drainTimeout: Duration.Duration) {
  const queue = yield* of("SIGINT", "SIGTERM")
  yield* Queue.take(queue)
  const time = Duration.isFinite(drainTimeout)
    ? `up to ${Duration.toSeconds(drainTimeout)} seconds`
    : "unlimited time"
  yield* Console.error(
    `Stopping: running requests have ${time} (drainTimeout). Send the signal again to stop at once.`
  )
  yield* Effect.sleep(relayed)
  yield* Queue.clear(queue)
  yield* Queue.take(queue)
  return yield* Effect.sync((): never => {
    ProcessGroup.killAll()
    return process.exit(130)
  })
})

/** Exits with 0 after a signal. Supervisors read every other code as a failure. */
export const teardown: Runtime.Teardown = (exit, onExit) =>
  Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause) ? onExit(0) : Runtime.defaultTeardown(exit, onExit)
