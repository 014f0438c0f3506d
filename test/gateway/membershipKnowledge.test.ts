/** What a replica knows of its locks and of the others, as plain values: how long it acts as the owner, whom it takes for there. */
import { assert, describe, it } from "vitest"
import * as Membership from "../../src/gateway/cluster/Membership.ts"
import type { Listed } from "../kit/cluster/runners.ts"
import { expiration, nameOf, one, three, two } from "../kit/cluster/runners.ts"
import * as Random from "../kit/random.ts"

const self = nameOf(one)

const { answered, acquired, confirmed, failed, heldUntil, nothingKnown } = Membership
const listed = (known: Membership.Known, now: number, ...runners: ReadonlyArray<Listed>) =>
  Membership.listed(runners, now, expiration, self)(known)
const portsOf = (runners: Membership.Known["runners"]) => runners.map(([{ address }]) => address.port)

describe("what is known of the locks", () => {
  it("they are nobody's before they are confirmed, and then for nine tenths of their time", () => {
    assert.strictEqual(heldUntil(nothingKnown, expiration), -Infinity)
    assert.strictEqual(heldUntil(confirmed(1000)(nothingKnown), expiration), 1000 + 0.9 * expiration)
  })

  it("each confirmation counts from when it was asked for", () => {
    const known = confirmed(9000)(confirmed(1000)(nothingKnown))
    assert.strictEqual(known.confirmedAt, 9000)
  })

  it("further ones count for the first, and confirm none of those from before", () => {
    const known = acquired(1000)(nothingKnown)
    assert.strictEqual(known.confirmedAt, 1000)
    assert.strictEqual(acquired(30_000)(known), known)
    assert.strictEqual(confirmed(31_000)(acquired(30_000)(known)).confirmedAt, 31_000)
  })

  it("the database is away since the first failure, and back since the first answer after one", () => {
    assert.strictEqual(answered(1)(nothingKnown), nothingKnown)
    const lost = failed(3)(failed(2)(nothingKnown))
    assert.deepStrictEqual([lost.lostAt, lost.backAt], [2, undefined])
    const back = answered(5)(answered(4)(lost))
    assert.deepStrictEqual([back.lostAt, back.backAt], [undefined, 4])
    const again = answered(8)(failed(7)(back))
    assert.deepStrictEqual([again.lostAt, again.backAt], [undefined, 8])
  })

  it("they are nobody's any more when another replica has the address, whatever is confirmed", () => {
    const known = Membership.replaced(confirmed(1000)(nothingKnown))
    assert.strictEqual(heldUntil(confirmed(2000)(known), expiration), -Infinity)
  })

  it("neither failures nor answers change for how long they are held", () => {
    const known = confirmed(1000)(nothingKnown)
    assert.strictEqual(answered(3)(failed(2)(known)).confirmedAt, 1000)
    assert.strictEqual(listed(known, 5, one)[1].confirmedAt, 1000)
  })
})

describe("which replicas are known", () => {
  it("those of the newest list, and since when this one is among them", () => {
    const [first, known] = listed(nothingKnown, 1, two)
    assert.deepStrictEqual([first, known.joinedAt, known.listedAt], [[two], undefined, 1])
    const [second, joined] = listed(known, 2, two, one)
    assert.deepStrictEqual([second, joined.joinedAt], [[two, one], 2])
    const [third, later] = listed(joined, 3, one)
    assert.deepStrictEqual([third, later.runners, later.joinedAt, later.listedAt], [[one], [one], 2, 3])
  })

  const outage = (known: Membership.Known, from: number, to: number) => answered(to)(failed(from)(known))

  it("after an outage those of before too, until each can have said twice that it lives", () => {
    const known = outage(listed(nothingKnown, 0, one, two, three)[1], 1000, 60_000)
    const [first, afterFirst] = listed(known, 60_000, one)
    assert.deepStrictEqual(portsOf(first), [1, 2, 3])
    const [second, afterSecond] = listed(afterFirst, 60_000 + expiration * 0.66, one, two)
    assert.deepStrictEqual(portsOf(second), [1, 2, 3])
    const [third] = listed(afterSecond, 60_000 + expiration * 0.67, one, two)
    assert.deepStrictEqual(portsOf(third), [1, 2])
  })

  it("of two outages, those before the second are waited for anew", () => {
    const first = outage(listed(nothingKnown, 0, one, two, three)[1], 1000, 60_000)
    const between = listed(first, 61_000, one, two, three)[1]
    const second = outage(between, 62_000, 64_000)
    assert.deepStrictEqual(portsOf(listed(second, 65_000, one)[0]), [1, 2, 3])
  })
})

describe("whatever happens in whichever order", () => {
  const seeds = Array.from({ length: 200 }, (_, i) => i + 1)

  it("nothing is held for longer than nine tenths of its time after it was asked for", () => {
    for (const seed of seeds) {
      const random = Random.make(seed)
      let known = nothingKnown
      let now = 0
      let confirmedAt = -Infinity
      for (let step = 0; step < 100; step++) {
        now += random.below(5000)
        const askedAt = now - random.below(2000)
        switch (random.below(5)) {
          case 0:
            known = confirmed(askedAt)(known)
            confirmedAt = askedAt
            break
          case 1:
            if (confirmedAt === -Infinity) confirmedAt = askedAt
            known = acquired(askedAt)(known)
            break
          case 2:
            known = failed(now)(known)
            break
          case 3:
            known = answered(now)(known)
            break
          default:
            known = listed(known, now, one, two)[1]
        }
        assert.strictEqual(heldUntil(known, expiration), confirmedAt + expiration * 0.9, `seed ${seed}, step ${step}`)
      }
    }
  })

  it("a replica that says that it lives as often as it should is missing after no outage", () => {
    for (const seed of seeds) {
      const random = Random.make(seed)
      // As in PostgreSQL: there is who has said within a lock's time that he lives, and each says so 3.5 times in it.
      const interval = expiration / 3.5
      const others = [one, two, three].map((each) => ({
        each,
        said: 0,
        due: random.below(interval),
        isConnected: true
      }))
      let known = listed(nothingKnown, 0, one, two, three)[1]
      let isAway = false
      let since = 0
      for (let now = 0; now < 300_000; now += 500) {
        if (now - since > 3000 && random.chance(isAway ? 0.02 : 0.03)) {
          isAway = !isAway
          since = now
        }
        for (const other of others) {
          if (other.due > now) continue
          other.due += interval
          if (isAway) other.isConnected = false
          else if (other.isConnected || random.chance(0.5)) {
            other.isConnected = true
            other.said = now
          } else {
            // Its connection is made anew first: the next time it succeeds.
            other.isConnected = true
          }
        }
        if (now % 2000 !== 0) continue
        if (isAway) {
          known = failed(now)(known)
          continue
        }
        const there = others.filter(({ said }) => said > now - expiration).map(({ each }) => each)
        const [all, after] = listed(answered(now)(known), now, ...there)
        known = after
        assert.deepStrictEqual(portsOf(all).toSorted(), [1, 2, 3], `seed ${seed}, at ${now}`)
      }
    }
  })
})
