/** The transitions with plain values: what each decides, and what it leaves alone. */
import { assert, describe, it } from "@effect/vitest"
import { Cause, Deferred, Exit, HashMap } from "effect"
import * as Queue from "../../src/internal/queue.ts"
import * as Transitions from "../../src/internal/transitions.ts"
import { failure, launch, Run, session, validation } from "../kit/pool/steps.ts"

describe("acquire", () => {
  it("launches what is absent, joins what launches, leases what is live", () => {
    const run = new Run()
    const first = run.acquire(1, "a")
    assert.deepStrictEqual([first.result._tag, run.tags], ["Join", ["Launch"]])
    const second = run.acquire(2, "a")
    assert.deepStrictEqual([second.result, run.tags], [{ _tag: "Join", launch: first.launch, queued: false }, []])
    run.step((state, limits) => Transitions.landed(state, limits, first.launch, "value", 0, 5, Infinity))
    assert.deepStrictEqual(run.tags, ["Open", "Deliver"])
    assert.deepStrictEqual([run.live("a").leases, run.live("a").requestCount], [2, 2])
    assert.strictEqual(run.acquire(3, "a", 7).result._tag, "Leased")
    assert.deepStrictEqual([run.live("a").leases, run.live("a").lastUsedAt], [3, 7])
  })

  it("at capacity evicts the least recently used idle session, and hands its place over when it is closed", () => {
    const run = new Run({ capacity: 2 })
    run.open(1, "a")
    run.open(2, "b", 1)
    run.release(1, "a", 10)
    run.release(2, "b", 5)
    const waiting = run.acquire(3, "c", 20)
    assert.deepStrictEqual([waiting.result._tag, run.tags], ["Join", ["Retire", "Close"]])
    assert.isTrue(HashMap.has(run.state.slots, "a"))
    run.closed(2)
    assert.deepStrictEqual(run.tags, ["Launch"])
    assert.strictEqual(run.state.inventory.places.used, 2)
    assert.strictEqual(run.state.inventory.waiting, 0)
  })

  it("at capacity without an idle session queues, and a release to idle serves the first in the queue", () => {
    const run = new Run({ capacity: 1 })
    run.open(1, "a")
    run.acquire(2, "b")
    run.acquire(3, "c")
    assert.strictEqual(run.state.inventory.waiting, 2)
    run.release(1, "a")
    assert.deepStrictEqual(run.tags, ["Retire", "Close"])
    run.closed(1)
    assert.deepStrictEqual(run.actions.map((action) => action._tag === "Launch" && action.launch.key), ["b"])
  })

  it("evicts no second session for a waiter that a place is on its way to", () => {
    const run = new Run({ capacity: 2 })
    run.open(1, "a")
    run.open(2, "b")
    run.release(1, "a")
    run.acquire(3, "c")
    assert.deepStrictEqual(run.tags, ["Retire", "Close"])
    run.release(2, "b")
    assert.deepStrictEqual(run.tags, [])
    run.acquire(4, "d")
    assert.deepStrictEqual(run.tags, ["Retire", "Close"])
  })

  it("refuses one caller more than maxWaiting, but not one that an eviction makes room for", () => {
    const run = new Run({ capacity: 1, maxWaiting: 0 })
    run.open(1, "a")
    assert.strictEqual(run.acquire(2, "b").result._tag, "Full")
    assert.strictEqual(run.state.inventory.waiting, 0)
    run.release(1, "a")
    assert.strictEqual(run.acquire(3, "b").result._tag, "Join")
  })

  it("a full group neither uses the places of others nor keeps them from those behind it in the queue", () => {
    const run = new Run({ capacity: 3, groupCapacity: 1 })
    run.open(1, "x1", 0, "x")
    assert.strictEqual(run.acquire(2, "x2", 0, "x").result._tag, "Join")
    assert.strictEqual(run.state.inventory.waiting, 1)
    assert.deepStrictEqual([run.acquire(3, "y1", 0, "y").result._tag, run.tags], ["Join", ["Launch"]])
    run.release(1, "x1")
    assert.deepStrictEqual(run.tags, ["Retire", "Close"])
    run.closed(1)
    assert.deepStrictEqual(run.tags, ["Launch"])
  })

  it("fails at once with a remembered failure, until it is forgotten", () => {
    const run = new Run({ failureTimeToLive: 10 })
    const { launch } = run.acquire(1, "a")
    run.step((state, limits) => Transitions.launchFailed(state, limits, launch, failure("refused"), true, 0))
    run.step((state, limits) => Transitions.launchClosed(state, limits, launch))
    assert.strictEqual(run.acquire(2, "a", 9).result._tag, "Failed")
    assert.isFalse(run.step((state, limits) => Transitions.invalidate(state, limits, "a")))
    assert.strictEqual(run.acquire(3, "a", 9).result._tag, "Join")
  })
})

describe("abandon", () => {
  it("the last caller cancels the launch, whose place stays taken until it is closed", () => {
    const run = new Run({ capacity: 1 })
    const { launch } = run.acquire(1, "a")
    run.acquire(2, "a")
    const abandon = () => run.step((state, limits) => Transitions.abandon(state, limits, "a", 1, 0))
    abandon()
    assert.deepStrictEqual(run.tags, [])
    abandon()
    assert.deepStrictEqual(run.tags, ["Cancel"])
    assert.strictEqual(run.state.inventory.places.used, 1)
    const late = run.step((state, limits) => Transitions.landed(state, limits, launch, "late", 0, 0, Infinity))
    assert.isUndefined(late)
    run.step((state, limits) => Transitions.launchClosed(state, limits, launch))
    assert.strictEqual(run.state.inventory.places.used, 0)
  })

  it("a caller whose launch has landed meanwhile gives its lease back", () => {
    const run = new Run()
    run.open(1, "a")
    run.step((state, limits) => Transitions.abandon(state, limits, "a", 1, 0))
    assert.strictEqual(run.live("a").leases, 0)
  })

  it("the last waiter of a key takes its ticket out of the queue", () => {
    const run = new Run({ capacity: 1 })
    run.open(1, "a")
    run.acquire(2, "b")
    const giveUp = () => run.step((state, limits) => Transitions.giveUp(state, limits, "b", 2))
    assert.deepStrictEqual(giveUp(), { scope: "pool", limit: 1, waiting: 0 })
    assert.isUndefined(giveUp())
    assert.strictEqual(Queue.size(run.state.inventory.queue), 0)
    assert.isFalse(HashMap.has(run.state.slots, "b"))
  })
})

describe("identity", () => {
  it("a release, a validation result or a death of the old session leaves the new one as it is", () => {
    const run = new Run()
    run.open(1, "a")
    run.step((state, limits) => Transitions.invalidate(state, limits, "a"))
    run.open(2, "a")
    const before = run.live("a")
    run.step((state, limits) => Transitions.validated(state, limits, "a", 1, false, 0))
    assert.deepStrictEqual(run.tags, ["Close"])
    run.release(1, "a", 50, "error")
    run.step((state, limits) => Transitions.disconnected(state, limits, "a", 1))
    run.closed(1)
    assert.strictEqual(run.live("a"), before)
  })

  it("a release beyond the last changes nothing", () => {
    const run = new Run()
    run.open(1, "a")
    run.step((state, limits) => Transitions.invalidate(state, limits, "a"))
    run.release(1, "a")
    assert.deepStrictEqual(run.tags, ["Close"])
    run.release(1, "a")
    assert.deepStrictEqual(run.tags, [])
  })
})

describe("invalidate while launching", () => {
  it("those who wait get the session, retired from the start; the next caller launches another", () => {
    const run = new Run()
    const { launch } = run.acquire(1, "a")
    assert.isTrue(run.step((state, limits) => Transitions.invalidate(state, limits, "a")))
    assert.deepStrictEqual(run.acquire(2, "a").result._tag, "Join")
    assert.deepStrictEqual(run.tags, ["Launch"])
    run.step((state, limits) => Transitions.landed(state, limits, launch, "old", 0, 0, Infinity))
    assert.deepStrictEqual(run.tags, ["Open", "Deliver", "Retire"])
    const launched = run.state.inventory.totals.launches
    assert.strictEqual(launched, 1)
    assert.deepStrictEqual(run.actions.flatMap((action) => action._tag === "Retire" ? [action.reason] : []), [
      "Invalidated"
    ])
    run.release(1, "a")
    assert.deepStrictEqual(
      run.actions.map((action) => action._tag === "Close" ? action.reason : action._tag),
      ["Invalidated"]
    )
  })

  it("those who wait are told when it fails", () => {
    const run = new Run()
    const { launch } = run.acquire(1, "a")
    run.invalidate("a")
    const fail = () =>
      run.step((state, limits) => Transitions.launchFailed(state, limits, launch, failure("refused"), true, 0))
    fail()
    assert.deepStrictEqual(run.tags, ["TellFailed", "Refuse"])
    fail()
    assert.deepStrictEqual(run.tags, [])
  })

  it("only if it is as it was seen, where it is retired for what was seen", () => {
    const run = new Run()
    const invalidateSeen = (seen: ReturnType<typeof run.slot>) =>
      seen === undefined
        ? assert.fail("no slot")
        : run.step((state, limits) => Transitions.invalidateSeen(state, limits, "a", seen))
    run.acquire(1, "a")
    const seen = run.slot("a")
    run.acquire(2, "a")
    assert.isUndefined(invalidateSeen(seen))
    assert.strictEqual(run.slot("a")?._tag, "Launching")
    assert.isTrue(invalidateSeen(run.slot("a")))
    assert.isUndefined(run.slot("a"))
  })
})

describe("adopt", () => {
  it("by a caller who waited for its place serves those who wait under the same key, out of the queue", () => {
    const run = new Run({ capacity: 1 })
    run.open(1, "a")
    const mine = session(2, "b")
    assert.strictEqual(run.adopt(mine)._tag, "Queued")
    run.acquire(3, "b")
    run.acquire(4, "b")
    run.acquire(5, "c")
    assert.strictEqual(run.state.inventory.waiting, 4)
    run.release(1, "a")
    run.invalidate("a")
    run.closed(1)
    assert.deepStrictEqual(run.tags, ["Grant"])
    assert.strictEqual(run.adopt(mine, true)._tag, "Adopted")
    assert.deepStrictEqual(run.tags, ["Deliver", "Adopt"])
    assert.deepStrictEqual([run.live("b").leases, run.state.inventory.waiting], [2, 1])
  })

  it("replaces the present session and carries its createdAt and counts on", () => {
    const run = new Run()
    run.open(1, "a", 3)
    assert.strictEqual(run.adopt(session(9, "a"))._tag, "Adopted")
    assert.deepStrictEqual(run.tags, ["Retire", "Adopt"])
    const live = run.live("a")
    const { createdAt, id, openedAt } = live.session
    assert.deepStrictEqual([id, createdAt, openedAt, live.requestCount], [9, 3, 50, 1])
  })

  it("wins over a launch: its callers get the adopted session, and the launch is cancelled", () => {
    const run = new Run()
    const { launch } = run.acquire(1, "a")
    run.adopt(session(9, "a"))
    assert.deepStrictEqual(run.tags, ["Cancel", "Deliver", "Adopt"])
    assert.deepStrictEqual([run.live("a").leases, run.live("a").session.value], [1, "adopted"])
    run.step((state, limits) => Transitions.launchClosed(state, limits, launch))
    run.step((state, limits) => Transitions.abandon(state, limits, "a", 1, 60))
    assert.strictEqual(run.live("a").leases, 0)
    assert.strictEqual(run.state.inventory.places.used, 1)
  })

  it("queues for a place when the pool is full, and gives a place that it does not use to the next", () => {
    const run = new Run({ capacity: 1 })
    run.open(1, "a")
    const queued = run.adopt(session(9, "b"))
    assert.strictEqual(queued._tag, "Queued")
    run.acquire(2, "c")
    run.release(1, "a")
    run.closed(1)
    assert.deepStrictEqual(run.tags, ["Grant"])
    const ticket = queued._tag === "Queued" ? queued.ticket : -1
    run.returnGrant(ticket)
    assert.deepStrictEqual(run.tags, ["Launch"])
    assert.strictEqual(run.state.inventory.places.used, 1)
  })
})

describe("closed", () => {
  it("tells of itself before it serves who waits, and once more where its place was given up before", () => {
    const run = new Run({ capacity: 1 })
    run.open(1, "a")
    run.acquire(2, "b")
    run.invalidate("a")
    run.release(1, "a")
    const end = { duration: 1, exit: Exit.void }
    run.closed(1, end)
    assert.deepStrictEqual(run.tags, ["TellClosed", "Launch"])
    const before = run.state
    run.closed(1, end)
    assert.deepStrictEqual(run.tags, ["TellClosed"])
    assert.strictEqual(run.state, before)
  })
})

describe("expire", () => {
  it("is strict: at the time to live a session stays, after it it goes; a leased one only at its lifetime's end", () => {
    const run = new Run()
    const expire = (key: string, now: number) =>
      run.step((state, limits) => Transitions.expire(state, limits, key, now))
    run.open(1, "a")
    run.land(run.acquire(2, "b").launch, 0, 1000)
    assert.isFalse(expire("a", 1000))
    run.release(1, "a")
    assert.isFalse(expire("a", 100))
    assert.isTrue(expire("a", 101))
    assert.isFalse(expire("b", 999))
    assert.isTrue(expire("b", 1000))
    assert.deepStrictEqual(run.actions.map((action) => action._tag === "Retire" && action.reason), ["MaxLifetime"])
    run.release(2, "b", 1001)
    assert.deepStrictEqual(run.tags, ["Close"])
  })
})

describe("shutdown", () => {
  it("refuses, cancels, retires; with nothing left it ends, else with the last close", () => {
    const refusal = () => Cause.fail("closed")
    const phase = { _tag: "Closing", ended: Deferred.makeUnsafe<void>() } as const
    const empty = new Run()
    empty.step((state, limits) => Transitions.shutdown(state, limits, refusal, phase))
    assert.deepStrictEqual(empty.tags, ["End"])
    const run = new Run({ capacity: 2 })
    run.open(1, "a")
    const { launch } = run.acquire(2, "b")
    run.acquire(3, "c")
    run.step((state, limits) => Transitions.shutdown(state, limits, refusal, phase))
    assert.deepStrictEqual(run.tags.toSorted(), ["Cancel", "Refuse", "Refuse", "Retire"])
    assert.strictEqual(run.acquire(4, "d").result._tag, "Closed")
    run.step((state, limits) => Transitions.launchClosed(state, limits, launch))
    assert.deepStrictEqual(run.tags, [])
    run.step((state, limits) => Transitions.forceClose(state, limits))
    assert.deepStrictEqual(run.tags, ["Close"])
    run.release(1, "a")
    assert.deepStrictEqual(run.tags, [])
    run.closed(1)
    assert.deepStrictEqual(run.tags, ["End"])
  })
})

describe("a validation", () => {
  it("whose caller has gone closes a session without idle time when it ends", () => {
    const run = new Run()
    const mine = { ...launch(1, "a"), idleTimeToLive: 0 }
    run.step((state, limits) => Transitions.acquire(state, limits, 0, mine, validation()))
    run.step((state, limits) => Transitions.landed(state, limits, mine, "value", 0, 0, Infinity))
    run.step((state, limits) => Transitions.revalidate(state, limits, "a", 1, validation()))
    run.release(1, "a")
    assert.deepStrictEqual(run.tags, [])
    run.step((state, limits) => Transitions.validated(state, limits, "a", 1, true, 5))
    assert.deepStrictEqual(run.tags, ["Retire", "Close"])
  })

  it("in the background is no use: the session expires, and closes when the validation ends", () => {
    const run = new Run()
    run.open(1, "a")
    run.release(1, "a")
    run.step((state, limits) => Transitions.probe(state, limits, "a", 1, validation()))
    const now = run.live("a").session.idleTimeToLive + 1
    assert.isTrue(run.step((state, limits) => Transitions.expire(state, limits, "a", now)))
    assert.deepStrictEqual(run.tags, ["Retire"])
    run.step((state, limits) => Transitions.validated(state, limits, "a", 1, true, now))
    assert.deepStrictEqual(run.tags, ["Close"])
  })
})
