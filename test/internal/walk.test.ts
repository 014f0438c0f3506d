/** Anything may happen to a pool in any order: its counts stay true, and everyone gets back what they hold. */
import { describe, it } from "@effect/vitest"
import type { Limits } from "../../src/internal/transitions.ts"
import { Walk } from "../kit/pool/walk.ts"

const limits: Record<string, Partial<Limits>> = {
  "without limits": {},
  "at capacity": { capacity: 2 },
  "at the capacity of the groups": { groupCapacity: 1 },
  "at both": { capacity: 3, groupCapacity: 2, maxWaiting: 4 },
  "with a queue that is full": { capacity: 2, maxWaiting: 1 },
  "with validation": { capacity: 4, validateAfter: 10 },
  "with a memory for failures": { capacity: 3, failureTimeToLive: 30 }
}

describe("whatever happens, the pool holds what it says, each caller what it asked for, and all is closed once", () => {
  for (const [name, some] of Object.entries(limits)) {
    it(name, () => {
      for (let seed = 1; seed <= 15; seed++) {
        const walk = new Walk(seed, some)
        for (let turn = 0; turn < 80; turn++) walk.turn()
        walk.shutdown()
      }
    })
  }
})
