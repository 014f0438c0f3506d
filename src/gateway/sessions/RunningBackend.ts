/** A back end in use: the state that the gateway keeps about it, and how the gateway opens connections to it. */
import { Duration, Effect, Exit, FiberHandle, Result, Scope } from "effect"
import { HttpClient } from "effect/http"
import * as Bridge from "../conversation/Bridge.ts"
import type * as ClientRecord from "../conversation/ClientRecord.ts"
import type { Handshake } from "../conversation/Handshake.ts"
import * as Lane from "../conversation/Lane.ts"
import type { Change } from "../conversation/LaneCalls.ts"
import type { InitializeRefused } from "../conversation/PooledConnection.ts"
import type { Era } from "../protocol/Dialect.ts"
import type * as Modern from "../protocol/Modern.ts"
import type * as RequestHeaders from "../protocol/RequestHeaders.ts"
import * as GatewayMetrics from "../telemetry/GatewayMetrics.ts"
import type { Backend } from "../transports/Backends.ts"
import * as LegacyFace from "../transports/LegacyFace.ts"
import * as Spares from "../transports/Spares.ts"
import { BackendFailed } from "../transports/Transport.ts"
import * as Cooldown from "./Cooldown.ts"
import type * as StartQueue from "./StartQueue.ts"

/** A back end in use. */
export interface RunningBackend {
  readonly backend: Backend
  /** The present text of its entry. A reload may change the text without changing the meaning. */
  entryText: Backend["entryText"]
  readonly metrics: GatewayMetrics.RequestMetrics
  cooldown: Cooldown.Cooldown
  /** The gateway's own start, which decides whether a suspect back end cools down (`Cooldown.ts`). */
  readonly trial: FiberHandle.FiberHandle
  /** The number of sessions and lanes that are not closed. */
  sessions: number
  readonly spares: Spares.Spares
  readonly starts: StartQueue.StartQueue
  /** The scope of the spares and of the trial. */
  readonly scope: Scope.Closeable
  readonly counts: { launches: number; launchFailures: number; requests: number; errors: number }
  /** Counts a start or a failed start, for this back end and for the gateway. */
  readonly count: (what: "launches" | "launchFailures") => void
  /** The newest handshake of the gateway with a process of it. `undefined` before the first one. */
  handshake: Handshake | undefined
  /** The detected era for modern clients. `undefined` if it is not known yet or may have changed. */
  era: Era | undefined
  /** True if it is a modern server that refuses legacy clients, so they need a `LegacyFace`. */
  faced: boolean
  readonly paramHeaders: RequestHeaders.ParamHeaders
}

/** A connection that is being opened. */
type Started = Effect.Effect<Bridge.Bridge, BackendFailed | InitializeRefused, Scope.Scope>

/** How long a server may take to answer `server/discover`, in milliseconds. A slower server counts as legacy. */
const probeTimeout = 5000

/** The state and the services that all back ends share. */
export interface Shared {
  readonly environment: Readonly<Record<string, string | undefined>>
  /** The scope of the gateway. */
  readonly scope: Scope.Scope
  readonly totals: GatewayMetrics.Totals
  readonly starts: StartQueue.StartQueue
  readonly client: HttpClient.HttpClient
}

/** Starts to use a back end. */
export const make = Effect.fnUntraced(function*(
  backend: Backend,
  { client, environment, totals, scope, starts }: Shared
) {
  const own = yield* Scope.fork(scope)
  const counts = { launches: 0, launchFailures: 0, requests: 0, errors: 0 }
  const metrics = GatewayMetrics.make(backend.name, yield* Effect.context<never>(), totals)
  const { entry, mask, settings, transport } = backend
  const open = Effect.provideService(
    transport.make(entry, { settings, mask, environment }),
    HttpClient.HttpClient,
    client
  )
  const running: RunningBackend = {
    backend,
    entryText: backend.entryText,
    metrics: {
      ...metrics,
      request: (method, outcome, millis) => {
        counts.requests++
        if (outcome === "error") counts.errors++
        // A server that runs by itself keeps its connections through a failure. So an answer, and not only a new start, shows that it
        // works again.
        else if (!backend.transport.startsServer && running.cooldown.lastFailure !== undefined) {
          running.cooldown = Cooldown.succeeded
        }
        metrics.request(method, outcome, millis)
      }
    },
    cooldown: Cooldown.initial,
    trial: yield* Scope.provide(FiberHandle.make(), own),
    sessions: 0,
    starts,
    spares: yield* Spares.make(settings.spares, open, starts.turn(gatewayPrincipal)).pipe(
      Effect.annotateLogs({ backend: backend.name }),
      Scope.provide(own)
    ),
    scope: own,
    counts,
    count: (what) => {
      counts[what]++
      totals[what]++
    },
    handshake: undefined,
    era: undefined,
    faced: false,
    paramHeaders: new Map()
  }
  return running
})

/** Opens a transport to a back end, or takes a spare. */
export type TakeTransport = Spares.Spares["take"]

/** The principal of the gateway's own starts in the start queue. */
export const gatewayPrincipal = "gateway"

/**
 * Waits for a turn to start a process, at most `startTimeout`. Returns at once if a spare is ready or no process has to start.
 * The turn ends with the scope.
 */
export const turn = ({ backend, spares, starts }: RunningBackend, principal: string) => {
  if (!backend.transport.startsServer || spares.size() > 0) return Effect.void
  const { startTimeout } = backend.settings
  const waited = Duration.format(startTimeout)
  return Effect.timeoutOrElse(starts.turn(principal), {
    duration: startTimeout,
    orElse: () =>
      new BackendFailed({
        reason: `the back end could not be started: other starts came first for ${waited}; try again later`,
        stderr: "",
        shortage: true
      })
  })
}

/** The era of a back end, from its setting or detected. `undefined` if it is not known. */
export const knownEra = (target: RunningBackend | undefined): Era | undefined =>
  target?.backend.settings.era === "auto" ? target.era : target?.backend.settings.era

/** Opens the connection of a lane. If a process fails at `server/discover`, starts another one and treats it as a legacy server. */
export const startLane = (
  target: RunningBackend,
  take: TakeTransport,
  client: Modern.Client,
  streamAfter: Duration.Duration,
  changed: (change: Change) => void
) => {
  const { backend, metrics } = target
  const start = (known: Era | undefined) =>
    Lane.make(take, {
      client,
      era: known,
      // All lanes reach the same server, and a modern server keeps no state for a connection. So one handshake holds for all lanes.
      handshake: !backend.transport.startsServer && target.handshake?.era === "modern" && known === "modern"
        ? target.handshake
        : undefined,
      probeTimeout,
      limits: { maxEvents: backend.settings.replayEvents, maxBytes: backend.settings.replayBytes },
      requestTimeout: backend.settings.requestTimeout,
      streamAfter,
      changed,
      unanswered: (reason) => {
        target.cooldown = Cooldown.noted(target.cooldown, reason)
      },
      paramHeaders: target.paramHeaders
    }, metrics)
  const known = knownEra(target)
  // A failure of a server that runs by itself means that it cannot be reached, which says nothing about its era.
  const opened = known !== undefined || !backend.transport.startsServer ?
    start(known) :
    Effect.catchTags(start(known), {
      BackendFailed: (error) => error.shortage === true ? Effect.fail(error) : start("legacy"),
      // A modern server that starts slower than `probeTimeout` counted as legacy, and then refused the legacy handshake.
      InitializeRefused: () => start("modern")
    })
  return opened.pipe(
    Effect.tap((lane) =>
      Effect.sync(() => {
        target.handshake = lane.handshake
        target.era = lane.handshake.era
      })
    ),
    Effect.tapErrorTag("InitializeRefused", () => forget(target))
  )
}

/** Forgets the detected era, because a server of the other era may have replaced this one. */
export const forget = (target: RunningBackend) =>
  Effect.sync(() => {
    target.era = undefined
    target.handshake = undefined
  })

/**
 * Opens the session of a legacy client. Tries a legacy `initialize` first, because a server that speaks both eras need not say
 * so. If the server refuses it, tries a `LegacyFace`.
 */
export const startSession = (
  target: RunningBackend,
  take: TakeTransport,
  record: ClientRecord.ClientRecord,
  streamAfter: Duration.Duration
): Started => {
  const { backend, metrics } = target
  const { era } = backend.settings
  const limits = sessionLimits(target, streamAfter)
  const viaFace = Bridge.make(LegacyFace.make(take), record, limits, metrics).pipe(
    Effect.onExit((exit) =>
      Effect.sync(() => {
        target.faced = Exit.isSuccess(exit)
        if (target.faced) target.era = "modern"
      })
    )
  )
  if (era === "modern" || target.faced) return viaFace
  const plain: Started = Bridge.make(take, record, limits, metrics)
  if (knownEra(target) === "legacy") {
    return Effect.tapErrorTag(plain, "InitializeRefused", () => forget(target))
  }
  return Effect.flatMap(Effect.timed(Effect.result(attempt(plain))), ([took, opened]) => {
    if (Result.isSuccess(opened)) return Effect.succeed(opened.success)
    const error = opened.failure
    // A server that runs by itself may refuse `initialize` without a JSON-RPC error, such as by an HTTP status.
    if (error._tag !== "InitializeRefused" && backend.transport.startsServer) return Effect.fail(error)
    // A server that took long to refuse may take as long again to start.
    const duration = Duration.sum(Duration.millis(probeTimeout), Duration.times(took, 2))
    return Effect.catch(
      Effect.timeoutOrElse(attempt(viaFace), { duration, orElse: () => Effect.fail(error) }),
      () => Effect.fail(error)
    )
  })
}

/** The limits of a session. */
export const sessionLimits = ({ backend: { settings } }: RunningBackend, streamAfter: Duration.Duration) => ({
  ...settings,
  streamAfter,
  replay: { maxBytes: settings.replayBytes, maxEvents: settings.replayEvents }
})

/** Runs `start` in a scope of its own. Closes that scope at once if `start` fails. */
const attempt = <A, E, R>(start: Effect.Effect<A, E, R>): Effect.Effect<A, E, R | Scope.Scope> =>
  Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
    const own = yield* Scope.fork(yield* Effect.scope)
    return yield* Effect.onError(
      restore(Scope.provide(start, own)),
      (cause) => Scope.close(own, Exit.failCause(cause))
    )
  }))
