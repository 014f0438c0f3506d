/**
 * Sessions spread over replicas, on the engine of `effect/cluster`.
 *
 * - A pinned session stays with the replica that opened it. Its id begins with the name of that replica.
 * - A movable session or lane belongs to the replica that owns the shard of its shared id. Before the shard moves, the session goes to
 *   sleep and the lane ends, so two replicas never have the same one.
 *
 * The first request for a shared id starts the engine's entity of that id (`Homes`). While a session or lane lives under the id, the entity
 * keeps the shard where it is. Later requests go straight to that replica.
 */
import type { Scope } from "effect"
import { Duration, Effect, Option, Random, Schema } from "effect"
import { EntityId, Sharding, ShardingConfig } from "effect/cluster"
import { randomUUID } from "node:crypto"
import type { Exchange, Refusal } from "../conversation/Exchange.ts"
import { refusal } from "../conversation/Exchange.ts"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import type { Ask, Carrying } from "../sessions/Ask.ts"
import { idOf } from "../sessions/Ask.ts"
import type { Carried, Host, Placement, Status } from "../sessions/Placement.ts"
import { here, isSessionId } from "../sessions/Placement.ts"
import { retryAfter, unknownSession } from "../sessions/Refusals.ts"
import * as Forwarding from "./Forwarding.ts"
import * as Homes from "./Homes.ts"
import type * as Hosting from "./Hosting.ts"
import * as Links from "./Links.ts"
import * as Membership from "./Membership.ts"
import * as Protocol from "./Protocol.ts"
import * as ReplicaName from "./ReplicaName.ts"
import type * as ReplicaTls from "./ReplicaTls.ts"

export interface Options {
  /** How long load balancers get to notice that this replica is about to end. */
  readonly leaveDelay: Duration.Duration
  /** How long a request waits for a session or lane that is moving. */
  readonly movingTimeout: Duration.Duration
  /** Ends this replica's part in the engine, which hands its shards over. */
  readonly disengage: Effect.Effect<void>
  readonly hosting: Hosting.Hosting
  /** The key of the connections between replicas. */
  readonly key: ReplicaTls.Key
}

/** The engine's default group of shards. */
const shardGroup = "default"
/** How many ids are drawn, to find one whose shard is here. A replica with few shards or none uses the last id. */
const draws = 1000
/** How long another replica may take to list its sessions. */
const listTimeout = "2 seconds"
/** How long another replica may take to end a session, or this one its pinned sessions. */
const endTimeout = "10 seconds"
/** How long a request retries a replica that cannot be reached. By then, all replicas know of one that left. In milliseconds. */
const reachTimeout = 8000
/** How often this replica checks whether the others have given it up (`Membership.isGivenUp`). */
const givenUpInterval = "250 millis"
/** Pause before a request for a moving session or lane is retried. */
const movingPause = "100 millis"
/** How long a replica that leaves waits for the last requests of movable sessions and lanes. */
export const leaveTimeout = Duration.seconds(5)
/** How long the engine may take to find the replica that has an id. In milliseconds. */
const locateTimeout = 1000
/**
 * How long a request waits during an outage of the database that has lasted longer than the request would wait. A longer wait is unlikely
 * to help. In milliseconds.
 */
const outageTimeout = 3000

const unknownWhere =
  "The gateway cannot tell whether this session still exists: its database does not answer; try again"
const goneUnopened = "The replica that was to open the session has stopped; try again"
const goneParked = "Invalid params: requestState is not valid here: the replica that parked its call has stopped"
const moving = "The session is moving to another replica; try again"
/** The refusal of a request for a movable session or lane, `millis` after the database stopped answering. */
const withoutDatabase = (millis: number): string =>
  "This session cannot be served now: the replicas' database has not answered for " +
  `${Math.round(millis / 1000)} seconds. Try again in ${retryAfter} seconds.`

/** What the parts of the placement share. */
type State = Effect.Success<ReturnType<typeof makeState>>

const makeState = Effect.fnUntraced(function*(options: Options) {
  const config = yield* ShardingConfig.ShardingConfig
  const membership = yield* Membership.Membership
  const replica = ReplicaName.here(config)
  return {
    options,
    replica,
    membership,
    sharding: yield* Sharding.Sharding,
    links: yield* Links.make((name) => membership.addressOf(name), options.key),
    homes: yield* Homes.make(replica),
    /** How long it takes until all others know of a replica that joined, in milliseconds. */
    joinSettling: 2 * Duration.toMillis(Duration.fromInputUnsafe(config.refreshAssignmentsInterval)),
    /** True once the end is announced. New sessions then open elsewhere. */
    isEnding: false,
    /** True once the hand-over of the movable sessions and lanes has begun. */
    leaves: false,
    /** How many asks other replicas carry out, or are to carry out. */
    forwarded: 0
  }
})

export const make = Effect.fnUntraced(function*(options: Options) {
  const state = yield* makeState(options)
  const { membership, replica } = state
  const { hosting } = options
  membership.isOccupied = (shard) => hosting.isOccupied(shard)
  const placement: Placement = {
    replica,
    ...places(state),
    ...othersOf(state),
    ...ending(state),
    at: (place, carried, here) => {
      if (place._tag === "Shared") return Effect.suspend(() => atHome(state, place.id, carried(), here))
      return place._tag === "Here" || place.replica === replica
        ? here
        : Effect.suspend(() => atReplica(state, place.replica, carried()))
    },
    forwarded: () => state.forwarded,
    occupy: (id) => hosting.occupy(id),
    mayOccupy: (id) => hosting.mayOccupy(id),
    serve: (host) =>
      Effect.andThen(
        Effect.provideService(hosting.serve(host), Sharding.Sharding, state.sharding),
        Effect.asVoid(Effect.forkScoped(endWhenGivenUp(membership, host)))
      ),
    status: Effect.sync(() => Option.some(statusOf(state)))
  }
  return placement
})

/** Where sessions live, and where new ones open. */
const places = (state: State): Pick<Placement, "forNew" | "ofSession" | "ofCaller" | "ofReplica"> => {
  const { membership, replica } = state
  return {
    forNew: Effect.fnUntraced(function*(movable) {
      if (state.isEnding || !hasJoined(state)) {
        const others = membership.others()
        const other = others[yield* Random.nextIntBetween(0, others.length - 1)]
        if (other !== undefined) return { place: { _tag: "Replica", replica: other } }
      }
      if (!movable) return { place: here, id: `${replica}-${randomUUID()}` }
      const id = ownId(state.sharding)
      return { place: { _tag: "Shared", id }, id }
    }),
    ofSession: (id) => {
      const dash = id.indexOf("-")
      const name = id.slice(0, dash)
      if (ReplicaName.isName(name) && isSessionId(id.slice(dash + 1))) {
        if (name !== replica) return Option.some({ _tag: "Replica", replica: name })
        // If the others have given this replica up, they have told clients that its pinned sessions are gone.
        return membership.isGivenUp() ? Option.none() : Option.some(here)
      }
      return isSessionId(id) ? Option.some({ _tag: "Shared", id }) : Option.none()
    },
    ofCaller: (id) => ({ _tag: "Shared", id }),
    ofReplica: (name) => name === replica || !ReplicaName.isName(name) ? here : { _tag: "Replica", replica: name }
  }
}

/** An id whose shard is here, if this replica has a shard. Then opening the session needs no other replica, which may be down. */
const ownId = (sharding: Sharding.Sharding["Service"]): string => {
  let id = randomUUID()
  const isHere = () => sharding.hasShardId(sharding.getShardId(EntityId.make(id), shardGroup))
  for (let i = 0; i < draws && !isHere(); i++) id = randomUUID()
  return id
}

const hasJoined = ({ joinSettling, membership }: State): boolean => {
  const { joinedAt } = membership.known
  return joinedAt !== undefined && !membership.isGivenUp() && membership.now() >= joinedAt + joinSettling
}

/** Has an ask carried out by the replica with this name, if that replica runs. */
const atReplica = (state: State, name: string, carried: Carried): Carrying =>
  untilFound(state, carried.ask, reachTimeout, () =>
    Effect.flatMap(state.membership.isThere(name), (isThere) => {
      if (isThere === undefined) return unavailable(carried.ask, unknownWhere)
      return isThere ? Forwarding.forward(state.links, name, carried) : Effect.fail(goneRefusal(carried.ask))
    }))

/** Has an ask carried out by the replica that has a shared id. Runs `here` if that is this replica. */
const atHome = (state: State, id: string, carried: Carried, here: Carrying): Carrying => {
  const { homes, links, options: { hosting, movingTimeout }, replica } = state
  /** Runs `here` if the id lives on this replica. */
  const hereOr = <E>(elsewhere: Effect.Effect<Exchange, Refusal | E, Scope.Scope>) =>
    Effect.flatMap(hosting.enter(id, carried), (entered) => entered ? here : elsewhere)
  const at = (home: string) =>
    home === replica
      ? hereOr(Effect.fail(new Protocol.Moved()))
      : Effect.tapError(Forwarding.forward(links, home, carried, id), () => homes.forget(id))
  return hereOr(
    untilFound(
      state,
      carried.ask,
      Duration.toMillis(movingTimeout),
      (timeLeft) => Effect.flatMap(homes.of(id, Math.min(timeLeft, locateTimeout)), at)
    )
  )
}

/**
 * Retries an ask while it fails with `Moved` or `Unreachable`, for up to `patience` milliseconds. Then refuses it. Refuses it earlier if
 * this replica leaves, or in a long outage of the database (`outageTimeout`).
 */
const untilFound = (
  state: State,
  ask: Ask,
  patience: number,
  attempt: (timeLeft: number) => Effect.Effect<Exchange, Refusal | Protocol.Moved | Links.Unreachable, Scope.Scope>
): Carrying =>
  Effect.suspend(() => {
    const { membership } = state
    const since = membership.now()
    const again = ({ _tag, message }: Protocol.Moved | Links.Unreachable) => {
      const outageMillis = outage(state)
      const waited = membership.now() - since
      const isLongOutage = outageMillis !== undefined && outageMillis > patience
      const isHopeless = state.leaves || isLongOutage && waited >= outageTimeout
      if (waited < patience && !isHopeless) return Effect.andThen(Effect.sleep(movingPause), once)
      if (_tag === "Unreachable") return unavailable(ask, message)
      return unavailable(ask, outageMillis === undefined ? moving : withoutDatabase(outageMillis))
    }
    const once: Carrying = Effect.suspend(() =>
      Effect.catchTags(attempt(since + patience - membership.now()), { Moved: again, Unreachable: again })
    )
    const counted = Effect.acquireRelease(Effect.sync(() => state.forwarded++), () =>
      Effect.sync(() => state.forwarded--))
    return Effect.andThen(counted, once)
  })

/** How long the database has not answered, in milliseconds, if this replica has stopped serving movable sessions because of it. */
const outage = ({ membership }: State): number | undefined => {
  const { lostAt } = membership.known
  return lostAt === undefined || membership.safeFor() > 0 ? undefined : membership.now() - lostAt
}

/** The sessions of the other replicas, for the operators. */
const othersOf = ({ links, membership }: State): Pick<Placement, "sessionsElsewhere" | "endElsewhere"> => {
  /** What a replica answers, or `otherwise` if it does not answer in time. */
  const asked = <A>(
    name: string,
    ask: (client: Links.Client) => Effect.Effect<A, unknown>,
    timeout: Duration.Input,
    otherwise: A
  ) =>
    Effect.scoped(Effect.flatMap(links.to(name), ask)).pipe(
      Effect.timeout(timeout),
      Effect.catchCause(() => Effect.succeed(otherwise))
    )
  const sessionsOf = (name: string) =>
    asked(name, (client) => Effect.flatMap(client.Sessions(), Schema.decodeEffect(Listed)), listTimeout, [])
  return {
    sessionsElsewhere: Effect.suspend(() =>
      Effect.map(Effect.forEach(membership.others(), sessionsOf, { concurrency: "unbounded" }), (lists) => lists.flat())
    ),
    endElsewhere: (name, number) => asked(name, (client) => client.EndNumber({ number }), endTimeout, false)
  }
}

/** The answer to `Sessions`. */
const Listed = Schema.fromJsonString(Schema.Array(Schema.Record(Schema.String, Schema.Unknown)))

/** The end of this replica. */
const ending = (state: State): Pick<Placement, "announceEnd" | "leave"> => {
  const { disengage, hosting, leaveDelay } = state.options
  return {
    announceEnd: Effect.suspend(() => {
      if (state.isEnding) return Effect.void
      state.isEnding = true
      return Effect.andThen(Effect.sleep(leaveDelay), hosting.stopServing)
    }),
    leave: Effect.suspend(() => {
      if (state.leaves) return Effect.void
      state.leaves = true
      return Effect.andThen(hosting.handOver(leaveTimeout), disengage)
    })
  }
}

const statusOf = (state: State): Status => {
  const { isEnding, membership, replica } = state
  const { isReplaced, lostAt } = membership.known
  const safeFor = Math.max(0, membership.safeFor())
  const stateNow = () => {
    if (isEnding) return "draining"
    if (isReplaced) return "address taken"
    if (!hasJoined(state)) return "joining"
    return safeFor > 0 ? "ready" : "database unreachable"
  }
  const lost = lostAt === undefined ? { database: "ok" as const } : {
    database: "unreachable" as const,
    unreachableSeconds: Math.round((membership.now() - lostAt) / 1000),
    safeForSeconds: Math.round(safeFor / 1000)
  }
  return { state: stateNow(), replica, ...lost, others: membership.others() }
}

/** Ends the pinned sessions once the others have given this replica up, because they have told its clients that the sessions are gone. */
const endWhenGivenUp = (membership: Membership.Knowledge, host: Host) =>
  Effect.forever(Effect.gen(function*() {
    yield* Effect.sleep(givenUpInterval)
    if (!membership.isGivenUp()) return
    yield* Effect.logWarning(
      "This replica stood still for so long that the other replicas took over its shards; its sessions end"
    )
    yield* Effect.timeoutOption(host.endPinned, endTimeout)
    yield* membership.beginAnew
  }))

const unavailable = (ask: Ask, message: string) => Effect.fail(Forwarding.refusalOf(ask, "unavailable", message))

/** The refusal of an ask whose replica no longer runs. */
const goneRefusal = (ask: Ask): Refusal => {
  switch (ask._tag) {
    case "Open":
      return Forwarding.refusalOf(ask, "unavailable", goneUnopened)
    case "Call":
      return refusal("invalid", goneParked, { id: ask.request.id, code: JsonRpc.codes.invalidParams })
    default:
      return unknownSession(idOf(ask))
  }
}
