/**
 * The clients of stateless back ends: whoever is here may be woken. Alone, they are kept in memory; with other replicas, in
 * PostgreSQL (`cluster/StoredSleepers`), so that a session can wake anywhere.
 */
import type { Duration, Scope } from "effect"
import { Cache, Context, Effect, Option } from "effect"
import * as SessionKey from "../../SessionKey.ts"
import * as GatewayErrors from "../GatewayErrors.ts"
import type * as ClientRecord from "./ClientRecord.ts"

type Key = SessionKey.SessionKey

export interface Sleepers {
  /** Whether a session is kept; `find` decides whether it wakes. */
  readonly has: (key: Key) => Effect.Effect<boolean, GatewayErrors.RecordsUnreachable>
  /** The client of a session that is to be woken or ended. From then on it is awake here, until it rests or is removed. */
  readonly find: (key: Key) => Effect.Effect<Option.Option<ClientRecord.ClientRecord>, GatewayErrors.RecordsUnreachable>
  /** Notes a session that has been opened. */
  readonly enter: (key: Key, record: ClientRecord.ClientRecord) => Effect.Effect<void>
  /** Notes that a session's process has gone, so that it sleeps. */
  readonly rest: (key: Key, record: ClientRecord.ClientRecord) => Effect.Effect<void>
  /** Forgets a session. */
  readonly remove: (key: Key) => Effect.Effect<void>
  /** Whether a session is among the `keys`, or was and is still to be written. */
  readonly isKnown: (key: Key) => Effect.Effect<boolean>
  /** Those that are known here: all that are kept in memory, but of those in the database only who is awake here. */
  readonly keys: Effect.Effect<Iterable<Key>>
  /** How many of those that are known here can be woken, by back end; those that are awake included. */
  readonly counts: Effect.Effect<ReadonlyMap<string, number>>
}

export interface Limits {
  readonly maxAsleep: number
  readonly asleepTimeToLive: Duration.Duration
}

/** In memory. */
export const make = Effect.fnUntraced(function*({ asleepTimeToLive, maxAsleep }: Limits) {
  const cache = yield* Cache.make<Key, ClientRecord.ClientRecord, GatewayErrors.UnknownSession>({
    capacity: maxAsleep,
    timeToLive: asleepTimeToLive,
    lookup: () => new GatewayErrors.UnknownSession()
  })
  const sleepers: Sleepers = {
    has: (key) => Effect.map(Cache.getSuccess(cache, key), Option.isSome),
    find: (key) => Cache.getSuccess(cache, key),
    enter: (key, record) => Cache.set(cache, key, record),
    rest: (key, record) => Cache.set(cache, key, record),
    remove: (key) => Cache.invalidate(cache, key),
    isKnown: (key) => Cache.has(cache, key),
    keys: Cache.keys(cache),
    counts: Effect.map(Cache.keys(cache), countByBackend)
  }
  return sleepers
})

export const countByBackend = (keys: Iterable<Key>): ReadonlyMap<string, number> => {
  const counts = new Map<string, number>()
  for (const key of keys) counts.set(SessionKey.backend(key), (counts.get(SessionKey.backend(key)) ?? 0) + 1)
  return counts
}

/**
 * How sleepers are kept; `lost`: another replica has taken the session over, so whatever of it is here has to end; `entryTextOf`: what
 * the entry of a back end says now, if there is one.
 */
export type Make = (
  limits: Limits,
  lost: (key: Key) => Effect.Effect<void>,
  entryTextOf: (backend: string) => string | undefined
) => Effect.Effect<Sleepers, never, Scope.Scope>

export const MakeSleepers: Context.Reference<Make> = Context.Reference<Make>("effect-session-pool/gateway/Sleepers", {
  defaultValue: () => make
})
