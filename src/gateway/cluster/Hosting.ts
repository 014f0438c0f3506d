/**
 * The shared ids that live on this replica, and the asks that it carries out for other replicas.
 *
 * A resident is a shared id whose entity the engine runs here. Its session or lane lives here until the engine ends the entity (`vacate`).
 */
import type { Duration } from "effect"
import { Cause, Deferred, Effect, Exit, Layer, Schedule, Scope, Tracer } from "effect"
import type { ShardId, Sharding } from "effect/cluster"
import { Entity } from "effect/cluster"
import * as SessionEntity from "../../SessionEntity.ts"
import type { Events, Take } from "../conversation/Exchange.ts"
import type { Carried, Host } from "../sessions/Placement.ts"
import * as Placement from "../sessions/Placement.ts"
import type * as Membership from "./Membership.ts"
import * as Protocol from "./Protocol.ts"
import * as StreamedExchanges from "./StreamedExchanges.ts"

/** How long running calls may take when their shared id must leave, as `entityTerminationTimeout` of the engine. In milliseconds. */
const finishTimeout = 15_000
/** Waiting for calls stops this long before the lock of the shard may expire. In milliseconds. */
const safety = 500
/** How long `vacate` waits for a process to end. The lock of the shard stays until the process has ended (`releases` in `Membership`). */
const vacateTimeout = "15 seconds"
/** How long an id without a session or lane stays here. Short, because any client can ask for ids that do not exist. */
const emptyTimeout = "10 seconds"
/** How often `vacate` and `served` check whether requests have ended. */
const pollInterval = "50 millis"

/** A shared id that lives here. */
interface Resident {
  readonly shard: string
  readonly residency: SessionEntity.Residency
  /** The engine ends the entity. No further request enters. */
  ending: boolean
  /** `host.vacate` runs: the calls have ended, or cannot be waited for. */
  vacating: boolean
}

export class Hosting {
  private readonly residents = new Map<string, Resident>()
  /** Running requests by shared id. Counts those of earlier residents too, for which `vacate` could not wait. */
  private readonly requests = new Counts()
  /** Those of `requests` that do more than listen. `vacate` waits for their end. */
  private readonly calls = new Counts()
  /** Sessions and lanes that have not ended here, by shard. Counts those too whose resident has left. */
  private readonly occupants = new Counts()
  private readonly streamed = StreamedExchanges.make()
  /** Completes when this replica serves no movable session or lane any more. */
  private readonly leaving = Deferred.makeUnsafe<void>()
  /** `undefined` before and after `serve`. */
  private host: Host | undefined
  /** The wait for the requests of movable sessions and lanes has ended, so `vacate` waits no longer. */
  private handsOver = false
  private readonly replica: string
  private readonly membership: Pick<Membership.Knowledge, "isGivenUp" | "now" | "safeFor">
  private readonly scope: Scope.Scope

  /** `replica`: the name of this replica. `scope`: that of the exchanges. */
  constructor(
    replica: string,
    membership: Pick<Membership.Knowledge, "isGivenUp" | "now" | "safeFor">,
    scope: Scope.Scope
  ) {
    this.replica = replica
    this.membership = membership
    this.scope = scope
  }

  /** Carries out what other replicas ask for, for as long as the scope is open. */
  serve(host: Host): Effect.Effect<void, never, Scope.Scope | Sharding.Sharding> {
    return Effect.andThen(
      Layer.build(this.home(host)),
      Effect.acquireRelease(
        Effect.sync(() => (this.host = host)),
        () => Effect.sync(() => (this.host = undefined))
      )
    )
  }

  /** The entities of the shared ids that live here. */
  private home(host: Host) {
    const { replica, residents } = this
    const start = Effect.gen({ self: this }, function*() {
      const { entityId: id, shardId } = yield* Entity.CurrentAddress
      const residency = yield* SessionEntity.residency
      const resident: Resident = { shard: shardId.toString(), residency, ending: false, vacating: false }
      // The engine releases the lock of the shard only after this release has run.
      yield* Effect.acquireRelease(
        Effect.sync(() => residents.set(id, resident)),
        () => this.vacate(id, resident, host)
      )
      return Protocol.Home.of({
        Locate: () => Effect.suspend(() => this.mayServe() ? Effect.succeed(replica) : new Protocol.Moved())
      })
    })
    return Protocol.Home.toLayer(start, {
      concurrency: "unbounded",
      mailboxCapacity: "unbounded",
      disableFatalDefects: true,
      maxIdleTime: emptyTimeout
    })
  }

  /**
   * Ends the session or lane of a shared id, after its calls have ended or when the id cannot be kept any longer. Does not wait for
   * requests that only listen: such a stream does not end by itself, and all new calls wait meanwhile.
   */
  private vacate(id: string, resident: Resident, host: Host): Effect.Effect<void> {
    return Effect.gen({ self: this }, function*() {
      const { membership, residents } = this
      resident.ending = true
      const latest = membership.now() + finishTimeout
      // A replica that hands over does not wait: the engine would wait no longer than `shardLockInterval`.
      yield* until(() =>
        this.calls.of(id) === 0 || this.handsOver || membership.safeFor() <= safety || membership.now() >= latest
      )
      // Otherwise a newer resident has this id, so its session or lane must stay.
      if (residents.get(id) !== resident) return
      resident.vacating = true
      yield* Effect.timeoutOption(Effect.andThen(host.vacate(id), resident.residency.released), vacateTimeout)
      if (residents.get(id) === resident) residents.delete(id)
    })
  }

  private mayServe(): boolean {
    return !Deferred.isDoneUnsafe(this.leaving) && this.membership.safeFor() > 0
  }

  /** Whether a shared id lives here and may be served. If true, it may be served until the scope closes. */
  enter(id: string, carried: Carried): Effect.Effect<boolean, never, Scope.Scope> {
    const find = () => {
      const resident = this.residents.get(id)
      return this.mayServe() && resident?.ending === false ? resident : undefined
    }
    return hold(find, (_, change) => {
      this.requests.add(id, change)
      if (!Placement.onlyListens(carried)) this.calls.add(id, change)
    })
  }

  /** Counts a session or lane under a shared id, and keeps the id here for the scope. A no-op if the id is not here. */
  occupy(id: string): Effect.Effect<void, never, Scope.Scope> {
    return Effect.asVoid(hold(() => this.residents.get(id), ({ shard }, change) => this.occupants.add(shard, change)))
  }

  /** Whether a session or lane lives in a shard; without a shard, in any. */
  isOccupied(shard?: ShardId.ShardId): boolean {
    return shard === undefined ? this.occupants.size() > 0 : this.occupants.of(shard.toString()) > 0
  }

  /**
   * Whether a session or lane may start under an id. False while `vacate` ends the one before, and after that while one of its requests
   * still runs, which could open a second connection.
   */
  mayOccupy(id: string): boolean {
    const resident = this.residents.get(id)
    return resident === undefined ? this.requests.of(id) === 0 : !resident.vacating
  }

  /** From now on, no request for a movable session or lane enters, and streams to clients of other replicas that only listen end. */
  readonly stopServing = Effect.suspend(() => Effect.asVoid(Deferred.succeed(this.leaving, undefined)))

  /** Waits for the requests of movable sessions and lanes. Then `vacate` waits for none, because the next owner may serve the id soon. */
  handOver(timeout: Duration.Input): Effect.Effect<void> {
    return Effect.map(Effect.timeoutOption(until(() => this.requests.size() === 0), timeout), () => {
      this.handsOver = true
    })
  }

  /** Abandons what is kept for a connection of another replica that has broken. */
  disconnected(client: number): Effect.Effect<void> {
    return this.streamed.disconnected(client)
  }

  private readonly admit: Effect.Effect<Host, Protocol.Moved> = Effect.suspend(() =>
    this.host === undefined ? new Protocol.Moved() : Effect.succeed(this.host)
  )

  /** Carries out an ask of another replica, and waits for its reply. Fails with `Moved` if this replica must not serve the session. */
  private carryOut(host: Host, { parent, principal: id, principalName: name, shared, ...asked }: Protocol.CarryOut) {
    const carried: Carried = { ...asked, principal: { id, name } }
    const isHere = shared === undefined
      ? Effect.sync(() => !this.membership.isGivenUp())
      : this.enter(shared, carried)
    return Effect.filterOrFail(isHere, (isHere) => isHere, () => new Protocol.Moved()).pipe(
      Effect.flatMap(() => host.carryOut(carried)),
      Effect.flatMap(({ reply, session }) => Effect.map(reply, (reply) => ({ session, reply }))),
      (replied) => traced(replied, carried, parent)
    )
  }

  /** The events of a reply. A client that only listens gets none after this replica begins to leave, so that it listens elsewhere. */
  private eventsOf({ take }: Events, carried: Pick<Carried, "ask">): Take {
    return Placement.onlyListens(carried)
      ? Effect.raceFirst(take, Effect.andThen(Deferred.await(this.leaving), Cause.done()))
      : take
  }

  /** The handlers of the messages of other replicas. */
  readonly handlers = Protocol.Peers.of({
    CarryOut: (asked, { client }) =>
      Effect.uninterruptibleMask((restore) =>
        Effect.gen({ self: this }, function*() {
          const host = yield* this.admit
          // The scope of the exchange. It closes now if the exchange is whole, otherwise after its last event.
          const own = yield* Scope.fork(this.scope)
          const { reply, session } = yield* restore(this.carryOut(host, asked)).pipe(
            Scope.provide(own),
            Effect.onError(() => Scope.close(own, Exit.void))
          )
          if (reply._tag === "Events") {
            const id = yield* this.streamed.keep(this.eventsOf(reply, asked), own, client.id)
            return { _tag: "Streamed" as const, session, id, start: reply.start }
          }
          yield* Scope.close(own, Exit.void)
          return { _tag: "Whole" as const, session, reply }
        })
      ),
    Next: ({ id }) => this.streamed.next(id),
    Abandon: ({ id }) => this.streamed.abandon(id),
    Sessions: () =>
      Effect.map(Effect.flatMap(this.admit, ({ sessions }) => sessions), (sessions) => JSON.stringify(sessions)),
    EndNumber: ({ number }) => Effect.flatMap(this.admit, (host) => host.endNumber(number))
  })
}

/** Keeps a resident here for the scope, and counts its use. False if there is no resident. */
const hold = (
  find: () => Resident | undefined,
  count: (resident: Resident, change: 1 | -1) => void
): Effect.Effect<boolean, never, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(
      Effect.suspend(() => {
        const resident = find()
        if (resident === undefined) return Effect.succeed(resident)
        count(resident, 1)
        return Effect.as(resident.residency.hold, resident)
      }),
      (resident) => {
        if (resident === undefined) return Effect.void
        count(resident, -1)
        return resident.residency.release
      }
    ),
    (resident) => resident !== undefined
  )

const until = (holds: () => boolean): Effect.Effect<boolean> =>
  Effect.repeat(Effect.sync(holds), { until: (isHeld) => isHeld, schedule: Schedule.spaced(pollInterval) })

/** Counters by name. A counter at zero is removed. */
class Counts {
  private readonly counts = new Map<string, number>()

  of(id: string): number {
    return this.counts.get(id) ?? 0
  }

  size(): number {
    return this.counts.size
  }

  add(id: string, change: number): void {
    const count = this.of(id) + change
    if (count === 0) this.counts.delete(id)
    else this.counts.set(id, count)
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
