/**
 * The state that the gateway keeps besides the pool of connections: the back ends that run, the sessions that sleep, the
 * modern callers, and the sessions and lanes that are held.
 */
import type { Scope } from "effect"
import { Deferred, Effect } from "effect"
import { HttpClient } from "effect/http"
import type { SessionPoolError } from "../../SessionPool.ts"
import type * as Bridge from "../conversation/Bridge.ts"
import type * as ClientRecord from "../conversation/ClientRecord.ts"
import type * as Lane from "../conversation/Lane.ts"
import type * as Settings from "../settings/Settings.ts"
import * as GatewayMetrics from "../telemetry/GatewayMetrics.ts"
import type { Backend, Backends } from "../transports/Backends.ts"
import type { Ask, Carrying, Client } from "./Ask.ts"
import * as Callers from "./Callers.ts"
import * as Endings from "./Endings.ts"
import type { Key } from "./Key.ts"
import * as Placement from "./Placement.ts"
import * as RunningBackend from "./RunningBackend.ts"
import * as Sleepers from "./Sleepers.ts"
import * as StartQueue from "./StartQueue.ts"

/** A connection in the pool. */
export type Connection = Bridge.Bridge | Lane.Lane

/** A session or a lane from the start of its launch until its process is gone. */
export interface Held {
  /** The object with which the pool launched it. */
  readonly key: Key
  /** `undefined` during the launch. */
  connection: Connection | undefined
  /** The record with which the session sleeps when its process is gone. `undefined` if it does not sleep. */
  record: ClientRecord.ClientRecord | undefined
  /** Completes when its process group, or the upstream's session, is gone and everything is released. */
  readonly gone: Deferred.Deferred<void>
}

/** A checked configuration: every setting has a value. */
export interface GatewayConfig {
  readonly backends: Backends
  readonly settings: Settings.GatewaySettings
}

export type State = Effect.Success<ReturnType<typeof make>>

export const make = Effect.fnUntraced(function*(
  { settings }: GatewayConfig,
  environment: Readonly<Record<string, string | undefined>>,
  /** Asks the broker, for light sessions. */
  ask: (client: Client, ask: Ask) => Carrying,
  /** Ends this replica's part of a session that another replica has taken over. */
  lost: (key: Key) => Effect.Effect<void>
) {
  const makeSleepers = yield* Sleepers.MakeSleepers
  const shared: RunningBackend.Shared = {
    environment,
    scope: yield* Effect.scope,
    totals: GatewayMetrics.totals(),
    starts: yield* StartQueue.make,
    client: yield* HttpClient.HttpClient
  }
  const running = new Map<string, RunningBackend.RunningBackend>()
  return {
    ...shared,
    settings,
    ask,
    placement: yield* Placement.Placement,
    /** The back ends by name. */
    running,
    /** The sessions and lanes that are held, by the texts of their keys. A new launch replaces an earlier one that still ends. */
    held: new Map<string, Held>(),
    /** The modern clients that use lanes now. */
    callers: Callers.make(),
    /** The records of stateless back ends' sessions, which can wake. */
    sleepers: yield* makeSleepers(settings, lost, (name) => running.get(name)?.entryText()),
    /** Why sessions end. */
    endings: Endings.make(),
    /** Fails when the gateway ends. Callers that wait for a session then stop waiting. */
    ending: yield* Deferred.make<never, SessionPoolError>(),
    /** Starts serving a back end, in place of an earlier one of the same name. */
    run: (backend: Backend) =>
      Effect.map(RunningBackend.make(backend, shared), (target) => void running.set(backend.name, target))
  }
})

/** Holds a session or a lane for the scope. Add it to the scope before anything else, because finalizers run newest first. */
export const hold = ({ held }: State, key: Key): Effect.Effect<Held, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const each: Held = { key, connection: undefined, record: undefined, gone: Deferred.makeUnsafe() }
      held.set(key.text, each)
      return each
    }),
    (each) =>
      Effect.suspend(() => {
        if (held.get(key.text) === each) held.delete(key.text)
        return Deferred.succeed(each.gone, undefined)
      })
  )
