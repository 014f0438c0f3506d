/** Three replicas, one session: whichever of them a message reaches, it is carried out where the session lives. */
import { mkdtempSync, rmSync, statSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, assert, beforeAll, describe, it, vi } from "vitest"
import * as Counting from "../kit/cluster/counting.ts"
import type { Cluster, Replica } from "../kit/cluster/replicas.ts"
import * as Replicas from "../kit/cluster/replicas.ts"
import * as Eras from "../kit/gateway/eras.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import { answers, asking, callTool, everything, textOf } from "../kit/gateway/modern.ts"
import * as Random from "../kit/random.ts"

vi.setConfig({ testTimeout: 120_000, hookTimeout: 120_000 })

const backends = {
  light: Counting.backend(),
  sleeping: { ...Counting.backend(), stateless: true },
  counter: Kit.counter(),
  stubborn: { ...Kit.counter("--stubborn"), closeGrace: "500 millis" },
  asking: asking(),
  shared: { ...Kit.counter(), sessions: "caller" },
  askingShared: { ...asking(), sessions: "caller" }
}

let cluster: Cluster
let one: Replica
let two: Replica
let three: Replica
beforeAll(async () => {
  cluster = await Replicas.start({
    backends,
    flags: ["--stream-after=1 second"],
    balancing: { random: Random.make(1), reuse: true }
  })
  const [first, second, third] = cluster.replicas
  if (first === undefined || second === undefined || third === undefined) throw new Error("not three replicas")
  one = first
  two = second
  three = third
})
afterAll(() => cluster.stop())

const counter = (replica: Replica) => `${replica.origin}/mcp/counter`
const listOf = async (replica: Replica) => (await fetch(`${replica.origin}/sessions`)).json()

describe("random replicas", () => {
  it("each of 60 sessions counts its own 30 calls through random replicas", async () => {
    const { origin } = cluster.balancer
    const sessions: Array<Counting.Session> = []
    const backends = ["/mcp/light", "/mcp/sleeping"]
    const workers = (count: number, work: () => Promise<boolean>) =>
      Promise.all(Array.from({ length: count }, async () => {
        while (await work());
      }))
    let opening = 0
    await workers(10, async () => {
      const i = opening++
      if (i >= 60) return false
      sessions.push(await Counting.open(origin, backends[i % 2] ?? ""))
      return true
    })
    let calling = 0
    await workers(30, async () => {
      const session = sessions[calling++]
      if (session === undefined) return false
      for (let i = 0; i < 30; i++) await Counting.call(origin, session)
      return true
    })

    const expected = Array.from({ length: 30 }, (_, i) => i + 1)
    const wrong = sessions.flatMap((session) => {
      const counts = session.outcomes.map((outcome) => outcome._tag === "Counted" ? outcome.count : outcome)
      const faults = Counting.faults(session, "pinned")
      return faults.length > 0 || JSON.stringify(counts) !== JSON.stringify(expected) ? [{ faults, counts }] : []
    })
    assert.deepStrictEqual(wrong.slice(0, 3), [])
    assert.deepStrictEqual(Counting.tally(sessions), { Counted: 1_800 })
    const pids = new Set(
      sessions.flatMap(({ outcomes }) => outcomes.flatMap((outcome) => outcome._tag === "Counted" ? [outcome.pid] : []))
    )
    assert.strictEqual(pids.size, 60)
    // Each replica had its part, of the requests and of the sessions.
    for (const replica of cluster.replicas) {
      assert.isAbove(cluster.balancer.requests.get(replica.origin) ?? 0, 400)
      assert.isAbove(Kit.children(replica.pid()).filter((pid) => pids.has(pid)).length, 8)
    }

    const ended = await Promise.all(sessions.map(async ({ id, path }) => {
      const response = await fetch(origin + path, { method: "DELETE", headers: { "mcp-session-id": id } })
      await response.text()
      return response.status
    }))
    assert.deepStrictEqual(new Set(ended), new Set([204]))
    assert.deepStrictEqual([...pids].filter(Kit.alive), [])
  })
})

describe("sessions by caller on several replicas", () => {
  it("60 fresh sessions on replicas in turn, with one call each, count from 1 to 60", async () => {
    const counts: Array<string> = []
    const urls = cluster.replicas.map(({ origin }) => `${origin}/mcp/shared`)
    let turn = 0
    const next = () => urls[turn++ % urls.length] ?? ""
    // Two requests a session, so each replica opens sessions, and carries out calls of others' sessions.
    for (let i = 0; i < 60; i++) {
      const session = await Kit.open(next())
      counts.push(await Kit.toolText(next(), session, "count"))
    }
    assert.deepStrictEqual(counts, Array.from({ length: 60 }, (_, i) => String(i + 1)))
  })

  it("a session is asked at its replica, wherever its caller's processes are, and its end ends the question", async () => {
    const urls = cluster.replicas.map(({ origin }) => `${origin}/mcp/askingShared`)
    const clients = await Promise.all(urls.map((url, i) => Eras.legacy(url, undefined, `answer ${i}`)))
    const answered = await Promise.all(clients.map(({ call }) => call("rounds", { times: 2 })))
    assert.deepStrictEqual(answered, clients.map((_, i) => `answer ${i},answer ${i}`))
    await Promise.all(clients.map(({ client }) => client.close()))
    const parked = async () => {
      const lists = await Promise.all(cluster.replicas.map(listOf))
      const rows = lists.flatMap(({ backends }) =>
        backends.filter(({ name }: { name: string }) => name === "askingShared")
      )
      return rows.reduce((sum: number, row: { parked: number }) => sum + row.parked, 0)
    }
    const sessions = await Promise.all(urls.map((url) => Kit.open(url, { elicitation: {} })))
    const [first = ""] = urls
    const asked = await Promise.all(sessions.map((session) => Kit.post(first, session, Kit.toolCall(1, "ask"))))
    await Kit.eventually("all are asked", async () => await parked() === 3)
    for (const session of sessions) {
      await (await fetch(first, { method: "DELETE", headers: { "mcp-session-id": session } })).text()
    }
    await Kit.eventually("no question is left", async () => await parked() === 0)
    await Promise.all(asked.map((response) => response.body?.cancel()))
  })
})

describe("sessions through other replicas", () => {
  it("each replica lists the sessions of all replicas, with the replica of each", async () => {
    const sessions = await Promise.all(cluster.replicas.map(({ origin }) => Counting.open(origin, "/mcp/light")))
    const clients = sessions.map(({ name }) => `${name} 1.0.0`)
    const owners: Array<ReadonlyArray<string>> = []
    for (const replica of cluster.replicas) {
      let rows: ReadonlyArray<{ readonly client: string; readonly replica: string }> = []
      await Kit.eventually("all are listed", async () => {
        rows = (await listOf(replica)).sessions
        return clients.every((name) => rows.some(({ client }) => client === name))
      })
      owners.push(clients.map((name) => rows.find(({ client }) => client === name)?.replica ?? ""))
    }
    const names = await Promise.all(cluster.replicas.map(async (one) => (await one.readiness()).cluster?.replica ?? ""))
    assert.deepStrictEqual(owners, owners.map(() => names))
  })

  it("an operator of any replica ends a session of another replica", async () => {
    const session = await Counting.open(two.origin, "/mcp/light")
    const pid = await Counting.call(one.origin, session)
    const row = async () =>
      (await listOf(three)).sessions.find(({ client }: { client: string }) => client === `${session.name} 1.0.0`)
    await Kit.eventually("it is listed", async () => (await row()) !== undefined)
    const ended = await fetch(`${three.origin}/sessions/${(await row()).id}`, { method: "DELETE" })
    assert.strictEqual(ended.status, 204, await ended.text())
    assert.strictEqual((await Counting.call(two.origin, session))._tag, "Gone")
    assert.isFalse(pid._tag === "Counted" && Kit.alive(pid.pid))
  })

  it("a client resumes the stream of a silent call through another replica", async () => {
    const version = { "mcp-protocol-version": "2025-11-25" }
    const session = await Kit.open(counter(one))
    for (const [asked, resumed] of [[one, two], [two, three], [three, one]] as const) {
      const response = await Kit.post(counter(asked), session, Kit.toolCall(1, "silent"), version)
      assert.strictEqual(response.headers.get("content-type"), "text/event-stream")
      const events: Array<Kit.Event> = []
      await Kit.readEvents(response, (event) => events.push(event) === 1)
      const again = await Kit.listen(counter(resumed), session, { ...version, "last-event-id": events[0]?.id ?? "" })
      await Kit.toolText(counter(asked), session, "speak")
      assert.strictEqual((await Kit.answerOf(again)).result.content[0].text, "spoken")
    }
  })

  it("every replica answers 404 after a DELETE through another replica, as for an unknown session", async () => {
    const session = await Kit.open(counter(one))
    const pid = await Kit.pidOf(counter(two), session)
    const ended = await fetch(counter(three), { method: "DELETE", headers: { "mcp-session-id": session } })
    assert.strictEqual(ended.status, 204)
    assert.isFalse(Kit.alive(pid))
    for (const replica of cluster.replicas) {
      for (const id of [session, "unknown", "A".repeat(session.length)]) {
        const response = await Kit.post(counter(replica), id, Kit.toolCall(1, "count"))
        assert.strictEqual(response.status, 404)
        assert.isString((await response.json()).error.message)
      }
    }
  })

  it("a GET stream through one replica ends when the process is gone after a DELETE through another", async () => {
    const stubborn = (replica: Replica) => `${replica.origin}/mcp/stubborn`
    const session = await Kit.open(stubborn(one))
    const pid = await Kit.pidOf(stubborn(one), session)
    const stream = await Kit.listen(stubborn(two), session)
    const ended = fetch(stubborn(three), { method: "DELETE", headers: { "mcp-session-id": session } })
    await stream.text()
    assert.isFalse(Kit.alive(pid))
    assert.strictEqual((await ended).status, 204)
  })

  it("progress arrives as it is sent, before the answer", async () => {
    const session = await Kit.open(counter(one))
    const [response] = await Promise.all([
      Kit.post(counter(two), session, Kit.toolCall(1, "held", { count: 4 })),
      Kit.release(counter(two), session, 1)
    ])
    assert.strictEqual(response.headers.get("content-type"), "text/event-stream")
    const seen: Array<unknown> = []
    // Each event releases the next, so the test hangs if events are held back.
    const released: Array<Promise<void>> = []
    await Kit.readEvents(response, ({ data }) => {
      if (data === "") return false
      const { params, result } = JSON.parse(data)
      seen.push(params?.progress ?? result.content[0].text)
      if (params !== undefined) released.push(Kit.release(counter(two), session, 1))
      return false
    })
    await Promise.all(released)
    assert.deepStrictEqual(seen, [1, 2, 3, 4, "held"])
  })

  it("a client that does not read delays no other session between the same replicas, and later gets all its events", async () => {
    const count = 3000
    const folder = mkdtempSync(join(tmpdir(), "anywhere-"))
    const file = join(folder, "written")
    const [session, other] = [await Kit.open(counter(one)), await Kit.open(counter(one))]
    const response = await Kit.post(counter(two), session, Kit.toolCall(1, "pour", { count, size: 10_000, file }))
    const written = () => statSync(file, { throwIfNoEntry: false })?.size ?? 0
    await Kit.standstill(written)
    for (let i = 0; i < 20; i++) assert.match(await Kit.toolText(counter(two), other, "pids"), /^\[\d/)
    assert.isBelow(written(), count)
    let expected = 1
    await Kit.readEvents(response, ({ data }) => {
      const { params } = JSON.parse(data)
      if (params !== undefined) assert.strictEqual(params.progress, expected++)
      return false
    })
    assert.strictEqual(expected, count + 1)
    assert.lengthOf(await Kit.toolText(counter(three), session, "big", { size: 3_000_000 }), 3_000_000)
    rmSync(folder, { recursive: true })
  })

  it("an initialize with the id of a session or of a gone replica opens a new session, and leaves the old one alone", async () => {
    const session = await Kit.open(counter(one))
    const dead = session.replace(/^r./, (start) => start === "r0" ? "r1" : "r0")
    for (const backend of ["counter", "sleeping"]) {
      for (const stale of [session, dead, "00000000-0000-4000-8000-000000000000"]) {
        const response = await Kit.post(`${two.origin}/mcp/${backend}`, stale, Kit.initializeBody)
        const opened = response.headers.get("mcp-session-id") ?? ""
        assert.deepStrictEqual([response.status, (await response.json()).id, opened === stale], [200, 0, false])
        await fetch(`${three.origin}/mcp/${backend}`, { method: "DELETE", headers: { "mcp-session-id": opened } })
      }
    }
    assert.deepStrictEqual(JSON.parse(await Kit.toolText(counter(two), session, "heard")), ["initialize"])
  })

  it("a cancellation through a third replica reaches the process, and the call ends without an answer", async () => {
    const session = await Kit.open(counter(one))
    const never = Kit.post(counter(two), session, Kit.toolCall("a call", "never"))
    await Kit.eventually(
      "the call has come",
      async () => (await Kit.toolText(counter(one), session, "inOrder")).includes("a call")
    )
    const cancelled = { jsonrpc: "2.0", method: "notifications/cancelled", params: { requestId: "a call" } }
    assert.strictEqual((await Kit.post(counter(three), session, JSON.stringify(cancelled))).status, 202)
    await Kit.eventually(
      "the process has heard of it",
      async () => (await Kit.toolText(counter(two), session, "heard")).includes("cancelled a call")
    )
    const ended = await never
    // Comments may have come, if the call took long enough to get a stream.
    assert.deepStrictEqual([ended.status, (await ended.text()).replaceAll(": \n\n", "")], [200, ""])
    await fetch(counter(three), { method: "DELETE", headers: { "mcp-session-id": session } })
  })

  it("a GET stream that is resumed through another replica gets each message of the server once", async () => {
    const session = await Kit.open(counter(one))
    const events: Array<Kit.Event> = []
    /** Opens the stream, has the server say something if it is to, and reads some of it. */
    const read = async (replica: Replica, count: number, say: () => Promise<unknown> = () => Promise.resolve()) => {
      const last = events.at(-1)?.id
      const stop = new AbortController()
      const resumed = last === undefined ? {} : { "last-event-id": last }
      const until = events.length + count
      const response = await Kit.listen(counter(replica), session, resumed, stop.signal)
      assert.strictEqual(response.status, 200)
      await say()
      await Kit.readEvents(response, (event) => event.data !== "" && events.push(event) === until)
      stop.abort()
    }
    await read(two, 3, () => Kit.toolText(counter(three), session, "flood", { count: 5 }))
    await Kit.toolText(counter(one), session, "flood", { count: 4 })
    await read(three, 6)
    const texts = events.map(({ data }) => JSON.parse(data).params.data.trim())
    assert.deepStrictEqual(texts, ["1", "2", "3", "4", "5", "1", "2", "3", "4"])
    assert.strictEqual(new Set(events.map(({ id }) => id)).size, 9)
  })
})

describe("questions of a server to its client", () => {
  it("a client answers questions through random replicas", async () => {
    const url = `${cluster.balancer.origin}/mcp/asking`
    const clients = await Promise.all(["a", "b", "c", "d"].map((answer) => Eras.legacy(url, undefined, answer)))
    await Promise.all(clients.map(async ({ call, client, heard }, i) => {
      const answer = ["a", "b", "c", "d"][i] ?? ""
      for (let round = 0; round < 4; round++) {
        assert.strictEqual(await call("ask"), `answered ${answer}`)
        assert.strictEqual(await call("twice"), `${answer} and ${answer}`)
      }
      assert.include(await call("sample"), "sampled")
      assert.include(await call("roots"), "file:///home")
      assert.strictEqual(await call("count"), "1")
      assert.lengthOf(heard.asked, 12)
      await client.close()
    }))
  })

  const options = { capabilities: everything }
  const url = (replica: Replica) => `${replica.origin}/mcp/asking`

  it("a modern client answers each question of a call by a retry at another replica", async () => {
    let said = await callTool(url(one), "rounds", { times: 3 }, options)
    for (const [i, replica] of [two, three, one].entries()) {
      assert.strictEqual(said.last.result?.resultType, "input_required", JSON.stringify(said.last))
      said = await callTool(url(replica), "rounds", { times: 3 }, { ...options, again: answers(said, `${i}`) })
    }
    assert.strictEqual(textOf(said), "0,1,2")
  })

  it("a request state that was used at one replica is refused at the others", async () => {
    const asked = await callTool(url(one), "ask", {}, options)
    const again = (replica: Replica) => callTool(url(replica), "ask", {}, { ...options, again: answers(asked, "x") })
    // At once: they race.
    const both = await Promise.all([again(two), again(three)])
    assert.deepStrictEqual(both.filter(({ last }) => last.result !== undefined).map(textOf), ["answered x"])
    for (const replica of cluster.replicas) {
      const used = await again(replica)
      assert.deepStrictEqual([used.status, used.last.error?.code], [400, -32602], JSON.stringify(used.last))
    }
  })
})

describe("reloads of the configuration", () => {
  it("a sleeping session wakes anywhere if the entry of its back end is unchanged, and otherwise is gone", async () => {
    const before = { ...backends, changing: backends.sleeping }
    await cluster.reload(before)
    const open = async (path: string) => {
      const session = await Counting.open(one.origin, path)
      const called = await Counting.call(one.origin, session)
      assert.strictEqual(called._tag, "Counted")
      // Its process has gone: so it sleeps.
      if (called._tag === "Counted") Kit.kill(called.pid, "SIGKILL")
      return session
    }
    const [changed, kept] = [await open("/mcp/changing"), await open("/mcp/sleeping")]
    const { changing: { args, ...rest } } = before
    await cluster.reload({ ...backends, changing: { ...rest, args: [...args, "/dev/null"] } })
    for (const replica of [two, three, one]) {
      assert.strictEqual((await Counting.call(replica.origin, changed))._tag, "Gone")
      assert.strictEqual((await Counting.call(replica.origin, kept))._tag, "Counted")
    }
    // The new entry serves who comes now.
    assert.strictEqual(
      (await Counting.call(three.origin, await Counting.open(two.origin, "/mcp/changing")))._tag,
      "Counted"
    )
  })
})
