/** Sessions spread over the runners of a cluster: where a connection is, how long, and that there are never two of a key. */
import { assert, describe, it } from "@effect/vitest"
import type { Duration } from "effect"
import { Cause, Deferred, Effect, Exit, Fiber, Schema, Stream } from "effect"
import * as Entity from "effect/cluster/Entity"
import type * as ShardingConfig from "effect/cluster/ShardingConfig"
import * as Rpc from "effect/rpc/Rpc"
import { TestClock } from "effect/testing"
import * as SessionEntity from "../src/SessionEntity.ts"
import type * as SessionPool from "../src/SessionPool.ts"
import * as Cluster from "./kit/cluster.ts"

class ShellError extends Schema.TaggedError<ShellError>()("ShellError", { why: Schema.String }) {}

const Shell = Entity.make("Shell", [
  /** How often the connection was counted on: 1 is a new one. */
  Rpc.make("Count", { success: Schema.Number, error: ShellError }),
  /** The same, after the gate has opened. */
  Rpc.make("Wait", { success: Schema.Number, error: ShellError }),
  /** Numbers, of which the second comes after the gate has opened. */
  Rpc.make("Numbers", { success: Schema.Number, error: ShellError, stream: true }),
  Rpc.make("Fail", { error: ShellError }),
  Rpc.make("Crash", { error: ShellError }),
  Rpc.make("End", { success: Schema.Boolean }),
  /** Answers at once, and counts in the background after the gate has opened. */
  Rpc.make("Leave", {})
])

const keys = Array.from({ length: 20 }, (_, i) => `key ${i}`)

interface Connection {
  count: number
}

type Setup = Partial<SessionPool.Options<string, Connection, ShellError, never>> & SessionEntity.EntityOptions & {
  /** How many of the calls of `Crash` die. */
  readonly crashes?: number
  /** How long a connection takes to close, in milliseconds. */
  readonly closing?: number
  readonly cluster?: Partial<ShardingConfig.ShardingConfig["Service"]>
}

/** One function: the layer, its handlers and the tests share the counts. */
const setup = ({ closing = 0, crashes = Infinity, cluster: config, ...options }: Setup = {}) => {
  const cluster = Cluster.make(config)
  /** Opened and closed, in order: `a opens key 1`. */
  const log: Array<string> = []
  const open = new Map<string, number>()
  let most = 0
  let waiting = 0
  let crashed = 0
  let interrupted = 0
  const gate = Deferred.makeUnsafe<void>()
  const over = Deferred.makeUnsafe<void>()
  const left: Array<Exit.Exit<number, ShellError | SessionPool.AcquireError>> = []

  const entities = (runner: string) =>
    SessionEntity.toLayer(Shell, {
      idleTimeToLive: "10 minutes",
      cleanupInterval: "1 minute",
      lookup: (key) =>
        Effect.acquireRelease(
          Effect.sync((): Connection => {
            log.push(`${runner} opens ${key}`)
            open.set(key, (open.get(key) ?? 0) + 1)
            most = Math.max(most, open.get(key) ?? 0)
            return { count: 0 }
          }),
          () =>
            Effect.andThen(
              Effect.raceFirst(Effect.sleep(closing), Deferred.await(over)),
              Effect.sync(() => {
                log.push(`${runner} closes ${key}`)
                open.set(key, (open.get(key) ?? 0) - 1)
              })
            )
        ),
      ...options,
      handlers: (session) => {
        const count = session.use((connection) => Effect.sync(() => ++connection.count))
        const told = Effect.mapError((error: ShellError | SessionPool.AcquireError) =>
          error._tag === "ShellError" ? error : new ShellError({ why: error._tag })
        )
        const opened = Effect.suspend(() => {
          waiting++
          return Deferred.await(gate)
        })
        return {
          Count: () => told(count),
          Wait: () =>
            session.use((connection) => Effect.andThen(opened, Effect.sync(() => ++connection.count))).pipe(
              Effect.onInterrupt(() => Effect.sync(() => interrupted++)),
              told
            ),
          Numbers: () =>
            Stream.unwrap(
              Effect.as(told(session.get), Stream.concat(Stream.make(1), Stream.fromEffect(Effect.as(opened, 2))))
            ),
          Fail: () => told(session.use(() => Effect.fail(new ShellError({ why: "asked to" })))),
          Crash: () => told(session.use(() => crashed++ < crashes ? Effect.die("asked to") : Effect.void)),
          End: () => session.invalidate,
          Leave: () =>
            opened.pipe(
              Effect.andThen(count),
              Effect.exit,
              Effect.map((exit) => left.push(exit)),
              Effect.forkDetach,
              Effect.asVoid
            )
        }
      }
    })

  const start = Effect.fnUntraced(function*(name: string) {
    const runner = yield* cluster.start(name, entities(name))
    // The clock stands still when a test is over: what still closes then has no time for it.
    yield* Effect.addFinalizer(() => Deferred.succeed(over, undefined))
    yield* TestClock.adjust("10 seconds")
    return { ...runner, shell: yield* runner.sharding.makeClient(Shell) }
  })

  return {
    start,
    log,
    left,
    openGate: Deferred.succeed(gate, undefined),
    /** The most connections of one key that were open at once. */
    most: () => most,
    openNow: () => [...open.values()].reduce((sum, count) => sum + count, 0),
    waiting: () => waiting,
    interrupted: () => interrupted
  }
}

const concurrently = { concurrency: "unbounded" } as const

/** Runs an effect that takes its time, while that passes. */
const whilePassing = <A, E, R>(time: Duration.Input, effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const fiber = yield* Effect.forkChild(effect, { startImmediately: true })
    yield* TestClock.adjust(time)
    return yield* Fiber.join(fiber)
  })

describe("a session per key in a cluster", () => {
  it.effect("has one connection, on one runner, whichever of them is asked, also all at once", () =>
    Effect.gen(function*() {
      const { log, start } = setup()
      const runners = [yield* start("a"), yield* start("b"), yield* start("c")]
      const counts = yield* Effect.forEach(
        keys,
        (key) => Effect.forEach([...runners, ...runners], ({ shell }) => shell(key).Count(), concurrently),
        concurrently
      )
      for (const of of counts) assert.deepStrictEqual(of.toSorted(), [1, 2, 3, 4, 5, 6])
      assert.deepStrictEqual(log.map((line) => line.slice("a opens ".length)).toSorted(), keys.toSorted())
      assert.deepStrictEqual([...new Set(log.map((line) => line[0]))].toSorted(), ["a", "b", "c"])
    }))

  it.effect("outlives the engine's maxIdleTime", () =>
    Effect.gen(function*() {
      const { log, start } = setup()
      const a = yield* start("a")
      yield* a.shell("ada").Count()
      yield* TestClock.adjust("9 minutes")
      assert.strictEqual(yield* a.sharding.activeEntityCount, 1)
      assert.strictEqual(yield* a.shell("ada").Count(), 2)
      yield* TestClock.adjust("9 minutes")
      assert.strictEqual(yield* a.shell("ada").Count(), 3)
      assert.deepStrictEqual(log, ["a opens ada"])
    }))

  it.effect("takes its entity along when it has been idle for its time, within the engine's half minute", () =>
    Effect.gen(function*() {
      const { log, start } = setup()
      const a = yield* start("a")
      yield* a.shell("ada").Count()
      yield* TestClock.adjust("11 minutes")
      assert.deepStrictEqual(log, ["a opens ada", "a closes ada"])
      yield* TestClock.adjust("30 seconds")
      assert.strictEqual(yield* a.sharding.activeEntityCount, 0)
      assert.strictEqual(yield* a.shell("ada").Count(), 1)
    }))

  it.effect("keeps its entity also when it was opened the moment another one closed", () =>
    Effect.gen(function*() {
      const { log, start } = setup()
      const a = yield* start("a")
      for (let i = 0; i < 5; i++) {
        assert.strictEqual(yield* a.shell("ada").Count(), 1)
        assert.isTrue(yield* a.shell("ada").End())
      }
      yield* a.shell("ada").Count()
      yield* TestClock.adjust("9 minutes")
      assert.strictEqual(yield* a.sharding.activeEntityCount, 1)
      assert.strictEqual(yield* a.shell("ada").Count(), 2)
      assert.strictEqual(log.filter((line) => line === "a opens ada").length, 6)
      // And it is let go after the last one.
      yield* a.shell("ada").End()
      yield* TestClock.adjust("2 minutes")
      assert.strictEqual(yield* a.sharding.activeEntityCount, 0)
    }))

  it.effect("moves to a runner that joins: running calls finish, the old connection closes, then the new one opens", () =>
    Effect.gen(function*() {
      const { log, most, openGate, start, waiting } = setup({ closing: 3000 })
      const a = yield* start("a")
      const calls = yield* Effect.forkChild(
        Effect.forEach(keys, (key) => a.shell(key).Wait(), concurrently),
        { startImmediately: true }
      )
      const b = yield* start("b")
      assert.strictEqual(waiting(), keys.length)
      // Asked for while the old runner still works: answered by the new one, or by the old one where nothing moves.
      const later = yield* Effect.forkChild(
        Effect.forEach(keys, (key) => a.shell(key).Count(), concurrently),
        { startImmediately: true }
      )
      yield* openGate
      yield* TestClock.adjust("1 minute")
      const before = yield* Fiber.join(calls)
      const counts = yield* Fiber.join(later)
      assert.strictEqual(most(), 1)
      const moved = keys.filter((key) => log.includes(`b opens ${key}`))
      assert.isAbove(moved.length, 0)
      assert.isBelow(moved.length, keys.length)
      for (const [i, key] of keys.entries()) {
        const was = log.filter((line) => line.endsWith(` ${key}`))
        const moves = moved.includes(key)
        assert.deepStrictEqual(
          was,
          moves ? [`a opens ${key}`, `a closes ${key}`, `b opens ${key}`] : [`a opens ${key}`]
        )
        assert.deepStrictEqual([before[i] ?? 0, counts[i] ?? 0].toSorted(), moves ? [1, 1] : [1, 2])
      }
      assert.strictEqual(yield* a.sharding.activeEntityCount, keys.length - moved.length)
      assert.strictEqual(yield* b.sharding.activeEntityCount, moved.length)
    }))

  it.effect("moves after the engine's termination time also from under a call that does not end", () =>
    Effect.gen(function*() {
      const { interrupted, log, most, start } = setup({ closing: 3000 })
      const a = yield* start("a")
      const calls = yield* Effect.forEach(
        keys,
        (key) => Effect.forkChild(Effect.exit(a.shell(key).Wait()), { startImmediately: true })
      )
      const b = yield* start("b")
      assert.strictEqual(log.filter((line) => line.includes("closes")).length, 0)
      yield* TestClock.adjust("1 minute")
      const closed = keys.filter((key) => log.includes(`a closes ${key}`))
      assert.isAbove(closed.length, 0)
      assert.strictEqual(interrupted(), closed.length)
      for (const key of closed) {
        assert.isTrue(Exit.hasInterrupts(yield* Fiber.join(calls[keys.indexOf(key)] ?? assert.fail("no call"))))
        assert.strictEqual(yield* b.shell(key).Count(), 1)
      }
      assert.strictEqual(most(), 1)
      yield* Effect.forEach(calls, Fiber.interrupt)
    }))

  it.effect("does not keep its shard longer than closeTimeout when it hangs while closing", () =>
    Effect.gen(function*() {
      const { start } = setup({ closing: 3_600_000, closeTimeout: "20 seconds" })
      const a = yield* start("a")
      yield* Effect.forEach(keys, (key) => a.shell(key).Count(), concurrently)
      const b = yield* start("b")
      yield* TestClock.adjust("5 seconds")
      const calls = yield* Effect.forkChild(
        Effect.forEach(keys, (key) => b.shell(key).Count(), concurrently),
        { startImmediately: true }
      )
      yield* TestClock.adjust("1 second")
      assert.isUndefined(calls.pollUnsafe())
      yield* TestClock.adjust("20 seconds")
      assert.includeMembers(yield* Fiber.join(calls), [1, 2])
    }))

  it.effect("is closed when its runner shuts down, before another one opens it", () =>
    Effect.gen(function*() {
      const { log, most, openNow, start } = setup({ closing: 3000 })
      const a = yield* start("a")
      const b = yield* start("b")
      yield* Effect.forEach(keys, (key) => a.shell(key).Count(), concurrently)
      const ofA = keys.filter((key) => log.includes(`a opens ${key}`))
      const stopping = yield* Effect.forkChild(a.stop, { startImmediately: true })
      const calls = yield* Effect.forkChild(
        Effect.forEach(keys, (key) => b.shell(key).Count(), concurrently),
        { startImmediately: true }
      )
      yield* TestClock.adjust("1 minute")
      yield* Fiber.join(stopping)
      assert.includeMembers(log, ofA.map((key) => `a closes ${key}`))
      for (const [i, count] of (yield* Fiber.join(calls)).entries()) {
        assert.strictEqual(count, ofA.includes(keys[i] ?? "") ? 1 : 2)
      }
      assert.strictEqual(most(), 1)
      yield* whilePassing("1 minute", b.stop)
      assert.strictEqual(openNow(), 0)
    }))

  it.effect("finishes its running calls when its runner shuts down", () =>
    Effect.gen(function*() {
      const { most, openGate, openNow, start, waiting } = setup({ closing: 3000 })
      const a = yield* start("a")
      const b = yield* start("b")
      const calls = yield* Effect.forkChild(
        Effect.forEach(keys, (key) => b.shell(key).Wait(), concurrently),
        { startImmediately: true }
      )
      yield* TestClock.adjust("1 second")
      assert.strictEqual(waiting(), keys.length)
      const stopping = yield* Effect.forkChild(a.stop, { startImmediately: true })
      yield* TestClock.adjust("10 seconds")
      yield* openGate
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(yield* Fiber.join(calls), keys.map(() => 1))
      yield* Fiber.join(stopping)
      assert.strictEqual(yield* b.sharding.activeEntityCount, openNow())
      assert.strictEqual(most(), 1)
    }))

  it.effect("survives a defect of a handler, which its caller gets", () =>
    Effect.gen(function*() {
      const { log, start } = setup()
      const a = yield* start("a")
      const b = yield* start("b")
      for (const { shell } of [a, b]) {
        yield* shell("ada").Count()
        const exit = yield* Effect.exit(shell("ada").Crash())
        assert.isTrue(Exit.isFailure(exit) && Cause.hasDies(exit.cause))
      }
      assert.strictEqual(yield* a.shell("ada").Count(), 3)
      assert.strictEqual(log.length, 1)
    }))

  it.effect("ends by a defect where that was asked for, and the engine runs the request again with another", () =>
    Effect.gen(function*() {
      const { log, most, start } = setup({ disableFatalDefects: false, crashes: 1, closing: 1000 })
      const a = yield* start("a")
      assert.strictEqual(yield* a.shell("ada").Count(), 1)
      yield* whilePassing("10 seconds", a.shell("ada").Crash())
      assert.deepStrictEqual(log, ["a opens ada", "a closes ada", "a opens ada"])
      assert.strictEqual(most(), 1)
      assert.strictEqual(yield* a.shell("ada").Count(), 1)
    }))

  it.effect("is retired by errors and defects at maxErrorCount, and the next call opens another", () =>
    Effect.gen(function*() {
      const { log, start } = setup({ maxErrorCount: 3 })
      const a = yield* start("a")
      const b = yield* start("b")
      yield* a.shell("ada").Count()
      assert.instanceOf(yield* Effect.flip(a.shell("ada").Fail()), ShellError)
      yield* Effect.exit(b.shell("ada").Crash())
      assert.strictEqual(log.length, 1)
      yield* Effect.exit(a.shell("ada").Fail())
      assert.deepStrictEqual(log.map((line) => line.slice(2)), ["opens ada", "closes ada"])
      yield* TestClock.adjust("2 minutes")
      assert.strictEqual((yield* a.sharding.activeEntityCount) + (yield* b.sharding.activeEntityCount), 0)
      assert.strictEqual(yield* a.shell("ada").Count(), 1)
    }))

  it.effect("that cannot be opened tells its callers why, on each runner, and keeps no entity", () =>
    Effect.gen(function*() {
      let refused = 0
      const { start } = setup({
        lookup: (key) => Effect.flatMap(Effect.sync(() => refused++), () => Effect.fail(new ShellError({ why: key })))
      })
      const a = yield* start("a")
      const b = yield* start("b")
      for (const { shell } of [a, b]) {
        const error = yield* Effect.flip(shell("ada").Count())
        assert.instanceOf(error, ShellError)
        assert.strictEqual(error.why, "ada")
      }
      assert.strictEqual(refused, 2)
      yield* TestClock.adjust("2 minutes")
      assert.strictEqual((yield* a.sharding.activeEntityCount) + (yield* b.sharding.activeEntityCount), 0)
    }))

  it.effect("that could not be opened is refused for failureTimeToLive, also by the entity's next life", () =>
    Effect.gen(function*() {
      let tries = 0
      const { start } = setup({
        failureTimeToLive: "10 minutes",
        lookup: () => Effect.flatMap(Effect.sync(() => tries++), () => Effect.fail(new ShellError({ why: "down" })))
      })
      const a = yield* start("a")
      yield* Effect.flip(a.shell("ada").Count())
      yield* TestClock.adjust("2 minutes")
      assert.strictEqual(yield* a.sharding.activeEntityCount, 0)
      yield* Effect.flip(a.shell("ada").Count())
      assert.strictEqual(tries, 1)
    }))

  it.effect("is let go by a caller that is interrupted, on another runner as on its own", () =>
    Effect.gen(function*() {
      const { interrupted, openNow, start, waiting } = setup()
      const a = yield* start("a")
      const b = yield* start("b")
      for (const [i, { shell }] of [a, b].entries()) {
        const call = yield* Effect.forkChild(shell("ada").Wait(), { startImmediately: true })
        yield* TestClock.adjust("1 second")
        assert.strictEqual(waiting(), i + 1)
        yield* Fiber.interrupt(call)
        yield* TestClock.adjust("1 second")
        assert.strictEqual(interrupted(), i + 1)
      }
      // With a lease it would not be idle.
      assert.strictEqual(openNow(), 1)
      yield* TestClock.adjust("11 minutes")
      assert.strictEqual(openNow(), 0)
    }))

  it.effect("is shared by calls that run at the same time", () =>
    Effect.gen(function*() {
      const { openGate, start, waiting } = setup()
      const a = yield* start("a")
      const calls = yield* Effect.forkChild(
        Effect.all([a.shell("ada").Wait(), a.shell("ada").Wait(), a.shell("ada").Wait()], concurrently),
        { startImmediately: true }
      )
      yield* TestClock.adjust("1 second")
      assert.strictEqual(waiting(), 3)
      assert.strictEqual(yield* a.shell("ada").Count(), 1)
      yield* openGate
      assert.deepStrictEqual((yield* Fiber.join(calls)).toSorted(), [2, 3, 4])
    }))

  it.effect("is held by a stream until its end", () =>
    Effect.gen(function*() {
      const { openGate, openNow, start } = setup()
      const a = yield* start("a")
      const b = yield* start("b")
      const streams = yield* Effect.forEach([a, b], ({ shell }) =>
        Effect.forkChild(Stream.runCollect(shell("ada").Numbers()), { startImmediately: true }))
      yield* TestClock.adjust("30 minutes")
      assert.strictEqual(openNow(), 1)
      yield* openGate
      for (const stream of streams) {
        assert.deepStrictEqual([...(yield* Fiber.join(stream))], [1, 2])
      }
      yield* TestClock.adjust("11 minutes")
      assert.strictEqual(openNow(), 0)
      yield* TestClock.adjust("30 seconds")
      assert.strictEqual((yield* a.sharding.activeEntityCount) + (yield* b.sharding.activeEntityCount), 0)
    }))

  it.effect("is not opened by what a handler left running after the end of its entity", () =>
    Effect.gen(function*() {
      const { left, log, openGate, start } = setup()
      const a = yield* start("a")
      yield* a.shell("ada").Leave()
      yield* TestClock.adjust("2 minutes")
      assert.strictEqual(yield* a.sharding.activeEntityCount, 0)
      yield* openGate
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(left.map((exit) => Exit.isFailure(exit) && Cause.squash(exit.cause)).map(String), [
        "PoolClosed: The session pool is closed: its scope has ended. Use it only while the layer or scope that made it is open."
      ])
      assert.deepStrictEqual(log, [])
    }))
})
