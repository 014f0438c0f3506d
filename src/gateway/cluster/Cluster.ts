/**
 * A gateway as one of several replicas: the engine, its storage in PostgreSQL, and the services of the gateway that differ
 * from those of one that is alone.
 *
 * What is where:
 *
 * - `ClusterPlacement` decides on which replica a session is opened and found; `ReplicaName` is what ids and states begin with.
 * - A request on its way to another replica: `Protocol` has the messages, `Asking` sends them, `Hosting` carries them out there,
 *   `Delivery` sees to it that none is carried out twice.
 * - `Membership` knows which replicas there are and until when the shards are safely this one's, and which are given up when the
 *   database is away (`refresh`).
 * - `StoredSleepers` keeps the sessions that can sleep.
 *
 * Why two replicas never have the same session: one that stays with its process has the replica's name in its id. One that can move
 * is served only while the lock of its shard is safely held (`Membership.mayAct`); the lock is given back when nothing lives here
 * any more (`Hosting`, `vacate`); and what a former owner still saves is refused (the generation in `StoredSleepers`).
 *
 * A new message between replicas is an `Rpc` in `Protocol`, sent by a member of `Placement`, here and in `local`, and carried out in
 * `Hosting` by a member of `Placement.Host`, which `Gateway.layerConfig` gives. While replicas are restarted one by one, those of
 * two versions speak with each other: a new field of a message, or of a stored record, has to be optional.
 */
import * as NodeSocketServer from "@effect/platform-node/NodeSocketServer"
import { PgClient } from "@effect/sql-pg"
import type { Redacted } from "effect"
import { Context, Duration, Effect, Exit, Fiber, Layer, Option, Scope } from "effect"
import {
  MessageStorage,
  RunnerAddress,
  RunnerHealth,
  RunnerServer,
  Sharding,
  ShardingConfig,
  SqlRunnerStorage
} from "effect/cluster"
import { RpcSerialization, RpcServer } from "effect/rpc"
import { SqlClient } from "effect/sql"
import * as Placement from "../sessions/Placement.ts"
import * as Sleepers from "../sessions/Sleepers.ts"
import * as ClusterPlacement from "./ClusterPlacement.ts"
import * as Delivery from "./Delivery.ts"
import * as Membership from "./Membership.ts"
import * as ReplicaName from "./ReplicaName.ts"
import * as StoredSleepers from "./StoredSleepers.ts"

export interface Address {
  readonly host: string
  readonly port: number
}

export interface Options {
  readonly databaseUrl: Redacted.Redacted
  /** Where the other replicas reach this one. */
  readonly address: Address
  /** Where it listens for them. */
  readonly listen: Address
  readonly stateKey: string
  /** A replica that does not say that it lives for so long has lost its shards. */
  readonly shardLockExpiration: Duration.Duration
  readonly leaveDelay: Duration.Duration
  readonly drainTimeout: Duration.Duration
}

/** How often replicas look who is there, and so how long it takes until all know of one that comes or leaves. */
const lookInterval = Duration.seconds(2)

const shardingConfig = ({ address, shardLockExpiration }: Options) => {
  const runnerAddress = RunnerAddress.make(address.host, address.port)
  const name = ReplicaName.of(runnerAddress)
  return ShardingConfig.layer({
    runnerAddress: Option.some(runnerAddress),
    availableShardGroups: [ReplicaName.sharedGroup, name],
    assignedShardGroups: [ReplicaName.sharedGroup, name],
    // Rows that expire, instead of advisory locks: those end with the database's sessions, and so at each of its restarts.
    shardLockDisableAdvisory: true,
    shardLockExpiration,
    // A little more often than the third that the engine asks for: one that fails is made up for before the lock expires.
    shardLockRefreshInterval: Duration.divideUnsafe(shardLockExpiration, 3.5),
    refreshAssignmentsInterval: lookInterval,
    runnerHealthCheckInterval: Duration.seconds(5),
    entityMailboxCapacity: "unbounded",
    maxResidentEntities: "unbounded",
    simulateRemoteSerialization: false
  })
}

const common = Layer.merge(
  MessageStorage.layerNoop,
  // A message of a back end may have 16 MiB.
  RpcSerialization.layerSchemaBinary({ maxFrameSize: "unbounded" })
)

/** Knows where what is, and takes part. */
const sharding = Sharding.layer.pipe(
  Layer.provide(RunnerHealth.layerPing),
  Layer.provideMerge(Delivery.layer),
  Layer.provide(common)
)

/** Answers the other replicas. */
const server = ({ host, port }: Address) =>
  RunnerServer.layer.pipe(
    Layer.provide(RpcServer.layerProtocolSocketServer),
    Layer.provide(NodeSocketServer.layer({ host, port, noDelay: true })),
    Layer.provide(common)
  )

/**
 * The tables, whoever comes first: replicas start at the same time, and PostgreSQL's own IF NOT EXISTS races. The engine's have
 * `Membership.prefix` before their names: `_runners`, `_locks` and `_runner_migrations`; `_sessions` is that of `StoredSleepers`.
 */
const migrate = Effect.scoped(Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const connection = yield* sql.reserve
  yield* Effect.acquireRelease(
    connection.executeRaw(`SELECT pg_advisory_lock(${migrationLock})`, []),
    () => Effect.ignore(connection.executeRaw(`SELECT pg_advisory_unlock(${migrationLock})`, []))
  )
  // First, because it fails where the engine's migrations would die: a user who may create no tables learns it in one sentence.
  yield* StoredSleepers.migrate
  yield* Layer.build(SqlRunnerStorage.layerMigrations({ prefix: Membership.prefix }))
}))

/** Any number will do, as long as nothing else in the database locks it. */
const migrationLock = 8420_2026

/** The services of the gateway that know of other replicas. */
export const layer = (options: Options) =>
  Layer.effectContext(Effect.gen(function*() {
    const scope = yield* Effect.scope
    const sql = yield* SqlClient.SqlClient
    // Three ends, one after the other. First the engine's: while it hands its shards over, the rest is still needed. Then that of
    // the server, which still answers when no shard is here any more: whoever does not know yet is told to ask again elsewhere,
    // instead of wondering what has come of its request. Last that of everything else, with the scope.
    const serverScope = yield* Scope.fork(scope)
    const shardingScope = yield* Scope.fork(scope)
    const services = yield* Layer.buildWithScope(sharding, shardingScope)
    yield* Effect.provideContext(Layer.buildWithScope(server(options.listen), serverScope), services)
    const placement = yield* ClusterPlacement.make({
      stateKey: options.stateKey,
      leaveDelay: options.leaveDelay,
      movingTimeout: Duration.sum(options.drainTimeout, Duration.seconds(20)),
      disengage: Scope.close(shardingScope, Exit.void).pipe(
        Effect.andThen(Effect.sleep(Duration.times(lookInterval, 1.5))),
        // A connection that nobody has heard of since this replica was frozen is not waited for.
        Effect.andThen(Effect.forkDetach(Scope.close(serverScope, Exit.void))),
        Effect.flatMap((closing) => Effect.timeoutOption(Fiber.join(closing), "2 seconds")),
        Effect.asVoid
      )
    }).pipe(Effect.provideContext(services))
    return Context.make(Placement.Placement, placement).pipe(
      Context.add(Sleepers.Sleepers, StoredSleepers.make(sql))
    )
  })).pipe(
    Layer.provide(Layer.provideMerge(Membership.layer, shardingConfig(options))),
    Layer.provide(Layer.effectDiscard(migrate)),
    Layer.provide(
      PgClient.layer({ url: options.databaseUrl, applicationName: "effect-session-pool", maxConnections: 5 })
    )
  )
