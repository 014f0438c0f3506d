/**
 * What the core's benchmark measures: `SessionPool`, what people would use instead, and the limits of its shape. Each
 * subject is filled with sessions and then offers operations; an operation does the same work in every subject.
 */
import {
  Context,
  Data,
  Effect,
  Hash,
  HashMap,
  Layer,
  LayerMap,
  Option,
  Pool,
  RcMap,
  Ref,
  Scope,
  ScopedCache
} from "effect"
import { createRequire } from "node:module"
import { SessionKey, SessionPool } from "../../src/index.ts"

/** The connection of every session: a constant, so that memory is what the subject itself needs. */
const connection = { open: true }
type Connection = typeof connection

const idleTimeToLive = "30 minutes"

/** One operation on the key with this number, as an effect, a promise or a plain call. */
export type Operation =
  | { readonly kind: "effect"; readonly run: (key: number) => Effect.Effect<unknown> }
  | { readonly kind: "promise"; readonly run: (key: number) => Promise<unknown> }
  | { readonly kind: "call"; readonly run: (key: number) => unknown }

export interface Subject {
  /** Puts a session under each of the first `keys.length` keys. */
  readonly fill: Operation
  readonly operations: Readonly<Record<string, Operation>>
  /** Undoes what `launch` did to a key, outside the measurement. */
  readonly forget?: (key: number) => Effect.Effect<unknown>
}

export type MakeSubject = (keys: ReadonlyArray<string>) => Effect.Effect<Subject, never, Scope.Scope>

const effect = (run: (key: number) => Effect.Effect<unknown, unknown>): Operation => ({
  kind: "effect",
  run: (key) => Effect.orDie(run(key))
})

/** The user's work in each `use`. */
const work = (_: Connection): Effect.Effect<void> => Effect.void
/** Work that lets other fibers in, so that the leases of concurrent fibers overlap. */
const overlapping = (_: Connection): Effect.Effect<void> => Effect.yieldNow

/** The parts of a key, as a request would bring them. */
const session = (key: number) => `2f6e8c1a-77d0-4c55-9a53-${key.toString(16).padStart(12, "0")}`
const backend = "everything"
/** A string key of realistic length: 47 characters. */
export const keyOf = (key: number): string => `${backend}/${session(key)}`

class StructuredKey extends Data.Class<{ readonly backend: string; readonly session: string }> {}

const sessionPool = (options: { readonly leakDetection?: "1 hour" } = {}): MakeSubject =>
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

/** `Pool` has no keys: a pool of one item per key, found in a `Map`. */
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

// The types that are needed of the peers from npm, which are installed for the benchmark alone.
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

/** `generic-pool` has no keys either: a pool of one resource per key, found in a `Map`. */
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

/** `lru-cache` with `dispose`: no single flight, no leases; closes what is in use. */
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

// -----------------------------------------------------------------------------
// The limits of the shape
// -----------------------------------------------------------------------------

/** What a session must remember, and no more. */
class Entry {
  readonly value: Connection
  readonly lastUsedAt: number
  readonly requestCount: number
  readonly leases: number
  constructor(value: Connection, lastUsedAt: number, requestCount: number, leases: number) {
    this.value = value
    this.lastUsedAt = lastUsedAt
    this.requestCount = requestCount
    this.leases = leases
  }
}

/** `HashMap.get` and `HashMap.set` alone, once for a touch and twice for a use: no effect, no clock of the fiber. */
const hashMap: MakeSubject = (keys) =>
  Effect.sync(() => {
    let map = HashMap.empty<string, Entry>()
    const key = (i: number) => keys[i] ?? keyOf(i)
    const change = (i: number, touch: number, lease: number): Connection => {
      const name = key(i)
      const { lastUsedAt, leases, requestCount, value } = Option.getOrThrow(HashMap.get(map, name))
      map = HashMap.set(map, name, new Entry(value, lastUsedAt + 1, requestCount + touch, leases + lease))
      return value
    }
    const use: Operation = {
      kind: "call",
      run: (i) => {
        change(i, 1, 1)
        change(i, 0, -1)
      }
    }
    return {
      fill: {
        kind: "call",
        run: (i) => {
          map = HashMap.set(map, key(i), new Entry(connection, 0, 0, 0))
        }
      },
      operations: { touch: { kind: "call", run: (i) => change(i, 1, 0) }, use, get: use }
    }
  })

/** One `Ref<HashMap>` and one `Ref.modify` a step with the effects that a lease cannot do without, and nothing else. */
const bareShape: MakeSubject = Effect.fnUntraced(function*(keys) {
  const state = yield* Ref.make(HashMap.empty<string, Entry>())
  const key = (i: number) => keys[i] ?? keyOf(i)
  const change = (name: string, hash: number, touch: number, lease: number) =>
    Ref.modify(state, (map) => {
      const { leases, requestCount, value } = Option.getOrThrow(HashMap.getHash(map, name, hash))
      const entry = new Entry(value, Date.now(), requestCount + touch, leases + lease)
      return [value, HashMap.modifyHash(map, name, hash, () => Option.some(entry))]
    })
  return {
    fill: effect((i) => Ref.update(state, HashMap.set(key(i), new Entry(connection, 0, 0, 0)))),
    operations: {
      touch: effect((i) => change(key(i), Hash.hash(key(i)), 1, 0)),
      use: effect((i) =>
        Effect.suspend(() => {
          const name = key(i)
          const hash = Hash.hash(name)
          return Effect.onExit(
            Effect.flatMap(change(name, hash, 1, 1), work),
            () => Effect.asVoid(change(name, hash, 0, -1))
          )
        })
      ),
      get: effect((i) =>
        Effect.scoped(Effect.uninterruptibleMask(() => {
          const name = key(i)
          const hash = Hash.hash(name)
          return Effect.flatMap(change(name, hash, 1, 1), (value) =>
            Effect.flatMap(Effect.scope, (scope) =>
              Effect.as(Scope.addFinalizer(scope, Effect.asVoid(change(name, hash, 0, -1))), value)))
        }))
      )
    }
  }
})

export const subjects: Readonly<Record<string, MakeSubject>> = {
  "SessionPool": sessionPool(),
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

/** Every hundredth session is to expire at once, the others never. */
const shortLived = (key: number) => key % 100 === 0

export const sweepers: Readonly<Record<string, MakeSubject>> = {
  "SessionPool": Effect.fnUntraced(function*(keys) {
    const pool = yield* SessionPool.make({
      lookup: (_: number) => Effect.succeed(connection),
      idleTimeToLive: (key) => shortLived(key) ? 1 : 3_600_000,
      cleanupInterval: Infinity
    })
    void keys
    return {
      fill: effect((i) => Effect.scoped(SessionPool.get(pool, i))),
      operations: { sweep: effect(() => SessionPool.sweep(pool)) }
    }
  }),
  "lru-cache": lruCache(2_000_000, (key) => shortLived(key) ? 1 : 3_600_000)
}

export const evictors: Readonly<Record<string, (capacity: number) => MakeSubject>> = {
  "SessionPool": (capacity) =>
    Effect.fnUntraced(function*(keys) {
      const pool = yield* SessionPool.make({ lookup: (_: string) => Effect.succeed(connection), capacity })
      const key = (i: number) => keys[i] ?? keyOf(i)
      const launch = effect((i) => Effect.scoped(SessionPool.get(pool, key(i))))
      return { fill: launch, operations: { launch } }
    }),
  "lru-cache": (capacity) => lruCache(capacity)
}

/** Makes a subject that is never closed: its process ends first. */
export const open = (make: MakeSubject, keys: ReadonlyArray<string>): Effect.Effect<Subject> =>
  Scope.provide(make(keys), Scope.makeUnsafe())
