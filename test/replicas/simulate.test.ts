/** `npm run simulate`: what it takes for granted of the engine is so, and what it says follows from what was measured. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, HashRing } from "effect"
import { RunnerAddress } from "effect/cluster"
import * as Counting from "../kit/simulate/counting.ts"
import * as Database from "../kit/simulate/database.ts"
import type { Assumptions, Constants } from "../kit/simulate/model.ts"
import * as Model from "../kit/simulate/model.ts"
import * as Ring from "../kit/simulate/ring.ts"

const counted = { replicas: 2, seconds: 60, awake: 1200 }
const assumptions: Assumptions = {
  sessions: 10_000_000,
  awakePart: 0.01,
  stayMinutes: 30,
  lifeHours: 24,
  lockExpirationSeconds: 35,
  databaseCores: 8,
  databaseBytes: 32 * 2 ** 30,
  networkBytesPerSecond: 125e6
}

/** Of the size of those that were measured. */
const sizeOf = (replicas: number): Constants["bySize"][number] => ({
  replicas,
  list: { databaseMicros: 50 + replicas / 2, replicaMicros: 100 + replicas * 10 },
  heartbeat: { databaseMicros: 100, replicaMicros: 100 },
  refresh: { databaseMicros: 300, replicaMicros: 300 },
  locks: Math.ceil(300 / replicas),
  listBytes: replicas * 105,
  changeMillis: replicas / 2,
  startMillis: replicas ** 2 / 100,
  compareMicros: replicas * 15,
  heapBytes: replicas * 1e5
})
const constants: Constants = {
  bySize: [10, 100, 1000].map(sizeOf),
  asleep: {
    rows: 300_000,
    rowBytes: 430,
    indexBytes: 90,
    enterMicros: 400,
    takeMicros: 200,
    restMicros: 200,
    keepMicros: 50,
    upkeepMicros: 30_000,
    removeMicros: 20
  },
  awake: { baseBytes: 5e7, baseFiles: 34, sessionBytes: 55_000, sessionFiles: 3 },
  wire: { pingMicros: 200, connectionBytes: 65_000 },
  maxConnections: 97,
  maxHeapBytes: 4e9,
  maxFiles: 1e6
}

const names = (all: ReadonlyArray<Ring.Address>) => all.map(String)

describe("two real replicas and their PostgreSQL", () => {
  it.live(
    "send the statements that the model says, and no others, and share the shards as its ring does",
    () =>
      Effect.gen(function*() {
        const database = yield* Database.make
        const { owners, ports, sent } = yield* Counting.count(database, counted)
        const rates = Model.rates(counted.replicas, { ...assumptions, sessions: counted.awake, awakePart: 1 })
        for (const name of ["list", "heartbeat", "roster", "locks", "keep", "due", "expire", "count"] as const) {
          const expected = rates[name].calls * counted.seconds
          // A cycle of some seconds may take a step longer each time, when the database is slow.
          const slack = expected / 10
          assert.approximately(sent.get(name)?.calls ?? 0, expected, slack, name)
        }
        for (const name of ["list", "locks", "keep", "due", "count"] as const) {
          const { calls = 0, rows = 0 } = sent.get(name) ?? {}
          assert.approximately(rows / calls, rates[name].rows / rates[name].calls, 1e-9, `rows of ${name}`)
        }
        assert.strictEqual(sent.get("other"), undefined)

        const ring = Ring.assign(ports.map((port) => RunnerAddress.make("127.0.0.1", port)))
        assert.deepStrictEqual(
          owners,
          ring.map(({ host, port }, i) => ({ shard: i + 1, address: `${host}:${port}` }))
        )
      }),
    180_000
  )
})

describe("the shards of a cluster", () => {
  it("have one owner each, and no replica has more than its part while there are more shards than replicas", () => {
    for (const count of [10, 100, 1000]) {
      const all = Ring.addresses(count)
      const owners = Ring.assign(all)
      const shares = Ring.sharesOf(all, owners)
      assert.strictEqual(owners.length, Ring.shardsPerGroup)
      assert.strictEqual(shares.length, count)
      assert.strictEqual(shares.reduce((sum, share) => sum + share, 0), Ring.shardsPerGroup)
      assert.strictEqual(Math.max(...shares), Math.ceil(Ring.shardsPerGroup / count))
      assert.strictEqual(Math.min(...shares), Math.floor(Ring.shardsPerGroup / count))
    }
  })

  it("leave with their replica, others move because none may have more than its part, and all come back with it", () => {
    const all = Ring.addresses(10)
    const [gone, ...left] = all
    const before = Ring.assign(all)
    const after = Ring.assign(left)
    assert.notInclude(names(after), String(gone))
    const own = before.filter((owner) => String(owner) === String(gone)).length
    assert.isAbove(Ring.moved(before, after), own)
    // Only those of the replica that has gone would move on the ring alone, without parts.
    const [whole, smaller] = [HashRing.make<Ring.Address>(), HashRing.make<Ring.Address>()]
    HashRing.addMany(whole, all)
    HashRing.addMany(smaller, left)
    for (let i = 0; i < Ring.shardsPerGroup; i++) {
      const [now, then] = [HashRing.get(whole, `shard-${i}`), HashRing.get(smaller, `shard-${i}`)]
      if (String(now) !== String(gone)) assert.strictEqual(String(then), String(now))
    }
    // It comes back to a ring that has changed meanwhile.
    if (gone !== undefined) HashRing.add(smaller, gone)
    assert.deepStrictEqual(names(HashRing.getShards(smaller, Ring.shardsPerGroup) ?? []), names(before))
  })
})

describe("the first bottleneck", () => {
  const first = (changed: Partial<Constants>, assumed: Partial<Assumptions> = {}) =>
    Model.firstBottleneck({ ...constants, ...changed }, { ...assumptions, ...assumed })

  const many = { maxConnections: 100_000 }
  const dear = {
    ...many,
    bySize: constants.bySize.map((size) => ({
      ...size,
      list: { ...size.list, databaseMicros: size.replicas * 1000 }
    }))
  }

  it("is another one when the limit or the cost is another one", () => {
    assert.include(first({}), { greatest: 19 })
    assert.strictEqual(first({})?.resource.name, "connections to PostgreSQL")
    assert.include(first(many), { greatest: 300 })
    assert.strictEqual(first(many)?.resource.name, "shards: a replica more has none")
    assert.strictEqual(first(many, { networkBytesPerSecond: 1e6 })?.resource.name, "what PostgreSQL sends")
    assert.strictEqual(first(dear)?.resource.name, "CPU of PostgreSQL")
    assert.strictEqual(first(dear)?.resource.mostly, "the lists of replicas")
    const slow = { ...many, bySize: constants.bySize.map((size) => ({ ...size, changeMillis: size.replicas * 100 })) }
    assert.include(first(slow)?.resource.name ?? "", "stands still when one comes")
    // However many replicas there are, the rows do not fit.
    assert.include(first({}, { sessions: 1e9, databaseCores: 1e9 }), { greatest: 0, least: Infinity })
  })

  it("is met at the size that is said: what is there at one replica less is enough", () => {
    const all = { ...constants, ...dear }
    const at = (size: number) =>
      Model.resources(size, all, assumptions).find(({ name }) => name === "CPU of PostgreSQL")?.load ?? Number.NaN
    const greatest = Model.firstBottleneck(all, assumptions)?.greatest ?? Number.NaN
    assert.isAtMost(at(greatest), assumptions.databaseCores)
    assert.isAbove(at(greatest + 1), assumptions.databaseCores)
  })

  it("comes of figures between and beyond the measured sizes as a power goes on", () => {
    const square = Model.curve([[10, 1], [100, 100], [1000, 1000]])
    for (const [size, value] of [[10, 1], [31.622776, 10], [100, 100], [1000, 1000], [10_000, 10_000]] as const) {
      assert.approximately(square(size), value, value / 1000)
    }
  })
})
