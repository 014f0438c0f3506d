/** A back end as it runs: what its processes have taught the gateway, and how connections to it are opened. */
import { Duration, Effect, Exit, FiberHandle, Ref, Result, Scope } from "effect"
import type { HttpClient } from "effect/http"
import type { InitializeRefused } from "../GatewayErrors.ts"
import { BackendFailed } from "../GatewayErrors.ts"
import * as GatewayMetrics from "../GatewayMetrics.ts"
import * as Bridge from "../legacy/Bridge.ts"
import type { Era } from "../modern/Dialect.ts"
import * as Lane from "../modern/Lane.ts"
import type * as Modern from "../modern/Modern.ts"
import type * as ParamHeaders from "../modern/ParamHeaders.ts"
import * as PassThrough from "../modern/PassThrough.ts"
import type * as ClientRecord from "../sessions/ClientRecord.ts"
import type { Backend } from "./Backends.ts"
import * as Cooldown from "./Cooldown.ts"
import * as HttpTransport from "./HttpTransport.ts"
import * as LegacyFace from "./LegacyFace.ts"
import * as Remote from "./Remote.ts"
import * as Spares from "./Spares.ts"
import type * as StartQueue from "./StartQueue.ts"
import * as StdioProcess from "./StdioProcess.ts"
import type { Transport } from "./Transport.ts"
import * as Upstream from "./Upstream.ts"

/** A back end as it runs. */
export interface RunningBackend {
  readonly backend: Backend
  /** What its entry says now. */
  entryText: Backend["entryText"]
  readonly metrics: GatewayMetrics.GatewayMetrics
  readonly cooldown: Ref.Ref<Cooldown.Cooldown>
  /** The gateway's own start, which decides whether a suspect back end cools down. */
  readonly trial: FiberHandle.FiberHandle
  /** Sessions that exist and are not closed. */
  readonly sessions: Ref.Ref<number>
  readonly spares: Spares.Spares
  readonly starts: StartQueue.StartQueue
  /** Of the spares and of the trial. */
  readonly scope: Scope.Closeable
  readonly counts: { launches: number; launchFailures: number; requests: number; errors: number }
  /** Counts a start, or that one failed, here and in all. */
  readonly count: (what: "launches" | "launchFailures") => Effect.Effect<void>
  /** What its newest process has said of itself to the gateway; `undefined`: none has been asked. */
  handshake: Lane.Handshake | undefined
  /** What it has been found to speak to who is modern; `undefined`: not known yet, or no longer. */
  era: Era | undefined
  /** It has refused to speak as the revisions before, but is a modern server: its legacy clients need a face. */
  faced: boolean
  /** The way to an HTTP back end. */
  readonly remote: Remote.Remote | undefined
  readonly asks: { asked: boolean }
  readonly paramHeaders: ParamHeaders.ParamHeaders
}

/** A connection that is being opened. */
type Started = Effect.Effect<
  Bridge.Bridge | Upstream.Upstream,
  BackendFailed | InitializeRefused,
  Scope.Scope | HttpClient.HttpClient
>

/** How long a server may take to say that it does not know `server/discover`, in milliseconds. */
const probeTimeout = 5000

/** Begins to run a back end; its processes live in `scope`. */
export const make = Effect.fnUntraced(function*(
  backend: Backend,
  environment: Readonly<Record<string, string | undefined>>,
  scope: Scope.Scope,
  recent: GatewayMetrics.Recent,
  starts: StartQueue.StartQueue
) {
  const own = yield* Scope.fork(scope)
  const counts = { launches: 0, launchFailures: 0, requests: 0, errors: 0 }
  const metrics = GatewayMetrics.make(backend.name, yield* Effect.context<never>(), recent)
  const startProcess = backend.target._tag === "Stdio"
    ? StdioProcess.start(backend.target.command, environment, backend.settings, backend.mask)
    : Effect.die(new Error("only stdio back ends have processes"))
  const running: RunningBackend = {
    backend,
    entryText: backend.entryText,
    metrics: {
      ...metrics,
      request: (method, outcome, millis) => {
        counts.requests++
        if (outcome === "error") counts.errors++
        metrics.request(method, outcome, millis)
      }
    },
    cooldown: yield* Ref.make(Cooldown.initial),
    trial: yield* Scope.provide(FiberHandle.make(), own),
    sessions: yield* Ref.make(0),
    starts,
    spares: yield* Spares.make(backend.settings.spares, startProcess, scope, starts.turn(gatewayPrincipal)).pipe(
      Effect.annotateLogs({ backend: backend.name }),
      Scope.provide(own)
    ),
    scope: own,
    counts,
    count: (what) =>
      Effect.sync(() => {
        counts[what]++
        recent[what]++
      }),
    handshake: undefined,
    era: undefined,
    faced: false,
    remote: backend.target._tag === "Http" ? yield* Remote.make(backend.target, backend.mask) : undefined,
    asks: { asked: false },
    paramHeaders: new Map()
  }
  return running
})

/** Is told of each transport that an opening connection has got: what it says when the opening takes too long. */
export type Got = (transport: Transport) => void

/** The principal of the gateway's own starts. Names of keys are hexadecimal digests, so none equals it. */
export const gatewayPrincipal = "gateway"

/**
 * Waits for a turn to start a process, at most `startTimeout`. Returns at once if a spare is ready, or if the back end is HTTP. The
 * turn ends with the scope.
 */
export const turn = ({ backend, spares, starts }: RunningBackend, principal: string) => {
  if (backend.target._tag === "Http" || spares.size() > 0) return Effect.void
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

/** A connection of the gateway's own to a back end: a process, or what stands for one. */
const startTransport = ({ backend, spares }: RunningBackend, got: Got) => {
  const start = backend.target._tag === "Http"
    ? HttpTransport.make(backend.target, backend.settings, backend.mask)
    : spares.take
  return Effect.tap(start, (transport) => Effect.sync(() => got(transport)))
}

/** Which revisions a back end speaks, as far as that is said or known. */
export const knownEra = ({ backend: { settings: { era } }, era: found }: RunningBackend) => era === "auto" ? found : era

/** Opens the connection of a lane. A process that ends when it is asked for its revisions gets no such question again. */
export const startLane = (
  target: RunningBackend,
  client: Modern.Client,
  changed: (change: Lane.Change) => void,
  got: Got
) => {
  const { backend, metrics } = target
  const start = (known: Era | undefined) =>
    Lane.make(startTransport(target, got), {
      client,
      era: known,
      probeTimeout,
      limits: { maxEvents: backend.settings.replayEvents, maxBytes: backend.settings.replayBytes },
      changed,
      asks: target.asks,
      paramHeaders: target.paramHeaders
    }, metrics)
  const known = knownEra(target)
  const started = start(known)
  // An HTTP back end that fails then is not there: no verdict.
  const isUnsure = known === undefined && backend.target._tag === "Stdio"
  const opened = isUnsure
    ? Effect.catchTags(started, {
      BackendFailed: (error) => error.shortage === true ? Effect.fail(error) : start("legacy"),
      // One that took longer to start than it is given for an answer was taken for one of earlier revisions.
      InitializeRefused: () => start("modern")
    })
    : started
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

/** It may have been replaced by one of the other era. */
const forget = (target: RunningBackend) =>
  Effect.sync(() => {
    target.era = undefined
  })

/**
 * Records in the state of an HTTP back end whether this request reached it. Nothing is started for one, so its starts do not
 * tell.
 */
export const recordOutcome = <A, R>(
  { cooldown }: RunningBackend,
  asked: Effect.Effect<A, BackendFailed, R>
): Effect.Effect<A, BackendFailed, R> =>
  asked.pipe(
    Effect.tap(() => Ref.update(cooldown, Cooldown.succeeded)),
    Effect.tapError((error) => Ref.update(cooldown, (state) => Cooldown.noted(state, error.message)))
  )

/** The era of an HTTP back end, which is asked unless it is known. */
export const eraOf = Effect.fnUntraced(function*(target: RunningBackend, remote: Remote.Remote) {
  const known = knownEra(target)
  if (known !== undefined) return known
  const { startTimeout } = target.backend.settings
  const probed = Effect.timeoutOrElse(PassThrough.probe(remote, target.backend.settings), {
    duration: startTimeout,
    orElse: () => remote.failed(`the back end did not answer server/discover within ${Duration.format(startTimeout)}`)
  })
  return target.era = yield* recordOutcome(target, probed)
})

/**
 * Opens the session of a legacy client: in the server's own way if it has one, else behind a face. Which it is only the
 * server's answer tells; one that speaks both ways need not say so.
 */
export const startSession = (
  target: RunningBackend,
  record: ClientRecord.ClientRecord,
  streamAfter: Duration.Duration,
  got: Got
): Started => {
  const { backend, metrics } = target
  const { era, replayBytes, replayEvents } = backend.settings
  const limits = { ...backend.settings, streamAfter, replay: { maxBytes: replayBytes, maxEvents: replayEvents } }
  const faced = Bridge.make(LegacyFace.make(startTransport(target, got)), record, limits, metrics).pipe(
    Effect.onExit((exit) =>
      Effect.sync(() => {
        target.faced = Exit.isSuccess(exit)
        if (target.faced) target.era = "modern"
      })
    )
  )
  if (era === "modern" || target.faced) return faced
  const plain: Started = backend.target._tag === "Http"
    ? Upstream.make(backend.target, record, backend.settings, metrics, backend.mask)
    : Bridge.make(startTransport(target, got), record, limits, metrics)
  if (knownEra(target) === "legacy") {
    return Effect.tapErrorTag(plain, "InitializeRefused", () => forget(target))
  }
  return Effect.flatMap(Effect.timed(Effect.result(attempt(plain))), ([took, opened]) => {
    if (Result.isSuccess(opened)) return Effect.succeed(opened.success)
    const error = opened.failure
    // An HTTP server may refuse it by its status alone.
    if (error._tag !== "InitializeRefused" && backend.target._tag !== "Http") return Effect.fail(error)
    // It may be slow to start.
    const duration = Duration.sum(Duration.millis(probeTimeout), Duration.times(took, 2))
    return Effect.catch(
      Effect.timeoutOrElse(attempt(faced), { duration, orElse: () => Effect.fail(error) }),
      () => Effect.fail(error)
    )
  })
}

/** Releases at once what has failed. */
const attempt = <A, E, R>(start: Effect.Effect<A, E, R>): Effect.Effect<A, E, R | Scope.Scope> =>
  Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
    const own = yield* Scope.fork(yield* Effect.scope)
    return yield* Effect.onError(
      restore(Scope.provide(start, own)),
      (cause) => Scope.close(own, Exit.failCause(cause))
    )
  }))
