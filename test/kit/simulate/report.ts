/** What `npm run simulate` prints. */
import type { Counted } from "./counting.ts"
import type { Assumptions, Constants, Measured, Range, Resource } from "./model.ts"
import * as Model from "./model.ts"
import { rebalancing, shardsPerGroup } from "./ring.ts"

const table = (head: ReadonlyArray<string>, rows: ReadonlyArray<ReadonlyArray<string>>): string =>
  [head, head.map((_, i) => i === 0 ? "---" : "--:"), ...rows].map((cells) => `| ${cells.join(" | ")} |`).join("\n")

/** Three digits are all that is known. */
export const figure = (value: number): string => {
  if (!Number.isFinite(value)) return "–"
  const digits = value === 0 ? 0 : Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))))
  return Number(value.toFixed(Math.min(digits, 6))).toLocaleString("en", { maximumFractionDigits: 6 })
}

const kib = (bytes: number) => `${figure(bytes / 1024)} KiB`
const mib = (bytes: number) => `${figure(bytes / 2 ** 20)} MiB`
const of = (sizes: ReadonlyArray<number>) => sizes.map((size) => `${figure(size)} replicas`)

export const measured = ({ asleep, awake, bySize, wire }: Constants): string =>
  [
    table(["measured here", ...of(bySize.map(({ replicas }) => replicas))], [
      ["the list of replicas: CPU of PostgreSQL, µs", ...bySize.map(({ list }) => figure(list.databaseMicros))],
      ["the same: CPU of the replica, µs", ...bySize.map(({ list }) => figure(list.replicaMicros))],
      ["the same: kB sent", ...bySize.map(({ listBytes }) => figure(listBytes / 1000))],
      ["a heartbeat: CPU of PostgreSQL, µs", ...bySize.map(({ heartbeat }) => figure(heartbeat.databaseMicros))],
      ["a heartbeat and its locks: the same", ...bySize.map(({ refresh }) => figure(refresh.databaseMicros))],
      ["comparing the list with the last: CPU, ms", ...bySize.map(({ compareMicros }) => figure(compareMicros / 1000))],
      ["one comes or goes: a replica stands still, ms", ...bySize.map(({ changeMillis }) => figure(changeMillis))],
      ["a replica starts: it stands still, ms", ...bySize.map(({ startMillis }) => figure(startMillis))],
      ["who has which shard: heap, MiB", ...bySize.map(({ heapBytes }) => figure(heapBytes / 2 ** 20))]
    ]),
    "",
    `A sleeping session has ${figure(asleep.rowBytes)} bytes in its table and ${
      figure(asleep.indexBytes)
    } in the indexes. CPU of ` +
    `PostgreSQL when one is opened, woken, laid to rest: ${figure(asleep.enterMicros)}, ${
      figure(asleep.takeMicros)
    }, ` +
    `${figure(asleep.restMicros)} µs; each minute that it is awake: ${figure(asleep.keepMicros)} µs; removed: ${
      figure(asleep.removeMicros)
    } µs. The count of all ${figure(asleep.rows)}: ` +
    `${figure(asleep.upkeepMicros / 1000)} ms of CPU.`,
    `A session that is awake has ${
      kib(awake.sessionBytes)
    } of its replica's heap and ${awake.sessionFiles} open files, a replica ` +
    `by itself ${mib(awake.baseBytes)}. A connection between two replicas has ${
      kib(wire.connectionBytes)
    }, both ends together; a ` +
    `ping on it costs them ${figure(wire.pingMicros)} µs.`
  ].join("\n")

export const shards = (sizes: ReadonlyArray<number>, constants: Constants): string => {
  const all = sizes.map((size) => rebalancing(size))
  const change = Model.curve(constants.bySize.map(({ changeMillis, replicas }) => [replicas, changeMillis]))
  return table([`${shardsPerGroup} shards, by the engine's ring`, ...of(sizes)], [
    ["of a replica: most, fewest", ...all.map(({ fewest, most }) => `${most}, ${fewest}`)],
    ["replicas without one", ...all.map(({ withoutShard }) => figure(withoutShard))],
    ["move when one joins", ...all.map(({ atJoin }) => figure(atJoin))],
    ["move when one leaves", ...all.map(({ atLeave }) => figure(atLeave))],
    ["moves of each, all restarted one by one", ...all.map(({ atRestart }) => figure(atRestart))],
    ["meanwhile each replica stands still, s in all", ...sizes.map((size) => figure(2 * size * change(size) / 1000))]
  ])
}

const named: Readonly<Record<Measured, string>> = {
  list: "list of replicas",
  heartbeat: "heartbeat",
  roster: "the address is its own",
  locks: "refresh of locks",
  keep: "sessions still awake",
  due: "asking whether others are to be removed",
  expire: "removal of the expired",
  count: "count of all, for `maxAsleep`",
  enter: "session opened",
  take: "session woken",
  rest: "session laid to rest"
}
// The keys of a literal that nothing adds to.
const statements = Object.keys(named) as ReadonlyArray<Measured>

export const statementsPerSecond = (sizes: ReadonlyArray<number>, assumptions: Assumptions): string => {
  const all = sizes.map((size) => Model.rates(size, assumptions))
  return table(
    ["statements a second (rows)", ...of(sizes)],
    statements.map((name) => [
      named[name],
      ...all.map((rates) => `${figure(rates[name].calls)} (${figure(rates[name].rows)})`)
    ])
  )
}

/** What PostgreSQL's CPU goes to. */
export const cores = (sizes: ReadonlyArray<number>, constants: Constants, assumptions: Assumptions): string => {
  const all = sizes.map((size) => Object.values(Model.databaseCores(size, constants, assumptions)))
  const names = Object.keys(Model.databaseCores(1, constants, assumptions))
  return table(
    ["cores of PostgreSQL that are busy with", ...of(sizes)],
    names.map((name, i) => [name, ...all.map((parts) => figure(parts[i] ?? Number.NaN))])
  )
}

/** What the replicas have open and send to each other without any request, and what one of them has in memory. */
export const replicas = (sizes: ReadonlyArray<number>, constants: Constants, assumptions: Assumptions): string => {
  const traffic = sizes.map((size) => Model.traffic(size))
  const heaps = sizes.map((size) => Model.replicaHeap(size, constants, assumptions))
  const mebibytes = (value: (heap: (typeof heaps)[number]) => number) =>
    heaps.map((heap) => figure(value(heap) / 2 ** 20))
  return table(["between replicas, and in one of them", ...of(sizes)], [
    ["connections, two from each to each", ...traffic.map(({ connections }) => figure(connections))],
    ["pings a second, on each connection", ...traffic.map(({ pings }) => figure(pings))],
    ["pings a second, by the one that asks who lives", ...traffic.map(({ healthPings }) => figure(healthPings))],
    ["heap of one without sessions, MiB", ...mebibytes(({ base }) => base)],
    ["its sessions that are awake, MiB", ...mebibytes(({ sessions }) => sessions)],
    ["who has which shard, MiB", ...mebibytes(({ assignments }) => assignments)],
    ["its connections to the others, MiB", ...mebibytes(({ connections }) => connections)]
  ])
}

/** What the model says of as many replicas as were counted, beside what they sent. */
export const verified = (counted: Counted, replicas: number, seconds: number, assumptions: Assumptions): string => {
  const rates = Model.rates(replicas, assumptions)
  const compared = statements.filter((name) => !["enter", "take", "rest", "expire"].includes(name)).map((name) => {
    const sent = counted.sent.get(name)
    const { calls, rows } = rates[name]
    return `${named[name]} ${figure(sent?.calls ?? 0)} (${figure(sent?.rows ?? 0)} rows) of ` +
      `${figure(calls * seconds)} (${figure(rows * seconds)})`
  })
  const other = counted.sent.get("other")?.calls ?? 0
  return `${replicas} real replicas sent PostgreSQL in ${seconds} s, of what the model says: ${
    compared.join("; ")
  }; others ` +
    `${other}. At rest each has ${figure(counted.connectionsAtRest)} connections.`
}

const amount = (value: number, { unit }: Resource) => `${figure(value)}${unit === "" ? "" : ` ${unit}`}`

export const loads = (sizes: ReadonlyArray<number>, constants: Constants, assumptions: Assumptions): string => {
  const all = sizes.map((size) => Model.resources(size, constants, assumptions))
  const rows = Model.ranges(constants, assumptions).map(({ greatest, least, resource }) => [
    resource.name,
    amount(resource.limit, resource),
    ...all.map((resources) => {
      const load = resources.find(({ name }) => name === resource.name)?.load ?? Number.NaN
      return `${load > resource.limit ? "**" : ""}${figure(load)}${load > resource.limit ? "**" : ""}`
    }),
    greatest < Infinity ? figure(greatest) : `more than ${figure(Model.manyReplicas)}`,
    least > 1 ? figure(least) : ""
  ])
  return table(["load", "limit", ...of(sizes), "enough for", "takes at least"], rows)
}

const met = ({ greatest, resource }: Range) =>
  `${resource.name}, ${greatest === 0 ? "however many replicas" : `from ${figure(greatest + 1)} replicas on`}: ${
    amount(resource.load, resource)
  } of ${amount(resource.limit, resource)}${resource.mostly === undefined ? "" : `, most of it ${resource.mostly}`}`

/** What is nearest to its limit, or farthest beyond, at each size. */
const worst = (sizes: ReadonlyArray<number>, constants: Constants, assumptions: Assumptions) =>
  sizes.map((size) => {
    const all = Model.resources(size, constants, assumptions).map((each) => ({ ...each, part: each.load / each.limit }))
    const [first] = all.toSorted((a, b) => b.part - a.part)
    return `${figure(size)} replicas: ${first?.name}, ${figure(first?.part ?? Number.NaN)} times its limit.`
  })

export const bottleneck = (
  sizes: ReadonlyArray<number>,
  constants: Constants,
  assumptions: Assumptions
): string => {
  const reached = Model.ranges(constants, assumptions).filter(({ greatest }) => greatest < Infinity)
  const [first] = reached
  const fewest = Model.ranges(constants, assumptions).filter(({ least }) => least > 1 && least < Infinity)
    .toSorted((a, b) => b.least - a.least)[0]
  const hard = reached.find(({ resource }) => !resource.isSetting)
  return [
    ...worst(sizes, constants, assumptions),
    first === undefined
      ? `First bottleneck: none up to ${figure(Model.manyReplicas)} replicas.`
      : `First bottleneck: ${met(first)}.`,
    ...hard === undefined || hard === first ? [] : [`That is a setting. The first that is none: ${met(hard)}.`],
    ...fewest === undefined
      ? []
      : [`With fewer than ${figure(fewest.least)} replicas too much for one: ${fewest.resource.name}.`]
  ].join("\n")
}
