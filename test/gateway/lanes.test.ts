/** Which lane a call gets: plain values, and any sequence of claims and releases. */
import { assert, describe, it } from "@effect/vitest"
import { Deferred } from "effect"
import * as Lanes from "../../src/gateway/sessions/Lanes.ts"
import * as Random from "../kit/random.ts"

const waiter = () => Deferred.makeUnsafe<void>()

/** Nobody holds a lane or waits for one. */
const isUnused = ({ lanes, waiting }: Lanes.Lanes): boolean => lanes.length === 0 && waiting.length === 0

const claim = (lanes: Lanes.Lanes, exclusive: boolean, max = 3) => {
  const [claimed, next] = Lanes.claim(lanes, exclusive, max, waiter())
  return { lane: claimed._tag === "Claimed" ? claimed.lane : undefined, next }
}

describe("lanes", () => {
  it("calls that come one after the other meet the same process", () => {
    let lanes = Lanes.none
    for (const exclusive of [true, false, true]) {
      const { lane, next } = claim(lanes, exclusive)
      assert.strictEqual(lane, 0)
      lanes = Lanes.release(next, 0, exclusive)[1]
    }
    assert.isTrue(isUnused(lanes))
  })

  it("calls that share do so in the lowest lane that nobody has to himself", () => {
    const alone = claim(Lanes.none, true)
    const shared = claim(alone.next, false)
    const second = claim(shared.next, false)
    assert.deepStrictEqual([alone.lane, shared.lane, second.lane], [0, 1, 1])
  })

  it("who finds no lane waits, and is told as soon as one is given back", () => {
    const one = claim(Lanes.none, true, 1)
    const mine = waiter()
    const [claimed, waiting] = Lanes.claim(one.next, false, 1, mine)
    assert.strictEqual(claimed._tag, "Wait")
    const [told, free] = Lanes.release(waiting, 0, true)
    assert.deepStrictEqual(told, [mine])
    assert.isTrue(isUnused(free))
  })

  it("who no longer waits leaves nothing behind", () => {
    const one = claim(Lanes.none, true, 1)
    const mine = waiter()
    const waiting = Lanes.claim(one.next, true, 1, mine)[1]
    assert.deepStrictEqual(Lanes.leave(waiting, mine), one.next)
  })

  it("in any sequence nobody shares with a call that has its lane to itself, and all is free in the end", () => {
    for (let seed = 0; seed < 200; seed++) {
      const random = Random.make(seed)
      const max = 1 + random.below(4)
      const held: Array<{ readonly lane: number; readonly exclusive: boolean }> = []
      let lanes = Lanes.none
      for (let i = 0; i < 60; i++) {
        if (random.chance(0.6)) {
          const exclusive = random.chance(0.5)
          const { lane, next } = claim(lanes, exclusive, max)
          lanes = next
          const free = [...Array(max).keys()].filter((each) => {
            const there = held.filter((other) => other.lane === each)
            return exclusive ? there.length === 0 : there.every((other) => !other.exclusive)
          })
          // The lowest that will do; none only if there is none.
          assert.strictEqual(lane, free[0])
          if (lane !== undefined) held.push({ lane, exclusive })
        } else if (held.length > 0) {
          const [given] = held.splice(random.below(held.length), 1)
          if (given !== undefined) lanes = Lanes.release(lanes, given.lane, given.exclusive)[1]
        }
      }
      for (const { exclusive, lane } of held) lanes = Lanes.release(lanes, lane, exclusive)[1]
      assert.isTrue(isUnused({ ...lanes, waiting: [] }))
    }
  })
})
