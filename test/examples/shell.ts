/** A shell per session: the directory and the variables that one command leaves are there for the session's next command. */
import { NodeRuntime, NodeServices } from "@effect/platform-node"
import { Console, Effect, Queue, Semaphore, Stream } from "effect"
import { SessionPool } from "effect-session-pool"
import { ChildProcess } from "effect/process"

/** Printed after each command, with its exit code. */
const mark = "\u0004"

interface Shell {
  readonly run: (command: string) => Effect.Effect<{ readonly output: ReadonlyArray<string>; readonly code: number }>
  readonly left: Effect.Effect<unknown, unknown>
}

const open = Effect.fnUntraced(function*() {
  const input = yield* Queue.unbounded<string>()
  const stdin = Stream.encodeText(Stream.fromQueue(input))
  const child = yield* ChildProcess.make("sh", { stdin, stderr: "ignore", killSignal: "SIGHUP" })
  const lines = yield* child.stdout.pipe(Stream.decodeText(), Stream.splitLines, Stream.toQueue({ capacity: 64 }))
  const turn = yield* Semaphore.make(1)
  const answer = Effect.gen(function*() {
    const output: Array<string> = []
    while (true) {
      const line = yield* Queue.take(lines)
      const [text = "", code] = line.split(mark)
      if (code === undefined || text !== "") output.push(text)
      if (code !== undefined) return { output, code: Number(code) }
    }
  })
  const shell: Shell = {
    // One command at a time: two requests of a session may come at once.
    run: (command) =>
      Queue.offer(input, `${command}\necho "${mark}$?"\n`).pipe(
        Effect.andThen(answer),
        Effect.orDie,
        // What an interrupted caller leaves unread would be the next one's answer.
        Effect.onInterrupt(() => Effect.ignore(child.kill())),
        turn.withPermit
      ),
    left: child.exitCode
  }
  return shell
})

class Shells extends SessionPool.Service<Shells>()("app/Shells", {
  lookup: (_session: string) => open(),
  idleTimeToLive: "10 minutes",
  // A shell that leaves while nobody runs anything is noticed at once, the other by the one who runs a command in it.
  closed: (shell) => shell.left,
  maxErrorCount: 1,
  capacity: 100
}) {}

const run = (session: string, command: string) => Shells.use(session, (shell) => shell.run(command))

export const main = Effect.gen(function*() {
  yield* run("ada", "cd /; GREETING=hello")
  const ada = yield* run("ada", "echo $GREETING from $PWD")
  const bob = yield* run("bob", "echo \"'$GREETING'\"; false")
  // Whoever ends the shell loses it, and gets a new one.
  yield* Effect.exit(run("ada", "printf bye; exit"))
  const again = yield* run("ada", "echo \"'$GREETING'\"")
  return { ada: ada.output, bob, again: again.output }
}).pipe(Effect.provide(Shells.layer), Effect.provide(NodeServices.layer))

if (import.meta.main) NodeRuntime.runMain(Effect.flatMap(main, Console.log))
