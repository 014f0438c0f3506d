/**
 * What replicas say of themselves in the database, beside what the engine says of them there: it knows them by their addresses
 * alone, and whoever asks for a lock decides by its own setting whether that has expired. So with unequal settings, or with the same
 * address, two replicas could own the same shard. And replicas with unequal keys would refuse whatever they send to each other.
 */
import { Context, Data, Duration, Effect, Schedule } from "effect"
import { SqlClient } from "effect/sql"
import { createHmac, randomUUID } from "node:crypto"

const table = "effect_session_pool_replicas"

/** Another replica runs whose locks live for another time. */
export class UnequalLocks extends Data.TaggedError("UnequalLocks")<{
  readonly other: string
  readonly theirs: number
  readonly ours: number
}> {
  override get message(): string {
    return `The replica at ${this.other} runs with --shard-lock-expiration ${this.theirs} seconds, this one would with ` +
      `${this.ours}: one would take over what the other still has. Give all the same; to change it, stop all of them first.`
  }
}

/** Another replica runs with another key. */
export class UnequalKeys extends Data.TaggedError("UnequalKeys")<{ readonly other: string }> {
  override get message(): string {
    return `The replica at ${this.other} runs with another GATEWAY_STATE_KEY than this one: each would refuse what the other ` +
      "sends to it. Give all the same; to change it, stop all of them first."
  }
}

export const migrate = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  Effect.all([
    sql`
      CREATE TABLE IF NOT EXISTS ${sql(table)} (
        address TEXT PRIMARY KEY,
        incarnation TEXT NOT NULL,
        lock_seconds DOUBLE PRECISION NOT NULL,
        seen_at TIMESTAMPTZ NOT NULL
      )
    `,
    // Came later. Replicas that know nothing of it leave it empty, and are not compared.
    sql`ALTER TABLE ${sql(table)} ADD COLUMN IF NOT EXISTS key_mark TEXT`
  ], { discard: true }))

/** Equal for equal keys; it does not tell the key. */
const markOf = (stateKey: string): string =>
  createHmac("sha256", stateKey).update("effect-session-pool key mark").digest("hex")

export interface Options {
  readonly address: string
  readonly stateKey: string
  readonly shardLockExpiration: Duration.Duration
}

/** A replica that has entered itself; no two do so at the same time. */
export class Entry extends Context.Service<Entry, {
  /** Says again and again that it lives; completes when another replica has taken its address. */
  readonly untilTaken: Effect.Effect<void>
  /** Takes it out, unless its address is another one's by now. */
  readonly remove: Effect.Effect<void>
}>()("effect-session-pool/gateway/cluster/Roster") {}

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
    return yield* other.lock_seconds === ours
      ? new UnequalKeys({ other: other.address })
      : new UnequalLocks({ other: other.address, theirs: other.lock_seconds, ours })
  }
  const incarnation = randomUUID()
  const isOurs = sql`address = ${address} AND incarnation = ${incarnation}`
  // The newest has the address: one that was killed does not come back, and nobody can tell it from one that still runs.
  yield* sql`
    INSERT INTO ${sql(table)} (address, incarnation, lock_seconds, key_mark, seen_at)
    VALUES (${address}, ${incarnation}, ${ours}, ${mark}, NOW())
    ON CONFLICT (address) DO UPDATE
    SET incarnation = EXCLUDED.incarnation, lock_seconds = EXCLUDED.lock_seconds, key_mark = EXCLUDED.key_mark,
      seen_at = EXCLUDED.seen_at
  `
  const sayThatItLives = Effect.gen(function*() {
    const said = yield* sql`UPDATE ${sql(table)} SET seen_at = NOW() WHERE ${isOurs} RETURNING address`
    if (said.length > 0) return false
    // Nobody's, when the database has lost its row.
    const entered = yield* sql`
      INSERT INTO ${sql(table)} (address, incarnation, lock_seconds, key_mark, seen_at)
      VALUES (${address}, ${incarnation}, ${ours}, ${mark}, NOW()) ON CONFLICT (address) DO NOTHING RETURNING address
    `
    return entered.length === 0
  })
  const interval = Duration.divideUnsafe(shardLockExpiration, 4)
  return Entry.of({
    untilTaken: sayThatItLives.pipe(
      Effect.timeout(interval),
      Effect.orElseSucceed(() => false),
      Effect.repeat({ until: (isTaken) => isTaken, schedule: Schedule.spaced(interval) }),
      Effect.asVoid
    ),
    remove: Effect.ignore(Effect.timeout(sql`DELETE FROM ${sql(table)} WHERE ${isOurs}`, "2 seconds"))
  })
})
