/** Who has which shard among any number of replicas, by the engine's own ring. */
import { HashRing } from "effect"
import { Runner, RunnerAddress, ShardingConfig } from "effect/cluster"

/** How many shards the engine makes of each group; there is one group, the engine's own. */
export const { assignedShardGroups: groups, shardsPerGroup } = ShardingConfig.defaults

export type Address = RunnerAddress.RunnerAddress

/** The addresses of so many replicas. */
export const addresses = (count: number): ReadonlyArray<Address> =>
  Array.from({ length: count }, (_, i) => RunnerAddress.make(`10.${i >> 16}.${(i >> 8) & 255}.${i & 255}`, 8421))

/** A replica as it is in the list of all. */
export const runner = (address: Address): Runner.Runner => Runner.make({ address, groups, weight: 1 })

/** Who has each shard. */
export const assign = (replicas: ReadonlyArray<Address>): ReadonlyArray<Address> => {
  const ring = HashRing.make<Address>()
  HashRing.addMany(ring, replicas)
  return HashRing.getShards(ring, shardsPerGroup) ?? []
}

/** How many shards each replica has, in the order of the replicas. */
export const sharesOf = (replicas: ReadonlyArray<Address>, owners: ReadonlyArray<Address>): ReadonlyArray<number> => {
  const shares = new Map(replicas.map((address) => [address.toString(), 0]))
  for (const owner of owners) shares.set(owner.toString(), (shares.get(owner.toString()) ?? 0) + 1)
  return [...shares.values()]
}

/** How many shards have another owner than before. */
export const moved = (before: ReadonlyArray<Address>, after: ReadonlyArray<Address>): number =>
  before.filter((owner, shard) => owner.toString() !== after[shard]?.toString()).length

export interface Rebalancing {
  /** Shards of the replica that has most, and of the one that has fewest. */
  readonly most: number
  readonly fewest: number
  readonly withoutShard: number
  /** Shards that move when one joins, and when one leaves (the mean of some). */
  readonly atJoin: number
  readonly atLeave: number
  /** How often a shard moves while all are restarted one by one, each leaving and coming back. */
  readonly atRestart: number
}

export const rebalancing = (count: number): Rebalancing => {
  const all = addresses(count)
  const owners = assign(all)
  const shares = sharesOf(all, owners)
  // All of few; of many some that are spread over them.
  const tried = Array.from({ length: Math.min(count, 20) }, (_, i) => Math.floor((i * count) / Math.min(count, 20)))
  const leaves = tried.map((i) => moved(owners, assign(all.filter((_, j) => j !== i))))
  const atLeave = leaves.reduce((sum, each) => sum + each, 0) / leaves.length
  return {
    most: Math.max(...shares),
    fewest: Math.min(...shares),
    withoutShard: shares.filter((share) => share === 0).length,
    atJoin: moved(owners, assign(addresses(count + 1))),
    atLeave,
    // One that comes back gets what it had: the ring knows nothing of what was before.
    atRestart: (2 * atLeave * count) / shardsPerGroup
  }
}
