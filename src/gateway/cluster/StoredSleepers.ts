/**
 * Sleeping sessions in PostgreSQL, so that they wake on any replica.
 *
 * Whoever finds a session takes it over: its generation grows, and what the former owner still saves is refused. So a replica that
 * was frozen, and does not know yet that others went on without it, overwrites nothing.
 */
import { Array as Arr, Duration, Effect, Option, Schedule, Schema } from "effect"
import { SqlClient } from "effect/sql"
import type * as SessionKey from "../../SessionKey.ts"
import * as GatewayErrors from "../GatewayErrors.ts"
import type * as ClientRecord from "../sessions/ClientRecord.ts"
import type { Make, Sleepers } from "../sessions/Sleepers.ts"
import { countByBackend } from "../sessions/Sleepers.ts"

type Key = SessionKey.SessionKey

const optionalText = Schema.optionalKey(Schema.UndefinedOr(Schema.String))

/** What is kept of a session, as JSON. */
const Kept = Schema.fromJsonString(
  Schema.Struct({
    initialize: Schema.String,
    id: Schema.Union([Schema.String, Schema.Finite, Schema.Null]),
    client: optionalText,
    initialized: optionalText,
    level: optionalText,
    subscriptions: Schema.Array(Schema.Tuple([Schema.String, Schema.String]))
  })
)

/** A session that is awake here. */
interface Owned {
  readonly record: ClientRecord.ClientRecord
  readonly generation: number
}

/** What is still to be written: a record, or that there is none any more. */
interface Pending {
  readonly record: ClientRecord.ClientRecord | undefined
  readonly generation: number
  /** The session is not in the database yet. */
  readonly isNew: boolean
}

const table = "effect_session_pool_sessions"
/** How often it is said that the sessions here are still wanted, and what has expired is removed. */
const upkeep = "1 minute"
/** How long anybody waits for the database; what it has not taken by then is written later. */
const patience = "3 seconds"
/** How many sessions a statement names. */
const batch = 1000

export const migrate = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  sql`
    CREATE TABLE IF NOT EXISTS ${sql(table)} (
      key TEXT PRIMARY KEY,
      record TEXT NOT NULL,
      generation INT NOT NULL,
      expires_at TIMESTAMPTZ NOT NULL
    )
  `)

export const make = (sql: SqlClient.SqlClient): Make =>
  Effect.fnUntraced(function*({ asleepTimeToLive, maxAsleep }, lost) {
    const owned = new Map<Key, Owned>()
    const pending = new Map<Key, Pending>()
    const seconds = Math.ceil(Math.min(Duration.toSeconds(asleepTimeToLive), maxSeconds))
    const expires = sql`NOW() + ${seconds} * INTERVAL '1 second'`

    /** Takes a session over from whoever had it. */
    const take = (key: Key) =>
      Effect.gen(function*() {
        // What is still to be written of it is newer than what would be read.
        if (pending.has(key)) yield* write(key)
        const [row] = yield* sql<{ readonly record: string; readonly generation: number }>`
          UPDATE ${sql(table)} SET generation = generation + 1, expires_at = ${expires}
          WHERE key = ${key} AND expires_at > NOW() RETURNING record, generation
        `
        if (row === undefined) return Option.none()
        const record = revive(yield* Schema.decodeEffect(Kept)(row.record))
        own(key, record, row.generation)
        return Option.some(record)
      }).pipe(
        Effect.timeout(patience),
        Effect.tapError((error) => Effect.logWarning(`A sleeping session could not be read: ${error.message}`)),
        Effect.mapError(() => new GatewayErrors.RecordsUnreachable())
      )

    const own = (key: Key, record: ClientRecord.ClientRecord, generation: number) => {
      owned.set(key, { record, generation })
      record.changed = () => {
        if (owned.get(key)?.record === record) pending.set(key, { record, generation, isNew: false })
      }
    }

    /** Writes what is still to be written of a session. */
    const write = (key: Key) =>
      Effect.suspend(() => {
        const due = pending.get(key)
        if (due === undefined) return Effect.void
        const { generation, isNew, record } = due
        const text = record === undefined ? "" : Schema.encodeSync(Kept)(kept(record))
        const statement = record === undefined
          ? sql`DELETE FROM ${sql(table)} WHERE key = ${key} RETURNING key`
          : isNew
          ? sql`
            INSERT INTO ${sql(table)} (key, record, generation, expires_at)
            VALUES (${key}, ${text}, ${generation}, ${expires}) ON CONFLICT (key) DO NOTHING RETURNING key
          `
          : sql`
            UPDATE ${sql(table)} SET record = ${text}, expires_at = ${expires}
            WHERE key = ${key} AND generation = ${generation} RETURNING key
          `
        return Effect.flatMap(statement, (rows) => {
          if (pending.get(key) === due) pending.delete(key)
          return rows.length > 0 || record === undefined ? Effect.void : disown(key, generation)
        })
      })

    /** Another replica has taken the session over, or it has expired. */
    const disown = (key: Key, generation: number) =>
      Effect.suspend(() => {
        if (owned.get(key)?.generation !== generation) return Effect.void
        owned.delete(key)
        pending.delete(key)
        return lost(key)
      })

    const writeSoon = (key: Key) => Effect.ignore(Effect.timeout(write(key), patience))

    const keepUp = Effect.gen(function*() {
      for (const keys of Arr.chunksOf([...owned.keys()], batch)) {
        const rows = yield* sql<{ readonly key: string; readonly generation: number }>`
          UPDATE ${sql(table)} SET expires_at = ${expires} WHERE key IN ${sql.in(keys)} RETURNING key, generation
        `
        const found = new Map(rows.map(({ generation, key }) => [key, generation]))
        for (const key of keys) {
          const generation = owned.get(key)?.generation
          if (generation === undefined || pending.has(key) || found.get(key) === generation) continue
          yield* disown(key, generation)
        }
      }
      yield* sql`DELETE FROM ${sql(table)} WHERE expires_at < NOW()`
      yield* sql`
        DELETE FROM ${sql(table)} WHERE key IN (
          SELECT key FROM ${sql(table)} ORDER BY expires_at DESC OFFSET ${maxAsleep}
        )
      `
    })

    const unreachable = (error: { readonly message: string }) =>
      Effect.logWarning(`The database of sleeping sessions does not answer: ${error.message}`)

    yield* Effect.forkScoped(
      Effect.repeat(
        Effect.ignore(Effect.suspend(() => Effect.forEach([...pending.keys()], write, { discard: true }))),
        Schedule.spaced("1 second")
      )
    )
    yield* Effect.forkScoped(Effect.repeat(Effect.catch(keepUp, unreachable), Schedule.spaced(upkeep)))

    const sleepers: Sleepers = {
      find: (key) =>
        Effect.suspend(() => {
          const awake = owned.get(key)
          return awake === undefined ? take(key) : Effect.succeedSome(awake.record)
        }),
      enter: (key, record) =>
        Effect.suspend(() => {
          own(key, record, 1)
          pending.set(key, { record, generation: 1, isNew: true })
          return writeSoon(key)
        }),
      rest: (key, record) =>
        Effect.suspend(() => {
          const awake = owned.get(key)
          if (awake?.record !== record) return Effect.void
          const { generation } = awake
          pending.set(key, { record, generation, isNew: pending.get(key)?.isNew === true })
          // Found again, it is read again: another replica may have woken it in between.
          return Effect.ensuring(
            writeSoon(key),
            Effect.sync(() => owned.get(key) === awake && owned.delete(key))
          )
        }),
      remove: (key) =>
        Effect.suspend(() => {
          const generation = owned.get(key)?.generation ?? 0
          owned.delete(key)
          pending.set(key, { record: undefined, generation, isNew: false })
          return writeSoon(key)
        }),
      keys: Effect.sync(() => [...owned.keys()]),
      counts: Effect.sync(() => countByBackend(owned.keys()))
    }
    return sleepers
  })

/** "For ever", within what PostgreSQL can add to a time. */
const maxSeconds = Duration.toSeconds("3650 days")

const kept = (record: ClientRecord.ClientRecord): typeof Kept.Type => {
  const { client, id, initialize, initialized, level, subscriptions } = record
  return { initialize, id, client, initialized, level, subscriptions: [...subscriptions] }
}

const revive = ({ client, id, initialize, initialized, level, subscriptions }: typeof Kept.Type) => {
  const record: ClientRecord.ClientRecord = {
    initialize,
    id,
    client,
    initialized,
    level,
    subscriptions: new Map(subscriptions),
    over: false,
    changed: () => {}
  }
  return record
}
