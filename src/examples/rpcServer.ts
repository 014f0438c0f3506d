/** An `RpcServer` with one SQLite database per tenant, which a stream holds open as long as a client watches it. */
import { NodeHttpServer, NodeRuntime, NodeServices } from "@effect/platform-node"
import { Config, Effect, FileSystem, Layer, PubSub, Schema, Stream } from "effect"
import { SessionPool } from "effect-session-pool"
import { HttpRouter } from "effect/http"
import { Rpc, RpcGroup, RpcSerialization, RpcServer } from "effect/rpc"
import { createServer } from "node:http"
import { DatabaseSync } from "node:sqlite"

const Tenant = Schema.String.check(Schema.isPattern(/^[a-z]+$/))
const Order = Schema.Struct({ id: Schema.Number, item: Schema.String })

export class Busy extends Schema.TaggedError<Busy>()("Busy", {}) {}

export class Orders extends RpcGroup.make(
  Rpc.make("Add", { payload: { tenant: Tenant, item: Schema.String }, success: Order, error: Busy }),
  Rpc.make("Watch", { payload: { tenant: Tenant }, success: Order, error: Busy, stream: true })
) {}

const open = Effect.fnUntraced(function*(path: string) {
  const database = yield* Effect.acquireDisposable(Effect.sync(() => new DatabaseSync(path)))
  database.exec("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL) STRICT")
  return database
})

/** At most 100 databases are open. To open one more, the pool closes the least recently used database without a lease. */
export class Databases extends SessionPool.Service<Databases>()(
  "app/Databases",
  Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const folder = yield* Config.String("DATABASES").pipe(Config.withDefault("databases"))
    yield* fs.makeDirectory(folder, { recursive: true })
    return { lookup: (tenant: string) => open(`${folder}/${tenant}.db`), idleTimeToLive: "10 minutes", capacity: 100 }
  })
) {}

/** A full server tells the client so. Every other failure of the pool is a defect. */
const busy = (error: SessionPool.SessionPoolError) =>
  error.reason._tag === "CapacityExceeded" ? Effect.fail(new Busy()) : Effect.die(error)

export const handlers = Orders.toLayer(Effect.gen(function*() {
  const databases = yield* Databases
  // Not part of a connection, so a watcher outlives it. A client that reads too slowly loses the oldest orders.
  const added = yield* PubSub.sliding<{ readonly tenant: string; readonly order: typeof Order.Type }>(1024)
  const insert = (database: DatabaseSync, item: string) => {
    const { lastInsertRowid } = database.prepare("INSERT INTO orders (item) VALUES (?)").run(item)
    return { id: Number(lastInsertRowid), item }
  }
  return {
    Add: ({ tenant, item }) =>
      SessionPool.use(databases, tenant, (database) => {
        const inserted = Effect.sync(() => insert(database, item))
        return Effect.uninterruptible(Effect.tap(inserted, (order) => PubSub.publish(added, { tenant, order })))
      }).pipe(Effect.catchTag("SessionPoolError", busy)),
    // The lease belongs to the stream's scope.
    Watch: ({ tenant }) =>
      SessionPool.get(databases, tenant).pipe(
        Effect.catchTag("SessionPoolError", busy),
        Effect.as(Stream.fromPubSub(added)),
        Stream.unwrap,
        Stream.filter((each) => each.tenant === tenant),
        Stream.map(({ order }) => order)
      )
  }
}))

export const routes = RpcServer.layerHttp({ group: Orders, path: "/rpc", protocol: "http" }).pipe(
  Layer.provide([handlers, RpcSerialization.layerNdjson])
)

const server = HttpRouter.serve(routes).pipe(
  Layer.provide(Databases.layer),
  // A watcher's stream has no end of its own, so the server does not wait long for it.
  Layer.provide(
    NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 3000, gracefulShutdownTimeout: "1 second" })
  ),
  Layer.provide(NodeServices.layer)
)

if (import.meta.main) NodeRuntime.runMain(Layer.launch(server))
