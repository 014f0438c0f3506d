/** A server whose pool Prometheus can watch: launches, retirements, open sessions and how long opening and closing took. */
import { NodeHttpServer, NodeRuntime, NodeServices } from "@effect/platform-node"
import { Console, Effect, FileSystem, Layer } from "effect"
import { SessionPool } from "effect-session-pool"
import { FetchHttpClient, HttpClient, HttpRouter, HttpServer, HttpServerResponse } from "effect/http"
import { PrometheusMetrics } from "effect/observability"
import { createServer } from "node:http"

/** A scratch directory per session, removed with it. The pool's name is the service's id: the attribute `pool`. */
class Directories extends SessionPool.Service<Directories>()(
  "app/ScratchDirectories",
  Effect.map(FileSystem.FileSystem, (fs) => ({ lookup: (_session: string) => fs.makeTempDirectoryScoped() }))
) {}

const visit = Effect.gen(function*() {
  const { session = "" } = yield* HttpRouter.params
  return yield* Directories.use(session, () => Effect.succeed(HttpServerResponse.empty()))
})

const leave = Effect.gen(function*() {
  const { session = "" } = yield* HttpRouter.params
  return HttpServerResponse.empty({ status: (yield* Directories.invalidate(session)) ? 204 : 404 })
})

const routes = Layer.mergeAll(
  HttpRouter.add("POST", "/sessions/:session", visit),
  HttpRouter.add("DELETE", "/sessions/:session", leave),
  PrometheusMetrics.layerHttp()
)

const server = HttpRouter.serve(routes, { disableLogger: true }).pipe(
  Layer.provide(Directories.layer),
  Layer.provideMerge(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0 })),
  Layer.provide(NodeServices.layer)
)

export const main = Effect.gen(function*() {
  const url = HttpServer.formatAddress((yield* HttpServer.HttpServer).address)
  yield* HttpClient.post(`${url}/sessions/ada`)
  yield* HttpClient.post(`${url}/sessions/ada`)
  yield* HttpClient.post(`${url}/sessions/bob`)
  yield* HttpClient.del(`${url}/sessions/bob`)
  const text = yield* Effect.flatMap(HttpClient.get(`${url}/metrics`), (response) => response.text)
  return text.split("\n").filter((line) => /^session_pool_\w+_total\{pool="app\/ScratchDirectories"/.test(line))
}).pipe(Effect.provide([server, FetchHttpClient.layer]))

if (import.meta.main) NodeRuntime.runMain(Effect.flatMap(main, Console.log))
