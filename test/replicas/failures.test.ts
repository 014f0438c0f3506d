/** Three replicas, of which some fail: what the clients of their sessions see. Clients of other sessions notice nothing. */
import { Effect } from "effect"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, afterEach, assert, beforeAll, describe, it, vi } from "vitest"
import * as Counting from "../kit/cluster/counting.ts"
import type { Cluster, Replica } from "../kit/cluster/replicas.ts"
import * as Replicas from "../kit/cluster/replicas.ts"
import * as Kit from "../kit/gateway/gateway.ts"

vi.setConfig({ testTimeout: 120_000, hookTimeout: 120_000 })

const pinned = "/mcp/pinned"
const stateless = "/mcp/stateless"

interface Three {
  readonly cluster: Cluster
  readonly one: Replica
  readonly two: Replica
  readonly three: Replica
  /** Where the processes note whom they serve. */
  readonly notes: string
  readonly call: (sessions: ReadonlyArray<Counting.Session>, pick: () => string) => Counting.Traffic
  /** Ends what a test has left: its calls, and the failure of a replica. */
  readonly recover: () => Promise<void>
  readonly stop: () => Promise<void>
}

const start = async (): Promise<Three> => {
  const directory = mkdtempSync(join(tmpdir(), "failures-"))
  const notes = join(directory, "served")
  const cluster = await Replicas.start({
    backends: { pinned: Counting.backend(notes), stateless: { ...Counting.backend(notes), stateless: true } }
  })
  const [one, two, three] = cluster.replicas
  if (one === undefined || two === undefined || three === undefined) throw new Error("not three replicas")
  const stop = async () => {
    await cluster.stop().finally(() => rmSync(directory, { recursive: true }))
  }
  const running = new Set<Counting.Traffic>()
  const call: Three["call"] = (sessions, pick) => {
    const traffic = Counting.traffic(sessions, pick)
    running.add(traffic)
    return traffic
  }
  const recover = async () => {
    if (cluster.postgres !== undefined) await Effect.runPromise(cluster.postgres.start)
    for (const replica of cluster.replicas) {
      replica.signal("SIGCONT")
      replica.cutter.mend()
    }
    await Promise.all([...running].map((traffic) => traffic.stop()))
    running.clear()
    await Promise.all(cluster.replicas.map((replica) => replica.start()))
  }
  return { cluster, one, two, three, notes, call, recover, stop }
}

const pause = (seconds: number) => new Promise((resolve) => setTimeout(resolve, seconds * 1000))
/** A session is given up when its owner's lock is; movable ones wake elsewhere some seconds later. */
const takeover = Replicas.lockExpirationSeconds * 4

interface Both {
  readonly pinned: ReadonlyArray<Counting.Session>
  readonly stateless: ReadonlyArray<Counting.Session>
}

/** Sessions that were opened at each replica and called once through another, by the replica that has their processes. */
const spread = async ({ one, three, two }: Three) => {
  const replicas = [one, two, three]
  const opened: Array<Both> = []
  for (const [i, { origin }] of replicas.entries()) {
    const through = replicas[(i + 1) % 3]?.origin ?? ""
    const all = {
      pinned: await Counting.openMany(origin, pinned, 4),
      stateless: await Counting.openMany(origin, stateless, 6)
    }
    for (const session of both(all)) await Counting.call(through, session)
    assertAll(both(all), "Counted")
    opened.push(all)
  }
  return replicas.map((replica, i): Both => {
    const processes = Kit.children(replica.pid())
    const isHere = ({ outcomes }: Counting.Session) => {
      const last = outcomes.at(-1)
      return last?._tag === "Counted" && processes.includes(last.pid)
    }
    assert.isTrue(opened[i]?.pinned.every(isHere), "pinned sessions are where they were opened")
    return {
      pinned: opened[i]?.pinned ?? [],
      stateless: opened.flatMap(({ stateless }) => stateless).filter(isHere)
    }
  })
}

const none: Both = { pinned: [], stateless: [] }
const both = (...sessions: ReadonlyArray<Both>) => sessions.flatMap((one) => [...one.pinned, ...one.stateless])

/** Takes each of some origins in turn. */
const inTurn = (...origins: ReadonlyArray<string>) => {
  let turn = 0
  return () => origins[turn++ % origins.length] ?? ""
}

const areAll = (sessions: ReadonlyArray<Counting.Session>, tag: Counting.Outcome["_tag"], since = 0) =>
  sessions.every(({ outcomes }) => outcomes.at(-1)?._tag === tag && (outcomes.at(-1)?.at ?? 0) >= since)
const assertAll = (sessions: ReadonlyArray<Counting.Session>, tag: Counting.Outcome["_tag"]) =>
  assert.isTrue(
    areAll(sessions, tag),
    `not all are ${tag}: ${JSON.stringify(sessions.map(({ name, outcomes }) => [name, outcomes.slice(-2)]))}`
  )

/** Waits until something holds for sessions that are being called; their last outcomes if it does not in time. */
const within = (seconds: number, sessions: ReadonlyArray<Counting.Session>, condition: () => boolean) =>
  Kit.eventually("it holds", condition, seconds).catch(() => {
    const last = sessions.map(({ name, outcomes, path }) => [name, path, ...outcomes.slice(-3)])
    throw new Error(`not after ${seconds} seconds: ${last.map((one) => JSON.stringify(one)).join("\n")}`)
  })

/** Waits until the pinned sessions of a replica that is gone are, and the stateless ones have been called elsewhere. */
const takenOver = (lost: Both, since: number, seconds = takeover) =>
  within(
    seconds,
    both(lost),
    () => areAll(lost.pinned, "Gone", since) && areAll(lost.stateless, "Counted", since)
  )

/** When the first client of some sessions was told that its session is gone. */
const firstGone = (sessions: ReadonlyArray<Counting.Session>) =>
  Math.min(
    ...sessions.flatMap(({ outcomes }) => outcomes)
      .map(({ _tag, at, millis }) => _tag === "Gone" ? at + millis : Infinity)
  )

/** No session got an answer of another one, and no two processes served the same session in turn. */
const assertNoFaults = (notes: string, ...sessions: ReadonlyArray<Both>) => {
  assert.deepStrictEqual(
    sessions.flatMap((one) => [
      ...one.pinned.flatMap((session) => Counting.faults(session, "pinned")),
      ...one.stateless.flatMap((session) => Counting.faults(session, "stateless"))
    ]),
    []
  )
  assert.deepStrictEqual(Counting.overlaps(notes), [])
}

/** Opens new sessions at each given replica, without a retry. */
const assertOpens = async (...replicas: ReadonlyArray<Replica>) => {
  const assertOpen = async (origin: string, path: string) => {
    const session = await Counting.open(origin, path).catch((error: unknown) => {
      throw new Error(`${path} does not open at ${origin}`, { cause: error })
    })
    assert.strictEqual((await Counting.call(origin, session))._tag, "Counted")
  }
  await Promise.all(replicas.flatMap(({ origin }) => [assertOpen(origin, pinned), assertOpen(origin, stateless)]))
}

/** All calls since a time were answered; but those which began before another may have been broken off. */
const assertUnnoticed = (sessions: ReadonlyArray<Counting.Session>, since: number, exceptBefore = since) => {
  const noticed = sessions.flatMap(({ name, outcomes }) =>
    outcomes.filter(({ _tag, at }) =>
      at >= since && _tag !== "Counted" && !(_tag === "Unreachable" && at < exceptBefore)
    )
      .map((outcome) => ({ name, ...outcome }))
  )
  assert.deepStrictEqual(noticed.slice(0, 5), [], `${noticed.length} calls in ${sessions.length} sessions`)
}

// Two clusters at once: most of the time of these tests goes by waiting. In each, the replicas that failed are those that
// the next test begins with.

/** One after the other within a cluster: tests inherit from `describe` that they run at once. */
const after = { concurrent: false }

describe.concurrent("a failing replica", () => {
  let on: Three
  beforeAll(async () => {
    on = await start()
  })
  afterEach(() => on.recover())
  afterAll(() => on.stop())

  it(
    "a killed replica loses its pinned sessions (404), its stateless ones wake elsewhere, and no other session notices",
    after,
    async () => {
      const { cluster, notes, one, three, two } = on
      const [lost = none, ...others] = await spread(on)
      const orphans = Kit.children(one.pid())
      assert.isAtLeast(orphans.length, both(lost).length)
      const running = on.call(both(lost, ...others), inTurn(cluster.balancer.origin))
      await Counting.calledAgain(both(lost, ...others))
      const at = Date.now()
      await one.stop("SIGKILL")
      const gone = Date.now()
      // Told at the end: what became of the sessions that were there is more.
      const [opening] = await Promise.allSettled([assertOpens(two, three)])
      const opened = Date.now()
      await Counting.open(cluster.balancer.origin, pinned)
      await takenOver(lost, at)
      await running.stop()
      assert.isBelow(opened, firstGone(lost.pinned), "new sessions open before the lock of the killed one expires")

      // Only calls that were in flight through the killed replica are lost.
      assertUnnoticed(both(...others), at - 2000, gone)
      assertAll(both(...others), "Counted")
      assertNoFaults(notes, lost, ...others)
      await Kit.eventually("its processes are gone", () => !orphans.some(Kit.alive))

      await one.start()
      await assertOpens(one, two, three)
      const again = on.call(both(...others), inTurn(one.origin, two.origin, three.origin))
      await Counting.calledAgain(both(...others))
      await again.stop()
      assertUnnoticed(both(...others), gone)
      assertNoFaults(notes, lost, ...others)
      if (opening.status === "rejected") throw opening.reason
    }
  )

  it("a replica that wakes after its locks expired serves no session that has a new owner", after, async () => {
    const { notes, one, three, two } = on
    const [lost = none, ...others] = await spread(on)
    const running = on.call(both(...others), inTurn(two.origin, three.origin))
    one.signal("SIGSTOP")
    const at = Date.now()
    // These reach it when it wakes: it may not know yet that it has lost them. In the sessions' own order they count as lost.
    for (const { outcomes } of both(lost)) {
      outcomes.push({ _tag: "Failed", message: "sent while frozen", at, millis: 0 })
    }
    const lateCalls = both(lost).map(({ id, name, path }): Counting.Session => ({ id, name, path, outcomes: [] }))
    const late = Promise.all(lateCalls.map((session) => Counting.call(one.origin, session)))
    await Counting.calledAgain(both(...others))
    const calling = on.call(both(lost), inTurn(two.origin, three.origin))
    // A call that waits for the frozen one when the lock ends is given up when its connection is, some seconds later.
    await takenOver(lost, at)
    await Counting.calledAgain(both(...others))

    one.signal("SIGCONT")
    await late
    await Counting.calledAgain(both(lost, ...others))
    await calling.stop()
    await running.stop()
    assertUnnoticed(both(...others), at)
    assertAll(both(...others), "Counted")
    assertAll(lost.pinned, "Gone")
    assertAll(lost.stateless, "Counted")
    assertNoFaults(notes, lost, ...others)
    const outcomes = lateCalls.flatMap(({ outcomes }) => outcomes)
    assert.deepStrictEqual(outcomes.filter(({ _tag }) => _tag === "Wrong"), [])
    // No call of a pinned session is carried out after a 404.
    assert.deepStrictEqual(outcomes.slice(0, lost.pinned.length).filter(({ _tag }) => _tag === "Counted"), [])

    await Kit.eventually("the woken one is ready", async () => (await one.readiness()).http === 200)
    await assertOpens(one, two, three)
    assertNoFaults(notes, lost, ...others)
  })
})

describe.concurrent("a failing network or database", () => {
  let on: Three
  beforeAll(async () => {
    on = await start()
  })
  afterEach(() => on.recover())
  afterAll(() => on.stop())

  it(
    "two replicas that cannot reach each other for 5 seconds lose no session, and answer at most with clear errors",
    after,
    async () => {
      const { notes, one, three, two } = on
      const [ofOne = none, ofTwo = none, unconcerned = none] = await spread(on)
      const sessions = [ofOne, ofTwo]
      const origins = [one.origin, two.origin, three.origin]
      const running = on.call(both(...sessions, unconcerned), inTurn(...origins))
      await Counting.calledAgain(both(...sessions, unconcerned))
      assert.isAbove(one.cutter.total() + two.cutter.total(), 0)
      const at = Date.now()
      one.cutter.cut([two.pid()])
      two.cutter.cut([one.pid()])
      await pause(5)
      one.cutter.mend()
      two.cutter.mend()
      const mended = Date.now()
      await within(60, both(...sessions), () => areAll(both(...sessions), "Counted", mended))
      const well = Date.now()
      await Counting.calledAgain(both(...sessions, unconcerned))
      await running.stop()
      assertUnnoticed(both(unconcerned), at)
      assertUnnoticed(both(...sessions), well)
      const kinds = Object.keys(Counting.tally(both(...sessions), at))
      assert.deepStrictEqual(kinds.filter((kind) => !["Counted", "Failed", "Later"].includes(kind)), [])
      assertNoFaults(notes, ...sessions, unconcerned)
      await assertOpens(one, two, three)
    }
  )

  it(
    "replicas without a database for 20 seconds keep their sessions, report the outage, and recover by themselves",
    after,
    async () => {
      const { cluster, notes, one, three, two } = on
      const { postgres, replicas } = cluster
      if (postgres === undefined) throw new Error("there is no database")
      const sessions = await spread(on)
      const running = on.call(both(...sessions), inTurn(one.origin, two.origin, three.origin))
      await Counting.calledAgain(both(...sessions))
      const at = Date.now()
      await Effect.runPromise(postgres.stop)
      const allSay = async (database: string) =>
        (await Promise.all(replicas.map((replica) => replica.readiness()))).every(({ cluster }) =>
          cluster?.database === database
        )
      await Kit.eventually("they say that it is unreachable", () => allSay("unreachable"))
      await pause(Math.max(0, 20 - (Date.now() - at) / 1000))
      await Effect.runPromise(postgres.start)
      await Kit.eventually("they say that it is there", () => allSay("ok"))
      await Kit.eventually("they are ready", async () => {
        const all = await Promise.all(replicas.map((replica) => replica.readiness()))
        return all.every(({ http }) => http === 200)
      })
      await Counting.calledAgain(both(...sessions))
      await running.stop()
      assertUnnoticed(both(...sessions), at)
      await assertOpens(one, two, three)
      assertNoFaults(notes, ...sessions)
    }
  )
})
