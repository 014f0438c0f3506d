/** What replicas say of themselves in the database: who may join, and whose an address is. */
import { PgClient } from "@effect/sql-pg"
import { assert, layer } from "@effect/vitest"
import { Clock, Context, Duration, Effect, Exit, Fiber, Layer, Redacted, Schedule, Scope } from "effect"
import { SqlClient } from "effect/sql"
import * as Roster from "../../src/gateway/cluster/Roster.ts"
import * as Postgres from "../kit/cluster/postgres.ts"
import * as AheadClock from "../kit/gateway/aheadClock.ts"

class Database extends Context.Service<Database, Postgres.Postgres>()("test/Database") {}

const database = Layer.effectDiscard(Roster.migrate).pipe(
  Layer.provideMerge(
    Layer.unwrap(Effect.map(Database, ({ url }) => PgClient.layer({ url: Redacted.make(url) })))
  ),
  Layer.provideMerge(Layer.effect(Database, Postgres.make))
)

const key = "the same key on every one of the replicas"

const enter = (address: string, seconds: number, stateKey = key) =>
  Roster.enter({ address, shardLockExpiration: Duration.seconds(seconds), stateKey })

const addresses = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  Effect.map(
    sql<{ readonly address: string }>`SELECT address FROM effect_session_pool_replicas ORDER BY address`,
    (rows) => rows.map(({ address }) => address)
  ))

/** Moves a replica's last heartbeat back by an hour. */
const longAgo = (address: string) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    sql`
    UPDATE effect_session_pool_replicas SET seen_at = seen_at - INTERVAL '1 hour' WHERE address = ${address}
  `)

const step = "5 minutes"

/** Waits for the replica's next heartbeat. */
const saysAgain = (clock: AheadClock.AheadClock, address: string) =>
  Effect.gen(function*() {
    yield* longAgo(address)
    const sql = yield* SqlClient.SqlClient
    const recent = sql`
      SELECT 1 FROM effect_session_pool_replicas
      WHERE address = ${address} AND seen_at > NOW() - INTERVAL '30 minutes'
    `
    yield* AheadClock.untilAhead(clock, step, "it says so again", recent, ({ length }) => length > 0)
  })

const clear = Effect.flatMap(SqlClient.SqlClient, (sql) => sql`DELETE FROM effect_session_pool_replicas`)

layer(database, { timeout: "30 seconds", excludeTestServices: true })("the roster of replicas", (it) => {
  it.effect("a replica with another lock expiration than a running one is refused, and the error has both values", () =>
    Effect.gen(function*() {
      yield* clear
      yield* enter("one:1", 35)
      const error = yield* Effect.flip(enter("two:1", 20))
      assert.strictEqual(error._tag, "CannotJoin")
      assert.match(error.message, /one:1 runs with --shard-lock-expiration 35 seconds, this one would with 20/)
      assert.deepStrictEqual(yield* addresses, ["one:1"])
      yield* enter("two:1", 35)
    }))

  it.effect("a replica with another key than a running one is refused, and the database has neither key", () =>
    Effect.gen(function*() {
      yield* clear
      const one = yield* enter("one:1", 35)
      const other = "another key, which no other replica has"
      const error = yield* Effect.flip(enter("two:1", 35, other))
      assert.strictEqual(error._tag, "CannotJoin")
      assert.match(error.message, /The replica at one:1 runs with another GATEWAY_STATE_KEY.* stop all of them first/)
      assert.notInclude(error.message, "key, which")
      assert.deepStrictEqual(yield* addresses, ["one:1"])
      const sql = yield* SqlClient.SqlClient
      assert.notInclude(JSON.stringify(yield* sql`SELECT * FROM effect_session_pool_replicas`), key)
      yield* enter("two:1", 35)
      yield* one.remove
      // Its own address does not count, those of others do.
      assert.strictEqual((yield* Effect.flip(enter("one:1", 35, other)))._tag, "CannotJoin")
    }))

  it.effect("a replica may have another lock expiration after the others have left or expired, or at the same address", () =>
    Effect.gen(function*() {
      yield* clear
      const one = yield* enter("one:1", 35)
      yield* one.remove
      assert.deepStrictEqual(yield* addresses, [])
      yield* enter("two:1", 1)
      yield* longAgo("two:1")
      yield* enter("three:1", 20)
      yield* enter("three:1", 30)
    }))

  it.effect("a replica learns that another one has taken its address, and leaves the row to that one", () =>
    Effect.gen(function*() {
      yield* clear
      const clock = AheadClock.make()
      const former = yield* enter("one:1", 3600)
      const told = yield* Effect.forkScoped(Effect.provideService(former.untilTaken, Clock.Clock, clock))
      for (let i = 0; i < 2; i++) yield* saysAgain(clock, "one:1")
      assert.isUndefined(told.pollUnsafe())
      const present = yield* enter("one:1", 3600)
      clock.pass("1 hour")
      yield* Fiber.join(told)
      yield* former.remove
      assert.deepStrictEqual(yield* addresses, ["one:1"])
      const notTold = yield* Effect.forkScoped(Effect.provideService(present.untilTaken, Clock.Clock, clock))
      for (let i = 0; i < 2; i++) yield* saysAgain(clock, "one:1")
      assert.isUndefined(notTold.pollUnsafe())
    }))

  it.effect("a replica keeps its address when the database is away or has lost its row", () =>
    Effect.gen(function*() {
      const { start, stop } = yield* Database
      yield* clear
      const clock = AheadClock.make()
      const scope = yield* Scope.make()
      const one = yield* enter("one:1", 3600)
      const told = yield* Effect.forkIn(Effect.provideService(one.untilTaken, Clock.Clock, clock), scope)
      for (let i = 0; i < 2; i++) yield* saysAgain(clock, "one:1")
      yield* stop
      clock.pass("15 minutes")
      // Its own statement is on its way before this one, and fails as well.
      yield* Effect.flip(addresses)
      yield* start
      yield* Effect.retry(clear, { times: 100, schedule: Schedule.spaced("50 millis") })
      yield* AheadClock.untilAhead(clock, step, "it has entered again", addresses, ({ length }) => length > 0)
      assert.isUndefined(told.pollUnsafe())
      assert.deepStrictEqual(yield* addresses, ["one:1"])
      yield* Scope.close(scope, Exit.void)
    }))
})
