/**
 * What a cluster of any size asks of its database and of each replica, from what was measured at some sizes, and which limit it
 * meets first.
 *
 * Not in it: the requests themselves (`npm run bench:cluster`), the back ends' own memory, and PostgreSQL's writing to its disk.
 */
import type * as Asleep from "./asleep.ts"
import type * as Awake from "./awake.ts"
import type { Statement } from "./database.ts"
import type * as Engine from "./engine.ts"
import { shardsPerGroup } from "./ring.ts"
import type * as Storage from "./storage.ts"
import type * as Wire from "./wire.ts"

/** What `Cluster`, `StoredSleepers` and the engine have as constants; `simulate.test.ts` counts what comes of them. */
export const settings = {
  lookSeconds: 2,
  /** One replica asks all whether they live, ten at a time; over the engine's connections. */
  healthSeconds: 5,
  /** On each open connection, by whoever has opened it; and so long it may take until it is answered. */
  pingSeconds: 5,
  refreshesPerExpiration: 3.5,
  /** `Roster`: how often a replica says that its address is its own. */
  rosterPerExpiration: 4,
  upkeepSeconds: 60,
  /** Of sessions that are still awake, and of those that are removed. */
  keysPerStatement: 1000,
  connectionsPerReplica: 5,
  /** From each replica to each that it speaks with: the engine's, and that of `Links` for requests. */
  connectionsPerPeer: 2
}

export interface Assumptions {
  /** All of them, of back ends that are stateless: they sleep in PostgreSQL when they are not awake in a process. */
  readonly sessions: number
  readonly awakePart: number
  /** How long one is awake at a time, and how long one lives. */
  readonly stayMinutes: number
  readonly lifeHours: number
  readonly lockExpirationSeconds: number
  readonly databaseCores: number
  readonly databaseBytes: number
  readonly networkBytesPerSecond: number
}

export interface Constants {
  readonly bySize: ReadonlyArray<{ readonly replicas: number } & Storage.Figures & Engine.Figures>
  readonly asleep: Asleep.Figures
  readonly awake: Awake.Figures
  readonly wire: Wire.Figures
  /** What PostgreSQL gives to users, and Node and the system to a process. */
  readonly maxConnections: number
  readonly maxHeapBytes: number
  readonly maxFiles: number
}

export interface Rate {
  readonly calls: number
  readonly rows: number
}

/** Statements of all replicas, and the rows they have, in a second. */
export const rates = (replicas: number, assumptions: Assumptions): Readonly<Record<Measured, Rate>> => {
  const { refreshesPerExpiration, rosterPerExpiration, lookSeconds, keysPerStatement, upkeepSeconds } = settings
  const awake = assumptions.sessions * assumptions.awakePart
  const refreshes = refreshesPerExpiration / assumptions.lockExpirationSeconds
  const turns = awake / (assumptions.stayMinutes * 60)
  const opened = assumptions.sessions / (assumptions.lifeHours * 3600)
  const holders = Math.min(replicas, shardsPerGroup)
  const each = (calls: number): Rate => ({ calls, rows: calls })
  return {
    list: { calls: replicas / lookSeconds, rows: replicas ** 2 / lookSeconds },
    heartbeat: each(replicas * refreshes),
    roster: each(replicas * rosterPerExpiration / assumptions.lockExpirationSeconds),
    locks: { calls: holders * refreshes, rows: shardsPerGroup * refreshes },
    keep: {
      calls: (Math.ceil(awake / replicas / keysPerStatement) * replicas) / upkeepSeconds,
      rows: awake / upkeepSeconds
    },
    // All ask, one is to do it.
    due: { calls: replicas / upkeepSeconds, rows: 1 / upkeepSeconds },
    expire: { calls: (Math.floor(opened * upkeepSeconds / keysPerStatement) + 1) / upkeepSeconds, rows: opened },
    count: each(1 / upkeepSeconds),
    enter: each(opened),
    take: each(turns),
    rest: each(turns)
  }
}
export type Measured = Exclude<Statement, "register" | "acquire">

/** Between two measured sizes, and beyond them, as a power of the size. */
export const curve = (points: ReadonlyArray<readonly [size: number, value: number]>) => (size: number): number => {
  const [first, ...rest] = points.map(([size, value]) => [Math.log(size), Math.log(Math.max(value, 1e-9))] as const)
  if (first === undefined) return Number.NaN
  const x = Math.log(size)
  let [from, to] = [first, rest[0] ?? first]
  for (const [i, point] of rest.entries()) if (x > point[0]) [from, to] = [point, rest[i + 1] ?? to]
  if (from === to) from = [first, ...rest].at(-2) ?? first
  if (from === to) return Math.exp(from[1])
  return Math.exp(from[1] + ((x - from[0]) / (to[0] - from[0])) * (to[1] - from[1]))
}

type BySize = Constants["bySize"][number]
const at = ({ bySize }: Constants, size: number, value: (figures: BySize) => number): number =>
  curve(bySize.map((figures) => [figures.replicas, value(figures)]))(size)

/** Cores that PostgreSQL needs, by what for. */
export const databaseCores = (replicas: number, constants: Constants, assumptions: Assumptions) => {
  const { count, expire, enter, heartbeat, keep, list, locks, rest, roster, take } = rates(replicas, assumptions)
  const of = (value: (figures: BySize) => number) => at(constants, replicas, value) / 1e6
  const { asleep } = constants
  return {
    "the lists of replicas": list.calls * of(({ list }) => list.databaseMicros),
    "heartbeats and locks": locks.calls * of(({ refresh }) => refresh.databaseMicros) +
      (heartbeat.calls - locks.calls + roster.calls) * of(({ heartbeat }) => heartbeat.databaseMicros),
    "the count of all sleeping sessions once a minute": count.calls * asleep.upkeepMicros *
      (assumptions.sessions / asleep.rows) / 1e6,
    "the removal of those that have expired": expire.rows * asleep.removeMicros / 1e6,
    "sessions that are still awake": keep.rows * asleep.keepMicros / 1e6,
    "sessions that open, wake and go to sleep":
      (enter.calls * asleep.enterMicros + take.calls * asleep.takeMicros + rest.calls * asleep.restMicros) / 1e6
  }
}

/** The part of the movable sessions that the replica has which has most of them. */
const greatestPart = (replicas: number) => Math.ceil(shardsPerGroup / replicas) / shardsPerGroup

/** Of the event loop of the replica that has most to do; all others hold connections to it, and it to them. */
export const replicaCpu = (replicas: number, constants: Constants, assumptions: Assumptions): number => {
  const of = (value: (figures: BySize) => number) => at(constants, replicas, value) / 1e6
  const { connectionsPerPeer, healthSeconds, lookSeconds, pingSeconds, refreshesPerExpiration } = settings
  const looking = of(({ compareMicros, list }) => list.replicaMicros + compareMicros) / lookSeconds
  const refreshing = of(({ refresh }) => refresh.replicaMicros) * refreshesPerExpiration /
    assumptions.lockExpirationSeconds
  // Those it sends and those it answers; as the one that asks who lives it sends more.
  const pinging = (replicas - 1) * constants.wire.pingMicros / 1e6 *
    (connectionsPerPeer / pingSeconds + 1 / (2 * healthSeconds))
  return looking + refreshing + pinging
}

/** What goes on between replicas without any request, when each has had something to send to each. */
export const traffic = (replicas: number) => {
  const connections = settings.connectionsPerPeer * replicas * (replicas - 1)
  return {
    connections,
    pings: connections / settings.pingSeconds,
    // One of them asks all, itself too.
    healthPings: replicas / settings.healthSeconds
  }
}

export const replicaHeap = (replicas: number, { awake, wire, ...constants }: Constants, assumptions: Assumptions) => ({
  base: awake.baseBytes,
  sessions: assumptions.sessions * assumptions.awakePart * greatestPart(replicas) * awake.sessionBytes,
  assignments: at({ awake, wire, ...constants }, replicas, ({ heapBytes }) => heapBytes),
  connections: settings.connectionsPerPeer * (replicas - 1) * wire.connectionBytes
})

const sum = (parts: Readonly<Record<string, number>>) => Object.values(parts).reduce((sum, each) => sum + each, 0)

export interface Resource {
  readonly name: string
  readonly unit: string
  readonly load: number
  readonly limit: number
  /** What most of the load is. */
  readonly mostly?: string
  /** A setting lifts the limit. */
  readonly isSetting: boolean
}

const gib = 2 ** 30

/** What there is only so much of, and how much of it a cluster of this size takes. */
export const resources = (
  replicas: number,
  constants: Constants,
  assumptions: Assumptions
): ReadonlyArray<Resource> => {
  const { asleep, awake, maxConnections, maxFiles, maxHeapBytes } = constants
  const of = (value: (figures: BySize) => number) => at(constants, replicas, value)
  const heap = replicaHeap(replicas, constants, assumptions)
  const cores = databaseCores(replicas, constants, assumptions)
  const resource = (name: string, unit: string, load: number, limit: number, isSetting = false): Resource => ({
    name,
    unit,
    load,
    limit,
    isSetting
  })
  const { connectionsPerPeer, connectionsPerReplica, pingSeconds } = settings
  // Of the connections from it, and of those to it.
  const files = awake.baseFiles + 2 * connectionsPerPeer * (replicas - 1) +
    assumptions.sessions * assumptions.awakePart * greatestPart(replicas) * awake.sessionFiles
  return [
    resource("connections to PostgreSQL", "", replicas * connectionsPerReplica, maxConnections, true),
    { ...resource("CPU of PostgreSQL", "cores", sum(cores), assumptions.databaseCores), mostly: most(cores) },
    resource(
      "PostgreSQL's rows of sleeping sessions",
      "GiB",
      assumptions.sessions * (asleep.rowBytes + asleep.indexBytes) / gib,
      assumptions.databaseBytes / gib
    ),
    resource(
      "what PostgreSQL sends",
      "MB/s",
      rates(replicas, assumptions).list.calls * of(({ listBytes }) => listBytes) / 1e6,
      assumptions.networkBytesPerSecond / 1e6
    ),
    resource("shards: a replica more has none", "replicas", replicas, shardsPerGroup),
    resource("CPU of a replica, idle sessions", "cores", replicaCpu(replicas, constants, assumptions), 1),
    resource("a replica stands still when one comes or goes", "s", of((size) => size.changeMillis) / 1e3, pingSeconds),
    resource(
      "a replica stands still when it starts",
      "s",
      of((size) => size.startMillis) / 1e3,
      assumptions.lockExpirationSeconds,
      true
    ),
    { ...resource("heap of a replica", "GiB", sum(heap) / gib, maxHeapBytes / gib, true), mostly: most(heap) },
    resource("open files of a replica", "", files, maxFiles, true)
  ]
}

const most = (parts: Readonly<Record<string, number>>): string =>
  Object.entries(parts).toSorted(([, a], [, b]) => b - a)[0]?.[0] ?? ""

export interface Range {
  readonly resource: Resource
  /** How many replicas it takes at least, and how many it allows at most; `Infinity`: none, or more than were tried. */
  readonly least: number
  readonly greatest: number
}

/** More replicas than this nobody looks at. */
export const manyReplicas = 5000

/** What each resource allows, the first to be met first; each as it is just beyond its limit. */
export const ranges = (constants: Constants, assumptions: Assumptions): ReadonlyArray<Range> => {
  const all = Array.from({ length: manyReplicas }, (_, i) => resources(i + 1, constants, assumptions))
  const fits = (i: number, which: number) => {
    const resource = all[i]?.[which]
    return resource !== undefined && resource.load <= resource.limit
  }
  const found = (all[0] ?? []).flatMap((_, which) => {
    const first = all.findIndex((_, i) => fits(i, which))
    const over = first < 0 ? -1 : all.findIndex((_, i) => i > first && !fits(i, which))
    const resource = all[over < 0 ? manyReplicas - 1 : over]?.[which]
    if (resource === undefined) return []
    const greatest = first < 0 ? 0 : over < 0 ? Infinity : over
    return [{ resource, least: first < 0 ? Infinity : first + 1, greatest }]
  })
  return found.toSorted((a, b) => a.greatest - b.greatest)
}

/** The one that is met first when replicas are added. */
export const firstBottleneck = (constants: Constants, assumptions: Assumptions): Range | undefined =>
  ranges(constants, assumptions).find(({ greatest }) => greatest < Infinity)
