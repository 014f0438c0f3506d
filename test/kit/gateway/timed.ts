/** A gateway on a clock that the test moves: its time-outs fire when the test says so, however slow the machine is. */
import type { Duration } from "effect"
import { Effect, Exit, Layer, Scope } from "effect"
import { TestClock } from "effect/testing"
import type * as Gateway from "../../../src/gateway/Gateway.ts"
import * as Kit from "./gateway.ts"

export interface Timed extends Kit.Running {
  /** Lets time pass in the gateway, and only there. */
  readonly pass: (time: Duration.Input) => Promise<void>
}

/** Starts a gateway in this process, with processes and clients in real time. */
export const start = async (options: Gateway.GatewayOptions): Promise<Timed> => {
  const scope = Effect.runSync(Scope.make())
  const clock = await Effect.runPromise(Layer.buildWithScope(TestClock.layer({ warningDelay: "1 hour" }), scope))
  const { origin, stop } = await Kit.start(options, clock)
  const pass = (time: Duration.Input) => Effect.runPromise(Effect.provideContext(TestClock.adjust(time), clock))
  return {
    origin,
    pass,
    stop: async () => {
      let stopped = false
      const stopping = stop().finally(() => (stopped = true))
      await Kit.eventually("the gateway has stopped", async () => {
        await pass("1 second")
        return stopped
      })
      await stopping
      await Effect.runPromise(Scope.close(scope, Exit.void))
    }
  }
}
