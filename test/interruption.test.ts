/**
 * Interrupts every operation at every point where its fiber can yield, at budgets of operations from 3 to 64 (all of them in
 * `npm run test:long`), alone and while others use the same keys. Each time nothing leaks, everything closes once, and the pool's
 * own counts agree with what is open.
 */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Layer, Scheduler, Scope, Stream } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import { shortOrLong } from "./kit/long.ts"
import * as Backend from "./kit/pool/backend.ts"
import { fork, held, hold, nothing, turns, visit } from "./kit/pool/calls.ts"
import * as Handover from "./kit/pool/handover.ts"
import { test } from "./kit/pool/withPool.ts"

type Pool = SessionPool.SessionPool<string, Backend.Connection>

const budgets = shortOrLong([4, 7, 64], Array.from({ length: 62 }, (_, i) => 3 + i))

/** The fixtures of one run of an operation. */
interface Site {
  readonly pool: Pool
  readonly scope: Scope.Closeable
  readonly backend: Backend.Backend
  readonly handover: Handover.Handover
  /** Counts the connections that were handed to `set`, and their closes. */
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

const use = (pool: Pool, key: string) => SessionPool.use(pool, key, () => turns(2))

const adopt = ({ adopted, handover, pool }: Site, key: string) =>
  handover.offer(
    SessionPool.set(pool, key, { key, id: -1 }, Effect.sync(() => adopted.closes++)),
    () => adopted.count++
  )

/** Runs an operation while other callers hold sessions for a few turns. */
const besideUsesOf =
  (keys: ReadonlyArray<string>, operation: (site: Site) => Effect.Effect<unknown, unknown>) => (site: Site) =>
    Effect.andThen(Effect.forEach(keys, (key) => fork(use(site.pool, key))), operation(site))

/** Runs an operation in a full pool, so it has to wait for a place. */
const whenFull = (operation: (site: Site) => Effect.Effect<unknown, unknown>) => besideUsesOf(["live", "b"], operation)

/** Runs an operation on the session `live` after it has been validated. */
const afterUse = (operation: (pool: Pool) => Effect.Effect<unknown, unknown>) => ({ pool }: Site) =>
  Effect.andThen(use(pool, "live"), operation(pool))

const get = (key: string) => ({ pool }: Site) => visit(pool, key)
const getOption = (key: string) => ({ pool }: Site) => Effect.scoped(SessionPool.getOption(pool, key))
const lease = (key: string) => ({ pool }: Site) => Effect.scoped(SessionPool.lease(pool, key))

class Sessions extends SessionPool.Service<Sessions>()("test/interruption/Sessions", {
  lookup: Effect.succeed<string>
}) {}

/** These operations end before their fiber can yield. */
const oneStep = ["touch", "invalidate", "recordError"]

const operations: Record<string, (site: Site) => Effect.Effect<unknown, unknown>> = {
  "make": ({ backend }) => Effect.scoped(Effect.flatMap(SessionPool.make(options(backend)), (pool) => hold(pool, "a"))),
  "a layer of Service": () => Effect.provide(Sessions.use("a", () => Effect.yieldNow), Layer.fresh(Sessions.layer)),
  "get": get("a"),
  "get of a live session": get("live"),
  "get of a validated session": afterUse((pool) => visit(pool, "live")),
  "get that joins a launch": besideUsesOf(["a"], get("a")),
  "get that waits for a place": whenFull(get("a")),
  "get that evicts": ({ pool }) => Effect.andThen(visit(pool, "a"), visit(pool, "b")),
  "getOption": getOption("live"),
  "getOption of a launching session": besideUsesOf(["a"], getOption("a")),
  "lease": lease("a"),
  "lease that invalidates its session": ({ pool }) =>
    Effect.scoped(
      Effect.flatMap(SessionPool.lease(pool, "live"), ({ invalidate, recordError }) =>
        Effect.andThen(recordError, Effect.andThen(Effect.yieldNow, invalidate)))
    ),
  "use": ({ pool }) => use(pool, "a"),
  "use of a validated session": afterUse((pool) => use(pool, "live")),
  "use that invalidates its session": ({ pool }) =>
    SessionPool.use(pool, "live", (_, { invalidate }) => Effect.andThen(Effect.yieldNow, invalidate)),
  "use that fails": ({ pool }) => SessionPool.use(pool, "live", () => Effect.fail("broken")),
  "use with leak detection": ({ backend }) =>
    Effect.scoped(Effect.flatMap(
      SessionPool.make({ ...options(backend), leakDetection: "1 minute" }),
      (pool) => Effect.andThen(use(pool, "a"), use(pool, "a"))
    )),
  "touch": ({ pool }) => SessionPool.touch(pool, "live"),
  "set": (site) => adopt(site, "a"),
  "set over a live session": (site) => adopt(site, "live"),
  "set that waits for a place": whenFull((site) => adopt(site, "a")),
  "invalidate": ({ pool }) => SessionPool.invalidate(pool, "live"),
  "invalidateAll": ({ pool }) => SessionPool.invalidateAll(pool, ({ leases }) => leases === 0),
  "recordError": ({ pool }) => SessionPool.recordError(pool, "live"),
  "sweep": ({ pool }) => SessionPool.sweep(pool),
  "info, entries, keys, size and stats": ({ pool }) =>
    Effect.all([
      SessionPool.info(pool, "live"),
      ...[SessionPool.entries, SessionPool.keys, SessionPool.size, SessionPool.stats].map((read) => read(pool))
    ]),
  "events": ({ pool }) =>
    Effect.raceFirst(
      Stream.runHead(SessionPool.events(pool)),
      Effect.forever(Effect.andThen(use(pool, "a"), SessionPool.invalidate(pool, "a")))
    ),
  "the end": ({ scope }) => Scope.close(scope, Exit.void)
}

/** Runs the operation once, and interrupts it after `limit` turns of its fiber. Returns how many turns it took. */
const scenario = Effect.fnUntraced(
  function*(operation: (site: Site) => Effect.Effect<unknown, unknown>, limit: number, contended: boolean) {
    const [backend, handover, scope] = [Backend.make(), Handover.make(), yield* Scope.make()]
    const pool: Pool = yield* SessionPool.make(options(backend, handover)).pipe(Scope.provide(scope))
    const adopted = { count: 0, closes: 0 }
    yield* visit(pool, "live")
    // Idle for long enough to be validated before the next lease.
    yield* TestClock.adjust(1)
    const rivals = yield* Effect.forEach(
      contended ? ["a", "live"] : [],
      (key) => Effect.forkChild(Effect.exit(SessionPool.use(pool, key, () => Effect.yieldNow)))
    )
    const fiber = yield* fork(operation({ pool, scope, backend, handover, adopted }))
    let taken = 0
    while (taken < limit && fiber.pollUnsafe() === undefined) {
      taken++
      yield* Effect.yieldNow
    }
    yield* Fiber.interrupt(fiber)
    yield* Effect.forEach(rivals, (rival) => Fiber.await(rival))
    // A hand-over that was under way at the interruption settles in these turns.
    yield* turns(50)
    const idle = backend.openCount() + adopted.count - adopted.closes
    assert.deepStrictEqual(yield* held(pool), { ...nothing, idle })
    // If a place had leaked, these calls would wait forever.
    if (scope.state._tag === "Open") yield* Effect.forEach(["x", "y", "z"], (key) => visit(pool, key))
    yield* Scope.close(scope, Exit.void)
    backend.assertAllClosedOnce()
    assert.strictEqual(adopted.closes, adopted.count)
    return taken
  }
)

describe("interruption", () => {
  for (const [name, operation] of Object.entries(operations)) {
    for (const contended of [false, true]) {
      const beside = contended ? ", while others use the same keys," : ""
      it.effect(
        `${name}${beside} leaks nothing and closes everything once, wherever it is interrupted`,
        () =>
          Effect.gen(function*() {
            let most = 0
            for (const budget of budgets) {
              const interruptAfter = (limit: number) =>
                Effect.provideService(scenario(operation, limit, contended), Scheduler.MaxOpsBeforeYield, budget)
              let limit = 0
              while ((yield* interruptAfter(limit)) === limit) limit++
              most = Math.max(most, limit)
            }
            assert.strictEqual(most > 1, !oneStep.includes(name))
          }),
        60_000
      )
    }
  }

  test("a caller interrupted as its session opens does not begin its work and leaves no lease", function*() {
    const caller: { fiber?: Fiber.Fiber<unknown, unknown> } = {}
    let begun = 0
    const pool = yield* SessionPool.make({
      lookup: (key: string) => Effect.sync(() => (caller.fiber?.interruptUnsafe(), key))
    })
    const use = Effect.andThen(Effect.yieldNow, SessionPool.use(pool, "a", () => (begun++, Effect.void)))
    caller.fiber = yield* Effect.forkChild(use)
    assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(caller.fiber)))
    assert.strictEqual(begun, 0)
    assert.deepStrictEqual(yield* held(pool), { ...nothing, idle: 1 })
  })
})
