/** Three replicas, as the engine knows them. */
import { Runner, RunnerAddress } from "effect/cluster"
import type * as Membership from "../../../src/gateway/cluster/Membership.ts"
import * as ReplicaName from "../../../src/gateway/cluster/ReplicaName.ts"

export type Listed = Membership.Listed

const runner = (port: number) =>
  new Runner.Runner({ address: RunnerAddress.make("127.0.0.1", port), groups: ["default"], weight: 1 })

export const [one, two, three]: [Listed, Listed, Listed] = [[runner(1), true], [runner(2), true], [runner(3), true]]
export const nameOf = ([runner]: Listed) => ReplicaName.of(runner.address)

/** For how many milliseconds a lock lives, where no test says otherwise. */
export const expiration = 35_000
