/** Places: which callers get one or wait for one, and which sessions are evicted. */
import { assert, describe, it } from "@effect/vitest"
import * as Transitions from "../../src/internal/transitions.ts"
import { Steps } from "./steps.ts"

describe("places", () => {
  it("launches while a place is free, then queues callers, and gives each returned place to the longest waiter", () => {
    const pool = new Steps({ capacity: 2 }).open("a", "b")
    pool.ask("c")
    pool.ask("d")
    pool.tells(() => pool.ask("c"))
    pool.tells(() => pool.invalidate(1), "Retired 1 Invalidated")
    pool.tells(() => pool.release(1), "close 1")
    pool.tells(() => pool.at(30).closed(1), "Closed 1 Invalidated 7", "Waited 3 30", "launch 3")
    assert.deepStrictEqual([pool.state.waiters, pool.state.totals.waited], [1, 2])
  })

  it("evicts the least recently used idle session for each waiting key, and one only", () => {
    const pool = new Steps({ capacity: 3 }).idle("a", "b", "c")
    pool.at(1).hit("a", 0)
    pool.tells(() => pool.ask("d"), "Retired 2 Evicted", "close 2")
    pool.tells(() => pool.ask("e"), "Retired 3 Evicted", "close 3")
    pool.tells(() => pool.ask("e"))
    pool.tells(() => pool.closed(3), "Closed 3 Evicted 7", "launch 4")
    assert.strictEqual(pool.state.totals.waited, 0)
  })

  it("evicts a session that becomes idle while a caller waits", () => {
    const pool = new Steps({ capacity: 1 }).open("a")
    pool.ask("b")
    pool.tells(() => pool.release(1), "Retired 1 Evicted", "close 1")
  })

  it("evicts within a full group, and lets callers of other groups pass its waiters", () => {
    const pool = new Steps({ capacity: 3, groupCapacity: 1 }).open("x1").idle("y1", "z1")
    pool.tells(() => pool.ask("x2"))
    pool.tells(() => pool.ask("-1"), "Retired 2 Evicted", "close 2")
    pool.tells(() => pool.ask("z2"), "Retired 3 Evicted", "close 3")
    pool.tells(() => pool.closed(2), "Closed 2 Evicted 7", "launch 5")
    pool.tells(() => pool.release(1), "Retired 1 Evicted", "close 1")
  })

  it("counts on each closing place once, in a full group and in a full pool", () => {
    for (const limit of [{ groupCapacity: 3 }, { capacity: 3 }, { capacity: 3, groupCapacity: 3 }]) {
      const pool = new Steps(limit).idle("x1", "x2", "x3")
      for (const id of [1, 2]) pool.invalidate(id)
      for (const key of ["x4", "x5"]) pool.tells(() => pool.ask(key))
      pool.tells(() => pool.ask("x6"), "Retired 3 Evicted", "close 3")
    }
  })

  it("promises a closing place to one waiter only, of a full group or of the full pool", () => {
    const pool = new Steps({ capacity: 2, groupCapacity: 1 }).idle("x1", "y1")
    pool.invalidate(1)
    pool.tells(() => pool.ask("x2"))
    pool.tells(() => pool.ask("z1"), "Retired 2 Evicted", "close 2")
  })

  it("names the limit that refused a caller, and the number of waiters", () => {
    const pool = new Steps({ capacity: 2, groupCapacity: 1, maxWaiting: 1 }).open("x1", "y1")
    pool.ask("z1")
    const refused = [pool.ask("z1"), pool.ask("z2"), pool.ask("y2")]
    const full = (scope: "pool" | "group", limit: number) =>
      ({ _tag: "Full", shortage: { scope, limit, waiting: 1 } }) as const
    assert.deepStrictEqual(refused, [full("pool", 2), full("pool", 2), full("group", 1)])
    assert.deepStrictEqual(pool.tells(() => pool.set("z1"), "close 7"), { scope: "pool", limit: 2, waiting: 1 })
  })

  it("lets a caller wait for a place that an eviction or retirement for it makes, whatever maxWaiting is", () => {
    const pool = new Steps({ capacity: 1, maxWaiting: 0 }).idle("a")
    const joined = { _tag: "Joined", launch: pool.newLaunch("b"), waits: true } as const
    assert.deepStrictEqual([pool.ask("b", joined.launch), pool.ask("b")], [joined, joined])
    const refused = new Steps({ capacity: 1, maxWaiting: 0 }).open("a")
    assert.strictEqual(refused.ask("b", refused.newLaunch("b"), null)._tag, "Joined")
    const overdue = new Steps({ capacity: 1, maxWaiting: 0 }).idle("a")
    assert.strictEqual(overdue.at(101).ask("a")._tag, "Joined")
  })

  it("evicts for a waiter that has counted on closing places for as long as its patience", () => {
    const pool = new Steps({ capacity: 2, acquireTimeout: 1000 }).at(400).idle("a", "b")
    pool.invalidate(1)
    pool.tells(() => pool.ask("c"))
    const remind = () => pool.on(3, Transitions.serveAgain)
    assert.strictEqual(pool.at(899).tells(remind), 1)
    assert.strictEqual(pool.at(900).tells(remind, "Retired 2 Evicted", "close 2"), 500)
    assert.strictEqual(pool.at(1000).tells(remind), 400)
  })

  it("evicts the next idle session for a waiter that is out of patience, though a place is closing", () => {
    const pool = new Steps({ capacity: 2, acquireTimeout: 1000 }).open("a", "b")
    pool.invalidate(1)
    pool.release(1)
    pool.ask("c")
    assert.strictEqual(pool.at(500).tells(() => pool.on(3, Transitions.serveAgain)), 500)
    pool.tells(() => pool.release(2), "Retired 2 Evicted", "close 2")
  })

  it("evicts once for a waiter without patience", () => {
    const pool = new Steps({ capacity: 2, acquireTimeout: 0 }).idle("a", "b")
    pool.tells(() => pool.ask("c"), "Retired 1 Evicted", "close 1")
    pool.tells(() => pool.on(3, Transitions.serveAgain))
  })

  it("returns the place of a close that times out, and reports the end of the close later", () => {
    const pool = new Steps({ capacity: 1 }).idle("a")
    pool.ask("b")
    pool.tells(() => pool.closed(1, true), "CloseTimedOut 1 7", "launch 2")
    pool.tells(() => pool.closed(1), "Closed 1 Evicted 7")
    assert.strictEqual(pool.state.totals.closes.Evicted, 1)
  })
})
