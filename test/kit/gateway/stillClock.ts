/**
 * A virtual clock for a gateway with real processes. Time advances only when the test says so. Use it when nothing may time out by
 * itself.
 */
import type { Clock, Duration } from "effect"
import { Context, Effect, Layer, Scheduler, Scope } from "effect"
import { TestClock } from "effect/testing"
import * as Kit from "./gateway.ts"

export interface StillClock extends Clock.Clock {
  /** With it, `pass` waits until the fibers of each ended sleep wait again. */
  readonly scheduler: Scheduler.Scheduler
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
  const layer = TestClock.layer({ warningDelay: "1 hour" })
  const context = await Effect.runPromise(Layer.buildWithScope(layer, Scope.makeUnsafe()))
  const clock = await Effect.runPromise(Effect.provide(TestClock.testClockWith(Effect.succeed), context))
  const scheduler = Context.get(context, Scheduler.Scheduler)
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
  return { ...clock, scheduler, pass, passUntil, passUntilSettled }
}
