/**
 * The shared ids that live on this replica, and the requests that it carries out for other replicas.
 *
 * A resident is a shared id whose entity the engine runs here. Its session or lane lives here until the engine ends the entity (`vacate`).
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

/** How long running calls may take when their shared id must leave, as `entityTerminationTimeout` of the engine. In milliseconds. */
const finishTimeout = 15_000
/** Waiting for calls stops this long before the lock of the shard may expire. In milliseconds. */
const safety = 500
/** How long `vacate` waits for a process to end. The lock of the shard stays until the process has ended (`Membership.keepWhile`). */
const vacateTimeout = "15 seconds"
/** How long an id without a session or lane stays here. Short, because any client can ask for ids that do not exist. */
const emptyTimeout = "10 seconds"
/** How often `vacate` and `served` check whether requests have ended. */
const pollInterval = "50 millis"

export interface Options {
  /** The name of this replica. */
  readonly replica: string
  /** Whether the others have given this replica up, see `Membership`. */
  readonly isGivenUp: () => boolean
  /** For how many milliseconds this replica still holds its locks for certain. */
  readonly safeFor: Effect.Effect<number>
}

/** A shared id that lives here. */
interface Resident {
  readonly shard: string
  readonly residency: SessionEntity.Residency
  /** The engine ends the entity. No further request enters. */
  ending: boolean
  /** `host.vacate` runs: the calls have ended, or cannot be waited for. */
  vacating: boolean
}

/** The request that enters. */
interface Entering {
  /** It only listens to a stream, so `vacate` does not wait for its end. */
  readonly onlyListens: boolean
}

export type Hosting = Effect.Success<ReturnType<typeof make>>

/** Makes the hosting. One function, because its parts share the residents and the host. Its result is listed at its end. */
export const make = Effect.fnUntraced(function*({ isGivenUp, replica, safeFor }: Options) {
  const scope = yield* Effect.scope
  const clock = yield* Clock.Clock
  const residents = new Map<string, Resident>()
  /** Running requests by shared id. Counts those of earlier residents too, for which `vacate` could not wait. */
  const requests = makeCounts()
  /** Those of `requests` that do more than listen. */
  const calls = makeCounts()
  /** Sessions and lanes that have not ended here, by shard. Counts those too whose resident has left. */
  const occupants = makeCounts()
  const streamed = StreamedResponses.make()
  /**
   * - `host`: carries out requests; `undefined` before and after `serve`.
   * - `leaving`: this replica serves no movable session or lane any more.
   * - `handsOver`: the wait for their requests has ended, so `vacate` waits no longer.
   * - `requests`: how many requests of movable sessions and lanes run.
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
   * Ends the session or lane of a shared id, after its calls have ended or when the id cannot be kept any longer. Does not wait for
   * requests that only listen: such a stream does not end by itself, and all new calls wait meanwhile.
   */
  const vacate = (id: string, resident: Resident, host: Host) =>
    Effect.suspend(() => {
      resident.ending = true
      const latest = clock.currentTimeMillisUnsafe() + finishTimeout
      const isOver = Effect.map(
        safeFor,
        // A replica that hands over does not wait: the engine would wait no longer than `shardLockInterval`.
        (millis) =>
          calls.of(id) === 0 || state.handsOver || millis <= safety || clock.currentTimeMillisUnsafe() >= latest
      )
      return Effect.repeat(isOver, { until: (over) => over, schedule: Schedule.spaced(pollInterval) })
    }).pipe(
      Effect.andThen(Effect.suspend(() => {
        // A newer resident has this id, so its session or lane must stay.
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
        // The engine releases the lock of the shard only after this release has run.
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

  const admit: Effect.Effect<Host, Protocol.Moved> = Effect.suspend(() =>
    state.host === undefined ? new Protocol.Moved() : Effect.succeed(state.host)
  )

  /** Answers with a response. A whole response closes the request's scope now, a streamed one at its end. */
  const answer = (
    response: HttpServerResponse.HttpServerResponse,
    own: Scope.Closeable,
    client: number
  ): Effect.Effect<typeof Protocol.Whole.Type | typeof Protocol.Streamed.Type> =>
    response.body._tag === "Stream"
      ? streamed.keep(response, response.body.stream, own, client)
      : Effect.as(Scope.close(own, Exit.void), whole(response))

  const handlers = Protocol.Peers.of({
    CarryOut: ({ shared, ...carried }, { client }) =>
      Effect.uninterruptibleMask((restore) =>
        Effect.flatMap(Effect.andThen(admit, Scope.fork(scope)), (own) => {
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
    Next: ({ id }) => streamed.next(id),
    Abandon: ({ id }) => streamed.abandon(id),
    Sessions: () => Effect.flatMap(admit, (host) => Effect.map(host.sessions, (sessions) => JSON.stringify(sessions))),
    EndNumber: ({ number }) => Effect.flatMap(admit, (host) => host.endNumber(number))
  })

  return {
    /** The handlers of the messages of other replicas. */
    handlers,
    /** Call it when a connection of another replica has broken. */
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
    /** Whether a shared id lives here and may be served. If true, it may be served until the scope closes. */
    enter,
    /** Counts a session or lane under a shared id, and keeps the id here for the scope. A no-op if the id is not here. */
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
    /** Whether a session or lane lives in a shard; without a shard, in any. */
    isOccupied: (shard?: ShardId.ShardId): boolean =>
      shard === undefined ? occupants.size() > 0 : occupants.of(shard.toString()) > 0,
    /**
     * Whether a session or lane may start under an id. False while `vacate` ends the one before, and after that while one of its requests
     * still runs, which could open a second connection.
     */
    mayOccupy: (id: string): boolean => {
      const resident = residents.get(id)
      return resident === undefined ? requests.of(id) === 0 : !resident.vacating
    },
    /** From now on, no request for a movable session or lane enters. */
    stopServing: Effect.sync(() => {
      state.leaving = true
    }),
    /** From now on, `vacate` waits for no call, because the next owner may serve the id in some seconds. */
    handOver: Effect.sync(() => {
      state.handsOver = true
    }),
    /** Waits until no request of a movable session or lane runs here. */
    served: Effect.asVoid(Effect.repeat(Effect.sync(() => state.requests), {
      until: (count) => count === 0,
      schedule: Schedule.spaced(pollInterval)
    }))
  }
})

/** Counters by name. A counter at zero is removed. */
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
