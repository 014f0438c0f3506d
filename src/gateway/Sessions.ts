/**
 * The sessions of the gateway: a `SessionPool` of connections to back ends, keyed `backend/id`, and what a session is
 * between its processes. The lanes of modern callers are in the same pool, keyed by `Callers.keyOf`.
 *
 * A session belongs to the key that opened it because that key's name is part of the pool's key: with another one it does
 * not exist.
 */
import type { Scope } from "effect"
import {
  Cache,
  Clock,
  Context,
  Deferred,
  Duration,
  Effect,
  Exit,
  Option,
  Ref,
  Scope as ScopeModule,
  Stream
} from "effect"
import { HttpClient } from "effect/http"
import { randomUUID } from "node:crypto"
import * as SessionKey from "../SessionKey.ts"
import * as SessionPool from "../SessionPool.ts"
import type { Backend, Backends } from "./Backends.ts"
import type * as Bridge from "./Bridge.ts"
import * as Callers from "./Callers.ts"
import * as ClientRecord from "./ClientRecord.ts"
import type { GatewayConfig } from "./Config.ts"
import * as Cooldown from "./Cooldown.ts"
import type { Era } from "./Dialect.ts"
import * as GatewayErrors from "./GatewayErrors.ts"
import * as GatewayMetrics from "./GatewayMetrics.ts"
import type * as JsonRpc from "./JsonRpc.ts"
import type * as Lane from "./Lane.ts"
import * as Masking from "./Masking.ts"
import type * as PassThrough from "./PassThrough.ts"
import * as RunningBackend from "./RunningBackend.ts"
import type * as Upstream from "./Upstream.ts"

type Key = SessionKey.SessionKey
export type Connection = Bridge.Bridge | Upstream.Upstream | Lane.Lane
export type AcquireError =
  | GatewayErrors.LaunchError
  | GatewayErrors.LanesTaken
  | GatewayErrors.TooManyCalls
  | SessionPool.AcquireError

/** Who asks: the name of a key, or "" where no keys are asked for. */
export type Principal = string

/** A lane, leased. */
export interface LeasedLane {
  readonly lane: Lane.Lane
  readonly profile: Callers.Profile
}

export interface LiveSession {
  readonly info: SessionPool.Info<Key>
  readonly activity: Bridge.Activity
}

/** What a reload did. */
export interface Reloaded {
  readonly added: ReadonlyArray<string>
  readonly changed: ReadonlyArray<string>
  readonly removed: ReadonlyArray<string>
}

export class Sessions extends Context.Service<Sessions, {
  readonly pool: SessionPool.SessionPool<Key, Connection, GatewayErrors.LaunchError>
  readonly running: () => ReadonlyMap<string, RunningBackend.RunningBackend>
  /** Opens a session with the client's `initialize`; its id. */
  readonly open: (
    backend: string,
    principal: Principal,
    message: JsonRpc.Request,
    text: string
  ) => Effect.Effect<{ readonly id: string; readonly connection: Connection }, AcquireError>
  /** The connection of a session, leased for the scope; a sleeping session is woken. */
  readonly lease: (
    backend: string,
    principal: Principal,
    id: string
  ) => Effect.Effect<Connection, AcquireError, Scope.Scope>
  /** A lane of a modern caller, leased for the scope; for a call that has it to itself, or shares it. */
  readonly lane: (
    caller: Callers.Caller,
    exclusive: boolean
  ) => Effect.Effect<LeasedLane, AcquireError, Scope.Scope>
  /** The first lane of a modern caller, leased for the scope, whoever else uses it: for who only listens. */
  readonly firstLane: (caller: Callers.Caller) => Effect.Effect<LeasedLane, AcquireError, Scope.Scope>
  /** Which revisions a back end speaks, as far as that is said or known. */
  readonly knownEra: (backend: string) => Era | undefined
  /** The requests that are passed through. */
  readonly passing: PassThrough.Passing
  /** Ends a session, asleep or not, if there is one: what it gives waits until the process is gone. */
  readonly end: (backend: string, principal: Principal, id: string) => Effect.Effect<Option.Option<Effect.Effect<void>>>
  /** Ends the live session with this number in the pool. */
  readonly endNumber: (number: number) => Effect.Effect<Option.Option<Effect.Effect<void>>>
  /** Tells every request that still runs why it ends, and ends the streams; the sessions themselves end with the gateway. */
  readonly endRequests: (reason: string) => Effect.Effect<void>
  /** Serves other back ends from now on; the sessions of changed and removed ones end. */
  readonly reload: (backends: Backends) => Effect.Effect<Reloaded>
  /** Sleeping sessions by back end, live ones of stateless back ends included. */
  readonly asleep: Effect.Effect<ReadonlyMap<string, number>>
  /** The live sessions, and what they are doing. */
  readonly live: Effect.Effect<ReadonlyArray<LiveSession>>
  /** How many calls of modern clients wait for a lane. */
  readonly waitingForLane: Effect.Effect<number>
  readonly recent: GatewayMetrics.Recent
}>()("effect-session-pool/gateway/Sessions") {}

const make = Effect.fnUntraced(function*(
  config: GatewayConfig,
  environment: Readonly<Record<string, string | undefined>>
) {
  const { settings } = config
  const scope = yield* Effect.scope
  const recent = GatewayMetrics.recent()
  const running = new Map<string, RunningBackend.RunningBackend>()
  const connections = new Map<Key, Connection>()
  const callers = Callers.make()
  /** The clients whose session is being opened. */
  const opening = new Map<Key, ClientRecord.ClientRecord>()
  /** The clients of stateless back ends: whoever is here may be woken. */
  const sleepers = yield* Cache.make<Key, ClientRecord.ClientRecord, GatewayErrors.UnknownSession>({
    capacity: settings.maxAsleep,
    timeToLive: settings.asleepTimeToLive,
    lookup: () => new GatewayErrors.UnknownSession()
  })

  // ---------------------------------------------------------------------------
  // Launching
  // ---------------------------------------------------------------------------

  const client = yield* HttpClient.HttpClient

  const run = (backend: Backend) =>
    Effect.map(RunningBackend.make(backend, environment, scope, recent), (target) => running.set(backend.name, target))
      .pipe(
        Effect.provideService(HttpClient.HttpClient, client)
      )

  /** Counts a session against its back end's limit, until it is closed. */
  const enter = ({ backend, sessions }: RunningBackend.RunningBackend) =>
    Effect.acquireRelease(
      Effect.flatMap(
        Ref.modify(sessions, (count) => {
          const admitted = count < settings.maxSessionsPerBackend
          return [admitted, admitted ? count + 1 : count]
        }),
        (admitted) =>
          admitted
            ? Effect.void
            : new GatewayErrors.BackendFull({ backend: backend.name, limit: settings.maxSessionsPerBackend })
      ),
      () => Ref.update(sessions, (count) => count - 1)
    )

  const lookup = Effect.fnUntraced(function*(key: Key) {
    const target = running.get(SessionKey.backend(key))
    const profile = callers.find(key)
    const record = opening.get(key) ?? Option.getOrUndefined(yield* Cache.getSuccess(sleepers, key))
    const known = profile ?? record
    if (target === undefined || known === undefined) return yield* new GatewayErrors.UnknownSession()
    const { backend, cooldown, counts } = target
    const name = backend.name
    const refusal = Cooldown.check(yield* Ref.get(cooldown), name, yield* Clock.currentTimeMillis)
    if (refusal !== undefined) return yield* refusal
    yield* enter(target)
    if (backend.settings.stateless && record !== undefined) {
      // When the process has gone, the session sleeps; unless it has been ended.
      yield* Effect.addFinalizer(() => record.over ? Effect.void : Cache.set(sleepers, key, record))
    }
    counts.launches++
    const started: Effect.Effect<
      Connection,
      GatewayErrors.BackendFailed | GatewayErrors.InitializeRefused | GatewayErrors.UnknownSession,
      Scope.Scope | HttpClient.HttpClient
    > = profile !== undefined
      ? RunningBackend.startLane(
        target,
        profile.client,
        (change) => callers.find(key)?.listeners.forEach((listener) => listener(change))
      )
      : record === undefined
      ? new GatewayErrors.UnknownSession()
      : RunningBackend.startSession(target, record)
    const connection = yield* started.pipe(
      Effect.timeoutOrElse({
        duration: backend.settings.startTimeout,
        orElse: () =>
          new GatewayErrors.BackendFailed({
            reason: `the back end did not answer initialize within ${Duration.format(backend.settings.startTimeout)}`,
            stderr: ""
          })
      }),
      Effect.tap(() => Ref.update(cooldown, Cooldown.succeeded)),
      Effect.tapErrorTag(
        "BackendFailed",
        (error) =>
          error.shortage === true ? Effect.void : Effect.flatMap(
            Clock.currentTimeMillis,
            (now) => Ref.update(cooldown, (state) => Cooldown.failed(state, now, error.message))
          )
      ),
      Effect.annotateLogs({ backend: name, session: Masking.shortId(SessionKey.session(key)) })
    )
    // A reload has come in between: it has not seen this one.
    if (running.get(name) !== target) return yield* new GatewayErrors.UnknownSession()
    yield* Effect.acquireRelease(
      Effect.sync(() => connections.set(key, connection)),
      () => Effect.sync(() => connections.get(key) === connection && connections.delete(key))
    )
    return connection
  })

  for (const backend of config.backends.values()) yield* run(backend)

  const pool = yield* SessionPool.make({
    name: "gateway",
    lookup,
    idleTimeToLive: (key: Key) =>
      Callers.isOfLoner(key)
        ? Duration.zero
        : running.get(SessionKey.backend(key))?.backend.settings.idleTimeToLive ?? settings.idleTimeToLive,
    cleanupInterval: settings.cleanupInterval,
    capacity: settings.maxSessions,
    acquireTimeout: settings.acquireTimeout,
    // Each back end has its own `startTimeout`.
    lookupTimeout: Duration.infinity,
    ...(settings.keys.length === 0
      ? {}
      : { groupBy: principalOf, groupCapacity: settings.maxSessionsPerKey }),
    closed: (connection) => Deferred.await(connection.ended)
  })

  // What ends is told with why; the process's own end has been told with its exit code to the client.
  yield* SessionPool.events(pool).pipe(
    Stream.runForEach((event) => {
      if (event._tag !== "Closed" && event._tag !== "CloseTimedOut") return Effect.void
      const told = event._tag === "Closed"
        ? Effect.logInfo(`session closed: ${event.reason}`)
        : Effect.logWarning(`a session has not closed within ${Duration.format(Duration.millis(event.duration))}`)
      return Effect.annotateLogs(told, {
        backend: SessionKey.backend(event.key),
        session: Masking.shortId(SessionKey.session(event.key))
      })
    }),
    Effect.forkScoped
  )

  // ---------------------------------------------------------------------------
  // Sessions
  // ---------------------------------------------------------------------------

  const ending = yield* Deferred.make<void>()
  const passing: PassThrough.Passing = { count: 0, over: Deferred.await(ending) }

  /** Waits for a session that is to be started, but not beyond the end of the gateway. */
  const untilEnd = <A, E, R>(
    key: Key,
    start: Effect.Effect<A, E, R>
  ): Effect.Effect<A, E | SessionPool.PoolClosed, R> =>
    Effect.raceFirst(start, Effect.andThen(Deferred.await(ending), new SessionPool.PoolClosed({ key })))

  const open: Sessions["Service"]["open"] = Effect.fnUntraced(function*(backend, principal, message, text) {
    const id = randomUUID()
    const key = keyOf(backend, principal, id)
    const record = ClientRecord.make(message.id, text, message.params)
    const stateless = running.get(backend)?.backend.settings.stateless === true
    return yield* Effect.acquireUseRelease(
      Effect.sync(() => opening.set(key, record)),
      () =>
        untilEnd(key, Effect.scoped(SessionPool.get(pool, key))).pipe(
          Effect.tap(() => stateless ? Cache.set(sleepers, key, record) : Effect.void),
          Effect.map((connection) => ({ id, connection }))
        ),
      (_, exit) =>
        Effect.andThen(
          Effect.sync(() => opening.delete(key)),
          // Nobody would ever learn the id of a session whose client has gone meanwhile.
          Exit.isSuccess(exit) ? Effect.void : end(backend, principal, id)
        )
    )
  })

  const lease: Sessions["Service"]["lease"] = (backend, principal, id) => {
    const key = keyOf(backend, principal, id)
    return running.get(backend)?.backend.settings.stateless === true ? leaseOrWake(key) : leaseAwake(key)
  }

  const leaseAwake = (key: Key) =>
    Effect.flatMap(
      SessionPool.getOption(pool, key),
      (found) => Option.isSome(found) ? Effect.succeed(found.value) : new GatewayErrors.UnknownSession()
    )

  const leaseOrWake = Effect.fnUntraced(function*(key: Key) {
    if (!(yield* Cache.has(sleepers, key))) return yield* leaseAwake(key)
    const get = SessionPool.get(pool, key)
    // One that is awake is had at once.
    return yield* Option.isSome(yield* SessionPool.info(pool, key)) ? get : untilEnd(key, get)
  })

  /**
   * The lane with this number. At the end it is looked at first whether it is spoilt, before the lease and the lane's number are
   * given back: finalizers run newest first.
   */
  const leaseLane = Effect.fnUntraced(function*(profile: Callers.Profile, number: number) {
    const key = Callers.keyOf(profile, number)
    const lane = yield* untilEnd(key, SessionPool.get(pool, key))
    if (lane._tag !== "Lane") return yield* new GatewayErrors.UnknownSession()
    yield* Effect.addFinalizer(() =>
      // Once: another process may take its place meanwhile.
      lane.isSpoilt() && !Deferred.isDoneUnsafe(lane.retired)
        ? Effect.andThen(Deferred.succeed(lane.retired, undefined), SessionPool.invalidate(pool, key))
        : Effect.void
    )
    return { lane, profile }
  })

  const lane: Sessions["Service"]["lane"] = Effect.fnUntraced(function*(caller, exclusive) {
    const { backend } = caller
    const max = running.get(backend)?.backend.settings.maxLanes ?? 1
    const profile = yield* enterAs(caller)
    const number = yield* Effect.timeoutOrElse(callers.claim(profile, exclusive, max), {
      duration: settings.acquireTimeout,
      orElse: () => new GatewayErrors.LanesTaken({ backend, limit: max })
    })
    return yield* leaseLane(profile, number)
  })

  const firstLane: Sessions["Service"]["firstLane"] = (caller) =>
    Effect.flatMap(enterAs(caller), (profile) => leaseLane(profile, 0))

  /** A caller's profile for the scope, unless it makes more requests at once than it may. */
  const enterAs = (caller: Callers.Caller) =>
    Effect.flatMap(callers.enter(caller), (profile) => {
      const limit = running.get(caller.backend)?.backend.settings.maxInFlight ?? settings.maxInFlight
      return profile.users > limit
        ? new GatewayErrors.TooManyCalls({ backend: caller.backend, limit })
        : Effect.succeed(profile)
    })

  const endKey = (key: Key, reason: string) =>
    Effect.uninterruptible(Effect.gen(function*() {
      const record = yield* Cache.getSuccess(sleepers, key)
      if (Option.isSome(record)) record.value.over = true
      yield* Cache.invalidate(sleepers, key)
      const connection = yield* Effect.scoped(Effect.catch(SessionPool.getOption(pool, key), () => Effect.succeedNone))
      const existed = yield* SessionPool.invalidate(pool, key)
      if (Option.isSome(connection)) {
        if (connection.value.record !== undefined) connection.value.record.over = true
        yield* connection.value.end(reason)
      }
      if (Option.isSome(connection)) return Option.some(Deferred.await(connection.value.gone))
      return existed || Option.isSome(record) ? Option.some(Effect.void) : Option.none()
    }))

  const end: Sessions["Service"]["end"] = (backend, principal, id) =>
    endKey(keyOf(backend, principal, id), "the session was deleted")

  const endNumber: Sessions["Service"]["endNumber"] = Effect.fnUntraced(function*(number) {
    const entries = yield* SessionPool.entries(pool)
    const entry = entries.find(({ id }) => id === number)
    return entry === undefined ? Option.none() : yield* endKey(entry.key, "the session was ended by the operator")
  })

  const reload: Sessions["Service"]["reload"] = Effect.fnUntraced(function*(backends) {
    const added = [...backends.keys()].filter((name) => !running.has(name))
    const removed = [...running.keys()].filter((name) => !backends.has(name))
    const changed = [...running.values()].map(({ backend }) => backend).filter((backend) => {
      const next = backends.get(backend.name)
      return next !== undefined && next.fingerprint !== backend.fingerprint
    }).map(({ name }) => name)
    const replaced = [...removed, ...changed].flatMap((name) => running.get(name) ?? [])
    for (const name of removed) running.delete(name)
    for (const name of [...changed, ...added]) {
      const backend = backends.get(name)
      if (backend !== undefined) yield* run(backend)
    }
    for (const old of replaced) yield* Effect.forkIn(ScopeModule.close(old.scope, Exit.void), scope)
    const gone = new Set([...removed, ...changed])
    const live = [...(yield* SessionPool.keys(pool)), ...connections.keys()]
    const keys = new Set([...live, ...(yield* Cache.keys(sleepers)), ...opening.keys()])
    const affected = [...keys].filter((key) => gone.has(SessionKey.backend(key)))
    yield* Effect.forEach(affected, (key) => endKey(key, "the configuration of the back end has changed"), {
      discard: true
    })
    return { added, changed, removed }
  })

  return Sessions.of({
    pool,
    running: () => running,
    open,
    lease,
    lane,
    firstLane,
    knownEra: (name) => {
      const target = running.get(name)
      return target === undefined ? undefined : RunningBackend.knownEra(target)
    },
    end,
    passing,
    endNumber,
    endRequests: (reason) =>
      Effect.andThen(
        Deferred.succeed(ending, undefined),
        Effect.suspend(() => Effect.forEach([...connections.values()], ({ end }) => end(reason), { discard: true }))
      ),
    reload,
    asleep: Effect.gen(function*() {
      const counts = new Map<string, number>()
      for (const key of yield* Cache.keys(sleepers)) {
        const name = SessionKey.backend(key)
        counts.set(name, (counts.get(name) ?? 0) + 1)
      }
      return counts
    }),
    live: Effect.map(SessionPool.entries(pool), (entries) =>
      entries.flatMap((info) => {
        const connection = connections.get(info.key)
        return connection === undefined ? [] : [{ info, activity: connection.activity() }]
      })),
    waitingForLane: callers.waiting,
    recent
  })
})

/** The pool's key of a session. No id contains a dot, so the name of a key cannot be guessed into one. */
const keyOf = (backend: string, principal: Principal, id: string): Key =>
  SessionKey.makeUnsafe(backend, principal === "" ? id : `${id}.${principal}`)

const principalOf = (key: Key): Principal => key.slice(key.lastIndexOf(".") + 1)

export { make }
