/**
 * The sessions of the gateway: a `SessionPool` of connections to back ends, and the sessions that sleep. The lanes of
 * modern callers are in the same pool.
 *
 * `open` opens a session. `Launching` is the pool's lookup, which starts the session's process. `endKey` ends a session
 * before it expires. The process ends with the scope of its pooled connection (`StdioProcess`).
 */
import { Deferred, Duration, Effect, Exit, Fiber, Option, Result, Scope, Stream } from "effect"
import * as SessionPool from "../../SessionPool.ts"
import * as ClientRecord from "../conversation/ClientRecord.ts"
import type * as PooledConnection from "../conversation/PooledConnection.ts"
import type * as JsonRpc from "../protocol/JsonRpc.ts"
import * as GatewayMetrics from "../telemetry/GatewayMetrics.ts"
import type { Backends } from "../transports/Backends.ts"
import * as Callers from "./Callers.ts"
import * as Endings from "./Endings.ts"
import * as GatewayErrors from "./GatewayErrors.ts"
import { Key } from "./Key.ts"
import * as Launching from "./Launching.ts"
import * as RunningBackend from "./RunningBackend.ts"
import * as State from "./State.ts"

export type AcquireError = GatewayErrors.LaunchError | SessionPool.SessionPoolError

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

type Pool = SessionPool.SessionPool<Key, State.Connection, GatewayErrors.LaunchError>

/** The state that the functions of this file share. */
interface Pooled extends State.State {
  /** The sessions and lanes that have a process, or a session on an HTTP back end. */
  readonly pool: Pool
  /** The light sessions. They have a pool of their own, because they must not take the place of a process. */
  readonly light: Pool
}

export const make = Effect.fnUntraced(function*(
  config: State.GatewayConfig,
  environment: Readonly<Record<string, string | undefined>>,
  /** The most sessions of one caller. */
  sessionsPerCaller: number,
  ask: State.State["ask"]
) {
  const unpooled = yield* State.make(config, environment, ask, (key) => lost(key))
  for (const backend of config.backends.values()) yield* unpooled.run(backend)
  const pool = yield* makePool(unpooled, "gateway", sessionsPerCaller)
  const light = yield* makePool(unpooled, "gateway-light", sessionsPerCaller)
  const state: Pooled = { ...unpooled, pool, light }
  const { callers, endings, ending, held, running, sleepers, totals } = state
  const lost = (key: Key) => Effect.uninterruptible(endHeld(state, key, Endings.takenOver))
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
     * listen, and for discovery. A caller may have many light sessions that listen, so theirs do not count against `maxInFlight`.
     */
    firstLane: (caller: Callers.Caller) =>
      Effect.flatMap(enterAs(state, caller, caller.light !== true), (profile) => leaseLane(state, profile, 0)),
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
      Effect.suspend(() => {
        const closed = new SessionPool.SessionPoolError({ reason: new SessionPool.PoolClosed() })
        Deferred.doneUnsafe(ending, Effect.fail(closed))
        const connections = [...held.values()].flatMap(({ connection }) => connection ?? [])
        return Effect.forEach(connections, (connection) => connection.end(reason), { discard: true })
      }),
    /**
     * Ends the sessions and lanes whose ids leave this replica, or puts the sessions to sleep. Completes when their
     * processes are gone.
     */
    vacate: (isOf: (id: string) => boolean, ending: Endings.Ending) => vacate(state, isOf, ending),
    /** Replaces the back ends. Ends the sessions of changed and removed ones. */
    reload: (backends: Backends) => reload(state, backends),
    /** The number of sessions that can wake, by back end. Includes live sessions of stateless back ends. */
    asleep: Effect.map(sleepers.keys, countByBackend),
    /** The number of sessions and lanes that are in use or being opened. */
    inUse: Effect.map(
      Effect.all([SessionPool.stats(pool), SessionPool.stats(light)]),
      (stats) => stats.reduce((sum, { active, launching }) => sum + active + launching, 0)
    ),
    /** The live sessions and their activity. */
    live: Effect.map(entriesOf(state), (entries) =>
      entries.flatMap((info): ReadonlyArray<LiveSession> => {
        const activity = held.get(info.key.text)?.connection?.activity()
        return activity === undefined ? [] : [{ info, activity }]
      })),
    /** The number of calls of modern clients that wait for a lane. */
    waitingForLane: callers.waiting,
    totals,
    /** The number of closed sessions, by reason. */
    closes: endings.counts
  }
})

const countByBackend = (keys: Iterable<Key>): ReadonlyMap<string, number> => {
  const counts = new Map<string, number>()
  for (const { backend } of keys) counts.set(backend, (counts.get(backend) ?? 0) + 1)
  return counts
}

const poolOf = ({ light, pool }: Pooled, key: Key): Pool => key.isLight ? light : pool

/** All live sessions and lanes. Each pool has numbers of its own, so those of light sessions become negative. */
const entriesOf = ({ light, pool }: Pooled) =>
  Effect.zipWith(
    SessionPool.entries(pool),
    SessionPool.entries(light),
    (entries, lights) => [...entries, ...lights.map((info) => ({ ...info, id: -info.id }))]
  )

const makePool = Effect.fnUntraced(function*(state: State.State, name: string, sessionsPerCaller: number) {
  const { endings, running, settings } = state
  const idleTimeToLive = (key: Key) =>
    Callers.isOfLoner(key)
      ? Duration.zero
      : running.get(key.backend)?.backend.settings.idleTimeToLive ?? settings.idleTimeToLive
  const pool: Pool = yield* SessionPool.make({
    name,
    lookup: (key: Key) => Launching.lookup(state, key),
    idleTimeToLive,
    cleanupInterval: settings.cleanupInterval,
    capacity: settings.maxSessions,
    acquireTimeout: settings.acquireTimeout,
    // No limit here, because each back end has its own `startTimeout`.
    lookupTimeout: Duration.infinity,
    groupBy: ({ principal }) => principal.id === "" ? undefined : principal.id,
    groupCapacity: sessionsPerCaller,
    closed: (connection, key) =>
      Effect.flatMap(Deferred.await(connection.ended), (failure) => {
        endings.note(key, Endings.ofFailure(failure))
        const target = running.get(key.backend)
        // A server of the other era may have replaced this one, so the next connection detects the era again.
        return target?.backend.transport.startsServer === false ? RunningBackend.forget(target) : Effect.void
      })
  })
  yield* SessionPool.events(pool).pipe(
    Stream.runForEach((event) => {
      if (event._tag !== "Closed") return Effect.void
      const { reason, text } = endings.closed(event.key, Endings.ofPool(event.reason, idleTimeToLive(event.key)))
      const log = Endings.isFault(reason) ? Effect.logWarning : Effect.logInfo
      return Effect.andThen(
        GatewayMetrics.closed(event.key.backend, reason),
        Effect.annotateLogs(log(`session closed: ${text}`), { ...Launching.annotationsOf(event.key), reason })
      )
    }),
    Effect.forkScoped
  )
  return pool
})

/** Leases a session or a lane for the scope. Launches it if there is none. Fails with `PoolClosed` when the gateway ends. */
const leaseOrLaunch = Effect.fnUntraced(function*(state: Pooled, key: Key) {
  const { ending, held, running, settings } = state
  const pool = poolOf(state, key)
  const lease = SessionPool.lease(pool, key)
  if (Option.isSome(yield* SessionPool.info(pool, key))) return yield* lease
  const target = running.get(key.backend)
  const present = held.get(key.text)
  const isLaunching = present !== undefined && present.connection === undefined
  // Before the pool is asked, because the pool would first evict an idle session. A launch that runs counts already.
  if (target !== undefined && !isLaunching && !key.isLight) {
    yield* Launching.unlessRefused(target, settings.maxSessionsPerBackend)
  }
  return yield* Effect.raceFirst(lease, Deferred.await(ending))
})

// ---------------------------------------------------------------------------
// Sessions of legacy clients
// ---------------------------------------------------------------------------

const open = (state: Pooled, { backend, id, principal }: Key, message: JsonRpc.Request) => {
  const key = new Key(backend, principal, id, undefined, ClientRecord.make(message))
  return Effect.onInterrupt(
    Effect.scoped(leaseOrLaunch(state, key)),
    // Ends a session whose client disconnected meanwhile, because no client would ever learn its id.
    () => endKey(state, key, Endings.abandoned)
  )
}

/** Narrows the type of a connection. The connection of a key without a lane number is a bridge. */
const bridgeOf = ({ value }: { readonly value: State.Connection }) =>
  value._tag === "Bridge" ? Effect.succeed(value) : new GatewayErrors.UnknownSession()

/** True if the session may sleep. Light sessions do not. */
const isStateless = ({ running }: Pooled, { backend, isLight }: Key): boolean =>
  !isLight && running.get(backend)?.backend.settings.stateless === true

const leaseOrWake = Effect.fnUntraced(function*(state: Pooled, key: Key) {
  // The launch wakes a session that has a record (`Launching.wake`).
  if (isStateless(state, key) && (yield* state.sleepers.has(key))) return yield* leaseOrLaunch(state, key)
  // An id without a record must take no place in the pool.
  // With the pool's own key: `Equal` caches each pair of objects that it compares, which would cost a call up to 10 % more CPU.
  const awake = yield* SessionPool.getOption(poolOf(state, key), state.held.get(key.text)?.key ?? key)
  return Option.isSome(awake) ? awake : yield* new GatewayErrors.UnknownSession()
})

// ---------------------------------------------------------------------------
// Lanes of modern clients
// ---------------------------------------------------------------------------

const lane = Effect.fnUntraced(function*(state: Pooled, caller: Callers.Caller, exclusive: boolean) {
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
const enterAs = ({ callers, running, settings }: Pooled, caller: Callers.Caller, counts = true) =>
  Effect.flatMap(callers.enter(caller, counts), (profile) => {
    const limit = running.get(caller.backend)?.backend.settings.maxInFlight ?? settings.maxInFlight
    return profile.requests > limit
      ? GatewayErrors.tooManyCalls(caller.backend, limit)
      : Effect.succeed(profile)
  })

/**
 * The lane with this number, leased for the scope. Finalizers run newest first, so a spoilt lane is retired before its
 * lease and its number are given back.
 */
const leaseLane = Effect.fnUntraced(function*(state: Pooled, profile: Callers.Profile, number: number) {
  const lease = yield* leaseOrLaunch(state, Callers.keyOf(profile, number))
  const lane = lease.value
  if (lane._tag !== "Lane") return yield* new GatewayErrors.UnknownSession()
  const retire = Effect.flatMap(lease.invalidate, (isRetired) => {
    if (!isRetired) return Effect.void
    // The note comes before `Closed`, because the lane closes only when its lease ends.
    state.endings.note(lease.key, Endings.cancelled)
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
 * `forget` removes the record in a fiber of its own, because a database may be slow and the process must end at once.
 * `endHeld` sets `record.over`, so an awake session does not go back to sleep. Another request may have woken a sleeping
 * session before its record was removed, so `endHeld` then runs a second time.
 */
const endKey = (state: Pooled, key: Key, ending: Endings.Ending) =>
  Effect.uninterruptible(Effect.gen(function*() {
    const forgetting = yield* Effect.forkChild(forget(state, key), { startImmediately: true })
    const found = yield* endHeld(state, key, ending)
    const wasKept = yield* Fiber.join(forgetting)
    const gone = Option.isSome(found) ? found : yield* endHeld(state, key, ending)
    return Option.isSome(gone) || !wasKept ? gone : Option.some(Effect.void)
  }))

/**
 * Removes a session's record, so that the session never wakes again. True if there was a record.
 * Only sessions of stateless back ends have records, also those of back ends that were stateless before a reload. For
 * others it returns at once, because a database may take long to answer.
 */
const forget = (state: Pooled, key: Key) =>
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
 * Ends the session or lane that is held under a key. If it has left the pool already, ends its requests only, and returns
 * `None`. Otherwise returns an effect that waits until it is gone.
 */
const endHeld = Effect.fnUntraced(function*(state: Pooled, key: Key, ending: Endings.Ending) {
  const held = state.held.get(key.text)
  if (held === undefined) return Option.none()
  if (held.record !== undefined) held.record.over = true
  return (yield* retire(state, held, ending)) ? Option.some(Deferred.await(held.gone)) : Option.none()
})

/** Retires a session or lane. A launch fails when its process has started (`Launching.lookup`). False if the pool does not have it. */
const retire = Effect.fnUntraced(function*(state: Pooled, held: State.Held, ending: Endings.Ending) {
  const { endings } = state
  const { connection, key } = held
  const pool = poolOf(state, key)
  // A session that the pool does not find has expired or is retired already. The sweep closes an expired one, with the reason `idle`.
  const isAbsent = connection !== undefined && Option.isNone(yield* SessionPool.info(pool, key))
  if (isAbsent) yield* SessionPool.sweep(pool)
  else endings.note(key, ending)
  const isRetired = yield* SessionPool.invalidate(pool, key)
  if (connection !== undefined) yield* connection.end(ending.text)
  return isRetired
})

const vacate = (state: Pooled, isOf: (id: string) => boolean, ending: Endings.Ending) =>
  Effect.suspend(() => {
    const leaving = [...state.held.values()].filter(({ key }) => isOf(key.id))
    return Effect.andThen(
      Effect.forEach(leaving, (held) => retire(state, held, ending), { discard: true }),
      Effect.forEach(leaving, ({ gone }) => Deferred.await(gone), { discard: true })
    )
  })

const endNumber = Effect.fnUntraced(function*(state: Pooled, number: number) {
  const entries = yield* entriesOf(state)
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

const reload = Effect.fnUntraced(function*(state: Pooled, backends: Backends): Effect.fn.Return<Reloaded> {
  const { held, run, running, scope, sleepers } = state
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
  const here = [...held.values()].map(({ key }) => key)
  const keys = [...here, ...(yield* sleepers.keys)].filter(({ backend }) => gone.includes(backend))
  const affected = new Map(keys.map((key) => [key.text, key]))
  yield* Effect.forEach(affected.values(), (key) => endKey(state, key, Endings.reloaded), {
    concurrency: endedAtOnce,
    discard: true
  })
  return { added, changed, removed }
})
