/** The load of a cluster of any size: the rates of its statements, and what they cost by the measured figures. */
import { ShardingConfig } from "effect/cluster"
import type * as Asleep from "./asleep.ts"
import type { Statement } from "./database.ts"
import type * as Engine from "./engine.ts"
import type * as Storage from "./storage.ts"

/** How many shards the engine has. */
export const { shardsPerGroup } = ShardingConfig.defaults

/** Constants of `Cluster`, `Roster` and `StoredSleepers`. `simulate.test.ts` counts the statements that follow from them. */
const listSeconds = 2
const expirationSeconds = 35
const refreshSeconds = expirationSeconds / 3.5
const rosterSeconds = expirationSeconds / 4
const upkeepSeconds = 60
const keysPerStatement = 1000
const connectionsPerReplica = 5

/** How long a session stays awake at a time, and how long it lives, in seconds. */
const stay = 30 * 60
const life = 24 * 3600

export interface Sessions {
  /** All sessions of stateless back ends, awake or asleep. */
  readonly all: number
  readonly awake: number
}

export interface Rate {
  readonly calls: number
  readonly rows: number
}

/** The statements of all replicas in a second, and their rows. */
export const rates = (replicas: number, { all, awake }: Sessions) => {
  const each = (calls: number): Rate => ({ calls, rows: calls })
  return {
    list: { calls: replicas / listSeconds, rows: replicas ** 2 / listSeconds },
    heartbeat: each(replicas / refreshSeconds),
    roster: each(replicas / rosterSeconds),
    // A replica without a shard refreshes no lock.
    locks: { calls: Math.min(replicas, shardsPerGroup) / refreshSeconds, rows: shardsPerGroup / refreshSeconds },
    keep: {
      calls: Math.ceil(awake / replicas / keysPerStatement) * replicas / upkeepSeconds,
      rows: awake / upkeepSeconds
    },
    // Every replica asks whether an upkeep is due, and one of them does it.
    due: { calls: replicas / upkeepSeconds, rows: 1 / upkeepSeconds },
    count: each(1 / upkeepSeconds),
    take: each(awake / stay),
    write: each(all / life + awake / stay)
  } satisfies Partial<Record<Statement, Rate>>
}

export type Measured = Storage.Figures & Engine.Figures

/** The rows of the printed table, for a cluster of a size that was measured. */
export const loads = (replicas: number, sessions: Sessions, measured: Measured, asleep: Asleep.Figures) => {
  const { count, heartbeat, keep, list, locks, roster, take, write } = rates(replicas, sessions)
  const keepCores = keep.rows * asleep.keepMicros / 1e6
  const micros = list.calls * measured.listMicros +
    locks.calls * measured.refreshMicros +
    (heartbeat.calls - locks.calls + roster.calls) * measured.heartbeatMicros +
    count.calls * asleep.countMicros * sessions.all / asleep.rows +
    take.calls * (asleep.takeMicros + asleep.restMicros) + (write.calls - take.calls) * asleep.enterMicros
  return {
    "connections to PostgreSQL": replicas * connectionsPerReplica,
    "busy cores of PostgreSQL": keepCores + micros / 1e6,
    "of these, to note that sessions are awake": keepCores,
    "GiB of rows of sleeping sessions": sessions.all * asleep.rowBytes / 2 ** 30,
    "cluster statements a second": list.calls + heartbeat.calls + roster.calls + locks.calls,
    "replicas without a shard": Math.max(0, replicas - shardsPerGroup),
    "pause of a replica when another joins, ms": measured.joinMillis,
    "pause of a replica when it starts, ms": measured.startMillis
  }
}
