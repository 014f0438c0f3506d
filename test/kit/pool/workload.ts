/**
 * Many fibers run every operation of one pool at once. The back end is slow, fails, hangs and dies; every option is on; all times are
 * milliseconds. All random choices follow from a seed.
 *
 * At a quiet point no caller is at work, so the pool's counts must equal those of the back end.
 */
import { Cause, Data, Deferred, Effect, Fiber, HashMap, Option, Ref, Stream } from "effect"
import { SessionPool } from "../../../src/index.ts"
import * as Random from "../random.ts"

class Refused extends Data.TaggedError("Refused")<{}> {}

/** `died` completes when the back end ends the connection. */
interface Connection {
  readonly died: Deferred.Deferred<void>
}

const keys = Array.from({ length: 60 }, (_, i) => `key ${i}`)

const limits = { capacity: 45, groupCapacity: 5, maxWaiting: 10, maxErrorCount: 2, maxLifetime: 100 }
const timeouts = { acquireTimeout: 10, lookupTimeout: 25, closeTimeout: 20, drainTimeout: 20, failureTimeToLive: 3 }
const intervals = { cleanupInterval: 7, validateAfter: 2, keepAlive: 15, leakDetection: 30 }

/** One function, because the pool, its back end and the callers share the random numbers and the counts. */
export const make = Effect.fnUntraced(function*(seed: number) {
  const { below, chance, pick } = Random.make(seed)
  /** Sleeps for a random time of at most `millis`. */
  const nap = (millis: number) => Effect.suspend(() => Effect.sleep(1 + below(millis)))
  /** A random choice by weights that are parts of a thousand. The remainder is the weight of `rest`. */
  const weighted = <A>(choices: ReadonlyArray<readonly [weight: number, value: A]>, rest: A): A => {
    let left = below(1000)
    return choices.find(([weight]) => (left -= weight) < 0)?.[1] ?? rest
  }
  const sometimes = (...choices: ReadonlyArray<readonly [weight: number, effect: Effect.Effect<unknown, Refused>]>) =>
    Effect.suspend(() => weighted(choices, Effect.void))

  const open = new Set<Connection>()
  const tally = { operations: 0, opened: 0 }
  const wrong = { closesUnderWay: 0, closedTwice: 0, usedAfterClose: 0 }
  const failures: Record<string, number> = {}

  const connect = (): Connection => {
    const connection = { died: Deferred.makeUnsafe<void>() }
    tally.opened++
    open.add(connection)
    return connection
  }
  const disconnect = (connection: Connection) =>
    Effect.gen(function*() {
      wrong.closesUnderWay++
      // Some closes take longer than `closeTimeout`. Some fail after the connection has closed.
      yield* sometimes([80, nap(5)], [40, Effect.sleep(60)])
      wrong.closesUnderWay--
      if (!open.delete(connection)) wrong.closedTwice++
      yield* sometimes([10, Effect.die("the close failed")])
    }).pipe(Effect.orDie)
  const pool = yield* SessionPool.make({
    lookup: (_key: string) =>
      Effect.gen(function*() {
        yield* sometimes([50, new Refused()], [100, nap(20)])
        const connection = yield* Effect.acquireRelease(Effect.sync(connect), disconnect)
        yield* sometimes([60, new Refused()], [25, Effect.die("the lookup died")], [35, Effect.never], [60, nap(10)])
        return connection
      }),
    validate: () => Effect.as(sometimes([10, Effect.never], [60, nap(5)]).pipe(Effect.orDie), !chance(0.08)),
    closed: ({ died }: Connection) => Deferred.await(died),
    groupBy: (key) => key.slice(-1),
    idleTimeToLive: (key) => [0, 10, 50, Infinity][Number(key.slice(4)) % 10] ?? Infinity,
    isError: (cause) => !Cause.hasDies(cause),
    ...limits,
    ...timeouts,
    ...intervals
  })

  /** What a caller does with its lease. Most leases are short. */
  const work = (connection: Connection) =>
    Effect.gen(function*() {
      yield* sometimes([250, Effect.yieldNow], [48, nap(3)], [2, Effect.sleep(40)])
      if (!open.has(connection)) wrong.usedAfterClose++
    })
  const get = (key: string) => Effect.scoped(Effect.flatMap(SessionPool.get(pool, key), work))
  const use = (key: string) =>
    SessionPool.use(pool, key, (connection, { invalidate, recordError }) =>
      Effect.andThen(
        work(connection),
        sometimes([200, new Refused()], [200, Effect.die("a defect")], [10, invalidate], [20, recordError])
      ))
  const getOption = (key: string) =>
    Effect.scoped(Effect.flatMap(
      SessionPool.getOption(pool, key),
      Option.match({ onNone: () => Effect.void, onSome: work })
    ))
  const set = (key: string) =>
    Effect.suspend(() => {
      const connection = connect()
      return SessionPool.set(pool, key, connection, disconnect(connection))
    })
  const readEvents = Effect.timeoutOption(Stream.runDrain(Stream.take(SessionPool.events(pool), 50)), 5)
  const disconnectOne = Effect.suspend(() => {
    const [connection] = open
    return connection === undefined ? Effect.void : Deferred.succeed(connection.died, undefined)
  })
  /** Interrupts an effect after some yields, or after one or two milliseconds. */
  const interrupted = (effect: Effect.Effect<unknown, unknown>) =>
    Effect.gen(function*() {
      const fiber = yield* Effect.forkChild(effect, { startImmediately: chance(0.5) })
      for (let yields = below(5); yields > 0; yields--) yield* Effect.yieldNow
      if (chance(0.3)) yield* nap(2)
      yield* Fiber.interrupt(fiber)
    })

  const operations: ReadonlyArray<readonly [number, (key: string) => Effect.Effect<unknown, unknown>]> = [
    [260, use],
    [130, (key) => SessionPool.touch(pool, key)],
    [80, getOption],
    [60, (key) => interrupted(get(key))],
    [40, (key) => interrupted(use(key))],
    [8, (key) => interrupted(set(key))],
    [12, set],
    [10, (key) => SessionPool.invalidate(pool, key)],
    [20, (key) => SessionPool.recordError(pool, key)],
    [10, () => SessionPool.sweep(pool)],
    [2, () => readEvents],
    [1, () => SessionPool.invalidateAll(pool, () => chance(0.3))],
    [3, () => disconnectOne]
  ]
  const operation = Effect.suspend(() => {
    tally.operations++
    return weighted(operations, get)(pick(keys))
  })
  const counted = Effect.catchCause(operation, (cause) =>
    Effect.sync(() => {
      const squashed = Cause.squash(cause)
      const error = squashed instanceof SessionPool.SessionPoolError ? squashed.reason : squashed
      const name = error instanceof Error ? error.name : String(error)
      failures[name] = (failures[name] ?? 0) + 1
    }))

  /** Runs 64 callers while `goesOn` is true. Ends when each has finished its last operation. */
  const round = (goesOn: () => boolean) =>
    Effect.forEach(
      Array.from({ length: 64 }),
      () => Effect.whileLoop({ while: goesOn, body: () => counted, step: () => {} }),
      { concurrency: "unbounded", discard: true }
    )

  /** The counts that are wrong at a quiet point. Wait before: the pool may still launch, close or check. */
  const faults = Effect.gen(function*() {
    const { active, idle, launching, leases, retired, waiting } = yield* SessionPool.stats(pool)
    // Only the pool's state shows a place that was never returned, or a waiter that has left.
    const { groups, places, waiting: { size: queued } } = yield* Ref.get(pool.pool.state)
    const inGroups = [...HashMap.values(groups)].reduce((sum, { used }) => sum + used, 0)
    const excess = { open: open.size - idle, places: places.used - idle, placesInGroups: inGroups - idle }
    const counts = { active, launching, leases, retired, waiting, queued, ...excess, ...wrong }
    return Object.entries(counts).filter(([, count]) => count !== 0).map(([name, count]) => `${name}: ${count}`)
  })

  return { pool, round, faults, tally, failures }
})
