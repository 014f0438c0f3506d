/**
 * The lookup of the gateway's pool. Opens the connection for a key, which is a legacy client's session or a modern
 * caller's lane, within the limits of its back end.
 *
 * These checks, in this order, can refuse to wake a session:
 * - the session has no record (`Sessions.leaseOrWake`);
 * - the pool is full;
 * - the session's id has moved to another replica while the request waited (`lookup`);
 * - the back end's entry has changed (`StoredSleepers`).
 *
 * The first three leave the record unchanged, and the last removes it. Once `wake` has taken the session over, the launch
 * can still fail: the back end is unknown, cooling down or full, or does not start, or the session must move (`vacate`).
 * Then `rest` puts the session back to sleep.
 */
import { Clock, Duration, Effect, FiberHandle, Option, Result, Scope } from "effect"
import * as ClientRecord from "../conversation/ClientRecord.ts"
import type { Change } from "../conversation/LaneCalls.ts"
import type { InitializeRefused } from "../conversation/PooledConnection.ts"
import type * as JsonRpc from "../protocol/JsonRpc.ts"
import * as Masking from "../settings/Masking.ts"
import * as Settings from "../settings/Settings.ts"
import { BackendFailed } from "../transports/Transport.ts"
import type { Transport } from "../transports/Transport.ts"
import type * as Callers from "./Callers.ts"
import * as Cooldown from "./Cooldown.ts"
import * as GatewayErrors from "./GatewayErrors.ts"
import * as Identity from "./Identity.ts"
import type { Key } from "./Key.ts"
import * as LightSession from "./LightSession.ts"
import * as RunningBackend from "./RunningBackend.ts"
import type * as Sleepers from "./Sleepers.ts"
import * as State from "./State.ts"

export const lookup = (
  state: State.State,
  key: Key
): Effect.Effect<State.Connection, GatewayErrors.LaunchError, Scope.Scope> =>
  key.isLight ? openLight(state, key) : launch(state, key)

/** Opens a light session. It starts no process, so the limits and the counts of launches do not concern it. */
const openLight = Effect.fnUntraced(function*(state: State.State, key: Key) {
  const held = yield* State.hold(state, key)
  const target = state.running.get(key.backend)
  const { record } = key
  // A light session never wakes, so only the key that opens it has a record.
  if (target === undefined || record === undefined) return yield* new GatewayErrors.UnknownSession()
  const client = { backend: key.backend, principal: key.principal, known: Effect.succeed(true), light: true }
  const call = (request: JsonRpc.Request) => state.ask(client, { _tag: "Call", request })
  const limits = RunningBackend.sessionLimits(target, Settings.firstSilence(state.settings))
  const connection = yield* LightSession.make(call, record, limits)
  yield* unlessEnded(state, key)
  held.connection = connection
  return connection
})

const launch = Effect.fnUntraced(function*(
  state: State.State,
  key: Key
): Effect.fn.Return<State.Connection, GatewayErrors.LaunchError, Scope.Scope> {
  const { callers, placement, running, settings, sleepers } = state
  const held = yield* State.hold(state, key)
  const target = running.get(key.backend)
  // The id counts as occupied here until the session's scope has closed.
  yield* placement.occupy(key.id)
  if (!placement.mayOccupy(key.id)) return yield* GatewayErrors.sessionMoved()
  // Finalizers run newest first: the process starts later, so it is gone when the session is put to sleep.
  yield* Effect.addFinalizer(() => rest(sleepers, held))
  const client = callers.find(key) ?? key.record ?? (yield* wake(sleepers, held))
  if (target === undefined || client === undefined) return yield* new GatewayErrors.UnknownSession()
  yield* countIn(target, settings.maxSessionsPerBackend)
  const before = target.cooldown
  target.count("launches")
  // Without a principal, each session counts as a principal of its own in the start queue.
  const turn = key.principal.id === "" ? key.text : key.principal.id
  const connection = yield* start(target, turn, (take) => open(state, target, take, key, client)).pipe(
    Effect.tapError((error) => countFailure(target, before, error)),
    Effect.annotateLogs(annotationsOf(key))
  )
  target.cooldown = Cooldown.succeeded
  yield* unlessEnded(state, key)
  if (target.backend.settings.stateless && key.record !== undefined) {
    held.record = key.record
    yield* sleepers.enter(key, key.record)
    yield* unlessEnded(state, key)
  }
  held.connection = connection
  return connection
})

/** Fails if the session or lane was ended during its launch. */
const unlessEnded = ({ endings }: State.State, key: Key) =>
  Effect.suspend((): Effect.Effect<void, GatewayErrors.NotNow | GatewayErrors.UnknownSession> => {
    const ending = endings.noted(key)
    if (ending === undefined) return Effect.void
    return ending.reason === "moved" ? GatewayErrors.sessionMoved() : new GatewayErrors.UnknownSession()
  })

/** The name of a session or a lane in logs and on the page. Too short to use the session. */
export const labelOf = ({ id, lane }: Key): string => Masking.shortId(lane === undefined ? id : `lane${lane}-${id}`)

/** What logs about a session or a lane say of it. */
export const annotationsOf = (key: Key) => ({
  backend: key.backend,
  session: labelOf(key),
  ...Identity.annotation(key.principal)
})

/** Takes over a session that sleeps. It sleeps again when its launch fails or its process ends, for whatever reason. */
const wake = (sleepers: Sleepers.Sleepers, held: State.Held) =>
  Effect.uninterruptible(Effect.map(sleepers.take(held.key), (found) => (held.record = Option.getOrUndefined(found))))

/** Puts a session to sleep, unless it has been ended. */
const rest = (sleepers: Sleepers.Sleepers, { key, record }: State.Held) =>
  record === undefined || record.over ? Effect.void : sleepers.rest(key, record)

/** Fails if the back end cools down or is full. `then` runs in the same synchronous step, so no other launch comes between. */
export const unlessRefused = (target: RunningBackend.RunningBackend, limit: number, then: () => void = () => {}) =>
  Effect.flatMap(Clock.currentTimeMillis, (now) => {
    const { backend: { name }, cooldown, sessions } = target
    const coolsDown = Cooldown.check(cooldown, name, now)
    if (coolsDown !== undefined) return coolsDown
    if (sessions >= limit) return GatewayErrors.backendFull(name, limit)
    then()
    return Effect.void
  })

/** Counts a session against its back end's limit, until it is closed. */
const countIn = (target: RunningBackend.RunningBackend, limit: number) =>
  Effect.acquireRelease(
    unlessRefused(target, limit, () => target.sessions++),
    () => Effect.sync(() => target.sessions--)
  )

/** Opens the connection for a key. */
const open = (
  { callers, settings }: State.State,
  target: RunningBackend.RunningBackend,
  take: RunningBackend.TakeTransport,
  key: Key,
  client: Callers.Profile | ClientRecord.ClientRecord
): Opening => {
  const streamAfter = Settings.firstSilence(settings)
  if (!("lanes" in client)) return RunningBackend.startSession(target, take, client, streamAfter)
  const changed = (change: Change) => callers.find(key)?.listeners.forEach((listener) => listener(change))
  return RunningBackend.startLane(target, take, client.client, streamAfter, changed)
}

type Opening = Effect.Effect<State.Connection, BackendFailed | InitializeRefused, Scope.Scope>

/** Waits for a turn, then opens the connection within `startTimeout`. Waiting for the turn does not count. */
const start = (
  target: RunningBackend.RunningBackend,
  principal: string,
  opening: (take: RunningBackend.TakeTransport) => Opening
) => {
  const { startTimeout } = target.backend.settings
  let transport: Transport | undefined
  const take = Effect.tap(target.spares.take, (taken) => Effect.sync(() => (transport = taken)))
  const inTime = Effect.timeoutOrElse(opening(take), {
    duration: startTimeout,
    orElse: () => Effect.suspend(() => tooLate(startTimeout, transport))
  })
  return Effect.scopedWith((untilStarted) =>
    Effect.andThen(Scope.provide(RunningBackend.turn(target, principal), untilStarted), inTime)
  )
}

/** The failure of a start that took too long. Adds advice if the process wrote nothing on stderr. */
const tooLate = (limit: Duration.Duration, transport: Transport | undefined): BackendFailed => {
  const reason = `the back end did not answer initialize within ${Duration.format(limit)}`
  if (transport === undefined) return new BackendFailed({ reason, stderr: "" })
  const failure = transport.failed(reason)
  return failure.stderr === "" && transport.pid !== undefined ? transport.failed(`${reason}${whatMayHelp}`) : failure
}

const whatMayHelp =
  " and wrote nothing on stderr. If it waits for an environment variable, add the variable to env in its entry: " +
  "it inherits only PATH, HOME and similar ones. If it needs longer, raise startTimeout"

/** Counts a client's failed start. From the third in a row on, runs `tryAlone`, one at a time. */
const countFailure = (
  target: RunningBackend.RunningBackend,
  before: Cooldown.Cooldown,
  error: BackendFailed | InitializeRefused
): Effect.Effect<unknown> => {
  const { cooldown } = target
  target.count("launchFailures")
  if (error._tag === "InitializeRefused") {
    target.cooldown = Cooldown.noted(cooldown, "the back end answered initialize with an error")
  } else if (error.shortage !== true) target.cooldown = Cooldown.failed(cooldown, before, error.message)
  return target.cooldown.failures > cooldown.failures && Cooldown.isSuspect(target.cooldown)
    ? FiberHandle.run(target.trial, tryAlone(target, target.cooldown), { onlyIfMissing: true })
    : Effect.void
}

/**
 * Starts a suspect back end with the gateway's own `initialize`, and ends it again. If that start fails too, the fault
 * is the back end's, and not in the clients' messages.
 * The start does not count against `maxSessionsPerBackend`: the session that has just failed still has its place,
 * perhaps the last one. If the gateway is short of handles there is no verdict, and the next failed start tries again.
 */
const tryAlone = Effect.fnUntraced(function*(
  target: RunningBackend.RunningBackend,
  suspect: Cooldown.Cooldown
) {
  const client = ClientRecord.neutral()
  const tried = yield* Effect.result(
    start(
      target,
      RunningBackend.gatewayPrincipal,
      (take) => RunningBackend.startSession(target, take, client, Duration.infinity)
    )
  )
  // A server that answers with an error has started.
  if (Result.isSuccess(tried) || tried.failure._tag === "InitializeRefused") {
    target.cooldown = Cooldown.succeeded
    return yield* Effect.logWarning(
      `${suspect.failures} starts for clients failed in a row, but a start for the gateway itself succeeded; ` +
        `the back end stays in use. The last failure: ${suspect.lastFailure}`
    )
  }
  const { message, shortage } = tried.failure
  if (shortage === true) return
  const now = yield* Clock.currentTimeMillis
  target.cooldown = Cooldown.confirmed(target.cooldown, suspect, now, message)
  const { failures, until } = target.cooldown
  if (until <= now) return
  const seconds = Math.ceil((until - now) / 1000)
  yield* Effect.logWarning(
    `${failures} starts failed in a row; the gateway tries none for ${seconds} s. The last failure: ${message}`
  )
}, Effect.scoped)
