/** Modern clients in front of a legacy HTTP server, beside legacy ones. */
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import * as Eras from "../kit/eras.ts"
import * as Kit from "../kit/gateway.ts"

let upstream: Eras.HttpServer
let gateway: Kit.Running
let url = ""
beforeAll(async () => {
  upstream = await Eras.startHttp("conformance-server.ts", ["http"])
  gateway = await Kit.start({ backends: { remote: { url: upstream.url } } })
  url = `${gateway.origin}/mcp/remote`
})
afterAll(async () => {
  await gateway.stop()
  upstream.process.kill("SIGKILL")
})

describe("a legacy server on Streamable HTTP", () => {
  it("serves clients of both eras at the same time, each in an upstream session of its own", async () => {
    const [modern, legacy] = await Promise.all([Eras.modern(url), Eras.legacy(url)])
    const results = await Promise.all([
      modern.call("test_simple_text"),
      legacy.call("test_simple_text"),
      modern.call("test_tool_with_progress"),
      legacy.call("test_tool_with_progress")
    ])
    assert.strictEqual(results[0], results[1])
    assert.deepStrictEqual(modern.heard.progress, [0, 50, 100])
    assert.deepStrictEqual(legacy.heard.progress, [0, 50, 100])
    await Promise.all([modern.client.close(), legacy.client.close()])
  })

  it("asks a modern client for input in the middle of a call, and logs to it", async () => {
    const modern = await Eras.modern(url)
    assert.include(await modern.call("test_elicitation", { message: "who?" }), "accept")
    assert.deepStrictEqual(modern.heard.asked, ["who?"])
    assert.include(await modern.call("test_sampling", { prompt: "x" }), "sampled")
    await modern.call("test_tool_with_logging")
    assert.isAtLeast(modern.heard.logs.length, 3)
    await modern.client.close()
  })

  it("says its errors to a modern client", async () => {
    const modern = await Eras.modern(url)
    const failure = await modern.call("no such tool").then(() => undefined, (error: unknown) => error)
    assert.include(String(failure), "no such tool")
    await modern.client.close()
  })
})
