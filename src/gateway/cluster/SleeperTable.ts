/**
 * The PostgreSQL table of sleeping sessions: one row for each session of a stateless back end, asleep or awake.
 *
 * Statements that a replica has abandoned may take effect late. So each row has a generation, which grows when a replica takes the session
 * over, and a revision, which grows with each change of the record. An older write changes nothing.
 */
import { Duration, Effect, Schema } from "effect"
import type { SqlError, Statement } from "effect/sql"
import { SqlClient } from "effect/sql"
import * as ClientRecord from "../conversation/ClientRecord.ts"
import type { Key } from "../sessions/Key.ts"
import * as Protocol from "./Protocol.ts"

const table = "effect_session_pool_sessions"
/** The table whose one row has the time at which any replica last removed sessions. */
const upkeepTable = "effect_session_pool_upkeep"
/** The record of a removed session. Its row has the generation `last`, so no older write replaces it. */
const removedRecord = ""
/** How long the row of a removed session stays. A late statement that enters the session arrives within this time, or never. */
const removedExpires = "10 minutes"
/** The highest generation and revision. */
export const last = 2 ** 31 - 1
/** How many sessions one statement extends or removes. */
export const batch = 1000
/** The longest time to live that PostgreSQL can add to a time. Stands for infinity. */
const maxSeconds = Duration.toSeconds("3650 days")

export const migrate = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  Effect.all([
    sql`
      CREATE TABLE IF NOT EXISTS ${sql(table)} (
        key TEXT PRIMARY KEY,
        record TEXT NOT NULL,
        generation INT NOT NULL,
        revision INT NOT NULL DEFAULT 0,
        expires_at TIMESTAMPTZ NOT NULL
      )
    `,
    sql`CREATE INDEX IF NOT EXISTS ${sql(`${table}_expires_at`)} ON ${sql(table)} (expires_at)`,
    sql`CREATE TABLE IF NOT EXISTS ${sql(upkeepTable)} (id INT PRIMARY KEY, done_at TIMESTAMPTZ NOT NULL)`
  ], { discard: true }))

export interface Table {
  readonly sql: SqlClient.SqlClient
  /** When a row that is written or extended now expires. */
  readonly expires: Statement.Fragment
}

export const make = (sql: SqlClient.SqlClient, timeToLive: Duration.Duration): Table => {
  const seconds = Math.ceil(Math.min(Duration.toSeconds(timeToLive), maxSeconds))
  return { sql, expires: sql`NOW() + ${seconds} * INTERVAL '1 second'` }
}

/** The record of a session, as it is to be stored. */
export interface Saved {
  readonly key: Key
  readonly record: ClientRecord.ClientRecord
  readonly generation: number
  /** How often the record has changed in this generation. */
  readonly revision: number
  /** The mark of its back end's entry when the session was opened. */
  readonly mark: string | undefined
  /** Whether the session has had a row. If the row is gone, the session has ended elsewhere, and must not come back. */
  readonly row: { existed: boolean }
}

/** The removal of a session. A newer generation stays. Without a generation, the session was not awake here: any row is removed. */
export interface Removed {
  readonly key: Key
  readonly record: undefined
  readonly generation: number | undefined
}

/** Writes a record or a removal, unless the row is newer. False if no row has changed. */
export const write = ({ expires, sql }: Table, due: Saved | Removed): Effect.Effect<boolean, SqlError.SqlError> => {
  const { generation, key: { text } } = due
  const expiresRemoved = sql`NOW() + ${removedExpires}::INTERVAL`
  // Inserts no row, because any client can ask to remove ids that do not exist.
  const removed = sql`
    UPDATE ${sql(table)} SET record = ${removedRecord}, generation = ${last}, expires_at = ${expiresRemoved}
    WHERE key = ${text} AND record <> ${removedRecord} RETURNING key
  `
  if (generation === undefined) return Effect.map(removed, isAny)
  if (due.record !== undefined && due.row.existed) {
    const updated = sql`
      UPDATE ${sql(table)} SET record = ${
      textOf(due)
    }, generation = ${generation}, revision = ${due.revision}, expires_at = ${expires}
      WHERE key = ${text} AND (generation, revision) <= (${generation}, ${due.revision}) RETURNING key
    `
    return Effect.map(updated, isAny)
  }
  // A removal inserts a row if there is none. Otherwise an abandoned statement could arrive late and enter the session again.
  const values = due.record === undefined
    ? sql`${text}, ${removedRecord}, ${last}, ${last}, ${expiresRemoved}`
    : sql`${text}, ${textOf(due)}, ${generation}, ${due.revision}, ${expires}`
  const upsert = sql`
    INSERT INTO ${sql(table)} AS old (key, record, generation, revision, expires_at) VALUES (${values})
    ON CONFLICT (key) DO UPDATE SET record = EXCLUDED.record, generation = EXCLUDED.generation,
      revision = EXCLUDED.revision, expires_at = EXCLUDED.expires_at
    WHERE (old.generation, old.revision) <= (${generation}, EXCLUDED.revision) RETURNING key
  `
  return Effect.map(upsert, isAny)
}

const isAny = (rows: ReadonlyArray<unknown>): boolean => rows.length > 0

/** True for a session that can wake: neither expired nor removed. */
const canWake = (sql: SqlClient.SqlClient) => sql`expires_at > NOW() AND record <> ${removedRecord}`

export const has = ({ sql }: Table, { text }: Key): Effect.Effect<boolean, SqlError.SqlError> =>
  Effect.map(sql`SELECT 1 FROM ${sql(table)} WHERE key = ${text} AND ${canWake(sql)}`, isAny)

/**
 * Takes a session over: raises the generation of its row. Updates the row only if it still has the generation that was read. So an
 * abandoned statement that arrives late cannot take the session from a replica that took it over since.
 */
export const take: (
  table: Table,
  key: Key
) => Effect.Effect<Taken | undefined, SqlError.SqlError | Schema.SchemaError> = Effect.fnUntraced(
  function*({ expires, sql }, { text }) {
    while (true) {
      const [read] = yield* sql<{ readonly generation: number }>`
        SELECT generation FROM ${sql(table)} WHERE key = ${text} AND ${canWake(sql)}
      `
      if (read === undefined) return undefined
      const generation = read.generation + 1
      const [taken] = yield* sql<{ readonly record: string }>`
        UPDATE ${sql(table)} SET generation = ${generation}, revision = 0, expires_at = ${expires}
        WHERE key = ${text} AND generation = ${read.generation} AND ${canWake(sql)} RETURNING record
      `
      if (taken !== undefined) return { generation, ...revive(yield* Schema.decodeEffect(Kept)(taken.record)) }
    }
  }
)

type Taken = Pick<Saved, "record" | "generation" | "mark">

/** Extends the rows of some sessions. Returns their generations. */
export const extend = ({ expires, sql }: Table, texts: ReadonlyArray<string>) =>
  Effect.map(
    sql<{ readonly key: string; readonly generation: number }>`
      UPDATE ${sql(table)} SET expires_at = ${expires}
      WHERE key IN ${sql.in(texts)} AND record <> ${removedRecord} RETURNING key, generation
    `,
    (rows) => new Map(rows.map(({ generation, key }) => [key, generation]))
  )

/**
 * Removes expired sessions and the oldest ones beyond `maxAsleep`, if no replica has done so in the last 55 seconds.
 *
 * Not 60 seconds: a single replica checks every 60 seconds, and could be a moment early. A time more than a minute in the future was
 * written before the database's clock was set back, so it counts as due.
 */
export const removeInTurn = Effect.fnUntraced(function*({ sql }: Table, maxAsleep: number) {
  const isDue = yield* sql`
    INSERT INTO ${sql(upkeepTable)} AS last (id, done_at) VALUES (1, NOW())
    ON CONFLICT (id) DO UPDATE SET done_at = EXCLUDED.done_at
    WHERE last.done_at NOT BETWEEN NOW() - INTERVAL '55 seconds' AND NOW() + INTERVAL '1 minute' RETURNING id
  `
  if (isDue.length === 0) return
  yield* Effect.repeat(removeOldest(sql, sql`WHERE expires_at < NOW()`, batch), {
    while: (removed) => removed.length === batch
  })
  // Rows of removed sessions do not count.
  const sessions = sql`WHERE record <> ${removedRecord}`
  const [row] = yield* sql<{ readonly count: number }>`SELECT COUNT(*)::FLOAT8 AS count FROM ${sql(table)} ${sessions}`
  for (let beyond = (row?.count ?? 0) - maxAsleep; beyond > 0; beyond -= batch) {
    yield* removeOldest(sql, sessions, Math.min(beyond, batch))
  }
})

/**
 * Removes the `count` rows that expire first, which the index finds. Returns them.
 *
 * A session that wakes meanwhile expires later, so the comparison of `expires_at` spares it. The comparison is `<=`, because for `=`
 * PostgreSQL would search the index once for each of the rows that expire at the same time.
 */
const removeOldest = (sql: SqlClient.SqlClient, where: Statement.Fragment, count: number) =>
  sql`
    DELETE FROM ${sql(table)} AS asleep
    USING (SELECT key, expires_at FROM ${sql(table)} ${where} ORDER BY expires_at LIMIT ${count}) AS oldest
    WHERE asleep.key = oldest.key AND asleep.expires_at <= oldest.expires_at RETURNING asleep.key
  `

/** The stored record of a session, as JSON. */
const Kept = Schema.fromJsonString(
  Schema.Struct({
    initialize: Protocol.Request,
    /** The other messages of the record. */
    messages: Schema.Array(Protocol.Message),
    /** The mark of its back end's entry when the session was opened. */
    entryMark: Schema.optional(Schema.String)
  })
)

const textOf = ({ mark, record: { initialize, initialized, level, subscriptions } }: Saved): string => {
  const messages = [initialized, level, ...subscriptions.values()].filter((message) => message !== undefined)
  return Schema.encodeSync(Kept)({ initialize, messages, entryMark: mark })
}

const revive = ({ entryMark, initialize, messages }: typeof Kept.Type) => {
  const record = ClientRecord.make(initialize)
  for (const message of messages) ClientRecord.note(record, message)
  return { record, mark: entryMark }
}
