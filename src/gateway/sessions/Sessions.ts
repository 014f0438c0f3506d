/**
 * The sessions of the gateway: a `SessionPool` of connections to back ends, keyed `backend/id`, and what a session is
 * between its processes. The lanes of modern callers are in the same pool, keyed by `Callers.keyOf`.
 *
 * Here sessions begin and end: `open` begins one, `Launching` is the pool's lookup that starts its process, `endKey` is
 * how everybody ends one before its time. A process itself ends with the scope of its pooled connection (`StdioProcess`).
 */
import { Context, Deferred, Duration, Effect, Exit, Fiber, Option, Result, Scope, Stream } from "effect"
import * as SessionKey from "../../SessionKey.ts"
import * as SessionPool from "../../SessionPool.ts"
import type { Backends } from "../backends/Backends.ts"
import * as RunningBackend from "../backends/RunningBackend.ts"
import * as GatewayErrors from "../GatewayErrors.ts"
import * as GatewayMetrics from "../GatewayMetrics.ts"
import type * as JsonRpc from "../messages/JsonRpc.ts"
import * as Callers from "../modern/Callers.ts"
import type { Era } from "../modern/Dialect.ts"
import type * as Lane from "../modern/Lane.ts"
import type * as PassThrough from "../modern/PassThrough.ts"
import type { GatewayConfig } from "../settings/Config.ts"
import * as Masking from "../settings/Masking.ts"
import * as Settings from "../settings/Settings.ts"
import * as ClientRecord from "./ClientRecord.ts"
import * as Endings from "./Endings.ts"
import * as Launching from "./Launching.ts"
import type * as PooledConnection from "./PooledConnection.ts"
import * as Registry from "./Registry.ts"
import type { Connection, Key, Principal } from "./Registry.ts"

export type AcquireError =
  | GatewayErrors.LaunchError
  | GatewayErrors.LanesTaken
  | GatewayErrors.TooManyCalls
  | SessionPool.SessionPoolError

/** A lane, leased. */
export interface LeasedLane {
  readonly lane: Lane.Lane
  readonly profile: Callers.Profile
}

export interface LiveSession {
  readonly info: SessionPool.Info<Key>
  readonly activity: PooledConnection.Activity
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
  /** Opens a session under an id with the client's `initialize`. */
  readonly open: (
    backend: string,
    principal: Principal,
    id: string,
    message: JsonRpc.Request,
    text: string
  ) => Effect.Effect<Connection, AcquireError>
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
  /** Ends a session, asleep or not. None: there was no such session. Some: an effect that waits until its process is gone. */
  readonly end: (backend: string, principal: Principal, id: string) => Effect.Effect<Option.Option<Effect.Effect<void>>>
  /** The same for the live session with this number in the pool. */
  readonly endNumber: (number: number) => Effect.Effect<Option.Option<Effect.Effect<void>>>
  /** Tells every request that still runs why it ends, and ends the streams; the sessions themselves end with the gateway. */
  readonly endRequests: (reason: string) => Effect.Effect<void>
  /** Ends what lives under ids that leave this replica, or puts it to sleep; done when its processes are gone. */
  readonly vacate: (isOf: (id: string) => boolean, ending: Endings.Ending) => Effect.Effect<void>
  /** Serves other back ends from now on; the sessions of changed and removed ones end. */
  readonly reload: (backends: Backends) => Effect.Effect<Reloaded>
  /** Sleeping sessions by back end, live ones of stateless back ends included. */
  readonly asleep: Effect.Effect<ReadonlyMap<string, number>>
  /** The live sessions, and what they are doing. */
  readonly live: Effect.Effect<ReadonlyArray<LiveSession>>
  /** How many calls of modern clients wait for a lane. */
  readonly waitingForLane: Effect.Effect<number>
  readonly recent: GatewayMetrics.Recent
  /** How many sessions were closed, by reason. */
  readonly closes: Endings.Endings["counts"]
}>()("effect-session-pool/gateway/Sessions") {}

/** The sessions as they are. */
interface State {
  readonly registry: Registry.Registry
  readonly pool: SessionPool.SessionPool<Key, Connection, GatewayErrors.LaunchError>
  /** Completes when the gateway ends: who waits for a session waits no longer. */
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
  const state: State = { registry, pool, ending }
  const { callers, connections, running } = registry
  const lost = (key: Key) => endHere(state, key, Endings.takenOver)
  return Sessions.of({
    pool,
    running: () => running,
    open: (backend, principal, id, message, text) => open(state, Registry.keyOf(backend, principal, id), message, text),
    lease: (backend, principal, id) => lease(state, backend, principal, id),
    lane: (caller, exclusive) => lane(state, caller, exclusive),
    firstLane: (caller) => Effect.flatMap(enterAs(state, caller), (profile) => leaseLane(state, profile, 0)),
    knownEra: (name) => {
      const target = running.get(name)
      return target === undefined ? undefined : RunningBackend.knownEra(target)
    },
    passing: { count: 0, over: Deferred.await(ending) },
    end: (backend, principal, id) => endKey(state, Registry.keyOf(backend, principal, id), Endings.deleted),
    endNumber: (number) => endNumber(state, number),
    endRequests: (reason) =>
      Effect.andThen(
        Deferred.succeed(ending, undefined),
        Effect.suspend(() => Effect.forEach([...connections.values()], ({ end }) => end(reason), { discard: true }))
      ),
    reload: (backends) => reload(state, backends),
    asleep: registry.sleepers.counts,
    vacate: (isOf, ending) => vacate(state, isOf, ending),
    live: Effect.map(SessionPool.entries(pool), (entries) =>
      entries.flatMap((info) => {
        const connection = connections.get(info.key)
        return connection === undefined ? [] : [{ info, activity: connection.activity() }]
      })),
    waitingForLane: callers.waiting,
    recent: registry.recent,
    closes: registry.endings.counts
  })
})

const makePool = Effect.fnUntraced(function*(registry: Registry.Registry) {
  const { connections, endings, running, settings } = registry
  const idleTimeToLive = (key: Key) =>
    Callers.isOfLoner(key)
      ? Duration.zero
      : running.get(SessionKey.backend(key))?.backend.settings.idleTimeToLive ?? settings.idleTimeToLive
  const pool: State["pool"] = yield* SessionPool.make({
    name: "gateway",
    lookup: (key: Key) => Launching.lookup(registry, key),
    idleTimeToLive,
    cleanupInterval: settings.cleanupInterval,
    capacity: settings.maxSessions,
    acquireTimeout: settings.acquireTimeout,
    // Each back end has its own `startTimeout`.
    lookupTimeout: Duration.infinity,
    ...(settings.keys.length === 0
      ? {}
      : { groupBy: Registry.principalOf, groupCapacity: Settings.sessionsPerKey(settings) }),
    closed: (connection, key) =>
      Effect.flatMap(
        Deferred.await(connection.ended),
        // Another one may be live under the key, if this one has left the pool and is still in use.
        (failure) =>
          connections.get(key) === connection
            ? note({ registry, pool }, key, Endings.ofFailure(failure))
            : Effect.void
      )
  })
  yield* SessionPool.events(pool).pipe(
    Stream.runForEach((event) => {
      if (event._tag !== "Closed" && event._tag !== "CloseTimedOut") return Effect.void
      const backend = SessionKey.backend(event.key)
      const session = Masking.shortId(SessionKey.session(event.key))
      if (event._tag === "CloseTimedOut") {
        const duration = Duration.format(Duration.millis(event.duration))
        return Effect.logWarning(`a session has not closed within ${duration}`).pipe(
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

/** Notes why the live session under a key, if there is one, is about to end. */
const note = ({ pool, registry: { endings } }: Pick<State, "pool" | "registry">, key: Key, ending: Endings.Ending) =>
  Effect.map(SessionPool.info(pool, key), (info) => {
    if (Option.isSome(info)) endings.note(info.value.id, ending)
  })

/** Waits for a session that is to be started, but not beyond the end of the gateway. */
const untilEnd = <A, E, R>(
  { ending }: State,
  start: Effect.Effect<A, E, R>
): Effect.Effect<A, E | SessionPool.SessionPoolError, R> =>
  Effect.raceFirst(
    start,
    Effect.andThen(
      Deferred.await(ending),
      new SessionPool.SessionPoolError({ reason: new SessionPool.PoolClosed() })
    )
  )

// ---------------------------------------------------------------------------
// Sessions of legacy clients
// ---------------------------------------------------------------------------

/**
 * Refuses a session or lane that needs a process before it enters the pool, because the pool would evict an idle session first.
 */
const refuseBeforePool = ({ pool, registry: { running, settings } }: State, key: Key) => {
  const target = running.get(SessionKey.backend(key))
  return target === undefined ? Effect.void : Effect.catch(
    Launching.unlessRefused(target, settings.maxSessionsPerBackend),
    (refusal) =>
      Effect.flatMap(SessionPool.info(pool, key), (found) => Option.isSome(found) ? Effect.void : Effect.fail(refusal))
  )
}

const open = Effect.fnUntraced(function*(state: State, key: Key, message: JsonRpc.Request, text: string) {
  const { pool, registry: { opening } } = state
  yield* refuseBeforePool(state, key)
  const record = ClientRecord.make(message.id, text, message.params)
  return yield* Effect.acquireUseRelease(
    Effect.sync(() => opening.set(key, record)),
    () => untilEnd(state, Effect.scoped(SessionPool.get(pool, key))),
    (_, exit) =>
      Effect.andThen(
        Effect.sync(() => {
          opening.delete(key)
          // If its process is still closing, its finalizer (`Launching.rest`) would put the session to sleep after `endKey` has
          // removed it.
          if (Exit.isFailure(exit)) record.over = true
        }),
        // Nobody would ever learn the id of a session whose client has gone meanwhile.
        Exit.isSuccess(exit) ? Effect.void : endKey(state, key, Endings.abandoned)
      )
  )
})

const lease = (state: State, backend: string, principal: Principal, id: string) => {
  const key = Registry.keyOf(backend, principal, id)
  return isStateless(state, backend) ? leaseOrWake(state, key) : leaseAwake(state, key)
}

const isStateless = ({ registry }: State, backend: string): boolean =>
  registry.running.get(backend)?.backend.settings.stateless === true

const leaseAwake = ({ pool }: State, key: Key) =>
  Effect.flatMap(
    SessionPool.getOption(pool, key),
    (found) => Option.isSome(found) ? Effect.succeed(found.value) : new GatewayErrors.UnknownSession()
  )

const leaseOrWake = Effect.fnUntraced(function*(state: State, key: Key) {
  const { pool, registry } = state
  // An id that nobody has entered takes no place in the pool. One that is kept is woken by its launch (`Launching.wake`).
  if (!(yield* registry.sleepers.has(key))) return yield* leaseAwake(state, key)
  const get = SessionPool.get(pool, key)
  // One that is awake is had at once.
  if (Option.isSome(yield* SessionPool.info(pool, key))) return yield* get
  yield* refuseBeforePool(state, key)
  return yield* untilEnd(state, get)
})

// ---------------------------------------------------------------------------
// Lanes of modern clients
// ---------------------------------------------------------------------------

const lane = Effect.fnUntraced(function*(state: State, caller: Callers.Caller, exclusive: boolean) {
  const { callers, running, settings } = state.registry
  const { backend } = caller
  const max = running.get(backend)?.backend.settings.maxLanes ?? 1
  const profile = yield* enterAs(state, caller)
  const number = yield* Effect.timeoutOrElse(callers.claim(profile, exclusive, max), {
    duration: settings.acquireTimeout,
    orElse: () => new GatewayErrors.LanesTaken({ backend, limit: max })
  })
  return yield* leaseLane(state, profile, number)
})

/** A caller's profile for the scope, unless it makes more requests at once than it may. */
const enterAs = ({ registry: { callers, running, settings } }: State, caller: Callers.Caller) =>
  Effect.flatMap(callers.enter(caller), (profile) => {
    const limit = running.get(caller.backend)?.backend.settings.maxInFlight ?? settings.maxInFlight
    return profile.users > limit
      ? new GatewayErrors.TooManyCalls({ backend: caller.backend, limit })
      : Effect.succeed(profile)
  })

/**
 * The lane with this number, leased for the scope. Finalizers run newest first: a spoilt lane is retired before its lease and
 * number are given back.
 */
const leaseLane = Effect.fnUntraced(function*(state: State, profile: Callers.Profile, number: number) {
  const key = Callers.keyOf(profile, number)
  yield* refuseBeforePool(state, key)
  const lease = yield* untilEnd(state, SessionPool.lease(state.pool, key))
  const lane = lease.value
  if (lane._tag !== "Lane") return yield* new GatewayErrors.UnknownSession()
  const retire = Effect.flatMap(lease.invalidate, (isRetired) => {
    if (!isRetired) return Effect.void
    // In time: it closes when its lease ends.
    state.registry.endings.note(lease.id, Endings.spoilt)
    return Deferred.succeed(lane.retired, undefined)
  })
  yield* Effect.addFinalizer(() => lane.isSpoilt() ? retire : Effect.void)
  return { lane, profile }
})

// ---------------------------------------------------------------------------
// Ends
// ---------------------------------------------------------------------------

/**
 * Ends a session, asleep or not. None: there was no such session. Some: an effect that waits until its process is gone.
 *
 * The process ends at once, while the session is still being forgotten, which may take its time in a database. One that is awake
 * cannot be woken again from the first moment on. One that was asleep may have been woken meanwhile, and is ended then.
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
 * Has a session never wake again; whether it was kept. Where none is, nothing is asked, for that may take its time in a database:
 * sessions are kept of stateless back ends, and of those that were until a reload.
 */
const forget = (state: State, key: Key) =>
  Effect.gen(function*() {
    const { sleepers } = state.registry
    if (!isStateless(state, SessionKey.backend(key)) && !(yield* sleepers.isKnown(key))) return false
    const found = yield* Effect.result(sleepers.find(key))
    // It was waited for once, in vain.
    if (Result.isFailure(found)) {
      yield* Effect.forkDetach(sleepers.remove(key), { startImmediately: true })
      return false
    }
    const record = found.success
    if (Option.isSome(record)) record.value.over = true
    yield* sleepers.remove(key)
    return Option.isSome(record)
  })

/** Ends the connection of a session. None: it has none. Some: an effect that waits until it is gone. */
const endConnection = (state: State, key: Key, ending: Endings.Ending) =>
  Effect.gen(function*() {
    const { pool, registry: { connections, endings } } = state
    const end = (connection: Connection) => {
      if (connection.record !== undefined) connection.record.over = true
      return Effect.as(connection.end(ending.text), Deferred.await(connection.gone))
    }
    const find = Effect.catch(SessionPool.getOption(pool, key), () => Effect.succeedNone)
    if (Option.isSome(yield* SessionPool.info(pool, key))) {
      const connection = yield* Effect.scoped(find)
      yield* note(state, key, ending)
      const existed = yield* SessionPool.invalidate(pool, key)
      return Option.isSome(connection)
        ? Option.some(yield* end(connection.value))
        : existed
        ? Option.some(Effect.void)
        : Option.none()
    }
    // An expired session is absent already, but the cleanup may not have closed it yet.
    if (connections.has(key)) yield* SessionPool.sweep(pool)
    // One that is being launched is not waited for, which may take as long as its back end may; it ends by itself (`Launching.lookup`).
    const ended = yield* Effect.forkDetach(
      Effect.scoped(
        Effect.flatMap(find, (found) => {
          if (Option.isNone(found)) return Effect.succeed(Effect.void)
          endings.note(key, ending)
          return end(found.value)
        })
      ),
      { startImmediately: true }
    )
    return (yield* SessionPool.invalidate(pool, key)) ? Option.some(Effect.flatten(Fiber.join(ended))) : Option.none()
  })

/** Ends what is here of a session, which lives on elsewhere: one that has left the pool and is still in use, too. */
const endHere = (state: State, key: Key, ending: Endings.Ending) =>
  Effect.uninterruptible(Effect.gen(function*() {
    const connection = state.registry.connections.get(key)
    if (connection?.record !== undefined) connection.record.over = true
    yield* endConnection(state, key, ending)
    if (connection !== undefined) yield* connection.end(ending.text)
  }))

const vacate = (state: State, isOf: (id: string) => boolean, ending: Endings.Ending) =>
  Effect.gen(function*() {
    const { registry: { connections }, pool } = state
    const left = [...connections].filter(([key]) => isOf(Registry.idOf(key))).map(([, connection]) => connection)
    // Expired sessions are not among the keys, but hold their processes until the cleanup comes.
    yield* SessionPool.sweep(pool)
    const keys = (yield* SessionPool.keys(pool)).filter((key) => isOf(Registry.idOf(key)))
    yield* Effect.forEach(
      keys,
      (key) => Effect.andThen(note(state, key, ending), SessionPool.invalidate(pool, key)),
      { discard: true }
    )
    yield* Effect.forEach(left, (connection) => connection.end(ending.text), { discard: true })
    yield* Effect.forEach(left, ({ gone }) => Deferred.await(gone), { discard: true })
  })

const endNumber = Effect.fnUntraced(function*(state: State, number: number) {
  const entries = yield* SessionPool.entries(state.pool)
  const entry = entries.find(({ id }) => id === number)
  return entry === undefined
    ? Option.none()
    : yield* endKey(state, entry.key, Endings.byOperator)
})

/** Of sessions that a reload ends: all that are awake, by default, so that a database that hangs delays none of them. */
const endedAtOnce = 1000

const reload = Effect.fnUntraced(function*(state: State, backends: Backends) {
  const { connections, opening, run, running, scope, sleepers } = state.registry
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
  // Of those that mean the same it may say so in other words.
  for (const [name, target] of running) target.entryText = backends.get(name)?.entryText ?? target.entryText
  for (const old of replaced) yield* Effect.forkIn(Scope.close(old.scope, Exit.void), scope)
  const gone = new Set([...removed, ...changed])
  const live = [...(yield* SessionPool.keys(state.pool)), ...connections.keys()]
  const keys = new Set([...live, ...(yield* sleepers.keys), ...opening.keys()])
  const affected = [...keys].filter((key) => gone.has(SessionKey.backend(key)))
  yield* Effect.forEach(affected, (key) => endKey(state, key, Endings.reloaded), {
    concurrency: endedAtOnce,
    discard: true
  })
  return { added, changed, removed }
})
