/**
 * What this replica does for the others, and for itself where it has what is movable: it carries out their requests, and keeps the
 * shared ids that live here.
 */
import { Clock, Effect, Exit, Layer, Schedule, Scope } from "effect"
import type { ShardId, Sharding } from "effect/cluster"
import { Entity } from "effect/cluster"
import type { HttpServerResponse } from "effect/http"
import * as SessionEntity from "../../SessionEntity.ts"
import type { Host } from "../sessions/Placement.ts"
import * as Placement from "../sessions/Placement.ts"
import * as Protocol from "./Protocol.ts"
import * as StreamedResponses from "./StreamedResponses.ts"

/** How long requests may go on whose shared id has to leave, as the engine's own have (`entityTerminationTimeout`). */
const finishTimeout = 15_000
/** The part of it that is not used of the time for which the shard is safely here. */
const safety = 500
/** A process that is not gone by then is left to itself; the lock of its shard stays until it is (`Membership.keepWhile`). */
const vacateTimeout = "15 seconds"
/** How long an id is kept here under which nothing lives: anybody can ask for ids that there are not. */
const emptyTimeout = "10 seconds"
/** How often it is looked whether requests are over. */
const pollInterval = "50 millis"

export interface Options {
  /** The name of this replica. */
  readonly replica: string
  /** Whether an asker knows the replicas' common secret. */
  readonly isOneOfUs: (pass: string) => boolean
  /** Whether the others have given this replica up. */
  readonly isGivenUp: () => boolean
  /** For how many milliseconds the shards are safely here. */
  readonly safeFor: Effect.Effect<number>
}

/** A shared id that lives here. */
interface Resident {
  readonly shard: string
  readonly residency: SessionEntity.Residency
  /** It has to leave: nothing new is carried out for it. */
  ending: boolean
  /** `host.vacate` runs: its calls are over, or cannot be waited for. */
  vacating: boolean
}

/** What is about to be carried out. */
interface Entering {
  readonly onlyListens: boolean
}

export type Hosting = Effect.Success<ReturnType<typeof make>>

/** One function, for its parts share the residents and the host; what it gives is listed at its end. */
export const make = Effect.fnUntraced(function*({ isGivenUp, isOneOfUs, replica, safeFor }: Options) {
  const scope = yield* Effect.scope
  const clock = yield* Clock.Clock
  const residents = new Map<string, Resident>()
  /** How many requests are carried out for a shared id, those of earlier residents included that were not waited for. */
  const requests = makeCounts()
  /** How many of them do more than listen. */
  const calls = makeCounts()
  /** How much lives in a shard: whatever has not ended here, though its id may have been given up. */
  const occupants = makeCounts()
  const streamed = StreamedResponses.make()
  /**
   * `host`: none before and after it serves; `leaving`: what is movable is not served any more; `handsOver`: it has been waited for its
   * requests; `requests`: how many these are.
   */
  const state: { host: Host | undefined; leaving: boolean; handsOver: boolean; requests: number } = {
    host: undefined,
    leaving: false,
    handsOver: false,
    requests: 0
  }

  const mayServe = Effect.map(safeFor, (millis) => !state.leaving && millis > 0)

  const enter = (id: string, { onlyListens }: Entering): Effect.Effect<boolean, never, Scope.Scope> =>
    Effect.map(
      Effect.acquireRelease(
        Effect.flatMap(mayServe, (may) => {
          const resident = residents.get(id)
          if (!may || resident === undefined || resident.ending) return Effect.succeed(undefined)
          requests.add(id, 1)
          if (!onlyListens) calls.add(id, 1)
          state.requests++
          return Effect.as(resident.residency.hold, resident)
        }),
        (resident) => {
          if (resident === undefined) return Effect.void
          requests.add(id, -1)
          if (!onlyListens) calls.add(id, -1)
          state.requests--
          return resident.residency.release
        }
      ),
      (resident) => resident !== undefined
    )

  /**
   * Ends what lives under a shared id when its calls are over, or when the id cannot be kept any longer. Who only listens is not
   * waited for: such a stream has no end of its own, and all new calls wait meanwhile.
   */
  const vacate = (id: string, resident: Resident, host: Host) =>
    Effect.suspend(() => {
      resident.ending = true
      const latest = clock.currentTimeMillisUnsafe() + finishTimeout
      const isOver = Effect.map(
        safeFor,
        // The engine waits for a replica that hands over for no longer than `shardLockInterval`.
        (millis) =>
          calls.of(id) === 0 || state.handsOver || millis <= safety || clock.currentTimeMillisUnsafe() >= latest
      )
      return Effect.repeat(isOver, { until: (over) => over, schedule: Schedule.spaced(pollInterval) })
    }).pipe(
      Effect.andThen(Effect.suspend(() => {
        // What lives there is its successor's.
        if (residents.get(id) !== resident) return Effect.void
        resident.vacating = true
        return Effect.asVoid(
          Effect.timeoutOption(Effect.andThen(host.vacate(id), resident.residency.released), vacateTimeout)
        )
      })),
      Effect.andThen(Effect.sync(() => residents.get(id) === resident && residents.delete(id)))
    )

  const home = (host: Host) =>
    Protocol.Home.toLayer(
      Effect.gen(function*() {
        const { entityId: id, shardId } = yield* Entity.CurrentAddress
        const resident: Resident = {
          shard: shardId.toString(),
          residency: yield* SessionEntity.residency,
          ending: false,
          vacating: false
        }
        // The engine gives the lock of the shard back only after it.
        yield* Effect.acquireRelease(
          Effect.sync(() => residents.set(id, resident)),
          () => vacate(id, resident, host)
        )
        return Protocol.Home.of({
          Locate: () => Effect.flatMap(mayServe, (may) => may ? Effect.succeed(replica) : new Protocol.Moved())
        })
      }),
      { concurrency: "unbounded", mailboxCapacity: "unbounded", disableFatalDefects: true, maxIdleTime: emptyTimeout }
    )

  const admit = (pass: string): Effect.Effect<Host, Protocol.Moved | Protocol.NotOneOfUs> =>
    !isOneOfUs(pass)
      ? new Protocol.NotOneOfUs()
      : state.host === undefined
      ? new Protocol.Moved()
      : Effect.succeed(state.host)

  /** A whole response is over with its request. */
  const answer = (
    response: HttpServerResponse.HttpServerResponse,
    own: Scope.Closeable,
    client: number
  ): Effect.Effect<typeof Protocol.Whole.Type | typeof Protocol.Streamed.Type> =>
    response.body._tag === "Stream"
      ? streamed.keep(response, response.body.stream, own, client)
      : Effect.as(Scope.close(own, Exit.void), whole(response))

  const handlers = Protocol.Peers.of({
    CarryOut: ({ pass, shared, ...carried }, { client }) =>
      Effect.uninterruptibleMask((restore) =>
        Effect.flatMap(Effect.andThen(admit(pass), Scope.fork(scope)), (own) => {
          const entered = shared === undefined
            ? Effect.sync(() => !isGivenUp())
            : Scope.provide(enter(shared, { onlyListens: Placement.onlyListens(carried) }), own)
          const response = Effect.flatMap(entered, (isHere) => {
            const { host } = state
            return isHere && host !== undefined
              ? restore(Scope.provide(host.carryOut(carried), own))
              : new Protocol.Moved()
          })
          return Effect.flatMap(
            Effect.onError(response, () => Scope.close(own, Exit.void)),
            (response) => answer(response, own, client.id)
          )
        })
      ),
    Next: ({ id, pass }) => isOneOfUs(pass) ? streamed.next(id) : new Protocol.NotOneOfUs(),
    Abandon: ({ id, pass }) => isOneOfUs(pass) ? streamed.abandon(id) : new Protocol.NotOneOfUs(),
    Sessions: ({ pass }) =>
      Effect.flatMap(admit(pass), (host) => Effect.map(host.sessions, (sessions) => JSON.stringify(sessions))),
    EndNumber: ({ number, pass }) => Effect.flatMap(admit(pass), (host) => host.endNumber(number))
  })

  return {
    /** Of the messages of other replicas. */
    handlers,
    /** A connection of another replica is gone. */
    disconnected: streamed.disconnected,
    /** Serves for as long as the scope is open. */
    serve: (host: Host): Effect.Effect<void, never, Scope.Scope | Sharding.Sharding> =>
      Effect.andThen(
        Layer.build(home(host)),
        Effect.acquireRelease(
          Effect.sync(() => {
            state.host = host
          }),
          () =>
            Effect.sync(() => {
              state.host = undefined
            })
        )
      ),
    /** Whether a shared id lives here and may be served, which then it may to the end of the scope. */
    enter,
    /** Keeps a shared id here, if it is here, for the scope. */
    occupy: (id: string): Effect.Effect<void, never, Scope.Scope> =>
      Effect.acquireRelease(
        Effect.suspend(() => {
          const resident = residents.get(id)
          if (resident === undefined) return Effect.succeed(undefined)
          occupants.add(resident.shard, 1)
          return Effect.as(resident.residency.hold, resident)
        }),
        (resident) => {
          if (resident === undefined) return Effect.void
          occupants.add(resident.shard, -1)
          return resident.residency.release
        }
      ),
    /** Whether anything lives in a shard, or in any. */
    isOccupied: (shard?: ShardId.ShardId): boolean =>
      shard === undefined ? occupants.size() > 0 : occupants.of(shard.toString()) > 0,
    /**
     * Not once what lives under the id is being ended, nor, after that, while a request for it goes on, which could still open a
     * connection.
     */
    mayOccupy: (id: string): boolean => {
      const resident = residents.get(id)
      return resident === undefined ? requests.of(id) === 0 : !resident.vacating
    },
    /** From now on no request for what is movable is carried out here. */
    stopServing: Effect.sync(() => {
      state.leaving = true
    }),
    /** From now on what is movable is ended here at once, whatever still runs: its next owner may have it in some seconds. */
    handOver: Effect.sync(() => {
      state.handsOver = true
    }),
    /** Waits until no request for what is movable runs here. */
    served: Effect.asVoid(Effect.repeat(Effect.sync(() => state.requests), {
      until: (count) => count === 0,
      schedule: Schedule.spaced(pollInterval)
    }))
  }
})

/** Counts by name. */
const makeCounts = () => {
  const counts = new Map<string, number>()
  const of = (id: string) => counts.get(id) ?? 0
  return {
    of,
    size: () => counts.size,
    add: (id: string, change: number) => {
      const count = of(id) + change
      if (count === 0) counts.delete(id)
      else counts.set(id, count)
    }
  }
}

const whole = ({ body, headers, status }: HttpServerResponse.HttpServerResponse): typeof Protocol.Whole.Type => ({
  _tag: "Whole",
  status,
  headers: { ...headers },
  body: body._tag === "Uint8Array" ? body.body : new Uint8Array()
})
