/** The lanes of modern calls. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Scope } from "effect"
import * as Modern from "../../src/gateway/protocol/Modern.ts"
import * as Callers from "../../src/gateway/sessions/Callers.ts"
import * as Random from "../kit/random.ts"

describe("lanes", () => {
  const client = { info: undefined, name: "test", capabilities: Modern.capabilitiesOf({}) }

  it.effect("gives each call the lowest suitable lane, in any sequence of claims, releases and interrupted waits", () =>
    Effect.gen(function*() {
      for (let seed = 0; seed < 100; seed++) {
        const random = Random.make(seed)
        const max = 1 + random.below(4)
        const callers = Callers.make()
        const profile = yield* callers.enter({ backend: "one", principal: { id: "" }, known: true, client })
        const held: Array<{ readonly lane: number; readonly exclusive: boolean; readonly scope: Scope.Closeable }> = []
        for (let i = 0; i < 60; i++) {
          if (random.chance(0.6)) {
            const exclusive = random.chance(0.5)
            const suitable = [...Array(max).keys()].find((lane) => {
              const calls = held.filter((each) => each.lane === lane)
              return exclusive ? calls.length === 0 : !calls.some((call) => call.exclusive)
            })
            const scope = Scope.makeUnsafe()
            const claim = Scope.provide(callers.claim(profile, exclusive, max), scope)
            const claiming = yield* Effect.forkChild(claim, { startImmediately: true })
            if (suitable === undefined) {
              assert.strictEqual(yield* callers.waiting, 1)
              yield* Fiber.interrupt(claiming)
            } else {
              assert.strictEqual(yield* Fiber.join(claiming), suitable)
              held.push({ lane: suitable, exclusive, scope })
            }
          } else {
            for (const { scope } of held.splice(random.below(held.length + 1), 1)) yield* Scope.close(scope, Exit.void)
          }
        }
      }
    }).pipe(Effect.scoped))
})
