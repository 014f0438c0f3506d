/** The seam of fronts: how clients come in. */
import type { Effect, Scope } from "effect"
import type { Broker } from "../sessions/Broker.ts"

/** A way in which clients reach the gateway. It takes messages from clients, asks the broker, and gives the clients what comes back. */
export interface Front<out R = never> {
  /** The name in logs. */
  readonly name: string
  /** Serves clients for as long as the scope is open. Returns when clients can connect. */
  readonly serve: (broker: Broker) => Effect.Effect<void, never, R | Scope.Scope>
}
