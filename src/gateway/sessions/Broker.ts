/**
 * The broker: all that a front sees of the gateway. A front takes messages from clients, asks the broker, and gives the clients what comes
 * back. Nothing here knows how clients come in.
 */
import type { Scope } from "effect"
import { Deferred, Effect, Option } from "effect"
import type { Exchange, Refusal } from "../conversation/Exchange.ts"
import { refusal } from "../conversation/Exchange.ts"
import type * as Parked from "../conversation/Parked.ts"
import type * as JsonRpc from "../protocol/JsonRpc.ts"
import type * as Modern from "../protocol/Modern.ts"
import type * as RequestHeaders from "../protocol/RequestHeaders.ts"
import type * as Settings from "../settings/Settings.ts"
import * as Callers from "./Callers.ts"
import * as Calls from "./Calls.ts"
import { Key } from "./Key.ts"
import * as Placement from "./Placement.ts"
import { shuttingDown, unknownSession } from "./Refusals.ts"
import * as SessionAsks from "./SessionAsks.ts"
import type { Sessions } from "./Sessions.ts"

/** A client of one back end. */
export interface Client {
  readonly backend: string
  /** The id of its principal; "" if the gateway asks for no keys. */
  readonly principal: string
  /**
   * Whether the client can be told from others. Read only for calls without a session: clients that cannot be told apart share no process.
   */
  readonly known: Effect.Effect<boolean>
}

/** What a client asks for. */
export type Ask =
  /** Opens a session with the client's `initialize`. */
  | { readonly _tag: "Open"; readonly message: JsonRpc.Request }
  /** Hands messages over to a session, in order. All answers come in one exchange. */
  | { readonly _tag: "Send"; readonly session: string; readonly messages: ReadonlyArray<JsonRpc.Message> }
  /** Listens to the messages of a session that belong to no request, or resumes the stream of the event `from`. */
  | { readonly _tag: "Listen"; readonly session: string; readonly from: string | undefined }
  /** Ends a session. The exchange comes when its process is gone. */
  | { readonly _tag: "End"; readonly session: string }
  /** Makes a request of revision 2026-07-28, which has no sessions. */
  | { readonly _tag: "Call"; readonly request: JsonRpc.Request }

export interface Broker {
  /** The names of the back ends. */
  readonly backends: () => ReadonlyArray<string>
  /** The arguments that clients of a back end's tools repeat in headers. */
  readonly paramHeaders: (backend: string) => RequestHeaders.ParamHeaders
  /**
   * Carries out what a client asks for. The effect waits until the server has the messages. The exchange lives as long as the scope: when
   * it closes, a request of a session goes on without its client, and a call is cancelled.
   */
  readonly ask: (client: Client, ask: Ask) => Effect.Effect<Exchange, Refusal, Scope.Scope>
  /** Completes when the gateway stops taking new work. Streams of clients that only listen then end. */
  readonly draining: Effect.Effect<void>
}

/** The parts of the gateway that the broker works with. */
export interface Serving {
  readonly sessions: Sessions
  readonly settings: Settings.GatewaySettings
  readonly parked: Parked.Parked
  /** Completes when the gateway stops taking new work. */
  readonly draining: Deferred.Deferred<void>
  /** The ends of sessions that clients ask for, by the text of the key. Each completes when its client has been answered. */
  readonly ends: Map<string, Deferred.Deferred<void>>
  /** Finds where a session lives. */
  readonly placement: Placement.Placement
}

/** Carries something out, for the scope. */
export type Carrying = Effect.Effect<Exchange, Refusal, Scope.Scope>

export const make = (serving: Serving): Broker => ({
  backends: () => [...serving.sessions.running().keys()],
  paramHeaders: (backend) => serving.sessions.running().get(backend)?.paramHeaders ?? new Map(),
  ask: (client, ask) => askAt(serving, client, ask, undefined),
  draining: Deferred.await(serving.draining)
})

/** Carries out what a client of another replica asks for. It is not forwarded again. */
export const carryOut = (serving: Serving, carried: Placement.Carried): Carrying => {
  const { ask, backend, known, principal } = carried
  return serving.sessions.running().has(backend)
    ? askAt(serving, { backend, principal, known: Effect.succeed(known) }, ask, carried)
    : Effect.fail(refusal("unknown", `This replica has no back end "${backend}"`))
}

/** Carries something out where its session lives, or here if another replica has `carried` it here. */
const askAt = (serving: Serving, client: Client, ask: Ask, carried: Placement.Carried | undefined): Carrying => {
  const { placement } = serving
  switch (ask._tag) {
    case "Open":
      return Effect.andThen(SessionAsks.checkInitialize(ask.message), open(serving, client, ask, carried))
    case "Call":
      return Effect.flatMap(Calls.read(serving, ask.request), (call) => {
        const here = Calls.call(serving, client, call)
        return carried !== undefined || placement.replica === ""
          ? here
          : Effect.flatMap(placeOf(serving, client, call), (place) => at(serving, place, client, ask, here))
      })
    default: {
      const here = inSession(serving, new Key(client.backend, client.principal, ask.session), ask)
      if (carried !== undefined) return here
      const place = placement.ofSession(ask.session)
      // An id of another form is no session's.
      return Option.isSome(place) ? at(serving, place.value, client, ask, here) : Effect.fail(unknownSession(idOf(ask)))
    }
  }
}

const inSession = (serving: Serving, key: Key, ask: Exclude<Ask, { _tag: "Open" | "Call" }>): Carrying => {
  switch (ask._tag) {
    case "Send":
      return SessionAsks.send(serving, key, ask.messages)
    case "Listen":
      return SessionAsks.listen(serving, key, ask.from)
    case "End":
      return SessionAsks.end(serving, key)
  }
}

/** The id of the single request in an ask. */
const idOf = (ask: Ask): JsonRpc.Id | undefined => {
  const [message] = ask._tag === "Send" && ask.messages.length === 1 ? ask.messages : []
  return message?._tag === "Request" ? message.id : undefined
}

/** Opens a session at the place that `Placement.forNew` finds. */
const open = (
  serving: Serving,
  client: Client,
  ask: Ask & { readonly _tag: "Open" },
  carried: Placement.Carried | undefined
): Carrying => {
  const { message } = ask
  const openHere = (id: string) => SessionAsks.open(serving, new Key(client.backend, client.principal, id), message)
  if (carried?.opens !== undefined) return openHere(carried.opens)
  const movable = serving.sessions.running().get(client.backend)?.backend.settings.stateless === true
  return Effect.flatMap(serving.placement.forNew(movable), ({ id, place }) => {
    if (id !== undefined) return at(serving, place, client, ask, openHere(id), id)
    // Without an id the place is another replica, so `here` never runs. A forwarded ask is not forwarded again.
    return carried === undefined
      ? at(serving, place, client, ask, Effect.never)
      : Effect.fail(shuttingDown({ id: message.id }))
  })
}

const at = (
  { placement }: Serving,
  place: Placement.Place,
  { backend, principal }: Client,
  ask: Ask,
  here: Carrying,
  opens?: string
): Carrying => {
  // The lanes of a caller are shared only if the caller can be told from others (`placeOf`).
  const known = ask._tag === "Call" && place._tag === "Shared"
  return placement.at(place, () => ({ backend, principal, known, ask, opens }), here)
}

/** The place of a call. A parked call stays where it was parked, wherever its caller's lanes live. */
const placeOf = (serving: Serving, client: Client, call: Modern.Call): Effect.Effect<Placement.Place> => {
  const { parked, placement } = serving
  const replica = call.requestState === undefined ? undefined : parked.replicaOf(call.requestState)
  return replica !== undefined ? Effect.succeed(placement.ofReplica(replica)) : Effect.map(
    Calls.callerOf(serving, client, call),
    (caller) => caller.known ? placement.ofCaller(Callers.identify(caller)) : Placement.here
  )
}
