/**
 * What the compiler infers for users of the pool, and what it refuses. `npm test` has it check this file; nothing here runs.
 *
 * A wrong use stands under `@ts-expect-error`: the day it compiles, that comment is the error.
 */
import type { Cause, Config, Duration, Layer, Option, PlatformError, Scope, Stream } from "effect"
import { Context, Effect, FileSystem, Schema } from "effect"
import { SessionKey, SessionPool } from "effect-session-pool"
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

type Pool = SessionPool.SessionPool<string, Connection, Refused>
type GetError = Refused | SessionPool.AcquireError

describe("make", () => {
  it("infers key, connection and error from the lookup, and asks for what it needs, with a scope of the pool's own", () => {
    expectTypeOf(SessionPool.make({ lookup: open })).toEqualTypeOf<
      Effect.Effect<Pool, never, Network | Scope.Scope>
    >()
  })

  it("needs nothing but a scope where the lookup needs nothing", () => {
    expectTypeOf(SessionPool.make({ lookup: (_: number) => Effect.succeed("connection") })).toEqualTypeOf<
      Effect.Effect<SessionPool.SessionPool<number, string>, never, Scope.Scope>
    >()
  })

  it("gives the callbacks of the options the types of the lookup", () => {
    SessionPool.make({
      lookup: open,
      idleTimeToLive: (key) => {
        expectTypeOf(key).toEqualTypeOf<string>()
        return "1 minute"
      },
      isError: (cause, key) => {
        expectTypeOf(cause).toEqualTypeOf<Cause.Cause<unknown>>()
        expectTypeOf(key).toEqualTypeOf<string>()
        return true
      },
      groupBy: (key) => {
        expectTypeOf(key).toEqualTypeOf<string>()
        return key.length
      },
      validate: (value, key) => {
        expectTypeOf(value).toEqualTypeOf<Connection>()
        expectTypeOf(key).toEqualTypeOf<string>()
        return Effect.succeed(true)
      },
      closed: (value, key) => {
        expectTypeOf(value).toEqualTypeOf<Connection>()
        expectTypeOf(key).toEqualTypeOf<string>()
        return Effect.never
      }
    })
  })

  it("takes a structure or a SessionKey as key", () => {
    const keyed = SessionPool.make({ lookup: (key: SessionKey.SessionKey) => Effect.succeed(SessionKey.backend(key)) })
    expectTypeOf(keyed).toEqualTypeOf<
      Effect.Effect<SessionPool.SessionPool<SessionKey.SessionKey, string>, never, Scope.Scope>
    >()
  })

  it("refuses options that are none", () => {
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
    // @ts-expect-error: a validation that fails must say so with false
    SessionPool.make({ lookup: open, validate: () => Effect.fail("broken") })
    // @ts-expect-error: a validation needs no services: its connection has what it needs
    SessionPool.make({ lookup: open, validate: (connection) => Effect.as(connection.query(""), true) })
  })

  it("cannot be run without a scope, nor without what the lookup needs", () => {
    // @ts-expect-error: the pool belongs to a scope
    Effect.runPromise(SessionPool.make({ lookup: (user: string) => Effect.succeed(user) }))
    // @ts-expect-error: the lookup needs a Network
    Effect.runPromise(Effect.scoped(SessionPool.make({ lookup: open })))
  })
})

describe("config", () => {
  it("has the types of the options, where what is not set is undefined", () => {
    const options = SessionPool.config("SESSIONS")
    type Options = Config.Success<typeof options>
    expectTypeOf<Options["capacity"]>().toEqualTypeOf<number | undefined>()
    expectTypeOf<Options["idleTimeToLive"]>().toEqualTypeOf<Duration.Duration | undefined>()
    expectTypeOf<Options>().toExtend<Omit<SessionPool.Options<string, Connection, Refused, never>, "lookup">>()
    // @ts-expect-error: how to open a connection is not for an operator to say
    expectTypeOf<Options["lookup"]>()
  })
})

describe("get", () => {
  it("leases for a scope, and fails as the lookup or the pool does", () => {
    type Got = Effect.Effect<Connection, GetError, Scope.Scope>
    expectTypeOf(SessionPool.get(pool, "ada")).toEqualTypeOf<Got>()
    expectTypeOf(pool.pipe(SessionPool.get("ada"))).toEqualTypeOf<Got>()
  })

  it("refuses a key of another type, and to run without a scope", () => {
    // @ts-expect-error: keys are strings
    SessionPool.get(pool, 1)
    // @ts-expect-error: keys are strings
    pool.pipe(SessionPool.get(1))
    // @ts-expect-error: the lease belongs to a scope
    Effect.runPromise(SessionPool.get(pool, "ada"))
  })

  it("of a SessionKey takes no plain string", () => {
    const get = (keyed: SessionPool.SessionPool<SessionKey.SessionKey, string>) => {
      // @ts-expect-error: a string may have any shape
      SessionPool.get(keyed, "everything/2f6e")
      return SessionPool.get(keyed, SessionKey.makeUnsafe("everything", "2f6e"))
    }
    expectTypeOf(get).returns.toEqualTypeOf<Effect.Effect<string, SessionPool.AcquireError, Scope.Scope>>()
  })

  it("fails with nothing but errors that can be told apart", () => {
    const handled = Effect.catchTags(SessionPool.get(pool, "ada"), {
      Refused: () => Effect.succeed("refused"),
      CapacityExceeded: ({ limit, scope, waited, waiting }) => Effect.succeed([limit, scope, waited, waiting]),
      LookupTimeout: ({ limit, waited }) => Effect.succeed([limit, waited]),
      PoolClosed: ({ key }) => Effect.succeed(key),
      ValidationFailed: ({ attempts }) => Effect.succeed(attempts)
    })
    expectTypeOf<Effect.Error<typeof handled>>().toEqualTypeOf<never>()
  })
})

describe("getOption and touch", () => {
  it("say whether there is a session; only the first leases and can fail", () => {
    type Got = Effect.Effect<Option.Option<Connection>, GetError, Scope.Scope>
    expectTypeOf(SessionPool.getOption(pool, "ada")).toEqualTypeOf<Got>()
    expectTypeOf(pool.pipe(SessionPool.getOption("ada"))).toEqualTypeOf<Got>()
    expectTypeOf(SessionPool.touch(pool, "ada")).toEqualTypeOf<Effect.Effect<Option.Option<Connection>>>()
    expectTypeOf(pool.pipe(SessionPool.touch("ada"))).toEqualTypeOf<Effect.Effect<Option.Option<Connection>>>()
    // @ts-expect-error: keys are strings
    SessionPool.getOption(pool, 1)
    // @ts-expect-error: keys are strings
    SessionPool.touch(pool, 1)
  })
})

describe("use", () => {
  it("gives the connection, adds the effect's errors and needs, and no scope", () => {
    const used = SessionPool.use(pool, "ada", (connection) => {
      expectTypeOf(connection).toEqualTypeOf<Connection>()
      return connection.query("SELECT 1")
    })
    type Used = Effect.Effect<ReadonlyArray<string>, GetError | QueryFailed, Tenant>
    expectTypeOf(used).toEqualTypeOf<Used>()
    expectTypeOf(pool.pipe(SessionPool.use("ada", (connection) => connection.query("SELECT 1")))).toEqualTypeOf<Used>()
  })

  it("keeps a scope that the effect itself asks for", () => {
    const used = SessionPool.use(pool, "ada", () => Effect.scope)
    expectTypeOf<Effect.Services<typeof used>>().toEqualTypeOf<Scope.Scope>()
  })

  it("refuses what is no effect", () => {
    // @ts-expect-error: the lease ends with the effect, and a promise goes on
    SessionPool.use(pool, "ada", () => Promise.resolve(1))
    // @ts-expect-error: keys are strings
    SessionPool.use(pool, 1, () => Effect.void)
  })
})

describe("set", () => {
  it("takes the pool's key and connection, and a finalizer that needs nothing and cannot fail", () => {
    const connection: Connection = { query: () => Effect.succeed([]) }
    expectTypeOf(SessionPool.set(pool, "ada", connection)).toEqualTypeOf<Effect.Effect<void, GetError>>()
    expectTypeOf(pool.pipe(SessionPool.set("ada", connection, Effect.void))).toEqualTypeOf<
      Effect.Effect<void, GetError>
    >()
    // @ts-expect-error: no connection
    SessionPool.set(pool, "ada", "connection")
    // @ts-expect-error: no connection
    pool.pipe(SessionPool.set("ada", "connection"))
    // @ts-expect-error: nobody is there to hear of a failure
    SessionPool.set(pool, "ada", connection, Effect.fail("broken"))
    // @ts-expect-error: nobody is there to provide it
    SessionPool.set(pool, "ada", connection, Tenant)
  })
})

describe("what retires and what shows", () => {
  it("cannot fail and needs nothing", () => {
    expectTypeOf(SessionPool.invalidate(pool, "ada")).toEqualTypeOf<Effect.Effect<boolean>>()
    expectTypeOf(pool.pipe(SessionPool.invalidate("ada"))).toEqualTypeOf<Effect.Effect<boolean>>()
    expectTypeOf(SessionPool.recordError(pool, "ada")).toEqualTypeOf<Effect.Effect<void>>()
    expectTypeOf(pool.pipe(SessionPool.recordError("ada"))).toEqualTypeOf<Effect.Effect<void>>()
    expectTypeOf(SessionPool.invalidateAll(pool)).toEqualTypeOf<Effect.Effect<number>>()
    expectTypeOf(pool.pipe(SessionPool.invalidateAll(() => true))).toEqualTypeOf<Effect.Effect<number>>()
    expectTypeOf(SessionPool.sweep(pool)).toEqualTypeOf<Effect.Effect<number>>()
    expectTypeOf(SessionPool.info(pool, "ada")).toEqualTypeOf<Effect.Effect<Option.Option<SessionPool.Info<string>>>>()
    expectTypeOf(pool.pipe(SessionPool.info("ada"))).toEqualTypeOf<
      Effect.Effect<Option.Option<SessionPool.Info<string>>>
    >()
    expectTypeOf(SessionPool.entries(pool)).toEqualTypeOf<Effect.Effect<Array<SessionPool.Info<string>>>>()
    expectTypeOf(SessionPool.keys(pool)).toEqualTypeOf<Effect.Effect<Array<string>>>()
    expectTypeOf(SessionPool.size(pool)).toEqualTypeOf<Effect.Effect<number>>()
    expectTypeOf(SessionPool.stats(pool)).toEqualTypeOf<Effect.Effect<SessionPool.Stats>>()
    expectTypeOf(SessionPool.events(pool)).toEqualTypeOf<Stream.Stream<SessionPool.Event<string, GetError>>>()
    // @ts-expect-error: keys are strings
    SessionPool.invalidate(pool, 1)
    // @ts-expect-error: keys are strings
    SessionPool.info(pool, 1)
  })

  it("gives a predicate the key's type", () => {
    const isAda = ({ key }: SessionPool.Info<string>) => key === "ada"
    SessionPool.invalidateAll(pool, ({ key }) => key.startsWith("ada"))
    pool.pipe(SessionPool.invalidateAll(isAda))
    // @ts-expect-error: a predicate returns a boolean
    SessionPool.invalidateAll(pool, ({ key }) => key)
  })

  it("is read-only", () => {
    const change = (info: SessionPool.Info<string>, stats: SessionPool.Stats) => {
      // @ts-expect-error: a snapshot
      info.leases = 0
      // @ts-expect-error: a snapshot
      stats.closes.Evicted = 0
    }
    expectTypeOf(change).toBeFunction()
  })

  it("names every reason of a close", () => {
    expectTypeOf<keyof SessionPool.Stats["closes"]>().toEqualTypeOf<SessionPool.Reason>()
    expectTypeOf<Extract<SessionPool.Event<string, Refused>, { _tag: "Retired" }>["reason"]>().toEqualTypeOf<
      SessionPool.Reason
    >()
  })
})

describe("a pool", () => {
  it("is no pool of other keys, connections or errors", () => {
    // @ts-expect-error: set could put a key of another type into it
    expectTypeOf<Pool>().toExtend<SessionPool.SessionPool<string | number, Connection, Refused>>()
    // @ts-expect-error: set could put something else into it
    expectTypeOf<Pool>().toExtend<SessionPool.SessionPool<string, unknown, Refused>>()
  })

  it("is told from any other value", () => {
    const value: unknown = pool
    if (!SessionPool.isSessionPool(value)) return
    expectTypeOf(value).toEqualTypeOf<SessionPool.SessionPool<unknown, unknown, unknown>>()
  })
})

describe("Service", () => {
  class Shells extends SessionPool.Service<Shells>()("app/Shells", { lookup: open, capacity: 10 }) {}

  it("has a layer that asks for what the lookup needs", () => {
    expectTypeOf(Shells.layer).toEqualTypeOf<Layer.Layer<Shells, never, Network>>()
    expectTypeOf(Shells.key).toEqualTypeOf<"app/Shells">()
  })

  it("is a pool", () => {
    const service = Effect.gen(function*() {
      return yield* Shells
    })
    expectTypeOf(service).toEqualTypeOf<Effect.Effect<Pool, never, Shells>>()
  })

  it("has the functions of the pool, which ask for the service", () => {
    expectTypeOf(Shells.get("ada")).toEqualTypeOf<Effect.Effect<Connection, GetError, Shells | Scope.Scope>>()
    expectTypeOf(Shells.getOption("ada")).toEqualTypeOf<
      Effect.Effect<Option.Option<Connection>, GetError, Shells | Scope.Scope>
    >()
    expectTypeOf(Shells.touch("ada")).toEqualTypeOf<Effect.Effect<Option.Option<Connection>, never, Shells>>()
    expectTypeOf(Shells.invalidate("ada")).toEqualTypeOf<Effect.Effect<boolean, never, Shells>>()
    expectTypeOf(Shells.invalidateAll(({ key }) => key === "ada")).toEqualTypeOf<Effect.Effect<number, never, Shells>>()
    expectTypeOf(Shells.recordError("ada")).toEqualTypeOf<Effect.Effect<void, never, Shells>>()
    expectTypeOf(Shells.info("ada")).toEqualTypeOf<
      Effect.Effect<Option.Option<SessionPool.Info<string>>, never, Shells>
    >()
    expectTypeOf(Shells.stats).toEqualTypeOf<Effect.Effect<SessionPool.Stats, never, Shells>>()
  })

  it("has use with a key, and use of every service class", () => {
    const used = Shells.use("ada", (connection) => connection.query("SELECT 1"))
    expectTypeOf(used).toEqualTypeOf<
      Effect.Effect<ReadonlyArray<string>, GetError | QueryFailed, Shells | Tenant>
    >()
    expectTypeOf(Shells.use((shells) => SessionPool.size(shells))).toEqualTypeOf<Effect.Effect<number, never, Shells>>()
  })

  it("refuses what the pool refuses, and to run without its layer", () => {
    // @ts-expect-error: keys are strings
    Shells.get(1)
    // @ts-expect-error: no connection
    Shells.set("ada", "connection")
    // @ts-expect-error: the layer is missing
    Effect.runPromise(Shells.stats)
    // @ts-expect-error: a service needs a lookup too
    SessionPool.Service<unknown>()("app/Nothing", { capacity: 1 })
  })

  it("whose options are an effect asks for what that needs, and fails as it does", () => {
    class Files extends SessionPool.Service<Files>()(
      "app/Files",
      Effect.gen(function*() {
        const fs = yield* FileSystem.FileSystem
        const options = yield* SessionPool.config()
        const validate = (file: FileSystem.File) => Effect.isSuccess(file.stat)
        return { ...options, validate, lookup: (path: string) => fs.open(path) }
      })
    ) {}
    expectTypeOf(Files.layer).toEqualTypeOf<
      Layer.Layer<Files, Config.ConfigError, FileSystem.FileSystem>
    >()
    expectTypeOf(Files.get("a.txt")).toEqualTypeOf<
      Effect.Effect<FileSystem.File, PlatformError.PlatformError | SessionPool.AcquireError, Files | Scope.Scope>
    >()
  })
})

describe("SessionKey", () => {
  it("is a string, and no string is one", () => {
    expectTypeOf<SessionKey.SessionKey>().toExtend<string>()
    expectTypeOf(SessionKey.make("a", "b")).toEqualTypeOf<
      Effect.Effect<SessionKey.SessionKey, SessionKey.InvalidSessionKey>
    >()
    expectTypeOf(SessionKey.schema.Type).toEqualTypeOf<SessionKey.SessionKey>()
    // @ts-expect-error: a string may have any shape
    SessionKey.backend("everything/2f6e")
  })
})

describe("SessionEntity", () => {
  const Query = Entity.make("Query", [
    Rpc.make("Run", { payload: { sql: Schema.String }, success: Schema.Array(Schema.String), error: QueryFailed })
  ])

  it("infers the connection for the handlers, and asks for what the lookup and the handlers need", () => {
    const layer = SessionEntity.toLayer(Query, {
      lookup: (key) => open(key),
      handlers: (session) => {
        expectTypeOf(session).toEqualTypeOf<SessionEntity.Session<Connection, Refused>>()
        return {
          Run: ({ payload }) =>
            session.use((connection) => connection.query(payload.sql)).pipe(
              Effect.catchTag(
                ["Refused", "CapacityExceeded", "LookupTimeout", "PoolClosed", "ValidationFailed"],
                () => Effect.fail(new QueryFailed())
              )
            )
        }
      }
    })
    expectTypeOf(layer).toEqualTypeOf<Layer.Layer<never, never, Network | Tenant | Sharding.Sharding>>()
  })

  it("refuses errors that the Rpc does not tell, and handlers that are missing", () => {
    SessionEntity.toLayer(Query, {
      lookup: open,
      // @ts-expect-error: the errors of the pool are not the Rpc's
      handlers: (session) => ({ Run: ({ payload }) => session.use((connection) => connection.query(payload.sql)) })
    })
    // @ts-expect-error: no handler for Run
    SessionEntity.toLayer(Query, { lookup: open, handlers: () => ({}) })
  })
})
