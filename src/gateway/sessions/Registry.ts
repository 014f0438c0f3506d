/**
 * What is known of sessions beside the pool that holds their connections: which back ends run, whose session is being opened or
 * sleeps, who the modern callers are. And the pool's keys: a session belongs to the key that opened it because that key's name
 * is part of the pool's key; with another one it does not exist.
 */
import { Effect } from "effect"
import type { Scope } from "effect"
import { HttpClient } from "effect/http"
import * as SessionKey from "../../SessionKey.ts"
import type { Backend } from "../backends/Backends.ts"
import * as RunningBackend from "../backends/RunningBackend.ts"
import * as StartQueue from "../backends/StartQueue.ts"
import type * as Upstream from "../backends/Upstream.ts"
import * as GatewayMetrics from "../GatewayMetrics.ts"
import type * as Bridge from "../legacy/Bridge.ts"
import * as Callers from "../modern/Callers.ts"
import type * as Lane from "../modern/Lane.ts"
import type { GatewayConfig } from "../settings/Config.ts"
import type * as Settings from "../settings/Settings.ts"
import type * as ClientRecord from "./ClientRecord.ts"
import * as Endings from "./Endings.ts"
import * as Placement from "./Placement.ts"
import * as Sleepers from "./Sleepers.ts"

export type Key = SessionKey.SessionKey

/** What the pool holds. */
export type Connection = Bridge.Bridge | Upstream.Upstream | Lane.Lane

/** Who asks: the name of a key, or "" where no keys are asked for. */
export type Principal = string

/** The pool's key of a session. No id contains a dot, so the name of a key cannot be guessed into one. */
export const keyOf = (backend: string, principal: Principal, id: string): Key =>
  SessionKey.makeUnsafe(backend, principal === "" ? id : `${id}.${principal}`)

/** The id that a key stands for: of a session, or of a modern caller with all its lanes. */
export const idOf = (key: Key): string => {
  const session = SessionKey.session(key)
  const dot = session.indexOf(".")
  return (dot < 0 ? session : session.slice(0, dot)).replace(/^lane\d+-/, "")
}

/** Without keys: the whole key, so each session counts as its own principal. */
export const principalOf = (key: Key): Principal => key.slice(key.lastIndexOf(".") + 1)

export interface Registry {
  readonly settings: Settings.GatewaySettings
  /** Of the gateway. */
  readonly scope: Scope.Scope
  /** The back ends by name. */
  readonly running: Map<string, RunningBackend.RunningBackend>
  /** The live connections: what the pool holds, for who looks and does not lease. */
  readonly connections: Map<Key, Connection>
  /** The modern clients that use lanes now. */
  readonly callers: Callers.Callers
  /** The clients whose session is being opened. */
  readonly opening: Map<Key, ClientRecord.ClientRecord>
  /** The clients of stateless back ends: whoever is here may be woken. */
  readonly sleepers: Sleepers.Sleepers
  /** Why sessions end. */
  readonly endings: Endings.Endings
  /** Notes for the scope that something lives under an id. */
  readonly occupy: Placement.Placement["occupy"]
  /** Whether something may begin to live here under an id. */
  readonly mayOccupy: Placement.Placement["mayOccupy"]
  readonly recent: GatewayMetrics.Recent
  /** Begins to run a back end, in the place of an earlier one of its name. */
  readonly run: (backend: Backend) => Effect.Effect<void>
}

export const make = Effect.fnUntraced(function*(
  { settings }: GatewayConfig,
  environment: Readonly<Record<string, string | undefined>>,
  /** Ends what is here of a session that another replica has taken over. */
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
