/**
 * The names of replicas, which ids of sessions begin with. Each replica is alone in a shard group of its name, so the engine
 * sends to it what is addressed there, and to nobody else, ever: a session that lives in a process cannot move.
 */
import { Option } from "effect"
import type { RunnerAddress, ShardId, ShardingConfig } from "effect/cluster"
import { createHash } from "node:crypto"

const form = /^r[0-9a-f]{10}$/

/** The name of the replica at an address: the same after a restart, when it does not know its former sessions any more. */
export const of = ({ host, port }: RunnerAddress.RunnerAddress): string =>
  `r${createHash("sha256").update(`${host}:${port}`).digest("hex").slice(0, 10)}`

/** The name of this replica. */
export const here = ({ runnerAddress }: ShardingConfig.ShardingConfig["Service"]): string =>
  Option.match(runnerAddress, { onNone: () => "", onSome: of })

export const isName = (text: string): boolean => form.test(text)

/** The group of the shards that move between the replicas. */
export const sharedGroup = "default"

/** The group of what has this address. */
export const groupOf = (id: string): string => isName(id) ? id : sharedGroup

/** Whether a shard is of a replica's own group. */
export const isOwnShard = ({ group }: ShardId.ShardId): boolean => group !== sharedGroup
