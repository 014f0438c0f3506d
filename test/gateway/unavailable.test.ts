/** Answers with 503: each says why, and when to come again. */
import type { Server } from "node:http"
import { createServer } from "node:http"
import { afterAll, assert, beforeAll, describe, it } from "vitest"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Clock from "../kit/gateway/stillClock.ts"

describe("503 has a body and Retry-After", () => {
  let gateway: Kit.Running
  let clock: Clock.StillClock
  let upstream: Server
  beforeAll(async () => {
    upstream = createServer((request, response) => {
      let body = ""
      request.on("data", (chunk) => {
        body += chunk
      }).on("end", () => {
        if (!body.includes("\"initialize\"")) return response.writeHead(503).end()
        response.writeHead(200, { "content-type": "application/json", "mcp-session-id": "a" })
        response.end(JSON.stringify({
          jsonrpc: "2.0",
          id: 0,
          result: { protocolVersion: "2025-06-18", capabilities: {}, serverInfo: { name: "a", version: "1" } }
        }))
      })
    }).listen(0, "127.0.0.1")
    await new Promise((resolve) => upstream.once("listening", resolve))
    clock = await Clock.make()
    gateway = await Kit.start({
      backends: {
        remote: { url: `http://127.0.0.1:${Kit.portOf(upstream)}`, era: "legacy" },
        stubborn: { ...Kit.counter("--stubborn"), closeGrace: "2 seconds" }
      }
    }, clock)
  })
  afterAll(() => upstream.close())

  it("when it is an HTTP back end's own, which has neither", async () => {
    const url = `${gateway.origin}/mcp/remote`
    const refused = await Kit.post(url, await Kit.open(url), Kit.toolCall(1, "count"))
    assert.deepStrictEqual([refused.status, refused.headers.get("retry-after")], [503, "10"])
    assert.include((await refused.json()).error.message, "try again later")
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
