/** The parts of the gateway that carry out what clients ask for. */
import type { Deferred } from "effect"
import type * as Parked from "../conversation/Parked.ts"
import type * as Settings from "../settings/Settings.ts"
import type { Placement } from "./Placement.ts"
import type { Sessions } from "./Sessions.ts"

export interface Serving {
  readonly sessions: Sessions
  readonly settings: Settings.GatewaySettings
  readonly parked: Parked.Parked
  /** Completes when the gateway stops taking new work. */
  readonly draining: Deferred.Deferred<void>
  /** The `End` asks in progress, by the text of the session's key. Each completes when its client has been answered. */
  readonly ends: Map<string, Deferred.Deferred<void>>
  /** Finds where a session lives. */
  readonly placement: Placement
}
