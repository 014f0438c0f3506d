/** What a use, an error, a validation and time do to a session, with plain values, at the very edges. */
import { assert, describe, it } from "@effect/vitest"
import { Hash, Option } from "effect"
import { Live } from "../../src/internal/state.ts"
import * as Transitions from "../../src/internal/transitions.ts"
import { failure, launch, Run, validation, withoutActions } from "../kit/pool/steps.ts"

const reasons = (run: Run) => run.actions.flatMap((action) => action._tag === "Retire" ? [action.reason] : [])

const touch = (run: Run, key: string, now: number) =>
  run.step((state) => withoutActions(Transitions.touch(state, key, now)))

const lease = (run: Run, key: string, now: number) =>
  run.step((state, limits) => withoutActions(Transitions.lease(state, limits, key, Hash.hash(key), now)))

const join = (run: Run, key: string, now: number) =>
  run.step((state, limits) => Transitions.join(state, limits, key, now, validation()))

const expire = (run: Run, key: string, now: number) =>
  run.step((state, limits) => Transitions.expire(state, limits, key, now))

/** A session with this idle time, leased once. */
const openWith = (run: Run, idleTimeToLive: number, expiresAt = Infinity) => {
  const mine = { ...launch(1, "a"), idleTimeToLive }
  run.step((state, limits) => Transitions.acquire(state, limits, 0, mine, validation()))
  run.land(mine, 0, expiresAt)
}

describe("a request", () => {
  it("by touch, lease, join or acquire counts one, and moves lastUsedAt", () => {
    const run = new Run()
    run.open(1, "a")
    assert.deepStrictEqual(touch(run, "a", 1), Option.some("value 1"))
    assert.strictEqual(lease(run, "a", 2)?.id, 1)
    assert.strictEqual(join(run, "a", 3)._tag, "Leased")
    assert.strictEqual(run.acquire(2, "a", 4).result._tag, "Leased")
    const { lastUsedAt, leases, requestCount } = run.live("a")
    assert.deepStrictEqual([lastUsedAt, leases, requestCount, run.state.hits], [4, 4, 5, 4])
  })

  it("by touch, lease or join finds nothing where nothing is, or where the failure is remembered", () => {
    const run = new Run({ failureTimeToLive: 10 })
    const { launch } = run.acquire(1, "failed")
    run.step((state, limits) => Transitions.launchFailed(state, limits, launch, failure("no"), true, 0))
    run.acquire(2, "launching")
    for (const key of ["absent", "failed"]) assert.deepStrictEqual(join(run, key, 1), { _tag: "Absent" })
    for (const key of ["absent", "failed", "launching"]) {
      assert.deepStrictEqual([touch(run, key, 1), lease(run, key, 1)], [Option.none(), undefined])
    }
  })

  it("says whether its launch waits for a place", () => {
    const run = new Run({ capacity: 1 })
    const queued = (id: number, key: string) => {
      const { result } = run.acquire(id, key)
      return result._tag === "Join" && result.queued
    }
    assert.deepStrictEqual([queued(1, "a"), queued(2, "a"), queued(3, "b"), queued(4, "b")], [false, false, true, true])
  })

  it("of a key that waits is refused, too, when so many wait as may", () => {
    const run = new Run({ capacity: 1, maxWaiting: 2 })
    run.open(1, "a")
    const tags = [2, 3, 4].map((id) => run.acquire(id, "b").result._tag)
    assert.deepStrictEqual([...tags, join(run, "b", 0)._tag], ["Join", "Join", "Full", "Full"])
    assert.strictEqual(run.state.inventory.waiting, 2)
  })
})

describe("validation", () => {
  const ask = (run: Run, now: number) => [lease(run, "a", now)?.id, join(run, "a", now)._tag]

  it("is due only after validateAfter without a use and without a lease", () => {
    for (const [now, ...expected] of [[10, 1, "Leased"], [11, undefined, "Validate"]] as const) {
      const run = new Run({ validateAfter: 10 })
      run.idle(1, "a")
      assert.deepStrictEqual(ask(run, now), expected)
    }
    const leased = new Run({ validateAfter: 10 })
    leased.open(1, "a")
    assert.deepStrictEqual(ask(leased, 1000), [1, "Leased"])
  })

  it("that said yes counts like a use: the time starts anew", () => {
    const run = new Run({ validateAfter: 10 })
    run.idle(1, "a")
    run.step((state, limits) => Transitions.probe(state, limits, "a", 1, validation()))
    run.step((state, limits) => Transitions.validated(state, limits, "a", 1, true, 50))
    assert.deepStrictEqual(ask(run, 60), [1, "Leased"])
    run.release(1, "a", 60)
    run.release(1, "a", 60)
    assert.deepStrictEqual(ask(run, 70), [1, "Leased"])
  })

  it("that runs is waited for by all who come, with the same result, and has a lease of its own", () => {
    const run = new Run({ validateAfter: 10 })
    run.idle(1, "a")
    const first = join(run, "a", 11)
    const second = run.acquire(2, "a", 11).result
    assert.isUndefined(lease(run, "a", 11))
    assert.isTrue(first._tag === "Validate" && second._tag === "Validate" && first.validation === second.validation)
    assert.deepStrictEqual([first, second].map((got) => got._tag === "Validate" && got.begin), [true, false])
    const third = run.step((state, limits) => Transitions.revalidate(state, limits, "a", 1, validation()))
    assert.deepStrictEqual(third, {
      validation: first._tag === "Validate" ? first.validation : validation(),
      begin: undefined
    })
    assert.strictEqual(run.live("a").leases, 3)
  })

  it("in the background leaves alone what is in use, what is validated, and another session", () => {
    const run = new Run()
    const probe = (id: number) => run.step((state, limits) => Transitions.probe(state, limits, "a", id, validation()))
    run.open(1, "a")
    assert.isUndefined(probe(1))
    run.release(1, "a")
    assert.isUndefined(probe(2))
    assert.strictEqual(probe(1)?.begin?.id, 1)
    assert.isUndefined(probe(1))
    const other = run.step((state, limits) => Transitions.revalidate(state, limits, "a", 2, validation()))
    assert.isUndefined(other)
  })

  it("that has said no meanwhile is the answer for who still holds the session; another retirement is not", () => {
    for (const valid of [true, false]) {
      const run = new Run()
      run.open(1, "a")
      run.acquire(2, "a")
      const revalidate = () => run.step((state, limits) => Transitions.revalidate(state, limits, "a", 1, validation()))
      revalidate()
      run.step((state, limits) => Transitions.validated(state, limits, "a", 1, valid, 50))
      run.invalidate("a")
      assert.strictEqual(revalidate(), valid ? undefined : "Invalid")
    }
  })

  it("that said no retires the session as Invalid; one that said yes leaves it idle", () => {
    for (const [valid, expected] of [[true, ""], [false, "Invalid"]] as const) {
      const run = new Run({ capacity: 1 })
      run.idle(1, "a")
      run.step((state, limits) => Transitions.probe(state, limits, "a", 1, validation()))
      run.step((state, limits) => Transitions.validated(state, limits, "a", 1, valid, 5))
      assert.strictEqual(reasons(run).join(), expected)
      if (valid) assert.deepStrictEqual([run.live("a").leases, run.live("a").validatedAt], [0, 5])
    }
  })

  it("that said yes makes room for one who came meanwhile, if nobody uses the session", () => {
    const run = new Run({ capacity: 1 })
    run.idle(1, "a")
    run.step((state, limits) => Transitions.probe(state, limits, "a", 1, validation()))
    run.acquire(2, "b")
    assert.deepStrictEqual(run.tags, [])
    run.step((state, limits) => Transitions.validated(state, limits, "a", 1, true, 5))
    assert.deepStrictEqual([run.tags, reasons(run)], [["Retire", "Close"], ["Evicted"]])
  })

  it("of a session retired meanwhile ends with its lease, and moves no count", () => {
    const run = new Run()
    run.idle(1, "a")
    run.step((state, limits) => Transitions.probe(state, limits, "a", 1, validation()))
    run.invalidate("a")
    run.step((state, limits) => Transitions.validated(state, limits, "a", 1, false, 5))
    assert.deepStrictEqual([run.tags, run.state.inventory.totals.errors], [["Close"], 0])
  })
})

describe("an error", () => {
  const errors = (run: Run) => [run.slot("a") instanceof Live ? run.live("a").errorCount : "retired", reasons(run)]
  const use = (run: Run, how: Transitions.Result) => {
    lease(run, "a", 0)
    run.release(1, "a", 0, how)
    return errors(run)
  }

  it("counts up to the limit, a success starts anew, anything else leaves the count", () => {
    for (const capacity of [1, Infinity]) {
      const run = new Run({ capacity, maxErrorCount: 3 })
      run.idle(1, "a")
      assert.deepStrictEqual(use(run, "error"), [1, []])
      assert.deepStrictEqual(use(run, "neither"), [1, []])
      assert.deepStrictEqual(use(run, "error"), [2, []])
      assert.deepStrictEqual(use(run, "neither"), [2, []])
      assert.deepStrictEqual(use(run, "success"), [0, []])
      assert.deepStrictEqual(use(run, "error"), [1, []])
      assert.deepStrictEqual(use(run, "error"), [2, []])
      assert.deepStrictEqual(use(run, "error"), ["retired", ["Errors"]])
      assert.strictEqual(run.state.inventory.totals.errors, 5)
    }
  })

  it("recorded by hand counts the same way", () => {
    const run = new Run({ maxErrorCount: 2 })
    run.open(1, "a")
    const record = () => run.step((state, limits) => Transitions.recordError(state, limits, "a"))
    record()
    assert.deepStrictEqual(errors(run), [1, []])
    record()
    assert.deepStrictEqual(errors(run), ["retired", ["Errors"]])
  })

  it("of one of two leases leaves the other, and one that reaches the limit retires the session under it", () => {
    const run = new Run({ capacity: 1, maxErrorCount: 2 })
    run.open(1, "a")
    lease(run, "a", 0)
    lease(run, "a", 0)
    run.release(1, "a", 0, "error")
    assert.deepStrictEqual([run.tags, run.live("a").leases], [[], 2])
    run.release(1, "a", 0, "error")
    assert.deepStrictEqual(run.tags, ["Retire"])
    run.release(1, "a", 0, "success")
    assert.deepStrictEqual(run.tags, ["Close"])
  })
})

describe("the last release", () => {
  it("closes a session without idle time, whatever the limits and however the lease went", () => {
    for (const capacity of [1, Infinity]) {
      for (const how of ["success", "error", "neither"] as const) {
        const run = new Run({ capacity })
        openWith(run, 0)
        lease(run, "a", 0)
        run.release(1, "a", 0, how)
        assert.deepStrictEqual(run.tags, [])
        run.release(1, "a", 0, how)
        assert.deepStrictEqual([run.tags, reasons(run)], [["Retire", "Close"], ["IdleTimeout"]])
      }
    }
  })

  it("and any other that has no consequence takes no step but its own", () => {
    const run = new Run()
    openWith(run, 100)
    const { inventory } = run.state
    run.release(1, "a")
    assert.strictEqual(run.state.inventory, inventory)
  })
})

describe("time", () => {
  it("ends a session without leases only after its idle time since the last use", () => {
    const run = new Run()
    openWith(run, 100)
    run.release(1, "a", 30)
    touch(run, "a", 40)
    assert.deepStrictEqual([expire(run, "a", 140), reasons(run)], [false, []])
    assert.deepStrictEqual([expire(run, "a", 141), reasons(run)], [true, ["IdleTimeout"]])
  })

  it("ends a session at its lifetime's end, used or not", () => {
    const run = new Run()
    openWith(run, Infinity, 50)
    assert.deepStrictEqual([expire(run, "a", 49), reasons(run)], [false, []])
    assert.deepStrictEqual([expire(run, "a", 50), reasons(run)], [true, ["MaxLifetime"]])
  })

  it("forgets a failure when it is over, which is no session retired", () => {
    const run = new Run({ failureTimeToLive: 10 })
    const { launch } = run.acquire(1, "a", 5)
    run.step((state, limits) => Transitions.launchFailed(state, limits, launch, failure("no"), true, 5))
    assert.deepStrictEqual([expire(run, "a", 14), run.slot("a")?._tag], [false, "Failed"])
    assert.deepStrictEqual([expire(run, "a", 15), run.slot("a")?._tag], [false, undefined])
    assert.isFalse(expire(run, "never seen", 15))
  })

  it("ends nothing that launches or waits", () => {
    const run = new Run({ capacity: 1 })
    run.acquire(1, "a")
    run.acquire(2, "b")
    assert.deepStrictEqual([expire(run, "a", 1e9), expire(run, "b", 1e9)], [false, false])
    assert.deepStrictEqual([run.slot("a")?._tag, run.slot("b")?._tag], ["Launching", "Waiting"])
  })
})
