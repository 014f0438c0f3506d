/** The cost of sleeping sessions in PostgreSQL, measured on `StoredSleepers` itself. */
import { PgClient } from "@effect/sql-pg"
import { Context, Duration, Effect, Layer } from "effect"
import { SqlClient } from "effect/sql"
import { TestClock } from "effect/testing"
import * as SleeperTable from "../../../src/gateway/cluster/SleeperTable.ts"
import * as StoredSleepers from "../../../src/gateway/cluster/StoredSleepers.ts"
import { session } from "./counting.ts"
import type { Database, Statement } from "./database.ts"

export interface Figures {
  readonly rows: number
  /** Of the table and its indexes, for one session. */
  readonly rowBytes: number
  /** CPU of PostgreSQL for one session, in microseconds. */
  readonly enterMicros: number
  readonly takeMicros: number
  readonly restMicros: number
  readonly keepMicros: number
  /** CPU of PostgreSQL for the count of all rows, in microseconds. */
  readonly countMicros: number
}

const table = "effect_session_pool_sessions"
const limits = { maxAsleep: 1e9, asleepTimeToLive: Duration.hours(24) }
/** How many sessions are awake while the costs are measured. */
const some = 1000

/** Measures with a table of so many rows. */
export const measure = (database: Database, rows: number) =>
  Effect.scoped(Effect.gen(function*() {
    yield* TestClock.setTime(Date.now())
    const pool = yield* Layer.build(Layer.fresh(PgClient.layer({ url: database.url, maxConnections: 5 })))
    const sql = Context.get(pool, SqlClient.SqlClient)
    yield* Effect.provideContext(SleeperTable.migrate, pool)
    yield* sql`TRUNCATE ${sql(table)}`
    const open = StoredSleepers.make(sql, "key")(limits, () => Effect.void, () => "entry")
    const sleepers = yield* open
    const sessions = Array.from({ length: some }, session)
    const costOf = <E>(move: (...one: ReturnType<typeof session>) => Effect.Effect<unknown, E>) =>
      Effect.map(database.cpuOf(Effect.forEach(sessions, (one) => move(...one))), (micros) => micros / some)
    yield* costOf(sleepers.enter)
    yield* sent(database, "count")
    // Copies of a stored session, which expire in the course of a day.
    yield* database.query(`
      INSERT INTO ${table} (key, record, generation, expires_at)
      SELECT '["everything","","' || gen_random_uuid() || '",null]', (SELECT record FROM ${table} LIMIT 1), 1,
        NOW() + INTERVAL '1 minute' + random() * INTERVAL '24 hours'
      FROM generate_series(1, ${rows})
    `)
    yield* database.query(`VACUUM ANALYZE ${table}`)
    // So that the next upkeep counts no rows.
    yield* database.query("UPDATE effect_session_pool_upkeep SET done_at = NOW()")
    yield* database.reset
    const keepMicros = yield* database.cpuOf(Effect.andThen(TestClock.adjust("1 minute"), sent(database, "keep")))
    const restMicros = yield* costOf(sleepers.rest)
    const takeMicros = yield* costOf(sleepers.take)
    const enterMicros = yield* costOf((_, record) => sleepers.enter(session()[0], record))
    yield* database.query(`VACUUM ${table}`)
    // New sleepers have no session awake, and at once ask whether an upkeep is due.
    const countMicros = yield* database.cost(
      1,
      Effect.all([
        database.query("DELETE FROM effect_session_pool_upkeep"),
        database.reset,
        Effect.scoped(Effect.andThen(open, sent(database, "count")))
      ])
    )
    const [size] = yield* database.query<{ readonly bytes: number }>(
      `SELECT pg_total_relation_size('${table}')::float8 / count(*) AS bytes FROM ${table}`
    )
    return {
      rows: rows + 2 * some,
      rowBytes: size?.bytes ?? Number.NaN,
      enterMicros,
      takeMicros,
      restMicros,
      keepMicros: keepMicros / some,
      countMicros
    }
  })).pipe(Effect.provide(TestClock.layer({ warningDelay: "1 hour" })))

/** Waits until a statement has been answered. */
const sent = (database: Database, statement: Statement) =>
  Effect.repeat(
    Effect.andThen(Effect.promise(() => new Promise((resolve) => setTimeout(resolve, 5))), database.sent),
    { until: (sent) => (sent.get(statement)?.calls ?? 0) > 0 }
  )
