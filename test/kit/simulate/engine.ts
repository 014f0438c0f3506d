/** How long the engine's `Sharding` keeps a replica from doing anything else, with a list of replicas of any length. */
import { Effect, Layer, Option } from "effect"
import {
  MachineId,
  MessageStorage,
  Runner,
  RunnerAddress,
  RunnerHealth,
  Runners,
  RunnerStorage,
  Sharding,
  ShardingConfig,
  Snowflake
} from "effect/cluster"
import { spreadOf } from "../../bench/spread.ts"

/** In milliseconds of CPU, because other programs use the machine too. */
export interface Figures {
  /** The pause of a replica when another one joins. */
  readonly joinMillis: number
  /** The pause of a replica when it starts. */
  readonly startMillis: number
}

const listMillis = 200
const wait = (millis: number) => Effect.promise(() => new Promise((resolve) => setTimeout(resolve, millis)))

/** The addresses of so many replicas. */
export const addresses = (count: number): ReadonlyArray<RunnerAddress.RunnerAddress> =>
  Array.from({ length: count }, (_, i) => RunnerAddress.make(`10.${i >> 16}.${(i >> 8) & 255}.${i & 255}`, 8421))

/** A replica as it is in the list. */
export const runner = (address: RunnerAddress.RunnerAddress): Runner.Runner =>
  Runner.make({ address, groups: ShardingConfig.defaults.assignedShardGroups, weight: 1 })

/** The longest time for which an effect keeps this thread busy. */
const longestTurn = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const used = () => {
      const { system, user } = process.threadCpuUsage()
      return (user + system) / 1000
    }
    let [last, longest] = [used(), 0]
    const timer = setInterval(() => {
      const now = used()
      longest = Math.max(longest, now - last)
      last = now
    }, 1)
    // The timer ticks once before the effect and once after it.
    yield* wait(10)
    longest = 0
    yield* effect
    yield* wait(10)
    clearInterval(timer)
    return longest
  })

const shardingOf = (self: RunnerAddress.RunnerAddress, list: () => ReadonlyArray<RunnerAddress.RunnerAddress>) => {
  const storage = RunnerStorage.RunnerStorage.of({
    register: () => Effect.succeed(MachineId.make(1)),
    unregister: () => Effect.void,
    // New values each time, as from a database.
    getRunners: Effect.sync(() => list().map((address) => [runner(address), true])),
    setRunnerHealth: () => Effect.void,
    acquire: (_, shards) => Effect.sync(() => [...shards]),
    refresh: (_, shards) => Effect.sync(() => [...shards]),
    release: () => Effect.void,
    releaseAll: () => Effect.void
  })
  return Sharding.layer.pipe(
    Layer.provide(Runners.layerNoop),
    Layer.provide([
      Snowflake.layerGenerator,
      MessageStorage.layerNoop,
      RunnerHealth.layerNoop,
      Layer.succeed(RunnerStorage.RunnerStorage, storage)
    ]),
    Layer.provide(ShardingConfig.layer({ runnerAddress: Option.some(self), refreshAssignmentsInterval: listMillis }))
  )
}

/** Measures one of so many replicas, while three more join. */
export const measure = (count: number): Effect.Effect<Figures> =>
  Effect.scoped(Effect.gen(function*() {
    const all = addresses(count + 3)
    const [self] = all
    if (self === undefined) return yield* Effect.die("no replica")
    let known = count
    const sharding = Layer.build(Layer.fresh(shardingOf(self, () => all.slice(0, known))))
    const startMillis = yield* longestTurn(Effect.andThen(sharding, wait(1000 + count)))
    const joins: Array<number> = []
    while (known < all.length) {
      known++
      joins.push(yield* longestTurn(wait(2 * listMillis + count)))
    }
    return { startMillis, joinMillis: spreadOf(joins).median }
  }))
