#!/usr/bin/env node
/**
 * The command line of the gateway.
 *
 * Without arguments it serves the official `server-everything`, if that is installed; `-- COMMAND ARGS…` serves one
 * command, `--config FILE` what a file names.
 */
// Not the whole package: it loads Redis, WebSocket and undici clients, 20 MiB and 0.2 seconds.
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import {
  ConfigProvider,
  Console,
  Context,
  Duration,
  Effect,
  FileSystem,
  Layer,
  Option,
  Path,
  Queue,
  Redacted,
  Result,
  Schema
} from "effect"
import { Argument, Command, Flag } from "effect/cli"
import { FetchHttpClient, HttpRouter, HttpServer } from "effect/http"
import { Otlp, OtlpSerialization } from "effect/observability"
import { createServer } from "node:http"
import { createServer as createTlsServer } from "node:https"
import { createRequire } from "node:module"
import { createSecureContext } from "node:tls"
import { inspect } from "node:util"
import type * as Backends from "./backends/Backends.ts"
import * as ProcessGroup from "./backends/ProcessGroup.ts"
import * as Programs from "./backends/Programs.ts"
import * as Gateway from "./Gateway.ts"
import * as Access from "./http/Access.ts"
import * as EarlyRequests from "./http/EarlyRequests.ts"
import * as CommandOutput from "./settings/CommandOutput.ts"
import * as Config from "./settings/Config.ts"
import * as Settings from "./settings/Settings.ts"
import { version } from "./version.ts"

/** Something that the person at the command line can mend; told without a stack. */
class UsageError extends Schema.TaggedError<UsageError>()("UsageError", { message: Schema.String }) {}

// -----------------------------------------------------------------------------
// The command line
// -----------------------------------------------------------------------------

const config = Flag.Path("config", { typeName: "file" }).pipe(
  Flag.withDescription("A file with the mcpServers JSON that MCP clients use; reloaded on SIGHUP"),
  Flag.optional
)
const check = Flag.Boolean("check").pipe(
  Flag.withDescription("Check the configuration and exit"),
  Flag.withDefault(false)
)
const command = Argument.String("command").pipe(
  Argument.withDescription("After --: the command of one stdio server, and its arguments"),
  Argument.variadic()
)

/** A flag for every setting that is no secret. */
const settingFlags: Readonly<Record<string, Flag.Flag<Option.Option<unknown>>>> = Object.fromEntries(
  Object.entries(Settings.all)
    .filter(([name]) => !Settings.secret.includes(name))
    .map(([name, setting]) => {
      const flag: Flag.Flag<unknown> = setting.kind === "flag"
        ? Flag.Boolean(Settings.flagName(name))
        : Flag.withMetavar(Flag.String(Settings.flagName(name)), setting.kind)
      return [name, Flag.optional(Flag.withDescription(flag, description(name, setting)))]
    })
)

function description(name: string, setting: Settings.Setting<unknown, unknown>): string {
  const fallback = setting.shown === "" ? "" : `default: ${setting.shown}; `
  return `${setting.description} (${fallback}${Settings.variableName(name)})`
}

const embedded: Option.Option<Backends.StdioEntry> = Option.map(
  Option.liftThrowable(() =>
    createRequire(import.meta.url).resolve("@modelcontextprotocol/server-everything/dist/index.js")
  )(),
  (path) => ({ command: process.execPath, args: [path, "stdio"] })
)

const waysToServe = [
  "  effect-session-pool -- COMMAND ARGS…     one stdio server",
  "  effect-session-pool --config FILE        those of an mcpServers file"
].join("\n")

// -----------------------------------------------------------------------------
// The configuration
// -----------------------------------------------------------------------------

interface Input {
  readonly config: Option.Option<string>
  readonly check: boolean
  readonly command: ReadonlyArray<string>
  readonly settings: Readonly<Record<string, Option.Option<unknown>>>
}

/** What is to be served: a command, a file, or the embedded default. */
const entries = Effect.fnUntraced(function*({ command, config }: Input) {
  const [program, ...args] = command
  if (program !== undefined && Option.isSome(config)) {
    return yield* new UsageError({ message: "Give either --config FILE or -- COMMAND, not both." })
  }
  if (program !== undefined) {
    const path = yield* Path.Path
    const name = path.basename(program).replace(/[^A-Za-z0-9._-]/g, "-").replace(/^[^A-Za-z0-9]+/, "").slice(0, 64)
    return { [name === "" ? "server" : name]: { command: program, args } }
  }
  if (Option.isSome(config)) return {}
  if (Option.isSome(embedded)) return { everything: embedded.value }
  return yield* new UsageError({ message: `There is nothing to serve yet. Say what:\n${waysToServe}` })
})

const readText = (file: string, what: string) =>
  Effect.mapError(
    Effect.flatMap(FileSystem.FileSystem, (fs) => fs.readFileString(file)),
    (error) => {
      const why = error.reason._tag
      const next = why === "NotFound" ? "Is the path right?" : "Is it a file, and may this user read it?"
      return new UsageError({ message: `${what} ${file} cannot be read (${why}). ${next}` })
    }
  )

/** Reads and checks everything that there is to read. */
const load = Effect.fnUntraced(function*(input: Input) {
  const served = yield* entries(input)
  const file = Option.getOrUndefined(input.config)
  const loaded = Config.load({
    flags: Object.fromEntries(
      Object.entries(input.settings).map(([name, value]) => [name, Option.getOrUndefined(value)])
    ),
    environment: process.env,
    file: file === undefined ? undefined : { name: file, text: yield* readText(file, "The configuration") },
    entries: served
  })
  if (loaded instanceof Config.InvalidConfig) return yield* loaded
  const { keysFile } = loaded.settings
  const lines = keysFile === "" ? [] : (yield* readText(keysFile, "The file of keys")).split("\n")
  const keys = [...loaded.settings.keys, ...lines.map((line) => line.trim()).filter((line) => !/^(#|$)/.test(line))]
  if (keysFile !== "" && keys.length === 0) {
    return yield* new UsageError({
      message: `The file of keys ${keysFile} holds no key; nobody could come in. Write one a line.`
    })
  }
  const settings = { ...loaded.settings, keys }
  const { host, insecure, port, tlsCert, tlsKey } = settings
  if (!Access.isLoopback(host) && keys.length === 0 && !insecure) {
    return yield* new UsageError({
      message: `Other machines reach ${host}, and the gateway would serve anyone there. Set ` +
        `${Settings.variableName("keys")} or --${Settings.flagName("keysFile")}, listen on 127.0.0.1, or say ` +
        "--insecure if that is what you want."
    })
  }
  if (port > 65535) {
    return yield* new UsageError({
      message: `The port ${port} does not exist; the last is 65535, and 0 takes a free one.`
    })
  }
  if ((tlsCert === "") !== (tlsKey === "")) {
    const missing = Settings.flagName(tlsCert === "" ? "tlsCert" : "tlsKey")
    return yield* new UsageError({ message: `TLS needs both a certificate and its key: give --${missing} FILE too.` })
  }
  const tls = tlsCert === ""
    ? undefined
    : { cert: yield* readText(tlsCert, "The certificate"), key: yield* readText(tlsKey, "The certificate's key") }
  const unusable = tls === undefined ? Option.none() : Result.getFailure(Result.try(() => createSecureContext(tls)))
  if (Option.isSome(unusable)) {
    return yield* new UsageError({
      message: `${tlsCert} and ${tlsKey} cannot be used for TLS (${
        String(unusable.value)
      }). Both must be PEM, and belong together.`
    })
  }
  return { config: { backends: loaded.backends, settings }, tls, cluster: yield* clusterOptions(settings) }
})

/** What one of several replicas needs to know, if this is to be one. */
const clusterOptions = Effect.fnUntraced(function*(settings: Settings.GatewaySettings) {
  const { cluster, drainTimeout, leaveDelay, replicaAddress, replicaListen, shardLockExpiration, stateKey } = settings
  if (!cluster) return undefined
  const databaseUrl = process.env["DATABASE_URL"] ?? ""
  const missing = [
    ...databaseUrl === "" ? ["DATABASE_URL, as postgresql://user:password@host:5432/database"] : [],
    ...stateKey === "" ? [`${Settings.variableName("stateKey")}, a secret that all replicas share`] : [],
    ...replicaAddress === "" ? ["--replica-address HOST:PORT, where the other replicas reach this one"] : []
  ]
  if (missing.length > 0) {
    return yield* new UsageError({ message: `--cluster needs more:\n${missing.map((each) => `  ${each}`).join("\n")}` })
  }
  const address = yield* replicaAt("replicaAddress", replicaAddress)
  if (anyAddress.includes(address.host)) {
    return yield* new UsageError({
      message: `--replica-address is where the other replicas reach this one, which ${address.host} is not. ` +
        `Give its own address there, and --replica-listen ${replicaAddress} to listen on all.`
    })
  }
  const expiration = Duration.toSeconds(shardLockExpiration)
  if (expiration < leastLockExpiration || !Number.isFinite(expiration)) {
    return yield* new UsageError({
      message:
        `--shard-lock-expiration must be at least ${leastLockExpiration} seconds, because replicas look for each ` +
        `other every 2 seconds, and not infinite, or nothing would be taken over; it is ${
          Duration.format(shardLockExpiration)
        }.`
    })
  }
  const listen = replicaListen === "" ? address : yield* replicaAt("replicaListen", replicaListen)
  return {
    databaseUrl: Redacted.make(databaseUrl),
    address,
    listen,
    stateKey,
    shardLockExpiration,
    leaveDelay,
    drainTimeout
  }
})

/** Where one can listen, but not be reached. */
const anyAddress = ["0.0.0.0", "::"]

/** In seconds: a lock that is said to be alive three times in it, each with room for a slow database. */
const leastLockExpiration = 5

const replicaAt = (name: string, text: string) => {
  const [, host = "", port = ""] = /^\[?([^[\]]+)\]?:(\d{1,5})$/.exec(text) ?? []
  return host !== "" && Number(port) > 0 && Number(port) < 65536
    ? Effect.succeed({ host, port: Number(port) })
    : new UsageError({
      message: `--${Settings.flagName(name)} must be host:port, such as 10.0.0.7:8421; it is "${text}".`
    })
}

// -----------------------------------------------------------------------------
// Serving
// -----------------------------------------------------------------------------

const banner = (names: ReadonlyArray<string>, origin: string, settings: Settings.GatewaySettings): string => {
  const urls = names.map((name) => ({ name, url: `${origin}/mcp/${name}` }))
  const key = settings.keys.length === 0 ? {} : { headers: { Authorization: "Bearer ${MCP_KEY}" } }
  const header = settings.keys.length === 0 ? "" : " --header \"Authorization: Bearer $MCP_KEY\""
  const servers = Object.fromEntries(urls.map(({ name, url }) => [name, { type: "http", url, ...key }]))
  return [
    "",
    "The gateway is up: one session of a back end per client session.",
    "",
    ...urls.map(({ name, url }) => `  ${name}: ${url}`),
    "",
    `Watch it: ${origin}/`,
    "",
    "Connect a client, for instance:",
    "",
    ...urls.map(({ name, url }) => `  claude mcp add --transport http ${name} ${url}${header}`),
    "",
    "or, in a client's mcpServers file:",
    "",
    ...JSON.stringify({ mcpServers: servers }, null, 2).split("\n").map((line) => `  ${line}`),
    "",
    "Stop it with Ctrl-C; every process it started ends with it.",
    ""
  ].join("\n")
}

const serverLayer = (settings: Settings.GatewaySettings, tls: { cert: string; key: string } | undefined) => {
  const { bodyTimeout, headersTimeout, host, maxHeaderBytes, port } = settings
  // Node takes zero for "no limit".
  const millis = (duration: Duration.Duration) => Duration.isFinite(duration) ? Duration.toMillis(duration) : 0
  const limits = {
    maxHeaderSize: maxHeaderBytes,
    headersTimeout: millis(headersTimeout),
    requestTimeout: millis(bodyTimeout),
    connectionsCheckingInterval: 1000,
    // Nothing is upgraded here: a client that offers it (`Upgrade: h2c`) is answered as any other, and its connection
    // stays. Node knows this from 24.9 on; before, it closes the connection after the answer.
    shouldUpgradeCallback: () => false,
    keepAlive: true,
    keepAliveInitialDelay: 10_000
  }
  return NodeHttpServer.layer(
    () => EarlyRequests.hold(tls === undefined ? createServer(limits) : createTlsServer({ ...limits, ...tls })),
    // Node's own backlog of 511 makes a burst of clients wait for seconds; the kernel caps this one.
    { host, port, backlog: 4096, gracefulShutdownTimeout: "1 second" }
  )
}

/** Signals, as they come. */
const signals = (...names: ReadonlyArray<NodeJS.Signals>) =>
  Effect.gen(function*() {
    const queue = yield* Queue.unbounded<NodeJS.Signals>()
    const listener = (name: NodeJS.Signals) => void Queue.offerUnsafe(queue, name)
    yield* Effect.acquireRelease(
      Effect.sync(() => names.forEach((name) => process.on(name, listener))),
      () => Effect.sync(() => names.forEach((name) => process.off(name, listener)))
    )
    return queue
  })

/** The first signal is NodeRuntime's, which ends everything in order; the second ends everything. */
const hurry = Effect.gen(function*() {
  const queue = yield* signals("SIGINT", "SIGTERM")
  yield* Queue.take(queue)
  yield* Console.error("Stopping: running requests may end. A second signal ends them now.")
  yield* Queue.take(queue)
  return yield* Effect.sync((): never => {
    ProcessGroup.killAll()
    return process.exit(130)
  })
})

const reloads = Effect.fnUntraced(
  function*(input: Input, settings: Settings.GatewaySettings, gateway: Gateway.Gateway["Service"]) {
    const queue = yield* signals("SIGHUP")
    return yield* Effect.forever(Effect.gen(function*() {
      yield* Queue.take(queue)
      const loaded = yield* Effect.result(load(input))
      if (loaded._tag === "Failure") {
        return yield* Effect.logError(`Not reloaded, everything stays as it is. ${loaded.failure.message}`)
      }
      const next = loaded.success.config
      const differing = Object.keys(Settings.gatewayOnly).filter((name) =>
        !Settings.same(name, settings, next.settings)
      )
      if (differing.length > 0) {
        yield* Effect.logWarning(`Only a restart changes these settings: ${differing.join(", ")}`)
      }
      const { added, changed, removed } = yield* gateway.reload(next)
      yield* Effect.logInfo("reloaded").pipe(Effect.annotateLogs({ added, changed, removed }))
    }))
  }
)

/** The programs of stdio back ends that are not there. */
const missingPrograms = (backends: Backends.Backends): ReadonlyArray<string> =>
  [...backends.values()].flatMap(({ name, target }) => {
    if (target._tag === "Http") return []
    const { command, cwd, env } = target.command
    const found = Programs.find(command, cwd, Programs.here({ ...process.env, ...env }))
    return found === undefined ? [`${name}: there is no program "${command}"`] : []
  })

const howToFind = "Install it, or give its whole path; the PATH of this shell is looked through."

/** Why the port cannot be had, and what to do. */
const cannotListen = ({ host, port }: Settings.GatewaySettings, cause: unknown): UsageError => {
  const code = ProcessGroup.codeOf(cause)
  const next = code === "EACCES"
    ? "Ports below 1024 are for root: try --port 8420."
    : code === "EADDRNOTAVAIL" || code === "ENOTFOUND"
    ? "This machine does not have that address: try --host 127.0.0.1."
    : "Is another gateway running? Try --port 0."
  return new UsageError({ message: `Cannot listen on ${host}:${port} (${String(cause)}). ${next}` })
}

/** Loaded where it is wanted only: a gateway that is alone has no database, and need not have its client. */
const loadCluster = Effect.tryPromise({
  try: () => import("./cluster/Cluster.ts"),
  catch: (cause) =>
    new UsageError({
      message: `--cluster cannot be loaded (${String(cause)}). Is @effect/sql-pg installed beside the gateway? ` +
        "npm install @effect/sql-pg"
    })
})

const run = Effect.fnUntraced(function*(input: Input) {
  const { cluster, config, tls } = yield* load(input)
  const { backends, settings } = config
  const names = [...backends.keys()]
  const missing = missingPrograms(backends)
  if (missing.length > 0 && input.check) return yield* new Config.InvalidConfig({ faults: missing })
  // The only one there is was just written by a person. Those of a file may come later, in a container that is still built.
  if (missing.length > 0 && input.command.length > 0) {
    return yield* new UsageError({ message: `There is no program "${input.command[0]}". ${howToFind}` })
  }
  if (input.check) return yield* Console.log(`The configuration is valid. Back ends: ${names.join(", ")}`)
  const alone = Gateway.layerConfig(config, process.env)
  const gateway = cluster === undefined ? alone : Layer.provide(alone, (yield* loadCluster).layer(cluster))
  const app = Layer.provideMerge(
    HttpRouter.serve(gateway, { disableLogger: true, disableListenLog: true }),
    serverLayer(settings, tls)
  )
  // Forked outside of the server's scope: still there while that closes.
  yield* Effect.forkDetach(Effect.scoped(hurry))
  return yield* Effect.scoped(Effect.gen(function*() {
    const services = yield* Layer.build(app)
    const running = Context.get(services, Gateway.Gateway)
    const { address } = Context.get(services, HttpServer.HttpServer)
    const bound = address._tag === "UnixPathAddress" ? settings.port : address.port
    const name = settings.host.includes(":") ? `[${settings.host}]` : settings.host
    yield* Console.log(banner(names, `${tls === undefined ? "http" : "https"}://${name}:${bound}`, settings))
    for (const fault of missing) yield* Effect.logWarning(`${fault}. ${howToFind}`)
    yield* Effect.forkScoped(reloads(input, settings, running))
    return yield* Effect.onInterrupt(Effect.never, () => running.drain)
  })).pipe(
    Effect.catchTags({
      ServeError: (error) => cannotListen(settings, error.cause),
      SqlError: (error) =>
        new UsageError({
          message: `The database cannot be used (${String(error.reason.cause)}). Does it run, is DATABASE_URL right ` +
            "(postgresql://user:password@host:5432/database), and may its user create tables?"
        }),
      SocketServerError: (error) =>
        new UsageError({
          message: `Cannot listen for the other replicas (${String(error.reason.cause)}). Is the port taken? And if ` +
            "--replica-address is no address of this machine itself, say --replica-listen 0.0.0.0:PORT too."
        })
    }),
    Effect.provide(telemetry)
  )
})

/** Traces, metrics and logs go to a collector when the standard variable names one; further ones say how. */
const telemetry = process.env["OTEL_EXPORTER_OTLP_ENDPOINT"] === undefined
  ? Layer.empty
  : Otlp.layerFromConfig({ resource: { serviceName: "effect-session-pool", serviceVersion: version } }).pipe(
    Layer.provide([
      FetchHttpClient.layer,
      OtlpSerialization.layerJson,
      ConfigProvider.layer(ConfigProvider.fromEnv({
        env: {
          OTEL_TRACES_EXPORTER: "otlp",
          OTEL_METRICS_EXPORTER: "otlp",
          OTEL_LOGS_EXPORTER: "otlp",
          ...process.env
        }
      }))
    ])
  )

const main = Command.make("effect-session-pool", { config, check, command, settings: settingFlags }, run).pipe(
  Command.withDescription(
    "Serves MCP servers on Streamable HTTP, one process per client session. What a flag sets, the environment variable " +
      "behind it or the file may set too; keys are no flags: GATEWAY_KEYS, GATEWAY_ADMIN_KEYS, GATEWAY_STATE_KEY."
  ),
  Command.withExamples([
    {
      command: "effect-session-pool -- npx -y @modelcontextprotocol/server-everything",
      description: "One stdio server"
    },
    { command: "effect-session-pool --config servers.json", description: "Those of an mcpServers file" },
    { command: "effect-session-pool --config servers.json --check", description: "What is wrong with a file" },
    {
      command: "effect-session-pool --host 0.0.0.0 --keys-file keys.txt --config servers.json",
      description: "For other machines, whose clients show one of the keys"
    },
    {
      command: "effect-session-pool --port 0 --idle-time-to-live '10 minutes' --spares 2 -- my-server --stdio",
      description: "On a free port, with two processes kept ready"
    }
  ])
)

Command.run(main, { version }).pipe(
  Effect.catchTags({
    UsageError: (error) => CommandOutput.fail(error.message),
    InvalidConfig: (error) =>
      CommandOutput.fail(
        `${error.message}\nNothing was started. Mend it and try again; --check tries without starting.`
      )
  }),
  Effect.catchDefect((defect) => CommandOutput.fail(`This is a fault of the gateway itself: ${inspect(defect)}`)),
  Effect.provide(Layer.mergeAll(NodeServices.layer, CommandOutput.layer)),
  NodeRuntime.runMain({ disableErrorReporting: true })
)
