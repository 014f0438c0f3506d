/** Whom an eviction takes, with plain values. */
import { assert, describe, it } from "@effect/vitest"
import { HashMap, Option } from "effect"
import * as Candidates from "../../src/internal/candidates.ts"
import { exactEvictionLimit } from "../../src/internal/draft.ts"
import * as Transitions from "../../src/internal/transitions.ts"
import { Run, session, validation } from "../kit/pool/steps.ts"
import * as Random from "../kit/random.ts"

const evicted = (run: Run) =>
  run.actions.flatMap((action) => action._tag === "Retire" ? [[action.session.key, action.reason]] : [])

describe("an eviction takes", () => {
  it("the session that was used longest ago, wherever it stands", () => {
    for (const times of [[1, 2, 3], [3, 1, 2], [2, 3, 1]]) {
      const run = new Run({ capacity: 3 })
      for (const [i, time] of times.entries()) run.idle(i + 1, `a${time}`, time)
      run.acquire(9, "new", 10)
      assert.deepStrictEqual(evicted(run), [["a1", "Evicted"]])
    }
  })

  it("the session that was used longest ago, though it was opened last", () => {
    const run = new Run({ capacity: 3 })
    for (const [i, id] of [3, 2, 1].entries()) run.idle(id, `a${id}`, i)
    run.acquire(9, "new", 10)
    assert.deepStrictEqual(evicted(run), [["a3", "Evicted"]])
  })

  it("of several used at the same time the one that was opened first", () => {
    for (const ids of [[1, 2, 3], [3, 2, 1], [2, 3, 1]]) {
      const run = new Run({ capacity: 3 })
      for (const id of ids) run.idle(id, `a${id}`)
      run.acquire(9, "new", 10)
      assert.deepStrictEqual(evicted(run), [["a1", "Evicted"]])
    }
  })

  it("none that is in use, though it was idle before and used longest ago", () => {
    const run = new Run({ capacity: 2 })
    run.idle(1, "a", 1)
    run.idle(2, "b", 2)
    run.acquire(3, "a", 3)
    run.acquire(4, "b", 4)
    run.release(2, "b", 5)
    run.acquire(5, "new", 6)
    assert.deepStrictEqual(evicted(run), [["b", "Evicted"]])
    run.acquire(6, "newer", 7)
    assert.deepStrictEqual(evicted(run), [])
  })

  it("none where all are in use, and a refusal keeps what its search found", () => {
    const run = new Run({ capacity: 2, maxWaiting: 0 })
    run.idle(1, "a", 1)
    run.idle(2, "b", 2)
    run.acquire(3, "a", 3)
    run.acquire(4, "b", 4)
    assert.deepStrictEqual(run.acquire(5, "new", 5).result, {
      _tag: "Full",
      shortage: { scope: "pool", limit: 2, waiting: 0 }
    })
    // The next search does not look at them again.
    assert.strictEqual(Candidates.size(run.state.inventory.places.idle), 0)
    run.release(2, "b", 6)
    run.acquire(6, "new", 7)
    assert.deepStrictEqual(evicted(run), [["b", "Evicted"]])
  })

  it("one for each waiter, until nothing is idle", () => {
    const run = new Run({ capacity: 3 })
    run.idle(1, "a")
    run.idle(2, "b")
    run.open(3, "c")
    assert.deepStrictEqual([...Array(3).keys()].map((i) => (run.acquire(10 + i, `new ${i}`), evicted(run).length)), [
      1,
      1,
      0
    ])
  })

  it("only one of the group whose limit is reached, and any when the pool's is", () => {
    const run = new Run({ capacity: 4, groupCapacity: 2 })
    run.idle(1, "x1", 3, "x")
    run.idle(2, "x2", 2, "x")
    run.idle(3, "y1", 1, "y")
    run.acquire(4, "x3", 10, "x")
    assert.deepStrictEqual(evicted(run), [["x2", "Evicted"]])
    run.closed(2)
    run.idle(5, "z1", 4, "z")
    run.acquire(6, "z2", 10, "z")
    assert.deepStrictEqual(evicted(run), [["y1", "Evicted"]])
  })

  it("nobody of another group for one that is full", () => {
    const run = new Run({ capacity: 9, groupCapacity: 1, maxWaiting: 0 })
    run.open(1, "x1", 0, "x")
    run.idle(2, "y1", 0, "y")
    assert.strictEqual(run.acquire(3, "x2", 0, "x").result._tag, "Full")
    run.release(1, "x1")
    assert.strictEqual(run.acquire(4, "x2", 0, "x").result._tag, "Join")
    assert.deepStrictEqual(evicted(run), [["x1", "Evicted"]])
  })

  it("one of any group for one that has room in its own, however few may wait", () => {
    const run = new Run({ capacity: 2, groupCapacity: 2, maxWaiting: 0 })
    run.idle(1, "x1", 0, "x")
    run.open(2, "y1", 0, "y")
    assert.strictEqual(run.acquire(3, "y2", 0, "y").result._tag, "Join")
    assert.deepStrictEqual(evicted(run), [["x1", "Evicted"]])
  })

  it("of a group forgets those that are in use when it looks for an idle one", () => {
    const run = new Run({ groupCapacity: 2 })
    run.idle(1, "x1", 0, "x")
    run.idle(2, "x2", 0, "x")
    run.acquire(3, "x1", 1, "x")
    run.acquire(4, "x3", 2, "x")
    assert.deepStrictEqual(evicted(run), [["x2", "Evicted"]])
    const places = Option.getOrThrow(HashMap.get(run.state.inventory.groups, "x"))
    assert.strictEqual(Candidates.size(places.idle), 0)
    assert.deepStrictEqual([places.used, places.closing], [2, 1])
  })

  it("nobody in a pool without a limit of its own, whatever the groups hold", () => {
    const run = new Run({ groupCapacity: 1 })
    run.idle(1, "x1", 0, "x")
    run.open(2, "y1", 0, "y")
    run.acquire(3, "y2", 0, "y")
    assert.deepStrictEqual(evicted(run), [])
    assert.strictEqual(Candidates.size(run.state.inventory.places.idle), 0)
  })
})

describe("one eviction after another", () => {
  it("each takes the session that was used longest ago, whatever was used, checked, opened and ended in between", () => {
    for (let seed = 1; seed <= 20; seed++) {
      const random = Random.make(seed)
      // More than are remembered, and fewer.
      const capacity = seed % 2 === 0 ? 150 : 20
      const run = new Run({ capacity })
      run.recount = false
      // Of the idle ones; times may be the same.
      const used = new Map<number, { readonly key: string; readonly at: number }>()
      let [id, now] = [0, 0]
      // Those that are checked are in use, and are as old as before when they are not any more.
      const checked = new Map<number, { readonly key: string; readonly at: number }>()
      const check = (some: number, key: string, at: number) => {
        run.step((state, limits) => Transitions.probe(state, limits, key, some, validation()))
        used.delete(some)
        checked.set(some, { key, at })
      }
      const endChecks = () => {
        for (const [some, { at, key }] of checked) {
          run.step((state, limits) => Transitions.validated(state, limits, key, some, true, now))
          used.set(some, { key, at })
        }
        checked.clear()
      }
      const open = () => {
        id++
        run.idle(id, `a${id}`, now)
        used.set(id, { key: `a${id}`, at: now })
      }
      while (used.size < capacity) open()
      for (let i = 0; i < 600; i++) {
        now += random.below(3)
        const [some = 0] = [...used.keys()].slice(random.below(used.size))
        const { at = 0, key = "" } = used.get(some) ?? {}
        const what = random.below(12)
        if (what >= 11) {
          endChecks()
        } else if (what >= 10) {
          // Some that are old, and some that are not.
          const [old, oldKey, oldAt] = [...used].map(([id, { at, key }]) => [id, key, at] as const)
            .toSorted((a, b) => a[2] - b[2])[random.below(4)] ?? [some, key, at]
          check(...random.below(2) === 0 ? [some, key, at] as const : [old, oldKey, oldAt] as const)
        } else if (what < 3) {
          run.acquire(++id, key, now)
          run.release(some, key, now)
          used.set(some, { key, at: now })
        } else if (what < 4) {
          run.invalidate(key)
          run.closed(some)
          used.delete(some)
          open()
        } else {
          const [oldest] = [...used].toSorted(([a, { at }], [b, other]) => at - other.at || a - b)[0] ?? []
          const { launch } = run.acquire(++id, `a${id}`, now)
          assert.deepStrictEqual(evicted(run), [[used.get(oldest ?? 0)?.key ?? "", "Evicted"]])
          used.delete(oldest ?? 0)
          run.closed(oldest ?? 0)
          const remembered = run.state.inventory.places.oldest.map((found) => found.id)
          assert.isAtMost(remembered.length, 64)
          assert.strictEqual(new Set(remembered).size, remembered.length)
          run.land(launch, now)
          run.release(id, `a${id}`, now)
          used.set(id, { key: `a${id}`, at: now })
        }
      }
    }
  })
})

describe("a place for a full group", () => {
  it("that is handed to a caller of set comes back when it does not take it", () => {
    const run = new Run({ groupCapacity: 1 })
    run.open(1, "x1", 0, "x")
    const queued = run.adopt(session(2, "x2", 0, "x"))
    run.release(1, "x1")
    run.closed(1)
    assert.deepStrictEqual(run.tags, ["Grant"])
    run.returnGrant(queued._tag === "Queued" ? queued.ticket : -1, "x")
    assert.strictEqual(run.state.inventory.places.used, 0)
  })

  it("that is on its way is given to no waiter of another group", () => {
    const run = new Run({ capacity: 2, groupCapacity: 1 })
    run.idle(1, "x1", 0, "x")
    run.idle(2, "y1", 0, "y")
    run.acquire(3, "x2", 0, "x")
    assert.deepStrictEqual(evicted(run), [["x1", "Evicted"]])
    // The pool is full, and the place of x1 is promised: z takes another.
    run.acquire(4, "z1", 0, "z")
    assert.deepStrictEqual(evicted(run), [["y1", "Evicted"]])
    run.closed(2)
    assert.deepStrictEqual(run.actions.map((action) => action._tag === "Launch" && action.launch.key), ["z1"])
    run.closed(1)
    assert.deepStrictEqual(run.actions.map((action) => action._tag === "Launch" && action.launch.key), ["x2"])
  })

  it("that comes is waited for, and nothing of another group is evicted, until another waiter counts on it too", () => {
    const run = new Run({ capacity: 2, groupCapacity: 1 })
    run.idle(1, "x1", 0, "x")
    run.idle(2, "y1", 1, "y")
    run.acquire(3, "x2", 2, "x")
    assert.deepStrictEqual(evicted(run), [["x1", "Evicted"]])
    // Only a session of its own group could make room for it, and there is none.
    run.acquire(4, "x3", 2, "x")
    assert.deepStrictEqual(evicted(run), [])
    const other = new Run({ capacity: 3, groupCapacity: 2 })
    other.idle(1, "a1", 0, "a")
    other.idle(2, "a2", 1, "a")
    other.open(3, "b1", 1, "b")
    // Takes the place of a1.
    other.acquire(4, "b2", 2, "b")
    assert.deepStrictEqual(evicted(other), [["a1", "Evicted"]])
    other.acquire(5, "a3", 2, "a")
    assert.deepStrictEqual(evicted(other), [["a2", "Evicted"]])
  })

  it("is what a refusal tells of, where the group is full; else the pool", () => {
    const run = new Run({ capacity: 3, groupCapacity: 2, maxWaiting: 0 })
    run.open(1, "x1", 0, "x")
    run.open(2, "x2", 0, "x")
    const group = { _tag: "Full", shortage: { scope: "group", limit: 2, waiting: 0 } } as const
    const pool = { _tag: "Full", shortage: { scope: "pool", limit: 3, waiting: 0 } } as const
    assert.deepStrictEqual(run.acquire(3, "x3", 0, "x").result, group)
    assert.deepStrictEqual(run.adopt(session(4, "x4", 0, "x")), group)
    run.open(5, "y1", 0, "y")
    assert.deepStrictEqual(run.acquire(6, "y2", 0, "y").result, pool)
    assert.deepStrictEqual(run.acquire(7, "z1", 0, "z").result, pool)
  })

  it("of which two wait needs two to come", () => {
    const run = new Run({ capacity: 9, groupCapacity: 2 })
    // Older, but of another group.
    run.idle(9, "y1", 0, "y")
    run.idle(1, "x1", 0, "x")
    run.idle(2, "x2", 1, "x")
    run.acquire(3, "x3", 2, "x")
    assert.deepStrictEqual(evicted(run), [["x1", "Evicted"]])
    run.acquire(4, "x4", 2, "x")
    assert.deepStrictEqual(evicted(run), [["x2", "Evicted"]])
    run.acquire(5, "x5", 2, "x")
    assert.deepStrictEqual(evicted(run), [])
    run.closed(1)
    run.closed(2)
    assert.strictEqual(run.state.inventory.waiting, 1)
  })
})

describe("a place whose close lingers", () => {
  it("is not counted on: who waits for it is served by an eviction, of its own group where that is full", () => {
    for (const groups of [false, true]) {
      const run = new Run(groups ? { capacity: 9, groupCapacity: 2 } : { capacity: 2 })
      const group = groups ? "x" : undefined
      run.idle(1, "a", 0, group)
      run.idle(2, "b", 1, group)
      run.invalidate("a")
      run.acquire(3, "c", 2, group)
      assert.deepStrictEqual(evicted(run), [])
      run.lingers(1)
      assert.deepStrictEqual(evicted(run), [["b", "Evicted"]])
      const before = run.state
      run.lingers(1)
      assert.strictEqual(run.state, before)
      // The one that comes first serves, the other is free.
      run.closed(1)
      assert.deepStrictEqual(run.tags, ["Launch"])
      run.closed(2)
      assert.strictEqual(run.state.inventory.places.closing, 0)
    }
  })

  it("is not counted on where a launch held it that nobody waits for", () => {
    const run = new Run({ capacity: 2 })
    run.idle(1, "a", 0)
    const { launch } = run.acquire(2, "b", 1)
    run.abandon(2, "b", 1)
    run.acquire(3, "c", 2)
    assert.deepStrictEqual(evicted(run), [])
    run.launchLingers(launch)
    assert.deepStrictEqual(evicted(run), [["a", "Evicted"]])
    const before = run.state
    run.launchLingers(launch)
    assert.strictEqual(run.state, before)
    run.launchClosed(launch)
    assert.deepStrictEqual(run.tags, ["Launch"])
    run.closed(1)
    assert.strictEqual(run.state.inventory.places.closing, 0)
  })
})

describe("among more idle sessions than are compared one by one", () => {
  const count = exactEvictionLimit + 904
  const fill = (seed: number) => {
    const run = new Run({ capacity: count }, seed)
    run.recount = false
    for (let id = 1; id <= count; id++) run.idle(id, `a${id}`, id)
    return run
  }

  it("an eviction takes an old one of a sample, another for another seed, and the same for the same", () => {
    const run = fill(1)
    const first = run.state
    const ids: Array<number> = []
    for (let i = 0; i < 200; i++) {
      run.acquire(count + 1 + i, `new ${i}`, count + i)
      const retired = run.actions.flatMap((action) => action._tag === "Retire" ? [action.session.id] : [])
      assert.strictEqual(retired.length, 1)
      ids.push(...retired)
    }
    const mean = ids.reduce((sum, id) => sum + id, 0) / ids.length
    // The least of five is a sixth of the way on average.
    assert.isAbove(mean, count / 8)
    assert.isBelow(mean, count / 4.5)
    assert.strictEqual(new Set(ids).size, ids.length)
    run.state = first
    run.acquire(count + 1, "new 0", count)
    assert.strictEqual(run.actions.flatMap((action) => action._tag === "Retire" ? [action.session.id] : [])[0], ids[0])
  })

  it("those in use are dropped when they are drawn, and none of them is taken", () => {
    const run = fill(2)
    for (let id = 1; id <= count; id++) if (id % 8 !== 0) run.acquire(count + id, `a${id}`, count)
    const before = Candidates.size(run.state.inventory.places.idle)
    run.acquire(3 * count, "new", 2 * count)
    const [action] = run.actions
    assert.isTrue(action?._tag === "Retire" && action.session.id % 8 === 0)
    assert.isBelow(Candidates.size(run.state.inventory.places.idle), before - 16)
  })

  it("the last few are compared one by one as soon as the others are dropped", () => {
    const run = fill(3)
    for (let id = 1; id <= count; id++) if (id !== 77 && id !== 78) run.acquire(count + id, `a${id}`, count)
    run.acquire(3 * count, "new", 2 * count)
    assert.deepStrictEqual(evicted(run), [["a77", "Evicted"]])
    assert.deepStrictEqual([...HashMap.values(run.state.inventory.places.idle.keys)], ["a78"])
  })
})
