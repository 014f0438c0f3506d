/** The queue and the candidates against what they stand for: an array and a set. */
import { assert, describe, it } from "@effect/vitest"
import { HashMap, Schema } from "effect"
import * as Candidates from "../../src/internal/candidates.ts"
import * as Queue from "../../src/internal/queue.ts"

const Steps = Schema.Array(
  Schema.Struct({ add: Schema.Boolean, value: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 15 })) })
)

describe("the queue", () => {
  it.prop("keeps the order of arrival, whoever leaves from the middle", [Steps], ([steps]) => {
    let queue: Queue.Queue<number> = Queue.empty
    let expected: Array<readonly [number, number]> = []
    for (const { add, value } of steps) {
      if (add) {
        expected = [...expected, [queue.next, value]]
        queue = Queue.push(queue, value)
      } else {
        const ticket = queue.head + value
        expected = expected.filter(([other]) => other !== ticket)
        queue = Queue.remove(queue, ticket)
      }
      assert.deepStrictEqual([...Queue.entries(queue)], expected)
      assert.strictEqual(Queue.size(queue), expected.length)
      assert.strictEqual(queue.head, expected[0]?.[0] ?? queue.next)
    }
  }, { arbitrary: { runs: 200, size: 40 } })
})

describe("the candidates", () => {
  it.prop("hold each key once, at positions without gaps", [Steps], ([steps]) => {
    let candidates: Candidates.Candidates<number> = Candidates.empty
    const expected = new Set<number>()
    for (const { add, value } of steps) {
      if (add) expected.add(value)
      else expected.delete(value)
      candidates = add ? Candidates.add(candidates, value) : Candidates.remove(candidates, value)
      const keys = Array.from({ length: Candidates.size(candidates) }, (_, i) => Candidates.at(candidates, i))
      assert.deepStrictEqual(new Set(keys), expected)
      assert.strictEqual(keys.length, expected.size)
      assert.strictEqual(HashMap.size(candidates.positions), expected.size)
    }
  }, { arbitrary: { runs: 200, size: 40 } })
})
