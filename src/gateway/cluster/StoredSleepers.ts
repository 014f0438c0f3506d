/**
 * Sleeping sessions in PostgreSQL, so that a session can wake on any replica.
 *
 * A replica that finds a session takes it over: the generation of its row grows, and the database refuses later writes of the former owner.
 * So a replica that was frozen, and does not know that another one took over, overwrites nothing.
 *
 * A reload of the configuration reaches only sessions that are awake. So each row has a mark of its back end's entry, and a session wakes
 * only if the mark still matches the entry.
 */
import { Array as Arr, Duration, Effect, FiberSet, Option, RcMap, Schedule, Schema, Semaphore } from "effect"
import type { SqlError, Statement } from "effect/sql"
import { SqlClient } from "effect/sql"
import { createHmac } from "node:crypto"
import * as ClientRecord from "../conversation/ClientRecord.ts"
import * as GatewayErrors from "../sessions/GatewayErrors.ts"
import type { Key } from "../sessions/Key.ts"
import type { Make, Sleepers } from "../sessions/Sleepers.ts"
import * as Patience from "./Patience.ts"
import * as Protocol from "./Protocol.ts"

/** The stored record of a session, as JSON. Its messages are texts. */
const Kept = Schema.fromJsonString(
  Schema.Struct({
    initialize: Protocol.Request,
    initialized: Schema.optional(Protocol.Message),
    level: Schema.optional(Protocol.Message),
    subscriptions: Schema.Array(Schema.Tuple([Schema.String, Protocol.Message])),
    /** The mark of its back end's entry when the session was opened. */
    entryMark: Schema.optional(Schema.String)
  })
)

/** A session that is awake here. */
interface Owned {
  readonly key: Key
  /**
   * How many launches and processes have the session here. A process that still ends counts while the next one starts. When the last one
   * rests, this replica no longer owns the session.
   */
  holders: number
  readonly record: ClientRecord.ClientRecord
  readonly generation: number
  /** How often the record has changed in this generation. */
  revision: number
  /** The mark of its back end's entry when the session was opened. */
  readonly mark: string | undefined
}

/** A write of a record that is still due. */
interface Save extends Omit<Owned, "holders"> {
  /** The session is not in the database yet. */
  readonly isNew: boolean
}

/** A removal that is still due. */
interface Removal {
  readonly key: Key
  readonly record: undefined
  /** If 0, the session is not awake here, so its row is removed in any generation. Otherwise a newer generation stays. */
  readonly generation: number
  /** The session was awake here. */
  readonly wasHere: boolean
}

type Pending = Save | Removal

interface Row {
  readonly record: string
  readonly generation: number
}

const table = "effect_session_pool_sessions"
/** The table whose one row has the time at which any replica last removed sessions. */
const upkeepTable = "effect_session_pool_upkeep"
/** The longest interval at which a replica extends the rows of its sessions, and checks whether sessions must be removed. */
const upkeep = Duration.minutes(1)
/** How long a request waits for the database. A write that takes longer is retried in the background. */
const patience = "3 seconds"
/** The record of a removed session. Its row has `lastGeneration`, so no older write replaces it. */
const removedRecord = ""
/** How long the row of a removed session stays. A late statement that enters the session arrives within this time, or never. */
const removedExpires = "10 minutes"
const lastGeneration = 2 ** 31 - 1
/** How many writes may be due. Beyond that, the oldest removal of a session that was not awake here is dropped. */
const maxPending = 10_000
/** How many sessions one statement extends or removes. */
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
    // Added in a later version. Older replicas leave the column as it is, and a new generation resets it. Checks for the column first,
    // because ALTER TABLE waits for all readers of the table, such as a backup of hours, and blocks all other statements meanwhile.
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

/** Makes the sleepers. One function, because all parts share `owned`, `pending` and `turns`. Its result, `sleepers`, is at its end. */
export const make = (sql: SqlClient.SqlClient, stateKey: string): Make =>
  Effect.fnUntraced(function*({ asleepTimeToLive, maxAsleep }, lost, entryTextOf) {
    // Each map has the text of a key as its own key.
    const owned = new Map<string, Owned>()
    const pending = new Map<string, Pending>()
    const turns = yield* RcMap.make({ lookup: (_text: string) => Semaphore.make(1) })
    const seconds = Math.ceil(Math.min(Duration.toSeconds(asleepTimeToLive), maxSeconds))
    const expires = sql`NOW() + ${seconds} * INTERVAL '1 second'`
    const isAsleep = sql`expires_at > NOW() AND record <> ${removedRecord}`
    // At least three times per time to live, so that no replica removes a session that is awake here as expired.
    const upkeepHere = Duration.min(upkeep, Duration.divideUnsafe(Duration.seconds(seconds), 3))
    const fork = yield* FiberSet.makeRuntime<never, void>()

    /**
     * Runs the statements of one session one after the other. The pool has five connections. On two of them, a removal could overtake the
     * statement that enters the session, and two requests could each take the session from the other.
     *
     * An abandoned statement does not keep the next one waiting. If it takes effect late, it changes nothing (`takeRow`, `write`).
     */
    const inTurn = <A, E>({ text }: Key, effect: Effect.Effect<A, E>): Effect.Effect<A, E> =>
      Effect.scoped(Effect.flatMap(RcMap.get(turns, text), (turn) => turn.withPermit(Patience.unawaited(effect))))

    /** A keyed hash (HMAC, RFC 2104) of the back end's entry. The entry may hold secrets, which a reader of the database must not guess. */
    const markOf = ({ backend }: Key): string | undefined => {
      const entry = entryTextOf(backend)
      return entry === undefined
        ? undefined
        : createHmac("sha256", stateKey).update(`entry ${entry}`).digest("base64url")
    }

    /** Bounds a read of the database by `patience`. Every failure becomes `RecordsUnreachable`. */
    const reading = <A, E extends { readonly message: string }>(asked: Effect.Effect<A, E>) =>
      asked.pipe(
        Effect.timeout(patience),
        Effect.tapError((error) =>
          Effect.logWarning(`A sleeping session could not be read from the database: ${error.message}`)
        ),
        Effect.mapError(() => GatewayErrors.recordsUnreachable())
      )

    /**
     * Takes a row over: raises its generation and returns it. Updates the row only if it still has the generation that was read. So an
     * abandoned statement that arrives late cannot take the session from a replica that took it over since.
     */
    const takeRow: (key: Key) => Effect.Effect<Row | undefined, SqlError.SqlError> = Effect.fnUntraced(
      function*({ text }) {
        while (true) {
          const [read] = yield* sql<Pick<Row, "generation">>`
          SELECT generation FROM ${sql(table)} WHERE key = ${text} AND ${isAsleep}
        `
          if (read === undefined) return undefined
          const { generation } = read
          const [taken] = yield* sql<Row>`
          UPDATE ${sql(table)} SET generation = ${generation + 1}, revision = 0, expires_at = ${expires}
          WHERE key = ${text} AND generation = ${generation} AND ${isAsleep} RETURNING record, generation
        `
          if (taken !== undefined) return taken
        }
      }
    )

    /** Finds a session that is awake here, or takes it over from the database. */
    const take = (key: Key) =>
      inTurn(
        key,
        Effect.gen(function*() {
          // An earlier request has taken it while this one waited for its turn.
          const awake = owned.get(key.text)
          if (awake !== undefined) {
            awake.holders++
            return Option.some(awake.record)
          }
          // A due write is newer than the row.
          if (pending.has(key.text)) yield* write(key)
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
          own({ key, holders: 1, record, generation: row.generation, revision: 0, mark })
          return Option.some(record)
        })
      ).pipe(reading)

    const own = (awake: Owned) => {
      const { text } = awake.key
      owned.set(text, awake)
      awake.record.changed = () => {
        if (owned.get(text) === awake) save(awake)
      }
    }

    /** Queues a write of a record. If the session is not in the database yet, the write still enters it. */
    const save = (awake: Owned) => {
      const { text } = awake.key
      awake.revision++
      pending.set(text, { ...awake, isNew: isUnstored(pending.get(text)) })
    }

    const markRemoved = (key: Key, generation: number, wasHere: boolean) => {
      // Delete first, so that the removal is the newest entry, also if an earlier one is due.
      pending.delete(key.text)
      pending.set(key.text, { key, record: undefined, generation, wasHere })
      const dropped = pending.size > maxPending ? oldestUnknown(pending) : undefined
      if (dropped !== undefined) pending.delete(dropped)
    }

    /**
     * Runs the due write of a session, if any. Writing twice is harmless, because both writes are the same. A late abandoned write is
     * harmless too: it has an older revision than the row, so it changes nothing.
     */
    const write = (key: Key) =>
      Effect.suspend(() => {
        const due = pending.get(key.text)
        if (due === undefined) return Effect.void
        return Effect.map(statementOf(sql, due, expires), (rows) => {
          const next = pending.get(key.text)
          if (next === due) pending.delete(key.text)
          // The session is in the database now, so the next write need not enter it.
          else if (isUnstored(due) && next?.record !== undefined) pending.set(key.text, { ...next, isNew: false })
          const isLost = rows.length === 0 && due.record !== undefined
          if (isLost && owned.get(key.text)?.generation === due.generation) disown(key)
        })
      })

    /**
     * Ends a session here, because another replica took it over or it expired. `lost` runs in a fiber of its own, because it may itself
     * wait for the turn of this session.
     */
    const disown = (key: Key) => {
      owned.delete(key.text)
      pending.delete(key.text)
      fork(lost(key))
    }

    const writeInTime = (key: Key) => Effect.timeout(inTurn(key, write(key)), patience)
    const writeSoon = (key: Key) => Effect.ignore(writeInTime(key))

    const unreachable = (error: { readonly message: string }) =>
      Effect.logWarning(`The database with the sleeping sessions does not answer: ${error.message}`)

    /** The text of the key whose write began last. */
    let last: string | undefined
    // Stops at the first failure, because the database may be away. The next round starts after that session, so one bad write does not
    // block the others.
    const writePending = Effect.suspend(() => {
      const due = [...pending.values()]
      const next = due.findIndex(({ key }) => key.text === last) + 1
      return Effect.forEach([...due.slice(next), ...due.slice(0, next)], ({ key }) => {
        last = key.text
        return writeInTime(key)
      }, { discard: true })
    })
    yield* Effect.forkScoped(Effect.repeat(Effect.ignore(writePending), Schedule.spaced("1 second")))
    // Two fibers, so that a long removal does not delay the extension of the rows of this replica.
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
          const due = pending.get(key.text)
          if (owned.has(key.text)) return Effect.succeed(true)
          if (due !== undefined) return Effect.succeed(due.record !== undefined)
          return Effect.map(
            reading(Patience.unawaited(sql`SELECT 1 FROM ${sql(table)} WHERE key = ${key.text} AND ${isAsleep}`)),
            (rows) => rows.length > 0
          )
        }),
      find: (key) =>
        Effect.suspend(() => {
          const awake = owned.get(key.text)
          if (awake === undefined) return take(key)
          awake.holders++
          return Effect.succeedSome(awake.record)
        }),
      enter: (key, record) =>
        Effect.suspend(() => {
          const awake = { key, holders: 1, record, generation: 1, revision: 1, mark: markOf(key) }
          own(awake)
          pending.set(key.text, { ...awake, isNew: true })
          return writeSoon(key)
        }),
      rest: (key, record) =>
        Effect.suspend(() => {
          const awake = owned.get(key.text)
          if (awake?.record !== record) return Effect.void
          save(awake)
          // The next `find` reads the row again, because another replica may have woken the session in between.
          if (--awake.holders === 0) owned.delete(key.text)
          return writeSoon(key)
        }),
      remove: (key) =>
        Effect.suspend(() => {
          const generation = owned.get(key.text)?.generation ?? 0
          const wasHere = owned.delete(key.text) || isOfOneHere(pending.get(key.text))
          markRemoved(key, generation, wasHere)
          return writeSoon(key)
        }),
      isKnown: (key) => Effect.sync(() => owned.has(key.text) || pending.has(key.text)),
      keys: Effect.sync(() => [...owned.values()].map(({ key }) => key))
    }
    return sleepers
  })

const isUnstored = (due: Pending | undefined): due is Save => due?.record !== undefined && due.isNew

/** Whether a due write is of a session that was awake here. */
const isOfOneHere = (due: Pending | undefined): boolean =>
  due !== undefined && (due.record !== undefined || due.wasHere)

/** The statement of a due write. It returns the row if it changed one. */
const statementOf = (sql: SqlClient.SqlClient, due: Pending, expires: Statement.Fragment) => {
  const { generation, key: { text } } = due
  if (due.record !== undefined) {
    const { mark, record, revision } = due
    const recordText = textOf(record, mark)
    return due.isNew
      ? sql`
        INSERT INTO ${sql(table)} AS old (key, record, generation, revision, expires_at)
        VALUES (${text}, ${recordText}, ${generation}, ${revision}, ${expires})
        ON CONFLICT (key) DO UPDATE
        SET record = EXCLUDED.record, revision = EXCLUDED.revision, expires_at = EXCLUDED.expires_at
        WHERE old.generation = EXCLUDED.generation AND old.revision <= EXCLUDED.revision RETURNING key
      `
      : sql`
        UPDATE ${sql(table)} SET record = ${recordText}, revision = ${revision}, expires_at = ${expires}
        WHERE key = ${text} AND generation = ${generation} AND revision <= ${revision} RETURNING key
      `
  }
  const removed =
    sql`record = ${removedRecord}, generation = ${lastGeneration}, expires_at = NOW() + ${removedExpires}::INTERVAL`
  return due.wasHere
    // The row stays, marked as removed, so that an abandoned statement that enters the session late cannot enter it again.
    ? sql`
      INSERT INTO ${sql(table)} AS old (key, record, generation, expires_at)
      VALUES (${text}, ${removedRecord}, ${lastGeneration}, NOW() + ${removedExpires}::INTERVAL)
      ON CONFLICT (key) DO UPDATE SET ${removed}
      WHERE ${generation} = 0 OR old.generation <= ${generation} RETURNING key
    `
    // Inserts no row, because any client can ask to remove ids that do not exist.
    : sql`UPDATE ${sql(table)} SET ${removed} WHERE key = ${text} AND record <> ${removedRecord} RETURNING key`
}

/**
 * The oldest due removal of a session that was not awake here. The session may be asleep, or its id may be made up. While the database is
 * away, a replica cannot tell which.
 */
const oldestUnknown = (pending: ReadonlyMap<string, Pending>): string | undefined => {
  for (const [text, due] of pending) if (!isOfOneHere(due)) return text
  return undefined
}

/** Extends the rows of the sessions that are awake here, and ends those that another replica has taken over. */
const keepAwake = Effect.fnUntraced(function*(sql: SqlClient.SqlClient, { disown, expires, owned, pending }: {
  readonly owned: ReadonlyMap<string, Owned>
  readonly pending: ReadonlyMap<string, Pending>
  readonly expires: Statement.Fragment
  readonly disown: (key: Key) => void
}) {
  for (const awake of Arr.chunksOf([...owned].filter(([text]) => !pending.has(text)), batch)) {
    const texts = awake.map(([text]) => text)
    const rows = yield* sql<{ readonly key: string; readonly generation: number }>`
      UPDATE ${sql(table)} SET expires_at = ${expires}
      WHERE key IN ${sql.in(texts)} AND record <> ${removedRecord} RETURNING key, generation
    `
    const found = new Map(rows.map(({ generation, key }) => [key, generation]))
    for (const [text, each] of awake) {
      // Skips a session that has rested or changed meanwhile, because it may have another generation already.
      const isSame = owned.get(text) === each && !pending.has(text)
      if (isSame && found.get(text) !== each.generation) disown(each.key)
    }
  }
})

/**
 * Removes expired sessions and the oldest ones beyond `maxAsleep`, if no replica has done so in the last 55 seconds.
 *
 * Not 60 seconds: a single replica checks every 60 seconds, and could be a moment early. A time more than a minute in the future was
 * written before the database's clock was set back, so it counts as due.
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
  // Rows of removed sessions do not count.
  const sessions = sql`WHERE record <> ${removedRecord}`
  const [row] = yield* sql<{ readonly count: number }>`SELECT COUNT(*)::FLOAT8 AS count FROM ${sql(table)} ${sessions}`
  for (let beyond = (row?.count ?? 0) - maxAsleep; beyond > 0; beyond -= batch) {
    yield* removeOldest(sql, sessions, Math.min(beyond, batch))
  }
})

/**
 * Removes the `count` rows that expire first, which the index finds. Returns how many it removed.
 *
 * A session that wakes meanwhile expires later, so the comparison of `expires_at` spares it. The comparison is `<=`, because for `=`
 * PostgreSQL would search the index once for each of the rows that expire at the same time.
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

/** The longest time to live that PostgreSQL can add to a time. Stands for infinity. */
const maxSeconds = Duration.toSeconds("3650 days")

const textOf = (record: ClientRecord.ClientRecord, entryMark: string | undefined): string =>
  Schema.encodeSync(Kept)({ ...record, subscriptions: [...record.subscriptions], entryMark })

const revive = ({ initialize, initialized, level, subscriptions }: typeof Kept.Type): ClientRecord.ClientRecord => {
  const record = ClientRecord.make(initialize)
  for (const message of [initialized, level, ...subscriptions.map(([, message]) => message)]) {
    if (message !== undefined) ClientRecord.note(record, message)
  }
  return record
}
