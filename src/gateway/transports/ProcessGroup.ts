/**
 * Starts a process with its pipes in its own process group. Uses `node:child_process` directly, because `effect/process` passes
 * each chunk through a `PassThrough`, a `Stream` and a `Sink`. With `effect/process` a call cost the gateway 310 to 420 µs of
 * CPU. Without it a call costs 240 to 320 µs.
 */
import type { Duration, Scope } from "effect"
import { Deferred, Effect, Option, Predicate, Result, Schedule, Semaphore } from "effect"
import type { ChildProcessWithoutNullStreams } from "node:child_process"
import { spawn as spawnProcess } from "node:child_process"

/** How to start a process. */
export interface Command {
  readonly command: string
  readonly args: ReadonlyArray<string>
  readonly env: Readonly<Record<string, string>>
  readonly cwd: string | undefined
}

export interface ProcessGroup extends Pick<ChildProcessWithoutNullStreams, "stdin" | "stdout" | "stderr"> {
  /** The id of the process, which is also the id of its group. */
  readonly pid: number
  /** Completes with how the process ended: "with exit code 1", "by signal SIGKILL". Its children may live on. */
  readonly exit: Deferred.Deferred<string>
}

/** The groups that this gateway started and that may still have processes. */
const live = new Set<number>()

/** Kills every process that this gateway started, at once. */
export const killAll = (): void => {
  for (const pid of live) signal(pid, "SIGKILL")
}

/** How often `untilGone` asks the kernel whether a group is gone, and how long it asks after SIGKILL. */
const askAgain = Schedule.spaced("10 millis")
const killGrace = "1 second"

/**
 * Turns of the event loop between two spawns, because a spawn blocks the loop. One turn is too few: the loop accepts one
 * connection a turn, so 300 connections would wait for 300 spawns. On an idle loop 20 turns take under 1 ms.
 */
const turnsBetween = 20
const oneAtATime = Semaphore.makeUnsafe(1)

/**
 * Starts a process. Fails with the code of the system's error, such as `ENOENT`. When the scope closes, the finalizer closes the
 * stdin of the process, then sends SIGTERM to its group, then SIGKILL. It waits for `grace` between two steps.
 */
export const start = (command: Command, grace: Duration.Duration): Effect.Effect<ProcessGroup, string, Scope.Scope> =>
  Effect.andThen(
    oneAtATime.withPermit(Effect.repeat(Effect.yieldNow, { times: turnsBetween })),
    Effect.acquireRelease(spawn(command), (group) => end(group, grace))
  )

const spawn = ({ args, command, cwd, env }: Command): Effect.Effect<ProcessGroup, string> =>
  Effect.callback((resume) => {
    const started = Result.try(() =>
      spawnProcess(command, args, { env, detached: true, ...(cwd === undefined ? {} : { cwd }) })
    )
    if (Result.isFailure(started)) return resume(Effect.fail(codeOf(started.failure)))
    const child = started.success
    const exit = Deferred.makeUnsafe<string>()
    child.once("exit", (code, signal) => {
      const how = signal === null ? `with exit code ${code}` : `by signal ${signal}`
      Deferred.doneUnsafe(exit, Effect.succeed(how))
    })
    // `on`, not `once`: a running child can emit errors too, and an error without a listener ends the gateway.
    child.on("error", (error) => resume(Effect.fail(codeOf(error))))
    child.once("spawn", () => {
      const { pid, stderr, stdin, stdout } = child
      // Without an id the group would be 0, and a signal to group 0 goes to the gateway's own group.
      if (pid === undefined) return resume(Effect.fail("no process id"))
      live.add(pid)
      // Ignores errors of the pipes: a write may fail after the process has ended, when no fiber waits for it.
      for (const pipe of [stdin, stdout, stderr]) pipe.on("error", () => undefined)
      resume(Effect.succeed({ pid, stdin, stdout, stderr, exit }))
    })
  })

/** The error codes that mean a shortage of handles or memory in the gateway, not a fault of the back end. */
export const shortages = ["EMFILE", "ENFILE", "EAGAIN", "ENOMEM"]

const end = Effect.fnUntraced(function*({ exit, pid, stderr, stdin, stdout }: ProcessGroup, grace: Duration.Duration) {
  stdin.end()
  // Reads and discards the remaining output, so that a full pipe does not keep the process from ending.
  stdout.removeAllListeners("data").resume()
  yield* Effect.timeoutOption(Deferred.await(exit), grace)
  if (signal(pid, "SIGTERM")) {
    const gone = yield* Effect.timeoutOption(untilGone(pid), grace)
    if (Option.isNone(gone) && signal(pid, "SIGKILL")) yield* Effect.timeoutOption(untilGone(pid), killGrace)
  }
  // Waits without a limit. A process that waits for a disk may outlive SIGKILL for a while. Its session is not closed until the
  // process is gone; meanwhile the pool's `closeTimeout` frees the session's place.
  yield* Deferred.await(exit)
  live.delete(pid)
  // A child that has left the group may hold the other ends of the pipes open.
  stdin.destroy()
  stdout.destroy()
  stderr.destroy()
})

const untilGone = (pid: number) =>
  Effect.repeat(Effect.sync(() => !signal(pid, 0)), { until: (gone) => gone, schedule: askAgain })

/** Sends a signal to a group. False if the group is empty. */
const signal = (pid: number, name: NodeJS.Signals | 0): boolean =>
  Option.isSome(Option.liftThrowable(() => process.kill(-pid, name))())

/** The code of a system's error, or of its cause. Empty if neither has one. */
export const codeOf = (error: unknown): string =>
  Predicate.hasProperty(error, "code")
    ? String(error.code)
    : Predicate.hasProperty(error, "cause")
    ? codeOf(error.cause)
    : ""
