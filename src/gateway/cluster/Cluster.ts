/**
 * A gateway as one of several replicas: the engine (`effect/cluster`), its storage in PostgreSQL, and the gateway's services that differ
 * from those of a single gateway.
 *
 * The words pinned, movable and shared are defined in `sessions/Placement.ts`.
 *
 * The files:
 *
 * - `ClusterPlacement` decides on which replica a session is opened, and finds it there. `ReplicaName` makes the names of replicas, with
 *   which ids and states begin.
 * - For an ask to another replica, `Protocol` defines the messages, `Links` keeps the connections, and `Forwarding` sends the ask.
 *   On the other replica, `Hosting` has the ask carried out, and `StreamedExchanges` keeps its events. `ReplicaTls` encrypts and
 *   authenticates the connections.
 * - `Homes` asks the engine which replica has a shared id, and remembers the answer.
 * - `Membership` knows the replicas, and until when this replica safely holds its locks. Its `refresh` releases shards during an outage of
 *   the database.
 * - `StoredSleepers` stores the sessions of stateless back ends, asleep and awake. `SleeperTable` has its statements.
 * - `Roster` refuses a replica with another lock expiration or another key, and notices when two replicas have the same address.
 * - `Patience` abandons a statement without waiting for its end.
 *
 * Two replicas never have the same session:
 *
 * - The id of a pinned session contains the name of its replica.
 * - A movable session is served only by the replica that has the engine's entity of its id, and only while that replica safely holds the
 *   lock of its shard (`Hosting.enter`).
 * - The replica releases the lock only after the session's process has ended (`vacate` in `Hosting`, `releases` in `Membership`).
 * - The database refuses a write of a former owner (the generation in `SleeperTable`).
 *
 * To add a message between replicas, add:
 *
 * - an `Rpc` in `Protocol`;
 * - a member of `Placement` that sends it, in `ClusterPlacement` and in `sessions/Placement` (`local`);
 * - a member of `Placement.Host`, which `Gateway.layerConfig` provides and `Hosting` calls.
 *
 * During a rolling restart, replicas of two versions exchange messages. So a new field of a message, or of a stored record, must be
 * optional.
 */
import { PgClient } from "@effect/sql-pg"
import type { Redacted } from "effect"
import { Context, Duration, Effect, Exit, Fiber, Layer, Option, Scope } from "effect"
import {
  MessageStorage,
  RunnerAddress,
  RunnerHealth,
  Runners,
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
import * as Hosting from "./Hosting.ts"
import * as Links from "./Links.ts"
import * as Membership from "./Membership.ts"
import * as MigrationLock from "./MigrationLock.ts"
import * as Protocol from "./Protocol.ts"
import * as ReplicaName from "./ReplicaName.ts"
import * as ReplicaTls from "./ReplicaTls.ts"
import * as Roster from "./Roster.ts"
import * as SleeperTable from "./SleeperTable.ts"
import * as StoredSleepers from "./StoredSleepers.ts"

export interface Options {
  readonly databaseUrl: Redacted.Redacted
  /** The address at which the other replicas reach this one. It must be unique. */
  readonly address: ReplicaTls.Address
  /** The address on which this replica listens for the others. */
  readonly listen: ReplicaTls.Address
  /** The secret that all replicas share. */
  readonly stateKey: string
  /** After this time without a refresh of its locks, a replica has lost its shards. */
  readonly shardLockExpiration: Duration.Duration
  /** How long load balancers get to notice that this replica is about to end. */
  readonly leaveDelay: Duration.Duration
  /** How long running requests get to finish at the end. */
  readonly drainTimeout: Duration.Duration
}

/** How often a replica lists the replicas. After this time, all replicas know of a replica that joined or left. */
const membershipInterval = Duration.seconds(2)

/**
 * How long a replica that leaves may take to hand over its shards. If the database hangs, the engine would wait until its locks expire. By
 * then the replica serves nothing, so it stops waiting. Locks that it did not release expire.
 */
const handOverTimeout = Duration.seconds(15)
/** How long the other replicas may take to notice that this one has left. */
const noticeTimeout = Duration.times(membershipInterval, 1.5)
/** How long the connections of other replicas may take to close. A connection that broke while this replica was frozen never closes. */
const closeTimeout = Duration.seconds(2)

/** Longest hand-over of a replica that leaves, after its running requests have ended. */
export const longestLeave = [ClusterPlacement.leaveTimeout, handOverTimeout, noticeTimeout, closeTimeout].reduce(
  Duration.sum
)

const shardingConfig = ({ address, shardLockExpiration }: Options) =>
  ShardingConfig.layer({
    runnerAddress: Option.some(RunnerAddress.make(address.host, address.port)),
    // Rows that expire, instead of advisory locks: an advisory lock ends with its database session, so at each restart of the database.
    shardLockDisableAdvisory: true,
    shardLockExpiration,
    // More often than every third of the expiration, as the engine would. So after one failed refresh, another one comes in time.
    shardLockRefreshInterval: Duration.divideUnsafe(shardLockExpiration, 3.5),
    refreshAssignmentsInterval: membershipInterval,
    runnerHealthCheckInterval: Duration.seconds(5),
    entityMailboxCapacity: "unbounded",
    maxResidentEntities: "unbounded",
    simulateRemoteSerialization: false
  })

const common = Layer.merge(
  MessageStorage.layerNoop,
  // A message of a back end may be as large as 16 MiB.
  RpcSerialization.layerSchemaBinary({ maxFrameSize: "unbounded" })
)

/** This replica's part in the engine: it owns shards, and knows which replica owns the others. */
const sharding = (key: ReplicaTls.Key) =>
  Sharding.layer.pipe(
    Layer.provide(RunnerHealth.layerPing),
    Layer.provideMerge(Runners.layerRpc),
    Layer.provide(Links.layerEngine(key)),
    Layer.provideMerge(common)
  )

/** Answers messages of the other replicas: those of their engines, and those of `Protocol.Peers`. */
const server = (address: ReplicaTls.Address, key: ReplicaTls.Key, hosting: Hosting.Hosting) =>
  RpcServer.layer(Runners.Rpcs.merge(Protocol.Peers), {
    disableTracing: true,
    disableFatalDefects: true,
    onDisconnect: (client) => hosting.disconnected(client)
  }).pipe(
    Layer.provide([RunnerServer.layerHandlers, Protocol.Peers.toLayer(hosting.handlers)]),
    Layer.provide(RpcServer.layerProtocolSocketServer),
    Layer.provide(ReplicaTls.layerServer(address, key)),
    Layer.provide(common)
  )

/**
 * Creates the tables and enters this replica into the roster, under `MigrationLock`: one replica at a time.
 *
 * All table names begin with `Membership.prefix`. The engine has `_runners`, `_locks` and `_runner_migrations`; `SleeperTable` has
 * `_sessions` and `_upkeep`; `Roster` has `_replicas`.
 */
const enter = (options: Options) =>
  Effect.scoped(Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    const connection = yield* sql.reserve
    yield* MigrationLock.take(connection)
    // First, because it fails with a readable error if the database user may not create tables. The engine's migrations would die.
    yield* SleeperTable.migrate
    yield* Roster.migrate
    yield* Layer.build(SqlRunnerStorage.layerMigrations({ prefix: Membership.prefix }))
    return yield* Roster.enter({
      address: `${options.address.host}:${options.address.port}`,
      shardLockExpiration: options.shardLockExpiration,
      stateKey: options.stateKey
    })
  }))

/** The services of a replica that is in the roster. */
const entered = (options: Options, entry: Roster.Entry) =>
  Layer.effectContext(Effect.gen(function*() {
    const scope = yield* Effect.scope
    const sql = yield* SqlClient.SqlClient
    const membership = yield* Membership.Membership
    yield* Effect.forkScoped(Effect.andThen(
      entry.untilTaken,
      Effect.andThen(
        membership.replace,
        Effect.logError(
          "Another replica with the same --replica-address has taken this replica's place; give each replica an address of its own"
        )
      )
    ))
    // Three parts end one after the other. First the engine: while it hands over its shards, it needs the rest. Then the server: until
    // the other replicas know of the new owners, it answers their asks with `Moved`, so they ask elsewhere. Last everything else, with
    // the scope.
    const serverScope = yield* Scope.fork(scope)
    const shardingScope = yield* Scope.fork(scope)
    const key = ReplicaTls.keyOf(options.stateKey)
    const services = yield* Layer.buildWithScope(sharding(key), shardingScope)
    const replica = ReplicaName.here(yield* ShardingConfig.ShardingConfig)
    const hosting = new Hosting.Hosting(replica, membership, scope)
    yield* Effect.provideContext(Layer.buildWithScope(server(options.listen, key, hosting), serverScope), services)
    const placement = yield* ClusterPlacement.make({
      hosting,
      key,
      leaveDelay: options.leaveDelay,
      movingTimeout: Duration.sum(options.drainTimeout, Duration.seconds(20)),
      disengage: closeWithin(shardingScope, handOverTimeout).pipe(
        Effect.andThen(Effect.sleep(noticeTimeout)),
        Effect.andThen(closeWithin(serverScope, closeTimeout))
      )
    }).pipe(Effect.provideContext(services))
    return Context.make(Placement.Placement, placement).pipe(
      Context.add(Sleepers.MakeSleepers, StoredSleepers.make(sql, options.stateKey))
    )
  })).pipe(
    Layer.provide(Layer.provideMerge(Membership.layer, shardingConfig(options)))
  )

/** The gateway's services that differ when it is one of several replicas. */
export const layer = (options: Options) =>
  enter(options).pipe(
    Effect.tap(({ remove }) => Effect.addFinalizer(() => remove)),
    Effect.map((entry) => entered(options, entry)),
    Layer.unwrap,
    Layer.provide(
      PgClient.layer({ url: options.databaseUrl, applicationName: "effect-session-pool", maxConnections: 5 })
    )
  )

/** Starts to close a scope, and waits for the close for at most `timeout`. */
const closeWithin = (scope: Scope.Closeable, timeout: Duration.Input): Effect.Effect<void> =>
  Effect.flatMap(
    Effect.forkDetach(Scope.close(scope, Exit.void)),
    (closing) => Effect.asVoid(Effect.timeoutOption(Fiber.join(closing), timeout))
  )
