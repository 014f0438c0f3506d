/** The queue of starts: few processes start at once, and the keys of clients take turns. */
import { assert, describe, it } from "@effect/vitest"
import { Duration, Effect, Exit, Fiber, Scope } from "effect"
import { existsSync, readFileSync } from "node:fs"
import { join } from "node:path"
import * as StartQueue from "../../src/gateway/sessions/StartQueue.ts"
import * as ProcessGroup from "../../src/gateway/transports/ProcessGroup.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"
import * as StillClock from "../kit/gateway/stillClock.ts"

const max = StartQueue.maxAtOnce

describe("queue of starts", () => {
  /** A full queue, and the principals that had a turn since. */
  const make = Effect.gen(function*() {
    const queue = yield* StartQueue.make
    const begun: Array<string> = []
    const begin = Effect.fnUntraced(function*(principal: string) {
      const scope = yield* Scope.make()
      const fiber = yield* Effect.forkChild(
        Effect.andThen(Scope.provide(queue.turn(principal), scope), Effect.sync(() => begun.push(principal))),
        { startImmediately: true }
      )
      return { fiber, end: Scope.close(scope, Exit.void) }
    })
    const busy = yield* Effect.forEach(Array.from({ length: max }), () => begin("busy"))
    begun.length = 0
    return { begun, begin, busy }
  })

  it.effect("starts the next process when one before it has started, and loses no turn with an interrupted one", () =>
    Effect.gen(function*() {
      const { begin, begun, busy } = yield* make
      const impatient = yield* begin("impatient")
      yield* Fiber.interrupt(impatient.fiber)
      yield* impatient.end
      yield* begin("next")
      assert.deepStrictEqual(begun, [])
      yield* busy[0]?.end ?? Effect.void
      yield* Effect.yieldNow
      assert.deepStrictEqual(begun, ["next"])
    }))
})

describe("processes that start together", () => {
  it.live("are spawned in different turns of the event loop, so that other work runs in between", () =>
    Effect.gen(function*() {
      let turns = 0
      const count = () => {
        turns++
        counting = setImmediate(count)
      }
      let counting = setImmediate(count)
      yield* Effect.addFinalizer(() => Effect.sync(() => clearImmediate(counting)))
      const start = ProcessGroup.start({ command: "cat", args: [], env: {}, cwd: undefined }, Duration.zero)
      const at = yield* Effect.all(Array.from({ length: 3 }, () => Effect.map(start, () => turns)), {
        concurrency: "unbounded"
      })
      const [first = 0, second = 0, third = 0] = at.toSorted((a, b) => a - b)
      assert.isAtLeast(second - first, 10)
      assert.isAtLeast(third - second, 10)
    }))
})

describe("sessions that start together", () => {
  const directory = Serving.directory()
  const started = (file: string) =>
    existsSync(join(directory, file)) ? readFileSync(join(directory, file), "utf8").trim().split("\n") : []
  /** A server that writes its name to a file when it starts, and answers nothing. */
  const hung = (file: string, name: string) => ({
    command: "sh",
    args: ["-c", `echo ${name} >> ${join(directory, file)}; exec cat >/dev/null`]
  })
  const initialize = (gateway: Kit.Running, backend: string, key: string, count = 1) =>
    Array.from({ length: count }, () => Kit.initialize(`${gateway.origin}/mcp/${backend}`, Kit.bearer(key)))
  const launches = async ({ origin }: Kit.Running): Promise<number> =>
    (await Serving.overview(origin, Kit.bearer("operators"))).backends.reduce((sum, each) => sum + each.launches, 0)

  it("start a few at once, and a session of another key does not wait for all of them", async () => {
    const clock = await StillClock.make()
    const gateway = await Serving.gateway({
      backends: { many: hung("fair", "many"), one: hung("fair", "one") },
      keys: ["many", "one"],
      adminKeys: ["operators"],
      startTimeout: "1 hour"
    }, clock)
    const answers = initialize(gateway, "many", "many", 3 * max)
    await Kit.eventually("all have come", async () => (await launches(gateway)) === 3 * max)
    answers.push(...initialize(gateway, "one", "one"))
    await Kit.eventually("the other one has come", async () => (await launches(gateway)) === 3 * max + 1)
    await Kit.eventually("the first are started", () => started("fair").length === max)
    await clock.pass("250 millis")
    await Kit.eventually("the next are started", () => started("fair").length === 2 * max)
    assert.include(started("fair"), "one")
    await gateway.stop()
    await Promise.all(answers)
  })

  it("have startTimeout from their turn on, and wait for it for at most the same time", async () => {
    const clock = await StillClock.make()
    const gateway = await Serving.gateway({
      backends: { hung: hung("late", "x") },
      startTimeout: "400 millis",
      closeGrace: "1 hour"
    }, clock)
    const statuses: Array<number> = []
    const answers = initialize(gateway, "hung", "", 3 * max).map(async (answer) => {
      const response = await answer
      statuses.push(response.status)
      if (response.status === 503) assert.isAbove(Number(response.headers.get("retry-after")), 0)
    })
    await Kit.eventually("all have come", async () => (await launches(gateway)) === 3 * max)
    await Kit.eventually("the first are started", () => started("late").length === max)
    await clock.pass("250 millis")
    await Kit.eventually("the second are started", () => started("late").length === 2 * max)
    await clock.pass("150 millis")
    await Kit.eventually("the first are too late, the last have waited for too long", () => statuses.length === 2 * max)
    assert.deepStrictEqual(statuses.toSorted(), [...Array(max).fill(502), ...Array(max).fill(503)])
    await clock.pass("250 millis")
    await Promise.all(answers)
    assert.lengthOf(statuses.filter((status) => status === 502), 2 * max)
    assert.lengthOf(started("late"), 2 * max)
  })
})
