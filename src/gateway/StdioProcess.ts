/**
 * One back-end process on stdio, in a process group of its own.
 *
 * It ends with its scope: stdin is closed first, so that a well-behaved server can leave by itself; after a grace the
 * group gets SIGTERM, and after another SIGKILL, so that wrappers (`npx`, `sh -c`) leave nothing behind either.
 */
import type { Scope } from "effect"
import { Cause, Deferred, Duration, Effect, Fiber, Predicate, Queue, Result, Stream } from "effect"
import type { PlatformError } from "effect/PlatformError"
import { ChildProcess, ChildProcessSpawner } from "effect/process"
import { closeSync, openSync } from "node:fs"
import { devNull } from "node:os"
import { BackendFailed } from "./GatewayErrors.ts"
import * as Lines from "./Lines.ts"

/** How to start the process of a stdio back end. */
export interface StdioCommand {
  readonly command: string
  readonly args: ReadonlyArray<string>
  readonly env: Readonly<Record<string, string>>
  readonly cwd: string | undefined
}

/** Where the lines of a process go. */
export interface Receiver {
  /** Takes one line; false: there is no room for more until `room` says so. */
  readonly receive: (line: string) => boolean
  readonly room: Effect.Effect<void>
}

export interface StdioProcess {
  readonly pid: number
  /** Hands the lines of stdout to a receiver, from the first on; to be called once. */
  readonly attach: (receiver: Receiver) => Effect.Effect<void>
  /** Writes one line at once, after all earlier ones; false: the process does not read, and `send` must wait. */
  readonly offer: (line: string) => boolean
  /** Writes one line. Waits while the process does not read; does nothing once it has ended. */
  readonly send: (line: string) => Effect.Effect<void>
  /** Completes when the process has ended by itself or broke the protocol, with why. */
  readonly ended: Deferred.Deferred<BackendFailed>
}

export interface Limits {
  readonly maxLineBytes: number
  /** How long the process may leave a message unread. */
  readonly writeTimeout: Duration.Duration
  /** After stdin was closed, and again after SIGTERM. */
  readonly closeGrace: Duration.Duration
}

/** Lines that wait to be written; more wait in their senders. */
const writeBuffer = 16
const stderrTailLength = 2000

/** What a child may see of the gateway's own environment: never its keys. */
const safeNames = ["PATH", "HOME", "LANG", "TMPDIR", "USER", "LOGNAME", "SHELL", "TZ", "TERM", "SYSTEMROOT", "TEMP"]

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

/** The groups of processes that were started here and are not known to be gone, for who must end them at once. */
export const liveGroups = new Set<number>()

/** Starts the process, which lives until the scope closes. `environment` is the gateway's, of which it sees the safe part. */
export const start = Effect.fnUntraced(function*(
  command: StdioCommand,
  environment: Readonly<Record<string, string | undefined>>,
  limits: Limits,
  mask: (text: string) => string
): Effect.fn.Return<StdioProcess, BackendFailed, Scope.Scope | ChildProcessSpawner.ChildProcessSpawner> {
  const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
  const input = yield* Queue.bounded<Uint8Array, Cause.Done>(writeBuffer)
  const ended = yield* Deferred.make<BackendFailed>()
  let stderr = ""
  const failed = (reason: string) => new BackendFailed({ reason, stderr: mask(stderr.trim()) })
  const receiver = yield* Deferred.make<Receiver>()
  // Registered first, so it runs last: when the group is gone.
  let group: number | undefined
  yield* Effect.addFinalizer(() => Effect.sync(() => group !== undefined && liveGroups.delete(group)))
  const shortage = shortageOfHandles()
  if (shortage !== undefined) return yield* short(command.command, shortage)
  const handle = yield* spawner.spawn(ChildProcess.make(command.command, command.args, {
    env: childEnvironment(environment, command.env),
    extendEnv: false,
    ...(command.cwd === undefined ? {} : { cwd: command.cwd }),
    stdin: { stream: Stream.fromQueue(input) },
    detached: true,
    killSignal: "SIGTERM",
    forceKillAfter: limits.closeGrace
  })).pipe(
    Effect.mapError((error) => {
      const code = codeOf(error.cause)
      return shortages.includes(code)
        ? short(command.command, code)
        : failed(`the back end "${command.command}" could not be started (${error.reason._tag})`)
    })
  )
  group = handle.pid
  liveGroups.add(group)
  // Runs before the spawner's own finalizer, which then signals the group.
  yield* Effect.addFinalizer(() =>
    Effect.andThen(Queue.end(input), Effect.timeoutOption(Effect.exit(handle.exitCode), limits.closeGrace))
  )
  const splitter = Lines.make(limits.maxLineBytes)
  const decoder = new TextDecoder()
  const deliver = (to: Receiver, lines: ReadonlyArray<string>): Effect.Effect<void> => {
    for (const [i, line] of lines.entries()) {
      if (!to.receive(line)) return Effect.andThen(to.room, Effect.suspend(() => deliver(to, lines.slice(i + 1))))
    }
    return Effect.void
  }
  const read = Stream.runForEach(handle.stdout, (chunk) => {
    const lines = splitter.push(chunk)
    if (lines === "TooLong") {
      return Effect.asVoid(
        Deferred.succeed(ended, failed(`the back end sent a line of more than ${limits.maxLineBytes} bytes`))
      )
    }
    // A process that nobody uses yet keeps what it says: the pipe holds it.
    return Effect.flatMap(Deferred.await(receiver), (to) => deliver(to, lines))
  })
  const readErrors = Stream.runForEach(handle.stderr, (chunk) =>
    Effect.sync(() => {
      stderr = (stderr + decoder.decode(chunk, { stream: true })).slice(-stderrTailLength)
    }))
  const reading = yield* Effect.forkScoped(Effect.catchCause(read, (cause) =>
    Cause.hasInterruptsOnly(cause)
      ? Effect.void
      : Effect.andThen(
        Effect.logError("The stdout of the back end could not be read", cause),
        Deferred.succeed(ended, failed("its stdout could not be read"))
      )))
  const readingErrors = yield* Effect.forkScoped(Effect.ignore(readErrors))
  const exited = Effect.matchEffect(handle.exitCode, {
    onFailure: (error) => Effect.succeed(`the back end ended ${describeSignal(error)}`),
    onSuccess: (code) => Effect.succeed(`the back end ended with exit code ${code}`)
  })
  yield* Effect.forkScoped(Effect.gen(function*() {
    yield* Fiber.await(reading)
    // A process that closes its stdout without leaving can no longer answer; one that leaves closes it a moment earlier,
    // on a busy machine a long one, and is better described by how it ended.
    yield* Effect.sleep("2 seconds")
    yield* Deferred.succeed(ended, failed("the back end has closed its stdout"))
  }))
  yield* Effect.forkScoped(Effect.gen(function*() {
    const reason = yield* exited
    // What it wrote before it ended still counts; a grandchild that holds the pipe open does not delay the news.
    yield* Effect.timeoutOption(Fiber.awaitAll([reading, readingErrors]), "200 millis")
    yield* Deferred.succeed(ended, failed(reason))
  }))
  const encoder = new TextEncoder()
  const unread = Deferred.succeed(
    ended,
    failed(`the back end has not read its stdin for ${Duration.format(limits.writeTimeout)}`)
  )
  return {
    pid: handle.pid,
    ended,
    offer: (line) => Queue.offerUnsafe(input, encoder.encode(line)),
    attach: (to) => Effect.asVoid(Deferred.succeed(receiver, to)),
    send: (line) =>
      Effect.suspend(() => {
        const chunk = encoder.encode(line)
        if (Queue.offerUnsafe(input, chunk)) return Effect.void
        return Effect.raceFirst(Queue.offer(input, chunk), Deferred.await(ended)).pipe(
          Effect.timeoutOrElse({ duration: limits.writeTimeout, orElse: () => unread }),
          Effect.asVoid
        )
      })
  }
})

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

/** The codes of errors that tell of the gateway's own need, not of a fault of the back end. */
const shortages = ["EMFILE", "ENFILE", "EAGAIN", "ENOMEM"]

const codeOf = (error: unknown): string =>
  Predicate.hasProperty(error, "code")
    ? String(error.code)
    : Predicate.hasProperty(error, "cause")
    ? codeOf(error.cause)
    : ""

const short = (command: string, code: string): BackendFailed =>
  new BackendFailed({
    reason: `the back end "${command}" could not be started: the gateway is short of handles or memory (${code})`,
    stderr: "",
    shortage: true
  })

/** The spawner tells a death by signal as a failure whose cause names the signal. */
const describeSignal = (error: PlatformError): string => {
  const signal = /SIG[A-Z0-9]+/.exec(String(error.cause))
  return signal === null ? "for an unknown reason" : `by signal ${signal[0]}`
}
