/**
 * A gateway as one of several replicas: the engine, its storage in PostgreSQL, and the services of the gateway that differ
 * from those of one that is alone.
 *
 * What is where:
 *
 * - `ClusterPlacement` decides on which replica a session is opened and found; `ReplicaName` is what ids and states begin with.
 * - A request on its way to another replica: `Protocol` has the messages, `Links` the connections, `Forwarding` sends them, `Hosting`
 *   carries them out there, `StreamedResponses` keeps what is answered piece by piece.
 * - `Homes` knows which replica has which shared id: the engine tells it.
 * - `Membership` knows which replicas there are and until when the shards are safely this one's, and which are given up when the
 *   database is away (`refresh`).
 * - `StoredSleepers` keeps the sessions of stateless back ends: those that sleep, and those that are awake somewhere.
 * - `Roster` refuses a replica whose locks would live for another time, or that has another key, and notices when two have the same
 *   address.
 * - `Patience` gives up what is asked of the database without waiting for the end of it.
 *
 * Why two replicas never have the same session: one that is pinned has the replica's name in its id. One that is movable
 * is served only where the engine's entity of its id is, and while the lock of its shard is safely held (`Hosting.enter`); the lock
 * is given back when nothing lives here any more (`Hosting`, `vacate`; `Membership.keepWhile`); and what a former owner still
 * saves is refused (the generation in `StoredSleepers`).
 *
 * A new message between replicas is:
 *
 * - an `Rpc` in `Protocol`;
 * - a member of `Placement` that sends it, in `ClusterPlacement` and in `sessions/Placement` (`local`);
 * - a member of `Placement.Host`, which `Gateway.layerConfig` gives and `Hosting` calls.
 *
 * While replicas are restarted one by one, those of two versions speak with each other: a new field of a message, or of a stored
 * record, has to be optional.
 */
import * as NodeSocketServer from "@effect/platform-node/NodeSocketServer"
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
import { hkdfSync, timingSafeEqual } from "node:crypto"
import * as Placement from "../sessions/Placement.ts"
import * as Sleepers from "../sessions/Sleepers.ts"
import * as ClusterPlacement from "./ClusterPlacement.ts"
import * as Hosting from "./Hosting.ts"
import * as Links from "./Links.ts"
import * as Membership from "./Membership.ts"
import * as MigrationLock from "./MigrationLock.ts"
import * as Protocol from "./Protocol.ts"
import * as ReplicaName from "./ReplicaName.ts"
import * as Roster from "./Roster.ts"
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
const membershipInterval = Duration.seconds(2)

/**
 * How long a replica that leaves may take to hand its shards over. With a database that hangs the engine would wait for as long as
 * its locks live; nothing is served any more, and what is not given back expires.
 */
const handOverTimeout = Duration.seconds(15)

const shardingConfig = ({ address, shardLockExpiration }: Options) =>
  ShardingConfig.layer({
    runnerAddress: Option.some(RunnerAddress.make(address.host, address.port)),
    // Rows that expire, instead of advisory locks: those end with the database's sessions, and so at each of its restarts.
    shardLockDisableAdvisory: true,
    shardLockExpiration,
    // A little more often than the third that the engine asks for: one that fails is made up for before the lock expires.
    shardLockRefreshInterval: Duration.divideUnsafe(shardLockExpiration, 3.5),
    refreshAssignmentsInterval: membershipInterval,
    runnerHealthCheckInterval: Duration.seconds(5),
    entityMailboxCapacity: "unbounded",
    maxResidentEntities: "unbounded",
    simulateRemoteSerialization: false
  })

const common = Layer.merge(
  MessageStorage.layerNoop,
  // A message of a back end may have 16 MiB.
  RpcSerialization.layerSchemaBinary({ maxFrameSize: "unbounded" })
)

/** Knows where what is, and takes part. */
const sharding = Sharding.layer.pipe(
  Layer.provide(RunnerHealth.layerPing),
  Layer.provideMerge(Runners.layerRpc),
  Layer.provide(Links.layerEngine),
  Layer.provideMerge(common)
)

/** Answers the engines of the other replicas, and what these ask themselves. */
const server = ({ host, port }: Address, hosting: Hosting.Hosting) =>
  RpcServer.layer(Runners.Rpcs.merge(Protocol.Peers), {
    disableTracing: true,
    disableFatalDefects: true,
    onDisconnect: hosting.disconnected
  }).pipe(
    Layer.provide([RunnerServer.layerHandlers, Protocol.Peers.toLayer(hosting.handlers)]),
    Layer.provide(RpcServer.layerProtocolSocketServer),
    Layer.provide(NodeSocketServer.layer({ host, port, noDelay: true })),
    Layer.provide(common)
  )

/**
 * Makes the tables, whoever comes first (`MigrationLock`), and enters this replica. The engine's have `Membership.prefix` before their names: `_runners`, `_locks` and `_runner_migrations`; `_sessions`
 * and `_upkeep` are those of `StoredSleepers`, `_replicas` that of `Roster`.
 */
const enter = (options: Options) =>
  Effect.scoped(Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    const connection = yield* sql.reserve
    yield* MigrationLock.take(connection)
    // First, because it fails where the engine's migrations would die: a user who may create no tables learns it in one sentence.
    yield* StoredSleepers.migrate
    yield* Roster.migrate
    yield* Layer.build(SqlRunnerStorage.layerMigrations({ prefix: Membership.prefix }))
    return yield* Roster.enter({
      address: `${options.address.host}:${options.address.port}`,
      shardLockExpiration: options.shardLockExpiration,
      stateKey: options.stateKey
    })
  }))

/** The services of the gateway that know of other replicas. */
export const layer = (options: Options) =>
  Layer.effectContext(Effect.gen(function*() {
    const scope = yield* Effect.scope
    const sql = yield* SqlClient.SqlClient
    const membership = yield* Membership.Membership
    const entry = yield* Roster.Entry
    yield* Effect.forkScoped(Effect.andThen(
      entry.untilTaken,
      Effect.andThen(
        membership.replace,
        Effect.logError(
          "Another replica has this one's --replica-address and has taken its place: give each an address of its own"
        )
      )
    ))
    // Three ends, one after the other. First the engine's: while it hands its shards over, the rest is still needed. Then that of
    // the server, which still answers when no shard is here any more: whoever does not know yet is told to ask again elsewhere,
    // instead of wondering what has come of its request. Last that of everything else, with the scope.
    const serverScope = yield* Scope.fork(scope)
    const shardingScope = yield* Scope.fork(scope)
    const services = yield* Layer.buildWithScope(sharding, shardingScope)
    const pass = passOf(options.stateKey)
    const { isGivenUp, safeFor } = membership
    const hosting = yield* Hosting.make({
      replica: ReplicaName.here(yield* ShardingConfig.ShardingConfig),
      isOneOfUs: isSame(pass),
      isGivenUp,
      safeFor
    })
    yield* Effect.provideContext(Layer.buildWithScope(server(options.listen, hosting), serverScope), services)
    const placement = yield* ClusterPlacement.make({
      hosting,
      pass,
      leaveDelay: options.leaveDelay,
      movingTimeout: Duration.sum(options.drainTimeout, Duration.seconds(20)),
      disengage: closeWithin(shardingScope, handOverTimeout).pipe(
        Effect.andThen(Effect.sleep(Duration.times(membershipInterval, 1.5))),
        // A connection that nobody has heard of since this replica was frozen is not waited for.
        Effect.andThen(closeWithin(serverScope, "2 seconds"))
      )
    }).pipe(Effect.provideContext(services))
    return Context.make(Placement.Placement, placement).pipe(
      Context.add(Sleepers.MakeSleepers, StoredSleepers.make(sql, options.stateKey))
    )
  })).pipe(
    Layer.provide(Layer.provideMerge(Membership.layer, shardingConfig(options))),
    Layer.provide(
      Layer.effect(Roster.Entry, Effect.tap(enter(options), ({ remove }) => Effect.addFinalizer(() => remove)))
    ),
    Layer.provide(
      PgClient.layer({ url: options.databaseUrl, applicationName: "effect-session-pool", maxConnections: 5 })
    )
  )

/** Closes a scope; whoever waits for it does so no longer than that. */
const closeWithin = (scope: Scope.Closeable, timeout: Duration.Input): Effect.Effect<void> =>
  Effect.flatMap(
    Effect.forkDetach(Scope.close(scope, Exit.void)),
    (closing) => Effect.asVoid(Effect.timeoutOption(Fiber.join(closing), timeout))
  )

/** What replicas show each other: derived from the key that they share (HKDF, RFC 5869). */
const passOf = (stateKey: string): string =>
  Buffer.from(hkdfSync("sha256", stateKey, "", "effect-session-pool replicas", 32)).toString("hex")

const isSame = (pass: string) => {
  const expected = Buffer.from(pass)
  return (given: string): boolean => {
    const bytes = Buffer.from(given)
    return bytes.length === expected.length && timingSafeEqual(bytes, expected)
  }
}
