/**
 * Decides where a session's messages are carried out. A gateway alone carries them out itself (`local`). With other replicas, they are
 * carried out where the session lives: `cluster/ClusterPlacement` implements the same service. Nothing else in the gateway knows which
 * implementation it has.
 *
 * With replicas:
 *
 * - pinned: a session that stays with the replica that opened it. Its id begins with that replica's name (`Replica`).
 * - movable: a session of a stateless back end, or the lanes of a modern caller that can be told apart. They can continue at another
 *   replica.
 * - shared: the id of a movable session or caller. The replica that owns the id's shard serves it (`Shared`).
 *
 * A replica ends in three steps. `/ready` says `draining` from the first step on:
 *
 * - announced: it is not ready, but still serves (`announceEnd`);
 * - draining: it takes nothing new, and running requests may end;
 * - left: it has handed over everything movable (`leave`).
 */
import type { Scope } from "effect"
import { Context, Effect, Option } from "effect"
import { randomUUID } from "node:crypto"
import type { Ask, Carrying } from "./Ask.ts"
import type { Identity } from "./Identity.ts"

/**
 * Where a session or a caller lives. `Replica`: at the replica of this name, while that runs. `Shared`: at the replica that owns the id's
 * shard.
 */
export type Place =
  | { readonly _tag: "Here" }
  | { readonly _tag: "Replica"; readonly replica: string }
  | { readonly _tag: "Shared"; readonly id: string }

export const here: Place = { _tag: "Here" }

/** What a client asks for, when another replica is to carry it out. */
export interface Carried {
  readonly backend: string
  readonly principal: Identity
  /** True if its client can be told from others, see `Callers`. */
  readonly known: boolean
  /** See `Client`. */
  readonly light?: boolean | undefined
  readonly ask: Ask
  /** The id of the session to open, if it is already chosen. */
  readonly opens: string | undefined
}

/** True if the client only listens: the answer is a stream that does not end by itself. */
export const onlyListens = ({ ask }: Pick<Carried, "ask">): boolean =>
  ask._tag === "Listen" || ask._tag === "Call" && ask.request.method === "subscriptions/listen"

/** What a replica does at the request of other replicas. */
export interface Host {
  /** Carries out what a client of another replica asks for. */
  readonly carryOut: (carried: Carried) => Carrying
  /** The sessions here, as `/sessions` lists them. */
  readonly sessions: Effect.Effect<ReadonlyArray<object>>
  /** Ends the live session with this number. False if there is none. */
  readonly endNumber: (number: number) => Effect.Effect<boolean>
  /** Ends the pinned sessions. Completes when their processes are gone. */
  readonly endPinned: Effect.Effect<void>
  /** Ends the session or the lanes with this shared id, or puts the session to sleep. Completes when their processes are gone. */
  readonly vacate: (id: string) => Effect.Effect<void>
}

/** The state of the replicas, as `/ready` reports it. */
export interface Status {
  /**
   * Whether this replica takes new sessions, or why not. `database unreachable`: the database has not answered for too long. `address
   * taken`: another replica has the address of this one.
   */
  readonly state: "ready" | "joining" | "draining" | "database unreachable" | "address taken"
  readonly replica: string
  readonly database: "ok" | "unreachable"
  /** How long the database has not answered, and how much longer this replica can safely serve what is movable. */
  readonly unreachableSeconds?: number
  readonly safeForSeconds?: number
  /** The names of the other replicas. */
  readonly others: ReadonlyArray<string>
}

export interface Placement {
  /** The name of this replica in ids, states and lists. Empty if there is only one. */
  readonly replica: string
  /** Where to open a new session, and its id. No id if another replica chooses it. */
  readonly forNew: (movable: boolean) => Effect.Effect<{ readonly place: Place; readonly id?: string | undefined }>
  /** Where the session with this id lives. `None` if no session can have such an id. */
  readonly ofSession: (id: string) => Option.Option<Place>
  /** Where the lanes of a modern caller live. */
  readonly ofCaller: (caller: string) => Place
  /** The place of the replica with this name. A request state names the replica where its call is parked. */
  readonly ofReplica: (replica: string) => Place
  /** Carries out an ask at a place. Runs `here` if the place is this replica, else forwards `carried`. */
  readonly at: (place: Place, carried: () => Carried, here: Carrying) => Carrying
  /** The number of asks that other replicas carry out for clients of this one. */
  readonly forwarded: () => number
  /** Marks a shared id as in use here, for the scope. */
  readonly occupy: (id: string) => Effect.Effect<void, never, Scope.Scope>
  /** False while a request for this id from before it moved is still running here. */
  readonly mayOccupy: (id: string) => boolean
  /** Carries out what other replicas ask for, for the scope. */
  readonly serve: (host: Host) => Effect.Effect<void, never, Scope.Scope>
  /** The sessions of the other replicas. Best effort: leaves out replicas that do not answer. */
  readonly sessionsElsewhere: Effect.Effect<ReadonlyArray<object>>
  /** Ends a session of another replica. False if there is none. */
  readonly endElsewhere: (replica: string, number: number) => Effect.Effect<boolean>
  /** Announces the end, so that no new work arrives. Waits until balancers have had time to notice. */
  readonly announceEnd: Effect.Effect<void>
  /** Hands everything movable over to the other replicas. Call it after draining, because movable sessions end or sleep here. */
  readonly leave: Effect.Effect<void>
  readonly status: Effect.Effect<Option.Option<Status>>
}

const form = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(-light)?$/

/** True if an id has the form of session ids of a gateway without replicas. */
export const isSessionId = (id: string): boolean => form.test(id)

const always = <A>(value: A) => () => value

/** The placement of a gateway without replicas. */
export const local: Placement = {
  replica: "",
  forNew: () => Effect.sync(() => ({ place: here, id: randomUUID() })),
  ofSession: (id) => isSessionId(id) ? Option.some(here) : Option.none(),
  ofCaller: always(here),
  ofReplica: always(here),
  at: (_, __, here) => here,
  forwarded: always(0),
  occupy: always(Effect.void),
  mayOccupy: always(true),
  serve: always(Effect.void),
  sessionsElsewhere: Effect.succeed([]),
  endElsewhere: always(Effect.succeed(false)),
  announceEnd: Effect.void,
  leave: Effect.void,
  status: Effect.succeedNone
}

export const Placement: Context.Reference<Placement> = Context.Reference<Placement>(
  "effect-session-pool/gateway/Placement",
  { defaultValue: () => local }
)
