/** Answers with 503: each says why, and when to come again. */
import { assert, beforeAll, describe, it } from "vitest"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Clock from "../kit/gateway/stillClock.ts"

describe("503 has a body and Retry-After", () => {
  let gateway: Kit.Running
  let clock: Clock.StillClock
  beforeAll(async () => {
    clock = await Clock.make()
    gateway = await Kit.start({
      backends: {
        stubborn: { ...Kit.counter("--stubborn"), closeGrace: "2 seconds" }
      }
    }, clock)
  })

  it("when the gateway stops before a request is carried out", async () => {
    const url = `${gateway.origin}/mcp/stubborn`
    const session = await Kit.open(url)
    // It waits for the end of the process.
    const deleting = fetch(url, { method: "DELETE", headers: { "mcp-session-id": session } })
    await Kit.eventually("the session ends", async () => {
      const { sessions } = await (await fetch(`${gateway.origin}/sessions`)).json()
      return !sessions.some(({ backend }: { readonly backend: string }) => backend === "stubborn")
    })
    const stopped = clock.passUntilSettled("the gateway has stopped", gateway.stop())
    const refused = await deleting
    assert.deepStrictEqual(
      ["retry-after", "connection"].map((name) => refused.headers.get(name)),
      ["10", "close"]
    )
    assert.strictEqual(refused.status, 503)
    assert.strictEqual((await refused.json()).error.message, "The gateway is shutting down")
    await stopped
  })
})
