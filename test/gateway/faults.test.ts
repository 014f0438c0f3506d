/** Each fault of `npm run faults` once. */
import { afterAll, assert, describe, it, vi } from "vitest"
import * as Faults from "../kit/faults/faults.ts"
import * as FaultKinds from "../kit/faults/kinds.ts"
import * as Random from "../kit/random.ts"

const random = Random.make(1)
const size = { sessions: 4, requests: 10 }

// These tests start whole gateways, which takes long on a busy machine.
vi.setConfig({ testTimeout: 90_000, hookTimeout: 90_000 })

describe("faults of back ends and clients", async () => {
  const attacked = await Faults.start()
  afterAll(async () => {
    await Faults.stop(attacked)
    assert.deepStrictEqual(attacked.failures, [])
  })
  const { badBackEnds, cutRequests, cutResponses, killedBackEnds, vanishingClients } = FaultKinds

  it.each<[string, FaultKinds.Kind]>([
    ["answers each request once or with an error when back ends are killed, and keeps other sessions", killedBackEnds],
    ["serves on when back ends write garbage, answer twice, or do not read, exit, start or exist", badBackEnds],
    ["ignores requests that are cut off after any byte", cutRequests],
    ["resumes a cut response with each message once and the answer last", cutResponses],
    ["leaves nothing running or open when clients vanish during requests and streams", vanishingClients]
  ])("%s", async (_, inflict) => {
    await inflict(attacked, random, size)
    assert.deepStrictEqual(attacked.failures, [])
    assert.isAtLeast(attacked.tally.answered, size.sessions * size.requests)
  })
})

describe("faults of the gateway", () => {
  it("a gateway without file descriptors says so, keeps its sessions, and serves again once it has some", async () => {
    const descriptors = 48
    const attacked = await Faults.start([], descriptors)
    await FaultKinds.noDescriptors(attacked, descriptors)
    await Faults.stop(attacked)
    assert.deepStrictEqual(attacked.failures, [])
  })

  it("a gateway drained under load answers every running request or says why not, and leaves no process", async () => {
    const attacked = await Faults.start(["--drain-timeout", "1 minute"])
    await FaultKinds.drained(attacked, random, size)
    assert.deepStrictEqual(attacked.failures, [])
    assert.isAbove(attacked.tally.answered, size.sessions)
  })

  it("a gateway killed under load leaves no process that obeys the end of its stdin", async () => {
    const attacked = await Faults.start(["--spares", "1"])
    await FaultKinds.killed(attacked, random, size)
    assert.deepStrictEqual(attacked.failures, [])
    assert.isAtLeast(attacked.seen.size, size.sessions)
  })
})
