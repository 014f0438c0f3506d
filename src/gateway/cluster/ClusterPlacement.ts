/**
 * Sessions spread over replicas, on the engine of `effect/cluster`.
 *
 * - Pinned sessions stay with the replica that opened them: their ids begin with the name of that replica.
 * - What is movable belongs to whichever replica owns the shard of its shared id. When the shard moves, a session sleeps and a lane
 *   ends first, so that two replicas never have the same.
 *
 * The first request of the second kind makes the engine's entity (`Homes`), which keeps the shard where it is while something lives
 * there; the others go straight to it.
 */
import type { Scope } from "effect"
import { Duration, Effect, Option, Random, Ref, Schema } from "effect"
import { EntityId, ShardId, Sharding, ShardingConfig } from "effect/cluster"
import type { HttpServerResponse } from "effect/http"
import { randomUUID } from "node:crypto"
import type { Refusal } from "../http/Refusals.ts"
import { refuse, retryLater, unknownSession } from "../http/Refusals.ts"
import * as Modern from "../modern/Modern.ts"
import type { Asked, Carried, Host, Placement, Status } from "../sessions/Placement.ts"
import { here, isSessionId, onlyListens } from "../sessions/Placement.ts"
import * as Forwarding from "./Forwarding.ts"
import * as Homes from "./Homes.ts"
import type * as Hosting from "./Hosting.ts"
import * as Links from "./Links.ts"
import * as Membership from "./Membership.ts"
import * as Protocol from "./Protocol.ts"
import * as ReplicaName from "./ReplicaName.ts"

type Response = HttpServerResponse.HttpServerResponse

export interface Options {
  /** How long balancers get to notice that a replica is about to end. */
  readonly leaveDelay: Duration.Duration
  /** How long a request waits for what is moving. */
  readonly movingTimeout: Duration.Duration
  /** Ends this replica's part in the engine, which hands its shards over. */
  readonly disengage: Effect.Effect<void>
  readonly hosting: Hosting.Hosting
  readonly pass: string
}

/** The engine's group of shards, which it has by default. */
const shardGroup = "default"
/** How many ids are drawn for one of a shard that is here; a replica that has few shards, or none, takes the last. */
const draws = 1000
/** How long a replica may take to list its sessions, and to end one. */
const listTimeout = "2 seconds"
const endTimeout = "10 seconds"
/** How long a replica that cannot be reached is tried: of one that leaves all know after some seconds. */
const reachTimeout = 8000
/** How often it is looked whether this replica was given up. */
const givenUpInterval = "250 millis"
/** How long what moves is left alone before it is asked for again. */
const movingPause = "100 millis"
/** How long the last requests for what is movable may take when a replica leaves. */
const leaveTimeout = "5 seconds"
/** How long the engine may be asked at once where something is. */
const locateTimeout = 1000
/** How long a request waits when the database has been away for longer than any request waits for what moves. */
const outageTimeout = 3000

const unknownWhere = "Whether this session is still there cannot be told now: the database does not answer"
const goneUnopened = "The replica that was to open the session has gone; try again"
const goneParked = "Invalid params: requestState is not valid here: the replica that parked its call has gone"
const moving = "The session is moving to another replica"
/** Told of what is movable, with for how long the database has been away. */
const withoutDatabase = (millis: number): string =>
  "This session cannot be served just now: the replicas' database has not answered for " +
  `${Math.round(millis / 1000)} seconds. Try again in ${retryLater["retry-after"]} seconds.`

/** One function, for the service is one: its members share the names, links and times at its head, and each is some lines. */
export const make = Effect.fnUntraced(function*(options: Options) {
  const { hosting, pass } = options
  const config = yield* ShardingConfig.ShardingConfig
  const sharding = yield* Sharding.Sharding
  const membership = yield* Membership.Membership
  const links = yield* Links.make(membership.addressOf)
  const { forward } = Forwarding.make(pass, links)
  const replica = ReplicaName.here(config)
  const homes = yield* Homes.make(replica)
  const expiration = Duration.toMillis(Duration.fromInputUnsafe(config.shardLockExpiration))
  const movingTimeout = Duration.toMillis(options.movingTimeout)
  /** When all others have heard of a replica that has joined. */
  const joinSettling = 2 * Duration.toMillis(Duration.fromInputUnsafe(config.refreshAssignmentsInterval))
  /** `ending`: the end is announced, and new sessions are opened elsewhere; `left`: what is movable has been handed over. */
  const state = { ending: false, left: false }

  const hasJoined = Effect.map(
    Ref.get(membership.known),
    ({ joinedAt }) => joinedAt !== undefined && !membership.isGivenUp() && membership.now() >= joinedAt + joinSettling
  )

  /** An id whose shard is here, if this replica has any: no other one is needed to open the session, alive or not. */
  const ownId = Effect.sync(() => {
    let id = randomUUID()
    for (let i = 0; i < draws && !sharding.hasShardId(shardOf(id)); i++) id = randomUUID()
    return id
  })
  const shardOf = (id: string) => sharding.getShardId(EntityId.make(id), shardGroup)

  /** For how many milliseconds the database has not answered, if that is why what is movable is not served. */
  const outage = Effect.map(Ref.get(membership.known), (known) => {
    const { lostAt } = known
    const now = membership.now()
    return lostAt === undefined || now < Membership.heldUntil(known, expiration) ? undefined : now - lostAt
  })

  /** Tries until what is asked for is where it was looked for, or for too long. */
  const untilFound = (
    carried: Carried,
    patience: number,
    attempt: (timeLeft: number) => Effect.Effect<Response, Refusal | Protocol.Moved | Links.Unreachable, Scope.Scope>
  ): Effect.Effect<Response, Refusal, Scope.Scope> =>
    Effect.suspend(() => {
      const since = membership.now()
      const again = ({ _tag, message }: Protocol.Moved | Links.Unreachable) =>
        Effect.flatMap(outage, (away) => {
          const waited = membership.now() - since
          const isHopeless = away !== undefined && away > patience && waited >= outageTimeout
          if (waited < patience && !isHopeless) return Effect.andThen(Effect.sleep(movingPause), once)
          const why = _tag === "Unreachable"
            ? message
            : away === undefined
            ? moving
            : withoutDatabase(away)
          return Forwarding.refuseCarried(carried, 503, why)
        })
      const once: Effect.Effect<Response, Refusal, Scope.Scope> = Effect.suspend(() =>
        Effect.catchTags(attempt(since + patience - membership.now()), { Moved: again, Unreachable: again })
      )
      return once
    })

  /** At the replica of a name, if that is there. */
  const atReplica = (name: string, asked: Asked) =>
    untilFound(asked.carried, reachTimeout, () =>
      Effect.flatMap(membership.isThere(name), (isThere) =>
        isThere === true
          ? forward(name, asked)
          : isThere === false
          ? refuseGone(asked.carried)
          : Forwarding.refuseCarried(asked.carried, 503, unknownWhere)))

  /** Wherever a shared id is. */
  const atHome = (id: string, request: Asked, here: Effect.Effect<Response, Refusal, Scope.Scope>) => {
    const entering = { onlyListens: onlyListens(request.carried) }
    const hereOr = <E>(elsewhere: Effect.Effect<Response, E, Scope.Scope>) =>
      Effect.flatMap(
        hosting.enter(id, entering),
        (entered): Effect.Effect<Response, Refusal | E, Scope.Scope> => entered ? here : elsewhere
      )
    const at = (home: string) =>
      home === replica
        ? hereOr(Effect.fail(new Protocol.Moved()))
        : Effect.tapError(forward(home, request, id), () => homes.forget(id))
    return hereOr(untilFound(request.carried, movingTimeout, (timeLeft) =>
      Effect.flatMap(
        homes.of(id, Math.min(timeLeft, locateTimeout)),
        Option.match({ onNone: () => Forwarding.refuseCarried(request.carried, 503, moving), onSome: at })
      )))
  }

  yield* membership.keepWhile(hosting.isOccupied)
  yield* Effect.forkScoped(tellOfShards(sharding, config.shardsPerGroup))

  const placement: Placement = {
    replica,
    forNew: Effect.fnUntraced(function*(movable) {
      if (state.ending || !(yield* hasJoined)) {
        const others = yield* membership.others
        if (others.length > 0) {
          const other = others[yield* Random.nextIntBetween(0, others.length - 1)]
          if (other !== undefined) return { place: { _tag: "Replica", replica: other } }
        }
      }
      if (!movable) return { place: here, id: `${replica}-${randomUUID()}` }
      const id = yield* ownId
      return { place: { _tag: "Shared", id }, id }
    }),
    ofSession: (id) => {
      const dash = id.indexOf("-")
      const name = id.slice(0, dash)
      if (ReplicaName.isName(name) && isSessionId(id.slice(dash + 1))) {
        // Of one that was given up, the clients have heard that it is gone.
        return name !== replica
          ? Option.some({ _tag: "Replica", replica: name })
          : membership.isGivenUp()
          ? Option.none()
          : Option.some(here)
      }
      return isSessionId(id) ? Option.some({ _tag: "Shared", id }) : Option.none()
    },
    ofCaller: (id) => ({ _tag: "Shared", id }),
    ofReplica: (name) => name === replica || !ReplicaName.isName(name) ? here : { _tag: "Replica", replica: name },
    at: (place, asked, here) => {
      if (place._tag === "Shared") return Effect.suspend(() => atHome(place.id, asked(), here))
      return place._tag === "Here" || place.replica === replica
        ? here
        : Effect.suspend(() => atReplica(place.replica, asked()))
    },
    occupy: hosting.occupy,
    mayOccupy: hosting.mayOccupy,
    serve: (host) =>
      Effect.andThen(
        Effect.provideService(hosting.serve(host), Sharding.Sharding, sharding),
        Effect.asVoid(Effect.forkScoped(endWhenGivenUp(membership, host)))
      ),
    sessionsElsewhere: Effect.flatMap(membership.others, (others) =>
      Effect.map(
        Effect.forEach(others, (name) =>
          Effect.scoped(Effect.flatMap(links.to(name), (client) =>
            client.Sessions({ pass }))).pipe(
              Effect.timeout(listTimeout),
              Effect.flatMap(Schema.decodeEffect(Listed)),
              // One that does not answer is left out.
              Effect.catchCause(() => Effect.succeed([]))
            ), { concurrency: "unbounded" }),
        (lists) =>
          lists.flat()
      )),
    endElsewhere: (name, number) =>
      Effect.scoped(Effect.flatMap(links.to(name), (client) => client.EndNumber({ pass, number }))).pipe(
        Effect.timeout(endTimeout),
        Effect.catchCause(() => Effect.succeed(false))
      ),
    announceEnd: Effect.suspend(() => {
      if (state.ending) return Effect.void
      state.ending = true
      return Effect.andThen(
        Effect.sleep(options.leaveDelay),
        hosting.stopServing
      )
    }),
    leave: Effect.suspend(() => {
      if (state.left) return Effect.void
      // Those that were let in before have their session now, or are waited for here.
      return Effect.timeoutOption(hosting.served, leaveTimeout).pipe(
        Effect.andThen(hosting.handOver),
        Effect.andThen(options.disengage),
        Effect.andThen(Effect.sync(() => {
          state.left = true
        }))
      )
    }),
    status: Effect.gen(function*() {
      const known = yield* Ref.get(membership.known)
      const joined = yield* hasJoined
      const now = membership.now()
      const safeFor = Math.max(0, Membership.heldUntil(known, expiration) - now)
      const lost = known.lostAt === undefined ? {} : {
        unreachableSeconds: Math.round((now - known.lostAt) / 1000),
        safeForSeconds: Math.round(safeFor / 1000)
      }
      const status: Status = {
        state: state.ending
          ? "draining"
          : known.isReplaced
          ? "address taken"
          : !joined
          ? "joining"
          : safeFor > 0
          ? "ready"
          : "database unreachable",
        replica,
        database: known.lostAt === undefined ? "ok" : "unreachable",
        ...lost,
        others: yield* membership.others
      }
      return Option.some(status)
    })
  }
  return placement
})

/** Logs how many shards are here, whenever that has changed and changes no more. */
const tellOfShards = Effect.fnUntraced(function*(sharding: Sharding.Sharding["Service"], count: number) {
  const shards = Array.from({ length: count }, (_, i) => ShardId.make(shardGroup, i + 1))
  let [told, last] = [0, 0]
  return yield* Effect.forever(Effect.gen(function*() {
    yield* Effect.sleep("1 second")
    const here = shards.filter((shard) => sharding.hasShardId(shard)).length
    if (here === last && here !== told) {
      yield* Effect.logInfo(`this replica has ${here} of ${count} shards, after ${told}`)
      told = here
    }
    last = here
  }))
})

/** Ends the sessions that stay with this replica when the others have given it up: their clients have been told that they are gone. */
const endWhenGivenUp = (membership: Membership.Membership["Service"], host: Host) =>
  Effect.forever(Effect.gen(function*() {
    yield* Effect.sleep(givenUpInterval)
    if (!membership.isGivenUp()) return
    yield* Effect.logWarning("This replica has stood still for so long that the others gave it up; its sessions end")
    yield* Effect.timeoutOption(host.endPinned, endTimeout)
    yield* membership.beginAnew
  }))

/** The replica has gone that had what a request needs. */
const refuseGone = (carried: Carried) => {
  const id = Forwarding.idOf(carried)
  if (carried.headers["mcp-session-id"] !== undefined) return unknownSession(id)
  if (carried.headers["mcp-method"] === undefined) return Forwarding.refuseCarried(carried, 503, goneUnopened)
  return refuse(400, goneParked, { ...(id === undefined ? {} : { id }), code: Modern.codes.invalidParams })
}

const Listed = Schema.fromJsonString(Schema.Array(Schema.Record(Schema.String, Schema.Unknown)))
