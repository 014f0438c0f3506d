import { NodeHttpServer, NodeServices } from "@effect/platform-node"
import { assert, it } from "@effect/vitest"
import { ConfigProvider, Effect, Fiber, FileSystem, Layer, Schedule, Stream } from "effect"
import { HttpClient, HttpClientRequest, HttpRouter } from "effect/http"
import { RpcClient, RpcSerialization } from "effect/rpc"
import { TestClock } from "effect/testing"
import { Databases, Orders, routes } from "./rpcServer.ts"

/** The folder of the databases is a new one, which the test removes. */
const config = Layer.unwrap(Effect.gen(function*() {
  const folder = yield* (yield* FileSystem.FileSystem).makeTempDirectoryScoped()
  return ConfigProvider.layer(ConfigProvider.fromEnv({ env: { DATABASES: folder } }))
}))

const client = RpcClient.layerProtocolHttp({
  url: "",
  transformClient: HttpClient.mapRequest(HttpClientRequest.appendUrl("/rpc"))
})

const server = HttpRouter.serve(routes, { disableLogger: true }).pipe(
  Layer.provideMerge(Databases.layer),
  Layer.provideMerge(client),
  Layer.provide([NodeHttpServer.layerTest, RpcSerialization.layerNdjson]),
  Layer.provide(config),
  Layer.provide(NodeServices.layer)
)

it.effect("requests of one tenant share a database, and another tenant has another database", () =>
  Effect.gen(function*() {
    const client = yield* RpcClient.make(Orders)
    const add = (tenant: string, item: string) => client.Add({ tenant, item })
    assert.deepStrictEqual(yield* add("acme", "anvil"), { id: 1, item: "anvil" })
    assert.deepStrictEqual(yield* add("globex", "laser"), { id: 1, item: "laser" })
    assert.deepStrictEqual(yield* add("acme", "rocket"), { id: 2, item: "rocket" })
    const { hits, launches } = yield* Databases.stats
    assert.deepStrictEqual({ hits, launches }, { hits: 1, launches: 2 })
  }).pipe(Effect.provide(server)))

it.effect("closes a database after ten idle minutes, and opens it again with its orders", () =>
  Effect.gen(function*() {
    const client = yield* RpcClient.make(Orders)
    yield* client.Add({ tenant: "acme", item: "anvil" })
    yield* TestClock.adjust("12 minutes")
    assert.strictEqual((yield* Databases.stats).closes.IdleTimeout, 1)
    assert.deepStrictEqual(yield* client.Add({ tenant: "acme", item: "rocket" }), { id: 2, item: "rocket" })
  }).pipe(Effect.provide(server)))

it.effect("keeps a database open for as long as a client watches it", () =>
  Effect.gen(function*() {
    const client = yield* RpcClient.make(Orders)
    const launched = yield* Databases.events.pipe(
      Stream.filter(({ _tag }) => _tag === "Launched"),
      Stream.take(1),
      Stream.runDrain,
      Effect.forkScoped({ startImmediately: true })
    )
    const watcher = yield* Stream.runHead(client.Watch({ tenant: "acme" })).pipe(Effect.forkScoped)
    yield* Fiber.join(launched)
    yield* TestClock.adjust("1 hour")
    assert.deepStrictEqual(yield* Databases.keys, ["acme"])
    yield* client.Add({ tenant: "acme", item: "anvil" })
    assert.deepStrictEqual(yield* Effect.flatMap(Fiber.join(watcher), Effect.fromOption), { id: 1, item: "anvil" })
    // The server notices the end of the stream in real time.
    yield* Databases.stats.pipe(
      Effect.repeat({ until: ({ leases }) => leases === 0, schedule: Schedule.spaced("10 millis") }),
      TestClock.withLive
    )
    yield* TestClock.adjust("12 minutes")
    assert.deepStrictEqual(yield* Databases.keys, [])
  }).pipe(Effect.provide(server)))
