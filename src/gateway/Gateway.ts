/**
 * The gateway as a layer: MCP clients on Streamable HTTP in front of stdio servers, one process per client session,
 * held by a `SessionPool` under `backend/session`.
 *
 * @since 0.1.0
 */
import type { Duration } from "effect"
import { Context, Deferred, Effect, Layer } from "effect"
import { HttpRouter } from "effect/http"
import type { ChildProcessSpawner } from "effect/process"
import * as SessionKey from "../SessionKey.ts"
import * as SessionPool from "../SessionPool.ts"
import * as Bridge from "./Bridge.ts"
import * as McpRoutes from "./McpRoutes.ts"
import * as StdioProcess from "./StdioProcess.ts"

/**
 * How to start the process of a stdio back end.
 *
 * @category models
 * @since 0.1.0
 */
export type StdioEntry = StdioProcess.StdioEntry

/**
 * What a gateway serves, and its limits.
 *
 * @category models
 * @since 0.1.0
 */
export interface GatewayOptions {
  /** The back ends by name; each is served at `/mcp/{name}`, and at `/mcp` if it is the only one. */
  readonly backends: Readonly<Record<string, StdioEntry>>
  /** What back ends may see of it: `PATH`, `HOME` and their like, nothing else. Default: nothing. */
  readonly environment?: Readonly<Record<string, string | undefined>> | undefined
  /** A session without requests or streams ends after this. Default: 30 minutes. */
  readonly idleTimeToLive?: Duration.Input | undefined
  /** How often idle sessions are looked for. Default: 10 seconds. */
  readonly cleanupInterval?: Duration.Input | undefined
  /** Bounds the sessions, and so the processes, that exist at once. Default: 1,000. */
  readonly maxSessions?: number | undefined
  /** How long an `initialize` waits for a place when `maxSessions` are in use. Default: 5 seconds. */
  readonly acquireTimeout?: Duration.Input | undefined
  /** Bounds a request body, in bytes. Default: 4 MiB. */
  readonly maxBodyBytes?: number | undefined
  /** Host names (without port) that requests may be addressed to. Default: the loopback names. */
  readonly allowedHosts?: ReadonlyArray<string> | undefined
  /** Limits of a process. Default: lines of 16 MiB, two seconds of grace at each step of its end. */
  readonly processLimits?: StdioProcess.Limits | undefined
}

/**
 * The pool of a gateway: one process per session.
 *
 * @category services
 * @since 0.1.0
 */
export class Sessions extends Context.Service<
  Sessions,
  SessionPool.SessionPool<SessionKey.SessionKey, Bridge.Bridge, StdioProcess.BackendFailed>
>()("effect-session-pool/gateway/Sessions") {
  static readonly layer = (
    options: GatewayOptions
  ): Layer.Layer<Sessions, never, ChildProcessSpawner.ChildProcessSpawner> =>
    Layer.effect(
      Sessions,
      SessionPool.make({
        name: "gateway",
        lookup: Effect.fnUntraced(function*(key: SessionKey.SessionKey) {
          const backend = SessionKey.backend(key)
          const entry = options.backends[backend]
          if (entry === undefined) {
            return yield* new StdioProcess.BackendFailed({ reason: `there is no back end "${backend}"`, stderr: "" })
          }
          return yield* Bridge.make(
            entry,
            options.environment ?? {},
            options.processLimits ?? StdioProcess.defaultLimits
          ).pipe(Effect.annotateLogs({ backend, session: SessionKey.session(key).slice(0, 8) }))
        }),
        idleTimeToLive: options.idleTimeToLive ?? "30 minutes",
        cleanupInterval: options.cleanupInterval ?? "10 seconds",
        capacity: options.maxSessions ?? 1000,
        acquireTimeout: options.acquireTimeout ?? "5 seconds",
        closed: (bridge) => Deferred.await(bridge.ended)
      })
    )
}

/**
 * Serves the gateway's routes on an `HttpRouter`.
 *
 * **Example** (Serving one back end on port 8420)
 *
 * ```ts skip
 * import { NodeHttpServer, NodeRuntime } from "@effect/platform-node"
 * import { Layer } from "effect"
 * import { HttpRouter } from "effect/http"
 * import * as Gateway from "effect-session-pool/gateway"
 * import { createServer } from "node:http"
 *
 * const gateway = Gateway.layer({
 *   backends: { files: { command: "my-mcp-server", args: ["--stdio"], env: {}, cwd: undefined } }
 * })
 *
 * HttpRouter.serve(gateway).pipe(
 *   Layer.provide(NodeHttpServer.layer(createServer, { host: "127.0.0.1", port: 8420 })),
 *   Layer.launch,
 *   NodeRuntime.runMain
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  options: GatewayOptions
): Layer.Layer<never, never, HttpRouter.HttpRouter | ChildProcessSpawner.ChildProcessSpawner> =>
  Layer.effectDiscard(Effect.gen(function*() {
    const sessions = yield* Sessions
    const router = yield* HttpRouter.HttpRouter
    const handler = McpRoutes.make(sessions, options, yield* Effect.scope)
    yield* router.add("*", "/mcp/:backend", handler)
    yield* router.add("*", "/mcp", handler)
  })).pipe(Layer.provide(Sessions.layer(options)))
