/**
 * The types that users of the pool get, and the uses that the compiler refuses. `npm test` checks the types of this file; it never runs.
 *
 * Each wrong use follows a `@ts-expect-error`, which becomes an error itself when the use compiles.
 */
import type { Config, Duration, Layer, Option, Scope, Stream } from "effect"
import { Context, Effect, FileSystem, Schema } from "effect"
import { type SessionKey, SessionPool } from "effect-session-pool"
import * as SessionEntity from "effect-session-pool/cluster"
import { Entity, type Sharding } from "effect/cluster"
import { Rpc } from "effect/rpc"
import { describe, expectTypeOf, it } from "vitest"

interface Connection {
  readonly query: (sql: string) => Effect.Effect<ReadonlyArray<string>, QueryFailed, Tenant>
}

class Refused extends Schema.TaggedError<Refused>()("Refused", {}) {}
class QueryFailed extends Schema.TaggedError<QueryFailed>()("QueryFailed", {}) {}
class Tenant extends Context.Service<Tenant, string>()("Tenant") {}
class Network extends Context.Service<Network, string>()("Network") {}

declare const open: (user: string) => Effect.Effect<Connection, Refused, Network | Scope.Scope>
declare const pool: SessionPool.SessionPool<string, Connection, Refused>
declare const keyed: SessionPool.SessionPool<SessionKey.SessionKey, string>
declare const connection: Connection

type Pool = SessionPool.SessionPool<string, Connection, Refused>
type PoolError = SessionPool.SessionPoolError
type GetError = Refused | PoolError
type Lease = SessionPool.Lease<string, Connection>
type Info = SessionPool.Info<string>
type Query = ReadonlyArray<string>

describe("make", () => {
  it("make infers key, connection and error from the lookup, and needs the services of lookup and closed", () => {
    expectTypeOf(SessionPool.make({ lookup: open })).toEqualTypeOf<Effect.Effect<Pool, never, Network | Scope.Scope>>()
    const watched = SessionPool.make({ lookup: open, closed: () => Effect.andThen(Tenant, Effect.scope) })
    expectTypeOf(watched).toEqualTypeOf<Effect.Effect<Pool, never, Network | Tenant | Scope.Scope>>()
  })

  it("make gives the functions among its options the types of the lookup", () => {
    SessionPool.make({
      lookup: open,
      idleTimeToLive: (key) => key.length,
      isError: (cause, key) => cause.reasons.length > key.length,
      validate: ({ query }, key) => Effect.isSuccess(Effect.provideService(query(key), Tenant, key)),
      closed: ({ query }, key) => Effect.provideService(query(key), Tenant, key)
    })
  })

  it("make refuses wrong options, and a run without its scope and services", () => {
    // @ts-expect-error: a pool needs a lookup
    SessionPool.make({ capacity: 1 })
    // @ts-expect-error: no such option
    SessionPool.make({ lookup: open, idleTimeout: "1 minute" })
    // @ts-expect-error: no duration
    SessionPool.make({ lookup: open, idleTimeToLive: "one minute" })
    // @ts-expect-error: a count is a number
    SessionPool.make({ lookup: open, capacity: "10" })
    // @ts-expect-error: a promise is no effect
    SessionPool.make({ lookup: (user: string) => Promise.resolve(user) })
    // @ts-expect-error: a failing check returns false
    SessionPool.make({ lookup: open, validate: () => Effect.fail("broken") })
    // @ts-expect-error: a check may need no services
    SessionPool.make({ lookup: open, validate: (connection) => Effect.as(connection.query(""), true) })
    // @ts-expect-error: the pool belongs to a scope
    Effect.runPromise(SessionPool.make({ lookup: (user: string) => Effect.succeed(user) }))
    // @ts-expect-error: the lookup needs a Network
    Effect.runPromise(Effect.scoped(SessionPool.make({ lookup: open })))
  })

  it("config returns options with the types that make takes", () => {
    type Options = Config.Success<ReturnType<typeof SessionPool.config>>
    expectTypeOf<Options["capacity"]>().toEqualTypeOf<number | undefined>()
    expectTypeOf<Options["idleTimeToLive"]>().toEqualTypeOf<Duration.Duration | undefined>()
  })
})

describe("operations", () => {
  it("operations that lease need a scope, and fail with the errors of the lookup and the pool", () => {
    type Leased<A> = Effect.Effect<A, GetError, Scope.Scope>
    expectTypeOf(SessionPool.get(pool, "ada")).toEqualTypeOf<Leased<Connection>>()
    expectTypeOf(pool.pipe(SessionPool.get("ada"))).toEqualTypeOf<Leased<Connection>>()
    expectTypeOf(SessionPool.lease(pool, "ada")).toEqualTypeOf<Leased<Lease>>()
    expectTypeOf(pool.pipe(SessionPool.lease("ada"))).toEqualTypeOf<Leased<Lease>>()
    expectTypeOf(SessionPool.getOption(pool, "ada")).toEqualTypeOf<Leased<Option.Option<Connection>>>()
    expectTypeOf(pool.pipe(SessionPool.getOption("ada"))).toEqualTypeOf<Leased<Option.Option<Connection>>>()
    // @ts-expect-error: keys are strings
    SessionPool.get(pool, 1)
    // @ts-expect-error: a string is no SessionKey, and may have any shape
    SessionPool.get(keyed, "everything/2f6e")
    // @ts-expect-error: keys are strings
    pool.pipe(SessionPool.lease(1))
    // @ts-expect-error: the lease belongs to a scope
    Effect.runPromise(SessionPool.get(pool, "ada"))
  })

  it("catchReason selects one reason of an error", () => {
    expectTypeOf<PoolError["reason"]["_tag"]>().toEqualTypeOf<"CapacityExceeded" | "LookupTimeout" | "PoolClosed">()
    const waited = SessionPool.get(pool, "ada").pipe(
      Effect.catchReason("SessionPoolError", "CapacityExceeded", (reason) => Effect.succeed(reason.waited))
    )
    expectTypeOf(waited).toEqualTypeOf<Effect.Effect<Connection | number, GetError, Scope.Scope>>()
  })

  it("use passes the connection and the lease, and adds the errors and services of its effect, but no scope", () => {
    const used = SessionPool.use(pool, "ada", (connection, lease) => {
      expectTypeOf(connection).toEqualTypeOf<Connection>()
      expectTypeOf(lease).toEqualTypeOf<Lease>()
      return connection.query("SELECT 1")
    })
    expectTypeOf(used).toEqualTypeOf<Effect.Effect<Query, GetError | QueryFailed, Tenant>>()
    expectTypeOf(pool.pipe(SessionPool.use("ada", (it) => it.query("SELECT 1")))).toEqualTypeOf<typeof used>()
    const scoped = SessionPool.use(pool, "ada", () => Effect.scope)
    expectTypeOf<Effect.Services<typeof scoped>>().toEqualTypeOf<Scope.Scope>()
    // @ts-expect-error: a promise would outlive the lease
    SessionPool.use(pool, "ada", () => Promise.resolve(1))
  })

  it("operations that do not lease need no services, and only set can fail", () => {
    expectTypeOf(SessionPool.touch(pool, "ada")).toEqualTypeOf<Effect.Effect<Option.Option<Connection>>>()
    expectTypeOf(pool.pipe(SessionPool.touch("ada"))).toEqualTypeOf<Effect.Effect<Option.Option<Connection>>>()
    expectTypeOf(SessionPool.set(pool, "ada", connection)).toEqualTypeOf<Effect.Effect<void, GetError>>()
    expectTypeOf(pool.pipe(SessionPool.set("ada", connection))).toEqualTypeOf<Effect.Effect<void, GetError>>()
    expectTypeOf(SessionPool.invalidate(pool, "ada")).toEqualTypeOf<Effect.Effect<boolean>>()
    expectTypeOf(pool.pipe(SessionPool.invalidate("ada"))).toEqualTypeOf<Effect.Effect<boolean>>()
    expectTypeOf(SessionPool.invalidateAll(pool)).toEqualTypeOf<Effect.Effect<number>>()
    expectTypeOf(pool.pipe(SessionPool.invalidateAll(() => true))).toEqualTypeOf<Effect.Effect<number>>()
    expectTypeOf(SessionPool.recordError(pool, "ada")).toEqualTypeOf<Effect.Effect<void>>()
    expectTypeOf(SessionPool.sweep(pool)).toEqualTypeOf<Effect.Effect<number>>()
    expectTypeOf(SessionPool.info(pool, "ada")).toEqualTypeOf<Effect.Effect<Option.Option<Info>>>()
    expectTypeOf(SessionPool.entries(pool)).toEqualTypeOf<Effect.Effect<Array<Info>>>()
    expectTypeOf(SessionPool.keys(pool)).toEqualTypeOf<Effect.Effect<Array<string>>>()
    expectTypeOf(SessionPool.size(pool)).toEqualTypeOf<Effect.Effect<number>>()
    expectTypeOf(SessionPool.stats(pool)).toEqualTypeOf<Effect.Effect<SessionPool.Stats>>()
    expectTypeOf(SessionPool.events(pool)).toEqualTypeOf<Stream.Stream<SessionPool.Event<string, GetError>>>()
  })

  it("operations refuse values of other types", () => {
    // @ts-expect-error: no connection
    SessionPool.set(pool, "ada", "connection")
    // @ts-expect-error: no caller would get the failure of a finalizer
    SessionPool.set(pool, "ada", connection, Effect.fail("broken"))
    // @ts-expect-error: no caller would provide the services of a finalizer
    SessionPool.set(pool, "ada", connection, Tenant)
    // @ts-expect-error: a predicate returns a boolean
    SessionPool.invalidateAll(pool, ({ key }) => key)
    // @ts-expect-error: set could add a key of another type
    expectTypeOf<Pool>().toExtend<SessionPool.SessionPool<string | number, Connection, Refused>>()
    // @ts-expect-error: set could add a connection of another type
    expectTypeOf<Pool>().toExtend<SessionPool.SessionPool<string, unknown, Refused>>()
  })
})

describe("Service", () => {
  class Shells extends SessionPool.Service<Shells>()("app/Shells", { lookup: open, capacity: 10 }) {}

  it("a service is a pool with its operations, and its layer needs the services of the lookup", () => {
    expectTypeOf(Shells.layer).toEqualTypeOf<Layer.Layer<Shells, never, Network>>()
    expectTypeOf<Effect.Success<typeof Shells>>().toEqualTypeOf<Pool>()
    expectTypeOf(Shells).toExtend<SessionPool.Accessors<Shells, string, Connection, Refused>>()
    expectTypeOf(Shells.get("ada")).toEqualTypeOf<Effect.Effect<Connection, GetError, Shells | Scope.Scope>>()
    const used = Shells.use(
      "ada",
      (connection, lease: Lease) => Effect.andThen(lease.recordError, connection.query(""))
    )
    expectTypeOf(used).toEqualTypeOf<Effect.Effect<Query, GetError | QueryFailed, Shells | Tenant>>()
    expectTypeOf(Shells.keys).toEqualTypeOf<Effect.Effect<Array<string>, never, Shells>>()
    expectTypeOf(Shells.events).toEqualTypeOf<Stream.Stream<SessionPool.Event<string, GetError>, never, Shells>>()

    // The options are an effect, so the layer needs its services and fails with its errors.
    const make = Effect.gen(function*() {
      const fs = yield* FileSystem.FileSystem
      return { ...(yield* SessionPool.config()), lookup: (path: string) => fs.open(path) }
    })
    class Files extends SessionPool.Service<Files>()("app/Files", make) {}
    expectTypeOf(Files.layer).toEqualTypeOf<Layer.Layer<Files, Config.ConfigError, FileSystem.FileSystem>>()
    expectTypeOf(Files.get("a.txt")).toExtend<Effect.Effect<FileSystem.File, unknown, Files | Scope.Scope>>()
  })

  it("a service refuses wrong uses, and a run without its layer", () => {
    // @ts-expect-error: the class is not named
    SessionPool.Service()("app/Nameless", { lookup: open })
    // @ts-expect-error: the key has no type
    SessionPool.Service<unknown>()("app/Untyped", { lookup: (key) => Effect.succeed(key) })
    // @ts-expect-error: the lookup is missing
    SessionPool.Service<unknown>()("app/Nothing", { capacity: 1 })
    // @ts-expect-error: use needs a key
    Shells.use((shells) => SessionPool.size(shells))
    // @ts-expect-error: no connection
    Shells.set("ada", "connection")
    // @ts-expect-error: the layer is missing
    Effect.runPromise(Shells.stats)
  })
})

describe("SessionEntity", () => {
  const entity = Entity.make("Query", [
    Rpc.make("Run", { payload: { sql: Schema.String }, success: Schema.Array(Schema.String), error: QueryFailed })
  ])

  it("toLayer infers the connection for the handlers, and needs the services of lookup and handlers", () => {
    const layer = SessionEntity.toLayer(entity, {
      lookup: (key) => open(key),
      handlers: (session) => {
        expectTypeOf(session).toEqualTypeOf<SessionEntity.Session<Connection, Refused>>()
        const failed = () => Effect.fail(new QueryFailed())
        const run = (sql: string) =>
          session.use((connection) => connection.query(sql)).pipe(
            Effect.catchTag(["Refused", "SessionPoolError"], failed)
          )
        return { Run: ({ payload }) => run(payload.sql) }
      }
    })
    expectTypeOf(layer).toEqualTypeOf<Layer.Layer<never, never, Network | Tenant | Sharding.Sharding>>()
    SessionEntity.toLayer(entity, {
      lookup: open,
      // @ts-expect-error: the Rpc does not declare the errors of the pool
      handlers: (session) => ({ Run: ({ payload }) => session.use((connection) => connection.query(payload.sql)) })
    })
    // @ts-expect-error: no handler for Run
    SessionEntity.toLayer(entity, { lookup: open, handlers: () => ({}) })
  })
})
