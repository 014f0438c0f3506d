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
  const { badBackEnds, cutRequests, cutResponses, killedBackEnds, vanishingClients } = FaultKinds

  it.each<[string, FaultKinds.Kind]>([
    [
      "answers each request once or says why not, and keeps the other sessions, when back ends are killed",
      killedBackEnds
    ],
    ["bears back ends that write garbage, answer twice, do not read, leave, start or exist", badBackEnds],
    ["hears only whole requests when they are cut after every byte", cutRequests],
    ["resumes a response that was cut, with each message once and the answer last", cutResponses],
    ["leaves nothing running or open when clients vanish in the middle of requests and streams", vanishingClients]
  ])("%s", async (_, inflict) => {
    await inflict(attacked, random, size)
    assert.deepStrictEqual(attacked.failures, [])
    assert.isAtLeast(attacked.tally.answered, size.sessions * size.requests)
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
    const attacked = await Faults.start(["--spares", "1"])
    await FaultKinds.killed(attacked, random, size)
    assert.deepStrictEqual(attacked.failures, [])
    assert.isAtLeast(attacked.seen.size, size.sessions)
  })
})
