/** Which lane a call of a modern client gets. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Exit, Fiber, Scope } from "effect"
import * as Modern from "../../src/gateway/protocol/Modern.ts"
import * as Callers from "../../src/gateway/sessions/Callers.ts"
import * as Random from "../kit/random.ts"

interface Held {
  readonly lane: number
  readonly exclusive: boolean
  readonly release: Effect.Effect<void>
}

/** A caller with at most `max` lanes. */
const make = Effect.fnUntraced(function*(max: number) {
  const callers = Callers.make()
  const client = { info: undefined, name: "test", capabilities: Modern.capabilitiesOf({}) }
  const profile = yield* callers.enter({ backend: "one", principal: "", known: true, client })
  /** Claims a lane in a fiber of its own. */
  const start = (exclusive: boolean) => {
    const scope = Scope.makeUnsafe()
    const claiming = Effect.map(
      Scope.provide(callers.claim(profile, exclusive, max), scope),
      (lane): Held => ({ lane, exclusive, release: Scope.close(scope, Exit.void) })
    )
    return Effect.forkChild(claiming, { startImmediately: true })
  }
  const claim = (exclusive: boolean) => Effect.flatMap(start(exclusive), Fiber.join)
  return { start, claim, waiting: callers.waiting }
})

describe("lanes", () => {
  it.effect("serves calls that follow one another with the same process", () =>
    Effect.gen(function*() {
      const { claim } = yield* make(3)
      for (const exclusive of [true, false, true]) {
        const { lane, release } = yield* claim(exclusive)
        assert.strictEqual(lane, 0)
        yield* release
      }
    }).pipe(Effect.scoped))

  it.effect("shares the lowest lane that no call holds exclusively", () =>
    Effect.gen(function*() {
      const { claim } = yield* make(3)
      const lanes = yield* Effect.forEach([true, false, false], claim)
      assert.deepStrictEqual(lanes.map(({ lane }) => lane), [0, 1, 1])
    }).pipe(Effect.scoped))

  it.effect("lets a call wait until a lane is given back", () =>
    Effect.gen(function*() {
      const { claim, start, waiting } = yield* make(1)
      const first = yield* claim(true)
      const second = yield* start(false)
      assert.strictEqual(yield* waiting, 1)
      yield* first.release
      assert.strictEqual((yield* Fiber.join(second)).lane, 0)
      assert.strictEqual(yield* waiting, 0)
    }).pipe(Effect.scoped))

  it.effect("gives no lane to a call that has stopped waiting", () =>
    Effect.gen(function*() {
      const { claim, start, waiting } = yield* make(1)
      const first = yield* claim(true)
      yield* Fiber.interrupt(yield* start(true))
      assert.strictEqual(yield* waiting, 0)
      yield* first.release
      assert.strictEqual((yield* claim(true)).lane, 0)
    }).pipe(Effect.scoped))

  it.effect("gives each call the lowest lane that suits it, in any sequence of claims and releases", () =>
    Effect.gen(function*() {
      for (let seed = 0; seed < 100; seed++) {
        const random = Random.make(seed)
        const max = 1 + random.below(4)
        const { claim, start, waiting } = yield* make(max)
        const held: Array<Held> = []
        for (let i = 0; i < 60; i++) {
          if (random.chance(0.6)) {
            const exclusive = random.chance(0.5)
            const suitable = [...Array(max).keys()].find((lane) => {
              const calls = held.filter((each) => each.lane === lane)
              return exclusive ? calls.length === 0 : !calls.some((call) => call.exclusive)
            })
            if (suitable === undefined) {
              const claiming = yield* start(exclusive)
              assert.strictEqual(yield* waiting, 1)
              yield* Fiber.interrupt(claiming)
            } else {
              const claimed = yield* claim(exclusive)
              assert.strictEqual(claimed.lane, suitable)
              held.push(claimed)
            }
          } else {
            for (const { release } of held.splice(random.below(held.length + 1), 1)) yield* release
          }
        }
      }
    }).pipe(Effect.scoped))
})
