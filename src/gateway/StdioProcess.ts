/**
 * One back-end process on stdio, in a process group of its own.
 *
 * It ends with its scope: stdin is closed first, so that a well-behaved server can leave by itself; after a grace the
 * group gets SIGTERM, and after another SIGKILL, so that wrappers (`npx`, `sh -c`) leave nothing behind either.
 */
import type { Cause, Scope } from "effect"
import { Deferred, Duration, Effect, Fiber, Queue, Schema, Stream } from "effect"
import type { PlatformError } from "effect/PlatformError"
import { ChildProcess, ChildProcessSpawner } from "effect/process"
import * as Lines from "./Lines.ts"

/** How to start a back end. */
export interface StdioEntry {
  readonly command: string
  readonly args: ReadonlyArray<string>
  readonly env: Readonly<Record<string, string>>
  readonly cwd: string | undefined
}

/** The process could not be started, or ended before it answered. */
export class BackendFailed extends Schema.TaggedError<BackendFailed>()("BackendFailed", {
  reason: Schema.String,
  /** The end of what it wrote on stderr. */
  stderr: Schema.String
}) {
  override get message(): string {
    return this.stderr === "" ? this.reason : `${this.reason}; its stderr ends with: ${this.stderr}`
  }
}

export interface StdioProcess {
  readonly pid: number
  /** Writes one line. Waits while the process does not read; does nothing once it has ended. */
  readonly send: (line: string) => Effect.Effect<void>
  /** Completes when the process has ended by itself or broke the protocol, with why. */
  readonly ended: Deferred.Deferred<BackendFailed>
}

export interface Limits {
  readonly maxLineBytes: number
  /** After stdin was closed, and again after SIGTERM. */
  readonly grace: Duration.Duration
}

export const defaultLimits: Limits = { maxLineBytes: 16 * 1024 * 1024, grace: Duration.seconds(2) }

/** Lines that wait to be written; more wait in their senders. */
const writeBuffer = 256
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

/** Starts the process and hands each line of its stdout to `onLine`, until the scope closes. */
export const start = Effect.fnUntraced(function*(
  entry: StdioEntry,
  environment: Readonly<Record<string, string | undefined>>,
  limits: Limits,
  onLine: (line: string) => void
): Effect.fn.Return<StdioProcess, BackendFailed, Scope.Scope | ChildProcessSpawner.ChildProcessSpawner> {
  const spawner = yield* ChildProcessSpawner.ChildProcessSpawner
  const input = yield* Queue.bounded<Uint8Array, Cause.Done>(writeBuffer)
  const ended = yield* Deferred.make<BackendFailed>()
  let stderr = ""
  const failed = (reason: string) => new BackendFailed({ reason, stderr: stderr.trim() })
  const handle = yield* spawner.spawn(ChildProcess.make(entry.command, entry.args, {
    env: childEnvironment(environment, entry.env),
    extendEnv: false,
    ...(entry.cwd === undefined ? {} : { cwd: entry.cwd }),
    stdin: { stream: Stream.fromQueue(input) },
    detached: true,
    killSignal: "SIGTERM",
    forceKillAfter: limits.grace
  })).pipe(
    Effect.mapError((error) => failed(`the back end "${entry.command}" could not be started (${error.reason._tag})`))
  )
  // Runs before the spawner's own finalizer, which then signals the group.
  yield* Effect.addFinalizer(() =>
    Effect.andThen(Queue.end(input), Effect.timeoutOption(Effect.exit(handle.exitCode), limits.grace))
  )
  const splitter = Lines.make(limits.maxLineBytes)
  const decoder = new TextDecoder()
  const read = Stream.runForEach(handle.stdout, (chunk) => {
    const lines = splitter.push(chunk)
    if (lines === "TooLong") {
      return Effect.asVoid(
        Deferred.succeed(ended, failed(`the back end sent a line of more than ${limits.maxLineBytes} bytes`))
      )
    }
    for (const line of lines) onLine(line)
    return Effect.void
  })
  const readErrors = Stream.runForEach(handle.stderr, (chunk) =>
    Effect.sync(() => {
      stderr = (stderr + decoder.decode(chunk, { stream: true })).slice(-stderrTailLength)
    }))
  const reading = yield* Effect.forkScoped(Effect.ignore(read))
  const readingErrors = yield* Effect.forkScoped(Effect.ignore(readErrors))
  const exited = Effect.matchEffect(handle.exitCode, {
    onFailure: (error) => Effect.succeed(`the back end ended ${describeSignal(error)}`),
    onSuccess: (code) => Effect.succeed(`the back end ended with exit code ${code}`)
  })
  yield* Effect.forkScoped(Effect.gen(function*() {
    const reason = yield* exited
    // What it wrote before it ended still counts; a grandchild that holds the pipe open does not delay the news.
    yield* Effect.timeoutOption(Fiber.awaitAll([reading, readingErrors]), "200 millis")
    yield* Deferred.succeed(ended, failed(reason))
  }))
  const encoder = new TextEncoder()
  return {
    pid: handle.pid,
    ended,
    send: (line) => Effect.raceFirst(Queue.offer(input, encoder.encode(line)), Deferred.await(ended))
  }
})

/** The spawner tells a death by signal as a failure whose cause names the signal. */
const describeSignal = (error: PlatformError): string => {
  const signal = /SIG[A-Z0-9]+/.exec(String(error.cause))
  return signal === null ? "for an unknown reason" : `by signal ${signal[0]}`
}
