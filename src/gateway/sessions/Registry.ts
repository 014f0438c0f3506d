/**
 * The state that the gateway keeps besides the pool of connections: the back ends that run, the sessions that are being
 * opened or sleep, and the modern callers.
 */
import { Effect } from "effect"
import { HttpClient } from "effect/http"
import type * as Bridge from "../conversation/Bridge.ts"
import type * as ClientRecord from "../conversation/ClientRecord.ts"
import type * as Lane from "../conversation/Lane.ts"
import type * as Settings from "../settings/Settings.ts"
import * as GatewayMetrics from "../telemetry/GatewayMetrics.ts"
import type { Backend, Backends } from "../transports/Backends.ts"
import * as Callers from "./Callers.ts"
import * as Endings from "./Endings.ts"
import type { Key } from "./Key.ts"
import * as Placement from "./Placement.ts"
import * as RunningBackend from "./RunningBackend.ts"
import * as Sleepers from "./Sleepers.ts"
import * as StartQueue from "./StartQueue.ts"

/** A connection in the pool. */
export type Connection = Bridge.Bridge | Lane.Lane

/** A live connection and its key. */
export interface Live {
  readonly key: Key
  readonly connection: Connection
}

/** A checked configuration: every setting has a value. */
export interface GatewayConfig {
  readonly backends: Backends
  readonly settings: Settings.GatewaySettings
}

export type Registry = Effect.Success<ReturnType<typeof make>>

export const make = Effect.fnUntraced(function*(
  { settings }: GatewayConfig,
  environment: Readonly<Record<string, string | undefined>>,
  /** Ends this replica's part of a session that another replica has taken over. */
  lost: (key: Key) => Effect.Effect<void>
) {
  const scope = yield* Effect.scope
  const makeSleepers = yield* Sleepers.MakeSleepers
  const client = yield* HttpClient.HttpClient
  const totals = GatewayMetrics.totals()
  const starts = yield* StartQueue.make
  const running = new Map<string, RunningBackend.RunningBackend>()
  return {
    settings,
    /** The scope of the gateway. */
    scope,
    placement: yield* Placement.Placement,
    /** The back ends by name. */
    running,
    /** The live connections of the pool by the texts of their keys, for readers that do not lease them. */
    connections: new Map<string, Live>(),
    /** The modern clients that use lanes now. */
    callers: Callers.make(),
    /** The clients whose session is being opened, by the texts of the keys. */
    opening: new Map<string, { readonly key: Key; readonly record: ClientRecord.ClientRecord }>(),
    /** The records of stateless back ends' sessions, which can wake. */
    sleepers: yield* makeSleepers(settings, lost, (name) => running.get(name)?.entryText()),
    /** Why sessions end. */
    endings: Endings.make(),
    totals,
    /** Starts serving a back end, in place of an earlier one of the same name. */
    run: (backend: Backend) =>
      Effect.map(
        Effect.provideService(
          RunningBackend.make(backend, environment, scope, totals, starts),
          HttpClient.HttpClient,
          client
        ),
        (target) => void running.set(backend.name, target)
      )
  }
})
