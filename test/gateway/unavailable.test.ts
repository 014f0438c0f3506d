/** Answers with 503: each says why, and when to come again. */
import { assert, it } from "vitest"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serve from "../kit/gateway/serving.ts"
import * as StillClock from "../kit/gateway/stillClock.ts"

it("a gateway that stops before a request is carried out answers 503 with a body, Retry-After and close", async () => {
  const backends = { stubborn: Kit.counter("--stubborn") }
  const { origin, stop, url } = await Serve.gateway({ backends, closeGrace: "2 seconds" }, await StillClock.make())
  // It waits for the end of the process.
  const deleting = Serve.remove(url, await Kit.open(url))
  await Kit.eventually("the session ends", async () => (await Serve.overview(origin)).sessions.length === 0)
  const stopped = stop()
  const refused = await deleting
  const { error } = await refused.json()
  assert.deepStrictEqual([refused.status, error.message], [503, "The gateway is shutting down"])
  assert.deepInclude(Object.fromEntries(refused.headers), { "retry-after": "10", connection: "close" })
  await stopped
})
