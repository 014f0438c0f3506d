/** A SQLite database per tenant: opened by its first query, closed when it is idle, and never more of them open than `capacity`. */
import { NodeRuntime, NodeServices } from "@effect/platform-node"
import { Console, Effect, FileSystem, Schema } from "effect"
import { SessionPool } from "effect-session-pool"
import { DatabaseSync } from "node:sqlite"

class DatabaseError extends Schema.TaggedError<DatabaseError>()("DatabaseError", { cause: Schema.Defect() }) {}

const attempt = <A>(f: () => A) => Effect.try({ try: f, catch: (cause) => new DatabaseError({ cause }) })

const open = (path: string) =>
  Effect.acquireRelease(
    attempt(() => {
      const database = new DatabaseSync(path)
      database.exec("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL) STRICT")
      return database
    }),
    (database) => Effect.sync(() => database.close())
  )

/** At most two databases open; a third one closes the one that was used least recently. */
class Databases extends SessionPool.Service<Databases>()(
  "app/Databases",
  Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const directory = yield* fs.makeTempDirectoryScoped()
    return {
      lookup: (tenant: string) => open(`${directory}/${tenant}.db`),
      capacity: 2,
      // A statement that the database refuses says nothing about the connection.
      isError: () => false
    }
  })
) {}

const order = Effect.fn("order")((tenant: string, item: string | null) =>
  Databases.use(
    tenant,
    (database) =>
      attempt(() => Number(database.prepare("INSERT INTO orders (item) VALUES (?)").run(item).lastInsertRowid))
  )
)

export const main = Effect.gen(function*() {
  const ids = [yield* order("acme", "anvil"), yield* order("acme", "rocket"), yield* order("globex", "laser")]
  const refused = yield* Effect.flip(order("globex", null))
  // No place is left: acme's database, idle for longest, is closed. Its data is there when it comes back.
  const third = yield* order("initech", "stapler")
  const back = yield* order("acme", "magnet")
  const { closes, launches } = yield* Databases.stats
  return { ids: [...ids, third, back], refused: refused._tag, launches, evicted: closes.Evicted }
}).pipe(Effect.provide(Databases.layer), Effect.provide(NodeServices.layer))

if (import.meta.main) NodeRuntime.runMain(Effect.flatMap(main, Console.log))
