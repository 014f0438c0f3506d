/** What the cluster's tests are made of, by itself: the balancer, the cutters and the counting sessions, on plain gateways. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { createServer } from "node:http"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, assert, beforeAll, describe, it, vi } from "vitest"
import * as Balancer from "../kit/cluster/balancer.ts"
import * as Counting from "../kit/cluster/counting.ts"
import type { Cluster } from "../kit/cluster/replicas.ts"
import * as Replicas from "../kit/cluster/replicas.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Random from "../kit/random.ts"

const path = "/mcp/counter"

// Each starts whole gateways; on a busy machine that takes its time.
vi.setConfig({ testTimeout: 90_000, hookTimeout: 90_000 })

describe("replicas that are started, stopped and reached by the kit", () => {
  // The tests share two replicas and run in this order: the last one kills both.
  let cluster: Cluster
  const folder = mkdtempSync(join(tmpdir(), "replicas-"))
  /** Once it is there, calls of `held` are answered. */
  const release = join(folder, "release")
  beforeAll(async () => {
    cluster = await Replicas.start({
      alone: true,
      count: 2,
      backends: { counter: Counting.backend("", release), node: Kit.counter() }
    })
  })
  afterAll(async () => {
    await cluster.stop()
    rmSync(folder, { recursive: true })
  })
  const replica = (i: number) => {
    const found = cluster.replicas[i]
    if (found === undefined) throw new Error(`there is no replica ${i}`)
    return found
  }

  it("the balancer takes one after the other, and says whose answer it is", async () => {
    const served: Array<string | null> = []
    for (let i = 0; i < 4; i++) {
      const response = await fetch(`${cluster.balancer.origin}/health`)
      served.push(response.headers.get(Balancer.servedBy))
      await response.text()
    }
    const [one, other] = served
    assert.deepStrictEqual(new Set(served), new Set(cluster.replicas.map(({ origin }) => origin)))
    assert.deepStrictEqual(served, [one, other, one, other])
  })

  it("it streams both ways: events as they come, a large body whole; a client that leaves leaves the replica too", async () => {
    const balancer = await Balancer.start([replica(0).origin])
    const url = `${balancer.origin}/mcp/node`
    const session = await Kit.open(url)
    assert.isAbove((await Kit.toolText(url, session, "raw", { text: "x".repeat(2_000_000) })).length, 2_000_000)
    const [steps] = await Promise.all([
      Kit.post(url, session, Kit.toolCall(1, "held", { count: 1 })),
      Kit.release(url, session, 1)
    ])
    const events: Array<string> = []
    // Each event releases the next, so the test hangs if events are held back.
    const answered: Array<Promise<void>> = []
    await Kit.readEvents(steps, ({ data }) => {
      if (events.push(data) === 1) answered.push(Kit.release(url, session, 1))
      return false
    })
    await Promise.all(answered)
    assert.lengthOf(events, 2)
    const stop = new AbortController()
    const state = async () => (await (await fetch(`${replica(0).origin}/sessions`)).json()).sessions[0].state
    const open = await Kit.listen(url, session, {}, stop.signal)
    await Kit.eventually("the stream is there", async () => (await state()) === "active")
    stop.abort()
    await open.text().catch(() => undefined)
    await Kit.eventually("the stream is gone", async () => (await state()) === "idle")
    await balancer.stop()
  })

  it("one that is frozen gets nothing any more, and goes on when it is woken", async () => {
    const session = await Counting.open(replica(0).origin, path)
    replica(0).signal("SIGSTOP")
    await Kit.eventually("the balancer has noticed", () => cluster.balancer.inRotation().length === 1)
    const late = Counting.call(replica(0).origin, session)
    assert.strictEqual((await fetch(`${cluster.balancer.origin}/health`)).status, 200)
    assert.lengthOf(session.outcomes, 0)
    replica(0).signal("SIGCONT")
    assert.strictEqual((await late)._tag, "Counted")
    await Kit.eventually("the balancer has noticed", () => cluster.balancer.inRotation().length === 2)
  })

  it("a cutter forwards, cuts what is open, refuses what is new, for some processes only, and mends", async () => {
    const { address, cutter } = replica(0)
    const origin = `http://${address}`
    const session = await Counting.open(origin, path)
    assert.strictEqual((await Counting.call(origin, session))._tag, "Counted")
    assert.isAbove(cutter.open(), 0)
    cutter.cut([cluster.replicas[1]?.pid() ?? 0])
    assert.strictEqual((await Counting.call(origin, session))._tag, "Counted")
    const cutInFlight = Counting.call(origin, session, "held")
    await Kit.eventually("it runs", async () => (await Kit.inFlight(replica(0).origin)) === 1)
    cutter.cut([process.pid])
    assert.strictEqual((await cutInFlight)._tag, "Unreachable")
    assert.strictEqual((await Counting.call(origin, session))._tag, "Unreachable")
    assert.strictEqual(cutter.open(), 0)
    cutter.mend()
    writeFileSync(release, "")
    // The call that was cut off counts: a client's disconnect is no cancellation.
    const last = await Counting.call(origin, session)
    assert.deepStrictEqual([last._tag, last._tag === "Counted" ? last.count : 0], ["Counted", 4])
    assert.deepStrictEqual(Counting.faults(session, "pinned"), [])
  })

  it("a request that finds a replica gone goes to the next, one that was broken off goes nowhere else", async () => {
    await replica(0).stop("SIGKILL")
    const statuses = await Promise.all(
      Array.from({ length: 6 }, async () => (await fetch(`${cluster.balancer.origin}/health`)).status)
    )
    assert.deepStrictEqual(new Set(statuses), new Set([200]))
    await Kit.eventually("the balancer has noticed", () => cluster.balancer.inRotation().length === 1)
    const session = await Counting.open(cluster.balancer.origin, path)
    rmSync(release, { force: true })
    const held = Counting.call(cluster.balancer.origin, session, "held")
    await Kit.eventually("it runs", async () => (await Kit.inFlight(replica(1).origin)) === 1)
    await replica(1).stop("SIGKILL")
    assert.strictEqual((await held)._tag, "Unreachable")
    // SIGKILL orphaned the back end. Once its call ends, it reads end of input and exits.
    writeFileSync(release, "")
    assert.strictEqual((await fetch(`${cluster.balancer.origin}/health`)).status, 503)
  })
})

describe("a balancer by a seed", () => {
  it("picks the same replicas again", async () => {
    const picks = async () => {
      const servers = await Promise.all([1, 2, 3].map(async (name) => {
        const server = createServer((_, response) => response.end(String(name))).listen(0, "127.0.0.1")
        await new Promise((resolve) => server.once("listening", resolve))
        return server
      }))
      const origins = servers.map((server) => `http://127.0.0.1:${Kit.portOf(server)}`)
      const balancer = await Balancer.start(origins, { random: Random.make(7) })
      const texts: Array<string> = []
      for (let i = 0; i < 20; i++) texts.push(await (await fetch(balancer.origin)).text())
      await balancer.stop()
      for (const server of servers) server.close().closeAllConnections()
      return texts
    }
    const [first, second] = [await picks(), await picks()]
    assert.deepStrictEqual(first, second)
    assert.strictEqual(new Set(first).size, 3)
  })
})

describe("what a session's answers tell", () => {
  const session = (...outcomes: ReadonlyArray<[pid: number, count: number] | "Gone" | "Failed">): Counting.Session => ({
    name: "s",
    id: "",
    path,
    outcomes: outcomes.map((outcome): Counting.Outcome => {
      const time = { at: 0, millis: 0 }
      if (outcome === "Gone") return { ...time, _tag: "Gone" }
      if (outcome === "Failed") return { ...time, _tag: "Failed", message: "" }
      return { ...time, _tag: "Counted", pid: outcome[0], count: outcome[1] }
    })
  })

  it("is no fault when a process counts on, skips what was lost, and is followed by another where it may be", () => {
    assert.deepStrictEqual(Counting.faults(session([1, 1], [1, 2], "Failed", [1, 4], "Gone"), "pinned"), [])
    assert.deepStrictEqual(Counting.faults(session([1, 1], "Failed", [2, 1], [2, 2]), "stateless"), [])
  })

  it("is one when it skips, repeats, comes back after another or after the end, or changes where it may not", () => {
    const wrong = [
      session([1, 1], [1, 3]),
      session([1, 1], [1, 1]),
      session([1, 2]),
      session([1, 1], [2, 1], [1, 2]),
      session([1, 1], "Gone", [1, 2])
    ]
    for (const one of wrong) assert.isNotEmpty(Counting.faults(one, "stateless"))
    assert.isNotEmpty(Counting.faults(session([1, 1], [2, 1]), "pinned"))
  })
})
