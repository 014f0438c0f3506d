/**
 * A virtual clock for a gateway with real processes. Time advances only when the test says so. Use it when nothing may time out by
 * itself.
 */
import type { Clock, Duration } from "effect"
import { Effect, Scope } from "effect"
import { TestClock } from "effect/testing"
import * as Kit from "./gateway.ts"

export interface StillClock extends Clock.Clock {
  /** Ends only sleeps that have begun: wait for an event that shows it first. */
  readonly pass: (time: Duration.Input) => Promise<void>
  /** Lets time pass, `step` (a tenth of a second) at a time, until a condition holds. */
  readonly passUntil: (
    what: string,
    condition: () => boolean | Promise<boolean>,
    step?: Duration.Input
  ) => Promise<void>
  /** Lets time pass until a promise is settled. */
  readonly passUntilSettled: <A>(what: string, promise: Promise<A>, step?: Duration.Input) => Promise<A>
}

/** A clock that advances only by `pass`, `passUntil` and `passUntilSettled`. */
export const make = async (): Promise<StillClock> => {
  const clock = await Effect.runPromise(Scope.provide(TestClock.make({ warningDelay: "1 hour" }), Scope.makeUnsafe()))
  const pass = (time: Duration.Input) => Effect.runPromise(clock.adjust(time))
  const passUntil: StillClock["passUntil"] = (what, condition, step = "100 millis") =>
    Kit.eventually(what, async () => {
      if (await condition()) return true
      await pass(step)
      return condition()
    })
  const passUntilSettled: StillClock["passUntilSettled"] = async (what, promise, step) => {
    let settled = false
    const done = () => {
      settled = true
    }
    promise.then(done, done)
    await passUntil(what, () => settled, step)
    return promise
  }
  return { ...clock, pass, passUntil, passUntilSettled }
}
