/** The state of a back end as operators see it. */
import { writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "vitest"
import * as Clock from "../kit/gateway/aheadClock.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import { callTool } from "../kit/gateway/modern.ts"
import * as Serving from "../kit/gateway/serving.ts"

const repaired = join(Serving.directory(), "mended")

/** Starts once the file `repaired` exists. */
const flaky = {
  command: "sh",
  args: ["-c", "test -e \"$1\" || exit 3; shift; exec \"$@\"", "flaky", repaired, Kit.counter().command]
    .concat(Kit.counter().args)
}

const refusal = JSON.stringify({ jsonrpc: "2.0", id: 0, error: { code: -32000, message: "no licence" } })
const refusing = { command: "sh", args: ["-c", "read -r line; echo \"$0\"; exec cat", refusal], era: "legacy" as const }

const json = async (url: string) => (await fetch(url)).json()

/** Waits for the cool-down, which begins once the gateway's own start has failed too. */
const cooled = ({ origin }: Kit.Running, name: string) =>
  Kit.eventually("it cools down", async () => (await json(`${origin}/health`)).backends[name] === "cooling down")

describe("the state of a back end", async () => {
  const clock = Clock.make()
  const unreachable = { url: `http://127.0.0.1:${await Kit.freePort()}`, era: "modern" as const }
  const gateway = await Serving.gateway({ backends: { flaky, unreachable, refusing } }, clock)
  const initialize = async (name: string) => (await Kit.initialize(`${gateway.origin}/mcp/${name}`)).status
  /** The state, on which `/health`, `/ready`, `/sessions` and `/metrics` must agree. */
  const stateOf = async (name: string): Promise<string> => {
    const [health, ready] = [await json(`${gateway.origin}/health`), await json(`${gateway.origin}/ready`)]
    const shown = (await Serving.overview(gateway.origin)).backends.find((each) => each.name === name)
    const metrics = await (await fetch(`${gateway.origin}/metrics`)).text()
    const sample = new RegExp(`^mcp_gateway_backend_state\\{backend="${name}",state="([^"]+)"\\} 1$`, "gm")
    const measured = [...metrics.matchAll(sample)].map(([, state = ""]) => state)
    const [state, ...others] = [health.backends[name], ready.backends[name], shown.state, ...measured]
    assert.deepStrictEqual(others, [state, state, state])
    return state
  }

  it("a back end is not started, failing, cooling down, failing after the pause, and ok once it starts", async () => {
    assert.strictEqual(await stateOf("flaky"), "not started")
    await initialize("flaky")
    assert.strictEqual(await stateOf("flaky"), "failing")
    await initialize("flaky")
    await initialize("flaky")
    await cooled(gateway, "flaky")
    assert.strictEqual(await stateOf("flaky"), "cooling down")
    clock.pass("10 seconds")
    assert.strictEqual(await stateOf("flaky"), "failing")
    writeFileSync(repaired, "")
    assert.strictEqual(await initialize("flaky"), 200)
    assert.strictEqual(await stateOf("flaky"), "ok")
  })

  it("a back end is failing after its server refuses initialize", async () => {
    await initialize("refusing")
    assert.strictEqual(await stateOf("refusing"), "failing")
  })

  it("a back end is failing when requests that pass through cannot reach it", async () => {
    assert.strictEqual(await stateOf("unreachable"), "not started")
    assert.strictEqual((await callTool(`${gateway.origin}/mcp/unreachable`, "count")).status, 502)
    assert.strictEqual(await stateOf("unreachable"), "failing")
  })
})

describe("the cool-down of a back end", async () => {
  const clock = Clock.make()
  const broken = Kit.counter("--fail-start")
  // These limits must not keep the gateway from its own start.
  const limits = { maxSessions: 1, maxSessionsPerBackend: 1 }
  const gateway = await Serving.gateway({ backends: { broken, counter: Kit.counter() }, ...limits }, clock)

  const coolDown = async (at: Kit.Running) => {
    for (let i = 0; i < 3; i++) assert.strictEqual((await Kit.initialize(`${at.origin}/mcp/broken`)).status, 502)
    await cooled(at, "broken")
  }

  /** The launches of all gateways in this process. */
  const launchesOfPool = async () => {
    const metrics = await (await fetch(`${gateway.origin}/metrics`)).text()
    return [...metrics.matchAll(/^session_pool_launches_total\{[^}]*\} (\d+)$/gm)]
      .reduce((sum, [, count]) => sum + Number(count), 0)
  }

  it("a back end cools down even with one session at most, and a refused client is no launch and evicts no session", async () => {
    const url = `${gateway.origin}/mcp/counter`
    const before = await launchesOfPool()
    await coolDown(gateway)
    const session = await Kit.open(url)
    for (let i = 0; i < 5; i++) assert.strictEqual((await Kit.initialize(`${gateway.origin}/mcp/broken`)).status, 503)
    assert.strictEqual(await Kit.toolText(url, session, "count"), "1")
    const overview = await json(`${gateway.origin}/sessions`)
    const countsOf = (each: typeof overview) => [each.name, each.launches, each.launchFailures]
    const counts = [...overview.backends, overview].map(countsOf)
    assert.deepStrictEqual(counts, [["broken", 3, 3], ["counter", 1, 0], [undefined, 4, 3]])
    assert.strictEqual(await launchesOfPool() - before, 4)
  })

  it("the gateway is not ready while its only back end cools down, but ready while another one does not", async () => {
    assert.strictEqual((await fetch(`${gateway.origin}/ready`)).status, 200)
    const alone = await Serving.gateway({ backends: { broken } }, clock)
    await coolDown(alone)
    const response = await fetch(`${alone.origin}/ready`)
    assert.deepStrictEqual([response.status, response.headers.get("retry-after")], [503, "10"])
    assert.strictEqual((await response.json()).status, "no back end starts")
    clock.pass("10 seconds")
    assert.strictEqual((await fetch(`${alone.origin}/ready`)).status, 200)
  })
})
