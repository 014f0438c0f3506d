/** Sessions over the runners of a cluster: where a connection lives, and for how long. A key never has two at once. */
import { assert, describe, it } from "@effect/vitest"
import type { Duration } from "effect"
import { Deferred, Effect, Exit, Fiber, Layer, Metric, Schema, Stream } from "effect"
import type { Message } from "effect/cluster"
import { Entity, Sharding, ShardingConfig } from "effect/cluster"
import { Rpc } from "effect/rpc"
import { TestClock } from "effect/testing"
import * as SessionEntity from "../src/SessionEntity.ts"
import type * as SessionPool from "../src/SessionPool.ts"
import * as Cluster from "./kit/cluster.ts"

class ShellError extends Schema.TaggedError<ShellError>()("ShellError", { why: Schema.String }) {}

const Shell = Entity.make("Shell", [
  /** Counts the uses of the connection, so 1 means a new connection. */
  Rpc.make("Count", { success: Schema.Number, error: ShellError }),
  /** The same, after the gate has opened. */
  Rpc.make("Wait", { success: Schema.Number, error: ShellError }),
  /** A stream that holds the session until the gate has opened. */
  Rpc.make("Watch", { success: Schema.Void, error: ShellError, stream: true }),
  Rpc.make("Crash", { error: ShellError }),
  Rpc.make("End", { success: Schema.Boolean }),
  /** Leaves a fiber behind that counts after these milliseconds. */
  Rpc.make("Leave", { payload: { after: Schema.Number } })
])

const keys = Array.from({ length: 20 }, (_, i) => `key ${i}`)

interface Setup
  extends Partial<SessionPool.Options<string, { count: number }, ShellError, never>>, SessionEntity.EntityOptions
{
  /** How long a connection takes to close, in milliseconds. */
  readonly closing?: number
  /** How many keep-alives the engine refuses. */
  readonly refused?: number
}

/** One function, because the layer, its handlers and the tests share the counts. */
const setup = ({ closing = 0, refused = 0, ...options }: Setup = {}) => {
  const cluster = Cluster.make()
  /** Opened and closed, in order: `a opens key 1`. */
  const log: Array<string> = []
  /** The keys of open connections. */
  const open: Array<string> = []
  const keepAlives: Array<Message.Outgoing<Rpc.Any>> = []
  const left: Array<Exit.Exit<number, ShellError>> = []
  const gate = Deferred.makeUnsafe<void>()
  const over = Deferred.makeUnsafe<void>()

  const entities = (runner: string) =>
    SessionEntity.toLayer(Shell, {
      idleTimeToLive: "10 minutes",
      cleanupInterval: "1 minute",
      lookup: (key) =>
        Effect.acquireRelease(
          Effect.sync(() => {
            log.push(`${runner} opens ${key}`)
            open.push(key)
            return { count: 0 }
          }),
          () =>
            Effect.raceFirst(Effect.sleep(closing), Deferred.await(over)).pipe(Effect.map(() => {
              log.push(`${runner} closes ${key}`)
              open.splice(open.indexOf(key), 1)
            }))
        ),
      ...options,
      handlers: (session) => {
        const count = session.use((connection) => Effect.sync(() => ++connection.count))
        const told = Effect.mapError((error: ShellError | SessionPool.SessionPoolError) =>
          error._tag === "ShellError" ? error : new ShellError({ why: error.reason._tag })
        )
        const leave = Effect.map(Effect.exit(told(count)), (exit) => left.push(exit))
        return {
          Count: () => told(count),
          Wait: () => told(session.use((connection) => Effect.map(Deferred.await(gate), () => ++connection.count))),
          Watch: () => Stream.unwrap(Effect.as(told(session.get), Stream.fromEffect(Deferred.await(gate)))),
          Crash: () => told(session.use(({ count }) => count > 0 ? Effect.die("asked to") : Effect.void)),
          End: () => session.invalidate,
          Leave: ({ payload: { after } }) => Effect.asVoid(Effect.forkDetach(Effect.delay(leave, after)))
        }
      }
    })

  const recorded = Layer.effect(
    Sharding.Sharding,
    Effect.map(Sharding.Sharding, (sharding) => ({
      ...sharding,
      sendOutgoing: (message: Message.Outgoing<Rpc.Any>, discard: boolean) => {
        keepAlives.push(message)
        return keepAlives.length > refused ? sharding.sendOutgoing(message, discard) : Effect.die("refused")
      }
    }))
  )

  const start = Effect.fnUntraced(function*(name: string) {
    const runner = yield* cluster.start(name, Layer.provide(entities(name), recorded))
    // The clock stands still when a test ends. A connection that still closes must not wait for it.
    yield* Effect.addFinalizer(() => Deferred.succeed(over, undefined))
    yield* TestClock.adjust("10 seconds")
    const shell = yield* runner.sharding.makeClient(Shell)
    return { ...runner, shell, countAll: Effect.forEach(keys, (key) => shell(key).Count(), concurrently) }
  })

  /** What happened to one key. */
  const logOf = (key: string) => log.filter((line) => line.endsWith(` ${key}`))
  return { entities, keepAlives, left, log, logOf, open, openGate: Deferred.succeed(gate, undefined), start }
}

const concurrently = { concurrency: "unbounded" } as const

const fork = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })

/** The log of a session that moves from runner a to runner b. */
const moves = (key: string) => [`a opens ${key}`, `a closes ${key}`, `b opens ${key}`]

/** Runs an effect while this time passes. */
const during = <A, E, R>(time: Duration.Input, effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const fiber = yield* fork(effect)
    yield* TestClock.adjust(time)
    return yield* Fiber.join(fiber)
  })

describe("SessionEntity", () => {
  it.effect("opens one connection per key, also when several runners are asked at once", () =>
    Effect.gen(function*() {
      const { log, start } = setup()
      const runners = [yield* start("a"), yield* start("b"), yield* start("c")]
      const counts = yield* Effect.all([...runners, ...runners].map(({ countAll }) => countAll), concurrently)
      for (const i of keys.keys()) assert.deepStrictEqual(counts.map((of) => of[i]).toSorted(), [1, 2, 3, 4, 5, 6])
      assert.deepStrictEqual(log.map((line) => line.slice("a opens ".length)).toSorted(), keys.toSorted())
      assert.deepStrictEqual([...new Set(log.map((line) => line[0]))].toSorted(), ["a", "b", "c"])
    }))

  it.effect("keeps an entity for the session's idleTimeToLive, not for the engine's maxIdleTime", () =>
    Effect.gen(function*() {
      const { log, start } = setup()
      const a = yield* start("a")
      for (const count of [1, 2, 3]) {
        assert.strictEqual(yield* a.shell("ada").Count(), count)
        yield* TestClock.adjust("9 minutes")
        assert.strictEqual(yield* a.sharding.activeEntityCount, 1)
      }
      yield* TestClock.adjust("2 minutes")
      assert.deepStrictEqual(log, ["a opens ada", "a closes ada"])
      yield* TestClock.adjust("30 seconds")
      assert.strictEqual(yield* a.sharding.activeEntityCount, 0)
    }))

  it.effect("keeps an entity whose next session opens as soon as the last one is closed", () =>
    Effect.gen(function*() {
      const { log, openGate, start } = setup({ capacity: 1 })
      const a = yield* start("a")
      const calls = [yield* fork(a.shell("ada").Wait())]
      yield* TestClock.adjust("1 second")
      yield* a.shell("ada").End()
      calls.push(yield* fork(a.shell("ada").Count()))
      yield* openGate
      yield* Fiber.joinAll(calls)
      assert.deepStrictEqual(log, ["a opens ada", "a closes ada", "a opens ada"])
      yield* TestClock.adjust("9 minutes")
      assert.strictEqual(yield* a.sharding.activeEntityCount, 1)
      yield* a.shell("ada").End()
      yield* TestClock.adjust("2 minutes")
      assert.strictEqual(yield* a.sharding.activeEntityCount, 0)
    }))

  it.effect("keeps an entity until its last session is closed", () =>
    Effect.gen(function*() {
      const { open, openGate, start } = setup()
      const a = yield* start("a")
      // The first session is retired, but leased until the gate opens.
      const call = yield* fork(a.shell("ada").Wait())
      yield* TestClock.adjust("1 second")
      yield* a.shell("ada").End()
      yield* a.shell("ada").Count()
      assert.deepStrictEqual(open, ["ada", "ada"])
      yield* openGate
      yield* Fiber.join(call)
      yield* TestClock.adjust("9 minutes")
      assert.deepStrictEqual(open, ["ada"])
      assert.strictEqual(yield* a.sharding.activeEntityCount, 1)
    }))

  it.effect("ignores a keep-alive message that arrives too late", () =>
    Effect.gen(function*() {
      const { keepAlives, start } = setup()
      const a = yield* start("a")
      const late = Effect.suspend(() => a.sharding.sendOutgoing(keepAlives[0] ?? assert.fail("no message"), true))
      yield* a.shell("ada").Count()
      yield* a.shell("ada").End()
      yield* TestClock.adjust("2 minutes")
      yield* late
      assert.strictEqual(yield* a.sharding.activeEntityCount, 1)
      yield* TestClock.adjust("2 minutes")
      assert.strictEqual(yield* a.sharding.activeEntityCount, 0)
      yield* a.shell("ada").Count()
      yield* late
      yield* TestClock.adjust("9 minutes")
      assert.strictEqual(yield* a.sharding.activeEntityCount, 1)
      assert.strictEqual(keepAlives.length, 2)
    }))

  it.effect("keeps an entity for its next session after the engine refused a keep-alive", () =>
    Effect.gen(function*() {
      const { start } = setup({ refused: 1 })
      const a = yield* start("a")
      yield* a.shell("ada").Count()
      yield* during("1 second", a.shell("ada").End())
      yield* a.shell("ada").Count()
      yield* TestClock.adjust("9 minutes")
      assert.strictEqual(yield* a.sharding.activeEntityCount, 1)
    }))

  it.effect("closes the session of an entity that has ended, before it opens the next one", () =>
    Effect.gen(function*() {
      const { log, start } = setup({ closing: 3000, refused: Infinity })
      const a = yield* start("a")
      yield* a.shell("ada").Count()
      yield* TestClock.adjust("80 seconds")
      assert.strictEqual(yield* a.sharding.activeEntityCount, 0)
      assert.deepStrictEqual(log, ["a opens ada"])
      assert.strictEqual(yield* during("10 seconds", a.shell("ada").Count()), 1)
      assert.deepStrictEqual(log, ["a opens ada", "a closes ada", "a opens ada"])
    }))

  it.effect("moves with its shard: calls finish, the session closes, the next runner opens one", () =>
    Effect.gen(function*() {
      const { log, logOf, openGate, start } = setup({ closing: 3000 })
      const a = yield* start("a")
      const calls = yield* fork(Effect.forEach(keys, (key) => a.shell(key).Wait(), concurrently))
      yield* start("b")
      // These wait until the shards have moved.
      const later = yield* fork(a.countAll)
      yield* openGate
      yield* TestClock.adjust("1 minute")
      const counts = yield* Fiber.joinAll([calls, later])
      const moved = keys.filter((key) => log.includes(`b opens ${key}`))
      assert.isTrue(moved.length > 0 && moved.length < keys.length)
      for (const [i, key] of keys.entries()) {
        const stays = !moved.includes(key)
        assert.deepStrictEqual(logOf(key), stays ? [`a opens ${key}`] : moves(key))
        assert.deepStrictEqual(counts.map((of) => of[i]).toSorted(), stays ? [1, 2] : [1, 1])
      }
    }))

  it.effect("keeps the shard of a session that hangs while closing for at most closeTimeout", () =>
    Effect.gen(function*() {
      const { start } = setup({ closing: 3_600_000, closeTimeout: "1 minute" })
      const a = yield* start("a")
      yield* a.countAll
      const b = yield* start("b")
      const calls = yield* fork(b.countAll)
      yield* TestClock.adjust("45 seconds")
      assert.isUndefined(calls.pollUnsafe())
      yield* TestClock.adjust("15 seconds")
      assert.includeMembers(yield* Fiber.join(calls), [1, 2])
    }))

  it.effect("closes on shutdown before another runner opens, and interrupts calls that outlast the engine's timeout", () =>
    Effect.gen(function*() {
      const { log, logOf, open, openGate, start } = setup({ closing: 3000 })
      const a = yield* start("a")
      const b = yield* start("b")
      const calls = yield* fork(Effect.forEach(keys, (key) => Effect.exit(b.shell(key).Wait()), concurrently))
      yield* TestClock.adjust("1 second")
      const ofA = keys.filter((key) => log.includes(`a opens ${key}`))
      assert.isNotEmpty(ofA)
      const stopping = yield* fork(a.stop)
      assert.deepStrictEqual(yield* during("1 minute", b.countAll), keys.map(() => 1))
      yield* Fiber.join(stopping)
      yield* openGate
      const exits = yield* Fiber.join(calls)
      assert.deepStrictEqual(exits.map(Exit.hasInterrupts), keys.map((key) => ofA.includes(key)))
      for (const key of ofA) assert.deepStrictEqual(logOf(key), moves(key))
      yield* during("1 minute", b.stop)
      assert.deepStrictEqual(open, [])
    }))

  it.effect("keeps the session when a handler dies, unless disableFatalDefects is false", () =>
    Effect.gen(function*() {
      for (const [disableFatalDefects, opened] of [[undefined, 1], [false, 2]] as const) {
        const { log, start } = setup({ disableFatalDefects, closing: 1000 })
        const a = yield* start("a")
        yield* a.shell("ada").Count()
        // A restarted entity runs the request again. It succeeds on a new connection.
        const exit = yield* during("10 seconds", Effect.exit(a.shell("ada").Crash()))
        assert.strictEqual(Exit.isSuccess(exit), opened === 2)
        assert.strictEqual(log.filter((line) => line === "a opens ada").length, opened)
      }
    }))

  it.effect("tells callers on any runner why a launch failed, and remembers it after the entity has ended", () =>
    Effect.gen(function*() {
      let launches = 0
      const { start } = setup({
        failureTimeToLive: "10 minutes",
        lookup: (key) => Effect.andThen(Effect.sync(() => launches++), Effect.fail(new ShellError({ why: key })))
      })
      const a = yield* start("a")
      const b = yield* start("b")
      for (const { shell } of [a, b, a]) {
        assert.deepInclude(yield* Effect.flip(shell("ada").Count()), { why: "ada" })
        yield* TestClock.adjust("2 minutes")
        assert.deepStrictEqual([yield* a.sharding.activeEntityCount, yield* b.sharding.activeEntityCount], [0, 0])
      }
      assert.strictEqual(launches, 1)
    }))

  it.effect("leases the session until a request ends or its caller is interrupted, on any runner", () =>
    Effect.gen(function*() {
      const { open, openGate, start } = setup()
      const runners = [yield* start("a"), yield* start("b")]
      const calls = yield* Effect.forEach(runners, ({ shell }) => fork(shell("ada").Wait()))
      yield* TestClock.adjust("30 minutes")
      assert.deepStrictEqual(open, ["ada"])
      yield* Fiber.interruptAll(calls)
      yield* TestClock.adjust("11 minutes")
      assert.deepStrictEqual(open, [])
      const streams = yield* Effect.forEach(runners, ({ shell }) => fork(Stream.runCollect(shell("ada").Watch())))
      yield* TestClock.adjust("30 minutes")
      assert.deepStrictEqual(open, ["ada"])
      yield* openGate
      assert.deepStrictEqual(yield* Fiber.joinAll(streams), [[undefined], [undefined]])
      yield* TestClock.adjust("11 minutes")
      assert.deepStrictEqual(open, [])
    }))

  it.effect("evicts a session of another entity of the runner when the pool is full", () =>
    Effect.gen(function*() {
      const { log, start } = setup({ capacity: 1 })
      const a = yield* start("a")
      yield* a.shell("ada").Count()
      yield* a.shell("bob").Count()
      const pools = (yield* Metric.snapshot).map(({ attributes }) => attributes?.["pool"])
      assert.include(pools, "Shell")
      assert.deepStrictEqual(log, ["a opens ada", "a closes ada", "a opens bob"])
      yield* TestClock.adjust("2 minutes")
      assert.strictEqual(yield* a.sharding.activeEntityCount, 1)
    }))

  it.effect("refuses the session to a fiber that outlives its entity", () =>
    Effect.gen(function*() {
      const { left, log, start } = setup()
      const a = yield* start("a")
      yield* a.shell("ada").Leave({ after: 120_000 })
      yield* TestClock.adjust("2 minutes")
      assert.deepInclude(yield* Effect.flip(left[0] ?? assert.fail("still runs")), { why: "PoolClosed" })
      assert.deepStrictEqual(log, [])
    }))

  it.effect("launches no session for a fiber that waits for room when its entity ends", () =>
    Effect.gen(function*() {
      const { left, log, openGate, start } = setup({ capacity: 1, closing: 3000 })
      const a = yield* start("a")
      const call = yield* fork(a.shell("ada").Wait())
      yield* TestClock.adjust("1 second")
      yield* a.shell("ada").End()
      yield* a.shell("ada").Leave({ after: 0 })
      const stopping = yield* fork(a.stop)
      yield* TestClock.adjust("1 second")
      yield* openGate
      yield* during("5 seconds", Fiber.join(stopping))
      yield* Fiber.join(call)
      assert.deepStrictEqual(left.map(Exit.hasInterrupts), [true])
      assert.deepStrictEqual(log, ["a opens ada", "a closes ada"])
    }))

  it.effect("works with the engine's test client", () =>
    Effect.gen(function*() {
      const client = yield* Entity.makeTestClient(Shell, setup().entities("a"))
      const shell = yield* client("ada")
      assert.deepStrictEqual([yield* shell.Count(), yield* shell.Count()], [1, 2])
    }).pipe(Effect.provide(ShardingConfig.layer())))
})
