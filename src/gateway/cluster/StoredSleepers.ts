/**
 * Sleeping sessions in PostgreSQL, so that they wake on any replica.
 *
 * Whoever finds a session takes it over: its generation grows, and what the former owner still saves is refused. So a replica that
 * was frozen, and does not know yet that others went on without it, overwrites nothing.
 *
 * A reload reaches only sessions that are awake. So a mark of the back end's entry is stored with each, and one wakes only if the
 * mark is still the same.
 */
import { Array as Arr, Duration, Effect, FiberSet, Option, Schedule, Schema, Semaphore } from "effect"
import type { SqlError, Statement } from "effect/sql"
import { SqlClient } from "effect/sql"
import { createHmac } from "node:crypto"
import * as SessionKey from "../../SessionKey.ts"
import * as GatewayErrors from "../GatewayErrors.ts"
import type * as ClientRecord from "../sessions/ClientRecord.ts"
import type { Make, Sleepers } from "../sessions/Sleepers.ts"
import { countByBackend } from "../sessions/Sleepers.ts"
import * as Patience from "./Patience.ts"

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
    subscriptions: Schema.Array(Schema.Tuple([Schema.String, Schema.String])),
    /** Of the entry of its back end, when it was opened. */
    entryMark: optionalText
  })
)

/** A session that is awake here. */
interface Owned {
  /** Who has it: a launch, or a process, and one that still ends while the next one starts. The last one to rest gives it up. */
  holders: number
  readonly record: ClientRecord.ClientRecord
  readonly generation: number
  /** How often it was to be written since it has this generation. */
  revision: number
  /** Of the entry of its back end, when it was opened. */
  readonly mark: string | undefined
}

/** What is still to be written: a record, or that there is none any more. */
interface Pending {
  readonly record: ClientRecord.ClientRecord | undefined
  readonly generation: number
  readonly revision: number
  readonly mark: string | undefined
  /** The session is not in the database yet. */
  readonly isNew: boolean
  /** It is removed, and was known here. */
  readonly wasHere?: boolean
}

interface Row {
  readonly record: string
  readonly generation: number
}

const table = "effect_session_pool_sessions"
/** Its one row has when sessions were removed last, by whichever replica. */
const upkeepTable = "effect_session_pool_upkeep"
/** How often it is said at least that the sessions here are still wanted, and asked whether others are to be removed. */
const upkeep = Duration.minutes(1)
/** How long anybody waits for the database; what it has not taken by then is written later. */
const patience = "3 seconds"
/** The record of a session that has been removed, which is of the last generation. */
const removedRecord = ""
/** How long such a row is left: its entry, if that was given up, has come by then, or comes no more. */
const removedExpires = "10 minutes"
const lastGeneration = 2 ** 31 - 1
/** How much may be still to be written before removals of what was not here are dropped. */
const maxPending = 10_000
/** How many sessions a statement names, or removes. */
const batch = 1000

export const migrate = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  Effect.all([
    sql`
      CREATE TABLE IF NOT EXISTS ${sql(table)} (
        key TEXT PRIMARY KEY,
        record TEXT NOT NULL,
        generation INT NOT NULL,
        expires_at TIMESTAMPTZ NOT NULL
      )
    `,
    // Came later. Replicas that know nothing of it leave it as it is, and it begins anew with each generation. Asked for first, for
    // ALTER TABLE waits for all who read the table, a backup for hours, and all others wait for it.
    Effect.flatMap(
      sql`SELECT 1 FROM pg_attribute WHERE attrelid = ${table}::REGCLASS AND attname = 'revision' AND NOT attisdropped`,
      (columns): Effect.Effect<unknown, SqlError.SqlError> =>
        columns.length > 0
          ? Effect.void
          : sql`ALTER TABLE ${sql(table)} ADD COLUMN IF NOT EXISTS revision INT NOT NULL DEFAULT 0`
    ),
    sql`CREATE INDEX IF NOT EXISTS ${sql(`${table}_expires_at`)} ON ${sql(table)} (expires_at)`,
    sql`CREATE TABLE IF NOT EXISTS ${sql(upkeepTable)} (id INT PRIMARY KEY, done_at TIMESTAMPTZ NOT NULL)`
  ], { discard: true }))

/** One function, for what is owned, pending and taken in turn is shared by all of it: read from `sleepers`, at its end. */
export const make = (sql: SqlClient.SqlClient, stateKey: string): Make =>
  Effect.fnUntraced(function*({ asleepTimeToLive, maxAsleep }, lost, entryTextOf) {
    const owned = new Map<Key, Owned>()
    const pending = new Map<Key, Pending>()
    const turns = new Map<Key, { readonly semaphore: Semaphore.Semaphore; users: number }>()
    const seconds = Math.ceil(Math.min(Duration.toSeconds(asleepTimeToLive), maxSeconds))
    const expires = sql`NOW() + ${seconds} * INTERVAL '1 second'`
    const isAsleep = sql`expires_at > NOW() AND record <> ${removedRecord}`
    // At least three times within the time to live, so that no replica removes a session that is awake here as expired.
    const upkeepHere = Duration.min(upkeep, Duration.divideUnsafe(Duration.seconds(seconds), 3))
    const fork = yield* FiberSet.makeRuntime<never, void>()

    /**
     * What is asked of the database for one session is asked one after the other: it has five connections, and on two of them a
     * removal can overtake the entry that it follows, and two requests would each take the session from the other. What is given
     * up is not waited for, and the turn is the next one's: a statement that comes late changes nothing (`takeRow`, `write`).
     */
    const inTurn = <A, E>(key: Key, effect: Effect.Effect<A, E>): Effect.Effect<A, E> =>
      Effect.acquireUseRelease(
        Effect.sync(() => {
          const turn = turns.get(key) ?? { semaphore: Semaphore.makeUnsafe(1), users: 0 }
          turn.users++
          turns.set(key, turn)
          return turn
        }),
        ({ semaphore }) => semaphore.withPermit(Patience.unawaited(effect)),
        (turn) =>
          Effect.sync(() => {
            turn.users--
            if (turn.users === 0) turns.delete(key)
          })
      )

    /** The entry may hold secrets, and whoever reads the database is not to guess them: so a keyed hash of it (HMAC, RFC 2104). */
    const markOf = (key: Key): string | undefined => {
      const entry = entryTextOf(SessionKey.backend(key))
      return entry === undefined
        ? undefined
        : createHmac("sha256", stateKey).update(`entry ${entry}`).digest("base64url")
    }

    /** Bounds a question to the database; whatever goes wrong is `RecordsUnreachable`. */
    const reading = <A, E extends { readonly message: string }>(asked: Effect.Effect<A, E>) =>
      asked.pipe(
        Effect.timeout(patience),
        Effect.tapError((error) => Effect.logWarning(`A sleeping session could not be read: ${error.message}`)),
        Effect.mapError(() => new GatewayErrors.RecordsUnreachable())
      )

    /**
     * The row of a session, which is of the next generation now. Only if it still has the one that was read: a statement that reaches
     * the database after it was given up must not take the session from whoever has taken it since.
     */
    const takeRow: (key: Key) => Effect.Effect<Row | undefined, SqlError.SqlError> = Effect.fnUntraced(function*(key) {
      while (true) {
        const [read] = yield* sql<Pick<Row, "generation">>`
          SELECT generation FROM ${sql(table)} WHERE key = ${key} AND ${isAsleep}
        `
        if (read === undefined) return undefined
        const { generation } = read
        const [taken] = yield* sql<Row>`
          UPDATE ${sql(table)} SET generation = ${generation + 1}, revision = 0, expires_at = ${expires}
          WHERE key = ${key} AND generation = ${generation} AND ${isAsleep} RETURNING record, generation
        `
        if (taken !== undefined) return taken
      }
    })

    /** Finds a session that is awake here, or takes it over from whoever had it. */
    const take = (key: Key) =>
      inTurn(
        key,
        Effect.gen(function*() {
          // Whoever came first has taken it.
          const awake = owned.get(key)
          if (awake !== undefined) {
            awake.holders++
            return Option.some(awake.record)
          }
          // What is still to be written of it is newer than what would be read.
          if (pending.has(key)) yield* write(key)
          const row = yield* takeRow(key)
          if (row === undefined) return Option.none()
          const kept = yield* Schema.decodeEffect(Kept)(row.record)
          const mark = markOf(key)
          if (kept.entryMark !== mark) {
            markRemoved(key, row.generation, true)
            yield* write(key)
            return Option.none()
          }
          const record = revive(kept)
          own(key, { holders: 1, record, generation: row.generation, revision: 0, mark })
          return Option.some(record)
        })
      ).pipe(reading)

    const own = (key: Key, awake: Owned) => {
      owned.set(key, awake)
      awake.record.changed = () => {
        if (owned.get(key) === awake) save(key, awake)
      }
    }

    /** A record is to be written. What has not been entered yet is still to be entered. */
    const save = (key: Key, awake: Owned) => {
      awake.revision++
      pending.set(key, { ...awake, isNew: pending.get(key)?.isNew === true })
    }

    const markRemoved = (key: Key, generation: number, wasHere: boolean) => {
      // As the newest: it may have been removed before.
      pending.delete(key)
      pending.set(key, { record: undefined, generation, revision: 0, mark: undefined, isNew: false, wasHere })
      const dropped = pending.size > maxPending ? oldestUnknown(pending) : undefined
      if (dropped !== undefined) pending.delete(dropped)
    }

    /**
     * Writes what is still to be written of a session. Whatever is written twice, because nobody heard that it was, is the same; and
     * what was given up, and comes after something newer, is of an older revision.
     */
    const write = (key: Key) =>
      Effect.suspend(() => {
        const due = pending.get(key)
        if (due === undefined) return Effect.void
        const { generation, isNew, mark, record, revision, wasHere } = due
        const text = record === undefined ? "" : Schema.encodeSync(Kept)({ ...kept(record), entryMark: mark })
        const statement = record === undefined
          // Generation 0: the session is not awake here, so its row goes whatever its generation. Else only if nobody has taken
          // it over since.
          ? wasHere
            // Not deleted: its entry, if that was given up and comes after this, must find that it was removed.
            ? sql`
              INSERT INTO ${sql(table)} AS old (key, record, generation, expires_at)
              VALUES (${key}, ${removedRecord}, ${lastGeneration}, NOW() + ${removedExpires}::INTERVAL)
              ON CONFLICT (key) DO UPDATE
              SET record = EXCLUDED.record, generation = EXCLUDED.generation, expires_at = EXCLUDED.expires_at
              WHERE ${generation} = 0 OR old.generation <= ${generation} RETURNING key
            `
            // Anybody can have ids removed that there are not: no row is made for them.
            : sql`
              UPDATE ${sql(table)}
              SET record = ${removedRecord}, generation = ${lastGeneration}, expires_at = NOW() + ${removedExpires}::INTERVAL
              WHERE key = ${key} AND record <> ${removedRecord} RETURNING key
            `
          : isNew
          ? sql`
            INSERT INTO ${sql(table)} AS old (key, record, generation, revision, expires_at)
            VALUES (${key}, ${text}, ${generation}, ${revision}, ${expires})
            ON CONFLICT (key) DO UPDATE
            SET record = EXCLUDED.record, revision = EXCLUDED.revision, expires_at = EXCLUDED.expires_at
            WHERE old.generation = EXCLUDED.generation AND old.revision <= EXCLUDED.revision RETURNING key
          `
          : sql`
            UPDATE ${sql(table)} SET record = ${text}, revision = ${revision}, expires_at = ${expires}
            WHERE key = ${key} AND generation = ${generation} AND revision <= ${revision} RETURNING key
          `
        return Effect.map(statement, (rows) => {
          const next = pending.get(key)
          if (next === due) pending.delete(key)
          // It has been entered by now.
          else if (isNew && next !== undefined) pending.set(key, { ...next, isNew: false })
          const awake = owned.get(key)
          if (rows.length === 0 && record !== undefined && awake?.generation === generation) disown(key)
        })
      })

    /** Another replica has taken the session over, or it has expired. Whatever ends it here may itself wait for its turn. */
    const disown = (key: Key) => {
      owned.delete(key)
      pending.delete(key)
      fork(lost(key))
    }

    const writeInTime = (key: Key) => Effect.timeout(inTurn(key, write(key)), patience)
    const writeSoon = (key: Key) => Effect.ignore(writeInTime(key))

    const unreachable = (error: { readonly message: string }) =>
      Effect.logWarning(`The database of sleeping sessions does not answer: ${error.message}`)

    /** The one that could not be written last. */
    let failed: Key | undefined
    // Until one cannot be written: the others could not either if the database is away. They come first the next time, if it is not.
    const writePending = Effect.suspend(() => {
      const keys = [...pending.keys()]
      const next = failed === undefined ? 0 : keys.indexOf(failed) + 1
      return Effect.forEach(
        [...keys.slice(next), ...keys.slice(0, next)],
        (key) =>
          Effect.tapError(writeInTime(key), () =>
            Effect.sync(() => {
              failed = key
            })),
        { discard: true }
      )
    })
    yield* Effect.forkScoped(Effect.repeat(Effect.ignore(writePending), Schedule.spaced("1 second")))
    // Side by side: while many are removed, those that are awake here are still kept.
    for (const each of [keepAwake(sql, { owned, pending, expires, disown }), removeInTurn(sql, maxAsleep)]) {
      yield* Effect.forkScoped(
        Effect.repeat(
          Effect.catch(Effect.timeout(Patience.unawaited(each), upkeepHere), unreachable),
          Schedule.spaced(upkeepHere)
        )
      )
    }

    const sleepers: Sleepers = {
      has: (key) =>
        Effect.suspend(() => {
          const due = pending.get(key)
          if (owned.has(key)) return Effect.succeed(true)
          if (due !== undefined) return Effect.succeed(due.record !== undefined)
          return Effect.map(
            reading(Patience.unawaited(sql`SELECT 1 FROM ${sql(table)} WHERE key = ${key} AND ${isAsleep}`)),
            (rows) => rows.length > 0
          )
        }),
      find: (key) =>
        Effect.suspend(() => {
          const awake = owned.get(key)
          if (awake === undefined) return take(key)
          awake.holders++
          return Effect.succeedSome(awake.record)
        }),
      enter: (key, record) =>
        Effect.suspend(() => {
          const awake = { holders: 1, record, generation: 1, revision: 1, mark: markOf(key) }
          own(key, awake)
          pending.set(key, { ...awake, isNew: true })
          return writeSoon(key)
        }),
      rest: (key, record) =>
        Effect.suspend(() => {
          const awake = owned.get(key)
          if (awake?.record !== record) return Effect.void
          save(key, awake)
          // Found again, it is read again: another replica may have woken it in between.
          if (--awake.holders === 0) owned.delete(key)
          return writeSoon(key)
        }),
      remove: (key) =>
        Effect.suspend(() => {
          const generation = owned.get(key)?.generation ?? 0
          const wasHere = owned.delete(key) || isOfOneHere(pending.get(key))
          markRemoved(key, generation, wasHere)
          return writeSoon(key)
        }),
      isKnown: (key) => Effect.sync(() => owned.has(key) || pending.has(key)),
      keys: Effect.sync(() => [...owned.keys()]),
      counts: Effect.sync(() => countByBackend(owned.keys()))
    }
    return sleepers
  })

/** Whether what is still to be written is of a session that was awake here. */
const isOfOneHere = (due: Pending | undefined): boolean =>
  due !== undefined && (due.record !== undefined || due.wasHere === true)

/**
 * The oldest of the removals of sessions that were not here: of one that sleeps, or of an id that somebody has made up, which cannot be
 * told while the database is away.
 */
const oldestUnknown = (pending: ReadonlyMap<Key, Pending>): Key | undefined => {
  for (const [key, due] of pending) if (!isOfOneHere(due)) return key
  return undefined
}

/** Says of the sessions that are awake here that they are still wanted, and notices which of them others have. */
const keepAwake = Effect.fnUntraced(function*(sql: SqlClient.SqlClient, { disown, expires, owned, pending }: {
  readonly owned: ReadonlyMap<Key, Owned>
  readonly pending: ReadonlyMap<Key, Pending>
  readonly expires: Statement.Fragment
  readonly disown: (key: Key) => void
}) {
  for (const awake of Arr.chunksOf([...owned].filter(([key]) => !pending.has(key)), batch)) {
    const keys = awake.map(([key]) => key)
    const rows = yield* sql<{ readonly key: string; readonly generation: number }>`
      UPDATE ${sql(table)} SET expires_at = ${expires}
      WHERE key IN ${sql.in(keys)} AND record <> ${removedRecord} RETURNING key, generation
    `
    const found = new Map(rows.map(({ generation, key }) => [key, generation]))
    for (const [key, each] of awake) {
      // One that has rested, or changed, meanwhile may have another generation already.
      const isSame = owned.get(key) === each && !pending.has(key)
      if (isSame && found.get(key) !== each.generation) disown(key)
    }
  }
})

/**
 * Removes what has expired and what is beyond the limit, if no replica has done so in the last 55 seconds. Not 60: a replica that is
 * alone asks every 60, and could find itself a moment too early. A time more than a minute in the future was written before
 * the database's clock was set back, and counts as due.
 */
const removeInTurn = Effect.fnUntraced(function*(sql: SqlClient.SqlClient, maxAsleep: number) {
  const isDue = yield* sql`
    INSERT INTO ${sql(upkeepTable)} AS last (id, done_at) VALUES (1, NOW())
    ON CONFLICT (id) DO UPDATE SET done_at = EXCLUDED.done_at
    WHERE last.done_at NOT BETWEEN NOW() - INTERVAL '55 seconds' AND NOW() + INTERVAL '1 minute' RETURNING id
  `
  if (isDue.length === 0) return
  yield* Effect.repeat(removeOldest(sql, sql`WHERE expires_at < NOW()`, batch), {
    while: (removed) => removed === batch
  })
  // The rows of removed sessions are no sessions.
  const sessions = sql`WHERE record <> ${removedRecord}`
  const [row] = yield* sql<{ readonly count: number }>`SELECT COUNT(*)::FLOAT8 AS count FROM ${sql(table)} ${sessions}`
  for (let beyond = (row?.count ?? 0) - maxAsleep; beyond > 0; beyond -= batch) {
    yield* removeOldest(sql, sessions, Math.min(beyond, batch))
  }
})

/**
 * Those that have slept longest, so many, which are found by the index. One that wakes just then expires later already. (With `=`
 * that would be asked of the index too: once for each of those that expire at the same time, of which there may be many.)
 */
const removeOldest = (sql: SqlClient.SqlClient, where: Statement.Fragment, count: number) =>
  Effect.map(
    sql`
      DELETE FROM ${sql(table)} AS asleep
      USING (SELECT key, expires_at FROM ${sql(table)} ${where} ORDER BY expires_at LIMIT ${count}) AS oldest
      WHERE asleep.key = oldest.key AND asleep.expires_at <= oldest.expires_at RETURNING asleep.key
    `,
    ({ length }) => length
  )

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
