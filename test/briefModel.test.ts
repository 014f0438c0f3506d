/** Random sequences of operations, with time passing, on the pool and on a model of it that can be read in a minute. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Option, Schema, Scope } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import type { Entry } from "./kit/model/briefModel.ts"
import { BriefModel, groupOf } from "./kit/model/briefModel.ts"

const times: Readonly<Record<string, number>> = { a1: 10_000, a2: 0, b1: 10_000, b2: Infinity }
const options = {
  capacity: 3,
  groupCapacity: 2,
  maxErrorCount: 2,
  validateAfter: 4000,
  failureTimeToLive: 5000,
  idleTimeToLive: (key: string) => times[key] ?? 0
}
const drainTimeout = 5000

const kinds = ["lease", "lease", "release", "release", "use", "fail", "touch", "set", "break", "invalidate"] as const
const Operation = Schema.Struct({
  kind: Schema.Literals([...kinds, "recordError", "wait", "sweep"]),
  key: Schema.Literals(["a1", "a2", "b1", "b2"]),
  lookupFails: Schema.Literals([false, false, false, true]),
  seconds: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 12 }))
})

/** A pool whose connections are the ids that the model gives them, as both count what they open. */
const makePool = (scope: Scope.Scope) => {
  const site = { lookupFails: false, opened: 0, closed: [] as Array<number>, broken: new Set<number>() }
  const open = Effect.suspend(() => site.lookupFails ? Effect.fail("refused") : Effect.succeed(++site.opened))
  return Effect.map(
    SessionPool.make({
      ...options,
      groupBy: groupOf,
      acquireTimeout: 0,
      cleanupInterval: "1000 days",
      drainTimeout,
      validate: (id: number) => Effect.succeed(!site.broken.has(id)),
      lookup: (_: string) => Effect.acquireRelease(open, (id) => Effect.sync(() => site.closed.push(id)))
    }).pipe(Scope.provide(scope)),
    (pool) => ({ site, pool })
  )
}

const inOrder = (ids: ReadonlyArray<number>) => ids.toSorted((x, y) => x - y)

describe("pool and model in brief", () => {
  it.effect.prop(
    "agree after every operation of any sequence",
    [Schema.Array(Operation).check(Schema.isMaxLength(80))],
    ([operations]) =>
      Effect.gen(function*() {
        const model = new BriefModel(options)
        const scope = yield* Scope.make()
        const { pool, site } = yield* makePool(scope)
        const leases: Array<{ entry: Entry; scope: Scope.Closeable }> = []
        for (const { key, kind, lookupFails, seconds } of operations) {
          site.lookupFails = lookupFails
          switch (kind) {
            case "lease": {
              const lease = yield* Scope.make()
              const got = yield* Effect.exit(SessionPool.get(pool, key).pipe(Scope.provide(lease)))
              const entry = model.lease(key, lookupFails)
              if (typeof entry !== "string") leases.push({ entry, scope: lease })
              assert.deepStrictEqual(
                Exit.isSuccess(got) ? got.value : "refused",
                typeof entry === "string" ? "refused" : entry.id
              )
              break
            }
            case "release": {
              const lease = leases.shift()
              if (lease === undefined) break
              yield* Scope.close(lease.scope, Exit.void)
              model.release(lease.entry, "neither")
              break
            }
            case "use":
            case "fail": {
              const failed = kind === "fail"
              yield* Effect.exit(SessionPool.use(pool, key, () => failed ? Effect.fail("broken") : Effect.void))
              const entry = model.lease(key, lookupFails)
              if (typeof entry !== "string") model.release(entry, failed ? "error" : "success")
              break
            }
            case "touch": {
              assert.strictEqual(Option.getOrUndefined(yield* SessionPool.touch(pool, key)), model.touch(key))
              break
            }
            case "set": {
              const id = ++site.opened
              const set = yield* Effect.exit(SessionPool.set(pool, key, id, Effect.sync(() => site.closed.push(id))))
              assert.strictEqual(Exit.isSuccess(set), model.set(key))
              break
            }
            case "break": {
              const entry = model.live.get(key)
              if (entry === undefined) break
              entry.valid = false
              site.broken.add(entry.id)
              break
            }
            case "invalidate": {
              assert.strictEqual(yield* SessionPool.invalidate(pool, key), model.invalidate(key))
              break
            }
            case "recordError": {
              yield* SessionPool.recordError(pool, key)
              model.error(key)
              break
            }
            case "wait": {
              yield* TestClock.adjust(`${seconds} seconds`)
              model.now += seconds * 1000
              break
            }
            case "sweep": {
              assert.strictEqual(yield* SessionPool.sweep(pool), model.sweep())
              break
            }
          }
          const entries = yield* SessionPool.entries(pool)
          assert.deepStrictEqual(
            entries.map(({ errorCount, key, leases, requestCount }) => [key, leases, requestCount, errorCount])
              .toSorted(),
            [...model.live.values()].map(({ errors, key, leases, requests }) => [key, leases, requests, errors])
              .toSorted()
          )
          assert.deepStrictEqual(inOrder(site.closed), inOrder(model.closed))
        }
        const ending = yield* Effect.forkChild(Scope.close(scope, Exit.void), { startImmediately: true })
        model.end()
        const lease = leases.shift()
        if (lease !== undefined) {
          yield* Scope.close(lease.scope, Exit.void)
          model.release(lease.entry, "neither")
        }
        assert.deepStrictEqual(inOrder(site.closed), inOrder(model.closed))
        yield* TestClock.adjust(drainTimeout)
        yield* Fiber.join(ending)
        model.drained()
        assert.deepStrictEqual(inOrder(site.closed), inOrder(model.closed))
        assert.deepStrictEqual(inOrder(site.closed), Array.from({ length: site.opened }, (_, i) => i + 1))
      }),
    { arbitrary: { runs: 600, size: 80 }, timeout: 60_000 }
  )
})
