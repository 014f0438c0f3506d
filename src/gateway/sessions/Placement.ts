/**
 * Where a session's requests are carried out. Alone, here; with other replicas, where the session is: that is another
 * implementation of the same service (`cluster/ClusterPlacement`), and nothing else in the gateway knows which one it has.
 *
 * With replicas:
 *
 * - pinned: a session that stays with the replica that opened it, whose name its id begins with (`Replica`);
 * - movable: what can go on at another replica: sessions of stateless back ends, and the lanes of modern callers that can be told
 *   apart;
 * - shared: the id of what is movable. Whichever replica owns the shard that the id falls into has it (`Shared`).
 *
 * A replica ends in three steps: announced (not ready, but it serves: `announceEnd`), draining (nothing new, what runs may end:
 * `Serving.draining`), left (what is movable is handed over: `leave`). `/ready` says `draining` from the first on.
 */
import type { Scope } from "effect"
import { Context, Effect, Option } from "effect"
import type { HttpServerResponse } from "effect/http"
import { randomUUID } from "node:crypto"
import type * as EventStreamBody from "../http/EventStreamBody.ts"
import type { Refusal } from "../http/Refusals.ts"
import type { Principal } from "./Registry.ts"

type Response = HttpServerResponse.HttpServerResponse

/**
 * Where something lives. `Replica`: with the replica of this name, as long as that runs. `Shared`: with whichever replica
 * owns the shard of the id.
 */
export type Place =
  | { readonly _tag: "Here" }
  | { readonly _tag: "Replica"; readonly replica: string }
  | { readonly _tag: "Shared"; readonly id: string }

export const here: Place = { _tag: "Here" }

/** A request that is to be carried out elsewhere: what is left of it once it has been let in. */
export interface Carried {
  readonly method: string
  readonly backend: string
  readonly principal: Principal
  /** Whether its client can be told from others, see `Callers`. */
  readonly known: boolean
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
  /** The id of the session that it opens, if the id is decided already. */
  readonly opens?: string | undefined
}

/** Whether a request is answered with a stream that goes on for as long as there is what it listens to. */
export const onlyListens = ({ headers, method }: Carried): boolean =>
  method === "GET" || headers["mcp-method"] === "subscriptions/listen"

/** A request that another replica may have to carry out, and how its client gets the answer. */
export interface Asked {
  readonly carried: Carried
  readonly stream: EventStreamBody.Options
}

/** What a replica does for the others. */
export interface Host {
  /** Carries out a request that came in elsewhere. */
  readonly carryOut: (request: Carried) => Effect.Effect<Response, never, Scope.Scope>
  /** The sessions here, as `/sessions` lists them. */
  readonly sessions: Effect.Effect<ReadonlyArray<object>>
  /** Ends the live session of this number; whether there was one. */
  readonly endNumber: (number: number) => Effect.Effect<boolean>
  /** Ends the pinned sessions; done when their processes are gone. */
  readonly endPinned: Effect.Effect<void>
  /** Ends what lives here under a shared id, or puts it to sleep; done when its processes are gone. */
  readonly vacate: (id: string) => Effect.Effect<void>
}

/** How the replicas are, as `/ready` tells it. */
export interface Status {
  /** Whether this one takes new sessions, and if not, why; `database unreachable`: for too long; `address taken`: by another one. */
  readonly state: "ready" | "joining" | "draining" | "database unreachable" | "address taken"
  readonly replica: string
  readonly database: "ok" | "unreachable"
  /** For how long it has not answered, and for how long what is movable is still safely served here. */
  readonly unreachableSeconds?: number
  readonly safeForSeconds?: number
  /** The names of the other replicas. */
  readonly others: ReadonlyArray<string>
}

export interface Placement {
  /** Names this replica in ids, states and lists; empty where there is but one. */
  readonly replica: string
  /** Where a new session is opened, and its id, unless it is for another replica to decide. */
  readonly forNew: (movable: boolean) => Effect.Effect<{ readonly place: Place; readonly id?: string | undefined }>
  /** Where the session with this id is; none: no session has such an id. */
  readonly ofSession: (id: string) => Option.Option<Place>
  /** Where the lanes of a modern caller are. */
  readonly ofCaller: (caller: string) => Place
  /** Where the call is parked that a state made by this replica belongs to. */
  readonly ofReplica: (replica: string) => Place
  /** Has a request carried out at a place: `here` if that is here. */
  readonly at: (
    place: Place,
    asked: () => Asked,
    here: Effect.Effect<Response, Refusal, Scope.Scope>
  ) => Effect.Effect<Response, Refusal, Scope.Scope>
  /** Notes that something lives here under a shared id, for the scope. */
  readonly occupy: (id: string) => Effect.Effect<void, never, Scope.Scope>
  /** Whether something may begin to live here under an id: not while a request goes on that was for it before it moved. */
  readonly mayOccupy: (id: string) => boolean
  /** Does for other replicas what they ask for, for the scope. */
  readonly serve: (host: Host) => Effect.Effect<void, never, Scope.Scope>
  /** The sessions of the other replicas, as far as these answer. */
  readonly sessionsElsewhere: Effect.Effect<ReadonlyArray<object>>
  /** Ends a session of another replica; whether there was one. */
  readonly endElsewhere: (replica: string, number: number) => Effect.Effect<boolean>
  /** Announces the end, so that nothing new comes; waits until others have had time to notice. */
  readonly announceEnd: Effect.Effect<void>
  /** Hands what is movable over to the others. Nothing is running here any more, or may go on. */
  readonly leave: Effect.Effect<void>
  readonly status: Effect.Effect<Option.Option<Status>>
}

const uuid = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

/** Whether a session's id has the form of those of a gateway that is alone. */
export const isSessionId = (id: string): boolean => uuid.test(id)

const always = <A>(value: A) => () => value

/** One gateway, alone. */
export const local: Placement = {
  replica: "",
  forNew: () => Effect.sync(() => ({ place: here, id: randomUUID() })),
  // Whatever has another form cannot be one, and must not be taken for another key of the pool.
  ofSession: (id) => isSessionId(id) ? Option.some(here) : Option.none(),
  ofCaller: always(here),
  ofReplica: always(here),
  at: (_, __, here) => here,
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
