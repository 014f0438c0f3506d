#!/usr/bin/env node
/**
 * The command line of the gateway.
 *
 * Without arguments it serves the official `server-everything`, if that is installed; `-- COMMAND ARGS…` serves one
 * command, `--config FILE` what a file names.
 */
import { NodeHttpServer, NodeRuntime, NodeServices } from "@effect/platform-node"
import { Console, Duration, Effect, FileSystem, Layer, Logger, Option, Path, Schema } from "effect"
import { Argument, Command, Flag } from "effect/cli"
import { HttpRouter, HttpServer } from "effect/http"
import { createServer } from "node:http"
import { createRequire } from "node:module"
import * as Config from "./Config.ts"
import * as Gateway from "./Gateway.ts"

/** Something that the person at the command line can mend; told without a stack. */
class UsageError extends Schema.TaggedError<UsageError>()("UsageError", { message: Schema.String }) {}

const flags = {
  config: Flag.String("config").pipe(
    Flag.withDescription("A file with the mcpServers JSON that MCP clients use"),
    Flag.optional
  ),
  host: Flag.String("host").pipe(Flag.withDescription("The address to listen on"), Flag.withDefault("127.0.0.1")),
  port: Flag.Int("port").pipe(
    Flag.withDescription("The port to listen on; 0 takes a free one"),
    Flag.withDefault(8420)
  ),
  idleTimeout: Flag.String("idle-timeout").pipe(
    Flag.withDescription("A session without requests or streams ends after this, e.g. \"30 minutes\""),
    Flag.optional
  ),
  insecure: Flag.Boolean("insecure").pipe(
    Flag.withDescription("Listen on an address that other machines reach, although anyone there may use it"),
    Flag.withDefault(false)
  ),
  command: Argument.String("command").pipe(
    Argument.withDescription("After --: the command of one stdio server, and its arguments"),
    Argument.variadic()
  )
}

const loopback = (host: string) => host === "localhost" || host === "::1" || host.startsWith("127.")

const embedded: Option.Option<Gateway.StdioEntry> = Option.map(
  Option.liftThrowable(() =>
    createRequire(import.meta.url).resolve("@modelcontextprotocol/server-everything/dist/index.js")
  )(),
  (path) => ({ command: process.execPath, args: [path, "stdio"], env: {}, cwd: undefined })
)

const waysToServe = [
  "  effect-session-pool -- COMMAND ARGS…     one stdio server",
  "  effect-session-pool --config FILE        those of an mcpServers file"
].join("\n")

/** What is to be served: a command, a file, or the embedded default. */
const backends = Effect.fnUntraced(function*(command: ReadonlyArray<string>, config: Option.Option<string>) {
  const [program, ...args] = command
  if (program !== undefined && Option.isSome(config)) {
    return yield* new UsageError({ message: "Give either --config FILE or -- COMMAND, not both." })
  }
  if (program !== undefined) {
    const path = yield* Path.Path
    const name = path.basename(program).replace(/[^A-Za-z0-9._-]/g, "-").replace(/^[^A-Za-z0-9]+/, "").slice(0, 64)
    const entry = { command: program, args, env: {}, cwd: undefined }
    return { backends: { [name === "" ? "server" : name]: entry }, idleTimeToLive: undefined, maxSessions: undefined }
  }
  if (Option.isSome(config)) {
    const file = config.value
    const text = yield* Effect.mapError(
      Effect.flatMap(FileSystem.FileSystem, (fs) => fs.readFileString(file)),
      (error) => new UsageError({ message: `The configuration ${file} cannot be read (${error.reason._tag}).` })
    )
    const parsed = Config.parse(file, text, process.env)
    return parsed instanceof Config.InvalidConfig ? yield* parsed : parsed
  }
  if (Option.isSome(embedded)) {
    return { backends: { everything: embedded.value }, idleTimeToLive: undefined, maxSessions: undefined }
  }
  return yield* new UsageError({ message: `There is nothing to serve yet. Say what:\n${waysToServe}` })
})

const banner = (names: ReadonlyArray<string>, origin: string): string => {
  const urls = names.map((name) => ({ name, url: `${origin}/mcp/${name}` }))
  const servers = Object.fromEntries(urls.map(({ name, url }) => [name, { type: "http", url }]))
  return [
    "",
    "The gateway is up: one process per client session.",
    "",
    ...urls.map(({ name, url }) => `  ${name}: ${url}`),
    "",
    "Connect a client, for instance:",
    "",
    ...urls.map(({ name, url }) => `  claude mcp add --transport http ${name} ${url}`),
    "",
    "or, in a client's mcpServers file:",
    "",
    ...JSON.stringify({ mcpServers: servers }, null, 2).split("\n").map((line) => `  ${line}`),
    "",
    "Stop it with Ctrl-C; every process it started ends with it.",
    ""
  ].join("\n")
}

const serve = Command.make(
  "effect-session-pool",
  flags,
  Effect.fnUntraced(function*(input) {
    const { host, insecure, port } = input
    if (!loopback(host) && !insecure) {
      return yield* new UsageError({
        message: `Other machines reach ${host}, and the gateway would serve anyone there. ` +
          "Listen on 127.0.0.1, or say --insecure if that is what you want."
      })
    }
    const idle = Option.map(input.idleTimeout, Schema.decodeUnknownOption(Schema.DurationFromString))
    if (Option.isSome(idle) && !(Option.isSome(idle.value) && Duration.isPositive(idle.value.value))) {
      return yield* new UsageError({ message: "--idle-timeout must be a duration such as \"30 minutes\"." })
    }
    const served = yield* backends(input.command, input.config)
    const gateway = Gateway.layer({
      backends: served.backends,
      environment: process.env,
      idleTimeToLive: Option.getOrUndefined(Option.flatten(idle)) ?? served.idleTimeToLive,
      maxSessions: served.maxSessions,
      ...(loopback(host) ? {} : { allowedHosts: [host, "127.0.0.1", "localhost"] })
    })
    const announce = Layer.effectDiscard(
      Effect.flatMap(HttpServer.HttpServer, ({ address }) => {
        const bound = address._tag === "UnixPathAddress" ? port : address.port
        const name = host.includes(":") ? `[${host}]` : host
        return Console.log(banner(Object.keys(served.backends), `http://${name}:${bound}`))
      })
    )
    const server = NodeHttpServer.layer(createServer, { host, port, gracefulShutdownTimeout: "1 second" })
    return yield* Layer.launch(
      Layer.provide(
        Layer.mergeAll(HttpRouter.serve(gateway, { disableLogger: true, disableListenLog: true }), announce),
        server
      )
    ).pipe(
      Effect.catchTag("ServeError", (error) =>
        new UsageError({
          message: `Cannot listen on ${host}:${port} (${
            String(error.cause)
          }). Is another gateway running? Try --port 0.`
        }))
    )
  })
).pipe(
  Command.withDescription("Serves stdio MCP servers on Streamable HTTP, one process per client session")
)

Command.run(serve, { version: "0.1.0" }).pipe(
  Effect.catchTags({
    UsageError: (error) => fail(error.message),
    InvalidConfig: (error) => fail(error.message)
  }),
  Effect.provide(Layer.mergeAll(NodeServices.layer, Logger.layer([Logger.consolePretty()]))),
  NodeRuntime.runMain({ disableErrorReporting: true })
)

function fail(message: string) {
  return Effect.andThen(
    Console.error(message),
    Effect.sync(() => {
      process.exitCode = 1
    })
  )
}
