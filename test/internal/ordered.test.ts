/** Compares the ordered set with a sorted list. */
import { assert, describe, it } from "@effect/vitest"
import * as Ordered from "../../src/internal/ordered.ts"
import * as Random from "../kit/random.ts"

/** Compares a set with the tickets that it should hold; each item is the text of its ticket. */
const assertHolds = (set: Ordered.Ordered<string>, tickets: ReadonlyArray<number>): void => {
  const items = tickets.map(String)
  assert.strictEqual(set.size, items.length)
  assert.strictEqual(Ordered.first(set), items[0])
  assert.deepStrictEqual(Array.from(Ordered.values(set)), items)
}

const of = (...tickets: ReadonlyArray<number>): Ordered.Ordered<string> =>
  tickets.reduce<Ordered.Ordered<string>>((set, ticket) => Ordered.insert(set, ticket, String(ticket)), Ordered.empty)

describe("ordered set", () => {
  for (const start of [0, 1000, 2 ** 31 - 40, 2 ** 40 - 40]) {
    it(`holds the same items as a sorted list, with tickets from ${start} on`, () => {
      const random = Random.make(start)
      let set: Ordered.Ordered<string> = Ordered.empty
      let tickets: ReadonlyArray<number> = []
      let last = start
      for (let turn = 0; turn < 250; turn++) {
        if (random.chance(turn < 150 ? 0.6 : 0.2)) {
          last += 1 + random.below(40)
          set = Ordered.insert(set, last, String(last))
          tickets = [...tickets, last]
        } else if (tickets.length > 0) {
          const gone = random.pick(tickets)
          set = Ordered.remove(set, gone)
          tickets = tickets.filter((ticket) => ticket !== gone)
          assert.strictEqual(Ordered.get(set, gone), undefined)
        }
        assertHolds(set, tickets)
        assert.isTrue(tickets.every((ticket) => Ordered.get(set, ticket) === String(ticket)))
      }
    })
  }

  it("keeps the order of tickets that are inserted out of order", () => {
    assertHolds(of(70, 3, 35, 2 ** 33, 4), [3, 4, 35, 70, 2 ** 33])
  })

  it("grows to the depth that its largest ticket needs", () => {
    assert.deepStrictEqual([of(31).depth, of(32).depth, of(1023).depth, of(1024).depth], [1, 2, 2, 3])
  })

  it("finds nothing under a ticket that it does not hold, at any depth", () => {
    const set = of(0, 5, 40)
    for (const ticket of [4, 6, 37, 41, 1024, 1029, 2 ** 40]) {
      assert.strictEqual(Ordered.get(set, ticket), undefined)
      assert.strictEqual(Ordered.remove(set, ticket), set)
    }
  })

  it("does not change earlier sets", () => {
    const before = of(1, 2, 33)
    const after = Ordered.insert(Ordered.remove(before, 2), 34, "34")
    assertHolds(before, [1, 2, 33])
    assertHolds(after, [1, 33, 34])
  })
})
