/**
 * One back-end process on stdio as a `Transport`.
 *
 * The process ends with its scope. The gateway first closes its stdin, so that a well-behaved server can exit by itself. After
 * `closeGrace` the process group gets SIGTERM, and after another `closeGrace` SIGKILL. The whole group gets the signals, so that
 * wrappers (`npx`, `sh -c`) leave no process behind.
 */
import type { Context, Scope } from "effect"
import { Cause, Deferred, Duration, Effect, Fiber, Latch, Result } from "effect"
import type { Readable, Writable } from "node:stream"
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
const safeNames = ["PATH", "HOME", "LANG", "TMPDIR", "USER", "LOGNAME", "SHELL", "TZ", "TERM"]

/** The safe part of an environment, with the entry's own variables on top. */
export const childEnvironment = (
  environment: Readonly<Record<string, string | undefined>>,
  own: Readonly<Record<string, string>>
): Record<string, string> => {
  const safe: Record<string, string> = {}
  for (const [name, value] of Object.entries(environment)) {
    if (value !== undefined && (safeNames.includes(name) || name.startsWith("LC_"))) safe[name] = value
  }
  return { ...safe, ...own }
}

/** Starts the process, which lives until the scope closes. It gets the safe part of `environment`, the gateway's environment. */
export const start = Effect.fnUntraced(function*(
  command: ProcessGroup.Command,
  environment: Readonly<Record<string, string | undefined>>,
  limits: Limits,
  mask: (text: string) => string
): Effect.fn.Return<Transport, BackendFailed, Scope.Scope> {
  const shown = mask(command.command)
  const ended = Deferred.makeUnsafe<BackendFailed>()
  const stderr = Stderr.make(mask, limits.stderrLevel)
  const failed = (reason: string, how?: BackendFailed["ended"]) =>
    new BackendFailed({ reason, stderr: stderr.text(), ended: how })
  const env = childEnvironment(environment, command.env)
  const group = yield* Effect.mapError(
    ProcessGroup.start({ ...command, env }, limits.closeGrace),
    (code) => {
      const what = `the back end "${shown}" could not be started`
      return ProcessGroup.shortages.includes(code)
        ? new BackendFailed({
          reason: `${what}: the gateway is short of handles or memory (${code})`,
          stderr: "",
          shortage: true
        })
        : failed(`${what} (${code})${remedy(command.command, code)}`)
    }
  )
  group.stderr.on("data", stderr.push).once("end", stderr.end)
  const scope = yield* Effect.scope
  const run = Effect.runForkWith(yield* Effect.context<never>())
  const fork = (effect: Effect.Effect<unknown>) => void Fiber.runIn(run(effect), scope)
  const fail = (reason: string, how?: BackendFailed["ended"]) =>
    Deferred.doneUnsafe(ended, Effect.succeed(failed(reason, how)))
  const output = reader(group.stdout, limits.maxLineBytes, {
    fork,
    tooLong: () => fail(`the back end sent a line of more than ${limits.maxLineBytes} bytes`),
    broken: (defect) => {
      fork(Effect.logError("The gateway could not handle a line of a back end, so its session ends", Cause.die(defect)))
      fail("the gateway could not handle a line of the back end")
    }
  })
  watchEnd(group, output, fork, fail)
  const unread = Effect.sync(() =>
    fail(`the back end has not read its stdin for ${Duration.format(limits.writeTimeout)}`)
  )
  const { offer, wait } = writer(group.stdin)
  return {
    pid: group.pid,
    ended,
    failed: (reason) => failed(reason),
    offer: (message) => offer(JsonRpc.toLine(message)),
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
      Effect.suspend(() => {
        const line = JsonRpc.toLine(message)
        return offer(line) ? Effect.void : Effect.raceFirst(wait(line), Deferred.await(ended)).pipe(
          Effect.timeoutOrElse({ duration: limits.writeTimeout, orElse: () => unread }),
          Effect.asVoid
        )
      })
  }
})

/** Calls `fail` when the process ends, or when it closes a pipe and lives on. */
const watchEnd = (
  group: ProcessGroup.ProcessGroup,
  output: Pick<ReturnType<typeof reader>, "delivered" | "moved">,
  fork: (effect: Effect.Effect<unknown>) => void,
  fail: (reason: string, how?: BackendFailed["ended"]) => void
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

/** Writes lines in the order of their arrival. Lines that wait for the process to read come before new ones. */
const writer = (stdin: Writable) => {
  const waiting = new Set<() => void>()
  const writeWaiting = () => {
    for (const write of waiting) {
      if (stdin.writableNeedDrain) return
      waiting.delete(write)
      write()
    }
  }
  // A closed stdin ignores what is written and never needs to drain, so `close` releases all waiters.
  stdin.on("drain", writeWaiting).once("close", writeWaiting)
  return {
    offer: (line: string): boolean => {
      if (waiting.size > 0 || stdin.writableNeedDrain) return false
      stdin.write(line)
      return true
    },
    wait: (line: string) =>
      Effect.callback<void>((resume) => {
        const write = () => {
          stdin.write(line)
          resume(Effect.void)
        }
        waiting.add(write)
        return Effect.sync(() => waiting.delete(write))
      })
  }
}

/** How `reader` reports trouble. */
interface Trouble {
  readonly fork: (effect: Effect.Effect<unknown>) => void
  readonly tooLong: () => void
  /** Called when the receiver throws. */
  readonly broken: (defect: unknown) => void
}

/**
 * Delivers lines in order, and pauses stdout while the receiver has no room. Lines may still arrive during a pause, because Node
 * resumes a process's stdout at its exit. They queue behind those that wait.
 */
const reader = (stdout: Readable, maxLineBytes: number, { broken, fork, tooLong }: Trouble) => {
  const split = Lines.make(maxLineBytes)
  const waiting: Array<string> = []
  let hasRoom = true
  const delivered = Latch.makeUnsafe(true)
  /** Chunks received plus lines delivered. */
  let moved = 0

  const attach = (to: Receiver) => {
    const deliverAll = () => {
      for (let line = waiting.shift(); line !== undefined; line = waiting.shift()) {
        moved++
        if (!deliver(to, line)) return pause()
      }
      delivered.openUnsafe()
      stdout.resume()
    }
    const pause = () => {
      hasRoom = false
      stdout.pause()
      if (waiting.length > 0) delivered.closeUnsafe()
      fork(Effect.andThen(to.room, goOn))
    }
    const goOn = Effect.sync(() => {
      hasRoom = true
      guarded(deliverAll)
    })
    const take = (chunk: Uint8Array) => {
      moved++
      const lines = split(chunk)
      if (lines === "TooLong") {
        forget()
        return tooLong()
      }
      waiting.push(...lines)
      if (hasRoom) return guarded(deliverAll)
      stdout.pause()
      if (waiting.length > 0) delivered.closeUnsafe()
    }
    /** Discards all further output. */
    const forget = () => void stdout.off("data", take).resume()
    const guarded = (step: () => void) => {
      const result = Result.try(step)
      if (Result.isSuccess(result)) return
      // Drops the waiting lines too, because a line before them is lost.
      waiting.length = 0
      delivered.openUnsafe()
      forget()
      broken(result.failure)
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

/** What to do about a system error at the start of a command. */
const remedy = (command: string, code: string): string => {
  switch (code) {
    case "ENOENT":
      return command.includes("/")
        ? ": is its path right? Its interpreter and its `cwd` must exist too"
        : ": install the program, or give its whole path; its `cwd` must exist too"
    case "EACCES":
      return ": the gateway's user may not run it; make a script executable, or name its interpreter as the program"
    default:
      return ""
  }
}
