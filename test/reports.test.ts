/** What an operator sees of a pool: its metrics with their numbers, its log lines, its spans. */
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Exit, Fiber, Logger, Metric, Option, References, Scope, Stream, Tracer } from "effect"
import { PrometheusMetrics } from "effect/observability"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import * as Exported from "./kit/metrics.ts"

/** A back end whose keys say what it does: `bad`, `hangs` and `stuck` (which does not close). */
const lookup = (key: string): Effect.Effect<string, string, Scope.Scope> => {
  if (key.startsWith("bad")) return Effect.delay(Effect.fail("refused"), "2 seconds")
  if (key === "hangs") return Effect.never
  const close = key === "stuck" ? "50 seconds" : "3 seconds"
  return Effect.delay(Effect.acquireRelease(Effect.succeed(key), () => Effect.sleep(close)), "2 seconds")
}

const visit = (pool: SessionPool.SessionPool<string, string, string>, key: string) =>
  Effect.gen(function*() {
    const fiber = yield* Effect.forkChild(Effect.exit(Effect.scoped(SessionPool.get(pool, key))), {
      startImmediately: true
    })
    yield* TestClock.adjust("10 seconds")
    return fiber
  })

describe("the metrics of a pool", () => {
  const measured = Effect.gen(function*() {
    const all: Record<string, unknown> = {}
    for (const { attributes, id, state } of yield* Metric.snapshot) {
      if (!id.startsWith("session_pool_")) continue
      const { pool, unit, ...rest } = attributes as Record<string, string>
      assert.strictEqual(pool, "shells", id)
      assert.strictEqual(unit, id.endsWith("_seconds") ? "seconds" : undefined, id)
      const name = [id.slice("session_pool_".length), ...Object.values(rest)].join(" ")
      all[name] = "sum" in state
        ? [state.count, state.sum]
        : "value" in state
        ? state.value
        : "count" in state
        ? state.count
        : undefined
    }
    return all
  })

  it.effect("count launches, retirements, closes and leaks, hold what is open, measure in seconds, and are those of the README", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup,
        name: "shells",
        lookupTimeout: "5 seconds",
        closeTimeout: "10 seconds",
        leakDetection: "1 minute"
      })
      yield* visit(pool, "a")
      yield* visit(pool, "bad")
      yield* visit(pool, "bad too")
      yield* visit(pool, "hangs")
      yield* visit(pool, "stuck")
      yield* SessionPool.set(pool, "b", "adopted")
      const before = yield* measured
      assert.deepInclude(before, {
        "launches_total success": 2,
        "launches_total failure": 2,
        "launches_total timeout": 1,
        "open_sessions": 3,
        "launch_duration_seconds": [5, 2 + 2 + 2 + 2 + 5]
      })
      yield* SessionPool.invalidate(pool, "a")
      yield* SessionPool.set(pool, "stuck", "adopted")
      yield* SessionPool.get(pool, "b")
      yield* TestClock.adjust("2 minutes")
      assert.deepInclude(yield* measured, {
        "retirements_total Invalidated": 1,
        "retirements_total Replaced": 1,
        "open_sessions": 2,
        "close_duration_seconds": [2, 3 + 50],
        "close_timeouts_total": 1,
        "leaked_leases_total": 1
      })
      const text = yield* PrometheusMetrics.format()
      assert.deepStrictEqual(Exported.exported(text, "session_pool_"), Exported.documented("session_pool_"))
    }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())))

  it.effect("count no launch that was given up", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup, name: "shells" })
      const fiber = yield* Effect.forkChild(Effect.scoped(SessionPool.get(pool, "hangs")), { startImmediately: true })
      yield* Effect.yieldNow
      fiber.interruptUnsafe()
      yield* TestClock.adjust("10 minutes")
      const all = yield* measured
      assert.deepStrictEqual([all["launches_total failure"] ?? 0, all["launches_total timeout"] ?? 0], [0, 0])
    }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())))
})

describe("the log of a pool", () => {
  const lines: Array<string> = []
  const logger = Logger.make(({ fiber, message }) => {
    const annotations = fiber.getRef(References.CurrentLogAnnotations)
    lines.push(JSON.stringify([message, annotations]))
  })

  const logged = <A, E>(effect: Effect.Effect<A, E, Scope.Scope>) => {
    lines.length = 0
    return effect.pipe(Effect.provide(Logger.layer([logger])))
  }

  const assertLine = (...parts: ReadonlyArray<string>) => {
    const found = lines.filter((line) => parts.every((part) => line.includes(part)))
    assert.strictEqual(found.length, 1, `one line with ${parts.join(", ")} in ${lines.join("\n")}`)
  }

  it.effect("says which session of which pool takes too long to close, and how long it may", () =>
    logged(Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup, name: "shells", closeTimeout: "10 seconds" })
      yield* visit(pool, "stuck")
      yield* SessionPool.invalidate(pool, "stuck")
      yield* TestClock.adjust("1 minute")
      assertLine("10000 ms", "close", "\"pool\":\"shells\"", "\"session\":1")
    })))

  it.effect("says whose finalizer failed, and how", () =>
    logged(Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup: (key: string) => Effect.acquireRelease(Effect.succeed(key), () => Effect.die("finalizer is ill")),
        name: "shells"
      })
      yield* Effect.scoped(SessionPool.get(pool, "a"))
      yield* SessionPool.invalidate(pool, "a")
      yield* TestClock.adjust(0)
      assertLine("finalizer failed", "finalizer is ill", "\"pool\":\"shells\"", "\"session\":1")
    })))

  it.effect("says which lease is held too long, for how long, and the limit", () =>
    logged(Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup: Effect.succeed<string>,
        name: "shells",
        leakDetection: "1 minute"
      })
      yield* TestClock.adjust("90 seconds")
      yield* SessionPool.get(pool, "a")
      yield* TestClock.adjust("59 seconds")
      assert.deepStrictEqual(lines, [])
      yield* TestClock.adjust("1 second")
      assertLine("A lease is held for 60000 ms", "leakDetection: 60000 ms", "\"pool\":\"shells\"", "\"session\":1")
      yield* TestClock.adjust("10 minutes")
      assert.strictEqual(lines.length, 1)
    })))

  it.effect("has nothing to say of a pool that is well", () =>
    logged(Effect.gen(function*() {
      const scope = yield* Scope.make()
      const pool = yield* Scope.provide(SessionPool.make({ lookup, idleTimeToLive: "1 minute" }), scope)
      yield* visit(pool, "a")
      yield* visit(pool, "b")
      yield* SessionPool.invalidate(pool, "b")
      yield* TestClock.adjust("1 hour")
      const closing = yield* Effect.forkChild(Scope.close(scope, Exit.void))
      yield* TestClock.adjust("1 minute")
      yield* Effect.yieldNow
      assert.isDefined(closing.pollUnsafe())
      assert.deepStrictEqual(lines, [])
    })))
})

describe("a leaked lease", () => {
  it.effect("is told with its span and below that the lines that took it", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup: Effect.succeed<string>, leakDetection: "1 minute" })
      const told = yield* Effect.forkChild(
        Stream.runHead(Stream.filter(
          SessionPool.events(pool),
          (event) => event._tag === "LeaseLeaked"
        )),
        { startImmediately: true }
      )
      const holding = yield* Effect.forkChild(
        Effect.withSpan(SessionPool.use(pool, "a", () => Effect.never), "work"),
        { startImmediately: true }
      )
      yield* TestClock.adjust("2 minutes")
      const event = Option.getOrUndefined(yield* Fiber.join(told))
      const [first = "", second, ...lines] = event?._tag === "LeaseLeaked" ? event.site.split("\n") : []
      assert.match(first, /^span work \([0-9a-f]{32}\)$/)
      assert.strictEqual(second, "Error: lease taken here")
      assert.isTrue(lines.some((line) => /^\s*at .*reports\.test\.ts/.test(line)))
      yield* Fiber.interrupt(holding)
    }))
})

describe("the spans of a pool", () => {
  it.effect("run a lookup that fails once", () =>
    Effect.gen(function*() {
      let runs = 0
      const tracer = Tracer.make({ span: (options) => new Tracer.NativeSpan(options) })
      const program = Effect.scoped(Effect.gen(function*() {
        const pool = yield* SessionPool.make({
          lookup: (_: string) =>
            Effect.suspend(() => {
              runs++
              return Effect.fail("no")
            })
        })
        assert.strictEqual(yield* Effect.flip(SessionPool.use(pool, "a", () => Effect.void)), "no")
      }))
      yield* Effect.withTracer(program, tracer)
      assert.strictEqual(runs, 1)
    }))

  it.effect("that a tracer refuses keep no connection from being opened or closed", () =>
    Effect.gen(function*() {
      const open = new Set<string>()
      const tracer = Tracer.make({
        span: () => {
          throw new Error("the tracer is ill")
        }
      })
      const program = Effect.scoped(Effect.gen(function*() {
        const pool = yield* SessionPool.make({
          lookup: (key: string) =>
            Effect.acquireRelease(
              Effect.sync(() => open.add(key)),
              () => Effect.sync(() => open.delete(key))
            )
        })
        yield* SessionPool.use(pool, "a", () => Effect.sync(() => assert.deepStrictEqual([...open], ["a"])))
        yield* SessionPool.invalidate(pool, "a")
        assert.deepStrictEqual([...open], [])
        const { closes, retired } = yield* SessionPool.stats(pool)
        assert.deepStrictEqual([closes.Invalidated, retired], [1, 0])
      }))
      yield* Effect.withTracer(program, tracer)
    }))

  it.effect("name the launch and the close of each session, with the pool and the session", () =>
    Effect.gen(function*() {
      const spans: Array<unknown> = []
      const tracer = Tracer.make({
        span: (options) => {
          const span = new Tracer.NativeSpan(options)
          const end = span.end.bind(span)
          span.end = (time, exit) => {
            spans.push([span.name, Object.fromEntries(span.attributes)])
            end(time, exit)
          }
          return span
        }
      })
      const program = Effect.scoped(Effect.gen(function*() {
        const pool = yield* SessionPool.make({ lookup: Effect.succeed<string>, name: "shells" })
        yield* Effect.scoped(SessionPool.get(pool, "a"))
      }))
      yield* Effect.withTracer(program, tracer)
      const attributes = { "session_pool.name": "shells", "session_pool.session.id": 1 }
      assert.deepStrictEqual(spans, [["SessionPool.launch", attributes], ["SessionPool.close", attributes]])
    }))
})

describe("the events of a session", () => {
  const firstThree = (pool: SessionPool.SessionPool<string, number>) =>
    Effect.forkChild(
      Stream.runCollect(Stream.map(Stream.take(SessionPool.events(pool), 3), ({ _tag }) => _tag)),
      { startImmediately: true }
    )

  it.effect("come in the order of the steps, where a caller of a launch that was invalidated is done at once", () =>
    Effect.gen(function*() {
      const gate = yield* Deferred.make<void>()
      const pool = yield* SessionPool.make({ lookup: (_: string) => Effect.as(Deferred.await(gate), 1) })
      const events = yield* firstThree(pool)
      const using = yield* Effect.forkChild(SessionPool.use(pool, "a", () => Effect.void), { startImmediately: true })
      yield* SessionPool.invalidate(pool, "a")
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.join(using)
      assert.deepStrictEqual(yield* Fiber.join(events), ["Launched", "Retired", "Closed"])
    }))

  const named = (pool: SessionPool.SessionPool<string, string, string>, count: number) =>
    Effect.forkChild(
      Stream.runCollect(Stream.map(Stream.take(SessionPool.events(pool), count), ({ _tag, id }) => `${_tag} ${id}`)),
      { startImmediately: true }
    )

  it.effect("come in the order of the steps, where a caller whose launch failed tries again at once", () =>
    Effect.gen(function*() {
      let tries = 0
      const pool = yield* SessionPool.make({
        lookup: (key: string): Effect.Effect<string, string> =>
          Effect.andThen(Effect.yieldNow, Effect.suspend(() => tries++ === 0 ? Effect.fail("no") : Effect.succeed(key)))
      })
      const events = yield* named(pool, 2)
      const use = SessionPool.use(pool, "a", () => Effect.void)
      yield* Effect.catch(use, () => use)
      assert.deepStrictEqual(yield* Fiber.join(events), ["LaunchFailed 1", "Launched 2"])
    }))

  it.effect("tell of a connection that could not be adopted, and takes too long to close", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup: Effect.succeed<string>,
        capacity: 1,
        acquireTimeout: 0,
        closeTimeout: "10 seconds"
      })
      const events = yield* Effect.forkChild(
        Stream.runCollect(Stream.map(Stream.take(SessionPool.events(pool), 2), ({ _tag }) => _tag)),
        { startImmediately: true }
      )
      yield* SessionPool.get(pool, "a")
      const refused = yield* Effect.flip(SessionPool.set(pool, "b", "b", Effect.sleep("1 minute")))
      assert.strictEqual(refused._tag, "CapacityExceeded")
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(yield* Fiber.join(events), ["Launched", "CloseTimedOut"])
    }))

  it.effect("are told to who begins to read while the pool drains, up to its end", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const pool = yield* Scope.provide(
        SessionPool.make({ lookup: (key: string) => Effect.succeed(key), drainTimeout: "1 minute" }),
        scope
      )
      const gate = yield* Deferred.make<void>()
      const using = yield* Effect.forkChild(SessionPool.use(pool, "a", () => Deferred.await(gate)), {
        startImmediately: true
      })
      const ending = yield* Effect.forkChild(Scope.close(scope, Exit.void), { startImmediately: true })
      const late = yield* Effect.forkChild(Stream.runCollect(SessionPool.events(pool)), { startImmediately: true })
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.join(using)
      yield* Fiber.join(ending)
      assert.deepStrictEqual((yield* Fiber.join(late)).map(({ _tag }) => _tag), ["Closed"])
      assert.deepStrictEqual(yield* Stream.runCollect(SessionPool.events(pool)), [])
    }))

  it.effect("come in the order of the steps, where a close makes room for a launch", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup: (key: string): Effect.Effect<string, string, Scope.Scope> =>
          Effect.acquireRelease(Effect.succeed(key), () => Effect.yieldNow),
        capacity: 1
      })
      const events = yield* named(pool, 4)
      yield* SessionPool.use(pool, "a", () => Effect.void)
      yield* SessionPool.use(pool, "b", () => Effect.void)
      assert.deepStrictEqual(yield* Fiber.join(events), ["Launched 1", "Retired 1", "Closed 1", "Launched 2"])
    }))

  it.effect("come in the order of the steps, where a caller invalidates what it gets adopted at once", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({ lookup: (_: string): Effect.Effect<number> => Effect.never })
      const events = yield* firstThree(pool)
      const using = yield* Effect.forkChild(
        SessionPool.use(pool, "a", () => SessionPool.invalidate(pool, "a")),
        { startImmediately: true }
      )
      yield* SessionPool.set(pool, "a", 1)
      yield* Fiber.join(using)
      assert.deepStrictEqual(yield* Fiber.join(events), ["Adopted", "Retired", "Closed"])
    }))
})
