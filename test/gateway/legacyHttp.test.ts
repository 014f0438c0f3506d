/** Modern clients in front of a legacy HTTP server, beside legacy ones. */
import { afterAll, assert, describe, it } from "@effect/vitest"
import * as Eras from "../kit/gateway/eras.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"

let upstream = await Eras.startHttp("conformance-server.ts", ["http"])
afterAll(() => void upstream.process.kill("SIGKILL"))
const { url } = await Serving.gateway({ backends: { remote: { url: upstream.url } } })
const modern = await Eras.modern(url)
afterAll(() => modern.client.close())

describe("a legacy HTTP server", () => {
  it("clients of both eras use a legacy HTTP server at the same time, each in its own upstream session", async () => {
    const legacy = await Eras.legacy(url)
    const names = ["test_simple_text", "test_tool_with_progress"]
    const [one, other] = await Promise.all(names.flatMap((name) => [modern.call(name), legacy.call(name)]))
    assert.strictEqual(one, other)
    assert.deepStrictEqual(modern.heard.progress, [0, 50, 100])
    assert.deepStrictEqual(legacy.heard.progress, [0, 50, 100])
    await legacy.client.close()
  })

  it("a legacy HTTP server asks a modern client for input during a call, and logs to it", async () => {
    assert.include(await modern.call("test_elicitation", { message: "who?" }), "accept")
    assert.deepStrictEqual(modern.heard.asked, ["who?"])
    assert.include(await modern.call("test_sampling", { prompt: "x" }), "sampled")
    await modern.call("test_tool_with_logging")
    assert.isAtLeast(modern.heard.logs.length, 3)
  })

  it("a legacy HTTP server's error reaches a modern client", async () => {
    const failure = await modern.call("no such tool").then(() => undefined, (error: unknown) => error)
    assert.include(String(failure), "no such tool")
  })

  it("a modern client gets the changes of a legacy HTTP server that it listens to", async () => {
    const subscription = await modern.client.listen({ toolsListChanged: true })
    await modern.call("test_trigger_tool_change")
    await Kit.eventually("the change is told", () => modern.heard.changes.includes("tools"))
    await subscription.close()
  })

  it("a modern client cancels a call on a legacy HTTP server, and the next call works", async () => {
    modern.heard.progress.length = 0
    const stop = new AbortController()
    const running = modern.call("test_tool_with_progress", {}, stop.signal).then(String, () => "stopped")
    await Kit.eventually("it runs", () => modern.heard.progress.length > 0)
    stop.abort()
    assert.strictEqual(await running, "stopped")
    assert.include(await modern.call("test_simple_text"), "simple text")
  })

  it("a modern client reaches a restarted legacy HTTP server at once", async () => {
    assert.include(await modern.call("test_simple_text"), "simple text")
    upstream.process.kill("SIGKILL")
    await Kit.eventually("the call fails", () => modern.call("test_simple_text").then(() => false, () => true))
    upstream = await Eras.startHttp("conformance-server.ts", ["http"], Number(new URL(upstream.url).port))
    await Kit.eventually("it works again", () => modern.call("test_simple_text").then(() => true, () => false))
  })
})
