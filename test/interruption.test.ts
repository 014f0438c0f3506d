/**
 * Every operation, interrupted at every point where its fiber can yield, at budgets of operations from 3 to 64 (every budget in
 * `npm run test:long`), alone and while others use the same keys: nothing leaks, everything closes once, and the pool's own
 * counts agree with what is open.
 */
import { afterAll, assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Layer, Scheduler, Scope, Stream } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import { shortOrLong } from "./kit/long.ts"
import * as Backend from "./kit/pool/backend.ts"
import * as Handover from "./kit/pool/handover.ts"

type Pool = SessionPool.SessionPool<string, Backend.Connection>

const budgets = shortOrLong([4, 7, 64], Array.from({ length: 62 }, (_, i) => 3 + i))

/** What one run of an operation works on. */
interface Site {
  readonly pool: Pool
  readonly scope: Scope.Closeable
  readonly backend: Backend.Backend
  readonly handover: Handover.Handover
  /** Of the connections that `set` was given. */
  readonly adopted: { count: number; closes: number }
}

const options = (backend: Backend.Backend, { groupBy } = Handover.make()) => ({
  groupBy,
  capacity: 2,
  maxErrorCount: 1,
  validate: () => Effect.as(Effect.yieldNow, true),
  validateAfter: 0,
  lookup: (key: string) => Effect.tap(backend.open(key), () => Effect.yieldNow)
})

const adopt = ({ adopted, handover, pool }: Site, key: string) =>
  handover.offer(
    SessionPool.set(pool, key, { key, id: -1 }, Effect.sync(() => adopted.closes++)),
    () => adopted.count++
  )

/** Both places are taken for a few turns, so that whoever comes next has to wait. */
const full = ({ pool }: Site) =>
  Effect.forEach(
    ["live", "b"],
    (key) =>
      Effect.forkChild(SessionPool.use(pool, key, () => Effect.andThen(Effect.yieldNow, Effect.yieldNow)), {
        startImmediately: true
      })
  )

class Sessions extends SessionPool.Service<Sessions>()("test/interruption/Sessions", {
  lookup: (key: string) => Effect.succeed(key)
}) {}

/** Over before they could yield. */
const oneStep = ["touch", "invalidate", "recordError"]

const operations: Record<string, (site: Site) => Effect.Effect<unknown, unknown>> = {
  "make": ({ backend }) =>
    Effect.scoped(Effect.flatMap(SessionPool.make(options(backend)), (pool) => SessionPool.get(pool, "a"))),
  "a layer of Service": () => Effect.provide(Sessions.use("a", () => Effect.yieldNow), Layer.fresh(Sessions.layer)),
  "get": ({ pool }) => Effect.scoped(SessionPool.get(pool, "a")),
  "get of a live session": ({ pool }) => Effect.scoped(SessionPool.get(pool, "live")),
  "get that joins a launch": ({ pool }) =>
    Effect.andThen(
      Effect.forkChild(SessionPool.use(pool, "a", () => Effect.yieldNow), { startImmediately: true }),
      Effect.scoped(SessionPool.get(pool, "a"))
    ),
  "get that waits for a place": (site) => Effect.andThen(full(site), Effect.scoped(SessionPool.get(site.pool, "a"))),
  "get that evicts": ({ pool }) =>
    Effect.scoped(Effect.andThen(SessionPool.get(pool, "a"), SessionPool.get(pool, "b"))),
  "getOption": ({ pool }) => Effect.scoped(SessionPool.getOption(pool, "live")),
  "getOption of a launching session": ({ pool }) =>
    Effect.andThen(
      Effect.forkChild(SessionPool.use(pool, "a", () => Effect.yieldNow), { startImmediately: true }),
      Effect.scoped(SessionPool.getOption(pool, "a"))
    ),
  "use": ({ pool }) => SessionPool.use(pool, "a", () => Effect.yieldNow),
  "use of a session that needs no validation": ({ pool }) =>
    Effect.andThen(
      SessionPool.use(pool, "live", () => Effect.void),
      SessionPool.use(pool, "live", () => Effect.andThen(Effect.yieldNow, Effect.yieldNow))
    ),
  "get of a session that needs no validation": ({ pool }) =>
    Effect.andThen(
      SessionPool.use(pool, "live", () => Effect.void),
      Effect.scoped(Effect.andThen(SessionPool.get(pool, "live"), Effect.yieldNow))
    ),
  "use with leak detection": ({ backend }) =>
    Effect.scoped(Effect.flatMap(
      SessionPool.make({ ...options(backend), leakDetection: "1 minute" }),
      (pool) =>
        Effect.andThen(
          SessionPool.use(pool, "a", () => Effect.void),
          SessionPool.use(pool, "a", () => Effect.andThen(Effect.yieldNow, Effect.yieldNow))
        )
    )),
  "use that fails": ({ pool }) => SessionPool.use(pool, "live", () => Effect.fail("broken")),
  "touch": ({ pool }) => SessionPool.touch(pool, "live"),
  "set": (site) => adopt(site, "a"),
  "set over a live session": (site) => adopt(site, "live"),
  "set that waits for a place": (site) => Effect.andThen(full(site), adopt(site, "a")),
  "invalidate": ({ pool }) => SessionPool.invalidate(pool, "live"),
  "invalidateAll": ({ pool }) => SessionPool.invalidateAll(pool, ({ leases }) => leases === 0),
  "recordError": ({ pool }) => SessionPool.recordError(pool, "live"),
  "sweep": ({ pool }) => SessionPool.sweep(pool),
  "info, entries, keys, size and stats": ({ pool }) =>
    Effect.all([
      SessionPool.info(pool, "live"),
      SessionPool.entries(pool),
      SessionPool.keys(pool),
      SessionPool.size(pool),
      SessionPool.stats(pool)
    ]),
  "events": ({ pool }) =>
    Effect.raceFirst(
      Stream.runHead(SessionPool.events(pool)),
      Effect.forever(
        Effect.andThen(SessionPool.use(pool, "a", () => Effect.yieldNow), SessionPool.invalidate(pool, "a"))
      )
    ),
  "the end": ({ scope }) => Scope.close(scope, Exit.void)
}

/** Runs the operation once, interrupted after `turns` turns of its fiber; how many turns it took. */
const scenario = Effect.fnUntraced(
  function*(operation: (typeof operations)[string], turns: number, contended: boolean) {
    const [backend, handover, scope] = [Backend.make(), Handover.make(), yield* Scope.make()]
    const pool: Pool = yield* SessionPool.make(options(backend, handover)).pipe(Scope.provide(scope))
    const adopted = { count: 0, closes: 0 }
    yield* Effect.scoped(SessionPool.get(pool, "live"))
    // Idle for long enough to be validated before the next lease.
    yield* TestClock.adjust(1)
    const rivals = contended
      ? yield* Effect.forEach(
        ["a", "live"],
        (key) => Effect.forkChild(Effect.exit(SessionPool.use(pool, key, () => Effect.yieldNow)))
      )
      : []
    const fiber = yield* Effect.forkChild(operation({ pool, scope, backend, handover, adopted }), {
      startImmediately: true
    })
    let taken = 0
    while (taken < turns && fiber.pollUnsafe() === undefined) {
      taken++
      yield* Effect.yieldNow
    }
    yield* Fiber.interrupt(fiber)
    yield* Effect.forEach(rivals, (rival) => Fiber.await(rival))
    // Whatever was handed over while the interruption was on its way settles now.
    for (let i = 0; i < 50; i++) yield* Effect.yieldNow
    const { active, idle, launching, retired, waiting } = yield* SessionPool.stats(pool)
    assert.deepStrictEqual({ active, launching, waiting, retired }, { active: 0, launching: 0, waiting: 0, retired: 0 })
    assert.strictEqual(idle, backend.openCount() + adopted.count - adopted.closes)
    if (scope.state._tag === "Open") {
      // A place that leaked would make this wait for ever.
      yield* Effect.forEach(["x", "y", "z"], (key) => Effect.scoped(SessionPool.get(pool, key)))
    }
    yield* Scope.close(scope, Exit.void)
    backend.assertAllClosedOnce()
    assert.strictEqual(adopted.closes, adopted.count)
    return taken
  }
)

describe("interrupted at every yield", () => {
  let runs = 0
  afterAll(() => console.log(`${runs} runs, each interrupted at another turn or budget`))
  for (const [name, operation] of Object.entries(operations)) {
    for (const contended of [false, true]) {
      it.effect(
        `${name}${contended ? ", while others use the same keys" : ""}: nothing leaks, all closes once`,
        () =>
          Effect.gen(function*() {
            let latest = 0
            for (const budget of budgets) {
              for (let turns = 0;; turns++) {
                const taken = yield* Effect.provideService(
                  scenario(operation, turns, contended),
                  Scheduler.MaxOpsBeforeYield,
                  budget
                )
                runs++
                latest = Math.max(latest, taken)
                if (taken < turns) break
              }
            }
            assert.strictEqual(latest > 0, !oneStep.includes(name))
          }),
        60_000
      )
    }
  }
})

describe("a caller that is interrupted as its session opens", () => {
  it.effect("does not start its work, and leaves no lease", () =>
    Effect.gen(function*() {
      const caller: { fiber?: Fiber.Fiber<unknown, unknown> } = {}
      let started = 0
      const pool = yield* SessionPool.make({
        lookup: (key: string) => Effect.sync(() => (caller.fiber?.interruptUnsafe(), key))
      })
      const use = Effect.andThen(Effect.yieldNow, SessionPool.use(pool, "a", () => (started++, Effect.void)))
      caller.fiber = yield* Effect.forkChild(use)
      const exit = yield* Fiber.await(caller.fiber)
      assert.isTrue(Exit.hasInterrupts(exit))
      assert.strictEqual(started, 0)
      const { active, idle } = yield* SessionPool.stats(pool)
      assert.deepStrictEqual({ active, idle }, { active: 0, idle: 1 })
    }))
})
