/** An `HttpApi` server on which every user writes into a journal of their own, a file that stays open from request to request. */
import { NodeHttpServer, NodeRuntime, NodeServices } from "@effect/platform-node"
import { Console, Effect, FileSystem, Layer, Schema } from "effect"
import { SessionPool } from "effect-session-pool"
import { FetchHttpClient, HttpRouter, HttpServer } from "effect/http"
import { HttpApi, HttpApiBuilder, HttpApiClient, HttpApiEndpoint, HttpApiError, HttpApiGroup } from "effect/http-api"
import { createServer } from "node:http"

const User = Schema.String.check(Schema.isPattern(/^[a-z]+$/))

class Api extends HttpApi.make("journals").add(
  HttpApiGroup.make("journal").add(
    HttpApiEndpoint.post("append", "/journals/:user", {
      params: { user: User },
      payload: Schema.Struct({ line: Schema.String }),
      success: Schema.Struct({ bytes: Schema.Number }),
      error: HttpApiError.ServiceUnavailable
    })
  )
) {}

const directory = Effect.flatMap(FileSystem.FileSystem, (fs) => fs.makeTempDirectoryScoped())

/** One open file per user. Opening it is scoped already, so the pool closes it: idle for ten minutes, or at the end. */
class Journals extends SessionPool.Service<Journals>()(
  "app/Journals",
  Effect.gen(function*() {
    const [fs, path] = [yield* FileSystem.FileSystem, yield* directory]
    return {
      lookup: (user: string) => fs.open(`${path}/${user}.txt`, { flag: "a+" }),
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
            Effect.catchReason(
              "SessionPoolError",
              "CapacityExceeded",
              () => Effect.fail(new HttpApiError.ServiceUnavailable())
            ),
            Effect.catchTags({ SessionPoolError: Effect.die, PlatformError: Effect.die })
          )
    )
  })
)

const server = HttpRouter.serve(HttpApiBuilder.layer(Api).pipe(Layer.provide(handlers)), { disableLogger: true }).pipe(
  Layer.provideMerge(Journals.layer),
  Layer.provideMerge(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0 })),
  Layer.provide(NodeServices.layer)
)

export const main = Effect.gen(function*() {
  const { address } = yield* HttpServer.HttpServer
  const client = yield* HttpApiClient.make(Api, { baseUrl: HttpServer.formatAddress(address) })
  const append = (user: string, line: string) => client.journal.append({ params: { user }, payload: { line } })
  const sizes = [yield* append("ada", "one"), yield* append("bob", "hello"), yield* append("ada", "two")]
  const { hits, launches } = yield* Journals.stats
  return { sizes: sizes.map(({ bytes }) => bytes), hits, launches }
}).pipe(Effect.provide([server, FetchHttpClient.layer]))

if (import.meta.main) NodeRuntime.runMain(Effect.flatMap(main, Console.log))
