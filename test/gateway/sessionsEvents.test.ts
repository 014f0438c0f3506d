/** What operators follow live. */
import { afterAll, assert, beforeAll, describe, it } from "vitest"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Clock from "../kit/gateway/stillClock.ts"

interface Reader {
  /** How many sessions each snapshot had that has come. */
  readonly seen: ReadonlyArray<number>
  readonly leave: () => void
}

describe("the readers of /sessions/events", () => {
  let gateway: Kit.Running
  let clock: Clock.StillClock
  beforeAll(async () => {
    clock = await Clock.make()
    gateway = await Kit.start({ backends: { counter: Kit.counter() } }, clock)
  })
  afterAll(() => clock.passUntilSettled("the gateway has stopped", gateway.stop()))

  const read = async (): Promise<Reader> => {
    const aborter = new AbortController()
    const response = await fetch(`${gateway.origin}/sessions/events`, { signal: aborter.signal })
    const seen: Array<number> = []
    const reading = Kit.readEvents(response, ({ data }) => {
      seen.push(JSON.parse(data).sessions.length)
      return false
    })
    reading.catch(() => undefined)
    await Kit.eventually("the first snapshot has come", () => seen.length > 0)
    return { seen, leave: () => aborter.abort() }
  }

  it("share one snapshot each two seconds, and the first after all have left gets a new one", async () => {
    const first = await read()
    await Kit.open(`${gateway.origin}/mcp`)
    const others = await Promise.all(Array.from({ length: 5 }, read))
    const all = [first, ...others]
    assert.deepStrictEqual(all.map(({ seen }) => seen), all.map(() => [0]))
    await clock.pass("2 seconds")
    await Kit.eventually("the next one has come", () => all.every(({ seen }) => seen.length === 2))
    assert.deepStrictEqual(all.map(({ seen }) => seen), all.map(() => [0, 1]))
    await Kit.open(`${gateway.origin}/mcp`)
    for (const reader of all) reader.leave()
    await Kit.eventually("it is a new one", async () => {
      const again = await read()
      again.leave()
      return again.seen[0] === 2
    })
  })
})
