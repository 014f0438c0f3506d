/** The engine's storage of runners and locks without a database: it fares as it is told. */
import { Effect } from "effect"
import type { ShardId } from "effect/cluster"
import { ClusterError, RunnerStorage } from "effect/cluster"
import type * as Membership from "../../../src/gateway/cluster/Membership.ts"

export interface State {
  /** `slow`: it answers after four seconds; `silent`: never; `stuck`: nor to the cancellation, for which one waits five seconds. */
  mood: "well" | "slow" | "away" | "silent" | "stuck"
  runners: ReadonlyArray<Membership.Listed>
  /** The shards that others have. */
  readonly lost: Set<string>
}

export const make = Effect.fnUntraced(function*(runners: ReadonlyArray<Membership.Listed>) {
  const state: State = { mood: "well", runners, lost: new Set() }
  const calls: Array<string> = []
  const asked = <A>(name: string, answer: () => A): Effect.Effect<A, ClusterError.PersistenceError> =>
    Effect.suspend(() => {
      calls.push(name)
      switch (state.mood) {
        case "well":
          return Effect.sync(answer)
        case "slow":
          return Effect.delay(Effect.sync(answer), "4 seconds")
        case "away":
          return new ClusterError.PersistenceError({ cause: "away" })
        case "silent":
          return Effect.never
        case "stuck":
          return Effect.onInterrupt(Effect.never, () => Effect.sleep("5 seconds"))
      }
    })
  const had = (shards: Iterable<ShardId.ShardId>) => [...shards].filter((shard) => !state.lost.has(shard.toString()))
  const storage = RunnerStorage.RunnerStorage.of({
    ...(yield* RunnerStorage.makeMemory),
    getRunners: asked("getRunners", () => [...state.runners]),
    acquire: (_, shards) => asked("acquire", () => had(shards)),
    refresh: (_, shards) => asked("refresh", () => had(shards)),
    release: () => asked("release", () => {}),
    unregister: () => asked("unregister", () => {}),
    releaseAll: () => asked("releaseAll", () => {})
  })
  return { calls, state, storage }
})
