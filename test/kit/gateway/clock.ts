/** A gateway in the test's own time: its waits, time-outs and intervals are over when the test lets time pass, and its processes are real. */
import type { Duration } from "effect"
import { Effect, Scope } from "effect"
import { TestClock } from "effect/testing"
import type * as Gateway from "../../../src/gateway/Gateway.ts"
import * as Kit from "./gateway.ts"

export interface Clock {
  readonly clock: TestClock.TestClock
  readonly pass: (time: Duration.Input) => Promise<void>
  /** Lets time pass, a tenth of a second at a time, until a condition holds. */
  readonly passUntil: (what: string, condition: () => boolean | Promise<boolean>) => Promise<void>
  /** Lets time pass until a promise is settled. */
  readonly passFor: <A>(what: string, promise: Promise<A>) => Promise<A>
}

/** A clock that stands still but for what the test lets pass. */
export const make = async (): Promise<Clock> => {
  const clock = await Effect.runPromise(Scope.provide(TestClock.make({ warningDelay: "1 hour" }), Scope.makeUnsafe()))
  const pass = (time: Duration.Input) => Effect.runPromise(clock.adjust(time))
  const passUntil: Clock["passUntil"] = (what, condition) =>
    Kit.eventually(what, async () => {
      if (await condition()) return true
      await pass("100 millis")
      return condition()
    })
  const passFor: Clock["passFor"] = async (what, promise) => {
    let settled = false
    const done = () => {
      settled = true
    }
    promise.then(done, done)
    await passUntil(what, () => settled)
    return promise
  }
  return { clock, pass, passUntil, passFor }
}

export interface Running extends Kit.Running, Clock {}

/** Starts a gateway in this process, on a clock of its own. */
export const start = async (options: Gateway.GatewayOptions): Promise<Running> => {
  const clock = await make()
  const gateway = await Kit.start(options, clock.clock)
  return { ...gateway, ...clock, stop: () => clock.passFor("the gateway has stopped", gateway.stop()) }
}
