/**
 * The gateway's knowledge of sessions besides the pool, which holds their connections: the back ends that run, the
 * sessions that are being opened or sleep, and the modern callers.
 */
import { Effect } from "effect"
import type { Scope } from "effect"
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

export interface Registry {
  readonly settings: Settings.GatewaySettings
  /** The scope of the gateway. */
  readonly scope: Scope.Scope
  /** The back ends by name. */
  readonly running: Map<string, RunningBackend.RunningBackend>
  /** The live connections of the pool by the texts of their keys, for readers that do not lease them. */
  readonly connections: Map<string, Live>
  /** The modern clients that use lanes now. */
  readonly callers: Callers.Callers
  /** The clients whose session is being opened, by the texts of the keys. */
  readonly opening: Map<string, { readonly key: Key; readonly record: ClientRecord.ClientRecord }>
  /** The records of stateless back ends' sessions, which can wake. */
  readonly sleepers: Sleepers.Sleepers
  /** Why sessions end. */
  readonly endings: Endings.Endings
  /** See `Placement.occupy`. */
  readonly occupy: Placement.Placement["occupy"]
  /** See `Placement.mayOccupy`. */
  readonly mayOccupy: Placement.Placement["mayOccupy"]
  readonly recent: GatewayMetrics.Recent
  /** Starts serving a back end, in place of an earlier one of the same name. */
  readonly run: (backend: Backend) => Effect.Effect<void>
}

/** A checked configuration: every setting has a value. */
export interface GatewayConfig {
  readonly backends: Backends
  readonly settings: Settings.GatewaySettings
}

export const make = Effect.fnUntraced(function*(
  { settings }: GatewayConfig,
  environment: Readonly<Record<string, string | undefined>>,
  /** Ends this replica's part of a session that another replica has taken over. */
  lost: (key: Key) => Effect.Effect<void>
) {
  const scope = yield* Effect.scope
  const placement = yield* Placement.Placement
  const makeSleepers = yield* Sleepers.MakeSleepers
  const client = yield* HttpClient.HttpClient
  const recent = GatewayMetrics.recent()
  const starts = yield* StartQueue.make
  const running = new Map<string, RunningBackend.RunningBackend>()
  const registry: Registry = {
    settings,
    scope,
    running,
    connections: new Map(),
    callers: Callers.make(),
    opening: new Map(),
    endings: Endings.make(),
    sleepers: yield* makeSleepers(settings, lost, (name) => running.get(name)?.entryText()),
    occupy: placement.occupy,
    mayOccupy: placement.mayOccupy,
    recent,
    run: (backend) =>
      Effect.map(
        Effect.provideService(
          RunningBackend.make(backend, environment, scope, recent, starts),
          HttpClient.HttpClient,
          client
        ),
        (target) => void running.set(backend.name, target)
      )
  }
  return registry
})
