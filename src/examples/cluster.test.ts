import { NodeHttpServer, NodeServices } from "@effect/platform-node"
import { assert, it } from "@effect/vitest"
import { Effect, FileSystem, Layer, Schema } from "effect"
import { TestRunner } from "effect/cluster"
import { HttpBody, HttpClient, HttpClientResponse, HttpRouter } from "effect/http"
import { TestClock } from "effect/testing"
import { routes } from "./cluster.ts"

const server = HttpRouter.serve(routes, { disableLogger: true }).pipe(
  Layer.provide(TestRunner.layer),
  Layer.provideMerge(NodeHttpServer.layerTest),
  Layer.provide(NodeServices.layer)
)

const Saved = Schema.Struct({ folder: Schema.String, files: Schema.Array(Schema.String) })

const save = (user: string, name: string) =>
  HttpClient.put(`/workspaces/${user}/${name}`, { body: HttpBody.text("hello") }).pipe(
    Effect.flatMap(HttpClientResponse.schemaBodyJson(Saved))
  )

it.effect("requests of one user share a folder, and another user has another folder", () =>
  Effect.gen(function*() {
    const first = yield* save("ada", "one")
    assert.deepStrictEqual(first.files, ["one"])
    const other = yield* save("bob", "one")
    assert.notStrictEqual(other.folder, first.folder)
    const second = yield* save("ada", "two")
    assert.deepStrictEqual({ ...second, files: second.files.toSorted() }, { ...first, files: ["one", "two"] })
  }).pipe(Effect.provide(server)))

it.effect("removes a folder after ten idle minutes", () =>
  Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const { folder } = yield* save("ada", "one")
    assert.isTrue(yield* fs.exists(folder))
    yield* TestClock.adjust("12 minutes")
    // The clock starts the removal. The file system ends it.
    yield* Effect.repeat(fs.exists(folder), { until: (exists) => !exists })
    assert.deepStrictEqual((yield* save("ada", "two")).files, ["two"])
  }).pipe(Effect.provide(server)))
