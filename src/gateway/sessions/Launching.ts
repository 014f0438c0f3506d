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
 * A refusal by them leaves the record unchanged. Then `wake` takes the session over. If the launch fails after that,
 * `rest` puts the session back to sleep: its back end is unknown, cooling down or full, its back end does not start, or
 * a reload or a move came meanwhile.
 */
import { Clock, Duration, Effect, Exit, FiberHandle, Option, Ref, Result, Scope } from "effect"
import * as ClientRecord from "../conversation/ClientRecord.ts"
import type { InitializeRefused } from "../conversation/PooledConnection.ts"
import * as Masking from "../settings/Masking.ts"
import * as Settings from "../settings/Settings.ts"
import { BackendFailed } from "../transports/Transport.ts"
import type { Transport } from "../transports/Transport.ts"
import type * as Callers from "./Callers.ts"
import * as Cooldown from "./Cooldown.ts"
import * as GatewayErrors from "./GatewayErrors.ts"
import type { Key } from "./Key.ts"
import type { Connection } from "./Registry.ts"
import type * as Registry from "./Registry.ts"
import * as RunningBackend from "./RunningBackend.ts"
import type * as Sleepers from "./Sleepers.ts"

export const lookup = Effect.fnUntraced(function*(
  registry: Registry.Registry,
  key: Key
): Effect.fn.Return<Connection, GatewayErrors.LaunchError, Scope.Scope> {
  const { callers, connections, opening, placement, running, settings, sleepers } = registry
  const name = key.backend
  const target = running.get(name)
  const profile = callers.find(key)
  // The id counts as occupied here until the session's scope has closed.
  const { id } = key
  yield* placement.occupy(id)
  if (!placement.mayOccupy(id)) return yield* GatewayErrors.sessionMoved()
  const opened = opening.get(key.text)?.record
  const client = profile ?? opened ?? (yield* wake(sleepers, key))
  if (target === undefined || client === undefined) return yield* new GatewayErrors.UnknownSession()
  const { backend, cooldown } = target
  yield* unlessRefused(target, settings.maxSessionsPerBackend)
  const before = yield* Ref.get(cooldown)
  yield* countIn(target, settings.maxSessionsPerBackend)
  let entered = false
  // Finalizers run newest first: the process starts later, so it is gone when the session is put to sleep.
  yield* Effect.addFinalizer(() => entered && opened !== undefined ? rest(sleepers, key, opened) : Effect.void)
  yield* target.count("launches")
  const own = yield* Scope.fork(yield* Effect.scope)
  // Without a principal, each session counts as a principal of its own in the start queue.
  const turn = key.principal === "" ? key.text : key.principal
  const connection = yield* start(target, turn, (got) => open(registry, target, key, client, got))
    .pipe(
      Scope.provide(own),
      Effect.tap(() => Ref.update(cooldown, Cooldown.succeeded)),
      Effect.tapError(() => target.count("launchFailures")),
      Effect.tapErrorTag("InitializeRefused", () => Ref.update(cooldown, (state) => Cooldown.noted(state, refused))),
      Effect.tapErrorTag("BackendFailed", (error) => countFailure(target, before, error)),
      Effect.annotateLogs({ backend: name, session: labelOf(key) })
    )
  // The session was ended during its launch, and the caller that ended it waits for the end of the process. The pool
  // reports a failed launch before it closes the scope, so the scope closes here first.
  if (!("lanes" in client) && client.over) {
    yield* Effect.uninterruptible(Scope.close(own, Exit.void))
    return yield* new GatewayErrors.UnknownSession()
  }
  if (backend.settings.stateless && opened !== undefined) {
    entered = true
    yield* sleepers.enter(key, opened)
  }
  yield* Effect.acquireRelease(
    Effect.suspend((): Effect.Effect<unknown, GatewayErrors.UnknownSession | GatewayErrors.NotNow> => {
      // A reload or a move that came meanwhile did not see this connection, so the connection ends here. From now on
      // both find it in `connections`. The checks and the `set` must stay in one synchronous step.
      if (running.get(name) !== target) return new GatewayErrors.UnknownSession()
      if (!placement.mayOccupy(id)) return GatewayErrors.sessionMoved()
      connections.set(key.text, { key, connection })
      return Effect.void
    }),
    () => Effect.sync(() => connections.get(key.text)?.connection === connection && connections.delete(key.text))
  )
  return connection
})

/** The name of a session or a lane in logs and on the page. Too short to use the session. */
export const labelOf = ({ id, lane }: Key): string => Masking.shortId(lane === undefined ? id : `lane${lane}-${id}`)

/** Takes over a session that sleeps. It sleeps again when its launch fails or its process ends, for whatever reason. */
const wake = (sleepers: Sleepers.Sleepers, key: Key) =>
  Effect.map(
    Effect.acquireRelease(
      sleepers.take(key),
      (found) => Option.isSome(found) ? rest(sleepers, key, found.value) : Effect.void
    ),
    Option.getOrUndefined
  )

/** Puts a session to sleep, unless it has been ended. */
const rest = (sleepers: Sleepers.Sleepers, key: Key, record: ClientRecord.ClientRecord) =>
  Effect.suspend(() => record.over ? Effect.void : sleepers.rest(key, record))

/**
 * Fails if the back end cools down or is full. `Sessions` also calls it before it asks the pool, because the pool would
 * first evict an idle session.
 */
export const unlessRefused = Effect.fnUntraced(function*(
  { backend: { name }, cooldown, sessions }: RunningBackend.RunningBackend,
  limit: number
) {
  const refusal = Cooldown.check(yield* Ref.get(cooldown), name, yield* Clock.currentTimeMillis)
  if (refusal !== undefined) return yield* refusal
  if ((yield* Ref.get(sessions)) >= limit) return yield* GatewayErrors.backendFull(name, limit)
})

/** Counts a session against its back end's limit, until it is closed. */
const countIn = ({ backend, sessions }: RunningBackend.RunningBackend, limit: number) =>
  Effect.acquireRelease(
    Effect.flatMap(
      Ref.modify(sessions, (count) => [count < limit, count < limit ? count + 1 : count]),
      (admitted) => admitted ? Effect.void : GatewayErrors.backendFull(backend.name, limit)
    ),
    () => Ref.update(sessions, (count) => count - 1)
  )

/** Opens the connection for a key. */
const open = (
  { callers, settings }: Registry.Registry,
  target: RunningBackend.RunningBackend,
  key: Key,
  client: Callers.Profile | ClientRecord.ClientRecord,
  got: RunningBackend.Got
): Opening =>
  "lanes" in client
    ? RunningBackend.startLane(
      target,
      client.client,
      Settings.firstSilence(settings),
      (change) => callers.find(key)?.listeners.forEach((listener) => listener(change)),
      got
    )
    : RunningBackend.startSession(target, client, Settings.firstSilence(settings), got)

type Opening = Effect.Effect<Connection, BackendFailed | InitializeRefused, Scope.Scope>

/** Waits for a turn, then opens the connection within `startTimeout`. Waiting for the turn does not count. */
const start = (
  target: RunningBackend.RunningBackend,
  principal: string,
  opening: (got: RunningBackend.Got) => Opening
) => {
  const { startTimeout } = target.backend.settings
  let transport: Transport | undefined
  const opened = opening((next) => {
    transport = next
  })
  const inTime = Effect.timeoutOrElse(opened, {
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

const refused = "the back end answered initialize with an error"

/** Counts a client's failed start. From the third in a row on, runs `tryAlone`, one at a time. */
const countFailure = (
  target: RunningBackend.RunningBackend,
  before: Cooldown.Cooldown,
  { message, shortage }: BackendFailed
) => {
  if (shortage === true) return Effect.void
  const counted = Ref.modify(target.cooldown, (state) => {
    const next = Cooldown.failed(state, before, message)
    return [next !== state && Cooldown.isSuspect(next) ? next : undefined, next]
  })
  return Effect.uninterruptible(
    Effect.flatMap(counted, (suspect) =>
      suspect === undefined
        ? Effect.void
        : FiberHandle.run(target.trial, tryAlone(target, suspect), { onlyIfMissing: true }))
  )
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
  const { cooldown } = target
  const client = ClientRecord.neutral()
  const tried = yield* Effect.result(
    start(
      target,
      RunningBackend.gatewayPrincipal,
      (got) => RunningBackend.startSession(target, client, Duration.infinity, got)
    )
  )
  // A server that answers with an error has started.
  if (Result.isSuccess(tried) || tried.failure._tag === "InitializeRefused") {
    yield* Ref.update(cooldown, Cooldown.succeeded)
    return yield* Effect.logWarning(
      `${suspect.failures} starts for clients failed in a row, but a start for the gateway itself succeeded; ` +
        `the back end stays in use. The last failure: ${suspect.lastFailure}`
    )
  }
  const { message, shortage } = tried.failure
  if (shortage === true) return
  const now = yield* Clock.currentTimeMillis
  const { failures, until } = yield* Ref.updateAndGet(
    cooldown,
    (state) => Cooldown.confirmed(state, suspect, now, message)
  )
  if (until <= now) return
  const seconds = Math.ceil((until - now) / 1000)
  yield* Effect.logWarning(
    `${failures} starts failed in a row; the gateway tries none for ${seconds} s. The last failure: ${message}`
  )
}, Effect.scoped)
