import { NodeHttpServer } from "@effect/platform-node"
import { assert, it } from "@effect/vitest"
import { Client } from "@modelcontextprotocol/sdk/client/index.js"
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js"
import { Effect, Fiber, Layer, Schedule } from "effect"
import { HttpRouter, HttpServer } from "effect/http"
import { TestClock } from "effect/testing"
import { Notebooks, routes } from "./mcpServer.ts"

const server = HttpRouter.serve(routes, { disableLogger: true }).pipe(
  Layer.provideMerge(Notebooks.layer),
  Layer.provideMerge(NodeHttpServer.layerTest)
)

/** Connects the official client, which gets a session of its own. */
const connect = Effect.gen(function*() {
  const url = HttpServer.formatAddress((yield* HttpServer.HttpServer).address)
  const transport = new StreamableHTTPClientTransport(new URL(`${url}/mcp`))
  const client = new Client({ name: "test", version: "1.0.0" })
  yield* Effect.acquireRelease(
    Effect.promise(() => client.connect(transport)),
    () => Effect.promise(() => client.close())
  )
  const call = (text: string) => Effect.promise(() => client.callTool({ name: "add_note", arguments: { text } }))
  return {
    call,
    add: (text: string) => Effect.map(call(text), ({ structuredContent }) => structuredContent),
    end: Effect.promise(() => transport.terminateSession())
  }
})

it.effect("calls of one client session share a notebook, and another client has another notebook", () =>
  Effect.gen(function*() {
    const [ada, bob] = [yield* connect, yield* connect]
    assert.deepStrictEqual(yield* ada.add("one"), { notes: ["one"] })
    assert.deepStrictEqual(yield* bob.add("hello"), { notes: ["hello"] })
    assert.deepStrictEqual(yield* ada.add("two"), { notes: ["one", "two"] })
    assert.strictEqual(yield* Notebooks.size, 2)
  }).pipe(Effect.provide(server)))

it.effect("closes a notebook after thirty idle minutes", () =>
  Effect.gen(function*() {
    const ada = yield* connect
    yield* ada.add("one")
    yield* TestClock.adjust("35 minutes")
    assert.strictEqual((yield* Notebooks.stats).closes.IdleTimeout, 1)
    assert.deepStrictEqual(yield* ada.add("two"), { notes: ["two"] })
  }).pipe(Effect.provide(server)))

it.effect("closes a notebook when its client ends the session", () =>
  Effect.gen(function*() {
    const [ada, bob] = [yield* connect, yield* connect]
    yield* ada.add("one")
    yield* bob.add("hello")
    yield* ada.end
    assert.strictEqual((yield* Notebooks.stats).closes.Invalidated, 1)
    assert.strictEqual(yield* Notebooks.size, 1)
  }).pipe(Effect.provide(server)))

it.effect("tells a client whose notebook has no place to try again later", () =>
  Effect.gen(function*() {
    const ada = yield* connect
    for (let n = 0; n < 1000; n++) yield* Notebooks.get(`other ${n}`)
    const refused = yield* Effect.forkChild(ada.call("one"))
    yield* Notebooks.stats.pipe(
      Effect.repeat({ until: ({ waiting }) => waiting === 1, schedule: Schedule.spaced("10 millis") }),
      TestClock.withLive
    )
    yield* TestClock.adjust("30 seconds")
    const { content, isError } = yield* Fiber.join(refused)
    assert.isTrue(isError)
    assert.include(JSON.stringify(content), "Retry later")
  }).pipe(Effect.scoped, Effect.provide(server)))
