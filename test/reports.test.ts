/** Reports to an operator: stats, metrics, log, leaks and spans. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Logger, Metric, References, Scope, Tracer } from "effect"
import { TestClock } from "effect/testing"
import { readFileSync } from "node:fs"
import { SessionPool } from "../src/index.ts"
import { fork, hold, listen, visit } from "./kit/pool/calls.ts"
import { test } from "./kit/pool/withPool.ts"

const manual = readFileSync(new URL("../src/README.md", import.meta.url), "utf8")

describe("stats and metrics", () => {
  /** A back end whose keys say what it does: `bad`, `hangs` and `stuck` (which closes slowly). */
  const lookup = (key: string): Effect.Effect<string, string, Scope.Scope> => {
    if (key === "hangs") return Effect.never
    if (key === "bad") return Effect.delay(Effect.fail("refused"), "2 seconds")
    const close = key === "stuck" ? Effect.sleep("50 seconds") : Effect.void
    return Effect.delay(Effect.acquireRelease(Effect.succeed(key), () => close), "2 seconds")
  }

  /** The metrics of the pool `shells`: each a value, or count and sum of a histogram. */
  const metrics = Effect.gen(function*() {
    const all: Record<string, unknown> = {}
    for (const { attributes, id, state } of yield* Metric.snapshot) {
      const { pool, unit, ...labels } = attributes as Record<string, string> // all attributes of these metrics are text
      if (pool !== "shells") continue
      assert.strictEqual(unit, id.endsWith("_seconds") ? "seconds" : undefined, id)
      assert.isTrue(!("incremental" in state) || state.incremental, id)
      all[[id, ...Object.values(labels)].join(" ")] = "sum" in state
        ? [state.count, state.sum]
        : "value" in state
        ? state.value
        : "count" in state && state.count
    }
    return all
  })

  it.effect("stats and metrics show what the pool holds now, and count what has happened since it was made", () =>
    Effect.gen(function*() {
      const pool = yield* SessionPool.make({
        lookup,
        name: "shells",
        capacity: 3,
        idleTimeToLive: 0,
        maxErrorCount: 1,
        maxWaiting: 1,
        acquireTimeout: "5 seconds",
        lookupTimeout: "5 seconds",
        closeTimeout: "10 seconds",
        leakDetection: "1 minute"
      })
      /** Forks an effect, then lets ten seconds pass. */
      const begin = <A>(effect: Effect.Effect<A, unknown>) =>
        Effect.tap(fork(effect), () => TestClock.adjust("10 seconds"))
      const none = yield* SessionPool.stats(pool)
      assert.deepStrictEqual([...new Set([...Object.values(none), ...Object.values(none.closes)])], [0, none.closes])

      yield* fork(visit(pool, "a"))
      yield* fork(visit(pool, "a"))
      yield* SessionPool.set(pool, "b", "adopted")
      const retired = yield* hold(pool, "b")
      yield* SessionPool.recordError(pool, "b")
      yield* SessionPool.set(pool, "c", "adopted")
      const active = yield* hold(pool, "c")
      yield* fork(visit(pool, "d"))
      yield* Effect.exit(visit(pool, "e"))
      yield* Effect.exit(SessionPool.set(pool, "f", "adopted"))
      const counts = { hits: 2, misses: 2, joins: 1, errors: 1, refused: 2 }
      assert.deepStrictEqual(yield* SessionPool.stats(pool), {
        ...none,
        ...counts,
        launching: 1,
        active: 1,
        retired: 1,
        leases: 2,
        waiting: 1
      })
      assert.deepInclude(yield* metrics, {
        "session_pool_open_sessions": 2,
        "session_pool_leases": 2,
        "session_pool_waiting": 1
      })

      // "d" gets the place of "a" after two seconds.
      yield* TestClock.adjust("4 seconds")
      yield* retired.release
      yield* begin(visit(pool, "bad"))
      yield* begin(visit(pool, "hangs"))
      const stuck = yield* Fiber.join(yield* begin(hold(pool, "stuck")))
      yield* begin(hold(pool, "leaked"))
      yield* begin(visit(pool, "late"))
      yield* active.release
      yield* SessionPool.invalidate(pool, "stuck")
      yield* stuck.release
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(yield* SessionPool.stats(pool), {
        ...none,
        ...counts,
        active: 1,
        leases: 1,
        misses: 7,
        launches: 4,
        launchFailures: 2,
        waited: 2,
        timedOut: 1,
        closes: { ...none.closes, IdleTimeout: 3, Errors: 1, Invalidated: 1 }
      })
      assert.deepStrictEqual(yield* metrics, {
        "session_pool_launches_total success": 4,
        "session_pool_launches_total failure": 1,
        "session_pool_launches_total timeout": 1,
        "session_pool_launch_duration_seconds": [6, 4 * 2 + 2 + 5],
        "session_pool_retirements_total IdleTimeout": 3,
        "session_pool_retirements_total MaxLifetime": 0,
        "session_pool_retirements_total Errors": 1,
        "session_pool_retirements_total Invalidated": 1,
        "session_pool_retirements_total Replaced": 0,
        "session_pool_retirements_total Evicted": 0,
        "session_pool_retirements_total Disconnected": 0,
        "session_pool_retirements_total Invalid": 0,
        "session_pool_retirements_total PoolClosed": 0,
        "session_pool_open_sessions": 1,
        "session_pool_close_duration_seconds": [5, 50],
        "session_pool_close_timeouts_total": 1,
        "session_pool_leaked_leases_total": 1,
        "session_pool_acquisitions_total waited": 2,
        "session_pool_acquisitions_total timeout": 1,
        "session_pool_acquisitions_total refused": 2,
        "session_pool_wait_duration_seconds": [2, 2 + 5],
        "session_pool_lease_duration_seconds": [6, 4 + 54 + 28],
        "session_pool_leases": 1,
        "session_pool_waiting": 0
      })
      const rows = (yield* Metric.snapshot).map(({ attributes = {}, description, id, type }) => {
        const labels = Object.keys(attributes).filter((name) => name !== "unit")
        return `| ${id} | ${type.toLowerCase()} | ${labels.join(", ")} | ${description} |`
      })
      const told = manual.replaceAll("`", "").split("\n").filter((line) => line.startsWith("| session_pool_"))
      assert.deepStrictEqual(told.toSorted(), [...new Set(rows)].toSorted())
    }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())))

  it.effect("the metrics of two pools of one name add up, also after one of them has ended", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const make = SessionPool.make({ lookup: Effect.succeed<string>, name: "shells" })
      yield* hold(yield* make, "a")
      const lease = yield* hold(yield* Scope.provide(make, scope), "b")
      assert.deepInclude(yield* metrics, { "session_pool_open_sessions": 2, "session_pool_leases": 2 })
      yield* Scope.close(scope, Exit.void)
      yield* lease.release
      assert.deepInclude(yield* metrics, { "session_pool_open_sessions": 1, "session_pool_leases": 1 })
    }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())))
})

describe("waits", () => {
  test("stats and metrics count every caller that waited, also several of one key", function*() {
    const pool = yield* SessionPool.make({ lookup: Effect.succeed<string>, name: "waits", capacity: 1 })
    const place = yield* hold(pool, "held")
    yield* Effect.replicateEffect(fork(visit(pool, "a")), 3)
    const interrupted = yield* fork(visit(pool, "b"))
    yield* TestClock.adjust("2 seconds")
    yield* Fiber.interrupt(interrupted)
    yield* place.release
    const series = (yield* Metric.snapshot).filter(({ attributes }) => attributes?.pool === "waits")
    const waited = series.find(({ attributes }) => attributes?.outcome === "waited")?.state
    const duration = series.find(({ id }) => id === "session_pool_wait_duration_seconds")?.state
    assert.deepInclude(waited, { count: 4 })
    assert.deepInclude(duration, { count: 4, sum: 8 })
    assert.strictEqual((yield* SessionPool.stats(pool)).waited, 4)
  })

  it.effect("two pools of one name count their leases under the metric attributes that each was made with", () =>
    Effect.gen(function*() {
      const make = SessionPool.make({ lookup: Effect.succeed<string>, name: "tenants" })
      // A metric of the user with the same attributes.
      yield* Metric.update(Metric.gauge("users", { attributes: { pool: "tenants", tenant: "one" } }), 7)
      for (const tenant of ["one", "two"]) {
        const pool = yield* Effect.provideService(make, Metric.CurrentMetricAttributes, { tenant })
        yield* hold(pool, tenant)
        if (tenant === "two") yield* hold(pool, "more")
      }
      const leases = (yield* Metric.snapshot).filter(({ id }) => id === "session_pool_leases")
      assert.deepStrictEqual(leases.map(({ attributes, state }) => [attributes?.tenant, state]), [
        ["one", { value: 1 }],
        ["two", { value: 2 }]
      ])
    }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())))
})

describe("log", () => {
  const lines: Array<string> = []
  const logger = Logger.make(({ fiber, logLevel, message }) => {
    lines.push(JSON.stringify([logLevel, message, fiber.getRef(References.CurrentLogAnnotations)]))
  })
  const close = (key: string) =>
    key === "dies" ? Effect.die("finalizer is ill") : key === "hangs" ? Effect.sleep("1 minute") : Effect.void
  const program = Effect.fnUntraced(function*(key: string, isLeaked: boolean) {
    lines.length = 0
    const pool = yield* SessionPool.make({
      lookup: (key: string) => Effect.acquireRelease(Effect.succeed(key), close),
      name: "shells",
      idleTimeToLive: "1 hour",
      closeTimeout: "10 seconds",
      leakDetection: "90 seconds"
    })
    const { release } = yield* hold(pool, key)
    if (!isLeaked) yield* release
    yield* TestClock.adjust("2 hours")
  }, (effect) => Effect.scoped(effect).pipe(Effect.provide(Logger.layer([logger]))))

  const reports: ReadonlyArray<readonly [what: string, key: string, parts: ReadonlyArray<string>]> = [
    ["a close that exceeds closeTimeout", "hangs", ["10000 ms", "close"]],
    ["a finalizer that fails and its cause", "dies", ["finalizer failed", "finalizer is ill"]],
    ["a lease that exceeds leakDetection", "leaked", ["held for 90000 ms", "leakDetection: 90000 ms"]]
  ]
  for (const [what, key, parts] of reports) {
    test(`the log has one line about ${what}, with the pool and the session, and without the key`, function*() {
      yield* program(key, key === "leaked")
      assert.strictEqual(lines.length, 1)
      for (const part of ["Warn", ...parts, "\"pool\":\"shells\"", "\"session\":1"]) assert.include(lines[0], part)
      assert.notInclude(lines[0], `"${key}"`)
    })
  }

  test("a healthy pool logs nothing", function*() {
    yield* program("fine", false)
    assert.deepStrictEqual(lines, [])
  })
})

describe("leakDetection", () => {
  class Shells extends SessionPool.Service<Shells>()("test/Shells", {
    lookup: Effect.succeed<string>,
    leakDetection: "1 minute"
  }) {}
  const never = () => Effect.never
  const calls = (pool: SessionPool.SessionPool<string, string>) => ({
    get: () => SessionPool.get(pool, "a"),
    getOption: () => SessionPool.getOption(pool, "a"),
    lease: () => SessionPool.lease(pool, "a"),
    use: () => SessionPool.use(pool, "a", never),
    "Service.get": () => Shells.get("a"),
    "Service.use": () => Shells.use("a", never)
  })

  it.effect("a lease held for longer than leakDetection is reported once, with the span and the line of code that took it", () =>
    Effect.gen(function*() {
      const pool = yield* Shells
      const seen = yield* listen(pool)
      for (const [name, call] of Object.entries(calls(pool))) {
        const returned = yield* hold(pool, "a")
        seen.length = 0
        const span = Tracer.externalSpan({ spanId: "span-7", traceId: "trace-9" })
        yield* fork(Effect.withParentSpan(Effect.suspend<unknown, unknown, Scope.Scope | Shells>(call), span))
        yield* TestClock.adjust(59_999)
        yield* returned.release
        assert.deepStrictEqual(seen, [])
        yield* TestClock.adjust("10 minutes")
        const sites = seen.map((event) => event._tag === "LeaseLeaked" ? event.site : event._tag)
        assert.strictEqual(sites.length, 1, name)
        assert.match(sites.join(), /^span span-7 \(trace-9\)\nError: lease taken here\n/)
        assert.match(sites.join(), new RegExp(`at .*\\b${name}\\b.*reports\\.test\\.ts`))
      }
    }).pipe(Effect.provide(Shells.layer), Effect.provide(Logger.layer([]))))

  class Effectful extends SessionPool.Service<Effectful>()(
    "test/Effectful",
    Effect.succeed({ lookup: Effect.succeed<string>, leakDetection: "1 minute" })
  ) {}
  const plain: ReadonlyArray<readonly [name: string, from: Effect.Effect<unknown, unknown, Effectful>, site: string]> =
    [
      [
        "names the span of the use where no stack is known",
        Effect.withSpan(Effectful.use("a", never), "request"),
        "span request"
      ],
      ["says unknown where neither span nor stack is known", Effectful.use("a", never), "unknown"]
    ]
  for (const [name, call, site] of plain) {
    it.effect(`a leak report ${name}`, () =>
      Effect.gen(function*() {
        const seen = yield* listen(yield* Effectful)
        yield* fork(call)
        yield* TestClock.adjust("1 minute")
        const sites = seen.map((event) => event._tag === "LeaseLeaked" ? event.site.split(" (")[0] : event._tag)
        assert.deepStrictEqual(sites, ["Launched", site])
      }).pipe(Effect.provide(Effectful.layer), Effect.provide(Logger.layer([]))))
  }
})

describe("spans", () => {
  test("each launch and close has a span with the pool and the session, and a launch links to its request", function*() {
    const spans: Array<Tracer.NativeSpan> = []
    const tracer = Tracer.make({
      span: (options) => {
        const span = new Tracer.NativeSpan(options)
        spans.push(span)
        return span
      }
    })
    const pool = SessionPool.make({ lookup: Effect.succeed<string>, name: "shells" })
    yield* Effect.flatMap(pool, (pool) => Effect.withSpan(visit(pool, "secret"), "request")).pipe(
      Effect.scoped,
      Effect.withTracer(tracer)
    )
    const told = spans.map(({ attributes, links, name, parent }) => [
      name,
      Object.fromEntries(attributes),
      links.map(({ span }) => span._tag === "Span" && span.name),
      parent._tag
    ])
    const attributes = { "session_pool.name": "shells", "session_pool.session.id": 1 }
    assert.deepStrictEqual(told, [
      ["request", {}, [], "None"],
      ["SessionPool.launch", attributes, ["request"], "None"],
      ["SessionPool.close", attributes, [], "None"]
    ])
  })
})
