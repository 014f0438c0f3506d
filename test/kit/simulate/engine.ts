/** What it costs a replica to know who has which shard: the engine's own `Sharding`, with a list of replicas of any length. */
import { Effect, Layer, Option } from "effect"
import {
  MessageStorage,
  RunnerHealth,
  Runners,
  RunnerStorage,
  Sharding,
  ShardingConfig,
  Snowflake
} from "effect/cluster"
import * as MachineId from "effect/cluster/MachineId"
import { spreadOf } from "../../bench/spread.ts"
import { liveHeap } from "../heap.ts"
import type { Address } from "./ring.ts"
import { addresses, runner } from "./ring.ts"

export interface Figures {
  /** For how long a replica does nothing else when another one has come, in milliseconds of CPU. */
  readonly changeMillis: number
  /** The same when it starts, and learns of all at once. */
  readonly startMillis: number
  /** CPU of comparing one list of replicas with the last one, in microseconds. */
  readonly compareMicros: number
  /** What it has in memory of who has which shard. */
  readonly heapBytes: number
}

const lookMillis = 200
const wait = (millis: number) => Effect.promise(() => new Promise((resolve) => setTimeout(resolve, millis)))

/**
 * The longest that this thread was busy without a pause during an effect, in milliseconds of its CPU: on a machine that others
 * use too, its time says less.
 */
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
    // What ran until now is no part of it, and its last turn has to be seen.
    yield* wait(10)
    longest = 0
    yield* effect
    yield* wait(10)
    clearInterval(timer)
    return longest
  })

const cpuMicros = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const before = process.cpuUsage()
    yield* effect
    const { system, user } = process.cpuUsage(before)
    return user + system
  })

const storageOf = (list: () => ReadonlyArray<Address>) =>
  RunnerStorage.RunnerStorage.of({
    register: () => Effect.succeed(MachineId.make(1)),
    unregister: () => Effect.void,
    // New ones each time, as those that come out of a database.
    getRunners: Effect.sync(() => list().map((address) => [runner(address), true])),
    setRunnerHealth: () => Effect.void,
    acquire: (_, shards) => Effect.sync(() => [...shards]),
    refresh: (_, shards) => Effect.sync(() => [...shards]),
    release: () => Effect.void,
    releaseAll: () => Effect.void
  })

const shardingOf = (self: Address, list: () => ReadonlyArray<Address>) =>
  Sharding.layer.pipe(
    Layer.provide(Runners.layerNoop),
    Layer.provide([
      Snowflake.layerGenerator,
      MessageStorage.layerNoop,
      RunnerHealth.layerNoop,
      Layer.succeed(RunnerStorage.RunnerStorage, storageOf(list))
    ]),
    Layer.provide(ShardingConfig.layer({ runnerAddress: Option.some(self), refreshAssignmentsInterval: lookMillis }))
  )

/** Measures one of so many replicas, while so many more come one after the other. */
export const measure = (count: number, changes = 3): Effect.Effect<Figures> =>
  Effect.scoped(Effect.gen(function*() {
    const all = addresses(count + changes)
    let known = count
    const [self] = all
    if (self === undefined) return yield* Effect.die("no replica")
    const looks = 10
    const idle = yield* cpuMicros(wait(looks * lookMillis))
    const before = liveHeap()
    const startMillis = yield* longestTurn(
      Effect.andThen(
        Layer.build(Layer.fresh(shardingOf(self, () => all.slice(0, known)))),
        wait(1000 + count)
      )
    )
    const heapBytes = liveHeap() - before
    const used = yield* cpuMicros(wait(looks * lookMillis))
    const turns: Array<number> = []
    for (let i = 0; i < changes; i++) {
      known++
      turns.push(yield* longestTurn(wait(2 * lookMillis + count)))
    }
    return {
      startMillis,
      changeMillis: spreadOf(turns).median,
      // Of few replicas it is lost in what this process does by itself.
      compareMicros: Math.max(100, (used - idle) / looks),
      heapBytes
    }
  }))
