/**
 * The records of stateless back ends' sessions, which can wake. A gateway alone keeps them in memory. With other
 * replicas they are in PostgreSQL (`cluster/StoredSleepers`), so that a session can wake at any replica.
 */
import type { Duration, Scope } from "effect"
import { Cache, Context, Effect, Option } from "effect"
import type * as ClientRecord from "../conversation/ClientRecord.ts"
import * as GatewayErrors from "./GatewayErrors.ts"
import type { Key } from "./Key.ts"

export interface Sleepers {
  /** True if the session has a record. `take` decides whether it may wake. */
  readonly has: (key: Key) => Effect.Effect<boolean, GatewayErrors.NotNow>
  /**
   * Takes over a session, to wake it or to end it, and returns its record. The session then counts as awake here until
   * `rest` or `remove`.
   */
  readonly take: (key: Key) => Effect.Effect<Option.Option<ClientRecord.ClientRecord>, GatewayErrors.NotNow>
  /** Adds the record of a session that was opened. */
  readonly enter: (key: Key, record: ClientRecord.ClientRecord) => Effect.Effect<void>
  /** Puts a session to sleep, after its process is gone. */
  readonly rest: (key: Key, record: ClientRecord.ClientRecord) => Effect.Effect<void>
  /** Removes a session's record. */
  readonly remove: (key: Key) => Effect.Effect<void>
  /** True if `keys` has the session, or if a write for the session is still pending. */
  readonly isKnown: (key: Key) => Effect.Effect<boolean>
  /** The sessions that are known here, awake sessions included. A database keeps others that are asleep. */
  readonly keys: Effect.Effect<Iterable<Key>>
}

export interface Limits {
  readonly maxAsleep: number
  readonly asleepTimeToLive: Duration.Duration
}

/** Keeps the records in memory. */
export const make = Effect.fnUntraced(function*({ asleepTimeToLive, maxAsleep }: Limits) {
  const cache = yield* Cache.make<Key, ClientRecord.ClientRecord, GatewayErrors.UnknownSession>({
    capacity: maxAsleep,
    timeToLive: asleepTimeToLive,
    lookup: () => new GatewayErrors.UnknownSession()
  })
  const sleepers: Sleepers = {
    has: (key) => Effect.map(Cache.getSuccess(cache, key), Option.isSome),
    take: (key) => Cache.getSuccess(cache, key),
    enter: (key, record) => Cache.set(cache, key, record),
    rest: (key, record) => Cache.set(cache, key, record),
    remove: (key) => Cache.invalidate(cache, key),
    isKnown: (key) => Cache.has(cache, key),
    keys: Cache.keys(cache)
  }
  return sleepers
})

/**
 * Makes the store of records. It calls `lost` when another replica has taken a session over, so that this replica's
 * part ends. `entryTextOf` returns the current text of a back end's entry, if there is one.
 */
export type Make = (
  limits: Limits,
  lost: (key: Key) => Effect.Effect<void>,
  entryTextOf: (backend: string) => string | undefined
) => Effect.Effect<Sleepers, never, Scope.Scope>

export const MakeSleepers: Context.Reference<Make> = Context.Reference<Make>("effect-session-pool/gateway/Sleepers", {
  defaultValue: () => make
})
