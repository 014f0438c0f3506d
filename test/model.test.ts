/**
 * Random sequences of operations, with time passing, on the pool and on a model of it that a reader can check in a minute:
 * a plain map of what should be there, and a list of what should be closed.
 */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Option, Schema, Scope } from "effect"
import { TestClock } from "effect/testing"
import { SessionPool } from "../src/index.ts"
import * as Backend from "./kit/backend.ts"

const keys = ["a", "b", "c", "d"] as const
const capacity = 3
const ttl = 10
const maxErrorCount = 2

const Operation = Schema.Struct({
  kind: Schema.Literals([
    "lease",
    "release",
    "use",
    "fail",
    "touch",
    "set",
    "invalidate",
    "recordError",
    "wait",
    "sweep"
  ]),
  key: Schema.Literals(keys),
  seconds: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 15 }))
})

interface Entry {
  readonly id: number
  leases: number
  errors: number
  requests: number
  lastUsedAt: number
}

/** The pool as a mutable map. Sessions that are not there any more but leased are in `retired`, by id. */
class Model {
  now = 0
  lastId = 0
  readonly live = new Map<string, Entry>()
  readonly retired = new Map<number, Entry>()
  closed: Array<number> = []

  get open() {
    return this.live.size + this.retired.size
  }

  retire(key: string): boolean {
    const entry = this.live.get(key)
    if (entry === undefined) return false
    this.live.delete(key)
    if (entry.leases > 0) this.retired.set(entry.id, entry)
    else this.closed.push(entry.id)
    return true
  }

  /** Makes room for one more; false if that takes a wait. */
  room(): boolean {
    if (this.open < capacity) return true
    const idle = [...this.live].filter(([, entry]) => entry.leases === 0)
    const oldest = idle.toSorted(([, x], [, y]) => x.lastUsedAt - y.lastUsedAt || x.id - y.id)[0]
    if (oldest === undefined) return false
    return this.retire(oldest[0])
  }

  lease(key: string): Entry | undefined {
    let entry = this.live.get(key)
    if (entry === undefined) {
      if (!this.room()) return undefined
      entry = { id: ++this.lastId, leases: 0, errors: 0, requests: 0, lastUsedAt: this.now }
      this.live.set(key, entry)
    }
    entry.leases++
    entry.requests++
    entry.lastUsedAt = this.now
    return entry
  }

  release(key: string, entry: Entry, how: "success" | "error" | "neither"): void {
    entry.leases--
    if (this.live.get(key) !== entry) {
      if (entry.leases === 0) {
        this.retired.delete(entry.id)
        this.closed.push(entry.id)
      }
      return
    }
    entry.lastUsedAt = this.now
    if (how === "success") entry.errors = 0
    if (how === "error") this.error(key)
  }

  error(key: string): void {
    const entry = this.live.get(key)
    if (entry !== undefined && ++entry.errors >= maxErrorCount) this.retire(key)
  }

  sweep(): number {
    const expired = [...this.live].filter(([, { lastUsedAt, leases }]) => leases === 0 && this.now - lastUsedAt > ttl)
    for (const [key] of expired) this.retire(key)
    return expired.length
  }
}

const inOrder = (ids: ReadonlyArray<number>) => ids.toSorted((x, y) => x - y)

describe("pool and model", () => {
  it.effect.prop(
    "agree after every operation of any sequence",
    [Schema.Array(Operation).check(Schema.isMinLength(20), Schema.isMaxLength(80))],
    ([operations]) =>
      Effect.gen(function*() {
        const backend = Backend.make()
        const model = new Model()
        const scope = yield* Scope.make()
        const closed: Array<number> = []
        const pool = yield* SessionPool.make({
          capacity,
          maxErrorCount,
          idleTimeToLive: `${ttl} seconds`,
          cleanupInterval: "1000 days",
          acquireTimeout: 0,
          // The connection is the id that the model gives too, as both count what they open.
          lookup: (key: string) =>
            Effect.acquireRelease(
              Effect.map(Effect.scoped(backend.open(key)), ({ id }) => id),
              (id) => Effect.sync(() => closed.push(id))
            )
        }).pipe(Scope.provide(scope))
        let adopted = 0
        const leases: Array<{ key: string; entry: Entry; scope: Scope.Closeable }> = []
        for (const { key, kind, seconds } of operations) {
          switch (kind) {
            case "lease": {
              const lease = yield* Scope.make()
              const got = yield* Effect.option(SessionPool.get(pool, key).pipe(Scope.provide(lease)))
              const entry = model.lease(key)
              assert.deepStrictEqual(got, entry === undefined ? Option.none() : Option.some(entry.id))
              if (entry !== undefined) leases.push({ key, entry, scope: lease })
              break
            }
            case "release": {
              const lease = leases.shift()
              if (lease === undefined) break
              yield* Scope.close(lease.scope, Exit.void)
              model.release(lease.key, lease.entry, "neither")
              break
            }
            case "use":
            case "fail": {
              const failed = kind === "fail"
              yield* Effect.exit(SessionPool.use(pool, key, () => failed ? Effect.fail("broken") : Effect.void))
              const entry = model.lease(key)
              if (entry !== undefined) model.release(key, entry, failed ? "error" : "success")
              break
            }
            case "touch": {
              const entry = model.live.get(key)
              assert.deepStrictEqual(
                yield* SessionPool.touch(pool, key),
                entry === undefined ? Option.none() : Option.some(entry.id)
              )
              if (entry !== undefined) {
                entry.requests++
                entry.lastUsedAt = model.now
              }
              break
            }
            case "set": {
              // Only where it needs no wait: how a waiting `set` carries on is tested by itself.
              if (model.open >= capacity) break
              const id = ++model.lastId
              yield* backend.open(key).pipe(Effect.scoped)
              yield* SessionPool.set(pool, key, id, Effect.sync(() => closed.push(id)))
              const old = model.live.get(key)
              model.retire(key)
              model.live.set(key, {
                id,
                leases: 0,
                errors: old?.errors ?? 0,
                requests: old?.requests ?? 0,
                lastUsedAt: model.now
              })
              adopted++
              break
            }
            case "invalidate": {
              assert.strictEqual(yield* SessionPool.invalidate(pool, key), model.retire(key))
              break
            }
            case "recordError": {
              yield* SessionPool.recordError(pool, key)
              model.error(key)
              break
            }
            case "wait": {
              yield* TestClock.adjust(`${seconds} seconds`)
              model.now += seconds
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
            [...model.live].map(([key, { errors, leases, requests }]) => [key, leases, requests, errors]).toSorted()
          )
          // One sweep may close several, in any order.
          assert.deepStrictEqual(inOrder(closed), inOrder(model.closed))
          const { active, idle, launching, retired } = yield* SessionPool.stats(pool)
          assert.strictEqual(active + idle + launching + retired, model.open)
        }
        yield* Scope.close(scope, Exit.void)
        assert.deepStrictEqual(inOrder(closed), Array.from({ length: model.lastId }, (_, i) => i + 1))
        assert.isAtMost(adopted, model.lastId)
      }),
    { arbitrary: { runs: 400, size: 60 } }
  )
})
