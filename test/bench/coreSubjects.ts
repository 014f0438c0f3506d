/**
 * The subjects of the library's benchmark: `SessionPool`, its peers, and the floors of its design. Each subject is filled with sessions, and
 * then offers operations. An operation does the same work in every subject.
 */
import { Context, Data, Effect, Layer, LayerMap, Pool, RcMap, Scope, ScopedCache } from "effect"
import { createRequire } from "node:module"
import { SessionKey, SessionPool } from "../../src/index.ts"
import { bareEviction, bareShape, bareSweep, hashMap } from "./coreLimits.ts"
import type { Connection, MakeSubject, Operation, Subject } from "./coreOperations.ts"
import {
  backend,
  connection,
  effect,
  idleTimeToLive,
  keyOf,
  overlapping,
  session,
  sweptTimeToLive,
  work
} from "./coreOperations.ts"

class StructuredKey extends Data.Class<{ readonly backend: string; readonly session: string }> {}

const sessionPool = (options: SessionPool.OperatorOptions = {}): MakeSubject =>
  Effect.fnUntraced(function*(keys) {
    const lookup = (_: string) => Effect.succeed(connection)
    const pool = yield* SessionPool.make({ lookup, idleTimeToLive, ...options })
    const key = (i: number) => keys[i] ?? keyOf(i)
    const get = effect((i) => Effect.scoped(SessionPool.get(pool, key(i))))
    return {
      fill: get,
      operations: {
        touch: effect((i) => SessionPool.touch(pool, key(i))),
        use: effect((i) => SessionPool.use(pool, key(i), work)),
        get,
        absent: effect((i) => SessionPool.touch(pool, absentKey(key(i)))),
        structured: effect((i) => SessionPool.use(pool, SessionKey.makeUnsafe(backend, session(i)), work)),
        overlapping: effect((i) => SessionPool.use(pool, key(i), overlapping)),
        launch: get
      },
      forget: (i) => SessionPool.invalidate(pool, key(i))
    }
  })

const absentKey = (key: string) => `x${key.slice(1)}`

const rcMap: MakeSubject = Effect.fnUntraced(function*(keys) {
  const map = yield* RcMap.make({ lookup: (_: string) => Effect.succeed(connection), idleTimeToLive })
  const key = (i: number) => keys[i] ?? keyOf(i)
  const get = effect((i) => Effect.scoped(RcMap.get(map, key(i))))
  return {
    fill: get,
    operations: {
      touch: get,
      use: effect((i) => Effect.scoped(Effect.flatMap(RcMap.get(map, key(i)), work))),
      get,
      absent: effect((i) => Effect.scoped(RcMap.getOption(map, absentKey(key(i))))),
      overlapping: effect((i) => Effect.scoped(Effect.flatMap(RcMap.get(map, key(i)), overlapping))),
      launch: get
    },
    forget: (i) => RcMap.invalidate(map, key(i))
  }
})

/** `RcMap` with a structured key made anew for each call. */
const rcMapStructured: MakeSubject = Effect.fnUntraced(function*() {
  const map = yield* RcMap.make({ lookup: (_: StructuredKey) => Effect.succeed(connection), idleTimeToLive })
  const key = (i: number) => new StructuredKey({ backend, session: session(i) })
  return {
    fill: effect((i) => Effect.scoped(RcMap.get(map, key(i)))),
    operations: { structured: effect((i) => Effect.scoped(Effect.flatMap(RcMap.get(map, key(i)), work))) }
  }
})

const scopedCache: MakeSubject = Effect.fnUntraced(function*(keys) {
  const cache = yield* ScopedCache.make({
    lookup: (_: string) => Effect.succeed(connection),
    capacity: Infinity,
    timeToLive: idleTimeToLive
  })
  const key = (i: number) => keys[i] ?? keyOf(i)
  const get = effect((i) => ScopedCache.get(cache, key(i)))
  return {
    fill: get,
    operations: {
      touch: get,
      use: effect((i) => Effect.flatMap(ScopedCache.get(cache, key(i)), work)),
      get,
      launch: get
    },
    forget: (i) => ScopedCache.invalidate(cache, key(i))
  }
})

class Connected extends Context.Service<Connected, Connection>()("bench/Connected") {}

const layerMap: MakeSubject = Effect.fnUntraced(function*(keys) {
  const map = yield* LayerMap.make((_: string) => Layer.succeed(Connected, connection), { idleTimeToLive })
  const key = (i: number) => keys[i] ?? keyOf(i)
  const context = (i: number) => map.contextEffect(key(i))
  return {
    fill: effect((i) => Effect.scoped(context(i))),
    operations: {
      use: effect((i) =>
        Effect.scoped(Effect.flatMap(context(i), (services) => work(Context.get(services, Connected))))
      ),
      get: effect((i) => Effect.scoped(context(i))),
      launch: effect((i) => Effect.scoped(context(i)))
    },
    forget: (i) => map.invalidate(key(i))
  }
})

/** `Pool` has no keys, so a `Map` holds a pool of one item per key. */
const poolPerKey: MakeSubject = Effect.fnUntraced(function*(keys) {
  const scope = yield* Effect.scope
  const pools = new Map<string, Pool.Pool<Connection>>()
  const key = (i: number) => keys[i] ?? keyOf(i)
  const poolOf = (i: number) => {
    const found = pools.get(key(i))
    return found !== undefined
      ? Effect.succeed(found)
      : Effect.tap(
        Scope.provide(Pool.make({ acquire: Effect.succeed(connection), size: 1, concurrency: Infinity }), scope),
        (pool) => Effect.sync(() => pools.set(key(i), pool))
      )
  }
  return {
    fill: effect((i) => Effect.flatMap(poolOf(i), (pool) => Pool.use(pool, work))),
    operations: {
      use: effect((i) => Effect.flatMap(poolOf(i), (pool) => Pool.use(pool, work))),
      get: effect((i) => Effect.flatMap(poolOf(i), (pool) => Effect.scoped(Pool.get(pool))))
    }
  }
})

// Types of the peers from npm, which are installed for the benchmark alone.
interface GenericPool {
  readonly acquire: () => Promise<Connection>
  readonly release: (connection: Connection) => Promise<void>
  readonly use: (f: (connection: Connection) => Promise<void>) => Promise<void>
}
interface LruCache {
  readonly get: (key: string) => Connection | undefined
  readonly set: (key: string, value: Connection) => unknown
  readonly delete: (key: string) => boolean
  readonly purgeStale: () => boolean
}
const require = createRequire(import.meta.url)

/** `generic-pool` has no keys, so a `Map` holds a pool of one resource per key. */
const genericPool: MakeSubject = (keys) =>
  Effect.sync(() => {
    const { createPool } = require("generic-pool") as {
      readonly createPool: (
        factory: { readonly create: () => Promise<Connection>; readonly destroy: () => Promise<void> },
        options: { readonly max: number; readonly idleTimeoutMillis: number }
      ) => GenericPool
    }
    const pools = new Map<string, GenericPool>()
    const key = (i: number) => keys[i] ?? keyOf(i)
    const poolOf = (i: number): GenericPool => {
      const found = pools.get(key(i))
      if (found !== undefined) return found
      const made = createPool({ create: async () => connection, destroy: async () => {} }, {
        max: 1,
        idleTimeoutMillis: 1_800_000
      })
      pools.set(key(i), made)
      return made
    }
    const use: Operation = { kind: "promise", run: (i) => poolOf(i).use(async () => {}) }
    return {
      fill: use,
      operations: {
        use,
        get: {
          kind: "promise",
          run: async (i) => {
            const pool = poolOf(i)
            await pool.release(await pool.acquire())
          }
        },
        launch: use
      },
      forget: (i) => Effect.sync(() => pools.delete(key(i)))
    }
  })

/** `lru-cache` with `dispose`: no single flight and no leases, so it closes sessions in use. */
const lruCache = (max: number, ttl: (key: number) => number = () => 1_800_000): MakeSubject => (keys) =>
  Effect.sync(() => {
    const { LRUCache } = require("lru-cache") as {
      readonly LRUCache: new(options: {
        readonly max: number
        readonly ttl: number
        readonly updateAgeOnGet: boolean
        readonly dispose: () => void
      }) => LruCache & { set: (key: string, value: Connection, options?: { readonly ttl: number }) => unknown }
    }
    let disposed = 0
    const cache = new LRUCache({ max, ttl: 1_800_000, updateAgeOnGet: true, dispose: () => disposed++ })
    const key = (i: number) => keys[i] ?? keyOf(i)
    const launch: Operation = { kind: "call", run: (i) => cache.set(key(i), connection, { ttl: ttl(i) }) }
    return {
      fill: launch,
      operations: {
        touch: { kind: "call", run: (i) => cache.get(key(i)) },
        use: { kind: "call", run: (i) => cache.get(key(i)) },
        get: { kind: "call", run: (i) => cache.get(key(i)) },
        absent: { kind: "call", run: (i) => cache.get(absentKey(key(i))) },
        launch,
        sweep: { kind: "call", run: () => cache.purgeStale() }
      },
      forget: (i) => Effect.sync(() => cache.delete(key(i)))
    }
  })

export const subjects: Readonly<Record<string, MakeSubject>> = {
  "SessionPool": sessionPool(),
  "SessionPool, bounded": sessionPool({ capacity: 2_000_000 }),
  "SessionPool, leak detection on": sessionPool({ leakDetection: "1 hour" }),
  "RcMap": rcMap,
  "RcMap, Data.Class key": rcMapStructured,
  "ScopedCache": scopedCache,
  "LayerMap": layerMap,
  "Pool per key": poolPerKey,
  "generic-pool per key": genericPool,
  "lru-cache": (keys) => lruCache(2 * keys.length)(keys),
  "HashMap get+set": hashMap,
  "bare shape": bareShape
}

// -----------------------------------------------------------------------------
// Cleanup and eviction
// -----------------------------------------------------------------------------

export const sweepers: Readonly<Record<string, MakeSubject>> = {
  "SessionPool": Effect.fnUntraced(function*(keys) {
    const pool = yield* SessionPool.make({
      lookup: (_: number) => Effect.succeed(connection),
      idleTimeToLive: sweptTimeToLive,
      cleanupInterval: Infinity
    })
    void keys
    return {
      fill: effect((i) => Effect.scoped(SessionPool.get(pool, i))),
      operations: { sweep: effect(() => SessionPool.sweep(pool)) }
    }
  }),
  "lru-cache": lruCache(2_000_000, sweptTimeToLive),
  "bare shape": bareSweep
}

export const evictors: Readonly<Record<string, (capacity: number) => MakeSubject>> = {
  "SessionPool": (capacity) =>
    Effect.fnUntraced(function*(keys) {
      const pool = yield* SessionPool.make({ lookup: (_: string) => Effect.succeed(connection), capacity })
      const key = (i: number) => keys[i] ?? keyOf(i)
      const launch = effect((i) => Effect.scoped(SessionPool.get(pool, key(i))))
      return { fill: launch, operations: { launch } }
    }),
  "lru-cache": (capacity) => lruCache(capacity),
  "bare shape": bareEviction
}

/** Makes a subject and never closes it. Its process ends first. */
export const open = (make: MakeSubject, keys: ReadonlyArray<string>): Effect.Effect<Subject> =>
  Scope.provide(make(keys), Scope.makeUnsafe())
