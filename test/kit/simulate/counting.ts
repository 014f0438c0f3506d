/** What real replicas send to a real PostgreSQL in a time: whole engines in this process, on a clock that is moved by hand. */
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
import { shardsPerGroup } from "./ring.ts"

/** The key that these replicas share. */
export const stateKey = "the same on every replica of these"

export const lockExpiration = Duration.seconds(35)

export interface Replica {
  readonly port: number
  readonly sleepers: Sleepers.Sleepers
}

/** Replicas that have joined; time passes for them when `pass` says so. */
export const replicas = (
  database: Database,
  count: number
): Effect.Effect<ReadonlyArray<Replica>, never, Scope.Scope> =>
  Effect.gen(function*() {
    const all: Array<Replica> = []
    for (let i = 0; i < count; i++) {
      const port = yield* Effect.promise(stablePort)
      const address = { host: "127.0.0.1", port }
      const services = yield* Layer.build(Layer.fresh(Layer.orDie(Cluster.layer({
        databaseUrl: database.url,
        address,
        listen: address,
        stateKey,
        shardLockExpiration: lockExpiration,
        leaveDelay: Duration.zero,
        drainTimeout: Duration.zero
      }))))
      const make = Context.get(services, Sleepers.MakeSleepers)
      const limits = { maxAsleep: 10_000_000, asleepTimeToLive: Duration.hours(24) }
      const sleepers = yield* make(limits, () => Effect.void, () => "entry")
      all.push({ port, sleepers })
    }
    return all
  })

/** So short that what the database answers comes before the engine gives up waiting for it. */
const stepMillis = 100

/** Lets seconds pass, in small steps; in each the database answers once, so a busy machine makes them longer. */
export const pass = (database: Database, seconds: number): Effect.Effect<void, SqlError> =>
  Effect.repeat(
    TestClock.adjust(stepMillis).pipe(
      Effect.andThen(Effect.promise(() => new Promise((resolve) => setTimeout(resolve, 1)))),
      Effect.andThen(database.query("SELECT 1 AS pg_stat"))
    ),
    { times: (seconds * 1000) / stepMillis - 1 }
  )

/** How many shards each replica has that has any, by the locks. */
const shares = (database: Database) =>
  Effect.map(
    database.query<{ readonly count: number }>(
      "SELECT count(*)::int FROM effect_session_pool_locks GROUP BY address"
    ),
    (rows) => rows.map(({ count }) => count)
  )

/** A session as a client opens it. */
export const session = (): readonly [Key, ClientRecord.ClientRecord] => {
  const record = ClientRecord.make(Told.requestOf(initializeBody))
  record.initialized = JsonRpc.notification("notifications/initialized")
  return [new Key("everything", "", randomUUID()), record]
}

export interface Counted {
  readonly sent: ReadonlyMap<Statement | "other", Sent>
  /** Of a replica that has nothing to do, to PostgreSQL. */
  readonly connectionsAtRest: number
  /** Who has which shard, by the locks. */
  readonly owners: ReadonlyArray<{ readonly shard: number; readonly address: string }>
  readonly ports: ReadonlyArray<number>
}

/** What so many replicas send in so many seconds, of which the first has so many sessions awake. */
export const count = (database: Database, options: {
  readonly replicas: number
  readonly seconds: number
  readonly awake: number
}): Effect.Effect<Counted, SqlError> =>
  Effect.scoped(Effect.gen(function*() {
    yield* TestClock.setTime(Date.now())
    const all = yield* replicas(database, options.replicas)
    yield* pass(database, 15)
    // On a busy machine it takes longer until one has handed its shards over to another one.
    yield* Effect.repeat(Effect.andThen(pass(database, 5), shares(database)), {
      until: (shares) => shares.length === all.length && Math.min(...shares) >= Math.floor(shardsPerGroup / all.length)
    })
    const [first] = all
    yield* Effect.forEach(
      Array.from({ length: options.awake }, session),
      (each) => first?.sleepers.enter(...each) ?? Effect.void,
      { concurrency: 10, discard: true }
    )
    // Of the times that sessions are removed, one: the database has a clock of its own, on which less time passes.
    yield* database.query("DELETE FROM effect_session_pool_upkeep")
    yield* database.reset
    yield* pass(database, options.seconds)
    const sent = yield* database.sent
    const [connected] = yield* database.query<{ readonly count: number }>(
      "SELECT count(*)::int FROM pg_stat_activity WHERE application_name = 'effect-session-pool'"
    )
    const owners = yield* database.query<{ readonly shard: number; readonly address: string }>(
      "SELECT split_part(shard_id, ':', 2)::int AS shard, address FROM effect_session_pool_locks ORDER BY 1"
    )
    const ports = all.map(({ port }) => port)
    return { sent, owners, ports, connectionsAtRest: (connected?.count ?? 0) / options.replicas }
  })).pipe(Effect.provide(TestClock.layer({ warningDelay: "1 hour" })))
