/** The gateway under fault injection, each fault once: `npm run faults` does them again and again, by a seed. */
import { afterAll, assert, beforeAll, describe, it, vi } from "vitest"
import type { Attacked } from "../kit/faults/faults.ts"
import * as Faults from "../kit/faults/faults.ts"
import * as FaultKinds from "../kit/faults/kinds.ts"
import { shortOrLong } from "../kit/long.ts"
import * as Random from "../kit/random.ts"

const random = Random.make(1)
const size = { sessions: shortOrLong(4, 6), requests: 10 }

// Each starts whole gateways; on a busy machine that takes its time.
vi.setConfig({ testTimeout: 90_000, hookTimeout: 90_000 })

describe("a gateway with real processes", () => {
  let attacked: Attacked
  beforeAll(async () => {
    attacked = await Faults.start()
  })
  afterAll(async () => {
    await Faults.stop(attacked)
    assert.deepStrictEqual(attacked.failures, [])
  })

  it("back ends killed under load: each request has one answer or the reason, the other sessions count on", async () => {
    await FaultKinds.killedBackEnds(attacked, random, size)
    assert.deepStrictEqual(attacked.failures, [])
    assert.isAbove(attacked.tally.failed + attacked.tally.refused, 0)
    assert.isAtLeast(attacked.tally.answered, size.sessions * size.requests)
  })

  it("back ends that write garbage, answer twice, do not read, leave, start or exist: each is told, and no other suffers", async () => {
    await FaultKinds.badBackEnds(attacked, random, size)
    assert.deepStrictEqual(attacked.failures, [])
  })

  it("requests cut after every byte: only whole ones are heard, and nothing is left open", async () => {
    await FaultKinds.cutRequests(attacked, random)
    assert.deepStrictEqual(attacked.failures, [])
  })

  it("resumes a response that was cut, with each message once and the answer last", async () => {
    await FaultKinds.cutResponses(attacked, random, shortOrLong(5, 1))
    assert.deepStrictEqual(attacked.failures, [])
  })

  it("clients that vanish in the middle of requests and streams leave nothing running or open", async () => {
    await FaultKinds.vanishingClients(attacked, random, size)
    assert.deepStrictEqual(attacked.failures, [])
  })
})

describe("a gateway that", () => {
  it("has no file descriptors left says so, keeps its sessions, and serves again when there are some", async () => {
    const descriptors = 48
    const attacked = await Faults.start([], descriptors)
    await FaultKinds.noDescriptors(attacked, descriptors)
    await Faults.stop(attacked)
    assert.deepStrictEqual(attacked.failures, [])
  })

  it("is drained under load answers every running request or says why not, and leaves no process", async () => {
    const attacked = await Faults.start(["--drain-timeout", "1 minute"])
    await FaultKinds.drained(attacked, random, size)
    assert.deepStrictEqual(attacked.failures, [])
    assert.isAbove(attacked.tally.answered, size.sessions)
  })

  it("is killed under load leaves no process that obeys the end of its stdin", async () => {
    const attacked = await Faults.start()
    await FaultKinds.killed(attacked, random, size)
    assert.deepStrictEqual(attacked.failures, [])
    assert.isAtLeast(attacked.seen.size, size.sessions)
  })
})
