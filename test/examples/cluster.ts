/**
 * A counter per user on two runners of a cluster. Each runner takes every request. One of them has the user's connection.
 *
 * Two sockets of this process stand for two machines. A fixture holds the locks that the machines would share in PostgreSQL. Node may
 * warn of 11 listeners: Effect's socket adds three for each write that waits for the connection, and removes them.
 */
import { NodeClusterSocket, NodeRuntime } from "@effect/platform-node"
import { Console, Context, Effect, Exit, Layer, Option, Schedule, Schema, Scope } from "effect"
import * as SessionEntity from "effect-session-pool/cluster"
import { Entity, EntityId, MessageStorage, RunnerAddress, RunnerStorage, Sharding } from "effect/cluster"
import { Rpc } from "effect/rpc"
import { createServer } from "node:net"
import * as SharedLocks from "../fixtures/sharedLocks.ts"

const Counter = Entity.make("Counter", [
  Rpc.make("Add", { success: Schema.Struct({ count: Schema.Number, runner: Schema.String }) })
])

const counterLive = (runner: string) =>
  SessionEntity.toLayer(Counter, {
    lookup: (user) => Effect.acquireRelease(Effect.succeed({ count: 0 }), () => Effect.logDebug(`closed for ${user}`)),
    idleTimeToLive: "10 minutes",
    handlers: (session) => ({
      Add: () => Effect.orDie(session.use((counter) => Effect.sync(() => ({ count: ++counter.count, runner }))))
    })
  })

// With a database: `NodeClusterSocket.layer({ storage: "sql" })`, and no fixture.
const locks = Layer.succeed(RunnerStorage.RunnerStorage, SharedLocks.make())

const engine = (port: number) =>
  NodeClusterSocket.layer({
    storage: "byo",
    shardingConfig: {
      runnerAddress: Option.some(RunnerAddress.make("127.0.0.1", port)),
      refreshAssignmentsInterval: "100 millis"
    }
  }).pipe(Layer.provide([locks, MessageStorage.layerNoop]))

const freePort = Effect.callback<number>((resume) => {
  const server = createServer().listen(0, "127.0.0.1", () => {
    const address = server.address()
    server.close(() => resume(Effect.succeed(address !== null && typeof address === "object" ? address.port : 0)))
  })
})

/** Starts a runner. `add` counts for a user through it, `has` tells whether it has the user's counter. */
const start = Effect.fnUntraced(function*(runner: string) {
  const scope = yield* Scope.fork(yield* Effect.scope)
  const layer = Layer.provideMerge(counterLive(runner), Layer.fresh(engine(yield* freePort)))
  const sharding = Context.get(yield* Layer.buildWithScope(layer, scope), Sharding.Sharding)
  const client = yield* sharding.makeClient(Counter)
  const has = (user: string) => sharding.hasShardId(sharding.getShardId(EntityId.make(user), "default"))
  return { add: (user: string) => client(user).Add(), has, stop: Scope.close(scope, Exit.void) }
})

const users = Array.from({ length: 20 }, (_, i) => `user ${i}`)

export const main = Effect.gen(function*() {
  const first = yield* start("first")
  const second = yield* start("second")
  // Waits until the second runner has got its share of the shards from the first.
  const shared = () => users.some(second.has) && users.every((user) => first.has(user) || second.has(user))
  yield* Effect.repeat(Effect.sync(shared), { until: (done) => done, schedule: Schedule.spaced("20 millis") })
  const one = yield* Effect.forEach(users, first.add, { concurrency: "unbounded" })
  const two = yield* Effect.forEach(users, second.add, { concurrency: "unbounded" })
  yield* first.stop
  const three = yield* Effect.forEach(users, second.add, { concurrency: "unbounded" })
  const moved = users.filter((_, i) => one[i]?.runner === "first")
  return {
    runners: [...new Set(one.map(({ runner }) => runner))].toSorted(),
    counts: [...new Set(two.map(({ count }) => count))],
    // The counters of the first runner start again. The others go on.
    afterwards: three.every(({ count }, i) => count === (moved.includes(users[i] ?? "") ? 1 : 3))
  }
}).pipe(Effect.scoped)

if (import.meta.main) NodeRuntime.runMain(Effect.flatMap(main, Console.log))
