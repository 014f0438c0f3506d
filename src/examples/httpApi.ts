/** An `HttpApi` server with one open journal file per user, which the user's requests share. */
import { NodeHttpServer, NodeRuntime, NodeServices } from "@effect/platform-node"
import { Config, Effect, FileSystem, Layer, Schema } from "effect"
import { SessionPool } from "effect-session-pool"
import { HttpRouter } from "effect/http"
import { HttpApi, HttpApiBuilder, HttpApiEndpoint, HttpApiError, HttpApiGroup } from "effect/http-api"
import { createServer } from "node:http"

const User = Schema.String.check(Schema.isPattern(/^[a-z]+$/))

export class Api extends HttpApi.make("journals").add(
  HttpApiGroup.make("journal").add(
    HttpApiEndpoint.post("append", "/journals/:user", {
      params: { user: User },
      payload: Schema.Struct({ line: Schema.String }),
      success: Schema.Struct({ bytes: Schema.Number }),
      error: HttpApiError.ServiceUnavailable
    })
  )
) {}

/** `fs.open` closes the file with its scope, so the pool closes it when the user is idle, or when the server stops. */
export class Journals extends SessionPool.Service<Journals>()(
  "app/Journals",
  Effect.gen(function*() {
    const fs = yield* FileSystem.FileSystem
    const folder = yield* Config.String("JOURNALS").pipe(Config.withDefault("journals"))
    yield* fs.makeDirectory(folder, { recursive: true })
    return {
      lookup: (user: string) => fs.open(`${folder}/${user}.txt`, { flag: "a+" }),
      idleTimeToLive: "10 minutes",
      capacity: 1000
    }
  })
) {}

const handlers = HttpApiBuilder.group(
  Api,
  "journal",
  Effect.fn(function*(handlers) {
    const journals = yield* Journals
    return handlers.handle(
      "append",
      ({ params: { user }, payload: { line } }) =>
        SessionPool.use(journals, user, (file) =>
          Effect.gen(function*() {
            yield* file.writeAll(new TextEncoder().encode(`${line}\n`))
            return { bytes: Number((yield* file.stat).size) }
          })).pipe(
            // A full server asks the client to come back. Every other failure is a 500.
            Effect.catchReason("SessionPoolError", "CapacityExceeded", () => new HttpApiError.ServiceUnavailable()),
            Effect.catchTags({ SessionPoolError: Effect.die, PlatformError: Effect.die })
          )
    )
  })
)

export const routes = HttpApiBuilder.layer(Api).pipe(Layer.provide(handlers))

const server = HttpRouter.serve(routes).pipe(
  Layer.provide(Journals.layer),
  Layer.provide(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 3000 })),
  Layer.provide(NodeServices.layer)
)

if (import.meta.main) NodeRuntime.runMain(Layer.launch(server))
