/**
 * The sessions of the gateway: a `SessionPool` of connections to back ends, and the sessions that sleep. The lanes of
 * modern callers are in the same pool.
 *
 * `open` opens a session. `Launching` is the pool's lookup, which starts the session's process. `endKey` ends a session
 * before its time, whatever the reason. The process itself ends with the scope of its pooled connection
 * (`StdioProcess`).
 */
import { Deferred, Duration, Effect, Exit, Fiber, Option, Result, Scope, Stream } from "effect"
import * as SessionPool from "../../SessionPool.ts"
import * as ClientRecord from "../conversation/ClientRecord.ts"
import type * as Lane from "../conversation/Lane.ts"
import type * as PooledConnection from "../conversation/PooledConnection.ts"
import type * as JsonRpc from "../protocol/JsonRpc.ts"
import * as Settings from "../settings/Settings.ts"
import * as GatewayMetrics from "../telemetry/GatewayMetrics.ts"
import type { Backends } from "../transports/Backends.ts"
import * as Callers from "./Callers.ts"
import * as Endings from "./Endings.ts"
import * as GatewayErrors from "./GatewayErrors.ts"
import type { Key } from "./Key.ts"
import * as Launching from "./Launching.ts"
import * as Registry from "./Registry.ts"
import type { Connection, GatewayConfig } from "./Registry.ts"
import * as RunningBackend from "./RunningBackend.ts"

export type AcquireError = GatewayErrors.LaunchError | SessionPool.SessionPoolError

/** A leased lane, and the profile of its caller. */
export interface LeasedLane {
  readonly lane: Lane.Lane
  readonly profile: Callers.Profile
}

export interface LiveSession {
  readonly info: SessionPool.Info<Key>
  readonly activity: PooledConnection.Activity
}

/** The back ends that a reload added, changed and removed. */
export interface Reloaded {
  readonly added: ReadonlyArray<string>
  readonly changed: ReadonlyArray<string>
  readonly removed: ReadonlyArray<string>
}

export type Sessions = Effect.Success<ReturnType<typeof make>>

/** The state that the functions of this file share. */
interface State extends Registry.Registry {
  readonly pool: SessionPool.SessionPool<Key, Connection, GatewayErrors.LaunchError>
  /** Completes when the gateway ends. Callers that wait for a session then stop waiting. */
  readonly ending: Deferred.Deferred<void>
}

export const make = Effect.fnUntraced(function*(
  config: GatewayConfig,
  environment: Readonly<Record<string, string | undefined>>
) {
  const registry = yield* Registry.make(config, environment, (key) => lost(key))
  for (const backend of config.backends.values()) yield* registry.run(backend)
  const ending = yield* Deferred.make<void>()
  const pool = yield* makePool(registry)
  const state: State = { ...registry, pool, ending }
  const { callers, connections, running } = registry
  const lost = (key: Key) => Effect.uninterruptible(endConnection(state, key, Endings.takenOver))
  return {
    pool,
    /** The back ends by name. */
    running: (): ReadonlyMap<string, RunningBackend.RunningBackend> => running,
    /** Opens a session with the client's `initialize`. */
    open: (key: Key, initialize: JsonRpc.Request) => Effect.flatMap(open(state, key, initialize), bridgeOf),
    /** The connection of a session, leased for the scope. Wakes a session that sleeps. */
    lease: (key: Key) => Effect.flatMap(leaseOrWake(state, key), bridgeOf),
    /** A lane of a modern caller, leased for the scope. An exclusive call shares its lane with no other call. */
    lane: (caller: Callers.Caller, exclusive: boolean) => lane(state, caller, exclusive),
    /**
     * The first lane of a modern caller, leased for the scope, even if a call holds it exclusively. For clients that only
     * listen, and for discovery.
     */
    firstLane: (caller: Callers.Caller) =>
      Effect.flatMap(enterAs(state, caller), (profile) => leaseLane(state, profile, 0)),
    /**
     * Ends a session, awake or asleep. `None` if there is no such session; else an effect that waits until its process is
     * gone.
     */
    end: (key: Key) => endKey(state, key, Endings.deleted),
    /**
     * Ends the live session with this number in the pool. Waits until its process is gone, for 10 seconds at most. False if there
     * is no such session.
     */
    endNumber: (number: number) => endNumber(state, number),
    /**
     * Ends every running request with an error that says why, and ends the streams. The sessions themselves end with the
     * gateway.
     */
    endRequests: (reason: string) =>
      Effect.andThen(
        Deferred.succeed(ending, undefined),
        Effect.suspend(() =>
          Effect.forEach([...connections.values()], ({ connection }) => connection.end(reason), { discard: true })
        )
      ),
    /**
     * Ends the sessions and lanes whose ids leave this replica, or puts the sessions to sleep. Completes when their
     * processes are gone.
     */
    vacate: (isOf: (id: string) => boolean, ending: Endings.Ending) => vacate(state, isOf, ending),
    /** Replaces the back ends. Ends the sessions of changed and removed ones. */
    reload: (backends: Backends) => reload(state, backends),
    /** The number of sessions that can wake, by back end. Includes live sessions of stateless back ends. */
    asleep: Effect.map(registry.sleepers.keys, countByBackend),
    /** The live sessions and their activity. */
    live: Effect.map(SessionPool.entries(pool), (entries) =>
      entries.flatMap((info): ReadonlyArray<LiveSession> => {
        const live = connections.get(info.key.text)
        return live === undefined ? [] : [{ info, activity: live.connection.activity() }]
      })),
    /** The number of calls of modern clients that wait for a lane. */
    waitingForLane: callers.waiting,
    totals: registry.totals,
    /** The number of closed sessions, by reason. */
    closes: registry.endings.counts
  }
})

const countByBackend = (keys: Iterable<Key>): ReadonlyMap<string, number> => {
  const counts = new Map<string, number>()
  for (const { backend } of keys) counts.set(backend, (counts.get(backend) ?? 0) + 1)
  return counts
}

const makePool = Effect.fnUntraced(function*(registry: Registry.Registry) {
  const { connections, endings, running, settings } = registry
  const idleTimeToLive = (key: Key) =>
    Callers.isOfLoner(key)
      ? Duration.zero
      : running.get(key.backend)?.backend.settings.idleTimeToLive ?? settings.idleTimeToLive
  const pool: State["pool"] = yield* SessionPool.make({
    name: "gateway",
    lookup: (key: Key) => Launching.lookup(registry, key),
    idleTimeToLive,
    cleanupInterval: settings.cleanupInterval,
    capacity: settings.maxSessions,
    acquireTimeout: settings.acquireTimeout,
    // No limit here, because each back end has its own `startTimeout`.
    lookupTimeout: Duration.infinity,
    groupBy: ({ principal }) => principal === "" ? undefined : principal,
    groupCapacity: Settings.sessionsPerKey(settings),
    closed: (connection, key) =>
      Effect.flatMap(
        Deferred.await(connection.ended),
        // A connection that has left the pool may still be in use while another connection is live under its key.
        (failure) =>
          connections.get(key.text)?.connection === connection
            ? Effect.andThen(doubt(registry, key), note({ endings, pool }, key, Endings.ofFailure(failure)))
            : Effect.void
      )
  })
  yield* SessionPool.events(pool).pipe(
    Stream.runForEach((event) => {
      if (event._tag !== "Closed" && event._tag !== "CloseTimedOut") return Effect.void
      const { backend } = event.key
      const session = Launching.labelOf(event.key)
      if (event._tag === "CloseTimedOut") {
        const duration = Duration.format(Duration.millis(event.duration))
        return Effect.logWarning(`a session did not close within ${duration}; its place is free again`).pipe(
          Effect.annotateLogs({ backend, session })
        )
      }
      const { reason, text } = endings.closed(event, Endings.ofPool(event.reason, idleTimeToLive(event.key)))
      const told = Endings.isFault(reason) ? Effect.logWarning : Effect.logInfo
      return Effect.andThen(
        GatewayMetrics.closed(backend, reason),
        Effect.annotateLogs(told(`session closed: ${text}`), { backend, session, reason })
      )
    }),
    Effect.forkScoped
  )
  return pool
})

/** Forgets the era of a server that runs by itself after a connection has ended. The next connection detects it again. */
const doubt = ({ running }: Registry.Registry, key: Key) => {
  const target = running.get(key.backend)
  return target?.backend.transport.startsServer === false ? RunningBackend.forget(target) : Effect.void
}

/** Notes why the live session under a key, if there is one, is about to end. */
const note = ({ endings, pool }: Pick<State, "endings" | "pool">, key: Key, ending: Endings.Ending) =>
  Effect.map(SessionPool.info(pool, key), (info) => {
    if (Option.isSome(info)) endings.note(info.value.id, ending)
  })

/** Waits for the start of a session. Fails with `PoolClosed` when the gateway ends. */
const untilEnd = <A, E, R>(
  { ending }: State,
  start: Effect.Effect<A, E, R>
): Effect.Effect<A, E | SessionPool.SessionPoolError, R> =>
  Effect.raceFirst(
    start,
    // A function, because an error of each call would cost a stack trace each.
    Effect.flatMap(
      Deferred.await(ending),
      () => new SessionPool.SessionPoolError({ reason: new SessionPool.PoolClosed() })
    )
  )

// ---------------------------------------------------------------------------
// Sessions of legacy clients
// ---------------------------------------------------------------------------

/**
 * Refuses a session or a lane that would need a process which its back end cannot have now. Called before the pool is
 * asked, because the pool would first evict an idle session.
 */
const refuseBeforePool = Effect.fnUntraced(function*({ pool, running, settings }: State, key: Key) {
  const target = running.get(key.backend)
  if (target === undefined || Option.isSome(yield* SessionPool.info(pool, key))) return
  yield* Launching.unlessRefused(target, settings.maxSessionsPerBackend)
})

const open = Effect.fnUntraced(function*(state: State, key: Key, message: JsonRpc.Request) {
  const { opening, pool } = state
  yield* refuseBeforePool(state, key)
  const record = ClientRecord.make(message)
  return yield* Effect.acquireUseRelease(
    Effect.sync(() => opening.set(key.text, { key, record })),
    () => untilEnd(state, Effect.scoped(SessionPool.get(pool, key))),
    (_, exit) =>
      Effect.andThen(
        Effect.sync(() => {
          opening.delete(key.text)
          // The process of the failed launch may still be closing. Its finalizer (`Launching.rest`) must not put the
          // session to sleep after `endKey` has removed the session.
          if (Exit.isFailure(exit)) record.over = true
        }),
        // Ends a session whose client disconnected meanwhile, because no client would ever learn its id.
        Exit.isSuccess(exit) ? Effect.void : endKey(state, key, Endings.abandoned)
      )
  )
})

/** Narrows the type of a connection. The connection of a key without a lane number is a bridge. */
const bridgeOf = (connection: Connection) =>
  connection._tag === "Bridge" ? Effect.succeed(connection) : new GatewayErrors.UnknownSession()

const isStateless = ({ running }: State, { backend }: Key): boolean =>
  running.get(backend)?.backend.settings.stateless === true

const leaseOrWake = Effect.fnUntraced(function*(state: State, key: Key) {
  const { pool, sleepers } = state
  // An id without a record must take no place in the pool. A session with a record is woken by its launch
  // (`Launching.wake`).
  if (!isStateless(state, key) || !(yield* sleepers.has(key))) {
    const awake = yield* SessionPool.getOption(pool, key)
    return Option.isSome(awake) ? awake.value : yield* new GatewayErrors.UnknownSession()
  }
  const get = SessionPool.get(pool, key)
  // A session that is awake needs no further check.
  if (Option.isSome(yield* SessionPool.info(pool, key))) return yield* get
  yield* refuseBeforePool(state, key)
  return yield* untilEnd(state, get)
})

// ---------------------------------------------------------------------------
// Lanes of modern clients
// ---------------------------------------------------------------------------

const lane = Effect.fnUntraced(function*(state: State, caller: Callers.Caller, exclusive: boolean) {
  const { callers, running, settings } = state
  const { backend } = caller
  const max = running.get(backend)?.backend.settings.maxLanes ?? 1
  const profile = yield* enterAs(state, caller)
  const number = yield* Effect.timeoutOrElse(callers.claim(profile, exclusive, max), {
    duration: settings.acquireTimeout,
    orElse: () => GatewayErrors.lanesTaken(backend, max)
  })
  return yield* leaseLane(state, profile, number)
})

/** A caller's profile, for the scope. Fails if the caller has more requests running than `maxInFlight` allows. */
const enterAs = ({ callers, running, settings }: State, caller: Callers.Caller) =>
  Effect.flatMap(callers.enter(caller), (profile) => {
    const limit = running.get(caller.backend)?.backend.settings.maxInFlight ?? settings.maxInFlight
    return profile.users > limit
      ? GatewayErrors.tooManyCalls(caller.backend, limit)
      : Effect.succeed(profile)
  })

/**
 * The lane with this number, leased for the scope. Finalizers run newest first, so a spoilt lane is retired before its
 * lease and its number are given back.
 */
const leaseLane = Effect.fnUntraced(function*(state: State, profile: Callers.Profile, number: number) {
  const key = Callers.keyOf(profile, number)
  yield* refuseBeforePool(state, key)
  const lease = yield* untilEnd(state, SessionPool.lease(state.pool, key))
  const lane = lease.value
  if (lane._tag !== "Lane") return yield* new GatewayErrors.UnknownSession()
  const retire = Effect.flatMap(lease.invalidate, (isRetired) => {
    if (!isRetired) return Effect.void
    // The note comes before `Closed`, because the lane closes only when its lease ends.
    state.endings.note(lease.id, Endings.cancelled)
    return Deferred.succeed(lane.calls.retired, undefined)
  })
  yield* Effect.addFinalizer(() => lane.calls.isSpoilt ? retire : Effect.void)
  return { lane, profile }
})

// ---------------------------------------------------------------------------
// Ends
// ---------------------------------------------------------------------------

/**
 * Ends a session, awake or asleep. `None` if there is no such session; else an effect that waits until its process is
 * gone.
 *
 * The process ends at once. Meanwhile `forget` removes the record, which may take long in a database. A session that is
 * awake gets `record.over` before that, so it cannot sleep and wake again. A session that was asleep may have woken
 * meanwhile, so this looks for its connection a second time.
 */
const endKey = (state: State, key: Key, ending: Endings.Ending) =>
  Effect.uninterruptible(Effect.gen(function*() {
    const forgetting = yield* Effect.forkChild(forget(state, key), { startImmediately: true })
    const found = yield* endConnection(state, key, ending)
    const wasKept = yield* Fiber.join(forgetting)
    const gone = Option.isSome(found) ? found : yield* endConnection(state, key, ending)
    return Option.isSome(gone) || !wasKept ? gone : Option.some(Effect.void)
  }))

/**
 * Removes a session's record, so that the session never wakes again. True if there was a record.
 * Only sessions of stateless back ends have records, also those of back ends that were stateless before a reload. For
 * others it returns at once, because a database may take long to answer.
 */
const forget = (state: State, key: Key) =>
  Effect.gen(function*() {
    const { sleepers } = state
    if (!isStateless(state, key) && !(yield* sleepers.isKnown(key))) return false
    const found = yield* Effect.result(sleepers.take(key))
    // The database did not answer `take`. The removal continues in the background, so the caller does not wait for the
    // database again.
    if (Result.isFailure(found)) {
      yield* Effect.forkDetach(sleepers.remove(key), { startImmediately: true })
      return false
    }
    const record = found.success
    if (Option.isSome(record)) record.value.over = true
    yield* sleepers.remove(key)
    return Option.isSome(record)
  })

/**
 * Ends the connection of a session, even if the connection has left the pool and is still in use. `None` if the pool has
 * none; else an effect that waits until the connection is gone.
 */
const endConnection = Effect.fnUntraced(function*(state: State, key: Key, ending: Endings.Ending) {
  const { connections, endings, pool } = state
  const end = (connection: Connection) => {
    if (connection.record !== undefined) connection.record.over = true
    return connection.end(ending.text)
  }
  const isLive = Option.isSome(yield* SessionPool.info(pool, key))
  yield* note(state, key, ending)
  const present = connections.get(key.text)?.connection
  if (present !== undefined) yield* end(present)
  // An expired session is absent already, but the cleanup may not have closed it yet.
  if (present !== undefined && !isLive) yield* SessionPool.sweep(pool)
  // A launch may take long, so nothing here waits for it. A background fiber ends the session once it is launched.
  // `Launching.lookup` ends a session whose record is `over`.
  const ended = yield* Effect.forkDetach(
    Effect.gen(function*() {
      const found = yield* Effect.catch(SessionPool.getOption(pool, key), () => Effect.succeedNone)
      if (Option.isNone(found)) return Effect.void
      if (!isLive) endings.note(key.text, ending)
      yield* end(found.value)
      return Deferred.await(found.value.gone)
    }).pipe(Effect.scoped),
    { startImmediately: true }
  )
  return (yield* SessionPool.invalidate(pool, key)) ? Option.some(Effect.flatten(Fiber.join(ended))) : Option.none()
})

const vacate = ({ connections, endings, pool }: State, isOf: (id: string) => boolean, ending: Endings.Ending) =>
  Effect.gen(function*() {
    const left = [...connections.values()].filter(({ key }) => isOf(key.id)).map(({ connection }) => connection)
    // The keys do not include expired sessions, which hold their processes until the next sweep.
    yield* SessionPool.sweep(pool)
    const keys = (yield* SessionPool.keys(pool)).filter(({ id }) => isOf(id))
    yield* Effect.forEach(
      keys,
      (key) => Effect.andThen(note({ endings, pool }, key, ending), SessionPool.invalidate(pool, key)),
      { discard: true }
    )
    yield* Effect.forEach(left, (connection) => connection.end(ending.text), { discard: true })
    yield* Effect.forEach(left, ({ gone }) => Deferred.await(gone), { discard: true })
  })

const endNumber = Effect.fnUntraced(function*(state: State, number: number) {
  const entries = yield* SessionPool.entries(state.pool)
  const entry = entries.find(({ id }) => id === number)
  const gone = entry === undefined ? Option.none() : yield* endKey(state, entry.key, Endings.byOperator)
  if (Option.isSome(gone)) yield* Effect.timeoutOption(gone.value, "10 seconds")
  return Option.isSome(gone)
})

/**
 * The most sessions that a reload ends at once. By default that covers all awake sessions, so a database that hangs
 * delays none of them.
 */
const endedAtOnce = 1000

const reload = Effect.fnUntraced(function*(state: State, backends: Backends): Effect.fn.Return<Reloaded> {
  const { connections, opening, run, running, scope, sleepers } = state
  const isKept = ({ backend }: RunningBackend.RunningBackend) =>
    backends.get(backend.name)?.fingerprint === backend.fingerprint
  const replaced = [...running.values()].filter((target) => !isKept(target))
  const gone = replaced.map(({ backend }) => backend.name)
  const added = [...backends.keys()].filter((name) => !running.has(name))
  const changed = gone.filter((name) => backends.has(name))
  const removed = gone.filter((name) => !backends.has(name))
  for (const name of removed) running.delete(name)
  for (const [name, backend] of backends) {
    const target = running.get(name)
    if (target === undefined || !isKept(target)) yield* run(backend)
    // An unchanged back end may have another entry text that means the same.
    else target.entryText = backend.entryText
  }
  for (const old of replaced) yield* Effect.forkIn(Scope.close(old.scope, Exit.void), scope)
  const here = [...connections.values(), ...opening.values()].map(({ key }) => key)
  const keys = [...here, ...(yield* sleepers.keys)].filter(({ backend }) => gone.includes(backend))
  const affected = new Map(keys.map((key) => [key.text, key]))
  yield* Effect.forEach(affected.values(), (key) => endKey(state, key, Endings.reloaded), {
    concurrency: endedAtOnce,
    discard: true
  })
  return { added, changed, removed }
})
