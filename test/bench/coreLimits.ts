/**
 * The floors of the pool's design: the persistent map alone, and the *bare shape*. The bare shape is the least code with one
 * `Ref<HashMap>`, one `Ref.modify` a step and a registered release. It has no error counts, validation, time-outs, cancellation, waiters,
 * events or metrics.
 */
import { Context, Deferred, Effect, Exit, Hash, HashMap, Option, Ref, Scope } from "effect"
import type { Connection, MakeSubject, Operation } from "./coreOperations.ts"
import { connection, effect, keyOf, sweptTimeToLive, work } from "./coreOperations.ts"

/** An open session, with the least data that it needs. */
class Entry<K> {
  readonly key: K
  readonly value: Connection
  /** The scope of its lookup. */
  readonly scope: Scope.Closeable
  /** The number of its key in `State.keys`. */
  readonly position: number
  readonly lastUsedAt: number
  readonly requestCount: number
  readonly leases: number
  constructor(
    key: K,
    value: Connection,
    scope: Scope.Closeable,
    position: number,
    lastUsedAt: number,
    requestCount: number,
    leases: number
  ) {
    this.key = key
    this.value = value
    this.scope = scope
    this.position = position
    this.lastUsedAt = lastUsedAt
    this.requestCount = requestCount
    this.leases = leases
  }
}

const changed = <K>({ key, leases, position, requestCount, scope, value }: Entry<K>, touch: number, lease: number) =>
  new Entry(key, value, scope, position, Date.now(), requestCount + touch, leases + lease)

/** `HashMap.get` and `HashMap.set` alone, once for a touch and twice for a use, without effects or a fiber's clock. */
export const hashMap: MakeSubject = (keys) =>
  Effect.sync(() => {
    let map = HashMap.empty<string, Entry<string>>()
    const key = (i: number) => keys[i] ?? keyOf(i)
    const change = (i: number, touch: number, lease: number): Connection => {
      const name = key(i)
      const entry = Option.getOrThrow(HashMap.get(map, name))
      map = HashMap.set(map, name, changed(entry, touch, lease))
      return entry.value
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
          map = HashMap.set(map, key(i), new Entry(key(i), connection, Scope.makeUnsafe(), 0, 0, 0, 0))
        }
      },
      operations: { touch: { kind: "call", run: (i) => change(i, 1, 0) }, use, get: use }
    }
  })

// -----------------------------------------------------------------------------
// The bare shape
// -----------------------------------------------------------------------------

/** A session whose lookup runs. Each caller gets a lease when the lookup ends. */
class Opening<K> {
  readonly key: K
  readonly scope: Scope.Closeable
  readonly done: Deferred.Deferred<Connection>
  readonly position: number
  readonly callers: number
  constructor(
    key: K,
    scope: Scope.Closeable,
    done: Deferred.Deferred<Connection>,
    position: number,
    callers: number
  ) {
    this.key = key
    this.scope = scope
    this.done = done
    this.position = position
    this.callers = callers
  }
}

type Slots<K> = HashMap.HashMap<K, Entry<K> | Opening<K>>

/** The slots. With a capacity also the keys from which an eviction draws, numbered without gaps. */
class State<K> {
  readonly slots: Slots<K>
  readonly keys: HashMap.HashMap<number, K>
  readonly seed: number
  constructor(slots: Slots<K>, keys: HashMap.HashMap<number, K>, seed: number) {
    this.slots = slots
    this.keys = keys
    this.seed = seed
  }
}

/** The result of a `get`: a session, a launch that it joins, or a launch that it begins (`callers` is 1), perhaps after an eviction. */
interface Got<K> {
  readonly slot: Entry<K> | Opening<K>
  readonly evicted: Entry<K> | undefined
}

const withSlot = <K>(slots: Slots<K>, hash: number, slot: Entry<K> | Opening<K>): Slots<K> =>
  HashMap.modifyHash(slots, slot.key, hash, () => Option.some(slot))

const sampleSize = 5

/** The oldest of a sample of the idle sessions. */
const draw = <K>({ keys, seed, slots }: State<K>): readonly [oldest: Entry<K>, seed: number] => {
  let oldest: Entry<K> | undefined
  for (let found = 0; oldest === undefined || found < sampleSize;) {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0
    const key = HashMap.getUnsafe(keys, Math.floor((seed / 4294967296) * HashMap.size(keys)))
    const slot = HashMap.getUnsafe(slots, key)
    if (slot instanceof Opening || slot.leases > 0) continue
    found++
    if (oldest === undefined || slot.lastUsedAt < oldest.lastUsedAt) oldest = slot
  }
  return [oldest, seed]
}

const acquire = <K>(state: State<K>, capacity: number, key: K, hash: number): [Got<K>, State<K>] => {
  const { keys, seed, slots } = state
  const found = Option.getOrUndefined(HashMap.getHash(slots, key, hash))
  if (found !== undefined) {
    const slot = found instanceof Entry
      ? changed(found, 1, 1)
      : new Opening(key, found.scope, found.done, found.position, found.callers + 1)
    return [{ slot, evicted: undefined }, new State(withSlot(slots, hash, slot), keys, seed)]
  }
  const opening = (position: number) => new Opening(key, Scope.makeUnsafe(), Deferred.makeUnsafe(), position, 1)
  if (capacity === Infinity) {
    const slot = opening(0)
    return [{ slot, evicted: undefined }, new State(withSlot(slots, hash, slot), keys, seed)]
  }
  if (HashMap.size(keys) < capacity) {
    const slot = opening(HashMap.size(keys))
    return [
      { slot, evicted: undefined },
      new State(withSlot(slots, hash, slot), HashMap.set(keys, slot.position, key), seed)
    ]
  }
  const [evicted, next] = draw(state)
  const slot = opening(evicted.position)
  return [
    { slot, evicted },
    new State(withSlot(HashMap.remove(slots, evicted.key), hash, slot), HashMap.set(keys, slot.position, key), next)
  ]
}

/** Changes a slot that exists. */
const change = <K>(
  state: State<K>,
  key: K,
  hash: number,
  f: (slot: Entry<K> | Opening<K>) => Entry<K> | Opening<K>
): State<K> => {
  const slot = Option.getOrThrow(HashMap.getHash(state.slots, key, hash))
  return new State(withSlot(state.slots, hash, f(slot)), state.keys, state.seed)
}

const touched = <K>(slot: Entry<K> | Opening<K>): Entry<K> | Opening<K> =>
  slot instanceof Entry ? changed(slot, 1, 0) : slot

const released = <K>(slot: Entry<K> | Opening<K>): Entry<K> | Opening<K> =>
  slot instanceof Entry
    ? changed(slot, 0, -1)
    : new Opening(slot.key, slot.scope, slot.done, slot.position, slot.callers - 1)

const landed = <K>(slot: Entry<K> | Opening<K>, value: Connection): Entry<K> | Opening<K> =>
  slot instanceof Entry
    ? slot
    : new Entry(slot.key, value, slot.scope, slot.position, Date.now(), slot.callers, slot.callers)

const make = Effect.fnUntraced(function*<K>(lookup: (key: K) => Effect.Effect<Connection>, capacity: number) {
  const state = yield* Ref.make(new State<K>(HashMap.empty(), HashMap.empty(), 1))
  const context = yield* Effect.context<Scope.Scope>()
  yield* Effect.addFinalizer(() =>
    Effect.flatMap(
      Ref.get(state),
      ({ slots }) =>
        Effect.forEach(HashMap.values(slots), ({ scope }) => Scope.close(scope, Exit.void), { discard: true })
    )
  )

  const launch = ({ done, key, scope }: Opening<K>, hash: number): void => {
    const opened = Effect.flatMap(Effect.exit(Effect.suspend(() => lookup(key))), (exit) =>
      Effect.andThen(
        Ref.update(state, (state) =>
          Exit.isSuccess(exit)
            ? change(state, key, hash, (slot) => landed(slot, exit.value))
            : new State(HashMap.remove(state.slots, key), state.keys, state.seed)),
        Deferred.done(done, exit)
      ))
    Effect.runForkWith(Context.add(context, Scope.Scope, scope))(opened)
  }

  /** Closes the evicted session before the launch, so the capacity is never exceeded. */
  const begin = (opening: Opening<K>, hash: number, evicted: Entry<K> | undefined): void => {
    if (evicted === undefined) return launch(opening, hash)
    Effect.runForkWith(context)(
      Effect.andThen(Scope.close(evicted.scope, Exit.void), Effect.sync(() => launch(opening, hash)))
    )
  }

  const get = (key: K): Effect.Effect<Connection, never, Scope.Scope> =>
    Effect.uninterruptibleMask((restore) => {
      const hash = Hash.hash(key)
      return Effect.flatMap(Ref.modify(state, (state) => acquire(state, capacity, key, hash)), ({ evicted, slot }) => {
        if (slot instanceof Opening && slot.callers === 1) begin(slot, hash, evicted)
        const release = Ref.update(state, (state) => change(state, key, hash, released))
        return Effect.flatMap(Effect.scope, (scope) => {
          const registered = Scope.addFinalizer(scope, release)
          return slot instanceof Entry
            ? Effect.as(registered, slot.value)
            : Effect.andThen(registered, restore(Deferred.await(slot.done)))
        })
      })
    })

  return { state, context, get }
})

/** Touch, use, get and launch. A hit is a step of its own, as short as possible. */
export const bareShape: MakeSubject = Effect.fnUntraced(function*(keys) {
  const { get, state } = yield* make((_: string) => Effect.succeed(connection), Infinity)
  const key = (i: number) => keys[i] ?? keyOf(i)
  const step = (name: string, hash: number, f: typeof touched<string>) =>
    Ref.modify(state, (state) => {
      const slot = Option.getOrThrow(HashMap.getHash(state.slots, name, hash))
      return [slot, new State(withSlot(state.slots, hash, f(slot)), state.keys, state.seed)]
    })
  const leased = (slot: Entry<string> | Opening<string>) => slot instanceof Entry ? changed(slot, 1, 1) : slot
  const launch = effect((i) => Effect.scoped(get(key(i))))
  return {
    fill: launch,
    operations: {
      touch: effect((i) => step(key(i), Hash.hash(key(i)), touched)),
      use: effect((i) =>
        Effect.suspend(() => {
          const name = key(i)
          const hash = Hash.hash(name)
          return Effect.onExit(
            Effect.flatMap(step(name, hash, leased), () => work(connection)),
            () => Effect.asVoid(step(name, hash, released))
          )
        })
      ),
      get: launch,
      launch
    },
    forget: (i) => Ref.update(state, (state) => new State(HashMap.remove(state.slots, key(i)), state.keys, state.seed))
  }
})

/** A launch at capacity evicts the oldest of a sample. The pool does more: it keeps idle sessions in order of their last use. */
export const bareEviction = (capacity: number): MakeSubject =>
  Effect.fnUntraced(function*(keys) {
    const { get } = yield* make((_: string) => Effect.succeed(connection), capacity)
    const launch = effect((i) => Effect.scoped(get(keys[i] ?? keyOf(i))))
    return { fill: launch, operations: { launch } }
  })

/** As short as in the pool, so the rest of a stall is the garbage collector's. */
const chunkSize = 256

/** Visits the snapshot in chunks. The step that removes a candidate checks it again, and a fiber closes it. */
export const bareSweep: MakeSubject = Effect.fnUntraced(function*() {
  const { context, get, state } = yield* make((_: number) => Effect.succeed(connection), Infinity)
  const isExpired = (slot: Entry<number> | Opening<number> | undefined, now: number): slot is Entry<number> =>
    slot instanceof Entry && slot.leases === 0 && now - slot.lastUsedAt > sweptTimeToLive(slot.key)
  const expire = (key: number): Effect.Effect<void> =>
    Effect.map(
      Ref.modify(state, (state): [Entry<number> | undefined, State<number>] => {
        const slot = Option.getOrUndefined(HashMap.get(state.slots, key))
        return isExpired(slot, Date.now())
          ? [slot, new State(HashMap.remove(state.slots, key), state.keys, state.seed)]
          : [undefined, state]
      }),
      (expired) => {
        if (expired !== undefined) Effect.runForkWith(context)(Scope.close(expired.scope, Exit.void))
      }
    )
  const sweep = Effect.gen(function*() {
    let seen = 0
    let now = Date.now()
    for (const slot of HashMap.values((yield* Ref.get(state)).slots)) {
      if (isExpired(slot, now)) yield* expire(slot.key)
      if (++seen % chunkSize === 0) {
        yield* Effect.yieldNow
        now = Date.now()
      }
    }
  })
  return {
    fill: effect((i) => Effect.scoped(get(i))),
    operations: { sweep: effect(() => sweep) }
  }
})
