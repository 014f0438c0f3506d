/** What sleeping sessions cost in PostgreSQL, by `StoredSleepers` itself: their rows, the ways in and out, and the upkeep of all. */
import { PgClient } from "@effect/sql-pg"
import { Context, Duration, Effect, Layer } from "effect"
import { SqlClient } from "effect/sql"
import { TestClock } from "effect/testing"
import * as StoredSleepers from "../../../src/gateway/cluster/StoredSleepers.ts"
import { session } from "./counting.ts"
import type { Database, Statement } from "./database.ts"
import { costOf } from "./storage.ts"

export interface Figures {
  readonly rows: number
  /** In the table, and in its index. */
  readonly rowBytes: number
  readonly indexBytes: number
  /** CPU of PostgreSQL in microseconds, of one session that is opened, woken, laid to rest, or said to be still awake. */
  readonly enterMicros: number
  readonly takeMicros: number
  readonly restMicros: number
  readonly keepMicros: number
  /** CPU of PostgreSQL for the count of all rows, with all that is done once a minute in any case. */
  readonly upkeepMicros: number
  /** CPU of PostgreSQL for each session that is removed. */
  readonly removeMicros: number
}

const table = "effect_session_pool_sessions"
const limits = { maxAsleep: 1e9, asleepTimeToLive: Duration.hours(24) }

/** With so many rows, of which so many at a time are moved. */
export const measure = (database: Database, rows: number, some = 1000) =>
  Effect.scoped(Effect.gen(function*() {
    // Before anything waits for a time.
    yield* TestClock.setTime(Date.now())
    const pool = yield* Layer.build(Layer.fresh(PgClient.layer({ url: database.url, maxConnections: 5 })))
    const sql = Context.get(pool, SqlClient.SqlClient)
    yield* Effect.provideContext(StoredSleepers.migrate, pool)
    yield* sql`TRUNCATE ${sql(table)}`
    const open = StoredSleepers.make(sql, "key")(limits, () => Effect.void, () => "entry")
    const sleepers = yield* open
    const fresh = () => Array.from({ length: some }, session)
    /** CPU of PostgreSQL for each. */
    const cost = <E>(
      sessions: ReturnType<typeof fresh>,
      move: (...one: ReturnType<typeof session>) => Effect.Effect<unknown, E>
    ) =>
      Effect.gen(function*() {
        const before = database.cpuMicros()
        yield* Effect.forEach(sessions, (one) => move(...one), { discard: true })
        return (database.cpuMicros() - before) / some
      })
    yield* cost(fresh(), sleepers.enter)
    yield* sent(database, "count")
    yield* grow(database, rows)
    // In this minute all has been removed.
    yield* database.query("UPDATE effect_session_pool_upkeep SET done_at = NOW()")
    yield* database.reset
    const keeping = database.cpuMicros()
    yield* TestClock.adjust("1 minute")
    yield* sent(database, "keep")
    const keepMicros = (database.cpuMicros() - keeping) / some

    const sessions = fresh()
    const enterMicros = yield* cost(sessions, sleepers.enter)
    const restMicros = yield* cost(sessions, sleepers.rest)
    const takeMicros = yield* cost(sessions, sleepers.find)
    yield* database.query(`VACUUM ${table}`)

    // A new one has none of its own to keep, and asks at once whether others are to be removed.
    const upkeep = Effect.all([
      database.query("DELETE FROM effect_session_pool_upkeep"),
      database.reset,
      Effect.scoped(Effect.andThen(open, sent(database, "count")))
    ])
    const look = yield* costOf(database, 1, upkeep)
    const removal = yield* costOf(database, 1, Effect.andThen(expire(database, some), upkeep))
    const figures: Figures = {
      rows: rows + 2 * some,
      ...(yield* sizes(database)),
      enterMicros,
      restMicros,
      takeMicros,
      keepMicros,
      upkeepMicros: look.databaseMicros,
      removeMicros: (removal.databaseMicros - look.databaseMicros) / some
    }
    return figures
  })).pipe(Effect.provide(TestClock.layer({ warningDelay: "1 hour" })))

/** More rows like those that are there, each under a key of its own, which expire at all times of a day. */
const grow = (database: Database, rows: number) =>
  Effect.andThen(
    database.query(`
      INSERT INTO ${table} (key, record, generation, expires_at)
      SELECT '["everything","","' || gen_random_uuid() || '",null]', (SELECT record FROM ${table} LIMIT 1), 1,
        NOW() + INTERVAL '1 minute' + random() * INTERVAL '24 hours'
      FROM generate_series(1, ${rows})
    `),
    database.query(`VACUUM ANALYZE ${table}`)
  )

/** So many of them have expired, wherever they are. */
const expire = (database: Database, count: number) =>
  database.query(`
    UPDATE ${table} SET expires_at = NOW() - random() * INTERVAL '1 minute'
    WHERE key IN (SELECT key FROM ${table} ORDER BY random() LIMIT ${count})
  `)

/** A statement has been answered. */
const sent = (database: Database, statement: Statement) =>
  Effect.repeat(
    Effect.andThen(Effect.promise(() => new Promise((resolve) => setTimeout(resolve, 5))), database.sent),
    { until: (sent) => (sent.get(statement)?.calls ?? 0) > 0 }
  )

const sizes = (database: Database) =>
  Effect.map(
    database.query<{ readonly heap: string; readonly keys: string; readonly rows: string }>(`
      SELECT pg_table_size('${table}') AS heap, pg_indexes_size('${table}') AS keys, count(*) AS rows FROM ${table}
    `),
    ([size]) => ({
      rowBytes: Number(size?.heap) / Number(size?.rows),
      indexBytes: Number(size?.keys) / Number(size?.rows)
    })
  )
