/**
 * A cluster with one workspace per user, a folder on one of its machines: each machine takes every request, and passes it on to the
 * machine that has the folder.
 */
import { NodeClusterSocket, NodeHttpServer, NodeRuntime, NodeServices } from "@effect/platform-node"
import { PgClient } from "@effect/sql-pg"
import { Config, Effect, FileSystem, Layer, Schema } from "effect"
import * as SessionEntity from "effect-session-pool/cluster"
import { Entity } from "effect/cluster"
import { HttpRouter, HttpServerRequest, HttpServerResponse } from "effect/http"
import { Rpc } from "effect/rpc"
import { createServer } from "node:http"

const Name = Schema.String.check(Schema.isPattern(/^[a-z]+$/))

class Busy extends Schema.TaggedError<Busy>()("Busy", {}) {}

const Workspace = Entity.make("Workspace", [
  Rpc.make("Save", {
    payload: { name: Name, text: Schema.String },
    success: Schema.Struct({ folder: Schema.String, files: Schema.Array(Schema.String) }),
    error: Busy
  })
])

/** The key of a session is the id of its entity. Its folder is removed after ten idle minutes, or when the user's shard moves. */
const workspaces = SessionEntity.toLayer(Workspace, {
  lookup: (user) => Effect.flatMap(FileSystem.FileSystem, (fs) => fs.makeTempDirectoryScoped({ prefix: `${user}-` })),
  idleTimeToLive: "10 minutes",
  capacity: 1000,
  handlers: (session) => ({
    Save: ({ payload: { name, text } }) =>
      session.use((folder) =>
        Effect.gen(function*() {
          const fs = yield* FileSystem.FileSystem
          yield* fs.writeFileString(`${folder}/${name}`, text)
          return { folder, files: yield* fs.readDirectory(folder) }
        })
      ).pipe(
        Effect.catchReason("SessionPoolError", "CapacityExceeded", () => new Busy()),
        Effect.catchTags({ SessionPoolError: Effect.die, PlatformError: Effect.die })
      )
  })
})

const save = HttpRouter.use(Effect.fnUntraced(function*(router) {
  const workspace = yield* Workspace.client
  yield* router.add(
    "PUT",
    "/workspaces/:user/:name",
    Effect.gen(function*() {
      const { name, user } = yield* HttpRouter.schemaPathParams(Schema.Struct({ user: Name, name: Name }))
      const text = yield* (yield* HttpServerRequest.HttpServerRequest).text
      return yield* HttpServerResponse.json(yield* workspace(user).Save({ name, text }))
    }).pipe(Effect.catchTag("Busy", () => Effect.succeed(HttpServerResponse.empty({ status: 503 }))))
  )
}))

export const routes = Layer.merge(save, workspaces)

/** `HOST` and `PORT` are the machine's address for the others. PostgreSQL holds the addresses and the locks of the shards. */
const cluster = NodeClusterSocket.layer({ storage: "sql" }).pipe(
  Layer.provide(PgClient.layerConfig({ url: Config.Redacted("DATABASE_URL") }))
)

const server = HttpRouter.serve(routes).pipe(
  Layer.provide(cluster),
  Layer.provide(
    NodeHttpServer.layerConfig(createServer, { port: Config.Port("HTTP_PORT").pipe(Config.withDefault(3000)) })
  ),
  Layer.provide(NodeServices.layer)
)

if (import.meta.main) NodeRuntime.runMain(Layer.launch(server))
