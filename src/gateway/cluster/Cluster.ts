/**
 * A gateway as one of several replicas: the engine, its storage in PostgreSQL, and the services of the gateway that differ
 * from those of one that is alone.
 */
import * as NodeSocketServer from "@effect/platform-node/NodeSocketServer"
import { PgClient } from "@effect/sql-pg"
import type { Redacted } from "effect"
import { Context, Duration, Effect, Exit, Layer, Option, Scope } from "effect"
import { MessageStorage, RunnerAddress, RunnerHealth, RunnerServer, Sharding, ShardingConfig } from "effect/cluster"
import { RpcSerialization, RpcServer } from "effect/rpc"
import { SqlClient } from "effect/sql"
import * as Placement from "../Placement.ts"
import * as Sleepers from "../Sleepers.ts"
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

/** How often replicas look who is there. */
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
    shardLockRefreshInterval: Duration.divideUnsafe(shardLockExpiration, 3.5),
    refreshAssignmentsInterval: lookInterval,
    runnerHealthCheckInterval: Duration.seconds(5),
    entityMailboxCapacity: "unbounded",
    maxResidentEntities: "unbounded",
    simulateRemoteSerialization: false
  })
}

const engine = ({ host, port }: Address) =>
  RunnerServer.layer.pipe(
    Layer.provideMerge(Sharding.layer),
    Layer.provide(RunnerHealth.layerPing),
    Layer.provide(RpcServer.layerProtocolSocketServer),
    Layer.provide(NodeSocketServer.layer({ host, port, noDelay: true })),
    Layer.provide(Delivery.layer),
    Layer.provide(MessageStorage.layerNoop),
    // A message of a back end may have 16 MiB.
    Layer.provide(RpcSerialization.layerSchemaBinary({ maxFrameSize: "unbounded" }))
  )

/** The services of the gateway that know of other replicas. */
export const layer = (options: Options) =>
  Layer.effectContext(Effect.gen(function*() {
    const scope = yield* Effect.scope
    const sql = yield* SqlClient.SqlClient
    yield* Effect.orDie(StoredSleepers.migrate)
    // The engine ends before everything else does: while its shards are handed over, the rest is still needed.
    const engineScope = yield* Scope.fork(scope)
    const services = yield* Layer.buildWithScope(engine(options.listen), engineScope)
    const placement = yield* ClusterPlacement.make({
      stateKey: options.stateKey,
      leaveDelay: options.leaveDelay,
      movingTimeout: Duration.sum(options.drainTimeout, Duration.seconds(20)),
      disengage: Scope.close(engineScope, Exit.void)
    }).pipe(Effect.provideContext(services))
    return Context.make(Placement.Placement, placement).pipe(
      Context.add(Sleepers.Sleepers, StoredSleepers.make(sql))
    )
  })).pipe(
    Layer.provide(Membership.layer),
    Layer.provide(shardingConfig(options)),
    Layer.provide(
      PgClient.layer({ url: options.databaseUrl, applicationName: "effect-session-pool", maxConnections: 5 })
    )
  )
