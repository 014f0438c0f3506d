/** A service whose pool opens files in production, and keeps its drafts in memory in a test: only the layer differs. */
import { NodeRuntime, NodeServices } from "@effect/platform-node"
import { Console, Effect, FileSystem, Layer, type PlatformError } from "effect"
import { SessionPool } from "effect-session-pool"

interface Draft {
  readonly append: (line: string) => Effect.Effect<void, PlatformError.PlatformError>
  readonly text: Effect.Effect<string, PlatformError.PlatformError>
}

const openFile = Effect.fnUntraced(function*(user: string) {
  const fs = yield* FileSystem.FileSystem
  const path = `${yield* fs.makeTempDirectoryScoped()}/${user}.txt`
  const file = yield* fs.open(path, { flag: "a" })
  const draft: Draft = {
    append: (line) => file.writeAll(new TextEncoder().encode(`${line}\n`)),
    text: fs.readFileString(path)
  }
  return draft
})

class Drafts extends SessionPool.Service<Drafts>()("app/Drafts", { lookup: openFile }) {
  /** The same service without a disk. Whoever uses `Drafts` does not notice: it is a real pool, with all its rules. */
  static readonly layerTest = Layer.effect(
    Drafts,
    SessionPool.make<string, Draft, PlatformError.PlatformError, never>({
      lookup: () =>
        Effect.sync(() => {
          let text = ""
          return {
            append: (line) => Effect.sync(() => void (text += `${line}\n`)),
            text: Effect.sync(() => text)
          }
        })
    })
  )
}

/** What is to be tested. */
const note = Effect.fn("note")((user: string, line: string) =>
  Drafts.use(user, (draft) => Effect.andThen(draft.append(line), draft.text))
)

const scenario = Effect.gen(function*() {
  yield* note("ada", "one")
  yield* note("bob", "hello")
  const text = yield* note("ada", "two")
  const { hits, launches } = yield* Drafts.stats
  return { text, hits, launches }
})

export const main = Effect.all({
  production: scenario.pipe(Effect.provide(Drafts.layer), Effect.provide(NodeServices.layer)),
  test: scenario.pipe(Effect.provide(Drafts.layerTest))
})

if (import.meta.main) NodeRuntime.runMain(Effect.flatMap(main, Console.log))
