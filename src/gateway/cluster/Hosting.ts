/**
 * The shared ids that live on this replica, and the asks that it carries out for other replicas.
 *
 * A resident is a shared id whose entity the engine runs here. Its session or lane lives here until the engine ends the entity (`vacate`).
 */
import { Cause, Clock, Deferred, Effect, Exit, Layer, Schedule, Scope, Tracer } from "effect"
import type { ShardId, Sharding } from "effect/cluster"
import { Entity } from "effect/cluster"
import * as SessionEntity from "../../SessionEntity.ts"
import type { Events } from "../conversation/Exchange.ts"
import type { Carried, Host } from "../sessions/Placement.ts"
import * as Placement from "../sessions/Placement.ts"
import * as Protocol from "./Protocol.ts"
import * as StreamedExchanges from "./StreamedExchanges.ts"

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
  readonly safeFor: () => number
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

export type Hosting = Effect.Success<ReturnType<typeof make>>

/** Makes the hosting. One function, because its parts share the residents and the host. Its result is listed at its end. */
export const make = Effect.fnUntraced(function*({ isGivenUp, replica, safeFor }: Options) {
  const scope = yield* Effect.scope
  const clock = yield* Clock.Clock
  const residents = new Map<string, Resident>()
  /** Running requests by shared id. Counts those of earlier residents too, for which `vacate` could not wait. */
  const requests = makeCounts()
  /** Those of `requests` that do more than listen. `vacate` waits for their end. */
  const calls = makeCounts()
  /** Sessions and lanes that have not ended here, by shard. Counts those too whose resident has left. */
  const occupants = makeCounts()
  const streamed = StreamedExchanges.make()
  /** Completes when this replica serves no movable session or lane any more. */
  const leaving = Deferred.makeUnsafe<void>()
  /** `undefined` before and after `serve`. */
  let host: Host | undefined
  /** The wait for the requests of movable sessions and lanes has ended, so `vacate` waits no longer. */
  let handsOver = false

  const mayServe = () => !Deferred.isDoneUnsafe(leaving) && safeFor() > 0

  const enter = (id: string, carried: Carried): Effect.Effect<boolean, never, Scope.Scope> => {
    const count = (change: number) => {
      requests.add(id, change)
      if (!Placement.onlyListens(carried)) calls.add(id, change)
    }
    return Effect.map(
      Effect.acquireRelease(
        Effect.suspend(() => {
          const resident = residents.get(id)
          if (!mayServe() || resident === undefined || resident.ending) return Effect.succeed(undefined)
          count(1)
          return Effect.as(resident.residency.hold, resident)
        }),
        (resident) => {
          if (resident === undefined) return Effect.void
          count(-1)
          return resident.residency.release
        }
      ),
      (resident) => resident !== undefined
    )
  }

  /**
   * Ends the session or lane of a shared id, after its calls have ended or when the id cannot be kept any longer. Does not wait for
   * requests that only listen: such a stream does not end by itself, and all new calls wait meanwhile.
   */
  const vacate = (id: string, resident: Resident, host: Host) =>
    Effect.suspend(() => {
      resident.ending = true
      const latest = clock.currentTimeMillisUnsafe() + finishTimeout
      // A replica that hands over does not wait: the engine would wait no longer than `shardLockInterval`.
      const isOver = Effect.sync(() =>
        calls.of(id) === 0 || handsOver || safeFor() <= safety || clock.currentTimeMillisUnsafe() >= latest
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
          Locate: () => Effect.suspend(() => mayServe() ? Effect.succeed(replica) : new Protocol.Moved())
        })
      }),
      { concurrency: "unbounded", mailboxCapacity: "unbounded", disableFatalDefects: true, maxIdleTime: emptyTimeout }
    )

  const admit: Effect.Effect<Host, Protocol.Moved> = Effect.suspend(() =>
    host === undefined ? new Protocol.Moved() : Effect.succeed(host)
  )

  /** Carries something out, and waits for its reply. */
  const carriedOut = Effect.fnUntraced(function*(
    host: Host,
    carried: Carried,
    shared: string | undefined,
    parent: typeof Protocol.Span.Type | undefined
  ) {
    const isHere = shared === undefined ? !isGivenUp() : yield* enter(shared, carried)
    if (!isHere) return yield* new Protocol.Moved()
    const replied = Effect.flatMap(
      host.carryOut(carried),
      ({ reply, session }) => Effect.map(reply, (reply) => ({ session, reply }))
    )
    return yield* traced(replied, carried, parent)
  })

  /** The events of a reply. A client that only listens gets none after this replica begins to leave, so that it listens elsewhere. */
  const eventsOf = ({ take }: Events, carried: Carried) =>
    Placement.onlyListens(carried)
      ? Effect.raceFirst(take, Effect.andThen(Deferred.await(leaving), Cause.done()))
      : take

  const handlers = Protocol.Peers.of({
    CarryOut: ({ parent, shared, ...carried }, { client }) =>
      Effect.uninterruptibleMask((restore) =>
        Effect.gen(function*() {
          const host = yield* admit
          // The scope of the exchange. It closes now if the exchange is whole, otherwise after its last event.
          const own = yield* Scope.fork(scope)
          const { reply, session } = yield* restore(carriedOut(host, carried, shared, parent)).pipe(
            Scope.provide(own),
            Effect.onError(() => Scope.close(own, Exit.void))
          )
          if (reply._tag === "Events") {
            const id = yield* streamed.keep(eventsOf(reply, carried), own, client.id)
            return { _tag: "Streamed" as const, session, id, start: reply.start }
          }
          yield* Scope.close(own, Exit.void)
          return { _tag: "Whole" as const, session, reply }
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
    serve: (served: Host): Effect.Effect<void, never, Scope.Scope | Sharding.Sharding> =>
      Effect.andThen(
        Layer.build(home(served)),
        Effect.acquireRelease(
          Effect.sync(() => (host = served)),
          () => Effect.sync(() => (host = undefined))
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
    /** From now on, no request for a movable session or lane enters, and streams to clients of other replicas that only listen end. */
    stopServing: Effect.asVoid(Deferred.succeed(leaving, undefined)),
    /** From now on, `vacate` waits for no call, because the next owner may serve the id in some seconds. */
    handOver: Effect.sync(() => (handsOver = true)),
    /** Waits until no request of a movable session or lane runs here. */
    served: Effect.asVoid(Effect.repeat(Effect.sync(requests.size), {
      until: (size) => size === 0,
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

/** Adds a span below that of the replica that asks. Not for Effect's own tracer: it exports nothing, so a span would only cost CPU. */
const traced = <A, E, R>(
  effect: Effect.Effect<A, E, R>,
  { ask, backend }: Carried,
  parent: typeof Protocol.Span.Type | undefined
) =>
  Effect.flatMap(
    Effect.tracer,
    (tracer) =>
      tracer === Tracer.nativeTracer ? effect : Effect.withSpan(effect, `forwarded ${ask._tag}`, {
        kind: "server",
        parent: parent === undefined ? undefined : Tracer.externalSpan(parent),
        attributes: { "mcp_gateway.backend": backend }
      })
  )
