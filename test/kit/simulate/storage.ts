/** The cost of the engine's statements, with tables as long as those of a cluster of any size. */
import { PgClient } from "@effect/sql-pg"
import { Context, Effect, Layer } from "effect"
import { RunnerStorage, ShardId, ShardingConfig, SqlRunnerStorage } from "effect/cluster"
import type { Database } from "./database.ts"
import { addresses, runner } from "./engine.ts"
import { shardsPerGroup } from "./model.ts"

/** CPU of PostgreSQL for one statement, in microseconds. */
export interface Figures {
  readonly listMicros: number
  readonly heartbeatMicros: number
  /** A heartbeat together with the refresh of the replica's locks. */
  readonly refreshMicros: number
}

export const measure = (database: Database, count: number) =>
  Effect.scoped(Effect.gen(function*() {
    const services = yield* Layer.build(Layer.fresh(
      SqlRunnerStorage.layerWith({ prefix: `of_${count}` }).pipe(Layer.provide([
        PgClient.layer({ url: database.url, maxConnections: 5 }),
        ShardingConfig.layer({ shardLockDisableAdvisory: true, shardLockExpiration: "35 seconds" })
      ]))
    ))
    const storage = Context.get(services, RunnerStorage.RunnerStorage)
    const all = addresses(count)
    yield* Effect.forEach(all, (address) => storage.register(runner(address), true), { concurrency: 4 })
    const [self, other] = addresses(2)
    if (self === undefined || other === undefined) return yield* Effect.die("no replica")
    const shards = Array.from({ length: shardsPerGroup }, (_, i) => ShardId.make("default", i + 1))
    const own = shards.slice(0, Math.ceil(shardsPerGroup / count))
    yield* storage.acquire(self, own)
    yield* storage.acquire(other, shards.slice(own.length))
    // The first run of a statement costs more.
    yield* Effect.all([storage.getRunners, storage.refresh(self, own), storage.refresh(self, [])])
    return {
      listMicros: yield* database.cost(10, storage.getRunners),
      heartbeatMicros: yield* database.cost(50, storage.refresh(self, [])),
      refreshMicros: yield* database.cost(50, storage.refresh(self, own))
    }
  }))
