/** A PostgreSQL that counts its statements, their rows, and its CPU. */
import { PgClient } from "@effect/sql-pg"
import type { Scope } from "effect"
import { Effect, Layer, Redacted } from "effect"
import type { SqlError } from "effect/sql/SqlError"
import { readdirSync, readFileSync } from "node:fs"
import * as Postgres from "../cluster/postgres.ts"

/** The statements of the engine's storage, of `Roster` and of `SleeperTable`. */
const texts = {
  register: /^INSERT INTO \S*_runners/,
  list: /^SELECT runner, healthy FROM/,
  heartbeat: /^UPDATE \S*_runners"? SET last_heartbeat/,
  acquire: /^INSERT INTO \S*_locks|^SELECT shard_id FROM \S*_locks/,
  locks: /^WITH locked AS .* UPDATE \S*_locks"? SET acquired_at/,
  roster: /^UPDATE \S*_replicas"? SET seen_at/,
  /** Enters a session or puts it to sleep. */
  write: /^INSERT INTO \S*_sessions/,
  take: /^UPDATE \S*_sessions"? SET generation/,
  keep: /^UPDATE \S*_sessions"? SET expires_at/,
  due: /^INSERT INTO \S*_upkeep/,
  expire: /^DELETE FROM \S*_sessions"? AS asleep USING \(SELECT key, expires_at FROM \S+ WHERE expires_at/,
  count: /^SELECT COUNT\(\*\)\S* AS count FROM \S*_sessions/
}
export type Statement = keyof typeof texts

export interface Sent {
  readonly calls: number
  readonly rows: number
}

export interface Database {
  readonly url: Redacted.Redacted
  readonly query: <A extends object>(text: string) => Effect.Effect<ReadonlyArray<A>, SqlError>
  /** CPU that PostgreSQL uses for an effect, in microseconds. Leaves out the connection of this observer. */
  readonly cpuOf: <E, R>(effect: Effect.Effect<unknown, E, R>) => Effect.Effect<number, E, R>
  /** The same for one of `times` repetitions: the least of five measurements, because other load only adds to it. */
  readonly cost: <E, R>(times: number, effect: Effect.Effect<unknown, E, R>) => Effect.Effect<number, E, R>
  /** Restarts the count of statements. */
  readonly reset: Effect.Effect<void, SqlError>
  /** The statements since `reset`. `other` counts those that `texts` does not have. */
  readonly sent: Effect.Effect<ReadonlyMap<Statement | "other", Sent>, SqlError>
}

export const make: Effect.Effect<Database, SqlError, Scope.Scope> = Effect.gen(function*() {
  const postgres = yield* Postgres.make
  const url = Redacted.make(postgres.url)
  const connect = Layer.build(Layer.fresh(PgClient.layer({ url, maxConnections: 1, applicationName: "observer" })))
  yield* Effect.scoped(Effect.flatMap(connect, (context) =>
    Effect.provideContext(
      Effect.flatMap(PgClient.PgClient, (sql) =>
        Effect.andThen(
          sql.unsafe("ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'"),
          // The CPU of a parallel worker would be lost with its process.
          sql.unsafe("ALTER SYSTEM SET max_parallel_workers_per_gather = 0")
        )),
      context
    )))
  yield* postgres.stop
  yield* postgres.start
  const sql = yield* Effect.provideContext(Effect.map(PgClient.PgClient, (sql) => sql), yield* connect)
  yield* sql`CREATE EXTENSION pg_stat_statements`
  const [own] = yield* sql<{ readonly pid: number }>`SELECT pg_backend_pid() AS pid`
  const used = cpuMeter(postgres.pid() ?? 0, own?.pid ?? 0)
  const cpuOf: Database["cpuOf"] = (effect) =>
    Effect.suspend(() => {
      const before = used()
      return Effect.map(effect, () => used() - before)
    })
  return {
    url,
    query: <A extends object>(text: string) => sql.unsafe<A>(text),
    cpuOf,
    cost: (times, effect) =>
      Effect.map(
        Effect.replicateEffect(cpuOf(Effect.replicateEffect(effect, times)), 5),
        (all) => Math.min(...all) / times
      ),
    reset: Effect.asVoid(sql`SELECT pg_stat_statements_reset()`),
    sent: Effect.map(
      sql<{ readonly query: string; readonly calls: string; readonly rows: string }>`
        SELECT query, calls, rows FROM pg_stat_statements WHERE query NOT LIKE '%pg_stat%'
      `,
      tally
    )
  }
})

/** Counts statements that differ only in the length of a list as one. */
const tally = (rows: ReadonlyArray<{ readonly query: string; readonly calls: string; readonly rows: string }>) => {
  const sent = new Map<Statement | "other", Sent>()
  for (const row of rows) {
    const statement = statementOf(row.query)
    const { calls, rows } = sent.get(statement) ?? { calls: 0, rows: 0 }
    sent.set(statement, { calls: calls + Number(row.calls), rows: rows + Number(row.rows) })
  }
  return sent
}

const statementOf = (query: string): Statement | "other" => {
  const text = query.replaceAll(/\s+/g, " ").trim()
  for (const statement of statements) if (texts[statement].test(text)) return statement
  return "other"
}

// The keys of a literal that nothing adds to.
const statements = Object.keys(texts) as ReadonlyArray<Statement>

/** CPU of the children of a server, with those that have ended. The kernel counts in nanoseconds. */
const cpuMeter = (server: number, without: number) => {
  const used = new Map<number, number>()
  return () => {
    for (const name of readdirSync("/proc")) {
      const pid = Number(name)
      if (!Number.isInteger(pid) || pid === without) continue
      try {
        const stat = readFileSync(`/proc/${pid}/stat`, "utf8")
        const parent = Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1])
        if (parent !== server) continue
        used.set(pid, Number(readFileSync(`/proc/${pid}/schedstat`, "utf8").split(" ")[0]) / 1000)
      } catch {
        // The process has ended meanwhile.
      }
    }
    return [...used.values()].reduce((sum, each) => sum + each, 0)
  }
}
