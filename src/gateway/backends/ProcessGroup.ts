/**
 * A process with its pipes, in a process group of its own, on `node:child_process` directly: `effect/process` takes each
 * chunk through a `PassThrough`, a `Stream` and a `Sink`. With them a call cost the gateway 310 to 420 µs of CPU, this way
 * 240 to 320.
 */
import type { Duration, Scope } from "effect"
import { Deferred, Effect, Option, Predicate, Result, Schedule, Semaphore } from "effect"
import type { ChildProcessWithoutNullStreams } from "node:child_process"
import { spawn as spawnProcess } from "node:child_process"
import { closeSync, openSync } from "node:fs"
import { devNull } from "node:os"
import * as Programs from "./Programs.ts"

/** How to start a process. */
export interface Command {
  readonly command: string
  readonly args: ReadonlyArray<string>
  readonly env: Readonly<Record<string, string>>
  readonly cwd: string | undefined
}

export interface ProcessGroup {
  /** Of the process, and so of its group. */
  readonly pid: number
  readonly stdin: ChildProcessWithoutNullStreams["stdin"]
  readonly stdout: ChildProcessWithoutNullStreams["stdout"]
  readonly stderr: ChildProcessWithoutNullStreams["stderr"]
  /** How the process ended: "with exit code 1", "by signal SIGKILL". What it started may live on. */
  readonly exit: Deferred.Deferred<string>
}

/** The groups that were started here and are not known to be gone. */
const live = new Set<number>()

/** Kills every process that was started here: for who must end them at once. */
export const killAll = (): void => {
  for (const pid of live) signal(pid, "SIGKILL")
}

/** How often the kernel is asked whether a group is gone, and how long after SIGKILL. */
const askAgain = Schedule.spaced("10 millis")
const killGrace = "1 second"

/**
 * A spawn blocks the event loop, so 20 turns run between two. One is too few: the loop accepts one connection a turn, so 300
 * connections would wait for 300 spawns. When idle, 20 turns take under 1 ms.
 */
const turnsBetween = 20
const oneAtATime = Semaphore.makeUnsafe(1)

/**
 * Starts a process, which fails with the code of the system's error, such as `ENOENT`. When the scope closes its stdin is
 * closed, then its group gets SIGTERM, then SIGKILL, `grace` apart.
 */
export const start = (command: Command, grace: Duration.Duration): Effect.Effect<ProcessGroup, string, Scope.Scope> =>
  Effect.andThen(
    oneAtATime.withPermit(Effect.repeat(Effect.yieldNow, { times: turnsBetween })),
    Effect.acquireRelease(spawn(command), (group) => end(group, grace))
  )

const spawn = ({ args, command, cwd, env }: Command): Effect.Effect<ProcessGroup, string> =>
  Effect.callback((resume) => {
    // Directly before the spawn, in the same turn of the event loop: between two turns other starts take handles.
    const shortage = shortageOfHandles()
    if (shortage !== undefined) return resume(Effect.fail(shortage))
    const started = Result.try(() => {
      const { file, windowsVerbatimArguments, ...rest } = Programs.spawnable(command, args, cwd, Programs.here(env))
      return spawnProcess(file, rest.args, {
        env,
        windowsVerbatimArguments,
        windowsHide: true,
        // On Windows there are no groups, and it would open a window.
        detached: !Programs.isWindows,
        ...(cwd === undefined ? {} : { cwd })
      })
    })
    if (Result.isFailure(started)) return resume(Effect.fail(codeOf(started.failure)))
    const child = started.success
    const exit = Deferred.makeUnsafe<string>()
    child.once("exit", (code, signal) => {
      const how = signal === null ? `with exit code ${code}` : `by signal ${signal}`
      Deferred.doneUnsafe(exit, Effect.succeed(how))
    })
    // Not `once`: there are errors of a child that runs as well, and one that nobody listens for ends the gateway.
    child.on("error", (error) => resume(Effect.fail(codeOf(error))))
    child.once("spawn", () => {
      const { pid, stderr, stdin, stdout } = child
      // A signal to "group 0" is one to the gateway's own.
      if (pid === undefined) return resume(Effect.fail("no process id"))
      live.add(pid)
      // A write may fail after the process has gone, and nobody waits for it then.
      for (const pipe of [stdin, stdout, stderr]) pipe.on("error", () => undefined)
      resume(Effect.succeed({ pid, stdin, stdout, stderr, exit }))
    })
  })

/** The codes of errors that tell of the gateway's own need, not of a fault of the back end. */
export const shortages = ["EMFILE", "ENFILE", "EAGAIN", "ENOMEM"]

/** More than the pipes of a process, and what the spawn itself takes for a moment. */
const handlesOfStart = 16

/**
 * Says why no process should be started now: there are not enough handles. Node never gives back the pipes of a spawn that
 * fails in the middle for want of them, so none is begun that would; each would cost three for ever.
 */
const shortageOfHandles = (): string | undefined => {
  const opened: Array<number> = []
  let shortage: string | undefined
  while (opened.length < handlesOfStart && shortage === undefined) {
    const handle = Result.try(() => openSync(devNull, "r"))
    if (Result.isSuccess(handle)) opened.push(handle.success)
    else shortage = codeOf(handle.failure)
  }
  opened.forEach((handle) => closeSync(handle))
  // Whatever else keeps it from being opened says nothing of handles.
  return shortage !== undefined && shortages.includes(shortage) ? shortage : undefined
}

const end = Effect.fnUntraced(function*({ exit, pid, stderr, stdin, stdout }: ProcessGroup, grace: Duration.Duration) {
  stdin.end()
  // What it still says is read and forgotten: nothing keeps it from leaving.
  stdout.removeAllListeners("data").resume()
  yield* Effect.timeoutOption(Deferred.await(exit), grace)
  if (signal(pid, "SIGTERM")) {
    const gone = yield* Effect.timeoutOption(untilGone(pid), grace)
    if (Option.isNone(gone) && signal(pid, "SIGKILL")) yield* Effect.timeoutOption(untilGone(pid), killGrace)
  }
  // Without a limit: what not even SIGKILL ends at once (it waits for a disk, say) is still there, and a session of its back
  // end that is not closed; then the pool's `closeTimeout` frees its place.
  yield* Deferred.await(exit)
  live.delete(pid)
  // A process that has left its group may hold the other ends.
  stdin.destroy()
  stdout.destroy()
  stderr.destroy()
})

const untilGone = (pid: number) =>
  Effect.repeat(Effect.sync(() => !signal(pid, 0)), { until: (gone) => gone, schedule: askAgain })

/** Sends a signal to a group; false if there is nobody left in it. On Windows every signal ends the process and its children. */
const signal = (pid: number, name: NodeJS.Signals | 0): boolean => {
  const exists = Option.isSome(Option.liftThrowable(() => process.kill(Programs.isWindows ? pid : -pid, asks(name)))())
  if (Programs.isWindows && exists && name !== 0) {
    spawnProcess("taskkill", ["/pid", String(pid), "/T", "/F"], { stdio: "ignore", windowsHide: true })
      .on("error", () => undefined)
  }
  return exists
}

/** A signal to one process would end it without its children, which could not be found then. */
const asks = (name: NodeJS.Signals | 0): NodeJS.Signals | 0 => Programs.isWindows ? 0 : name

/** The code of a system's error, or of what caused it. */
export const codeOf = (error: unknown): string =>
  Predicate.hasProperty(error, "code")
    ? String(error.code)
    : Predicate.hasProperty(error, "cause")
    ? codeOf(error.cause)
    : ""
