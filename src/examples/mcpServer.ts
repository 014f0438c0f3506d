/** An `McpServer` with one notebook per client session: a SQLite database in memory, closed when the session ends or goes idle. */
import { NodeHttpServer, NodeRuntime } from "@effect/platform-node"
import { Context, Effect, Layer, Schema } from "effect"
import { SessionPool } from "effect-session-pool"
import { McpProtocol, McpSchema, McpServer, Tool, Toolkit } from "effect/ai"
import { HttpRouter, HttpServerRequest } from "effect/http"
import { createServer } from "node:http"
import { DatabaseSync } from "node:sqlite"

export class Notebooks extends SessionPool.Service<Notebooks>()("app/Notebooks", {
  lookup: (_session: string) =>
    Effect.acquireDisposable(Effect.sync(() => new DatabaseSync(":memory:"))).pipe(
      Effect.tap((database) => Effect.sync(() => database.exec("CREATE TABLE notes (text TEXT NOT NULL)")))
    ),
  idleTimeToLive: "30 minutes",
  capacity: 1000
}) {}

/** The header `Mcp-Session-Id`. Over HTTP a `clientId` names one request, not the client. */
class Session extends Context.Service<Session, string>()("app/Session") {}

const session = McpServer.middleware<{ provides: Session }>()((effect, { sessionId }) =>
  sessionId === undefined
    ? Effect.fail(new McpSchema.InvalidRequest({ message: "The tools need a session" }))
    : Effect.provideService(effect, Session, sessionId)
)

const tools = Toolkit.make(
  Tool.make("add_note", {
    description: "Adds a note, and returns all notes of the session",
    parameters: Schema.Struct({ text: Schema.String }),
    success: Schema.Struct({ notes: Schema.Array(Schema.String) }),
    failure: Schema.String,
    dependencies: [Session]
  })
)

const handlers = tools.toLayer(Effect.gen(function*() {
  const notebooks = yield* Notebooks
  return {
    add_note: Effect.fnUntraced(function*({ text }) {
      const add = (database: DatabaseSync) => {
        database.prepare("INSERT INTO notes VALUES (?)").run(text)
        return { notes: database.prepare("SELECT text FROM notes").all().map((row) => String(row.text)) }
      }
      return yield* SessionPool.use(notebooks, yield* Session, (database) => Effect.sync(() => add(database)))
    }, Effect.catchTag("SessionPoolError", ({ message }) => Effect.fail(message)))
  }
}))

/** A client that ends its session sends `DELETE`. Its notebook closes then, without waiting for the idle time. */
const endOfSession = HttpRouter.middleware(
  Effect.map(Notebooks, (notebooks) =>
    Effect.fnUntraced(function*(effect) {
      const { headers, method } = yield* HttpServerRequest.HttpServerRequest
      const response = yield* effect
      const ended = method === "DELETE" && response.status === 204 ? headers["mcp-session-id"] : undefined
      if (ended !== undefined) yield* SessionPool.invalidate(notebooks, ended)
      return response
    })),
  { global: true }
)

const mcp = McpServer.layerHttp({
  name: "notebooks",
  version: "1.0.0",
  path: "/mcp",
  protocols: [McpProtocol.v2025_11_25], // That of 2026-07-28 has no sessions.
  allowSessionTermination: true,
  registrations: McpServer.toolkit(tools).pipe(Layer.provide([handlers, session.layer]))
})

export const routes = Layer.merge(mcp, endOfSession)

const server = HttpRouter.serve(routes).pipe(
  Layer.provide(Notebooks.layer),
  Layer.provide(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 3000 }))
)

if (import.meta.main) NodeRuntime.runMain(Layer.launch(server))
