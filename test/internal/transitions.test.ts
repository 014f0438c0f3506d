/** The decision of each step, in the order of a session's life. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Hash } from "effect"
import * as Transitions from "../../src/internal/transitions.ts"
import { newCheck, Steps } from "./steps.ts"

describe("acquire", () => {
  it("launches once, and gives a lease to each caller that joined", () => {
    const pool = new Steps()
    const asked = [pool.tells(() => pool.ask("a"), "launch 1"), pool.tells(() => pool.ask("a", null))]
    const joined = { _tag: "Joined", launch: pool.of(1), waits: false } as const
    assert.deepStrictEqual(asked, [joined, joined])
    pool.tells(() => pool.ask("a"))
    pool.tells(() => pool.land(1), "Launched 1 5", "watch 1", "complete: value 1")
    assert.deepInclude(pool.live("a"), { leases: 3, requestCount: 3 })
  })

  it("never hands out an overdue session: retires it for a caller that launches, finds none for one that does not", () => {
    const pool = new Steps().idle("a").at(101)
    assert.deepStrictEqual([pool.hit("a", 1), pool.hit("a", 0)], [undefined, undefined])
    assert.strictEqual(pool.tells(() => pool.ask("a", null))._tag, "Absent")
    pool.tells(() => pool.ask("a"), "Retired 1 IdleTimeout", "close 1", "launch 2")
  })

  it("hands out an idle session until its idle time ends, and a leased one until its lifetime ends", () => {
    const pool = new Steps().idle("a").at(100)
    pool.ask("b", pool.newLaunch("b", undefined, 50))
    pool.land(2)
    assert.isDefined(pool.hit("a", 1))
    assert.isDefined(pool.at(149).hit("b", 1))
    assert.isUndefined(pool.at(150).hit("b", 1))
    assert.isDefined(pool.at(999).hit("a", 1))
    assert.strictEqual(pool.live("a").requestCount, 3)
  })

  it("cancels a launch only when its last caller leaves", () => {
    const pool = new Steps()
    pool.ask("a")
    pool.ask("a")
    pool.tells(() => pool.on(1, Transitions.abandon))
    pool.tells(() => pool.on(1, Transitions.abandon), "close 1")
    pool.tells(() => pool.land(1))
  })
})

describe("land", () => {
  it("tells callers the failure and remembers it for failureTimeToLive, unless the launch was interrupted", () => {
    const pool = new Steps({ failureTimeToLive: 30 })
    pool.tells(() => pool.fail("a"), "LaunchFailed 1 5", "complete: refused", "close 1")
    assert.deepStrictEqual([pool.at(29).ask("a")._tag, pool.ask("a", null)._tag], ["Failed", "Absent"])
    pool.tells(() => pool.at(30).ask("a"), "launch 3")
    pool.land(3, Exit.interrupt())
    const without = new Steps()
    without.fail("a")
    assert.deepStrictEqual([pool.slot("a"), without.slot("a")], [undefined, undefined])
  })

  it("forgets failures that have expired when it remembers another, and never counts them", () => {
    const pool = new Steps({ failureTimeToLive: 30 })
    for (const time of [0, 10, 20]) pool.at(time).fail(`key ${time}`)
    assert.deepStrictEqual([29, 30, 40, 60].map((now) => Transitions.countFailures(pool.state, now)), [3, 2, 1, 0])
    pool.at(40).fail("last")
    assert.strictEqual(pool.state.failures.size, 2)
  })

  it("forgets the oldest failure beyond the limit", () => {
    const pool = new Steps({ failureTimeToLive: 30 })
    pool.recounts = false
    for (let id = 1; id <= Transitions.failureLimit + 1; id++) pool.fail(`key ${id}`)
    assert.deepStrictEqual([pool.slot("key 1"), pool.slot("key 2")?._tag], [undefined, "Failed"])
  })
})

describe("adopt", () => {
  it("replaces the session of its key, and inherits its history", () => {
    const pool = new Steps().at(3).open("a").at(9)
    pool.release(1, "error")
    pool.tells(() => pool.set("a"), "Retired 1 Replaced", "close 1", "Adopted 2", "watch 2", "complete: adopted")
    assert.deepInclude(pool.live("a"), { errorCount: 1, requestCount: 1 })
    assert.deepInclude(pool.live("a").session, { createdAt: 3, openedAt: 9 })
    pool.set("b")
    assert.deepInclude(pool.live("b").session, { createdAt: 9, openedAt: 9 })
  })

  it("takes a free place, whatever maxWaiting is, and ignores a later abandon", () => {
    const pool = new Steps({ capacity: 1, maxWaiting: 0 })
    pool.tells(() => pool.set("a"), "Adopted 1", "watch 1", "complete: adopted")
    pool.tells(() => pool.on(1, Transitions.abandon))
  })

  it("serves the callers of the launch that it replaces, and closes what that launch acquires", () => {
    const pool = new Steps({ capacity: 2 })
    pool.ask("a")
    pool.tells(() => pool.set("a"), "close 2", "complete: adopted", "Adopted 1", "watch 1", "complete: adopted")
    assert.deepInclude(pool.live("a"), { leases: 1, requestCount: 1 })
  })

  it("waits in a full pool, inherits from the idle session that it replaces, and serves the waiters of its key", () => {
    const pool = new Steps({ capacity: 1 }).at(2).idle("a").at(5)
    pool.tells(() => pool.set("a"), "Retired 1 Replaced", "close 1")
    pool.ask("a")
    const putIn = ["Waited 3 4", "complete: adopted", "Adopted 3", "watch 3", "complete: adopted"]
    pool.tells(() => pool.at(9).closed(1), "Closed 1 Replaced 7", "Waited 2 4", ...putIn)
    assert.deepInclude(pool.live("a"), { leases: 1, requestCount: 2 })
    assert.strictEqual(pool.live("a").session.createdAt, 2)
  })

  it("replaces the idle session of its key, not the least recently used one", () => {
    const pool = new Steps({ capacity: 2 }).idle("b", "a")
    pool.tells(() => pool.set("a"), "Retired 2 Replaced", "close 2")
    pool.tells(() => pool.set("c"), "Retired 1 Evicted", "close 1")
  })

  it("replaces a leased session of its key as soon as that is idle", () => {
    const pool = new Steps({ capacity: 1 }).open("a")
    pool.tells(() => pool.set("a"))
    pool.at(4).release(1, "error")
    pool.closed(1)
    assert.deepInclude(pool.live("a"), { errorCount: 1, requestCount: 1 })
    assert.strictEqual(pool.state.totals.closes.Replaced, 1)
  })

  it("inherits from a leased session that is retired while it waits", () => {
    const pool = new Steps({ capacity: 1 }).at(2).open("a").at(5)
    pool.tells(() => pool.set("a"))
    pool.invalidate(1)
    pool.release(1)
    pool.closed(1)
    assert.strictEqual(pool.live("a").session.createdAt, 2)
  })

  it("closes its connection if it leaves the queue, or comes after the end", () => {
    const pool = new Steps({ capacity: 1 }).open("a")
    pool.set("b")
    const shortage = pool.tells(() => pool.on(2, Transitions.giveUp), "close 2")
    assert.deepStrictEqual(shortage, { scope: "pool", limit: 1, waiting: 0 })
    pool.end()
    pool.tells(() => pool.set("b"), "complete: PoolClosed", "close 3")
  })
})

describe("release", () => {
  it("retires a session at maxErrorCount errors in a row", () => {
    const pool = new Steps({ maxErrorCount: 2 }).open("a")
    for (const how of ["error", "success", "error", "neither"] as const) {
      pool.ask("a")
      pool.tells(() => pool.release(1, how))
    }
    pool.tells(() => pool.release(1, "error"), "Retired 1 Errors", "close 1")
  })

  it("counts recorded errors of the present session towards maxErrorCount", () => {
    const pool = new Steps({ maxErrorCount: 2 }).idle("a")
    const ofKey = { key: "a", hash: Hash.hash("a") }
    pool.tells(() => pool.on(1, Transitions.recordError))
    pool.tells(() => pool.step((d) => Transitions.recordError(d, ofKey)), "Retired 1 Errors", "close 1")
  })

  it("changes neither the session that replaced the leased one, nor an empty key", () => {
    const pool = new Steps({ maxErrorCount: 1 }).open("a")
    const { session } = pool.live("a")
    pool.set("a")
    for (const after of [pool.slot("a"), undefined]) {
      const retired = pool.tells(() => pool.on(1, Transitions.retireById, "Disconnected"))
      pool.tells(() => pool.on(1, Transitions.recordError))
      pool.tells(() => pool.step((d) => Transitions.startCheck(d, session, newCheck(true))))
      pool.tells(() => pool.step((d) => Transitions.checked(d, session, newCheck(), false)), "complete: false")
      pool.tells(() => pool.release(1, "error"), ...after === undefined ? [] : ["close 1"])
      assert.deepStrictEqual([retired, pool.slot("a")], [false, after])
      assert.strictEqual(pool.on(2, Transitions.retireById, "Disconnected"), after !== undefined)
    }
  })

  it("retires a session without idle time at its last release", () => {
    const pool = new Steps({ idleTimeToLive: 0 }).open("a")
    pool.ask("a")
    pool.tells(() => pool.release(1))
    pool.tells(() => pool.release(1), "Retired 1 IdleTimeout", "close 1")
  })
})

describe("check", () => {
  const validated = () => new Steps({ validate: () => Effect.succeed(true), validateAfter: 10, capacity: 2 }).idle("a")

  it("checks a session that was idle for longer than validateAfter, once for all callers", () => {
    const pool = validated().at(10)
    assert.isDefined(pool.hit("a", 1))
    assert.isDefined(pool.at(99).hit("a", 1))
    pool.release(1)
    pool.release(1)
    assert.isUndefined(pool.at(110).hit("a", 1))
    assert.deepInclude(pool.ask("a", null, null), { check: undefined })
    pool.release(1)
    assert.isDefined(pool.at(121).hit("a", 0))
    pool.at(132)
    const { session } = pool.live("a")
    const check = newCheck()
    const acquired = [pool.tells(() => pool.ask("a", null, check), "check 1"), pool.tells(() => pool.ask("a", null))]
    const leased = { _tag: "Leased", session, check } as const
    assert.deepStrictEqual(acquired, [leased, leased])
    pool.tells(
      () => pool.step((d) => Transitions.checked(d, session, check, false)),
      "Retired 1 Invalid",
      "complete: false"
    )
  })

  it("does not count a background check as use, and evicts a session in the middle of one", () => {
    const pool = validated().idle("b").at(50)
    const check = newCheck(true)
    const { session } = pool.live("a")
    pool.ask("a", null, null)
    pool.tells(() => pool.step((d) => Transitions.startCheck(d, session, check)))
    pool.release(1)
    pool.tells(() => pool.step((d) => Transitions.startCheck(d, session, check)), "check 1")
    pool.tells(() => pool.step((d) => Transitions.startCheck(d, session, check)))
    pool.tells(() => pool.ask("c"), "Retired 2 Evicted", "close 2")
    pool.tells(() => pool.ask("d"), "Retired 1 Evicted", "close 1")
    pool.tells(() => pool.step((d) => Transitions.checked(d, session, check, false)), "complete: false")
  })

  it("postpones the next check of a session that passes one, not its expiry", () => {
    const pool = validated().at(50)
    pool.step((d) => Transitions.checked(d, pool.live("a").session, newCheck(), true))
    assert.isDefined(pool.at(60).hit("a", 1))
    pool.release(1)
    assert.deepStrictEqual([160, 161].map((now) => pool.at(now).on(1, Transitions.expire)), [false, true])
  })
})

describe("invalidate", () => {
  it("leaves a launch to the callers that wait for it, and closes its session at their last release", () => {
    const pool = new Steps()
    pool.ask("a")
    assert.isTrue(pool.invalidate(1))
    pool.tells(() => pool.ask("a"), "launch 2")
    pool.tells(() => pool.land(1), "Launched 1 5", "Retired 1 Invalidated", "complete: value 1")
    pool.tells(() => pool.release(1), "close 1")
  })

  it("keeps a session that the predicate does not match", () => {
    const pool = new Steps().open("a")
    assert.isFalse(pool.tells(() => pool.on(1, Transitions.invalidate, () => false)))
  })
})

describe("expire", () => {
  it("forgets an expired failure, and invalidate and set forget any failure", () => {
    const pool = new Steps({ failureTimeToLive: 30 })
    pool.fail("a")
    pool.fail("b")
    pool.fail("c")
    pool.set("c")
    assert.strictEqual(pool.state.failures.size, 2)
    const slot = pool.slot("a")
    assert.deepStrictEqual([29, 30].map((now) => slot && Transitions.isExpired(slot, now)), [false, true])
    const left = [29, 30].map((now) => [pool.at(now).on(1, Transitions.expire), pool.slot("a")?._tag])
    assert.deepStrictEqual(left, [[false, "Failed"], [false, undefined]])
    assert.deepStrictEqual([pool.invalidate(2), pool.slot("b"), pool.invalidate(2)], [false, undefined, false])
    assert.isFalse(pool.on(2, Transitions.expire))
  })
})

describe("end", () => {
  it("fails waiters, cancels launches, closes idle sessions, and completes when the leased ones are closed", () => {
    const pool = new Steps({ capacity: 3 }).open("a")
    for (const key of ["b", "c", "d"]) pool.ask(key)
    pool.set("e")
    pool.invalidate(2)
    const queue = ["complete: PoolClosed", "complete: PoolClosed", "close 5"]
    const launches = ["complete: PoolClosed", "close 2", "complete: PoolClosed", "close 3"]
    pool.tells(() => pool.end(), ...queue, ...launches.slice(0, 2), "Retired 1 PoolClosed", ...launches.slice(2))
    assert.deepStrictEqual([pool.ask("a", null)._tag, pool.ask("a")._tag], ["Absent", "Failed"])
    for (const id of [2, 3, 5]) pool.tells(() => pool.closed(id))
    pool.tells(() => pool.step(Transitions.forceClose), "close 1")
    pool.tells(() => pool.release(1))
    pool.tells(() => pool.closed(1), "Closed 1 PoolClosed 7", "complete: undefined")
  })

  it("completes at once in an empty pool", () => {
    const pool = new Steps()
    pool.tells(() => pool.end(), "complete: undefined")
  })
})
