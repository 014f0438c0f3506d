/** Many parked calls at once. */
import { assert, describe, it } from "@effect/vitest"
import * as Kit from "../kit/gateway/gateway.ts"
import type { Said } from "../kit/gateway/modern.ts"
import { answers, callTool, everything as capabilities, light, textOf } from "../kit/gateway/modern.ts"
import * as Serving from "../kit/gateway/serving.ts"
import { shortOrLong } from "../kit/long.ts"

describe("a gateway with many parked calls", () => {
  it("resumes each parked call in its own process, and leaves no process after its stop", async () => {
    const count = shortOrLong(50, 400)
    const { stop, url } = await Serving.gateway({
      backends: { light: { ...light, maxLanes: 400, maxInFlight: 400, era: "legacy" } },
      maxSessions: 500,
      maxSessionsPerBackend: 500,
      maxParkedPerKey: 400,
      acquireTimeout: "2 minutes",
      startTimeout: "2 minutes"
    })
    const ask = (i: number, again: object = {}) => callTool(url, "ask", { i }, { capabilities, again })
    const parked: Array<Said> = []
    const next = [...Array(count).keys()]
    const work = async () => {
      for (let i = next.shift(); i !== undefined; i = next.shift()) parked[i] = await ask(i)
    }
    await Promise.all([...Array(20)].map(work))
    for (const { last } of parked) assert.strictEqual(last.result.resultType, "input_required")
    const pids = new Set<string>()
    for (const [i, asked] of parked.entries()) pids.add(textOf(await ask(i, answers(asked))))
    assert.strictEqual(pids.size, count)
    await stop()
    assert.deepStrictEqual([...pids].filter((pid) => Kit.alive(Number(pid))), [])
  }, 180_000)
})
