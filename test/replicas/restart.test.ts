/** Three replicas that are restarted one after the other under load, as a new version is rolled out. */
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, assert, beforeAll, describe, it, vi } from "vitest"
import * as Counting from "../kit/cluster/counting.ts"
import type { Cluster } from "../kit/cluster/replicas.ts"
import * as Replicas from "../kit/cluster/replicas.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Random from "../kit/random.ts"

vi.setConfig({ testTimeout: 180_000, hookTimeout: 120_000 })

const directory = mkdtempSync(join(tmpdir(), "restart-"))
const notes = join(directory, "served")
const pinned = "/mcp/pinned"
const stateless = "/mcp/stateless"

let cluster: Cluster
beforeAll(async () => {
  cluster = await Replicas.start({
    backends: { pinned: Counting.backend(notes), stateless: { ...Counting.backend(notes), stateless: true } },
    balancing: { random: Random.make(2) }
  })
})
afterAll(async () => {
  await cluster.stop().finally(() => rmSync(directory, { recursive: true }))
})

describe("rolling restarts under load", () => {
  it("a rolling restart loses no request of a stateless session, and ends each pinned session with one 404", async () => {
    const { origin } = cluster.balancer
    const moving = (await Promise.all(cluster.replicas.map((one) => Counting.openMany(one.origin, stateless, 6))))
      .flat()
    // Nobody calls in these while the replicas go: they move asleep, or when somebody comes.
    const silent = (await Promise.all(cluster.replicas.map((one) => Counting.openMany(one.origin, stateless, 3))))
      .flat()
    const staying = await Promise.all(cluster.replicas.map((one) => Counting.openMany(one.origin, pinned, 4)))
    const running = Counting.traffic([...moving, ...staying.flat()], () => origin)
    // Their client does not know that a replica goes: it is told so, or cannot connect.
    const first = cluster.replicas[0]?.origin ?? ""
    const straight = await Counting.openMany(first, stateless, 3)
    const runningStraight = Counting.traffic(straight, () => first)

    for (const [i, replica] of cluster.replicas.entries()) {
      await Counting.calledAgain([...moving, ...staying.flat()])
      const started = Kit.descendants(replica.pid())
      const stopping = replica.stop("SIGTERM")
      await Kit.eventually("it says that it leaves", async () => (await replica.readiness()).http !== 200)
      // By itself, not by a signal.
      assert.isNotNull(await stopping, replica.tail())
      assert.deepStrictEqual(started.filter(Kit.alive), [])
      await replica.start()
      await Kit.eventually("the balancer has noticed", () => cluster.balancer.inRotation().length === 3)
      await Kit.eventually(
        "its sessions have ended",
        () => staying[i]?.every(({ outcomes }) => outcomes.at(-1)?._tag === "Gone") ?? false
      )
      // Those of the others have not.
      for (const session of staying.slice(i + 1).flat()) assert.strictEqual(session.outcomes.at(-1)?._tag, "Counted")
    }
    await Counting.calledAgain([...moving, ...staying.flat()])
    await running.stop()
    await runningStraight.stop()
    for (const session of silent) await Counting.call(origin, session)

    const notCounted = [...moving, ...silent].flatMap(({ name, outcomes }) =>
      outcomes.filter(({ _tag }) => _tag !== "Counted").map((outcome) => ({ name, ...outcome }))
    )
    assert.deepStrictEqual(notCounted.slice(0, 5), [], `${notCounted.length} calls`)
    for (const session of [...moving, ...silent, ...straight]) {
      assert.deepStrictEqual(Counting.faults(session, "stateless"), [])
    }
    for (const session of staying.flat()) {
      assert.deepStrictEqual(Counting.faults(session, "pinned"), [])
      const others = session.outcomes.filter(({ _tag }) => _tag !== "Counted")
      assert.deepStrictEqual(others.map(({ _tag }) => _tag), ["Gone"], JSON.stringify(others))
    }
    assert.deepStrictEqual(Counting.overlaps(notes), [])
    // They went on because they were woken elsewhere, not because nothing happened to them.
    const processes = moving.map(({ outcomes }) =>
      new Set(outcomes.flatMap((outcome) => outcome._tag === "Counted" ? [outcome.pid] : [])).size
    )
    assert.isTrue(processes.every((count) => count >= 2), JSON.stringify(processes))
  })
})
