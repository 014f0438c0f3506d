/** Counts the statements of replicas: whole engines in this process on a test clock, and a real PostgreSQL. */
import type { Scope } from "effect"
import { Context, Duration, Effect, Layer } from "effect"
import type { SqlError } from "effect/sql/SqlError"
import { TestClock } from "effect/testing"
import { randomUUID } from "node:crypto"
import * as Cluster from "../../../src/gateway/cluster/Cluster.ts"
import * as ClientRecord from "../../../src/gateway/conversation/ClientRecord.ts"
import * as JsonRpc from "../../../src/gateway/protocol/JsonRpc.ts"
import { Key } from "../../../src/gateway/sessions/Key.ts"
import * as Sleepers from "../../../src/gateway/sessions/Sleepers.ts"
import { stablePort } from "../cluster/ports.ts"
import { initializeBody } from "../gateway/gateway.ts"
import * as Told from "../gateway/told.ts"
import type { Database, Sent, Statement } from "./database.ts"
import { shardsPerGroup } from "./model.ts"

/** Starts replicas. Returns the sleepers of each. */
const replicas = (
  database: Database,
  count: number
): Effect.Effect<ReadonlyArray<Sleepers.Sleepers>, never, Scope.Scope> =>
  Effect.gen(function*() {
    const all: Array<Sleepers.Sleepers> = []
    for (let i = 0; i < count; i++) {
      const port = yield* Effect.promise(stablePort)
      const address = { host: "127.0.0.1", port }
      const services = yield* Layer.build(Layer.fresh(Layer.orDie(Cluster.layer({
        databaseUrl: database.url,
        address,
        listen: address,
        stateKey: "the key of these replicas",
        shardLockExpiration: Duration.seconds(35),
        leaveDelay: Duration.zero,
        drainTimeout: Duration.zero
      }))))
      const make = Context.get(services, Sleepers.MakeSleepers)
      const limits = { maxAsleep: 10_000_000, asleepTimeToLive: Duration.hours(24) }
      all.push(yield* make(limits, () => Effect.void, () => "entry"))
    }
    return all
  })

/** Short, so that the database answers before the engine's time-outs. */
const stepMillis = 100

/** Advances the clock in small steps. The database answers once in each. */
const pass = (database: Database, seconds: number): Effect.Effect<void, SqlError> =>
  Effect.repeat(
    TestClock.adjust(stepMillis).pipe(
      Effect.andThen(Effect.promise(() => new Promise((resolve) => setTimeout(resolve, 1)))),
      Effect.andThen(database.query("SELECT 1 AS pg_stat"))
    ),
    { times: (seconds * 1000) / stepMillis - 1 }
  )

/** How many locks each replica with a shard has. */
const shares = (database: Database) =>
  Effect.map(
    database.query<{ readonly count: number }>(
      "SELECT count(*)::int FROM effect_session_pool_locks GROUP BY address"
    ),
    (rows) => rows.map(({ count }) => count)
  )

/** A new session. */
export const session = (): readonly [Key, ClientRecord.ClientRecord] => {
  const record = ClientRecord.make(Told.requestOf(initializeBody))
  record.initialized = JsonRpc.notification("notifications/initialized")
  return [new Key("everything", { id: "" }, randomUUID()), record]
}

/** Counts the statements of replicas for some seconds. The first replica has `awake` sessions. */
export const count = (database: Database, options: {
  readonly replicas: number
  readonly seconds: number
  readonly awake: number
}): Effect.Effect<ReadonlyMap<Statement | "other", Sent>, SqlError> =>
  Effect.scoped(Effect.gen(function*() {
    yield* TestClock.setTime(Date.now())
    const all = yield* replicas(database, options.replicas)
    yield* pass(database, 15)
    // On a busy machine, the first replica takes longer to hand over shards.
    yield* Effect.repeat(Effect.andThen(pass(database, 5), shares(database)), {
      until: (shares) => shares.length === all.length && Math.min(...shares) >= Math.floor(shardsPerGroup / all.length)
    })
    const [first] = all
    yield* Effect.forEach(
      Array.from({ length: options.awake }, session),
      (each) => first?.enter(...each) ?? Effect.void,
      { concurrency: 10, discard: true }
    )
    // Makes one upkeep due. The database's own clock hardly advances meanwhile.
    yield* database.query("DELETE FROM effect_session_pool_upkeep")
    yield* database.reset
    yield* pass(database, options.seconds)
    return yield* database.sent
  })).pipe(Effect.provide(TestClock.layer({ warningDelay: "1 hour" })))
