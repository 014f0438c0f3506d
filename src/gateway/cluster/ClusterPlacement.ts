/**
 * Sessions spread over replicas, on the engine of `effect/cluster`.
 *
 * - A session that lives in a process, or in a connection to another server, stays with the replica that opened it: its id begins
 *   with the name of that replica, whose shard group nobody else has.
 * - A session that can sleep, and the lanes of a modern caller, belong to whichever replica owns the shard of their id. When the
 *   shard moves, they sleep or end first, so that two replicas never have the same.
 *
 * Each request of the second kind goes through the engine's entity, on its own replica too: that is what keeps the shard here.
 */
import { Clock, Duration, Effect, Layer, Option, Random, Ref, Schedule, Schema } from "effect"
import { EntityId, Sharding, ShardingConfig } from "effect/cluster"
import { hkdfSync, randomUUID, timingSafeEqual } from "node:crypto"
import type * as Residency from "../../internal/residency.ts"
import { unknownSession } from "../http/Refusals.ts"
import type { Host, Placement, Status } from "../sessions/Placement.ts"
import { here, isSessionId } from "../sessions/Placement.ts"
import * as Asking from "./Asking.ts"
import * as Hosting from "./Hosting.ts"
import * as Membership from "./Membership.ts"
import * as Protocol from "./Protocol.ts"
import * as ReplicaName from "./ReplicaName.ts"

export interface Options {
  /** The secret that all replicas share. */
  readonly stateKey: string
  /** How long balancers get to notice that a replica is about to end. */
  readonly leaveDelay: Duration.Duration
  /** How long a request waits for what is moving. */
  readonly movingTimeout: Duration.Duration
  /** Ends this replica's part in the engine, which hands its shards over. */
  readonly disengage: Effect.Effect<void>
}

/** How many ids are drawn for one of a shard that is here; a replica that has few shards, or none, takes the last. */
const draws = 1000
/** How long a replica may take to list its sessions. */
const listTimeout = "2 seconds"

const unknownWhere = "Whether this session is still there cannot be told now: the database does not answer"

export const make = Effect.fnUntraced(function*(options: Options) {
  const config = yield* ShardingConfig.ShardingConfig
  const sharding = yield* Sharding.Sharding
  const membership = yield* Membership.Membership
  const client = yield* Protocol.Gateway.client
  const clock = yield* Clock.Clock
  const pass = passOf(options.stateKey)
  const asking = yield* Asking.make({ pass, patience: options.movingTimeout })
  const replica = ReplicaName.here(config)
  /** When all others have heard of a replica that has joined. */
  const settling = 2 * Duration.toMillis(Duration.fromInputUnsafe(config.refreshAssignmentsInterval))
  /** The requests that are carried out here for what can move. */
  const hosted = { count: 0 }
  const residents = new Map<string, Residency.Residency>()
  /** `ending`: takes nothing new; `leaving`: what can move goes; `left`: all of it has gone. */
  const state = { ending: false, leaving: false, left: false }

  const hasJoined = Effect.map(
    Ref.get(membership.known),
    ({ joinedAt }) => joinedAt !== undefined && clock.currentTimeMillisUnsafe() >= joinedAt + settling
  )

  const mayServe = Effect.suspend(() => state.leaving ? Effect.succeed(false) : membership.mayAct)

  /** An id whose shard is here, if this replica has any: no other one is needed to open the session, alive or not. */
  const ownId = Effect.sync(() => {
    let id = randomUUID()
    for (let i = 0; i < draws && !sharding.hasShardId(shardOf(id)); i++) id = randomUUID()
    return id
  })
  const shardOf = (id: string) => sharding.getShardId(EntityId.make(id), ReplicaName.sharedGroup)

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
        return Option.some(name === replica ? here : { _tag: "Replica", replica: name })
      }
      return isSessionId(id) ? Option.some({ _tag: "Shared", id }) : Option.none()
    },
    ofCaller: (id) => ({ _tag: "Shared", id }),
    ofReplica: (name) => name === replica || !ReplicaName.isName(name) ? here : { _tag: "Replica", replica: name },
    carryOut: (place, asked, here) => {
      if (place._tag === "Here" || (place._tag === "Replica" && place.replica === replica)) return here
      const request = asked()
      if (place._tag === "Shared") return asking.ask(place.id, request, Effect.void)
      const check = Effect.flatMap(membership.isThere(place.replica), (isThere) =>
        isThere === true
          ? Effect.void
          : isThere === false
          ? unknownSession(Asking.idOf(request.carried))
          : asking.refuse(request.carried, unknownWhere))
      return Effect.andThen(check, asking.ask(place.replica, request, check))
    },
    occupy: (id) =>
      Effect.acquireRelease(
        Effect.suspend(() => {
          const residency = residents.get(id)
          return residency === undefined ? Effect.succeed(undefined) : Effect.as(residency.hold, residency)
        }),
        (residency) => residency === undefined ? Effect.void : residency.release
      ),
    serve: (host: Host) =>
      Effect.asVoid(Layer.build(Hosting.layer({ host, isOneOfUs: isSame(pass), mayServe, residents, hosted }))).pipe(
        Effect.provideService(Sharding.Sharding, sharding)
      ),
    sessionsElsewhere: Effect.flatMap(membership.others, (others) =>
      Effect.map(
        Effect.forEach(others, (name) =>
          client(name).Sessions({ pass }).pipe(
            Effect.timeout(listTimeout),
            Effect.flatMap(Schema.decodeEffect(Listed)),
            // One that does not answer is left out.
            Effect.catchCause(() => Effect.succeed([]))
          ), { concurrency: "unbounded" }),
        (lists) => lists.flat()
      )),
    endElsewhere: (name, number) =>
      Effect.flatMap(membership.others, (others) =>
        others.includes(name)
          ? client(name).EndNumber({ pass, number }).pipe(
            Effect.timeout("10 seconds"),
            Effect.catchCause(() => Effect.succeed(false))
          )
          : Effect.succeed(false)),
    announceEnd: Effect.suspend(() => {
      if (state.ending) return Effect.void
      state.ending = true
      return Effect.andThen(
        Effect.sleep(options.leaveDelay),
        Effect.sync(() => {
          state.leaving = true
        })
      )
    }),
    leave: Effect.suspend(() => {
      if (state.left) return Effect.void
      // Those that were let in before have their session now, or are waited for here.
      const hostedOver = Effect.repeat(Effect.sync(() => hosted.count), {
        until: (count) => count === 0,
        schedule: Schedule.spaced("50 millis")
      })
      return Effect.timeoutOption(hostedOver, "5 seconds").pipe(
        Effect.andThen(options.disengage),
        Effect.andThen(Effect.sync(() => {
          state.left = true
        }))
      )
    }),
    status: Effect.gen(function*() {
      const known = yield* Ref.get(membership.known)
      const joined = yield* hasJoined
      const now = clock.currentTimeMillisUnsafe()
      const expiration = Duration.toMillis(Duration.fromInputUnsafe(config.shardLockExpiration))
      const safeFor = Math.max(0, Membership.heldUntil(known, expiration) - now)
      const lost = known.lostAt === undefined ? {} : {
        unreachableSeconds: Math.round((now - known.lostAt) / 1000),
        safeForSeconds: Math.round(safeFor / 1000)
      }
      const status: Status = {
        state: state.ending ? "draining" : !joined ? "joining" : safeFor > 0 ? "ready" : "database unreachable",
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

const Listed = Schema.fromJsonString(Schema.Array(Schema.Record(Schema.String, Schema.Unknown)))

/** What replicas show each other: derived from the key that they share (HKDF, RFC 5869). */
const passOf = (stateKey: string): string =>
  Buffer.from(hkdfSync("sha256", stateKey, "", "effect-session-pool replicas", 32)).toString("hex")

const isSame = (pass: string) => (given: string): boolean =>
  given.length === pass.length && timingSafeEqual(Buffer.from(given), Buffer.from(pass))
