/**
 * The broker: all that a front sees of the gateway. A front takes messages from clients, asks the broker, and gives the clients what comes
 * back. Nothing here knows how clients come in.
 */
import { Deferred, Effect, Option } from "effect"
import { refusal } from "../conversation/Exchange.ts"
import type * as Modern from "../protocol/Modern.ts"
import type * as RequestHeaders from "../protocol/RequestHeaders.ts"
import type { Ask, Carrying, Client } from "./Ask.ts"
import { idOf } from "./Ask.ts"
import * as Callers from "./Callers.ts"
import * as Calls from "./Calls.ts"
import { Key, lightId } from "./Key.ts"
import * as Placement from "./Placement.ts"
import { shuttingDown, unknownSession } from "./Refusals.ts"
import type { Serving } from "./Serving.ts"
import * as SessionAsks from "./SessionAsks.ts"

export interface Broker {
  /** The names of the back ends. */
  readonly backends: () => ReadonlyArray<string>
  /** The back end that a path names. A path without a name means the only back end, if there is only one. */
  readonly backendAt: (named: string | undefined) => string | undefined
  /** The further scopes that a token needs for that back end. */
  readonly scopes: (named: string | undefined) => ReadonlyArray<string>
  /** The arguments that clients of a back end's tools repeat in headers. */
  readonly paramHeaders: (backend: string) => RequestHeaders.ParamHeaders
  /**
   * Carries out what a client asks for. The effect waits until the messages are on their way to the server. The exchange lives as long as
   * the scope: when the scope closes, a request of a session goes on without its client, and a call is cancelled.
   */
  readonly ask: (client: Client, ask: Ask) => Carrying
  /** False if `ask` completes at once. Otherwise it may wait, such as for a session that wakes, or for another replica. */
  readonly mayWait: (client: Client, ask: Ask) => boolean
  /** Completes when the gateway stops taking new work. Streams of clients that only listen then end. */
  readonly draining: Effect.Effect<void>
}

export const make = (serving: Serving): Broker => {
  const { running } = serving.sessions
  const backendAt = (named: string | undefined) => {
    const [first, another] = running().keys()
    return named === undefined ? (another === undefined ? first : undefined) : running().has(named) ? named : undefined
  }
  return {
    backends: () => [...running().keys()],
    backendAt,
    scopes: (named) => running().get(backendAt(named) ?? "")?.backend.settings.scopes ?? [],
    paramHeaders: (backend) => running().get(backend)?.paramHeaders ?? new Map(),
    ask: (client, ask) => askAt(serving, client, ask, undefined),
    mayWait: ({ backend }, ask) =>
      ask._tag !== "Send" || ask.messages.length > 1 || serving.placement.replica !== "" ||
      isStateless(serving, backend),
    draining: Deferred.await(serving.draining)
  }
}

/** Carries out an ask that another replica forwarded. */
export const carryOut = (serving: Serving, carried: Placement.Carried): Carrying => {
  const { ask, backend, known, light, principal } = carried
  return serving.sessions.running().has(backend)
    ? askAt(serving, { backend, principal, light, known: Effect.succeed(known) }, ask, carried)
    : Effect.fail(refusal("unknown", `This replica has no back end "${backend}"`))
}

/** Carries out an ask where its session or caller lives. `carried` is set if another replica forwarded the ask to this one. */
const askAt = (serving: Serving, client: Client, ask: Ask, carried: Placement.Carried | undefined): Carrying => {
  const { placement } = serving
  /** The other replica cannot look at the client's process, so it is told whether the client is known. */
  const at = (place: Placement.Place, here: Carrying, known = false, opens?: string) =>
    placement.at(place, () => ({ ...client, known, ask, opens }), here)
  switch (ask._tag) {
    case "Open":
      return Effect.flatMap(isLight(serving, client), (light) => {
        const openHere = (id: string) => SessionAsks.open(serving, keyOf(client, id), ask.message)
        if (carried?.opens !== undefined) return openHere(carried.opens)
        const isMovable = !light && isStateless(serving, client.backend)
        return Effect.flatMap(placement.forNew(isMovable), ({ id: given, place }) => {
          if (given !== undefined) {
            const id = light ? lightId(given) : given
            return at(place, openHere(id), light, id)
          }
          // Without an id the place is another replica, so `here` never runs. A forwarded ask is not forwarded again.
          return carried === undefined
            ? at(place, Effect.never, light)
            : Effect.fail(shuttingDown({ id: ask.message.id }))
        })
      })
    case "Call":
      return Effect.flatMap(Calls.read(serving, ask.request), (call) => {
        const here = Calls.call(serving, client, call)
        return carried !== undefined || placement.replica === ""
          ? here
          // `placeOf` returns a `Shared` place for known callers only.
          : Effect.flatMap(placeOf(serving, client, call), (place) => at(place, here, place._tag === "Shared"))
      })
    default: {
      const here = inSession(serving, keyOf(client, ask.session), ask)
      if (carried !== undefined) return here
      const place = placement.ofSession(ask.session)
      // No session has an id of this form.
      return Option.isSome(place) ? at(place.value, here) : Effect.fail(unknownSession(idOf(ask)))
    }
  }
}

/** True if a new session of a client is to be light: its back end keeps sessions by caller, and the client can be told from others. */
const isLight = ({ sessions, settings }: Serving, client: Client): Effect.Effect<boolean> =>
  sessions.running().get(client.backend)?.backend.settings.sessions === "caller"
    ? Calls.isKnown(settings, client)
    : Effect.succeed(false)

const isStateless = ({ sessions }: Serving, backend: string): boolean =>
  sessions.running().get(backend)?.backend.settings.stateless === true

const keyOf = ({ backend, principal }: Client, session: string) => new Key(backend, principal, session)

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

/** The place of a call. A parked call stays where it was parked, wherever its caller's lanes live. */
const placeOf = (serving: Serving, client: Client, call: Modern.Call): Effect.Effect<Placement.Place> => {
  const { parked, placement } = serving
  const replica = call.requestState === undefined ? undefined : parked.replicaOf(call.requestState)
  return replica !== undefined ? Effect.succeed(placement.ofReplica(replica)) : Effect.map(
    Calls.callerOf(serving, client, call),
    (caller) => caller.known ? placement.ofCaller(Callers.identify(caller)) : Placement.here
  )
}
