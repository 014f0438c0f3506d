/** A pool whose limits an operator sets in the environment: what is not set keeps its default, what makes no sense is refused. */
import { NodeRuntime, NodeServices } from "@effect/platform-node"
import { ConfigProvider, Console, Effect, FileSystem } from "effect"
import { SessionPool } from "effect-session-pool"

/** A scratch directory per session, removed with it. */
class Directories extends SessionPool.Service<Directories>()(
  "app/Directories",
  Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const options = yield* SessionPool.config("DIRECTORIES")
    return { ...options, lookup: (session: string) => fs.makeTempDirectoryScoped({ prefix: `${session}-` }) }
  })
) {}

/** Without this, the environment is the one of the process. */
const withEnvironment = (env: Record<string, string>) =>
  Effect.provideService(ConfigProvider.ConfigProvider, ConfigProvider.fromEnv({ env }))

const nested = Directories.use("ada", () => Directories.use("bob", () => Effect.succeed("both open"))).pipe(
  Effect.provide(Directories.layer),
  Effect.provide(NodeServices.layer)
)

export const main = Effect.all({
  byDefault: nested.pipe(withEnvironment({})),
  limited: Effect.flip(nested).pipe(
    withEnvironment({ DIRECTORIES_CAPACITY: "1", DIRECTORIES_ACQUIRE_TIMEOUT: "20 millis" }),
    Effect.map((error) => error._tag === "SessionPoolError" ? error.reason._tag : error._tag)
  ),
  refused: Effect.flip(nested).pipe(
    withEnvironment({ DIRECTORIES_IDLE_TIME_TO_LIVE: "-5 minutes" }),
    Effect.map((error) => error.message.split("\n"))
  )
})

if (import.meta.main) NodeRuntime.runMain(Effect.flatMap(main, Console.log))
