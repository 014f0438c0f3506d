/** What operators follow live. */
import { assert, it } from "vitest"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serve from "../kit/gateway/serving.ts"
import * as StillClock from "../kit/gateway/stillClock.ts"

it("readers of /sessions/events share one snapshot each two seconds, and a reader after all have left gets a new one", async () => {
  const clock = await StillClock.make()
  const { origin, url } = await Serve.gateway({ backends: { counter: Kit.counter() } }, clock)
  /** Counts the sessions of each snapshot that has come. */
  const read = async () => {
    const aborter = new AbortController()
    const seen: Array<number> = []
    const response = await fetch(`${origin}/sessions/events`, { signal: aborter.signal })
    const count = ({ data }: Kit.Event) => seen.push(JSON.parse(data).sessions.length) < 0
    void Kit.readEvents(response, count).catch(() => undefined)
    await Kit.eventually("the first snapshot has come", () => seen.length > 0)
    return { seen, leave: () => aborter.abort() }
  }
  const first = await read()
  await Kit.open(url)
  const all = [first, ...await Promise.all(Array.from({ length: 5 }, read))]
  assert.deepStrictEqual(all.map(({ seen }) => seen), all.map(() => [0]))
  await clock.pass("2 seconds")
  await Kit.eventually("the next one has come", () => all.every(({ seen }) => seen.length === 2))
  assert.deepStrictEqual(all.map(({ seen }) => seen), all.map(() => [0, 1]))
  await Kit.open(url)
  for (const reader of all) reader.leave()
  await Kit.eventually("it is a new one", async () => {
    const again = await read()
    again.leave()
    return again.seen[0] === 2
  })
})
