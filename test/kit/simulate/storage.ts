/** What the engine's statements cost, by its own storage, with tables as long as those of so many replicas. */
import { PgClient } from "@effect/sql-pg"
import { Context, Effect, Layer } from "effect"
import type { ShardId } from "effect/cluster"
import { RunnerStorage, ShardingConfig, SqlRunnerStorage } from "effect/cluster"
import * as Shard from "effect/cluster/ShardId"
import { spreadOf } from "../../bench/spread.ts"
import type { Database } from "./database.ts"
import { addresses, groups, runner, shardsPerGroup } from "./ring.ts"

/** CPU of one statement. */
export interface Cost {
  readonly databaseMicros: number
  readonly replicaMicros: number
}

export interface Figures {
  readonly list: Cost
  readonly heartbeat: Cost
  /** A heartbeat together with the refresh of its locks, and how many these are. */
  readonly refresh: Cost
  readonly locks: number
  /** What the list of all replicas has on the wire. */
  readonly listBytes: number
}

/** What it costs to do something so often at a time: the least of five times, because whatever else runs here only adds to it. */
export const costOf = <A, E, R>(database: Database, often: number, effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const costs: Array<Cost> = []
    for (let i = 0; i < 5; i++) {
      const [before, cpu] = [database.cpuMicros(), process.cpuUsage()]
      yield* Effect.repeat(effect, { times: often - 1 })
      const { system, user } = process.cpuUsage(cpu)
      costs.push({
        databaseMicros: (database.cpuMicros() - before) / often,
        replicaMicros: (user + system) / often
      })
    }
    const cost: Cost = {
      databaseMicros: spreadOf(costs.map(({ databaseMicros }) => databaseMicros)).least,
      replicaMicros: spreadOf(costs.map(({ replicaMicros }) => replicaMicros)).least
    }
    return cost
  })

/** Of PostgreSQL's DataRow: its kind, its length, the number of columns, and of each of the two its length; the flag is one byte. */
const rowBytes = 1 + 4 + 2 + 4 + 4 + 1

export const measure = (database: Database, count: number) =>
  Effect.scoped(Effect.gen(function*() {
    const prefix = `of_${count}`
    const pool = PgClient.layer({ url: database.url, maxConnections: 5 })
    const config = ShardingConfig.layer({ shardLockDisableAdvisory: true, shardLockExpiration: "35 seconds" })
    const services = yield* Layer.build(
      Layer.fresh(SqlRunnerStorage.layerWith({ prefix }).pipe(Layer.provide([pool, config])))
    )
    const storage = Context.get(services, RunnerStorage.RunnerStorage)
    const all = addresses(count)
    const [self] = all
    if (self === undefined) return yield* Effect.die("no replica")
    yield* Effect.forEach(all, (address) => storage.register(runner(address), true), { concurrency: 4 })
    // The first has its part, another one the rest.
    const shards = groups.flatMap((group) => Array.from({ length: shardsPerGroup }, (_, i) => Shard.make(group, i + 1)))
    const own: ReadonlyArray<ShardId.ShardId> = shards.slice(0, Math.ceil(shardsPerGroup / count))
    yield* storage.acquire(self, own)
    yield* storage.acquire(all.at(-1) ?? self, shards.slice(own.length))
    const [length] = yield* database.query<{ readonly bytes: number }>(
      `SELECT sum(octet_length(runner) + ${rowBytes})::int AS bytes FROM ${prefix}_runners`
    )
    // The first time is dearer.
    yield* Effect.all([storage.getRunners, storage.refresh(self, own), storage.refresh(self, [])])
    const figures: Figures = {
      list: yield* costOf(database, 10, storage.getRunners),
      heartbeat: yield* costOf(database, 50, storage.refresh(self, [])),
      refresh: yield* costOf(database, 50, storage.refresh(self, own)),
      locks: own.length,
      listBytes: length?.bytes ?? Number.NaN
    }
    return figures
  }))
