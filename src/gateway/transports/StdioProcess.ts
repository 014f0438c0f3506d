/**
 * One back-end process on stdio as a `Transport`.
 *
 * The process ends with its scope. The gateway first closes its stdin, so that a well-behaved server can exit by itself. After
 * `closeGrace` the process group gets SIGTERM, and after another `closeGrace` SIGKILL. The whole group gets the signals, so that
 * wrappers (`npx`, `sh -c`) leave no process behind.
 */
import type { Context, Scope } from "effect"
import { Cause, Deferred, Duration, Effect, Fiber, Latch, Record, Result } from "effect"
import type { Readable } from "node:stream"
import { finished } from "node:stream"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import type { BackendSettings } from "../settings/Settings.ts"
import * as Lines from "./Lines.ts"
import * as ProcessGroup from "./ProcessGroup.ts"
import * as Stderr from "./Stderr.ts"
import type { Receiver, Transport } from "./Transport.ts"
import { BackendFailed, deliver } from "./Transport.ts"

type Limits = Pick<BackendSettings, "closeGrace" | "maxLineBytes" | "stderrLevel" | "writeTimeout">

/** The variables of the gateway that a child gets. None of them is a key. */
const safeNames = /^(PATH|HOME|LANG|LC_.*|TMPDIR|USER|LOGNAME|SHELL|TZ|TERM)$/

/** Starts the process, which lives until the scope closes. It gets the safe part of `environment`, the gateway's environment. */
export const start = Effect.fnUntraced(function*(
  command: ProcessGroup.Command,
  environment: Readonly<Record<string, string | undefined>>,
  limits: Limits,
  mask: (text: string) => string
): Effect.fn.Return<Transport, BackendFailed, Scope.Scope> {
  const ended = Deferred.makeUnsafe<BackendFailed>()
  const stderr = Stderr.make(mask, limits.stderrLevel)
  const failed = (reason: string, more: Pick<BackendFailed, "ended" | "shortage"> = {}) =>
    new BackendFailed({ reason, stderr: stderr.text(), ...more })
  const safe = Record.filter(environment, (value, name): value is string => value !== undefined && safeNames.test(name))
  const group = yield* Effect.mapError(
    ProcessGroup.start({ ...command, env: { ...safe, ...command.env } }, limits.closeGrace),
    (code) => {
      const what = `the back end "${mask(command.command)}" could not be started`
      return ProcessGroup.shortages.includes(code)
        ? failed(`${what}: the gateway is short of handles or memory (${code})`, { shortage: true })
        : failed(`${what} (${code})${remedies[code] ?? ""}`)
    }
  )
  group.stderr.on("data", stderr.push).once("end", stderr.end)
  const scope = yield* Effect.scope
  const run = Effect.runForkWith(yield* Effect.context<never>())
  const fork: Fork = (effect) => void Fiber.runIn(run(effect), scope)
  const fail: Fail = (reason, how) => Deferred.doneUnsafe(ended, Effect.succeed(failed(reason, { ended: how })))
  const output = reader(group.stdout, limits.maxLineBytes, fork, fail)
  watchEnd(group, output, fork, fail)
  const unread = Effect.sync(() =>
    fail(`the back end has not read its stdin for ${Duration.format(limits.writeTimeout)}`)
  )
  const { stdin } = group
  /** Completes when the process has read the message, or has closed its stdin. */
  const written = (message: JsonRpc.Message) =>
    Effect.callback<void>((resume) => void stdin.write(JsonRpc.toLine(message), () => resume(Effect.void)))
  return {
    pid: group.pid,
    ended,
    failed: (reason) => failed(reason),
    offer: (message) => {
      if (stdin.writableNeedDrain) return false
      stdin.write(JsonRpc.toLine(message))
      return true
    },
    attach: (to) =>
      Effect.contextWith((context: Context.Context<never>) =>
        Effect.sync(() => {
          // Logs with the annotations of the session that takes this process. A spare has no session before.
          const runFor = Effect.runForkWith(context)
          stderr.logWith((effect) => void Fiber.runIn(runFor(effect), scope))
          output.attach(to)
        })
      ),
    send: (message) =>
      Effect.raceFirst(written(message), Deferred.await(ended)).pipe(
        Effect.timeoutOrElse({ duration: limits.writeTimeout, orElse: () => unread }),
        Effect.asVoid
      )
  }
})

type Fork = (effect: Effect.Effect<unknown>) => void
type Fail = (reason: string, how?: BackendFailed["ended"]) => void

/** Advice about a system error at the start of a command. */
const remedies: Readonly<Record<string, string>> = {
  ENOENT: ": install the program, or correct its path; its interpreter and its `cwd` must exist too",
  EACCES: ": the gateway's user may not run it; make a script executable, or name its interpreter as the program"
}

/** Calls `fail` when the process ends, or when it closes a pipe and lives on. */
const watchEnd = (
  group: ProcessGroup.ProcessGroup,
  output: Pick<ReturnType<typeof reader>, "delivered" | "moved">,
  fork: Fork,
  fail: Fail
) => {
  // A live process that has closed a pipe can no longer answer. An ending process closes its pipes some time before its exit, and
  // how it ended is the better reason, so this waits for the exit first. A closed stdin shows only at the next write.
  for (const pipe of ["stdin", "stdout"] as const) {
    const lost = Effect.sync(() => {
      if (!Deferred.isDoneUnsafe(group.exit)) fail(`the back end has closed its ${pipe}`)
    })
    group[pipe].once("close", () => fork(Effect.andThen(Effect.sleep("2 seconds"), lost)))
  }
  fork(Effect.gen(function*() {
    const how = yield* Deferred.await(group.exit)
    // Delivers the output from before the exit first. `standstill` ends the wait, so neither a grandchild that holds the pipe open
    // nor a client that does not read delays the report.
    const allDelivered = Effect.andThen(closed(group.stdout), Effect.andThen(closed(group.stderr), output.delivered))
    yield* Effect.raceFirst(allDelivered, standstill(output.moved))
    fail(`the back end ended ${how}`, "process exited")
  }))
}

/**
 * Completes when a count has not changed for ten turns of 20 milliseconds, and after a hundred turns at the latest. Counts turns,
 * not time, because a busy machine slows the turns as much as it slows the count.
 */
const standstill = Effect.fnUntraced(function*(count: () => number) {
  let before = count()
  for (let turn = 0, still = 0; turn < 100 && still < 10; turn++) {
    yield* Effect.sleep("20 millis")
    const now = count()
    still = now === before ? still + 1 : 0
    before = now
  }
})

/** Completes when a pipe has ended. */
const closed = (pipe: Readable): Effect.Effect<void> =>
  Effect.callback((resume) => Effect.sync(finished(pipe, { writable: false }, () => resume(Effect.void))))

/**
 * Delivers lines in order, and pauses stdout while the receiver has no room. Lines may still arrive during a pause, because Node
 * resumes a process's stdout at its exit. They queue behind those that wait.
 */
const reader = (stdout: Readable, maxLineBytes: number, fork: Fork, fail: Fail) => {
  const split = Lines.make(maxLineBytes)
  const waiting: Array<string> = []
  const delivered = Latch.makeUnsafe(true)
  let hasRoom = true
  /** Chunks received plus lines delivered. */
  let moved = 0

  const attach = (to: Receiver) => {
    const deliverWaiting = () => {
      while (hasRoom) {
        const line = waiting.shift()
        if (line === undefined) return
        moved++
        hasRoom = deliver(to, line)
        if (!hasRoom) fork(Effect.andThen(to.room, goOn))
      }
    }
    const advance = () => {
      const result = Result.try(deliverWaiting)
      if (Result.isFailure(result)) {
        // Drops the waiting lines too, because a line before them is lost.
        waiting.length = 0
        const cause = Cause.die(result.failure)
        fork(Effect.logError("The gateway could not handle a line of a back end, so its session ends", cause))
        giveUp("the gateway could not handle a line of the back end")
      }
      if (hasRoom) stdout.resume()
      else stdout.pause()
      if (waiting.length === 0) delivered.openUnsafe()
      else delivered.closeUnsafe()
    }
    const goOn = Effect.sync(() => {
      hasRoom = true
      advance()
    })
    const take = (chunk: Uint8Array) => {
      moved++
      const lines = split(chunk)
      if (lines === "TooLong") return giveUp(`the back end sent a line of more than ${maxLineBytes} bytes`)
      waiting.push(...lines)
      advance()
    }
    /** Discards all further output. */
    const giveUp = (reason: string) => {
      stdout.off("data", take).resume()
      fail(reason)
    }
    // Until now the pipe has held the output of the process, so a spare loses none.
    stdout.on("data", take)
  }
  return {
    attach,
    /** Completes when no line waits for the receiver. */
    delivered: delivered.await,
    /** Grows while output arrives or is delivered. */
    moved: () => moved
  }
}
