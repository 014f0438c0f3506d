/**
 * The lookup of the gateway's pool: opens the connection that a key stands for, a legacy client's session or a modern caller's
 * lane, within the limits of its back end.
 *
 * A session that sleeps is refused, in this order: where nobody has entered it (`Sessions.leaseOrWake`); where the pool is full; here,
 * where its id has moved while the request waited; where its back end's entry has changed (`StoredSleepers`). From `wake` on
 * it is taken over, and relies on `rest`: where its back end is unknown, cooling down or full; where that does not start; and where
 * a reload or a move came in between.
 */
import { Clock, Duration, Effect, Exit, FiberHandle, Option, Ref, Result, Scope } from "effect"
import type { HttpClient } from "effect/http"
import * as SessionKey from "../../SessionKey.ts"
import * as Cooldown from "../backends/Cooldown.ts"
import * as RunningBackend from "../backends/RunningBackend.ts"
import type { Transport } from "../backends/Transport.ts"
import * as GatewayErrors from "../GatewayErrors.ts"
import type * as Callers from "../modern/Callers.ts"
import * as Masking from "../settings/Masking.ts"
import * as Settings from "../settings/Settings.ts"
import * as ClientRecord from "./ClientRecord.ts"
import type { Connection, Key } from "./Registry.ts"
import * as Registry from "./Registry.ts"
import type * as Sleepers from "./Sleepers.ts"

export const lookup = Effect.fnUntraced(function*(
  registry: Registry.Registry,
  key: Key
): Effect.fn.Return<Connection, GatewayErrors.LaunchError, Scope.Scope | HttpClient.HttpClient> {
  const { callers, connections, opening, running, settings, sleepers } = registry
  const name = SessionKey.backend(key)
  const target = running.get(name)
  const profile = callers.find(key)
  // Whatever lives under an id keeps the id here, to the very end.
  const id = Registry.idOf(key)
  yield* registry.occupy(id)
  if (!registry.mayOccupy(id)) return yield* new GatewayErrors.SessionMoved()
  const opened = opening.get(key)
  const client = profile ?? opened ?? (yield* wake(sleepers, key))
  if (target === undefined || client === undefined) return yield* new GatewayErrors.UnknownSession()
  const { backend, cooldown } = target
  yield* unlessRefused(target, settings.maxSessionsPerBackend)
  const before = yield* Ref.get(cooldown)
  yield* countIn(target, settings.maxSessionsPerBackend)
  let noted = false
  // When the process has gone, which is started after this, the session sleeps.
  yield* Effect.addFinalizer(() => noted && opened !== undefined ? rest(sleepers, key, opened) : Effect.void)
  yield* target.count("launches")
  const own = yield* Scope.fork(yield* Effect.scope)
  const connection = yield* start(target, Registry.principalOf(key), (got) => open(registry, target, key, client, got))
    .pipe(
      Scope.provide(own),
      Effect.tap(() => Ref.update(cooldown, Cooldown.succeeded)),
      Effect.tapError(() => target.count("launchFailures")),
      Effect.tapErrorTag("InitializeRefused", () => Ref.update(cooldown, (state) => Cooldown.noted(state, refused))),
      Effect.tapErrorTag("BackendFailed", (error) => countFailure(target, before, error)),
      Effect.annotateLogs({ backend: name, session: Masking.shortId(SessionKey.session(key)) })
    )
  // It was ended meanwhile. The pool would say so before it closes anything, and whoever ended it waits for the end of its process.
  if (!("lanes" in client) && client.over) {
    yield* Effect.uninterruptible(Scope.close(own, Exit.void))
    return yield* new GatewayErrors.UnknownSession()
  }
  if (backend.settings.stateless && opened !== undefined) {
    noted = true
    yield* sleepers.enter(key, opened)
  }
  yield* Effect.acquireRelease(
    Effect.suspend((): Effect.Effect<unknown, GatewayErrors.UnknownSession | GatewayErrors.SessionMoved> => {
      // If a reload or a move came in between, it did not see this connection, so it ends here. From this line on both find it in
      // `connections`; nothing may come between the checks and it.
      if (running.get(name) !== target) return new GatewayErrors.UnknownSession()
      if (!registry.mayOccupy(id)) return new GatewayErrors.SessionMoved()
      connections.set(key, connection)
      return Effect.void
    }),
    () => Effect.sync(() => connections.get(key) === connection && connections.delete(key))
  )
  return connection
})

/** Takes over a session that sleeps. When its launch or its process ends, however it does, it sleeps again. */
const wake = (sleepers: Sleepers.Sleepers, key: Key) =>
  Effect.map(
    Effect.acquireRelease(
      sleepers.find(key),
      (found) => Option.isSome(found) ? rest(sleepers, key, found.value) : Effect.void
    ),
    Option.getOrUndefined
  )

/** When its process has gone, the session sleeps; unless it has been ended. */
const rest = (sleepers: Sleepers.Sleepers, key: Key, record: ClientRecord.ClientRecord) =>
  Effect.suspend(() => record.over ? Effect.void : sleepers.rest(key, record))

/**
 * Fails if the back end cools down or is full. `Sessions` asks before the pool too, because the pool would evict an idle session
 * first.
 */
export const unlessRefused = Effect.fnUntraced(function*(
  { backend: { name }, cooldown, sessions }: RunningBackend.RunningBackend,
  limit: number
) {
  const refusal = Cooldown.check(yield* Ref.get(cooldown), name, yield* Clock.currentTimeMillis)
  if (refusal !== undefined) return yield* refusal
  if ((yield* Ref.get(sessions)) >= limit) return yield* new GatewayErrors.BackendFull({ backend: name, limit })
})

/** Counts a session against its back end's limit, until it is closed. */
const countIn = ({ backend, sessions }: RunningBackend.RunningBackend, limit: number) =>
  Effect.acquireRelease(
    Effect.flatMap(
      Ref.modify(sessions, (count) => [count < limit, count < limit ? count + 1 : count]),
      (admitted) => admitted ? Effect.void : new GatewayErrors.BackendFull({ backend: backend.name, limit })
    ),
    () => Ref.update(sessions, (count) => count - 1)
  )

/** Opens the connection that a key stands for. */
const open = (
  { callers, settings }: Registry.Registry,
  target: RunningBackend.RunningBackend,
  key: Key,
  client: Callers.Profile | ClientRecord.ClientRecord,
  got: RunningBackend.Got
): Opening<Connection> =>
  "lanes" in client
    ? RunningBackend.startLane(
      target,
      client.client,
      (change) => callers.find(key)?.listeners.forEach((listener) => listener(change)),
      got
    )
    : RunningBackend.startSession(target, client, Settings.firstSilence(settings), got)

type Opening<A> = Effect.Effect<
  A,
  GatewayErrors.BackendFailed | GatewayErrors.InitializeRefused,
  Scope.Scope | HttpClient.HttpClient
>

/** Waits for a turn, then opens the connection within `startTimeout`. Waiting for the turn does not count. */
const start = <A>(
  target: RunningBackend.RunningBackend,
  principal: Registry.Principal,
  opening: (got: RunningBackend.Got) => Opening<A>
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

/** A start that took too long; of a process that has said nothing of why, with what may help. */
const tooLate = (limit: Duration.Duration, transport: Transport | undefined): GatewayErrors.BackendFailed => {
  const reason = `the back end did not answer initialize within ${Duration.format(limit)}`
  if (transport === undefined) return new GatewayErrors.BackendFailed({ reason, stderr: "" })
  const failure = transport.failed(reason)
  return failure.stderr === "" && transport.pid !== undefined ? transport.failed(`${reason}${whatMayHelp}`) : failure
}

const whatMayHelp =
  " and wrote nothing on stderr. If it waits for a variable: of the gateway's environment it gets only " +
  "PATH, HOME and their like, and whatever else its entry's env names. If it needs longer, raise startTimeout"

const refused = "the back end has answered initialize with an error"

/** Counts a client's failed start. From the third in a row on, starts the gateway's own, one at a time. */
const countFailure = (
  target: RunningBackend.RunningBackend,
  before: Cooldown.Cooldown,
  { message, shortage }: GatewayErrors.BackendFailed
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
 * Starts a suspect back end with an `initialize` of the gateway's own, and ends it again. Only if that fails too is the back end
 * at fault, and not what its clients have sent. It does not count against `maxSessionsPerBackend`: the session that has just failed
 * still has its place, perhaps the last one. No verdict when the gateway is short of handles: the next failed start tries again.
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
  // A server that refuses is there.
  if (Result.isSuccess(tried) || tried.failure._tag === "InitializeRefused") {
    yield* Ref.update(cooldown, Cooldown.succeeded)
    return yield* Effect.logWarning(
      `${suspect.failures} starts for clients failed in a row, but one for the gateway itself did not; others are let in. ` +
        `The last failure: ${suspect.lastFailure}`
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
    `${failures} starts failed in a row; none is tried for ${seconds} s. The last failure: ${message}`
  )
}, Effect.scoped)
