/**
 * A table in which each replica enters its address, its lock expiration and a mark of its key, before it joins the engine.
 *
 * It prevents two faults that the engine does not notice. The engine knows replicas by address alone, and each replica decides by its own
 * setting whether a lock has expired. So with unequal settings, or with the same address, two replicas could own the same shard. Replicas
 * with unequal keys would refuse each other's messages.
 */
import { Data, Duration, Effect, Schedule } from "effect"
import { SqlClient } from "effect/sql"
import { createHmac, randomUUID } from "node:crypto"

const table = "effect_session_pool_replicas"

/** This replica cannot join the others. The message tells the operator why. */
export class CannotJoin extends Data.TaggedError("CannotJoin")<{ readonly message: string }> {}

const unequalLocks = (other: string, theirs: number, ours: number) =>
  `The replica at ${other} runs with --shard-lock-expiration ${theirs} seconds, this one would with ${ours}: one could ` +
  "take over shards that the other still holds. Give all the same; to change it, stop all of them first."

const unequalKeys = (other: string) =>
  `The replica at ${other} runs with another GATEWAY_STATE_KEY than this one: each would refuse the messages of the ` +
  "other. Give all the same; to change it, stop all of them first."

export const migrate = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) =>
    sql`
      CREATE TABLE IF NOT EXISTS ${sql(table)} (
        address TEXT PRIMARY KEY,
        incarnation TEXT NOT NULL,
        lock_seconds DOUBLE PRECISION NOT NULL,
        key_mark TEXT NOT NULL,
        seen_at TIMESTAMPTZ NOT NULL
      )
    `
)

/** A mark of the key: equal for equal keys, and no help to find the key. */
const markOf = (stateKey: string): string =>
  createHmac("sha256", stateKey).update("effect-session-pool key mark").digest("hex")

export interface Options {
  readonly address: string
  readonly stateKey: string
  readonly shardLockExpiration: Duration.Duration
}

/** The entry of this replica. */
export type Entry = Effect.Success<ReturnType<typeof enter>>

/**
 * Enters this replica. Fails if a replica with other settings runs; takes the address from an earlier replica. Runs under `MigrationLock`,
 * so no two replicas enter at the same time.
 */
export const enter = Effect.fnUntraced(function*({ address, shardLockExpiration, stateKey }: Options) {
  const sql = yield* SqlClient.SqlClient
  const ours = Duration.toSeconds(shardLockExpiration)
  const mark = markOf(stateKey)
  const [other] = yield* sql<{ readonly address: string; readonly lock_seconds: number }>`
    SELECT address, lock_seconds FROM ${sql(table)}
    WHERE address <> ${address} AND (lock_seconds <> ${ours} OR key_mark <> ${mark})
      AND seen_at > NOW() - lock_seconds * INTERVAL '1 second'
  `
  if (other !== undefined) {
    const theirs = other.lock_seconds
    return yield* new CannotJoin({
      message: theirs === ours ? unequalKeys(other.address) : unequalLocks(other.address, theirs, ours)
    })
  }
  const incarnation = randomUUID()
  const isOurs = sql`address = ${address} AND incarnation = ${incarnation}`
  const insert = sql`
    INSERT INTO ${sql(table)} (address, incarnation, lock_seconds, key_mark, seen_at)
    VALUES (${address}, ${incarnation}, ${ours}, ${mark}, NOW()) ON CONFLICT (address)
  `
  // The newest replica gets the address. The earlier one may have been killed or may still run; the table cannot tell which.
  yield* sql`
    ${insert} DO UPDATE SET incarnation = EXCLUDED.incarnation, lock_seconds = EXCLUDED.lock_seconds,
      key_mark = EXCLUDED.key_mark, seen_at = EXCLUDED.seen_at
  `
  const refreshed = Effect.gen(function*() {
    const rows = yield* sql`UPDATE ${sql(table)} SET seen_at = NOW() WHERE ${isOurs} RETURNING address`
    if (rows.length > 0) return true
    // The row is another replica's, or the database has lost it. In the second case, enter it again.
    return (yield* sql`${insert} DO NOTHING RETURNING address`).length > 0
  })
  const interval = Duration.divideUnsafe(shardLockExpiration, 4)
  return {
    /** Refreshes the entry four times per lock expiration. Completes when another replica has taken this address. */
    untilTaken: refreshed.pipe(
      Effect.timeout(interval),
      Effect.orElseSucceed(() => true),
      Effect.repeat({ while: (isOurs) => isOurs, schedule: Schedule.spaced(interval) }),
      Effect.asVoid
    ),
    /** Removes the entry, unless another replica has taken this address. */
    remove: Effect.ignore(Effect.timeout(sql`DELETE FROM ${sql(table)} WHERE ${isOurs}`, "2 seconds"))
  }
})
