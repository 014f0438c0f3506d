/**
 * Which replicas there are, and how long this one may act as the owner of its shards: the engine's storage of runners and
 * locks in PostgreSQL, with three changes.
 *
 * - While the database cannot be reached, a lock counts as held until the moment from which another replica may take it. The
 *   engine by itself gives everything up at the first failure.
 * - A lock is given back only when nothing lives under it any more: the engine does not wait for longer than it has time. (But not
 *   when the engine counts all its locks as lost, which then it cannot take again before they are given back.)
 * - When the database is back, the replicas that were there before stay for as long as it takes them to say that they live.
 */
import { Clock, Context, Deferred, Duration, Effect, Layer, Ref, Schedule } from "effect"
import type { Runner, RunnerAddress, ShardId } from "effect/cluster"
import { RunnerStorage, ShardingConfig, SqlRunnerStorage } from "effect/cluster"
import * as Patience from "./Patience.ts"
import * as ReplicaName from "./ReplicaName.ts"

/** What a replica knows of its locks and of the others. */
export interface Known {
  /** When the locks were asked for that were last confirmed, in milliseconds; `undefined`: none is held. */
  readonly confirmedAt: number | undefined
  /** Since when the database has not answered. */
  readonly lostAt: number | undefined
  /** When it answered again after it had not. */
  readonly backAt: number | undefined
  /** When the replicas were listed last, and when this one was first among them. */
  readonly listedAt: number | undefined
  readonly joinedAt: number | undefined
  readonly runners: ReadonlyArray<readonly [runner: Runner.Runner, healthy: boolean]>
  /** Another replica has this one's address, and with it its locks. */
  readonly isReplaced: boolean
  /** When the database was last asked for something to its end, whatever came of it. */
  readonly triedAt: number | undefined
  /** The others have given this replica up, because it stood still. */
  readonly isGivenUp: boolean
}

/** The part of the locks' time that is not used, for clocks that do not run alike. */
const margin = 0.1

export const nothingKnown: Known = {
  confirmedAt: undefined,
  lostAt: undefined,
  backAt: undefined,
  listedAt: undefined,
  joinedAt: undefined,
  runners: [],
  isReplaced: false,
  triedAt: undefined,
  isGivenUp: false
}

/** Until when the locks are safely this replica's. */
export const heldUntil = ({ confirmedAt, isReplaced }: Known, expiration: number): number =>
  confirmedAt === undefined || isReplaced ? -Infinity : confirmedAt + expiration * (1 - margin)

/** The database has answered. */
export const answered = (now: number) => (known: Known): Known =>
  known.lostAt === undefined ? known : { ...known, lostAt: undefined, backAt: now }

/** The database has not answered. */
export const failed = (now: number) => (known: Known): Known =>
  known.lostAt === undefined ? { ...known, lostAt: now } : known

/** Another replica has taken this one's address; that cannot be undone. */
export const replaced = (known: Known): Known => ({ ...known, isReplaced: true })

/**
 * Whether this replica has stood still, as one that was frozen, until the others gave it up. While the database is away it does not
 * stand still: it asks at least every 0.43 of the locks' time. A replica that is frozen until its locks expire has asked for nothing
 * for at least 2/3 of their time; 0.6 lies between the two.
 */
export const hasStoodStill = ({ confirmedAt, isGivenUp, triedAt }: Known, now: number, expiration: number): boolean =>
  isGivenUp || (
    confirmedAt !== undefined && now > confirmedAt + expiration &&
    triedAt !== undefined && now > triedAt + 0.6 * expiration
  )

/** Something was asked of the database, to its end. */
export const tried = (now: number, expiration: number) => (known: Known): Known => ({
  ...known,
  triedAt: now,
  isGivenUp: hasStoodStill(known, now, expiration)
})

/** What the replica had when it was given up has been ended. */
export const begunAnew = (now: number) => (known: Known): Known => ({ ...known, triedAt: now, isGivenUp: false })

/** All locks have been confirmed; asked for at `askedAt`. */
export const confirmed = (askedAt: number) => (known: Known): Known => ({ ...known, confirmedAt: askedAt })

/** Further locks were acquired, which does not confirm those from before. */
export const acquired = (askedAt: number) => (known: Known): Known =>
  known.confirmedAt === undefined ? { ...known, confirmedAt: askedAt } : known

/**
 * After an outage a replica has this part of the locks' time to report again: room for two of its 3.5 reports, as the first may
 * be lost on a new connection. One that leaves meanwhile still counts as there until then.
 */
const outageSettling = 2 / 3

/** The replicas by the newest list; after an outage those of before as well, until each can have said that it lives. */
export const listed =
  (runners: Known["runners"], now: number, expiration: number, self: string) =>
  (known: Known): readonly [Known["runners"], Known] => {
    const isSettling = known.backAt !== undefined && now < known.backAt + expiration * outageSettling
    const missing = isSettling
      ? known.runners.filter(([runner]) => !runners.some(([each]) => name(each) === name(runner)))
      : []
    const all = [...runners, ...missing]
    const joinedAt = known.joinedAt ?? (all.some(([runner]) => name(runner) === self) ? now : undefined)
    return [all, { ...known, runners: all, listedAt: now, joinedAt }]
  }

const name = (runner: Runner.Runner): string => ReplicaName.of(runner.address)

/** Where replicas are, by their names: which are digests, and so made once for each list. */
const addresses = (runners: Known["runners"]): ReadonlyMap<string, RunnerAddress.RunnerAddress> => {
  const made = addressesOf.get(runners) ?? new Map(runners.map(([{ address }]) => [ReplicaName.of(address), address]))
  addressesOf.set(runners, made)
  return made
}
const addressesOf = new WeakMap<Known["runners"], ReadonlyMap<string, RunnerAddress.RunnerAddress>>()

/** How long a replica that leaves waits for the database, and for what still lives here, each time. */
const leavePatience = "3 seconds"
/** How often it is looked whether something still lives under a lock. */
const occupiedInterval = "50 millis"
/**
 * How long its lock is kept for it: longer than a start and an end may take. What SIGKILL does not end serves nobody, and its shard
 * is to be served again.
 */
const occupiedTimeout = "5 minutes"

/** A list of replicas that is no older, in milliseconds, is not asked for anew for the sake of an unknown name. */
const freshness = 500

/** What the tables' names begin with. */
export const prefix = "effect_session_pool"

export class Membership extends Context.Service<Membership, {
  readonly known: Ref.Ref<Known>
  /** Keeps locks while something lives under them: of one shard, or of any. */
  readonly keepWhile: (isOccupied: (shard?: ShardId.ShardId) => boolean) => Effect.Effect<void>
  /** Gives up what is movable, because another replica has taken this one's address. */
  readonly replace: Effect.Effect<void>
  /** Whether the others have given this replica up; until `beginAnew`, when what it had then has been ended. */
  readonly isGivenUp: () => boolean
  readonly beginAnew: Effect.Effect<void>
  /** The time by which things are known, see `steady`. */
  readonly now: () => number
  /** For how many milliseconds this replica may act as the owner of a shard that it holds by the engine's account. */
  readonly safeFor: Effect.Effect<number>
  /** The other replicas' names. */
  readonly others: Effect.Effect<ReadonlyArray<string>>
  /** Where the replica of a name is. */
  readonly addressOf: (replica: string) => RunnerAddress.RunnerAddress | undefined
  /** Whether a replica of this name runs, by the database itself if the last list has none; `undefined`: it cannot be told. */
  readonly isThere: (replica: string) => Effect.Effect<boolean | undefined>
}>()("effect-session-pool/gateway/cluster/Membership") {}

/**
 * Milliseconds that go on when the time of day is set back, or a lock would be held for longer; and that jump as it does when it
 * is set forward, which is all that a machine notices that has been asleep.
 */
const steady = (clock: Clock.Clock) => {
  const monotonic = () => Number(clock.monotonicTimeNanosUnsafe()) / 1e6
  let seen = clock.currentTimeMillisUnsafe() - monotonic()
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

/** Logs what an operator would want to know of a change. */
const tell = (self: string, before: Known) => (after: Known): Effect.Effect<void> => {
  const others = ({ runners }: Known) =>
    new Map(
      runners.filter(([runner]) => name(runner) !== self)
        .map(([runner]) => [name(runner), `${runner.address.host}:${runner.address.port}`])
    )
  const [were, are] = [others(before), others(after)]
  const come = [...are].filter(([name]) => !were.has(name))
  const gone = [...were].filter(([name]) => !are.has(name))
  return Effect.all([
    ...come.map(([name, address]) => Effect.logInfo(`replica ${name} at ${address} has joined`)),
    ...gone.map(([name, address]) => Effect.logInfo(`replica ${name} at ${address} has gone`)),
    ...before.lostAt === undefined && after.lostAt !== undefined
      ? [Effect.logWarning("the database does not answer")]
      : [],
    ...before.lostAt !== undefined && after.lostAt === undefined
      ? [Effect.logInfo(
        `the database answers again, after ${Math.round(((after.backAt ?? 0) - before.lostAt) / 1000)} seconds`
      )]
      : []
  ], { discard: true })
}

/** One function, for the wrapped storage and the service share what is known; the transitions of that are above. */
const make = Effect.gen(function*() {
  const config = yield* ShardingConfig.ShardingConfig
  const storage = yield* RunnerStorage.RunnerStorage
  const known = yield* Ref.make(nothingKnown)
  const now = steady(yield* Clock.Clock)
  const expiration = Duration.toMillis(Duration.fromInputUnsafe(config.shardLockExpiration))
  /** How often the engine asks for its locks (its `effectiveInterval`). */
  const interval = Math.min(
    Duration.toMillis(Duration.fromInputUnsafe(config.shardLockRefreshInterval)),
    expiration / 3
  )
  // Shorter than the engine's own time-out, which would give up every shard.
  const patience = interval / 2

  const noted = <A, E>(asked: Effect.Effect<A, E>): Effect.Effect<A, E> =>
    asked.pipe(
      Effect.ensuring(Effect.suspend(() => Ref.update(known, tried(now(), expiration)))),
      Effect.tap(() => change(answered(now()))),
      Effect.tapCause(() => change(failed(now())))
    )

  const change = (f: (known: Known) => Known) =>
    Effect.flatten(Ref.modify(known, (before) => {
      const after = f(before)
      return [after === before ? Effect.void : tell(self, before)(after), after]
    }))

  const self = ReplicaName.here(config)

  /** What is of the address and no longer of this replica: in the database it is the other one's. */
  const unlessReplaced = <A, E>(asked: Effect.Effect<A, E>, otherwise: A): Effect.Effect<A, E> =>
    Effect.flatMap(Ref.get(known), ({ isReplaced }) => isReplaced ? Effect.succeed(otherwise) : asked)

  /**
   * From then on nothing here waits long for the database: no lock is asked for again, and those that are not given back expire.
   * Before, one that is asked for again must not be taken away by a release that came late.
   */
  const leaving = yield* Deferred.make<void>()
  const isLeaving = () => Deferred.isDoneUnsafe(leaving)
  const inTime = <E>(asked: Effect.Effect<void, E>): Effect.Effect<void> =>
    Effect.raceFirst(
      Effect.ignore(Patience.unawaited(asked)),
      Effect.andThen(Deferred.await(leaving), Effect.sleep(leavePatience))
    )

  /** The shards that are to be given back. One that is taken again meanwhile is not: that would be the new lock. */
  const releasing = new Set<string>()
  let isOccupied: (shard?: ShardId.ShardId) => boolean = () => false
  const whenFree = <E>(released: Effect.Effect<void, E>, shard?: ShardId.ShardId): Effect.Effect<void, E> =>
    Effect.sync(() => isOccupied(shard)).pipe(
      Effect.repeat({ while: (occupied) => occupied, schedule: Schedule.spaced(occupiedInterval) }),
      Effect.timeoutOrElse({
        duration: occupiedTimeout,
        orElse: () =>
          Effect.logWarning(`A process has not ended for ${occupiedTimeout}; the lock of its shard is given back`)
      }),
      Effect.andThen(released)
    )

  const wrapped = RunnerStorage.RunnerStorage.of({
    ...storage,
    getRunners: Effect.flatMap(noted(storage.getRunners), (runners) =>
      Effect.flatten(Ref.modify(known, (before) => {
        const [all, after] = listed(runners, now(), expiration, self)(before)
        return [Effect.as(tell(self, before)(after), [...all]), after]
      }))),
    acquire: (address, shards) =>
      Effect.suspend(() => {
        const askedAt = now()
        return Effect.tap(
          unlessReplaced(noted(storage.acquire(address, shards)), []),
          (taken) => {
            for (const shard of taken) releasing.delete(shard.toString())
            return Ref.update(known, acquired(askedAt))
          }
        )
      }),
    refresh: (address, shards) =>
      Effect.suspend(() => {
        const all = [...shards]
        const askedAt = now()
        const refreshed = Patience.unawaited(storage.refresh(address, all)).pipe(
          Effect.timeout(patience),
          noted,
          Effect.tap(() => Ref.update(known, confirmed(askedAt)))
        )
        return unlessReplaced(refreshed, []).pipe(
          Effect.catch(() =>
            Effect.map(
              Ref.get(known),
              // Whoever would not be safe until the next time gives its shards up now, while it still may.
              (state) => now() + interval < heldUntil(state, expiration) ? all : []
            )
          )
        )
      }),
    // The engine would try anew at once, and log it for each of hundreds of shards.
    release: (address, shard) =>
      Effect.suspend(() => {
        const key = shard.toString()
        releasing.add(key)
        const released = Effect.suspend(() => releasing.has(key) ? storage.release(address, shard) : Effect.void)
        return inTime(whenFree(
          Effect.retry(unlessReplaced(released, undefined), {
            schedule: Schedule.spaced("1 second"),
            while: () => !isLeaving()
          }),
          shard
        ))
      }),
    releaseAll: (address) =>
      Effect.suspend(() => {
        const released = unlessReplaced(storage.releaseAll(address), undefined)
        // Not at the end, the locks have been lost: nothing is kept.
        return isLeaving() ? inTime(whenFree(released)) : released
      }),
    // The engine does this first of all when it ends.
    unregister: (address) =>
      Effect.suspend(() => {
        Deferred.doneUnsafe(leaving, Effect.void)
        return inTime(unlessReplaced(storage.unregister(address), undefined))
      })
  })

  const isListed = (replica: string) =>
    Effect.map(Ref.get(known), ({ runners }) => replica !== self && addresses(runners).has(replica))

  const membership = Membership.of({
    known,
    keepWhile: (occupied) =>
      Effect.sync(() => {
        isOccupied = occupied
      }),
    replace: Ref.update(known, replaced),
    isGivenUp: () => hasStoodStill(Ref.getUnsafe(known), now(), expiration),
    beginAnew: Effect.suspend(() => Ref.update(known, begunAnew(now()))),
    now,
    safeFor: Effect.map(Ref.get(known), (state) => heldUntil(state, expiration) - now()),
    others: Effect.map(Ref.get(known), ({ runners }) => [...addresses(runners).keys()].filter((each) => each !== self)),
    addressOf: (replica) => addresses(Ref.getUnsafe(known).runners).get(replica),
    isThere: (replica) =>
      Effect.flatMap(
        Ref.get(known),
        ({ listedAt }) =>
          Effect.flatMap(isListed(replica), (isThere) =>
            isThere || (listedAt !== undefined && now() - listedAt < freshness)
              ? Effect.succeed(isThere)
              : Patience.unawaited(wrapped.getRunners).pipe(
                Effect.timeout(patience),
                Effect.andThen(isListed(replica)),
                Effect.catch(() =>
                  Effect.succeed(undefined)
                )
              ))
      )
  })
  return Context.make(Membership, membership).pipe(Context.add(RunnerStorage.RunnerStorage, wrapped))
})

/** Over whatever storage there is. */
export const layerOver = Layer.effectContext(make)

/** The engine's storage in PostgreSQL, and what is known of it. */
export const layer = layerOver.pipe(
  Layer.provide(SqlRunnerStorage.layerStorage({ prefix }))
)
