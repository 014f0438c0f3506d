/** Three replicas of which one fails, each in its way: what its sessions' clients see, and that nobody else sees anything. */
import { Effect } from "effect"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, assert, beforeAll, describe, it, vi } from "vitest"
import * as Counting from "../kit/counting.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import type { Cluster, Replica } from "../kit/replicas.ts"
import * as Replicas from "../kit/replicas.ts"

vi.setConfig({ testTimeout: 120_000, hookTimeout: 120_000 })

const directory = mkdtempSync(join(tmpdir(), "failures-"))
const notes = join(directory, "served")
const pinned = "/mcp/pinned"
const stateless = "/mcp/stateless"

let cluster: Cluster
let one: Replica
let two: Replica
let three: Replica
beforeAll(async () => {
  cluster = await Replicas.start({
    backends: { pinned: Counting.backend(notes), stateless: { ...Counting.backend(notes), stateless: true } }
  })
  const [first, second, third] = cluster.replicas
  if (first === undefined || second === undefined || third === undefined) throw new Error("not three replicas")
  one = first
  two = second
  three = third
})
afterAll(async () => {
  await cluster.stop()
  rmSync(directory, { recursive: true })
})

const pause = (seconds: number) => new Promise((resolve) => setTimeout(resolve, seconds * 1000))
/** A session is given up when its owner's lock is; what is added is for the machine, which is busy. */
const takeover = Replicas.lockExpirationSeconds + 6

/** Some sessions of a replica, called once each through another. */
const sessionsOf = async (replica: Replica, count = 4) => {
  const through = replica === two ? three : two
  const all = {
    pinned: await Counting.openMany(replica.origin, pinned, count),
    stateless: await Counting.openMany(replica.origin, stateless, count)
  }
  for (const session of [...all.pinned, ...all.stateless]) {
    assert.strictEqual((await Counting.call(through.origin, session))._tag, "Counted")
  }
  return all
}
type Both = Awaited<ReturnType<typeof sessionsOf>>
const both = (...sessions: ReadonlyArray<Both>) => sessions.flatMap((one) => [...one.pinned, ...one.stateless])

/** Takes each of some origins in turn. */
const inTurn = (...origins: ReadonlyArray<string>) => {
  let turn = 0
  return () => origins[turn++ % origins.length] ?? ""
}

const lastOf = (sessions: ReadonlyArray<Counting.Session>) => sessions.map(({ outcomes }) => outcomes.at(-1)?._tag)
const assertAll = (sessions: ReadonlyArray<Counting.Session>, tag: Counting.Outcome["_tag"]) =>
  assert.deepStrictEqual(lastOf(sessions), sessions.map(() => tag), JSON.stringify(lastOutcomes(sessions)))
const lastOutcomes = (sessions: ReadonlyArray<Counting.Session>) => sessions.map(({ outcomes }) => outcomes.slice(-3))

/** Nothing crossed, whatever else has happened. */
const assertNoFaults = (...sessions: ReadonlyArray<Both>) => {
  assert.deepStrictEqual(
    sessions.flatMap((one) => [
      ...one.pinned.flatMap((session) => Counting.faults(session, "pinned")),
      ...one.stateless.flatMap((session) => Counting.faults(session, "stateless"))
    ]),
    []
  )
  assert.deepStrictEqual(Counting.overlaps(notes), [])
}

/** New sessions open at once, at all that are there. */
const assertOpens = async (...replicas: ReadonlyArray<Replica>) => {
  for (const { origin } of replicas) {
    const at = Date.now()
    for (const path of [pinned, stateless]) {
      const session = await Counting.open(origin, path)
      assert.strictEqual((await Counting.call(origin, session))._tag, "Counted")
    }
    assert.isBelow(Date.now() - at, 4000)
  }
}

const unnoticed = (sessions: ReadonlyArray<Counting.Session>, since: number, exceptBefore = since) => {
  const noticed = sessions.flatMap(({ name, outcomes }) =>
    outcomes.filter(({ _tag, at }) =>
      at >= since && _tag !== "Counted" && !(_tag === "Unreachable" && at < exceptBefore)
    )
      .map((outcome) => ({ name, ...outcome }))
  )
  assert.deepStrictEqual(noticed.slice(0, 5), [], `${noticed.length} of ${sessions.length} sessions' calls`)
}

describe("a replica that is killed", () => {
  it("takes its pinned sessions along, each 404 in time; its stateless ones wake elsewhere; no other notices", async () => {
    const lost = await sessionsOf(one)
    const others = [await sessionsOf(two), await sessionsOf(three)]
    const orphans = Kit.children(one.pid())
    assert.isAtLeast(orphans.length, 8)
    const running = Counting.traffic(both(lost, ...others), inTurn(cluster.balancer.origin))
    await pause(1)
    const at = Date.now()
    await one.stop("SIGKILL")
    await assertOpens(two, three)
    await Counting.open(cluster.balancer.origin, pinned)
    await pause(takeover)
    await running.stop()

    // What was on its way through the killed one is lost to whoever's it was; nothing later is.
    unnoticed(both(...others), at - 2000, at + 500)
    assertAll(both(...others), "Counted")
    assertAll(lost.pinned, "Gone")
    assertAll(lost.stateless, "Counted")
    for (const { name, outcomes } of lost.pinned) {
      assert.isBelow((outcomes.at(-1)?.at ?? 0) + (outcomes.at(-1)?.millis ?? 0) - at, takeover * 1000, name)
    }
    assertNoFaults(lost, ...others)
    await Kit.eventually("its processes are gone", () => !orphans.some(Kit.alive))

    await one.start()
    await assertOpens(one, two, three)
    const again = Counting.traffic(both(...others), inTurn(one.origin, two.origin, three.origin))
    await pause(2)
    await again.stop()
    unnoticed(both(...others), at + 500)
    assertNoFaults(lost, ...others)
  })
})

describe("a replica that is frozen past its lock, and woken,", () => {
  it("serves none of its sessions beside their new owners", async () => {
    const lost = await sessionsOf(one)
    const others = [await sessionsOf(two), await sessionsOf(three)]
    const running = Counting.traffic(both(...others), inTurn(two.origin, three.origin))
    one.signal("SIGSTOP")
    const at = Date.now()
    // These reach it when it wakes: it may not know yet that it has lost them.
    for (const { outcomes } of both(lost)) {
      outcomes.push({ _tag: "Failed", message: "sent while frozen", at, millis: 0 })
    }
    const lateCalls = both(lost).map(({ id, name, path }): Counting.Session => ({ id, name, path, outcomes: [] }))
    const late = Promise.all(lateCalls.map((session) => Counting.call(one.origin, session)))
    await pause(1)
    const calling = Counting.traffic(both(lost), inTurn(two.origin, three.origin))
    await pause(takeover + 1)
    await calling.stop()
    assertAll(lost.pinned, "Gone")
    assertAll(lost.stateless, "Counted")

    one.signal("SIGCONT")
    const after = Counting.traffic(both(lost), inTurn(two.origin, three.origin), 20)
    await late
    await pause(3)
    await after.stop()
    await running.stop()
    unnoticed(both(...others), at)
    assertAll(both(...others), "Counted")
    assertNoFaults(lost, ...others)
    for (const session of lateCalls) assert.deepStrictEqual(session.outcomes.filter(({ _tag }) => _tag === "Wrong"), [])
    // A pinned session that was answered 404 is nobody's any more, and none of its calls is carried out.
    assert.isFalse(lateCalls.slice(0, lost.pinned.length).some(({ outcomes }) => outcomes[0]?._tag === "Counted"))

    await Kit.eventually("the woken one is ready", async () => (await one.readiness()).http === 200, 40)
    await assertOpens(one, two, three)
    assertNoFaults(lost, ...others)
  })
})

describe("replicas that lose the database for 20 seconds", () => {
  it("go on with the sessions that they have, say so, and need nobody's help afterwards", async () => {
    const { postgres } = cluster
    if (postgres === undefined) throw new Error("there is no database")
    const sessions = [await sessionsOf(one), await sessionsOf(two), await sessionsOf(three)]
    const running = Counting.traffic(both(...sessions), inTurn(one.origin, two.origin, three.origin))
    await pause(1)
    const at = Date.now()
    await Effect.runPromise(postgres.stop)
    const databases = async () =>
      (await Promise.all(cluster.replicas.map((replica) => replica.readiness()))).map(({ cluster }) =>
        cluster?.database
      )
    await Kit.eventually(
      "they say that it is unreachable",
      async () => (await databases()).every((state) => state === "unreachable"),
      15
    )
    await pause(Math.max(0, 20 - (Date.now() - at) / 1000))
    await Effect.runPromise(postgres.start)
    await Kit.eventually(
      "they say that it is there",
      async () => (await databases()).every((state) => state === "ok"),
      20
    )
    await Kit.eventually("they are ready", async () => {
      const all = await Promise.all(cluster.replicas.map((replica) => replica.readiness()))
      return all.every(({ http }) => http === 200)
    }, 20)
    await pause(3)
    await running.stop()
    unnoticed(both(...sessions), at)
    assertAll(both(...sessions), "Counted")
    await assertOpens(one, two, three)
    assertNoFaults(...sessions)
  })
})

describe("connections between two replicas that are cut for 5 seconds", () => {
  it("cost clear errors at most where they were needed, and nothing else; all is well when they are back", async () => {
    const sessions = [await sessionsOf(one), await sessionsOf(two), await sessionsOf(three)]
    const origins = [one.origin, two.origin, three.origin]
    const running = Counting.traffic(both(...sessions), inTurn(...origins))
    await pause(1)
    assert.isAbove(one.cutter.total() + two.cutter.total(), 0)
    one.cutter.cut([two.pid()])
    two.cutter.cut([one.pid()])
    const at = Date.now()
    await pause(5)
    one.cutter.mend()
    two.cutter.mend()
    await running.stop()
    const counts = Counting.tally(both(...sessions), at)
    // Those who do not have to cross the cut go on.
    unnoticed(both(...sessions.slice(2)), at)
    assert.deepStrictEqual(
      [counts.Wrong ?? 0, counts.Unreachable ?? 0, counts.Gone ?? 0],
      [0, 0, 0],
      JSON.stringify(counts)
    )
    const mended = Date.now()
    const again = Counting.traffic(both(...sessions), inTurn(...origins))
    await pause(10)
    await again.stop()
    unnoticed(both(...sessions), mended + 5000)
    assertAll(both(...sessions), "Counted")
    assertNoFaults(...sessions)
    await assertOpens(one, two, three)
  })
})
