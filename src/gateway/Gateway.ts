/**
 * The gateway as a layer. It serves MCP servers to MCP clients on Streamable HTTP, with one process per client session. A
 * `SessionPool` holds each session under the key `backend/session`.
 *
 * @module
 * @since 0.1.0
 */
// The folders, from the command down. An import points to a folder further down.
//
//   app/           the command: its flags, files and signals
//   fronts/        how clients come in: Streamable HTTP, for clients with a session and without
//   operators/     the page, /sessions, health and metrics
//   auth/          who may come in: hosts and origins, principals, and authenticators: keys, access tokens, a proxy
//   cluster/       several replicas that share their sessions; Cluster.ts describes the folder
//   sessions/      how sessions start, sleep and end; the keys of the pool; Placement: the replica that carries out a request
//   conversation/  the messages of one session (Bridge) and of one lane of a modern client (Lane)
//   transports/    how back ends are reached: a process, HTTP, or LegacyFace, which makes a modern server look legacy
//   telemetry/     every metric
//   settings/      every setting
//   protocol/      JSON-RPC, and the revisions of MCP
//
// At SIGTERM or Ctrl-C, NodeRuntime interrupts `serve` in app/CommandLine.ts, which runs `drain` (below). Then the layer's scope ends
// the processes. Meanwhile `Signals.hurry` waits for a second signal.
//
// A single module of `@effect/platform-node`: the whole package loads Redis, WebSocket and undici clients (20 MiB, 0.2 seconds).
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import type { FileSystem } from "effect"
import { Context, Deferred, Duration, Effect, Layer, Schedule } from "effect"
import type { HttpRouter } from "effect/http"
import { ClientAuthenticator } from "./auth/Authenticator.ts"
import * as Checks from "./auth/Checks.ts"
import * as Clients from "./auth/Clients.ts"
import * as Hosts from "./auth/Hosts.ts"
import * as Keys from "./auth/Keys.ts"
import * as Parked from "./conversation/Parked.ts"
import * as StreamableHttp from "./fronts/StreamableHttp.ts"
import * as AdminRoutes from "./operators/AdminRoutes.ts"
import * as RequestState from "./protocol/RequestState.ts"
import * as Broker from "./sessions/Broker.ts"
import * as Endings from "./sessions/Endings.ts"
import * as Placement from "./sessions/Placement.ts"
import type { Serving } from "./sessions/Serving.ts"
import * as SessionsModule from "./sessions/Sessions.ts"
import type { GatewayConfig } from "./sessions/State.ts"
import * as Settings from "./settings/Settings.ts"
import * as Backends from "./transports/Backends.ts"
import * as Kinds from "./transports/Kinds.ts"

export type {
  /**
   * One back end.
   *
   * @category models
   * @since 0.1.0
   */
  Entry,
  /**
   * The address of an MCP server on Streamable HTTP.
   *
   * @category models
   * @since 0.1.0
   */
  HttpEntry,
  /**
   * An entry of a kind from the option `transports`.
   *
   * @category models
   * @since 0.1.0
   */
  OtherEntry,
  /**
   * How to start the process of a stdio back end.
   *
   * @category models
   * @since 0.1.0
   */
  StdioEntry
} from "./transports/Backends.ts"

export type {
  /**
   * A checked configuration, made by `config`.
   *
   * @category models
   * @since 0.1.0
   */
  GatewayConfig
} from "./sessions/State.ts"

export type {
  /**
   * Recognises the caller of each request.
   *
   * @category models
   * @since 0.1.0
   */
  Authenticator,
  /**
   * The part of a request that an authenticator sees: everything but the body.
   *
   * @category models
   * @since 0.1.0
   */
  AuthenticatorRequest,
  /**
   * A route that an authenticator adds.
   *
   * @category models
   * @since 0.1.0
   */
  AuthenticatorRoute
} from "./auth/Authenticator.ts"

export {
  /**
   * Refuses a request.
   *
   * @category errors
   * @since 0.1.0
   */
  Challenge,
  /**
   * The authenticator of clients. Without one the gateway asks for the keys of the setting `keys`.
   *
   * @category services
   * @since 0.1.0
   */
  ClientAuthenticator
} from "./auth/Authenticator.ts"

export type {
  /**
   * The settings of access tokens: `auth` in `GatewayOptions`.
   *
   * @category models
   * @since 0.1.0
   */
  AuthInput
} from "./settings/Settings.ts"

export type {
  /**
   * The caller that an authenticator recognised.
   *
   * @category models
   * @since 0.1.0
   */
  Principal
} from "./auth/Principal.ts"

export {
  /**
   * The options are wrong. `faults` lists each fault with its path and what is allowed there.
   *
   * @category errors
   * @since 0.1.0
   */
  InvalidGatewayOptions
} from "./transports/Backends.ts"

export type {
  /**
   * The values that a connection needs besides its entry.
   *
   * @category models
   * @since 0.1.0
   */
  TransportContext,
  /**
   * A kind of back ends, as its author writes it.
   *
   * @category models
   * @since 0.1.0
   */
  TransportDefinition,
  /**
   * A kind of back ends, made by `transport`.
   *
   * @category models
   * @since 0.1.0
   */
  TransportKind
} from "./transports/Kinds.ts"

export {
  /**
   * Makes a kind of back ends, for the option `transports`.
   *
   * @category constructors
   * @since 0.1.0
   */
  transport
} from "./transports/Kinds.ts"

export type {
  /**
   * The id of a request. An object is a number that a double cannot hold.
   *
   * @category models
   * @since 0.1.0
   */
  Id,
  /**
   * A JSON-RPC message: `_tag` says which kind. `text` is its JSON, as it came or as it is to be sent.
   *
   * @category models
   * @since 0.1.0
   */
  Message
} from "./protocol/JsonRpc.ts"

export type {
  /**
   * Receives the messages of a server.
   *
   * @category models
   * @since 0.1.0
   */
  Receiver,
  /**
   * A connection to one MCP server that carries JSON-RPC messages.
   *
   * @category models
   * @since 0.1.0
   */
  Transport
} from "./transports/Transport.ts"

export {
  /**
   * The back end could not be started or reached, or its connection ended.
   *
   * @category errors
   * @since 0.1.0
   */
  BackendFailed,
  /**
   * Hands a text of a server to the receiver of its messages.
   *
   * @category utils
   * @since 0.1.0
   */
  deliver
} from "./transports/Transport.ts"

/**
 * The back ends and settings of a gateway. The program's own HTTP server decides about `host`, `port`, TLS and the time-outs of
 * headers. `keysFile`, `tlsCert`, `tlsKey` and `cluster` are refused, because only the command supports them.
 *
 * @category models
 * @since 0.1.0
 */
export interface GatewayOptions extends Settings.GatewayInput {
  /** The back ends by name. Each is served at `/mcp/{name}`; a single one is served at `/mcp` too. */
  readonly backends: Readonly<Record<string, Backends.Entry>>
  /** Kinds of back ends besides `stdio` and `http`, by name. */
  readonly transports?: Readonly<Record<string, Kinds.TransportKind>> | undefined
  /** Back-end processes get `PATH`, `HOME` and similar variables from this environment, and no others. Default: empty. */
  readonly environment?: Readonly<Record<string, string | undefined>> | undefined
}

/**
 * A running gateway.
 *
 * @category services
 * @since 0.1.0
 */
export class Gateway extends Context.Service<Gateway, {
  /**
   * Replaces the back ends with those of another configuration. Sessions of changed and removed back ends end; other sessions
   * continue. Settings of the gateway as a whole do not change.
   */
  readonly reload: (config: GatewayConfig) => Effect.Effect<SessionsModule.Reloaded>
  /**
   * Stops the gateway in these steps. With replicas, `/ready` answers 503 for `leaveDelay` while the gateway still serves
   * everything. Then the gateway refuses new requests, ends GET streams and cancels parked calls; running requests have
   * `drainTimeout` to finish. Then movable sessions move to the other replicas. Last, requests that still run get an error.
   */
  readonly drain: Effect.Effect<void>
  /**
   * Carries out what clients ask for. Fronts are built on it.
   *
   * @internal
   */
  readonly broker: Broker.Broker
}>()("effect-session-pool/gateway/Gateway") {}

type Requirements = HttpRouter.HttpRouter | FileSystem.FileSystem

/** Settings that only the command supports, and what to do instead. Ignored silently, they would seem to protect a program. */
const ofTheCommand = [
  ["keysFile", "pass the keys themselves in keys"],
  ["tlsCert", "serve the routes on a server with TLS"],
  ["tlsKey", "serve the routes on a server with TLS"],
  ["cluster", "run effect-session-pool --cluster"]
] as const

/**
 * Checks options and adds defaults. Wrong options fail with `InvalidGatewayOptions`, which lists every fault.
 *
 * **When to use**
 *
 * Use before a `reload`, or to tell an operator what is wrong before anything starts.
 *
 * **Example** (Faults and defaults)
 *
 * ```ts
 * import { Effect } from "effect"
 * import * as Gateway from "effect-session-pool/gateway"
 *
 * const backends = { files: { command: "my-mcp-server" } }
 * const wrong = Effect.runSync(Effect.flip(Gateway.config({ backends, maxSessions: 0 })))
 * wrong.faults // => ["maxSessions: must be an integer of at least 1"]
 * const { settings } = Effect.runSync(Gateway.config({ backends }))
 * settings.maxInFlight // => 100
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const config = (options: GatewayOptions): Effect.Effect<GatewayConfig, Backends.InvalidGatewayOptions> =>
  Backends.validated((fault) => {
    const settings = Settings.decode(
      Settings.all,
      Settings.flat(options),
      (name, message) => fault(Settings.writtenName(name), message)
    )
    for (const [name, instead] of ofTheCommand) if (settings[name]) fault(name, `only the command has it; ${instead}`)
    const kinds = { ...Kinds.transports, ...options.transports }
    const backends = Backends.check(Backends.given("backends", options.backends), settings, fault, kinds)
    Checks.check(settings, options.auth, backends, fault)
    return { backends, settings }
  })

/**
 * Serves the gateway's routes on an `HttpRouter`. Wrong options fail with `InvalidGatewayOptions`.
 *
 * **When to use**
 *
 * Use to serve MCP beside other routes of a program. To serve only MCP, run `npx effect-session-pool`.
 *
 * **Example** (Serving one back end)
 *
 * ```ts
 * import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
 * import { Context, Effect, Layer } from "effect"
 * import { HttpRouter, HttpServer } from "effect/http"
 * import * as Gateway from "effect-session-pool/gateway"
 * import { createServer } from "node:http"
 *
 * const gateway = Gateway.layer({ backends: { files: { command: "my-mcp-server", args: ["--stdio"] } } })
 * const server = HttpRouter.serve(gateway, { disableListenLog: true, disableLogger: true }).pipe(
 *   Layer.provideMerge(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 0 }))
 * )
 *
 * // `Layer.launch(server)` serves until the program ends.
 * const program = Effect.gen(function*() {
 *   const { address } = Context.get(yield* Layer.build(server), HttpServer.HttpServer)
 *   const { status } = yield* Effect.promise(() => fetch(`${HttpServer.formatAddress(address)}/ready`))
 *   return status
 * })
 *
 * await Effect.runPromise(Effect.scoped(program)) // => 200
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: GatewayOptions
): Layer.Layer<Gateway, Backends.InvalidGatewayOptions, Requirements> =>
  Layer.unwrap(Effect.map(config(options), (decided) => layerConfig(decided, options.environment ?? {})))

/**
 * Serves the gateway's routes from a checked configuration. `environment` is that of `GatewayOptions`.
 *
 * **When to use**
 *
 * Use after `config`, if the program needs the configuration for more than the layer.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  config: GatewayConfig,
  environment: Readonly<Record<string, string | undefined>>
): Layer.Layer<Gateway, never, Requirements> =>
  Layer.effect(
    Gateway,
    Effect.gen(function*() {
      const { settings } = config
      const authenticator = yield* ClientAuthenticator
      const hasSeveralCallers = authenticator !== undefined || Settings.hasSeveralCallers(settings)
      const sessionsPerCaller = Settings.sessionsPerCaller(settings, hasSeveralCallers)
      // Light sessions ask the broker, which needs the sessions. There are no sessions before there is a broker.
      const ask: Broker.Broker["ask"] = (client, asked) => broker.ask(client, asked)
      const sessions = yield* SessionsModule.make(config, environment, sessionsPerCaller, ask)
      const hosts = Hosts.make(settings)
      const draining = yield* Deferred.make<void>()
      const seal = RequestState.make(settings.stateKey === "" ? undefined : settings.stateKey)
      const placement = yield* Placement.Placement
      const parked = yield* Parked.make(settings, seal, placement.replica)
      const serving: Serving = { sessions, settings, parked, draining, ends: new Map(), placement }
      const broker = Broker.make(serving)
      const clients = authenticator ?? (yield* Clients.make(settings, broker.scopes))
      const operators = Keys.operators(settings.adminKeys, clients)
      // The ways in. Another one is a file in `fronts/`, and its name here.
      const fronts = [StreamableHttp.make({ settings, hosts, clients })]
      yield* Effect.forEach(fronts, (front) => front.serve(broker), { discard: true })
      const listed = yield* AdminRoutes.add(serving, hosts, operators)
      yield* placement.serve({
        carryOut: (carried) => Broker.carryOut(serving, carried),
        sessions: listed,
        endNumber: sessions.endNumber,
        endPinned: sessions.vacate(
          (id) => id.startsWith(`${placement.replica}-`),
          Endings.replicaLost
        ),
        vacate: (id) => sessions.vacate((each) => each === id, Endings.movesOn)
      })
      const atRest = Effect.repeat(sessions.inUse, {
        until: (inUse) => inUse + placement.forwarded() === 0,
        schedule: Schedule.spaced("50 millis")
      })
      // At a signal, `serve` in CommandLine.ts runs this. It runs again at the end of the layer, and is then a no-op.
      const drain = Effect.gen(function*() {
        // For `leaveDelay`, `/ready` answers 503 and everything is still served, so balancers notice.
        yield* placement.announceEnd
        // Refuses new requests and ends GET streams.
        yield* Deferred.succeed(draining, undefined)
        // No client can resume a parked call now, because the resuming request would be refused.
        parked.cancelAll("the gateway is shutting down")
        if (!Duration.isZero(settings.drainTimeout)) yield* Effect.timeoutOption(atRest, settings.drainTimeout)
        // Movable sessions sleep or end here before other replicas get their shards.
        yield* placement.leave
        // Running requests get an error with the reason. The processes end with the layer's scope.
        yield* sessions.endRequests("the gateway is shutting down")
      })
      yield* Effect.addFinalizer(() => drain)
      return Gateway.of({ reload: ({ backends }) => sessions.reload(backends), drain, broker })
    })
  ).pipe(Layer.provide(NodeHttpClient.layerNodeHttp))
