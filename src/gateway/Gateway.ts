/**
 * The gateway as a layer: MCP clients on Streamable HTTP in front of MCP servers, one process per client session, held by
 * a `SessionPool` under `backend/session`.
 *
 * @module
 * @since 0.1.0
 */
// The way of a request, and what is where:
//
//   CommandLine.ts: the command reads the settings, listens, and serves this layer. Signals.ts: what signals do to it
//   http/       McpRoutes: host, origin and key; which era a request is of. What operators see: AdminRoutes, Overview.
//               Serving.atSession: a request of a session begins here, at the replica that has the session
//   legacy/     a client with a session: LegacyRoutes ── Sessions.lease ── Bridge, its session on a process
//   modern/     a client without one: ModernRoutes ── Sessions.lane ── Lane; PassThrough to a modern HTTP back end;
//               what the client of a call gets (ModernCalls), and a call that waits for its client's input (Parked)
//   sessions/   where sessions begin, sleep and end, and the pool's keys: Sessions, Registry; the pool's lookup: Launching;
//               on which replica a request is carried out: Placement
//   backends/   what a key stands for: RunningBackend starts it, on the transport of its back end: StdioProcess, HttpTransport,
//               LegacyFace (a modern server made to look legacy); Upstream, a session on an HTTP back end
//   messages/   JSON-RPC as far as it is read
//   settings/   every setting, and where they come from
//   cluster/    several replicas that share their sessions: Cluster, which says what is where
//   GatewayErrors.ts: why a session cannot be opened or found. GatewayMetrics.ts: every metric
//
// SIGTERM and Ctrl-C: NodeRuntime interrupts `run` in CommandLine.ts, which runs `drain` (below); then the layer's scope ends the
// processes. `Signals.hurry` waits for a second signal meanwhile.
//
// Not the whole package: it loads Redis, WebSocket and undici clients, 20 MiB and 0.2 seconds.
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import { Context, Deferred, Duration, Effect, FileSystem, Layer, Option, Schedule } from "effect"
import { HttpRouter } from "effect/http"
import * as SessionPool from "../SessionPool.ts"
import * as Backends from "./backends/Backends.ts"
import * as Access from "./http/Access.ts"
import * as AdminRoutes from "./http/AdminRoutes.ts"
import * as EventStreamBody from "./http/EventStreamBody.ts"
import * as McpRoutes from "./http/McpRoutes.ts"
import * as Paths from "./http/Paths.ts"
import * as Parked from "./modern/Parked.ts"
import * as RequestState from "./modern/RequestState.ts"
import * as Endings from "./sessions/Endings.ts"
import * as Placement from "./sessions/Placement.ts"
import * as SessionsModule from "./sessions/Sessions.ts"
import type { GatewayConfig } from "./settings/Config.ts"
import * as Settings from "./settings/Settings.ts"

export type {
  /**
   * One back end: a `StdioEntry` or an `HttpEntry`.
   *
   * @category models
   * @since 0.1.0
   */
  Entry,
  /**
   * Where an MCP server on Streamable HTTP is.
   *
   * @category models
   * @since 0.1.0
   */
  HttpEntry,
  /**
   * How to start the process of a stdio back end.
   *
   * @category models
   * @since 0.1.0
   */
  StdioEntry
} from "./backends/Backends.ts"

export type {
  /**
   * A configuration that has been checked, see `config`.
   *
   * @category models
   * @since 0.1.0
   */
  GatewayConfig
} from "./settings/Config.ts"

export {
  /**
   * The options make no sense: `faults` has each with its path and what is allowed.
   *
   * @category errors
   * @since 0.1.0
   */
  InvalidGatewayOptions
} from "./backends/Backends.ts"

/**
 * What a gateway serves, and its settings; those of the server itself (`host`, `port`, TLS, time-outs of the header) are
 * the program's own. What only the command carries out is refused: `keysFile`, `tlsCert`, `tlsKey`, `cluster`.
 *
 * @category models
 * @since 0.1.0
 */
export interface GatewayOptions extends Settings.GatewayInput {
  /** The back ends by name; each is served at `/mcp/{name}`, and at `/mcp` if it is the only one. */
  readonly backends: Readonly<Record<string, Backends.Entry>>
  /** What processes may see of it: `PATH`, `HOME` and their like, nothing else. Default: nothing. */
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
   * Serves the back ends of another configuration from now on: the sessions of changed and removed ones end, the others
   * live on. Settings of the gateway as a whole stay as they were.
   */
  readonly reload: (config: GatewayConfig) => Effect.Effect<SessionsModule.Reloaded>
  /**
   * Stops, in this order. With replicas, `/ready` answers 503 for `leaveDelay` while everything is still served. Then nothing
   * new is taken, streams of GET end, parked calls are cancelled, and running requests have `drainTimeout` to be answered.
   * Then what is movable is handed over to the other replicas. Last, the requests that still run are told why they end.
   */
  readonly drain: Effect.Effect<void>
}>()("effect-session-pool/gateway/Gateway") {}

type Requirements = HttpRouter.HttpRouter | FileSystem.FileSystem

/** Without a word of it a program would believe itself protected, or one of several. */
const ofTheCommand = [
  ["keysFile", "give the keys themselves as keys"],
  ["tlsCert", "serve the routes on a server with TLS"],
  ["tlsKey", "serve the routes on a server with TLS"],
  ["cluster", "run effect-session-pool --cluster"]
] as const

/**
 * Checks options and decides what they leave open. Options that make no sense fail with `InvalidGatewayOptions`, which has
 * every fault.
 *
 * **When to use**
 *
 * Use before a `reload`, or to tell an operator what is wrong before anything starts.
 *
 * **Example** (What is wrong, and what is left open)
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
  Effect.suspend(() => {
    const faults: Array<string> = []
    const fault = (path: string, message: string) => {
      faults.push(`${path}: ${message}`)
    }
    const tables = { ...Settings.backendSettings, ...Settings.gatewaySettings }
    const settings = Settings.decode(tables, { ...options }, Settings.defaults(tables), fault)
    for (const [name, instead] of ofTheCommand) if (settings[name]) fault(name, `only the command has it; ${instead}`)
    const backends = new Map(
      Object.entries(options.backends).map(([name, entry]) =>
        [
          name,
          Backends.resolve(`backends.${Backends.printable(name)}`, name, Backends.given(entry), settings, fault)
        ] as const
      )
    )
    return faults.length > 0
      ? Effect.fail(new Backends.InvalidGatewayOptions({ faults }))
      : Effect.succeed({ backends, settings })
  })

/**
 * Serves the gateway's routes on an `HttpRouter`. Options that make no sense fail with `InvalidGatewayOptions`.
 *
 * **When to use**
 *
 * Use to serve MCP beside other routes of a program; `npx effect-session-pool` serves it alone.
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
 * The same from a configuration that has been checked.
 *
 * **When to use**
 *
 * Use after `config`, when its answer is needed for more than the layer.
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
      const sessions = yield* SessionsModule.make(config, environment)
      const access = Access.make(settings)
      const draining = yield* Deferred.make<void>()
      const seal = RequestState.make(settings.stateKey === "" ? undefined : settings.stateKey)
      const placement = yield* Placement.Placement
      const parked = yield* Parked.make(settings, seal, placement.replica)
      const bodies = new Set<EventStreamBody.OpenBody>()
      const fs = yield* FileSystem.FileSystem
      yield* Effect.forkScoped(EventStreamBody.watch(bodies, settings.stallTimeout, fs))
      const router = yield* HttpRouter.HttpRouter
      const serving = { sessions, settings, parked, draining, fs, bodies, deletions: new Map(), placement }
      const handler = McpRoutes.make(serving, access)
      for (const path of Paths.mcp) {
        yield* router.add("*", path, handler(path), { uninterruptible: true })
      }
      const listed = yield* AdminRoutes.add(sessions, parked, settings, access, draining, placement)
      yield* placement.serve({
        carryOut: (carried) => McpRoutes.carryOut(serving, carried),
        sessions: listed.sessions,
        endNumber: (number) =>
          Effect.flatMap(
            sessions.endNumber(number),
            Option.match({ onNone: () => Effect.succeed(false), onSome: (gone) => Effect.as(gone, true) })
          ),
        endPinned: sessions.vacate(
          (id) => id.startsWith(`${placement.replica}-`),
          Endings.replicaLost
        ),
        vacate: (id) => sessions.vacate((each) => each === id, Endings.movesOn)
      })
      const atRest = Effect.repeat(SessionPool.stats(sessions.pool), {
        until: ({ active, launching }) => active + launching + sessions.passing.count === 0,
        schedule: Schedule.spaced("50 millis")
      })
      // In this order. At a signal it is run by `main`, and again at the end of the layer, when nothing is left to be done.
      const drain = Effect.gen(function*() {
        // Not ready, but all is served still, for `leaveDelay`: balancers notice.
        yield* placement.announceEnd
        // Nothing new from here on, and the streams of who only listens end.
        yield* Deferred.succeed(draining, undefined)
        // Nobody can come back to a parked call now.
        yield* parked.cancelAll("the gateway is shutting down")
        if (!Duration.isZero(settings.drainTimeout)) yield* Effect.timeoutOption(atRest, settings.drainTimeout)
        // What is movable sleeps or ends here before others get its shard.
        yield* placement.leave
        // Who still waits is told why; the processes end with the layer's scope.
        yield* sessions.endRequests("the gateway is shutting down")
      })
      yield* Effect.addFinalizer(() => drain)
      return Gateway.of({ reload: ({ backends }) => sessions.reload(backends), drain })
    })
  ).pipe(Layer.provide(NodeHttpClient.layerNodeHttp))
