/**
 * The broker: all that a front sees of the gateway. A front takes messages from clients, asks the broker, and gives the clients what comes
 * back. Nothing here knows how clients come in.
 */
import { Deferred, Effect, Option } from "effect"
import { refusal } from "../conversation/Exchange.ts"
import type * as JsonRpc from "../protocol/JsonRpc.ts"
import type * as Modern from "../protocol/Modern.ts"
import type * as RequestHeaders from "../protocol/RequestHeaders.ts"
import type { Ask, Carrying, Client } from "./Ask.ts"
import * as Callers from "./Callers.ts"
import * as Calls from "./Calls.ts"
import { Key } from "./Key.ts"
import * as Placement from "./Placement.ts"
import { shuttingDown, unknownSession } from "./Refusals.ts"
import type { Serving } from "./Serving.ts"
import * as SessionAsks from "./SessionAsks.ts"

export interface Broker {
  /** The names of the back ends. */
  readonly backends: () => ReadonlyArray<string>
  /** The arguments that clients of a back end's tools repeat in headers. */
  readonly paramHeaders: (backend: string) => RequestHeaders.ParamHeaders
  /**
   * Carries out what a client asks for. The effect waits until the server has the messages. The exchange lives as long as the scope: when
   * the scope closes, a request of a session goes on without its client, and a call is cancelled.
   */
  readonly ask: (client: Client, ask: Ask) => Carrying
  /** Completes when the gateway stops taking new work. Streams of clients that only listen then end. */
  readonly draining: Effect.Effect<void>
}

export const make = (serving: Serving): Broker => ({
  backends: () => [...serving.sessions.running().keys()],
  paramHeaders: (backend) => serving.sessions.running().get(backend)?.paramHeaders ?? new Map(),
  ask: (client, ask) => askAt(serving, client, ask, undefined),
  draining: Deferred.await(serving.draining)
})

/** Carries out an ask that another replica forwarded. */
export const carryOut = (serving: Serving, carried: Placement.Carried): Carrying => {
  const { ask, backend, known, principal } = carried
  return serving.sessions.running().has(backend)
    ? askAt(serving, { backend, principal, known: Effect.succeed(known) }, ask, carried)
    : Effect.fail(refusal("unknown", `This replica has no back end "${backend}"`))
}

/** Carries out an ask where its session or caller lives. `carried` is set if another replica forwarded the ask to this one. */
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
      // No session has an id of this form.
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
  // `placeOf` returns a `Shared` place only for a caller that can be told from others.
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
