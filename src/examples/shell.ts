/** A command-line program with one shell per session, which keeps its directory and variables. Type lines such as `ada cd /tmp`. */
import { NodeRuntime, NodeServices } from "@effect/platform-node"
import { Console, Effect, Queue, Schema, Semaphore, Stdio, Stream } from "effect"
import { SessionPool } from "effect-session-pool"
import { Command, Flag } from "effect/cli"
import { ChildProcess } from "effect/process"

class ShellEnded extends Schema.TaggedError<ShellEnded>()("ShellEnded", {}) {}

/** The shell prints this after each command, followed by the command's exit code. */
const mark = "\u0004"

const quoted = (command: string) => `'${command.replaceAll("'", "'\\''")}'`

const open = Effect.fnUntraced(function*(session: string) {
  yield* Effect.addFinalizer(() => Console.log(`${session}: closed`))
  const input = yield* Queue.unbounded<string>()
  const child = yield* ChildProcess.make("sh", {
    stdin: Stream.encodeText(Stream.fromQueue(input)),
    stderr: "inherit",
    killSignal: "SIGHUP"
  })
  const lines = yield* child.stdout.pipe(Stream.decodeText(), Stream.splitLines, Stream.toQueue({ capacity: 64 }))
  const answer = Effect.gen(function*() {
    const output: Array<string> = []
    while (true) {
      const [text = "", code] = (yield* Queue.take(lines)).split(mark)
      if (code === undefined || text !== "") output.push(text)
      if (code !== undefined) return [...output, `exit code ${code}`].join("\n")
    }
  })
  const turn = yield* Semaphore.make(1)
  return {
    /** Runs one command at a time, without input: it must not read the next command. */
    run: (command: string) =>
      Queue.offer(input, `eval ${quoted(command)} </dev/null\necho "${mark}$?"\n`).pipe(
        Effect.andThen(answer),
        Effect.timeout("1 minute"),
        Effect.mapError(() => new ShellEnded()),
        // The next caller would read the output that an interrupted caller left.
        Effect.onInterrupt(() => Effect.ignore(child.kill())),
        turn.withPermit
      ),
    ended: child.exitCode
  }
})

export const shells = Command.make(
  "shells",
  {
    idle: Flag.String("idle").pipe(
      Flag.withDescription("Close a shell this long after its last command"),
      Flag.withSchema(Schema.DurationFromString),
      Flag.withDefault("10 minutes")
    )
  },
  Effect.fnUntraced(function*({ idle }) {
    const pool = yield* SessionPool.make({
      lookup: open,
      idleTimeToLive: idle,
      // The pool drops a shell that ended, so the next command gets a new one.
      closed: (shell) => shell.ended,
      maxErrorCount: 1
    })
    const { stdin } = yield* Stdio.Stdio
    yield* Stream.splitLines(Stream.decodeText(stdin)).pipe(
      Stream.filter((line) => line.trim() !== ""),
      Stream.runForEach((line) => {
        const [session = "", ...words] = line.split(" ")
        return SessionPool.use(pool, session, (shell) => shell.run(words.join(" "))).pipe(
          Effect.catchTag("ShellEnded", () => Effect.succeed("the shell ended")),
          Effect.flatMap((text) => Console.log(`${session}: ${text}`))
        )
      })
    )
  }, Effect.scoped)
).pipe(Command.withDescription("Runs each line of the input in the shell of its session"))

const program = Command.run(shells, { version: "1.0.0" })
if (import.meta.main) NodeRuntime.runMain(Effect.provide(program, NodeServices.layer))
