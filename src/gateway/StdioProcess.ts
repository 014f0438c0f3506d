/**
 * One back-end process on stdio: lines in, lines out, and why it ended.
 *
 * It ends with its scope: stdin is closed first, so that a well-behaved server can leave by itself; after a grace the
 * group gets SIGTERM, and after another SIGKILL, so that wrappers (`npx`, `sh -c`) leave nothing behind either.
 */
import type { Scope } from "effect"
import { Deferred, Duration, Effect, Fiber, Result } from "effect"
import { closeSync, openSync } from "node:fs"
import { devNull } from "node:os"
import type { Readable, Writable } from "node:stream"
import { BackendFailed } from "./GatewayErrors.ts"
import * as Lines from "./Lines.ts"
import * as ProcessGroup from "./ProcessGroup.ts"
import type { Receiver, Transport } from "./Transport.ts"

export interface Limits {
  readonly maxLineBytes: number
  /** How long the process may leave a message unread. */
  readonly writeTimeout: Duration.Duration
  /** After stdin was closed, and again after SIGTERM. */
  readonly closeGrace: Duration.Duration
}

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

/** Starts the process, which lives until the scope closes. `environment` is the gateway's, of which it sees the safe part. */
export const start = Effect.fnUntraced(function*(
  command: ProcessGroup.Command,
  environment: Readonly<Record<string, string | undefined>>,
  limits: Limits,
  mask: (text: string) => string
): Effect.fn.Return<Transport, BackendFailed, Scope.Scope> {
  const shortage = shortageOfHandles()
  if (shortage !== undefined) return yield* short(command.command, shortage)
  const ended = Deferred.makeUnsafe<BackendFailed>()
  let stderr = ""
  const failed = (reason: string) => new BackendFailed({ reason, stderr: mask(stderr.trim()) })
  const env = childEnvironment(environment, command.env)
  const group = yield* Effect.mapError(
    ProcessGroup.start({ ...command, env }, limits.closeGrace),
    (code) =>
      shortages.includes(code)
        ? short(command.command, code)
        : failed(`the back end "${command.command}" could not be started (${code})`)
  )
  const decoder = new TextDecoder()
  group.stderr.on("data", (chunk) => {
    stderr = (stderr + decoder.decode(chunk, { stream: true })).slice(-stderrTailLength)
  })
  const scope = yield* Effect.scope
  const run = Effect.runForkWith(yield* Effect.context<never>())
  const fork = (effect: Effect.Effect<unknown>) => void Fiber.runIn(run(effect), scope)
  // A process that closes its stdout without leaving can no longer answer; one that leaves closes it a moment earlier, on a
  // busy machine a long one, and is better described by how it ended.
  const mute = Effect.andThen(
    Effect.sleep("2 seconds"),
    Effect.suspend(() => Deferred.succeed(ended, failed("the back end has closed its stdout")))
  )
  group.stdout.once("close", () => fork(mute))
  yield* Effect.forkScoped(Effect.gen(function*() {
    const how = yield* Deferred.await(group.exit)
    // What it wrote before it ended still counts; a grandchild that holds the pipe open does not delay the news.
    yield* Effect.timeoutOption(Effect.andThen(closed(group.stdout), closed(group.stderr)), "200 millis")
    yield* Deferred.succeed(ended, failed(`the back end ended ${how}`))
  }))
  const tooLong = () =>
    Deferred.doneUnsafe(
      ended,
      Effect.succeed(failed(`the back end sent a line of more than ${limits.maxLineBytes} bytes`))
    )
  const unread = Deferred.succeed(
    ended,
    failed(`the back end has not read its stdin for ${Duration.format(limits.writeTimeout)}`)
  )
  const { offer, wait } = writer(group.stdin)
  return {
    pid: group.pid,
    ended,
    offer,
    attach: (to) => Effect.sync(() => readLines(group.stdout, limits.maxLineBytes, to, tooLong, fork)),
    send: (line) =>
      Effect.suspend(() =>
        offer(line) ? Effect.void : Effect.raceFirst(wait(line), Effect.asVoid(Deferred.await(ended))).pipe(
          Effect.timeoutOrElse({ duration: limits.writeTimeout, orElse: () => unread }),
          Effect.asVoid
        )
      )
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

/** Hands lines on as they come, and reads no further while the receiver has no room. */
const readLines = (
  stdout: Readable,
  maxLineBytes: number,
  { receive, room }: Receiver,
  tooLong: () => void,
  fork: (effect: Effect.Effect<unknown>) => void
) => {
  const splitter = Lines.make(maxLineBytes)
  /** Whether all of them found room. */
  const deliver = (lines: ReadonlyArray<string>, from: number): boolean => {
    for (let i = from; i < lines.length; i++) {
      if (receive(lines[i] ?? "")) continue
      stdout.pause()
      fork(Effect.map(room, () => deliver(lines, i + 1) && stdout.resume()))
      return false
    }
    return true
  }
  const take = (chunk: Uint8Array) => {
    const lines = splitter.push(chunk)
    if (lines !== "TooLong") return void deliver(lines, 0)
    // What it says from now on is read and forgotten.
    stdout.off("data", take).resume()
    tooLong()
  }
  // A process that nobody uses yet keeps what it says: the pipe holds it.
  stdout.on("data", take)
}

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
    else shortage = ProcessGroup.codeOf(handle.failure)
  }
  opened.forEach((handle) => closeSync(handle))
  // Whatever else keeps it from being opened says nothing of handles.
  return shortage !== undefined && shortages.includes(shortage) ? shortage : undefined
}

/** The codes of errors that tell of the gateway's own need, not of a fault of the back end. */
const shortages = ["EMFILE", "ENFILE", "EAGAIN", "ENOMEM"]

const short = (command: string, code: string): BackendFailed =>
  new BackendFailed({
    reason: `the back end "${command}" could not be started: the gateway is short of handles or memory (${code})`,
    stderr: "",
    shortage: true
  })
