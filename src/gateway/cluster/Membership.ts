/**
 * Which replicas there are, and how long this one may act as the owner of its shards: the engine's storage of runners and
 * locks in PostgreSQL, with three changes.
 *
 * - The shards of a replica's own group (`ReplicaName`) are granted here: no other replica ever asks for them.
 * - While the database cannot be reached, a lock counts as held until the moment from which another replica may take it. The
 *   engine by itself gives everything up at the first failure.
 * - When the database is back, the replicas that were there before stay for as long as it takes them to say that they live.
 */
import { Clock, Context, Duration, Effect, Layer, Ref } from "effect"
import type { Runner } from "effect/cluster"
import { RunnerStorage, ShardingConfig, SqlRunnerStorage } from "effect/cluster"
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
}

/** The part of the locks' time that is not used, for clocks that do not run alike. */
const margin = 0.1

export const nothingKnown: Known = {
  confirmedAt: undefined,
  lostAt: undefined,
  backAt: undefined,
  listedAt: undefined,
  joinedAt: undefined,
  runners: []
}

/** Until when the locks are safely this replica's. */
export const heldUntil = ({ confirmedAt }: Known, expiration: number): number =>
  confirmedAt === undefined ? -Infinity : confirmedAt + expiration * (1 - margin)

/** The database has answered. */
export const answered = (now: number) => (known: Known): Known =>
  known.lostAt === undefined ? known : { ...known, lostAt: undefined, backAt: now }

/** The database has not answered. */
export const failed = (now: number) => (known: Known): Known =>
  known.lostAt === undefined ? { ...known, lostAt: now } : known

/** All locks have been confirmed; asked for at `askedAt`. */
export const confirmed = (askedAt: number) => (known: Known): Known => ({ ...known, confirmedAt: askedAt })

/** Some more locks were had, which does not confirm those from before. */
export const acquired = (askedAt: number) => (known: Known): Known =>
  known.confirmedAt === undefined ? { ...known, confirmedAt: askedAt } : known

/** The replicas by the newest list; after an outage those of before as well, until each can have said that it lives. */
export const listed =
  (runners: Known["runners"], now: number, expiration: number, self: string) =>
  (known: Known): readonly [Known["runners"], Known] => {
    const isSettling = known.backAt !== undefined && now < known.backAt + expiration / 2
    const missing = isSettling
      ? known.runners.filter(([runner]) => !runners.some(([each]) => name(each) === name(runner)))
      : []
    const all = [...runners, ...missing]
    const joinedAt = known.joinedAt ?? (all.some(([runner]) => name(runner) === self) ? now : undefined)
    return [all, { ...known, runners: all, listedAt: now, joinedAt }]
  }

const name = (runner: Runner.Runner): string => ReplicaName.of(runner.address)

/** A list of replicas that is no older, in milliseconds, is not asked for anew for the sake of an unknown name. */
const freshness = 500

/** Of the names of the tables. */
export const prefix = "effect_session_pool"

export class Membership extends Context.Service<Membership, {
  readonly known: Ref.Ref<Known>
  /** Whether this replica may act as the owner of a shard that it holds by the engine's account. */
  readonly mayAct: Effect.Effect<boolean>
  /** The other replicas' names. */
  readonly others: Effect.Effect<ReadonlyArray<string>>
  /** Whether a replica of this name runs, by the database itself if the last list has none; `undefined`: it cannot be told. */
  readonly isThere: (replica: string) => Effect.Effect<boolean | undefined>
}>()("effect-session-pool/gateway/cluster/Membership") {}

const make = Effect.gen(function*() {
  const config = yield* ShardingConfig.ShardingConfig
  const storage = yield* RunnerStorage.RunnerStorage
  const known = yield* Ref.make(nothingKnown)
  const clock = yield* Clock.Clock
  const now = () => clock.currentTimeMillisUnsafe()
  const expiration = Duration.toMillis(Duration.fromInputUnsafe(config.shardLockExpiration))
  /** How often the engine asks for its locks (its `effectiveInterval`). */
  const interval = Math.min(
    Duration.toMillis(Duration.fromInputUnsafe(config.shardLockRefreshInterval)),
    expiration / 3
  )
  // Loses against the engine's own time-out, which takes everything for lost.
  const patience = interval / 2

  const noted = <A, E>(asked: Effect.Effect<A, E>): Effect.Effect<A, E> =>
    asked.pipe(
      Effect.tap(() => Ref.update(known, answered(now()))),
      Effect.tapCause(() => Ref.update(known, failed(now())))
    )

  const self = ReplicaName.here(config)
  const isOwn = ReplicaName.isOwnShard

  const wrapped = RunnerStorage.RunnerStorage.of({
    ...storage,
    getRunners: Effect.flatMap(
      noted(storage.getRunners),
      (runners) => Effect.map(Ref.modify(known, listed(runners, now(), expiration, self)), (all) => [...all])
    ),
    acquire: (address, shards) =>
      Effect.suspend(() => {
        const all = [...shards]
        const askedAt = now()
        const shared = all.filter((shard) => !isOwn(shard))
        const own = all.filter(isOwn)
        if (shared.length === 0) return Effect.succeed(own)
        return noted(storage.acquire(address, shared)).pipe(
          Effect.tap(() => Ref.update(known, acquired(askedAt))),
          Effect.map((had) => [...own, ...had]),
          // Its own it has in any case.
          Effect.catch((error) => own.length > 0 ? Effect.succeed(own) : Effect.fail(error))
        )
      }),
    refresh: (address, shards) =>
      Effect.suspend(() => {
        const all = [...shards]
        const askedAt = now()
        const own = all.filter(isOwn)
        const shared = all.filter((shard) => !isOwn(shard))
        return storage.refresh(address, shared).pipe(
          Effect.timeout(patience),
          noted,
          Effect.tap(() => Ref.update(known, confirmed(askedAt))),
          Effect.map((held) => [...own, ...held]),
          Effect.catch(() =>
            Effect.map(
              Ref.get(known),
              // Whoever would not be safe until the next time gives its shards up now, while it still may.
              (state) => now() + interval < heldUntil(state, expiration) ? all : own
            )
          )
        )
      }),
    release: (address, shard) =>
      isOwn(shard)
        ? Effect.void
        // The engine tries anew at once.
        : Effect.tapError(storage.release(address, shard), () => Effect.sleep("1 second"))
  })

  const names = (runners: Known["runners"]) => runners.map(([runner]) => name(runner)).filter((each) => each !== self)

  const membership = Membership.of({
    known,
    mayAct: Effect.map(Ref.get(known), (state) => now() < heldUntil(state, expiration)),
    others: Effect.map(Ref.get(known), ({ runners }) => names(runners)),
    isThere: (replica) =>
      Effect.flatMap(Ref.get(known), ({ listedAt, runners }) =>
        names(runners).includes(replica)
          ? Effect.succeed(true)
          : listedAt !== undefined && now() - listedAt < freshness
          ? Effect.succeed(false)
          : wrapped.getRunners.pipe(
            Effect.timeout(patience),
            Effect.map((all) => names(all).includes(replica)),
            Effect.catch(() => Effect.succeed(undefined))
          ))
  })
  return Context.make(Membership, membership).pipe(Context.add(RunnerStorage.RunnerStorage, wrapped))
})

/** The engine's storage in PostgreSQL, and what is known of it. */
export const layer = Layer.effectContext(make).pipe(
  Layer.provide(SqlRunnerStorage.layerStorage({ prefix }))
)
