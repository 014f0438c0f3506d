/** What operators see of a back end that starts, fails, and starts again. */
import { writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "vitest"
import * as Clock from "../kit/gateway/aheadClock.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import { callTool } from "../kit/gateway/modern.ts"
import * as Serving from "../kit/gateway/serving.ts"

const mended = join(Serving.directory(), "mended")

/** It starts once it has been mended. */
const flaky = {
  command: "sh",
  args: ["-c", "test -e \"$1\" || exit 3; shift; exec \"$@\"", "flaky", mended, Kit.counter().command]
    .concat(Kit.counter().args)
}

const refusal = JSON.stringify({ jsonrpc: "2.0", id: 0, error: { code: -32000, message: "no licence" } })
const refusing = { command: "sh", args: ["-c", "read -r line; echo \"$0\"; exec cat", refusal], era: "legacy" as const }

/** It cools down when the gateway's own start has failed too. */
const cooled = ({ origin }: Kit.Running, name: string) =>
  Kit.eventually(
    "it cools down",
    async () => (await (await fetch(`${origin}/health`)).json()).backends[name] === "cooling down"
  )

describe("the state of a back end", async () => {
  const clock = Clock.make()
  const unreachable = { url: `http://127.0.0.1:${await Kit.freePort()}`, era: "modern" as const }
  const gateway = await Serving.gateway({ backends: { flaky, unreachable, refusing } }, clock)
  const initialize = async (name: string) => (await Kit.initialize(`${gateway.origin}/mcp/${name}`)).status
  /** The state, as each of those tells it who are asked; it must be one. */
  const stateOf = async (name: string): Promise<string> => {
    const health = await (await fetch(`${gateway.origin}/health`)).json()
    const ready = await (await fetch(`${gateway.origin}/ready`)).json()
    const { backends } = await Serving.overview(gateway.origin)
    const metrics = await (await fetch(`${gateway.origin}/metrics`)).text()
    const samples = [
      ...metrics.matchAll(new RegExp(`^mcp_gateway_backend_state\\{backend="${name}",state="([^"]+)"\\} 1$`, "gm"))
    ]
    const seen = backends.find((each: { readonly name: string }) => each.name === name)
    const told = [health.backends[name], ready.backends[name], seen.state, ...samples.map(([, state = ""]) => state)]
    assert.strictEqual(told.length, 4)
    assert.strictEqual(new Set(told).size, 1, told.join())
    return told[0]
  }

  it("is that it is not started, fails, cools down, fails again when that is over, and is ok once it has started", async () => {
    assert.strictEqual(await stateOf("flaky"), "not started")
    await initialize("flaky")
    assert.strictEqual(await stateOf("flaky"), "failing")
    await initialize("flaky")
    await initialize("flaky")
    await cooled(gateway, "flaky")
    assert.strictEqual(await stateOf("flaky"), "cooling down")
    clock.pass("10 seconds")
    assert.strictEqual(await stateOf("flaky"), "failing")
    writeFileSync(mended, "")
    assert.strictEqual(await initialize("flaky"), 200)
    assert.strictEqual(await stateOf("flaky"), "ok")
  })

  it("is failing after its server has refused to initialize", async () => {
    await initialize("refusing")
    assert.strictEqual(await stateOf("refusing"), "failing")
  })

  it("is failing when requests that pass to it cannot reach it", async () => {
    assert.strictEqual(await stateOf("unreachable"), "not started")
    assert.strictEqual((await callTool(`${gateway.origin}/mcp/unreachable`, "count")).status, 502)
    assert.strictEqual(await stateOf("unreachable"), "failing")
  })
})

describe("a gateway whose back end cools down", async () => {
  const clock = Clock.make()
  const broken = Kit.counter("--fail-start")
  const gateway = await Serving.gateway({ backends: { broken, counter: Kit.counter() }, maxSessions: 1 }, clock)

  const coolDown = async (at: Kit.Running) => {
    for (let i = 0; i < 3; i++) await Kit.initialize(`${at.origin}/mcp/broken`)
    await cooled(at, "broken")
  }

  /** Of all gateways in this process. */
  const launchesOfPool = async () => {
    const metrics = await (await fetch(`${gateway.origin}/metrics`)).text()
    return [...metrics.matchAll(/^session_pool_launches_total\{[^}]*\} (\d+)$/gm)]
      .reduce((sum, [, count]) => sum + Number(count), 0)
  }

  it("counts no refused client as a launch, and evicts no session for it", async () => {
    const url = `${gateway.origin}/mcp/counter`
    const before = await launchesOfPool()
    await coolDown(gateway)
    const session = await Kit.open(url)
    for (let i = 0; i < 5; i++) assert.strictEqual((await Kit.initialize(`${gateway.origin}/mcp/broken`)).status, 503)
    assert.strictEqual(await Kit.toolText(url, session, "count"), "1")
    const { backends, launchFailures, launches } = await (await fetch(`${gateway.origin}/sessions`)).json()
    const counts = backends.map((each: Record<string, unknown>) =>
      ["name", "launches", "launchFailures"].map((name) => each[name])
    )
    assert.deepStrictEqual(counts, [["broken", 3, 3], ["counter", 1, 0]])
    assert.deepStrictEqual([launches, launchFailures], [4, 3])
    assert.strictEqual(await launchesOfPool() - before, 4)
  })

  it("is ready as long as one back end does not", async () => {
    assert.strictEqual((await fetch(`${gateway.origin}/ready`)).status, 200)
  })

  it("is not ready when it has no other, until a start may be tried again", async () => {
    const alone = await Serving.gateway({ backends: { broken } }, clock)
    await coolDown(alone)
    const response = await fetch(`${alone.origin}/ready`)
    assert.deepStrictEqual([response.status, response.headers.get("retry-after")], [503, "10"])
    assert.strictEqual((await response.json()).status, "no back end starts")
    clock.pass("10 seconds")
    assert.strictEqual((await fetch(`${alone.origin}/ready`)).status, 200)
  })
})
