/** Requests traced through a pool to an OTLP collector: a launch and a close have spans of their own, as they outlive requests. */
import { NodeHttpServer, NodeRuntime, NodeServices } from "@effect/platform-node"
import { Console, Effect, FileSystem, Layer, Schema } from "effect"
import { SessionPool } from "effect-session-pool"
import { FetchHttpClient, HttpRouter, HttpServer, HttpServerRequest, HttpServerResponse } from "effect/http"
import { OtlpSerialization, OtlpTracer } from "effect/observability"
import { createServer } from "node:http"

/** A scratch directory per session, removed with it. */
class Directories extends SessionPool.Service<Directories>()(
  "app/Directories",
  Effect.map(FileSystem.FileSystem, (fs) => ({
    lookup: (_session: string) => Effect.withSpan(fs.makeTempDirectoryScoped(), "make a directory")
  }))
) {}

const request = Effect.fn("request")(function*(session: string) {
  const fs = yield* FileSystem.FileSystem
  return yield* Directories.use(session, (path) => Effect.withSpan(fs.readDirectory(path), "read the directory"))
})

const Traces = Schema.Struct({
  resourceSpans: Schema.Array(Schema.Struct({
    scopeSpans: Schema.Array(Schema.Struct({
      spans: Schema.Array(Schema.Struct({
        name: Schema.String,
        spanId: Schema.String,
        parentSpanId: Schema.optional(Schema.String)
      }))
    }))
  }))
})

type Span = (typeof Traces.Type)["resourceSpans"][number]["scopeSpans"][number]["spans"][number]

/** Keeps the spans that it gets, where a real collector shows them. */
const collector = (spans: Array<Span>) =>
  HttpRouter.serve(
    HttpRouter.add(
      "POST",
      "/v1/traces",
      Effect.map(HttpServerRequest.schemaBodyJson(Traces), ({ resourceSpans }) => {
        spans.push(...resourceSpans.flatMap(({ scopeSpans }) => scopeSpans.flatMap(({ spans }) => spans)))
        return HttpServerResponse.empty()
      })
    ),
    { disableLogger: true }
  ).pipe(Layer.provideMerge(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0 })))

export const main = Effect.gen(function*() {
  const spans: Array<Span> = []
  yield* Effect.gen(function*() {
    const url = `${HttpServer.formatAddress((yield* HttpServer.HttpServer).address)}/v1/traces`
    // The pool is made under the tracer; the spans go out when the tracer's layer closes, after the pool's.
    const tracer = OtlpTracer.layer({ url, resource: { serviceName: "example" } }).pipe(
      Layer.provide([OtlpSerialization.layerJson, FetchHttpClient.layer])
    )
    const layer = Directories.layer.pipe(Layer.provideMerge(tracer), Layer.provideMerge(NodeServices.layer))
    yield* Effect.andThen(request("ada"), request("ada")).pipe(Effect.provide(layer))
  }).pipe(Effect.provide(collector(spans)))
  const nameOf = (id: string | undefined) => spans.find(({ spanId }) => spanId === id)?.name
  return spans.map(({ name, parentSpanId }) => [nameOf(parentSpanId), name].filter(Boolean).join(" > ")).toSorted()
})

if (import.meta.main) NodeRuntime.runMain(Effect.flatMap(main, Console.log))
