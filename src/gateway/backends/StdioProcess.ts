/**
 * One back-end process on stdio: lines in, lines out, and why it ended.
 *
 * It ends with its scope: stdin is closed first, so that a well-behaved server can leave by itself; after a grace the
 * group gets SIGTERM, and after another SIGKILL, so that wrappers (`npx`, `sh -c`) leave nothing behind either.
 */
import type { Context, Scope } from "effect"
import { Cause, Deferred, Duration, Effect, Fiber, Latch, Result } from "effect"
import type { Readable, Writable } from "node:stream"
import { BackendFailed } from "../GatewayErrors.ts"
import * as Lines from "./Lines.ts"
import * as ProcessGroup from "./ProcessGroup.ts"
import * as Stderr from "./Stderr.ts"
import type { Receiver, Transport } from "./Transport.ts"

export interface Limits {
  readonly maxLineBytes: number
  /** How long the process may leave a message unread. */
  readonly writeTimeout: Duration.Duration
  /** After stdin was closed, and again after SIGTERM. */
  readonly closeGrace: Duration.Duration
  /** At which its stderr is logged. */
  readonly stderrLevel: Stderr.Level
}

/** What a child may see of the gateway's own environment: never its keys. */
const safeNames = ["PATH", "HOME", "LANG", "TMPDIR", "USER", "LOGNAME", "SHELL", "TZ", "TERM"].concat(
  // Without these little starts on Windows.
  ["SYSTEMROOT", "SYSTEMDRIVE", "TEMP", "TMP", "PATHEXT", "COMSPEC", "APPDATA", "LOCALAPPDATA", "PROGRAMDATA"],
  ["PROGRAMFILES", "USERPROFILE", "USERNAME", "HOMEDRIVE", "HOMEPATH", "PROCESSOR_ARCHITECTURE", "WINDIR"]
)

/** The safe part of an environment, with the entry's own variables on top. */
export const childEnvironment = (
  environment: Readonly<Record<string, string | undefined>>,
  own: Readonly<Record<string, string>>
): Record<string, string> => {
  const safe: Record<string, string> = {}
  for (const [name, value] of Object.entries(environment)) {
    if (value !== undefined && (safeNames.includes(name.toUpperCase()) || name.startsWith("LC_"))) safe[name] = value
  }
  return { ...safe, ...own }
}

/** Starts the process, which lives until the scope closes. `environment` is the gateway's, of which it sees the safe part. */
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
    (code) =>
      ProcessGroup.shortages.includes(code)
        ? short(shown, code)
        : failed(`the back end "${shown}" could not be started (${code})${remedy(command.command, code)}`)
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
      fork(Effect.logError("A line of a back end could not be taken", Cause.die(defect)))
      fail("the stdout of the back end could not be read")
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
    offer,
    attach: (to) =>
      Effect.contextWith((context: Context.Context<never>) =>
        Effect.sync(() => {
          // Logs with the annotations of the session that took this process; a spare has none before.
          const runFor = Effect.runForkWith(context)
          stderr.logWith((effect) => void Fiber.runIn(runFor(effect), scope))
          output.attach(to)
        })
      ),
    send: (line) =>
      Effect.suspend(() =>
        offer(line) ? Effect.void : Effect.raceFirst(wait(line), Effect.asVoid(Deferred.await(ended))).pipe(
          Effect.timeoutOrElse({ duration: limits.writeTimeout, orElse: () => unread }),
          Effect.asVoid
        )
      )
  }
})

/** Tells of the end of a process: how it ended, or that it has closed a pipe and lives on. */
const watchEnd = (
  group: ProcessGroup.ProcessGroup,
  output: Pick<ReturnType<typeof reader>, "delivered" | "moved">,
  fork: (effect: Effect.Effect<unknown>) => void,
  fail: (reason: string, how?: BackendFailed["ended"]) => void
) => {
  // A process that closes a pipe without leaving can no longer answer; one that leaves closes it a moment earlier, on a busy
  // machine a long one, and is better described by how it ended. That it has closed its stdin shows at the next write.
  for (const pipe of ["stdin", "stdout"] as const) {
    const lost = Effect.sync(() => {
      if (!Deferred.isDoneUnsafe(group.exit)) fail(`the back end has closed its ${pipe}`)
    })
    group[pipe].once("close", () => fork(Effect.andThen(Effect.sleep("2 seconds"), lost)))
  }
  fork(Effect.gen(function*() {
    const how = yield* Deferred.await(group.exit)
    // What it wrote before it ended still counts; a grandchild that holds the pipe open, or a client that does not read, does
    // not delay the news.
    const allIsSaid = Effect.andThen(closed(group.stdout), Effect.andThen(closed(group.stderr), output.delivered))
    yield* Effect.raceFirst(allIsSaid, standstill(output.moved))
    fail(`the back end ended ${how}`, "process exited")
  }))
}

/**
 * Completes when a count has stayed the same for ten turns of 20 milliseconds, and after a hundred turns at the latest. Turns,
 * because on a busy machine they become longer along with what makes the count go on.
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

/** Completes when nothing more comes from a pipe. */
const closed = (pipe: Readable): Effect.Effect<void> =>
  Effect.callback((resume) => {
    if (pipe.readableEnded || pipe.destroyed) return resume(Effect.void)
    const done = () => resume(Effect.void)
    pipe.once("end", done).once("close", done)
    return Effect.sync(() => pipe.off("end", done).off("close", done))
  })

/** Writes lines in the order in which they come; those that must wait until the process reads come first. */
const writer = (stdin: Writable) => {
  const waiting = new Set<{ readonly line: string; readonly written: () => void }>()
  stdin.on("drain", () => {
    for (const waiter of waiting) {
      if (stdin.writableNeedDrain) return
      waiting.delete(waiter)
      stdin.write(waiter.line)
      waiter.written()
    }
  })
  // Nobody waits for a process that reads no more.
  stdin.once("close", () => {
    const rest = [...waiting]
    waiting.clear()
    for (const waiter of rest) waiter.written()
  })
  return {
    offer: (line: string): boolean => {
      if (waiting.size > 0 || stdin.writableNeedDrain) return false
      stdin.write(line)
      return true
    },
    wait: (line: string) =>
      Effect.callback<void>((resume) => {
        const waiter = { line, written: () => resume(Effect.void) }
        waiting.add(waiter)
        return Effect.sync(() => waiting.delete(waiter))
      })
  }
}

/** What becomes of what a process says. */
interface Trouble {
  readonly fork: (effect: Effect.Effect<unknown>) => void
  readonly tooLong: () => void
  /** The receiver threw. */
  readonly broken: (defect: unknown) => void
}

/**
 * Hands lines on as they come, each after all earlier ones, and reads no further while the receiver has no room.
 *
 * That nothing is read does not mean that nothing comes: when a process exits, Node lets its stdout flow again. So what comes
 * while lines wait is put behind them. One function, for its steps share the lines and how far they have been handed on.
 */
const reader = (stdout: Readable, maxLineBytes: number, { broken, fork, tooLong }: Trouble) => {
  const splitter = Lines.make(maxLineBytes)
  let lines: ReadonlyArray<string> = []
  /** How many of them have been handed on. */
  let done = 0
  let waiting = false
  /** Chunks that came and lines that were handed on. */
  let moved = 0
  const delivered = Latch.makeUnsafe(true)

  const attach = ({ receive, room }: Receiver) => {
    const deliver = () => {
      while (done < lines.length) {
        moved++
        if (receive(lines[done++] ?? "")) continue
        waiting = true
        stdout.pause()
        if (done < lines.length) delivered.closeUnsafe()
        return fork(Effect.andThen(room, goOn))
      }
      delivered.openUnsafe()
    }
    const goOn = Effect.sync(() => {
      waiting = false
      guarded(deliver)
      if (!waiting) stdout.resume()
    })
    const take = (chunk: Uint8Array) => {
      moved++
      const more = splitter.push(chunk)
      if (more === "TooLong") {
        forget()
        return tooLong()
      }
      lines = done < lines.length ? [...lines.slice(done), ...more] : more
      done = 0
      if (!waiting) return guarded(deliver)
      stdout.pause()
      if (lines.length > 0) delivered.closeUnsafe()
    }
    /** Reads what it says from now on and forgets it. */
    const forget = () => void stdout.off("data", take).resume()
    const guarded = (step: () => void) => {
      const result = Result.try(step)
      if (Result.isSuccess(result)) return
      // Not even what waits: something before it is missing now.
      lines = []
      delivered.openUnsafe()
      forget()
      broken(result.failure)
    }
    // A process that nobody uses yet keeps what it says: the pipe holds it.
    stdout.on("data", take)
  }
  return {
    attach,
    /** Completes when no line waits. */
    delivered: delivered.await,
    /** Grows as long as there is something to wait for. */
    moved: () => moved
  }
}

/** What to do about the errors of the system that a command meets. */
const remedy = (command: string, code: string): string => {
  switch (code) {
    case "ENOENT":
      return command.includes("/")
        ? ": is its path right? Its interpreter and its `cwd` must be there too"
        : ": install the program, or give its whole path; its `cwd` must be there too"
    case "EACCES":
      return ": the gateway's user may not run it; if it is a script, make it executable, or name its interpreter"
    default:
      return ""
  }
}

const short = (command: string, code: string): BackendFailed =>
  new BackendFailed({
    reason: `the back end "${command}" could not be started: the gateway is short of handles or memory (${code})`,
    stderr: "",
    shortage: true
  })
