/** The names of replicas, which the ids of those sessions begin with that stay with their replica. */
import { Option } from "effect"
import type { RunnerAddress, ShardingConfig } from "effect/cluster"
import { createHash } from "node:crypto"

const form = /^r[0-9a-f]{10}$/

/** The name of the replica at an address: the same after a restart, when it does not know its former sessions any more. */
export const of = ({ host, port }: RunnerAddress.RunnerAddress): string =>
  `r${createHash("sha256").update(`${host}:${port}`).digest("hex").slice(0, 10)}`

/** The name of this replica. */
export const here = ({ runnerAddress }: ShardingConfig.ShardingConfig["Service"]): string =>
  Option.match(runnerAddress, { onNone: () => "", onSome: of })

export const isName = (text: string): boolean => form.test(text)
