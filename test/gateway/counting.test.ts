/** The rule by which tests of replicas find faults in the answers of a counting session. */
import { assert, describe, it } from "vitest"
import * as Counting from "../kit/cluster/counting.ts"

describe("faults of a counting session", () => {
  const session = (...outcomes: ReadonlyArray<[pid: number, count: number] | "Gone" | "Failed">): Counting.Session => ({
    name: "s",
    id: "",
    path: "",
    outcomes: outcomes.map((outcome): Counting.Outcome => {
      const time = { at: 0, millis: 0 }
      if (outcome === "Gone") return { ...time, _tag: "Gone" }
      if (outcome === "Failed") return { ...time, _tag: "Failed", message: "" }
      return { ...time, _tag: "Counted", pid: outcome[0], count: outcome[1] }
    })
  })

  it("accepts a process that counts on, lost calls, and a successor of a process that may move", () => {
    assert.deepStrictEqual(Counting.faults(session([1, 1], [1, 2], "Failed", [1, 4], "Gone"), "pinned"), [])
    assert.deepStrictEqual(Counting.faults(session([1, 1], "Failed", [2, 1], [2, 2]), "stateless"), [])
  })

  it("reports a skipped or repeated count, a process that returns, and a successor of one that may not move", () => {
    const wrong = [
      session([1, 1], [1, 3]),
      session([1, 1], [1, 1]),
      session([1, 2]),
      session([1, 1], [2, 1], [1, 2]),
      session([1, 1], "Gone", [1, 2])
    ]
    for (const one of wrong) assert.isNotEmpty(Counting.faults(one, "stateless"))
    assert.isNotEmpty(Counting.faults(session([1, 1], [2, 1]), "pinned"))
  })
})
