/** Random sequences of commands, with time passing, on the pool and on a model of it. `npm run model` runs many more. */
import { describe, it } from "@effect/vitest"
import { compare, Sequence } from "./kit/model/comparison.ts"

/** A configuration to start from, for sequences that are seldom drawn. */
const plain = {
  capacity: "off",
  groupCapacity: "off",
  maxWaiting: "off",
  maxErrorCount: "off",
  acquireTimeout: "off",
  lookupTimeout: "off",
  closeTimeout: "off",
  drainTimeout: 0,
  failureTimeToLive: 0,
  validateAfter: "off",
  maxLifetime: "off",
  cleanupInterval: "off",
  idleTimeToLive: { a1: "off", a2: 5, b1: 5, b2: "off" },
  lookups: ["opens"],
  closes: ["ends"],
  validations: ["hangs"]
} as const

describe("pool and model", () => {
  it.effect.prop(
    "agree after every command of any sequence, for any options",
    [Sequence],
    ([sequence]) => compare(sequence),
    { arbitrary: { runs: 500, size: 200, seed: 1, maxShrinks: 500 }, timeout: 120_000 }
  )

  it.effect("agree that a validation counts though its caller has gone before the answer", () =>
    compare({
      configuration: { ...plain, validateAfter: 3 },
      commands: [
        { set: "a1" },
        { seconds: 4 },
        { use: "a1" },
        { interrupt: 0 },
        { seconds: 4 },
        { validation: 0, says: true },
        { seconds: 1 },
        { use: "a1" }
      ],
      afterTheEnd: []
    }))

  it.effect("agree on the moment in which a remembered failure is over", () =>
    compare({
      configuration: { ...plain, failureTimeToLive: 3, lookups: ["fails", "opens"] },
      commands: [{ get: "a1" }, { get: "a1" }, { until: 0, past: 0 }, { get: "a1" }],
      afterTheEnd: []
    }))
})
