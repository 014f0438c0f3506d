/**
 * The command line of the gateway.
 *
 * Without arguments the command serves the official `server-everything`, if that is installed. `-- COMMAND ARGS…` serves one
 * stdio server. `--config FILE` serves the servers of a file.
 */
// Single modules of `@effect/platform-node`: the whole package loads Redis, WebSocket and undici clients (20 MiB, 0.2 seconds).
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Cause, Config as EffectConfig, ConfigProvider, Console, Context, Duration, Effect, Layer, Queue } from "effect"
import { Command } from "effect/cli"
import { FetchHttpClient, HttpRouter, HttpServer, HttpServerError, UrlParams } from "effect/http"
import { Otlp, OtlpSerialization } from "effect/observability"
import type { Server } from "node:http"
import { createServer } from "node:http"
import { createServer as createTlsServer } from "node:https"
import { inspect } from "node:util"
import * as Clients from "../auth/Clients.ts"
import { jsonResponse } from "../auth/Routes.ts"
import * as Gateway from "../Gateway.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import { version } from "../protocol/version.ts"
import * as Settings from "../settings/Settings.ts"
import * as Backends from "../transports/Backends.ts"
import * as ProcessGroup from "../transports/ProcessGroup.ts"
import * as Banner from "./Banner.ts"
import * as CommandOutput from "./CommandOutput.ts"
import * as Flags from "./Flags.ts"
import type { Loaded } from "./Loading.ts"
import { load, refuse } from "./Loading.ts"
import * as Signals from "./Signals.ts"

const serverLayer = (settings: Settings.GatewaySettings, tls: { cert: string; key: string } | undefined) => {
  const { bodyTimeout, headersTimeout, host, keepAliveTimeout, maxHeaderBytes, port } = settings
  // Node wants integers, and reads zero as "no limit".
  const millis = (duration: Duration.Duration) =>
    Duration.isFinite(duration) ? Math.ceil(Duration.toMillis(duration)) : 0
  const limits = {
    maxHeaderSize: maxHeaderBytes,
    // Node refuses a `headersTimeout` above `requestTimeout`.
    headersTimeout: millis(Duration.min(headersTimeout, bodyTimeout)),
    requestTimeout: millis(bodyTimeout),
    // Balancers keep connections for longer than Node's default of 5 seconds. They would send a request while Node closes it.
    keepAliveTimeout: millis(keepAliveTimeout),
    connectionsCheckingInterval: 1000,
    // Refuses every upgrade: a client that offers one (`Upgrade: h2c`) gets an HTTP/1.1 answer on the same connection. Node has
    // this option since 24.9. Older versions close the connection after the answer.
    shouldUpgradeCallback: () => false,
    keepAlive: true,
    keepAliveInitialDelay: 10_000
  }
  return NodeHttpServer.layer(
    () => answerWithoutRoutes(tls === undefined ? createServer(limits) : createTlsServer({ ...limits, ...tls })),
    // With Node's default backlog of 511 a burst of clients waits for seconds. The kernel caps this value.
    { host, port, backlog: 4096, gracefulShutdownTimeout: "1 second" }
  )
}

/**
 * Answers requests that come before the routes are installed or after they are removed. Node would drop them, and their clients
 * would wait forever. The routes are the server's second listener.
 */
export const answerWithoutRoutes = (server: Server): Server =>
  server.on("request", (_, response) => {
    if (server.listenerCount("request") > 1) return
    response.writeHead(503, { "content-type": "application/json", "retry-after": "10", connection: "close" })
    response.end(JsonRpc.error(null, JsonRpc.codes.gateway, "The gateway starts or stops").text)
  })

/** Loads the configuration again at each SIGHUP. */
const reloads = (
  hangUps: Queue.Dequeue<NodeJS.Signals>,
  input: Flags.Input,
  settings: Settings.GatewaySettings,
  gateway: Gateway.Gateway["Service"]
) =>
  Effect.forever(
    Effect.gen(function*() {
      // Several pending signals cause one reload.
      yield* Queue.takeAll(hangUps)
      const { config: next, missing, warnings } = yield* load(input)
      for (const warning of [...warnings, ...missing]) yield* Effect.logWarning(warning)
      const differing = Settings.differing(settings, next.settings)
      if (differing.length > 0) {
        yield* Effect.logWarning(`These changed settings need a restart: ${differing.join(", ")}`)
      }
      const { added, changed, removed } = yield* gateway.reload(next)
      yield* Effect.logInfo("reloaded").pipe(Effect.annotateLogs({ added, changed, removed }))
    }).pipe(
      Effect.catch(({ message }) => Effect.logError(`Not reloaded: the gateway keeps its configuration. ${message}`)),
      Effect.catchCause((cause) => Effect.logError("A reload failed unexpectedly", cause))
    )
  )

const otherHost = "Give --host an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all its addresses."

/** What to do if the gateway cannot listen, by the code of the error. */
const toListen: Readonly<Record<string, string>> = {
  EACCES: "Ports below 1024 need root: try --port 8420.",
  EADDRINUSE: "Is another gateway running? Stop it, or try --port 0 for any free port.",
  EADDRNOTAVAIL: otherHost,
  ENOTFOUND: otherHost,
  EAI_AGAIN: "The DNS does not answer. Is the host's name right?"
}

/** Loads the cluster on demand, because a single gateway needs no database client. */
const loadCluster = Effect.tryPromise({
  try: () => import("../cluster/Cluster.ts"),
  catch: (cause) =>
    refuse(
      `The code of --cluster cannot be loaded (${String(cause)}). Is @effect/sql-pg installed beside the gateway? ` +
        "Run npm install @effect/sql-pg"
    )
})

/**
 * Answers every unknown path with 404. Such paths are those of other gateways (`/sse`), those where clients look for OAuth, and
 * malformed ones (`/mcp/%ff`). The body is an OAuth error, because clients show its description to their users. It names no back ends:
 * `/mcp` does, after the access checks.
 */
const elsewhere = (settings: Settings.GatewaySettings) => {
  const { authIssuer } = settings
  const how = authIssuer === ""
    ? `This gateway has no OAuth. ${Clients.howToAuthenticate(settings)}`
    : `Its authorization server is ${authIssuer}`
  const error_description = `Not found. MCP is at /mcp/NAME, or at /mcp if the gateway has only one server. ${how}`
  const nothingHere = jsonResponse(JSON.stringify({ error: "invalid_request", error_description }), 404)
  return HttpRouter.middleware((routed) =>
    Effect.catchCause(routed, (cause) => {
      const error = Cause.squash(cause)
      return HttpServerError.isHttpServerError(error) && error.reason._tag === "RouteNotFound"
        ? Effect.succeed(nothingHere)
        : Effect.failCause(cause)
    }), { global: true })
}

const run = Effect.fnUntraced(function*(input: Flags.Input) {
  // Listens before the configuration is read: the file may change before the server is up.
  const hangUps = yield* Signals.of("SIGHUP")
  const loaded = yield* load(input)
  const { config: { backends }, missing, warnings } = loaded
  // A missing program of a file may be installed later, by a container's start script, so it is only a warning.
  if (missing.length > 0 && (input.check || input.command.length > 0)) {
    return yield* new Backends.InvalidGatewayOptions({ faults: missing })
  }
  if (!input.check) return yield* serve(input, loaded, hangUps)
  const valid = `The configuration is valid. Back ends: ${[...backends.keys()].join(", ")}`
  yield* Console.log([valid, ...warnings.map((warning) => `Warning: ${warning}`)].join("\n"))
}, Effect.scoped)

const serve = Effect.fnUntraced(
  function*(input: Flags.Input, loaded: Loaded, hangUps: Queue.Dequeue<NodeJS.Signals>) {
    const { cluster, config, missing, tls, warnings } = loaded
    const { settings } = config
    const alone = Gateway.layerConfig(config, process.env)
    const gateway = cluster === undefined ? alone : Layer.provide(alone, (yield* loadCluster).layer(cluster))
    // The gateway reads no query, and a client may put its token there by mistake. Spans get no value of it.
    const withoutQueries = Layer.succeed(UrlParams.CurrentRedactedNames, [/./])
    const app = Layer.provideMerge(
      HttpRouter.serve(Layer.merge(gateway, elsewhere(settings)), { disableLogger: true, disableListenLog: true }),
      serverLayer(settings, tls)
    ).pipe(Layer.provide(withoutQueries))
    // Detached from the server's scope, so that a second signal still works while that scope closes.
    yield* Effect.forkDetach(Effect.scoped(Signals.hurry(settings.drainTimeout)))
    const services = yield* Effect.catchTag(Layer.build(app), "ServeError", ({ cause }) =>
      refuse(
        `Cannot listen on ${settings.host}:${settings.port} (${String(cause)}). ` +
          (toListen[ProcessGroup.codeOf(cause)] ?? "")
      ))
    const running = Context.get(services, Gateway.Gateway)
    const { address } = Context.get(services, HttpServer.HttpServer)
    const bound = address._tag === "UnixPathAddress" ? settings.port : address.port
    const origin = Banner.origin(settings, tls === undefined ? "http" : "https", bound)
    yield* Console.log(Banner.make([...config.backends.keys()], origin, settings))
    for (const warning of [...warnings, ...missing]) yield* Effect.logWarning(warning)
    yield* Effect.forkScoped(reloads(hangUps, input, settings, running))
    return yield* Effect.onInterrupt(Effect.never, () => running.drain)
  },
  Effect.scoped,
  (serving) => Effect.provide(serving, telemetry)
)

/** Exports traces, metrics and logs if `OTEL_EXPORTER_OTLP_ENDPOINT` is set. Other `OTEL_…` variables say how. */
const telemetry = process.env["OTEL_EXPORTER_OTLP_ENDPOINT"] === undefined
  ? Layer.empty
  : Otlp.layerFromConfig({ resource: { serviceName: "effect-session-pool", serviceVersion: version } }).pipe(
    Layer.provide([
      FetchHttpClient.layer,
      OtlpSerialization.layerJson,
      ConfigProvider.layerAdd(ConfigProvider.fromUnknown({
        OTEL_TRACES_EXPORTER: "otlp",
        OTEL_METRICS_EXPORTER: "otlp",
        OTEL_LOGS_EXPORTER: "otlp"
      }))
    ])
  )

/** Runs the command. Prints a fault that the user can correct, and what to do next. */
const orTell = (input: Flags.Input) => {
  const next = input.check
    ? "Correct it and try again."
    : "Nothing was started. Correct it and try again; --check tests it without starting."
  return Effect.catchTags(run(input), {
    UsageError: ({ message }) => CommandOutput.fail(message),
    CannotJoin: ({ message }) => CommandOutput.fail(message),
    InvalidGatewayOptions: ({ message }) => CommandOutput.fail(`${message}\n${next}`),
    SqlError: ({ reason }) =>
      CommandOutput.fail(
        `The database cannot be used (${String(reason.cause)}). Does it run? Is DATABASE_URL right ` +
          "(postgresql://user:password@host:5432/database)? May its user create tables?"
      ),
    SocketServerError: ({ reason }) =>
      CommandOutput.fail(
        `Cannot listen for the other replicas (${String(reason.cause)}). Is the port taken? If ` +
          "--replica-address is not an address of this machine, set --replica-listen 0.0.0.0:PORT too."
      )
  })
}

const main = Command.make("effect-session-pool", Flags.all, orTell).pipe(
  Command.withDescription(
    "Serves MCP servers on Streamable HTTP, one process per client session. A setting is a flag, the environment variable " +
      "behind it, or a line of the file. Secrets have no flag: set GATEWAY_KEYS, GATEWAY_ADMIN_KEYS, GATEWAY_STATE_KEY and " +
      "GATEWAY_AUTH_CLIENT_SECRET. " +
      "A duration is written as \"30 minutes\" or 30m, bytes as 4194304 or \"4 MiB\", a list with commas."
  ),
  Command.withExamples([
    {
      command: "effect-session-pool -- npx -y @modelcontextprotocol/server-everything",
      description: "One stdio server"
    },
    { command: "effect-session-pool --config servers.json", description: "The servers of an mcpServers file" },
    { command: "effect-session-pool --config servers.json --check", description: "Check a file without serving it" },
    {
      command:
        "effect-session-pool --host 0.0.0.0 --allowed-hosts mcp.example.com --keys-file keys.txt --config servers.json",
      description: "For other machines: clients write this host name in the URL and show one of the keys"
    },
    {
      command: "effect-session-pool --port 0 --idle-time-to-live '10 minutes' --spares 2 -- my-server --stdio",
      description: "On a free port, with two processes kept ready"
    }
  ])
)

/** Runs the command with these arguments. The command has failed if the effect fails or `process.exitCode` is not 0. */
export const runWith = (args: ReadonlyArray<string>) =>
  Command.runWith(main, { version })(args).pipe(
    Effect.catchDefect((defect) =>
      CommandOutput.fail(
        // `Otlp.layerFromConfig` dies with a `ConfigError` if a variable is wrong.
        defect instanceof EffectConfig.ConfigError
          ? `A variable of OpenTelemetry (OTEL_…) is not valid: ${defect.message}`
          : `The gateway stopped because of a bug in it: ${inspect(defect)}`
      )
    ),
    Effect.provide(Layer.mergeAll(NodeServices.layer, CommandOutput.layer))
  )
