import { NodeHttpServer, NodeServices } from "@effect/platform-node"
import { assert, it } from "@effect/vitest"
import { ConfigProvider, Effect, Fiber, FileSystem, Layer, Stream } from "effect"
import { HttpRouter } from "effect/http"
import { HttpApiClient } from "effect/http-api"
import { TestClock } from "effect/testing"
import { Api, Journals, routes } from "./httpApi.ts"

/** The folder of the journals is a new one, which the test removes. */
const config = Layer.unwrap(Effect.gen(function*() {
  const folder = yield* (yield* FileSystem.FileSystem).makeTempDirectoryScoped()
  return ConfigProvider.layer(ConfigProvider.fromEnv({ env: { JOURNALS: folder } }))
}))

const server = HttpRouter.serve(routes, { disableLogger: true }).pipe(
  Layer.provideMerge(Journals.layer),
  Layer.provideMerge(NodeHttpServer.layerTest),
  Layer.provide(config),
  Layer.provide(NodeServices.layer)
)

const start = Effect.gen(function*() {
  const client = yield* HttpApiClient.make(Api)
  return (user: string, line: string) => client.journal.append({ params: { user }, payload: { line } })
})

it.effect("requests of one user share an open file, and another user has another file", () =>
  Effect.gen(function*() {
    const append = yield* start
    assert.deepStrictEqual(yield* append("ada", "one"), { bytes: 4 })
    assert.deepStrictEqual(yield* append("bob", "hello"), { bytes: 6 })
    assert.deepStrictEqual(yield* append("ada", "two"), { bytes: 8 })
    const { hits, launches } = yield* Journals.stats
    assert.deepStrictEqual({ hits, launches }, { hits: 1, launches: 2 })
  }).pipe(Effect.provide(server)))

it.effect("closes a file after ten idle minutes, and opens it again with its content", () =>
  Effect.gen(function*() {
    const append = yield* start
    const closed = yield* Journals.events.pipe(
      Stream.filter(({ _tag }) => _tag === "Closed"),
      Stream.runHead,
      Effect.forkScoped({ startImmediately: true })
    )
    yield* append("ada", "one")
    yield* TestClock.adjust("12 minutes")
    // The clock starts the close. The file system ends it.
    yield* Fiber.join(closed)
    assert.strictEqual((yield* Journals.stats).closes.IdleTimeout, 1)
    assert.deepStrictEqual(yield* append("ada", "two"), { bytes: 8 })
  }).pipe(Effect.provide(server)))
