/** Replica names. A pinned session's id starts with its replica's name. */
import { Option } from "effect"
import type { RunnerAddress, ShardingConfig } from "effect/cluster"
import { createHash } from "node:crypto"

const form = /^r[0-9a-f]{10}$/

/**
 * The name of the replica at an address. A restarted replica has the same name. It refuses the ids of its former sessions, because it does
 * not know them any more.
 */
export const of = ({ host, port }: RunnerAddress.RunnerAddress): string =>
  `r${createHash("sha256").update(`${host}:${port}`).digest("hex").slice(0, 10)}`

/** The name of this replica. */
export const here = ({ runnerAddress }: ShardingConfig.ShardingConfig["Service"]): string =>
  Option.match(runnerAddress, { onNone: () => "", onSome: of })

export const isName = (text: string): boolean => form.test(text)
