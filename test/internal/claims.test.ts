/** Launches that fail, callers that go away, places and the end, with plain values. */
import { assert, describe, it } from "@effect/vitest"
import { Cause, Deferred, HashMap } from "effect"
import * as Transitions from "../../src/internal/transitions.ts"
import { failure, Run, session } from "../kit/pool/steps.ts"

const launched = (run: Run) => run.actions.flatMap((action) => action._tag === "Launch" ? [action.launch.key] : [])

/** Whether anybody is told. */
const fail = (run: Run, launch: Parameters<Run["land"]>[0], remember = true): boolean => {
  run.step((state, limits) => Transitions.launchFailed(state, limits, launch, failure("no"), remember, 0))
  return run.tags.includes("TellFailed") && run.tags.includes("Refuse")
}

describe("a failure", () => {
  it("is remembered until its time is over, and not a moment longer", () => {
    const run = new Run({ failureTimeToLive: 10 })
    assert.isTrue(fail(run, run.acquire(1, "a").launch))
    assert.deepStrictEqual(run.acquire(2, "a", 9).result, { _tag: "Failed", cause: Cause.fail("no") })
    assert.strictEqual(run.acquire(3, "a", 10).result._tag, "Join")
  })

  it("is not remembered when it is none, or when failures have no time", () => {
    for (const [failureTimeToLive, remember] of [[10, false], [0, true]] as const) {
      const run = new Run({ failureTimeToLive })
      fail(run, run.acquire(1, "a").launch, remember)
      assert.isUndefined(run.slot("a"))
    }
  })

  it("of a launch that was given up is told to nobody, and leaves the one that runs now", () => {
    const run = new Run({ failureTimeToLive: 10 })
    const { launch } = run.acquire(1, "a")
    run.abandon(1, "a")
    run.acquire(2, "a")
    assert.isFalse(fail(run, launch))
    assert.isUndefined(run.land(launch))
    assert.strictEqual(run.slot("a")?._tag, "Launching")
    run.launchClosed(launch)
    assert.isFalse(fail(run, launch))
    assert.isUndefined(run.land(launch))
  })
})

describe("a caller that goes away", () => {
  it("from an invalidated launch takes its claim along, and the last one cancels it", () => {
    const run = new Run()
    const { launch } = run.acquire(1, "a")
    run.acquire(2, "a")
    run.invalidate("a")
    run.abandon(1, "a")
    assert.deepStrictEqual(run.tags, [])
    run.abandon(1, "a")
    assert.deepStrictEqual(run.actions, [{ _tag: "Cancel", launch }])
    run.abandon(1, "a")
    assert.deepStrictEqual(run.tags, [])
  })

  it("with an old claim leaves the launch and the queue that are there now", () => {
    const run = new Run({ capacity: 1 })
    run.acquire(1, "a")
    run.acquire(2, "b")
    run.abandon(9, "a")
    run.abandon(9, "b")
    const gaveUp = run.step((state, limits) => Transitions.giveUp(state, limits, "b", 9))
    assert.deepStrictEqual([run.slot("a")?._tag, run.slot("b")?._tag, gaveUp], ["Launching", "Waiting", undefined])
  })

  it("from a lease counts no error", () => {
    const run = new Run({ maxErrorCount: 1 })
    run.open(1, "a")
    run.abandon(1, "a", 5)
    const { errorCount, lastUsedAt, leases } = run.live("a")
    assert.deepStrictEqual([errorCount, lastUsedAt, leases, run.state.inventory.totals.errors], [0, 5, 0, 0])
  })

  it("from the head of the queue lets the next one have what it stood in the way of", () => {
    const run = new Run({ capacity: 3, groupCapacity: 2 })
    run.open(1, "x1", 0, "x")
    run.idle(2, "x2", 0, "x")
    run.open(3, "y1", 0, "y")
    run.acquire(4, "x3", 0, "x")
    run.acquire(5, "z1", 0, "z")
    assert.deepStrictEqual([run.slot("x3")?._tag, run.slot("z1")?._tag], ["Waiting", "Waiting"])
    run.abandon(4, "x3")
    run.closed(2)
    assert.deepStrictEqual(launched(run), ["z1"])
  })
})

describe("a connection to adopt", () => {
  it("is refused when it would wait and so many wait as may, but not when an eviction makes room", () => {
    const run = new Run({ capacity: 1, maxWaiting: 1 })
    run.open(1, "a")
    assert.strictEqual(run.adopt(session(2, "b"))._tag, "Queued")
    assert.deepStrictEqual(run.adopt(session(3, "c")), {
      _tag: "Full",
      shortage: { scope: "pool", limit: 1, waiting: 1 }
    })
    assert.strictEqual(run.state.inventory.waiting, 1)
    const none = new Run({ capacity: 1, maxWaiting: 0 })
    none.idle(1, "a")
    assert.strictEqual(none.adopt(session(2, "b"))._tag, "Queued")
    assert.deepStrictEqual(none.tags, ["Retire", "Close"])
  })

  it("takes the callers of a launch over: each is a request, and none of them waits on", () => {
    const run = new Run({ capacity: 3 })
    run.acquire(1, "a")
    run.acquire(2, "a")
    run.adopt(session(3, "a"))
    assert.deepStrictEqual([run.live("a").leases, run.live("a").requestCount], [2, 2])
  })

  it("that comes to nobody is idle: it makes room at once for one who waits", () => {
    const run = new Run({ capacity: 1 })
    run.open(1, "a")
    const queued = run.adopt(session(2, "b"))
    run.acquire(3, "c")
    run.release(1, "a")
    run.closed(1)
    assert.deepStrictEqual([queued._tag, run.tags], ["Queued", ["Grant"]])
    run.adopt(session(2, "b"), true)
    assert.deepStrictEqual(run.tags, ["Adopt", "Retire", "Close"])
  })

  it("leaves the queue when its caller does, and the next one does not wait for it", () => {
    const run = new Run({ capacity: 1 })
    run.open(1, "a")
    const first = run.adopt(session(2, "b"))
    run.acquire(3, "c")
    run.returnGrant(first._tag === "Queued" ? first.ticket : -1)
    assert.strictEqual(run.state.inventory.waiting, 1)
    run.release(1, "a")
    run.closed(1)
    assert.deepStrictEqual(launched(run), ["c"])
  })
})

describe("a failed launch", () => {
  it("is told to whoever waits, once; there is something to close until that is over, but not where it has landed", () => {
    const run = new Run()
    const fails = (launch: ReturnType<typeof run.acquire>["launch"]) =>
      run.step((state, limits) => Transitions.launchFailed(state, limits, launch, failure("no"), false, 0))
    const waited = run.acquire(1, "waited").launch
    assert.isTrue(fails(waited))
    assert.deepStrictEqual(run.tags, ["TellFailed", "Refuse"])
    assert.isTrue(fails(waited))
    assert.deepStrictEqual(run.tags, [])
    run.launchClosed(waited)
    assert.isFalse(fails(waited))
    const cancelled = run.acquire(2, "cancelled").launch
    run.abandon(2, "cancelled")
    assert.isTrue(fails(cancelled))
    assert.deepStrictEqual(run.tags, [])
    assert.isFalse(fails(run.open(3, "landed")))
    assert.strictEqual(run.live("landed").leases, 1)
  })
})

describe("a connection that was offered", () => {
  const closing = (run: Run) => {
    const phase = { _tag: "Closing", ended: Deferred.makeUnsafe<void>() } as const
    run.step((state, limits) => Transitions.shutdown(state, limits, (key) => Cause.fail(`no ${key}`), phase))
    return run.tags
  }

  it("holds the end up until it has been rejected, and does so once", () => {
    const run = new Run()
    run.offer(1)
    run.offer(2)
    assert.deepStrictEqual(closing(run), [])
    assert.strictEqual(run.adopt(session(1, "a"))._tag, "Closed")
    run.rejected(1)
    assert.deepStrictEqual(run.tags, [])
    run.rejected(2)
    assert.deepStrictEqual(run.tags, ["End"])
    const before = run.state
    run.rejected(2)
    assert.strictEqual(run.state, before)
  })

  it("is the session's when it has been adopted", () => {
    const run = new Run()
    run.offer(1)
    run.adopt(session(1, "a"))
    assert.deepStrictEqual(closing(run), ["Retire", "Close"])
    run.closed(1)
    assert.deepStrictEqual(run.tags, ["End"])
  })
})

describe("the end", () => {
  const phase = { _tag: "Closing", ended: Deferred.makeUnsafe<void>() } as const
  const shutdown = (run: Run) =>
    run.step((state, limits) => Transitions.shutdown(state, limits, (key) => Cause.fail(`no ${key}`), phase))

  it("tells everyone who waits: for a place, for a launch, for an invalidated launch, for a place of set", () => {
    const run = new Run({ capacity: 2 })
    run.acquire(1, "invalidated")
    run.invalidate("invalidated")
    run.acquire(2, "launching")
    run.acquire(3, "waiting")
    const granted = run.adopt(session(4, "set"))
    shutdown(run)
    const told = run.actions.flatMap((action): ReadonlyArray<unknown> =>
      action._tag === "Refuse"
        ? [[action.launch.key, action.cause]]
        : action._tag === "Grant"
        ? [[granted._tag, action.place]]
        : []
    )
    const refused = ["invalidated", "launching", "waiting"].map((key) => [key, Cause.fail(`no ${key}`)])
    assert.sameDeepMembers(told, [...refused, ["Queued", false]])
    assert.strictEqual(run.tags.filter((tag) => tag === "Cancel").length, 2)
  })

  it("tells nobody of a launch that was given up before, and does not cancel it again", () => {
    const run = new Run()
    run.acquire(1, "a")
    run.abandon(1, "a")
    shutdown(run)
    assert.deepStrictEqual(run.tags, [])
  })

  it("takes no connection of an invalidated launch that lands after it", () => {
    const run = new Run()
    const { launch } = run.acquire(1, "a")
    run.invalidate("a")
    shutdown(run)
    assert.isUndefined(run.land(launch))
    run.launchClosed(launch)
    assert.deepStrictEqual(run.tags, ["End"])
  })

  it("comes once, and refuses whoever comes after it", () => {
    const run = new Run()
    run.open(1, "a")
    shutdown(run)
    const closing = run.state
    shutdown(run)
    assert.strictEqual(run.state, closing)
    assert.deepStrictEqual(run.tags, [])
    assert.deepStrictEqual(run.adopt(session(2, "b")), { _tag: "Closed" })
    assert.deepStrictEqual(run.acquire(3, "b").result, { _tag: "Closed" })
    assert.strictEqual(HashMap.size(run.state.slots), 0)
  })
})

describe("the totals", () => {
  it("count closes by the reason of the retirement, and keep the others", () => {
    const run = new Run()
    for (const id of [1, 2, 3]) {
      run.idle(id, "a")
      run.invalidate("a")
      run.closed(id)
    }
    run.idle(4, "b")
    run.step((state, limits) => Transitions.disconnected(state, limits, "b", 4))
    run.closed(4)
    const { closes } = run.state.inventory.totals
    assert.deepStrictEqual(
      [closes.Invalidated, closes.Disconnected, closes.Evicted],
      [3, 1, 0]
    )
  })
})
