/**
 * A pool under everything at once: many fibers that do everything a caller can do, on a back end that is slow, fails,
 * hangs and dies, with every option on and times of milliseconds. What is drawn follows from a seed.
 *
 * At a quiet point no caller is at work; then the pool's counts must be those of the back end.
 */
import { Cause, Data, Deferred, Effect, Fiber, HashMap, Option, Ref, Stream } from "effect"
import { SessionPool } from "../../../src/index.ts"
import * as Random from "../random.ts"

class Refused extends Data.TaggedError("Refused")<{}> {}

/** `died` completes when the back end gives up on it. */
interface Connection {
  readonly died: Deferred.Deferred<void>
}

const keys = Array.from({ length: 60 }, (_, i) => `key ${i}`)
const callers = 64

/** One function: the pool, its back end and what callers do share the random numbers and the counts. */
export const make = Effect.fnUntraced(function*(seed: number) {
  const { below, chance, pick: one } = Random.make(seed)
  /** Sleeps up to so many milliseconds. */
  const nap = (millis: number) => Effect.suspend(() => Effect.sleep(1 + below(millis)))

  const open = new Set<Connection>()
  const tally = { operations: 0, opened: 0, closedTwice: 0, closesUnderWay: 0, usedAfterClose: 0, events: 0 }
  const failures: Record<string, number> = {}

  const connect = (): Connection => {
    const connection = { died: Deferred.makeUnsafe<void>() }
    tally.opened++
    open.add(connection)
    return connection
  }
  const disconnect = (connection: Connection) =>
    Effect.suspend(() => {
      const how = below(100)
      tally.closesUnderWay++
      // A close may take longer than `closeTimeout`, and may fail when it is done.
      const takes = how < 8 ? nap(5) : how < 12 ? Effect.sleep(60) : Effect.void
      const ends = Effect.suspend(() => {
        tally.closesUnderWay--
        if (!open.delete(connection)) tally.closedTwice++
        return how === 12 ? Effect.die("the close failed") : Effect.void
      })
      return Effect.andThen(takes, ends)
    })
  const lookup = (_key: string) =>
    Effect.gen(function*() {
      const how = below(100)
      if (how < 5) return yield* new Refused()
      if (how < 15) yield* nap(20)
      const connection = yield* Effect.acquireRelease(Effect.sync(connect), disconnect)
      if (how < 20) return yield* new Refused()
      if (how < 22) return yield* Effect.die("the lookup died")
      if (how < 25) return yield* Effect.never
      if (how < 30) yield* nap(10)
      return connection
    })
  const validate = () =>
    Effect.suspend(() => {
      const how = below(100)
      if (how < 8) return Effect.succeed(false)
      if (how < 9) return Effect.never
      return Effect.as(how < 15 ? nap(5) : Effect.void, true)
    })
  const pool = yield* SessionPool.make({
    lookup,
    validate,
    closed: ({ died }: Connection) => Deferred.await(died),
    groupBy: (key) => key.slice(-1),
    idleTimeToLive: (key) => [0, 10, 50, Infinity][Number(key.slice(4)) % 10] ?? Infinity,
    isError: (cause) => !Cause.hasDies(cause),
    capacity: 45,
    groupCapacity: 5,
    maxWaiting: 10,
    maxErrorCount: 2,
    acquireTimeout: 10,
    lookupTimeout: 25,
    closeTimeout: 20,
    cleanupInterval: 7,
    maxLifetime: 100,
    failureTimeToLive: 3,
    validateAfter: 2,
    keepAlive: 15,
    leakDetection: 30,
    drainTimeout: 20
  })

  /** What a caller does with its lease: mostly nothing for long. */
  const work = (connection: Connection) =>
    Effect.suspend(() => {
      const how = below(1000)
      const takes = how < 700 ? Effect.void : how < 950 ? Effect.yieldNow : how < 998 ? nap(3) : Effect.sleep(40)
      return Effect.andThen(
        takes,
        Effect.sync(() => {
          if (!open.has(connection)) tally.usedAfterClose++
        })
      )
    })
  const get = (key: string) => Effect.scoped(Effect.flatMap(SessionPool.get(pool, key), work))
  const use = (key: string) =>
    SessionPool.use(pool, key, (connection) => {
      const end = one([Effect.void, Effect.void, Effect.void, Effect.fail(new Refused()), Effect.die("a defect")])
      return Effect.andThen(work(connection), end)
    })
  const adopt = (key: string) =>
    Effect.suspend(() => {
      const connection = connect()
      return SessionPool.set(pool, key, connection, disconnect(connection))
    })
  const readEvents = SessionPool.events(pool).pipe(
    Stream.take(50),
    Stream.runForEach(() => Effect.sync(() => tally.events++)),
    Effect.timeoutOption(5)
  )
  /** Interrupted after some yields, or after a millisecond or two. */
  const interrupted = (effect: Effect.Effect<unknown, unknown>) =>
    Effect.gen(function*() {
      const fiber = yield* Effect.forkChild(effect, { startImmediately: chance(0.5) })
      for (let yields = below(5); yields > 0; yields--) yield* Effect.yieldNow
      if (chance(0.3)) yield* nap(2)
      yield* Fiber.interrupt(fiber)
    })

  /** How often of a thousand, and what. */
  const operations: ReadonlyArray<readonly [number, (key: string) => Effect.Effect<unknown, unknown>]> = [
    [335, get],
    [260, use],
    [130, (key) => SessionPool.touch(pool, key)],
    [80, (key) =>
      Effect.scoped(Effect.flatMap(
        SessionPool.getOption(pool, key),
        Option.match({
          onNone: () => Effect.void,
          onSome: work
        })
      ))],
    [60, (key) => interrupted(get(key))],
    [40, (key) => interrupted(use(key))],
    [8, (key) => interrupted(adopt(key))],
    [12, adopt],
    [10, (key) => SessionPool.invalidate(pool, key)],
    [20, (key) => SessionPool.recordError(pool, key)],
    [20, (key) => SessionPool.info(pool, key)],
    [10, () => SessionPool.stats(pool)],
    [6, () => SessionPool.sweep(pool)],
    [3, () => SessionPool.entries(pool)],
    [2, () => readEvents],
    [1, () => SessionPool.invalidateAll(pool, () => chance(0.3))],
    [3, () =>
      Effect.suspend(() => {
        const [connection] = open
        return connection === undefined ? Effect.void : Deferred.succeed(connection.died, undefined)
      })]
  ]
  const operation = Effect.suspend(() => {
    tally.operations++
    let left = below(1000)
    const [, run] = operations.find(([often]) => (left -= often) < 0) ?? one(operations)
    return run(one(keys))
  })
  const counted = Effect.matchCause(operation, {
    onSuccess: () => {},
    onFailure: (cause) => {
      const error = Cause.squash(cause)
      const name = error instanceof Error ? error.name : String(error)
      failures[name] = (failures[name] ?? 0) + 1
    }
  })

  /** All callers at work until told to stop; ends when each has ended its last operation. */
  const round = (goesOn: () => boolean) =>
    Effect.forEach(
      Array.from({ length: callers }),
      () => Effect.whileLoop({ while: goesOn, body: () => counted, step: () => {} }),
      { concurrency: "unbounded", discard: true }
    )

  /** What is wrong at a quiet point. What the pool itself still does (launches, closes, validations) ends in time. */
  const faults = Effect.gen(function*() {
    const { active, idle, launching, retired, waiting } = yield* SessionPool.stats(pool)
    // What only the pool sees: a place that is never given back, an entry of the queue that nobody waits in.
    const { groups, places, queue } = (yield* Ref.get(pool.pool.state)).inventory
    const inGroups = [...HashMap.values(groups)].reduce((sum, { used }) => sum + used, 0)
    const excess = { open: open.size - idle, places: places.used - idle, placesInGroups: inGroups - idle }
    const here = { active, launching, retired, waiting, closesUnderWay: tally.closesUnderWay, ...excess }
    const queued = HashMap.size(queue.entries)
    const wrong = Object.entries({ ...here, queued }).filter(([, count]) => count !== 0)
    const never = Object.entries({ closedTwice: tally.closedTwice, usedAfterClose: tally.usedAfterClose })
    return [...wrong, ...never.filter(([, count]) => count > 0)].map(([name, count]) => `${name}: ${count}`)
  })

  return { pool, round, faults, tally, failures, open }
})
