/**
 * The list of replicas, and until when this replica may act as the owner of its shards.
 *
 * Wraps the engine's storage of runners and locks in PostgreSQL, with three changes:
 *
 * - While the database cannot be reached, a lock counts as held until just before another replica may take it. The engine alone would
 *   release all shards at the first failure.
 * - A lock is released only after every session and lane of its shard has ended. The engine alone would wait for a limited time only. There
 *   is one exception: if the engine counts all its locks as lost, it releases them at once, because it must do so before it can take them
 *   again.
 * - After an outage of the database, the replicas of the last list stay listed until each has had time to report again.
 */
import type { Cause } from "effect"
import { Clock, Context, Deferred, Duration, Effect, Exit, Layer, Schedule } from "effect"
import type { Runner, RunnerAddress, ShardId } from "effect/cluster"
import { RunnerStorage, ShardingConfig, SqlRunnerStorage } from "effect/cluster"
import * as Patience from "./Patience.ts"
import * as ReplicaName from "./ReplicaName.ts"

/** A replica in the engine's list. */
export type Listed = readonly [runner: Runner.Runner, healthy: boolean]

/** What a replica knows about its locks and about the other replicas. All times are from `steady`, in milliseconds. */
export interface Known {
  /** When the last refresh that confirmed all locks was sent. `undefined`: this replica holds no lock. */
  readonly confirmedAt: number | undefined
  /** When the database stopped answering. `undefined` while it answers. */
  readonly lostAt: number | undefined
  /** When the last outage of the database ended. */
  readonly backAt: number | undefined
  /** When the replicas were last listed. */
  readonly listedAt: number | undefined
  /** When this replica was first in the list. */
  readonly joinedAt: number | undefined
  /** The last list of replicas, by their names. */
  readonly replicas: ReadonlyMap<string, Listed>
  /** True once another replica has taken this replica's address, and with it its locks. */
  readonly isReplaced: boolean
  /** When a statement to the database last ended, with success or not. */
  readonly triedAt: number | undefined
  /**
   * True once the others have given this replica up: it stood still until its locks expired, so they took over its shards and told clients
   * that its pinned sessions are gone. False again after `beginAnew`.
   */
  readonly isGivenUp: boolean
}

/** The part of the expiration for which a lock does not count as held any more. Allows for clocks that run at different speeds. */
const margin = 0.1

export const nothingKnown: Known = {
  confirmedAt: undefined,
  lostAt: undefined,
  backAt: undefined,
  listedAt: undefined,
  joinedAt: undefined,
  replicas: new Map(),
  isReplaced: false,
  triedAt: undefined,
  isGivenUp: false
}

/**
 * Whether this replica stood still, for example frozen, until its locks expired and the others gave it up.
 *
 * An outage of the database is not a standstill: a replica then still sends a statement at least every 0.43 of the lock expiration. A
 * replica that was frozen until its locks expired has sent none for at least 2/3 of the expiration. The limit of 0.6 lies between the two.
 */
const hasStoodStill = ({ confirmedAt, isGivenUp, triedAt }: Known, now: number, expiration: number): boolean =>
  isGivenUp || (
    confirmedAt !== undefined && now > confirmedAt + expiration &&
    triedAt !== undefined && now > triedAt + 0.6 * expiration
  )

/** Notes that a statement to the database ended, with an answer or without one. */
export const ended = (now: number, expiration: number, isAnswered: boolean) => (known: Known): Known => ({
  ...known,
  triedAt: now,
  isGivenUp: hasStoodStill(known, now, expiration),
  lostAt: isAnswered ? undefined : known.lostAt ?? now,
  backAt: isAnswered && known.lostAt !== undefined ? now : known.backAt
})

/**
 * The part of the lock expiration that a replica has to report again after an outage. A replica reports 3.5 times per expiration, so this
 * leaves room for two reports: the first may fail on a new connection. A replica that stops in this time stays listed until its end.
 */
const outageSettling = 2 / 3

/** Notes the newest list of replicas. After an outage, adds those of the previous list, until `outageSettling` has passed. */
export const listed =
  (runners: ReadonlyArray<Listed>, now: number, expiration: number, self: string) => (known: Known): Known => {
    const isSettling = known.backAt !== undefined && now < known.backAt + expiration * outageSettling
    const present = runners.map((listed): [string, Listed] => [ReplicaName.of(listed[0].address), listed])
    const replicas = new Map([...isSettling ? known.replicas : [], ...present])
    const joinedAt = known.joinedAt ?? (replicas.has(self) ? now : undefined)
    return { ...known, replicas, listedAt: now, joinedAt }
  }

/** How long a replica that leaves waits for one release: for the database, and for the sessions and lanes of the shard. */
const leavePatience = "3 seconds"
/** How often a release checks whether the sessions and lanes of its shard have ended. */
const occupiedInterval = "50 millis"
/**
 * How long a release waits for the sessions and lanes of its shard. Longer than a process may take to start and to end. A process that
 * SIGKILL does not end serves no client, so after this time another replica may have the shard.
 */
const occupiedTimeout = "5 minutes"

/** `isThere` trusts a list of replicas up to this age, in milliseconds. It does not list again for a name that such a list lacks. */
const freshness = 500

/** The prefix of all table names. */
export const prefix = "effect_session_pool"

export class Membership extends Context.Service<Membership, Knowledge>()(
  "effect-session-pool/gateway/cluster/Membership"
) {}

/**
 * A clock in milliseconds that never goes back, but jumps forward with the time of day.
 *
 * If it followed a time of day that is set back, a lock would count as held for too long. If it did not jump forward, it would miss the
 * time for which the machine was asleep.
 */
const steady = (clock: Clock.Clock) => {
  const monotonic = () => Number(clock.monotonicTimeNanosUnsafe()) / 1e6
  /** The time of day minus the monotonic time, when they were last compared. */
  let seen = clock.currentTimeMillisUnsafe() - monotonic()
  /** What the result adds to the monotonic time. Grows with each jump forward, and never shrinks. */
  let offset = seen
  return () => {
    const time = monotonic()
    const ahead = clock.currentTimeMillisUnsafe() - time - seen
    if (Math.abs(ahead) > 1000) {
      seen += ahead
      offset += Math.max(0, ahead)
    }
    return time + offset
  }
}

/** Logs the replicas that joined or left, and the start and end of an outage of the database. */
const tell = (self: string, before: Known, after: Known): Effect.Effect<void> => {
  const logs: Array<Effect.Effect<void>> = []
  const tellOf = (them: Known, others: Known, change: string) => {
    for (const [name, [{ address: { host, port } }]] of them.replicas) {
      if (name === self || others.replicas.has(name)) continue
      logs.push(Effect.logInfo(`replica ${name} at ${host}:${port} has ${change}`))
    }
  }
  tellOf(after, before, "joined")
  tellOf(before, after, "gone")
  if (before.lostAt === undefined && after.lostAt !== undefined) {
    logs.push(Effect.logWarning("the database does not answer"))
  }
  if (before.lostAt !== undefined && after.lostAt === undefined) {
    const seconds = Math.round(((after.backAt ?? 0) - before.lostAt) / 1000)
    logs.push(Effect.logInfo(`the database answers again, after ${seconds} seconds`))
  }
  return Effect.all(logs, { discard: true })
}

/** What this replica knows, and how long it may act on it. */
export class Knowledge {
  known = nothingKnown
  /** Whether sessions or lanes live in a shard, or in any. A release waits while it is true. */
  isOccupied: (shard?: ShardId.ShardId) => boolean = () => false
  /** The shards to release. `acquire` removes a shard that it takes again, so that a late release does not delete the new lock. */
  readonly releasing = new Set<string>()
  /** The time in milliseconds, from `steady`. All times in `Known` come from it. */
  readonly now: () => number
  /** How often the engine refreshes its locks (its `effectiveInterval`). */
  readonly interval: number
  private readonly self: string
  private readonly expiration: number
  private readonly storage: Storage

  constructor(config: ShardingConfig.ShardingConfig["Service"], clock: Clock.Clock, storage: Storage) {
    const millis = (duration: Duration.Input) => Duration.toMillis(Duration.fromInputUnsafe(duration))
    this.now = steady(clock)
    this.self = ReplicaName.here(config)
    this.expiration = millis(config.shardLockExpiration)
    this.interval = Math.min(millis(config.shardLockRefreshInterval), this.expiration / 3)
    this.storage = storage
  }

  /** For how many milliseconds this replica may still act as the owner of the shards that the engine counts as its own. */
  safeFor(): number {
    const { confirmedAt, isReplaced } = this.known
    if (confirmedAt === undefined || isReplaced) return -Infinity
    return confirmedAt + this.expiration * (1 - margin) - this.now()
  }

  /** Whether the others have given this replica up, see `Known`. True until `beginAnew`. */
  isGivenUp(): boolean {
    return hasStoodStill(this.known, this.now(), this.expiration)
  }

  /** The other replicas' names. */
  others(): ReadonlyArray<string> {
    return [...this.known.replicas.keys()].filter((each) => each !== this.self)
  }

  /** The address of the replica with a name, by the last list. */
  addressOf(replica: string): RunnerAddress.RunnerAddress | undefined {
    return this.known.replicas.get(replica)?.[0].address
  }

  /** Gives up all locks, because another replica has taken this replica's address. */
  readonly replace = this.change((known) => ({ ...known, isReplaced: true }))

  /** Run it when the pinned sessions have ended after the others gave this replica up. */
  readonly beginAnew = this.change((known) => ({ ...known, triedAt: this.now(), isGivenUp: false }))

  /** Lists the replicas. */
  readonly list = Effect.suspend(() =>
    Effect.flatMap(this.noted(this.storage.getRunners), (runners) =>
      Effect.map(
        this.change(listed(runners, this.now(), this.expiration, this.self)),
        () => [...this.known.replicas.values()]
      ))
  )

  /** Whether a replica with this name runs. Lists again if the last list lacks it. `undefined` if the database does not answer. */
  isThere(replica: string): Effect.Effect<boolean | undefined> {
    return Effect.suspend(() => {
      const { listedAt } = this.known
      const isListed = () => replica !== this.self && this.known.replicas.has(replica)
      const isFresh = listedAt !== undefined && this.now() - listedAt < freshness
      if (isFresh || isListed()) return Effect.succeed(isListed())
      return this.inTime(this.list).pipe(Effect.map(isListed), Effect.orElseSucceed(() => undefined))
    })
  }

  /** Changes `known`, and logs the change. */
  change(f: (known: Known) => Known): Effect.Effect<void> {
    return Effect.suspend(() => {
      const before = this.known
      this.known = f(before)
      return tell(this.self, before, this.known)
    })
  }

  /** Runs a statement, and notes that the database answered or did not. */
  noted<A, E>(asked: Effect.Effect<A, E>): Effect.Effect<A, E> {
    return Effect.onExit(asked, (exit) => this.change(ended(this.now(), this.expiration, Exit.isSuccess(exit))))
  }

  /** Skips a statement once another replica has this address: the rows of the address are the other replica's. */
  unlessReplaced<A, E>(asked: Effect.Effect<A, E>, otherwise: A): Effect.Effect<A, E> {
    return Effect.suspend(() => this.known.isReplaced ? Effect.succeed(otherwise) : asked)
  }

  /**
   * Bounds a statement by a time shorter than the engine's own time-out, after which the engine would release every shard. Does not wait
   * for the end of the statement then.
   */
  inTime<A, E>(asked: Effect.Effect<A, E>): Effect.Effect<A, E | Cause.TimeoutError> {
    return Effect.timeout(Patience.unawaited(asked), this.interval / 2)
  }
}

type Storage = RunnerStorage.RunnerStorage["Service"]

/** The engine's storage, with the three changes. */
const wrap = (storage: Storage, state: Knowledge): Storage => ({
  ...storage,
  ...releases(storage, state),
  getRunners: state.list,
  acquire: (address, shards) =>
    Effect.suspend(() => {
      const askedAt = state.now()
      return Effect.tap(state.unlessReplaced(state.noted(storage.acquire(address, shards)), []), (taken) => {
        for (const shard of taken) state.releasing.delete(shard.toString())
        // Further locks confirm no earlier lock.
        return state.change((known) => ({ ...known, confirmedAt: known.confirmedAt ?? askedAt }))
      })
    }),
  refresh: (address, shards) =>
    Effect.suspend(() => {
      const all = [...shards]
      const askedAt = state.now()
      const refreshed = state.inTime(storage.refresh(address, all)).pipe(
        (asked) => state.noted(asked),
        Effect.tap(() => state.change((known) => ({ ...known, confirmedAt: askedAt })))
      )
      return Effect.orElseSucceed(
        state.unlessReplaced(refreshed, []),
        // The refresh failed. If the locks are not safe until the next one, release all shards now, while that is still safe.
        () => state.safeFor() > state.interval ? all : []
      )
    })
})

/** The releases of the engine's storage, each after the sessions and lanes of its shard have ended. */
const releases = (storage: Storage, state: Knowledge): Pick<Storage, "release" | "releaseAll" | "unregister"> => {
  /**
   * Completes when this replica leaves. From then on, a release waits for at most `leavePatience`: this replica takes no lock again, and a
   * lock that is not released expires. Before that, a release must not be abandoned: it could take effect after the lock was taken again.
   */
  const leaving = Deferred.makeUnsafe<void>()
  const isLeaving = () => Deferred.isDoneUnsafe(leaving)
  const bounded = <E>(asked: Effect.Effect<void, E>): Effect.Effect<void> =>
    Effect.raceFirst(
      Effect.ignore(Patience.unawaited(asked)),
      Effect.andThen(Deferred.await(leaving), Effect.sleep(leavePatience))
    )
  return {
    // Retries here once a second. The engine would retry at once, and log each of hundreds of shards.
    release: (address, shard) =>
      Effect.suspend(() => {
        const key = shard.toString()
        state.releasing.add(key)
        const released = Effect.suspend(() => state.releasing.has(key) ? storage.release(address, shard) : Effect.void)
        const retried = Effect.retry(state.unlessReplaced(released, undefined), {
          schedule: Schedule.spaced("1 second"),
          while: () => !isLeaving()
        })
        return bounded(Effect.andThen(untilFree(state, shard), retried))
      }),
    releaseAll: (address) =>
      Effect.suspend(() => {
        const released = state.unlessReplaced(storage.releaseAll(address), undefined)
        // The engine calls this at the end, or when it has lost all its locks. In the second case there is no lock to keep.
        return isLeaving() ? bounded(Effect.andThen(untilFree(state), released)) : released
      }),
    // When the engine ends, it calls this first.
    unregister: (address) =>
      Effect.suspend(() => {
        Deferred.doneUnsafe(leaving, Effect.void)
        return bounded(state.unlessReplaced(storage.unregister(address), undefined))
      })
  }
}

/** Waits until the sessions and lanes of a shard have ended, or of all shards. Waits for at most `occupiedTimeout`. */
const untilFree = (state: Knowledge, shard?: ShardId.ShardId): Effect.Effect<void> =>
  Effect.sync(() => state.isOccupied(shard)).pipe(
    Effect.repeat({ while: (occupied) => occupied, schedule: Schedule.spaced(occupiedInterval) }),
    Effect.timeoutOrElse({
      duration: occupiedTimeout,
      orElse: () =>
        Effect.logWarning(
          `A process has not ended for ${occupiedTimeout}; the lock of its shard is released, so end it by hand`
        )
    }),
    Effect.asVoid
  )

/** The membership and the wrapped storage, over any storage. */
export const layerOver = Layer.effectContext(Effect.gen(function*() {
  const storage = yield* RunnerStorage.RunnerStorage
  const state = new Knowledge(yield* ShardingConfig.ShardingConfig, yield* Clock.Clock, storage)
  return Context.make(Membership, state).pipe(Context.add(RunnerStorage.RunnerStorage, wrap(storage, state)))
}))

/** The membership and the wrapped storage, over the engine's storage in PostgreSQL. */
export const layer = layerOver.pipe(
  Layer.provide(SqlRunnerStorage.layerStorage({ prefix }))
)
