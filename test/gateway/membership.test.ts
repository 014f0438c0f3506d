/** How a replica acts as the owner of its shards: the engine's storage, and what is changed of it. */
import { assert, describe, it } from "@effect/vitest"
import { Clock, Context, Effect, Exit, Fiber, Layer, Logger, Option } from "effect"
import { RunnerAddress, RunnerStorage, ShardId, ShardingConfig } from "effect/cluster"
import { TestClock } from "effect/testing"
import * as Membership from "../../src/gateway/cluster/Membership.ts"
import * as RunnerDatabase from "../kit/cluster/runnerDatabase.ts"
import { expiration, nameOf, one, three, two } from "../kit/cluster/runners.ts"
import * as Random from "../kit/random.ts"

const config = ShardingConfig.layer({
  runnerAddress: Option.some(RunnerAddress.make("127.0.0.1", 1)),
  shardLockExpiration: expiration,
  shardLockRefreshInterval: 10_000
})

const address = RunnerAddress.make("127.0.0.1", 1)
const [shared, other] = [ShardId.make("default", 1), ShardId.make("default", 2)]

const mayAct = (membership: Membership.Knowledge) => membership.safeFor() > 0

/** A replica's membership, over a storage that does as it is told. */
const make = Effect.gen(function*() {
  const { calls, state, storage } = yield* RunnerDatabase.make([one, two])
  const services = yield* Layer.build(Membership.layerOver.pipe(
    Layer.provide(Layer.succeed(RunnerStorage.RunnerStorage, storage)),
    Layer.provide(config)
  ))
  return {
    calls,
    state,
    membership: Context.get(services, Membership.Membership),
    storage: Context.get(services, RunnerStorage.RunnerStorage)
  }
})

describe("the locks of a replica", () => {
  it.effect("a lock counts as held from its acquisition until shortly before it may expire", () =>
    Effect.gen(function*() {
      const { membership, storage } = yield* make
      assert.isFalse(mayAct(membership))
      assert.deepStrictEqual(yield* storage.acquire(address, [shared, other]), [shared, other])
      assert.isTrue(mayAct(membership))
      yield* TestClock.adjust(0.9 * expiration - 1)
      assert.isTrue(mayAct(membership))
      yield* TestClock.adjust(1)
      assert.isFalse(mayAct(membership))
      yield* storage.acquire(address, [other])
      assert.isFalse(mayAct(membership))
      yield* storage.refresh(address, [shared])
      assert.isTrue(mayAct(membership))
    }))

  it.effect("a lock is not acquired without the database, and is lost when another replica has taken it", () =>
    Effect.gen(function*() {
      const { calls, state, storage } = yield* make
      state.mood = "away"
      yield* Effect.flip(storage.acquire(address, [shared]))
      state.mood = "well"
      state.lost.add(shared.toString())
      assert.deepStrictEqual(yield* storage.refresh(address, [shared, other]), [other])
      assert.deepStrictEqual(calls, ["acquire", "refresh"])
    }))

  it.effect("locks are kept during an outage, and are released while they are still safe", () =>
    Effect.gen(function*() {
      const { membership, state, storage } = yield* make
      yield* storage.acquire(address, [shared, other])
      state.mood = "away"
      const all = [other, shared]
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual(yield* storage.refresh(address, all), all)
      yield* TestClock.adjust("10 seconds")
      assert.deepStrictEqual(yield* storage.refresh(address, all), all)
      yield* TestClock.adjust("2 seconds")
      assert.deepStrictEqual(yield* storage.refresh(address, all), [])
      assert.isTrue(mayAct(membership))
    }))

  it.effect("locks are released in time when the database never answers", () =>
    Effect.gen(function*() {
      for (const mood of ["silent", "stuck"] as const) {
        const { membership, state, storage } = yield* make
        const at = membership.now()
        yield* storage.acquire(address, [shared])
        state.mood = mood
        yield* TestClock.adjust("10 seconds")
        const first = yield* Effect.forkChild(storage.refresh(address, [shared]))
        yield* TestClock.adjust("5 seconds")
        assert.deepStrictEqual(first.pollUnsafe(), Exit.succeed([shared]), mood)
        assert.strictEqual(membership.known.lostAt, at + 15_000)
        yield* TestClock.adjust("5 seconds")
        const second = yield* Effect.forkChild(storage.refresh(address, [shared]))
        yield* TestClock.adjust("5 seconds")
        assert.deepStrictEqual(second.pollUnsafe(), Exit.succeed([]), mood)
      }
    }))

  it.effect("a lock counts from the time of its request, however late the answer comes", () =>
    Effect.gen(function*() {
      const { membership, state, storage } = yield* make
      const confirmedAt = () => membership.known.confirmedAt
      state.mood = "slow"
      const acquiring = yield* Effect.forkChild(storage.acquire(address, [shared]))
      yield* TestClock.adjust("4 seconds")
      yield* Fiber.join(acquiring)
      assert.strictEqual(confirmedAt(), 0)
      const refreshing = yield* Effect.forkChild(storage.refresh(address, [shared]))
      yield* TestClock.adjust("4 seconds")
      yield* Fiber.join(refreshing)
      assert.strictEqual(confirmedAt(), 4000)
    }))

  it.effect("a lock ends in time when the clock is set back, and when it jumps forward after a sleep", () =>
    Effect.gen(function*() {
      const wall = { offset: 0 }
      const clock = yield* Clock.Clock
      const { membership, storage } = yield* Effect.provideService(make, Clock.Clock, {
        ...clock,
        currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + wall.offset,
        monotonicTimeNanosUnsafe: () => clock.currentTimeNanosUnsafe()
      })
      for (const jump of [-60_000, 30_000]) {
        yield* storage.refresh(address, [shared])
        yield* TestClock.adjust("10 seconds")
        wall.offset += jump
        assert.strictEqual(mayAct(membership), jump < 0)
        yield* TestClock.adjust(0.9 * expiration - 10_000)
        assert.isFalse(mayAct(membership))
      }
    }))

  it.effect("a replica whose address another one has taken sends no statement about its locks", () =>
    Effect.gen(function*() {
      const { calls, membership, storage } = yield* make
      yield* storage.acquire(address, [shared])
      yield* membership.replace
      assert.isFalse(mayAct(membership))
      assert.deepStrictEqual(yield* storage.refresh(address, [shared]), [])
      assert.deepStrictEqual(yield* storage.acquire(address, [shared]), [])
      yield* storage.release(address, shared)
      yield* storage.releaseAll(address)
      yield* storage.unregister(address)
      assert.deepStrictEqual(calls, ["acquire"])
    }))

  it.effect("a failed release is retried every second until it succeeds", () =>
    Effect.gen(function*() {
      const { calls, state, storage } = yield* make
      state.mood = "away"
      const releasing = yield* Effect.forkChild(storage.release(address, shared))
      yield* TestClock.adjust("9500 millis")
      assert.lengthOf(calls, 10)
      state.mood = "well"
      yield* TestClock.adjust("500 millis")
      assert.isDefined(releasing.pollUnsafe())
      yield* Fiber.join(releasing)
    }))
})

describe("the end of a replica", () => {
  it.effect("a replica that leaves waits at most three seconds for a release that it has begun before", () =>
    Effect.gen(function*() {
      for (const mood of ["away", "silent"] as const) {
        const { state, storage } = yield* make
        state.mood = mood
        const releasing = yield* Effect.forkChild(storage.release(address, shared))
        yield* TestClock.adjust("1 minute")
        assert.isUndefined(releasing.pollUnsafe())
        yield* Effect.forkChild(storage.unregister(address))
        yield* TestClock.adjust("3 seconds")
        assert.isDefined(releasing.pollUnsafe(), mood)
        yield* Fiber.join(releasing)
      }
    }))

  it.effect("a replica that leaves waits at most three seconds for a silent database, and not for one that fails", () =>
    Effect.gen(function*() {
      const { calls, state, storage } = yield* make
      yield* storage.acquire(address, [shared])
      state.mood = "silent"
      // Not at the end, it has to know that they are given back.
      const before = yield* Effect.forkChild(storage.releaseAll(address))
      yield* TestClock.adjust("1 minute")
      assert.isUndefined(before.pollUnsafe())
      yield* Fiber.interrupt(before)
      const ends = [storage.unregister(address), storage.release(address, shared), storage.releaseAll(address)]
      for (const end of ends) {
        const ending = yield* Effect.forkChild(end)
        yield* TestClock.adjust("2999 millis")
        assert.isUndefined(ending.pollUnsafe())
        yield* TestClock.adjust("1 millis")
        yield* Fiber.join(ending)
      }
      state.mood = "away"
      for (const end of ends) yield* end
      const asked = ["unregister", "release", "releaseAll"]
      assert.deepStrictEqual(calls, ["acquire", "releaseAll", ...asked, ...asked])
    }))
})

describe("the locks of occupied shards", () => {
  it.effect("the lock of an occupied shard is released when its session has ended, and other locks at once", () =>
    Effect.gen(function*() {
      const { calls, membership, storage } = yield* make
      const occupied = new Set([shared.toString()])
      membership.isOccupied = (shard) => shard === undefined ? occupied.size > 0 : occupied.has(shard.toString())
      yield* storage.release(address, other)
      const releasing = yield* Effect.forkChild(storage.release(address, shared))
      yield* TestClock.adjust("1 minute")
      assert.isUndefined(releasing.pollUnsafe())
      assert.deepStrictEqual(calls, ["release"])
      occupied.clear()
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(releasing)
      assert.deepStrictEqual(calls, ["release", "release"])
    }))

  it.effect("a release that waits or is retried does not delete a lock that was acquired again", () =>
    Effect.gen(function*() {
      for (const wait of ["occupied", "away"]) {
        const { calls, membership, state, storage } = yield* make
        let isOccupied = wait === "occupied"
        membership.isOccupied = () => isOccupied
        if (wait === "away") state.mood = "away"
        const releasing = yield* Effect.forkChild(storage.release(address, shared))
        yield* TestClock.adjust("500 millis")
        state.mood = "well"
        yield* storage.acquire(address, [shared])
        isOccupied = false
        yield* TestClock.adjust("2 seconds")
        yield* Fiber.join(releasing)
        assert.deepStrictEqual(calls, wait === "away" ? ["release", "acquire"] : ["acquire"])
        yield* storage.release(address, shared)
        assert.strictEqual(calls.at(-1), "release")
      }
    }))

  it.effect("the lock of an occupied shard is released after five minutes at the latest", () =>
    Effect.gen(function*() {
      const { calls, membership, storage } = yield* make
      membership.isOccupied = () => true
      const releasing = yield* Effect.forkChild(storage.release(address, shared))
      yield* TestClock.adjust("299 seconds")
      assert.deepStrictEqual(calls, [])
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(releasing)
      assert.deepStrictEqual(calls, ["release"])
    }))

  it.effect("a replica that leaves releases an occupied shard only if its session ends within three seconds", () =>
    Effect.gen(function*() {
      for (const lived of [2500, 3500]) {
        const { calls, membership, storage } = yield* make
        let isOccupied = true
        membership.isOccupied = () => isOccupied
        yield* storage.unregister(address)
        const releasing = yield* Effect.forkChild(
          Effect.all([storage.release(address, shared), storage.releaseAll(address)], { concurrency: "unbounded" })
        )
        yield* TestClock.adjust(lived)
        isOccupied = false
        yield* TestClock.adjust("1 second")
        yield* Fiber.join(releasing)
        assert.deepStrictEqual(calls, lived < 3000 ? ["unregister", "release", "releaseAll"] : ["unregister"])
      }
    }))
})

describe("the list of replicas", () => {
  const [second, third] = [nameOf(two), nameOf(three)]

  it.effect("the other replicas are those of the last list, without this one", () =>
    Effect.gen(function*() {
      const { membership, state, storage } = yield* make
      assert.deepStrictEqual(membership.others(), [])
      assert.deepStrictEqual(yield* storage.getRunners, [one, two])
      assert.deepStrictEqual(membership.others(), [second])
      state.runners = [one, three]
      yield* storage.getRunners
      assert.deepStrictEqual(membership.others(), [third])
    }))

  it.effect("the log has each replica that joins or leaves, and each outage of the database", () =>
    Effect.gen(function*() {
      const { state, storage } = yield* make
      const lines: Array<string> = []
      const logger = Logger.make(({ message }) => void lines.push(String(message)))
      yield* Effect.gen(function*() {
        yield* storage.getRunners
        yield* storage.getRunners
        state.runners = [one, three]
        yield* storage.getRunners
        state.mood = "away"
        for (let i = 0; i < 2; i++) yield* Effect.flip(storage.getRunners)
        yield* TestClock.adjust("20 seconds")
        state.mood = "well"
        for (let i = 0; i < 2; i++) yield* storage.getRunners
      }).pipe(Effect.provide(Logger.layer([logger])))
      assert.deepStrictEqual(lines, [
        `replica ${second} at 127.0.0.1:2 has joined`,
        `replica ${third} at 127.0.0.1:3 has joined`,
        `replica ${second} at 127.0.0.1:2 has gone`,
        "the database does not answer",
        "the database answers again, after 20 seconds"
      ])
    }))

  it.effect("an unknown name lists the replicas again, but not twice within half a second, and is undecided without the database", () =>
    Effect.gen(function*() {
      const { calls, membership, state, storage } = yield* make
      yield* storage.getRunners
      assert.isTrue(yield* membership.isThere(second))
      assert.isFalse(yield* membership.isThere(third))
      assert.lengthOf(calls, 1)
      yield* TestClock.adjust("500 millis")
      state.runners = [one, two, three]
      assert.isTrue(yield* membership.isThere(third))
      assert.lengthOf(calls, 2)
      yield* TestClock.adjust("500 millis")
      state.mood = "away"
      assert.isTrue(yield* membership.isThere(third))
      assert.isUndefined(yield* membership.isThere("r0000000000"))
      for (const mood of ["silent", "stuck"] as const) {
        state.mood = mood
        const asking = yield* Effect.forkChild(membership.isThere("r0000000000"))
        yield* TestClock.adjust("5 seconds")
        assert.deepStrictEqual(asking.pollUnsafe(), Exit.succeed(undefined), mood)
      }
    }))

  it.effect("replicas stay listed after an outage until they have had time to report again", () =>
    Effect.gen(function*() {
      const { membership, state, storage } = yield* make
      yield* storage.getRunners
      state.mood = "away"
      yield* Effect.flip(storage.getRunners)
      yield* TestClock.adjust("1 minute")
      assert.deepStrictEqual(membership.others(), [second])
      state.mood = "well"
      state.runners = [one]
      assert.deepStrictEqual(yield* storage.getRunners, [one, two])
      assert.isTrue(yield* membership.isThere(second))
      yield* TestClock.adjust(expiration * 0.66)
      assert.deepStrictEqual(yield* storage.getRunners, [one, two])
      yield* TestClock.adjust(expiration * 0.01)
      assert.deepStrictEqual(yield* storage.getRunners, [one])
      assert.isFalse(yield* membership.isThere(second))
    }))

  const portsOf = ({ replicas }: Membership.Known) => [...replicas.values()].map(([{ address }]) => address.port)
  const { ended, nothingKnown } = Membership
  const listed = (known: Membership.Known, now: number, ...runners: ReadonlyArray<Membership.Listed>) =>
    Membership.listed(runners, now, expiration, nameOf(one))(known)

  it("replicas stay listed after a second outage that follows the first", () => {
    const outage = (known: Membership.Known, from: number, to: number) =>
      ended(to, expiration, true)(ended(from, expiration, false)(known))
    const first = outage(listed(nothingKnown, 0, one, two, three), 1000, 60_000)
    const second = outage(listed(first, 61_000, one, two, three), 62_000, 64_000)
    assert.deepStrictEqual(portsOf(listed(second, 65_000, one)), [1, 2, 3])
  })

  it("replicas that report in time stay listed through any outages", () => {
    for (let seed = 1; seed <= 200; seed++) {
      const random = Random.make(seed)
      const interval = expiration / 3.5
      const others = [one, two, three].map((each) => ({
        each,
        reported: 0,
        due: random.below(interval),
        isConnected: true
      }))
      let known = listed(nothingKnown, 0, one, two, three)
      let isAway = false
      let since = 0
      for (let now = 0; now < 300_000; now += 500) {
        if (now - since > 3000 && random.chance(isAway ? 0.02 : 0.03)) {
          isAway = !isAway
          since = now
        }
        for (const other of others) {
          if (other.due > now) continue
          other.due += interval
          // The first report on a new connection may fail. The next one succeeds.
          if (!isAway && (other.isConnected || random.chance(0.5))) other.reported = now
          other.isConnected = !isAway
        }
        if (now % 2000 !== 0) continue
        known = ended(now, expiration, !isAway)(known)
        if (isAway) continue
        // As in PostgreSQL, the list has the replicas that reported within the lock expiration.
        known = listed(
          known,
          now,
          ...others.filter(({ reported }) => reported > now - expiration).map(({ each }) => each)
        )
        assert.deepStrictEqual(portsOf(known).toSorted(), [1, 2, 3], `seed ${seed}, at ${now}`)
      }
    }
  })
})
