/** Modern clients in front of a legacy HTTP server, beside legacy ones. */
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import * as Eras from "../kit/gateway/eras.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"

let upstream: Eras.HttpServer
let url = ""
beforeAll(async () => {
  upstream = await Eras.startHttp("conformance-server.ts", ["http"])
  url = (await Serving.gateway({ backends: { remote: { url: upstream.url } } })).url
})
afterAll(() => void upstream.process.kill("SIGKILL"))

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

  it("tells a modern client of changes that it wants to hear of", async () => {
    const modern = await Eras.modern(url)
    const subscription = await modern.client.listen({ toolsListChanged: true })
    await modern.call("test_trigger_tool_change")
    await Kit.eventually("the change is told", () => modern.heard.changes.includes("tools"))
    await subscription.close()
    await modern.client.close()
  })

  it("is told of a cancellation, and the next call works", async () => {
    const modern = await Eras.modern(url)
    const stop = new AbortController()
    const running = modern.call("test_tool_with_progress", {}, stop.signal).then(String, () => "stopped")
    await Kit.eventually("it runs", () => modern.heard.progress.length > 0)
    stop.abort()
    assert.strictEqual(await running, "stopped")
    assert.include(await modern.call("test_simple_text"), "simple text")
    await modern.client.close()
  })
})

describe("a legacy server on Streamable HTTP that is started anew", () => {
  it("is served again, to modern clients at once", async () => {
    const modern = await Eras.modern(url)
    assert.include(await modern.call("test_simple_text"), "simple text")
    upstream.process.kill("SIGKILL")
    await Kit.eventually("the call fails", () => modern.call("test_simple_text").then(() => false, () => true))
    upstream = await Eras.startHttp("conformance-server.ts", ["http"], Number(new URL(upstream.url).port))
    await Kit.eventually("it works again", () => modern.call("test_simple_text").then(() => true, () => false))
    await modern.client.close()
  })
})
