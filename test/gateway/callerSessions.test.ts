/** Back ends that keep sessions by caller: `sessions: "caller"`. */
import { assert, describe, it } from "@effect/vitest"
import { Client } from "@modelcontextprotocol/sdk/client/index.js"
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js"
import { afterAll } from "vitest"
import * as Eras from "../kit/gateway/eras.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Modern from "../kit/gateway/modern.ts"
import * as Serving from "../kit/gateway/serving.ts"

const sessions = "caller" as const
const counter = { ...Kit.counter(), sessions }
const asking = { ...Modern.asking(), sessions }

const upstream = await Eras.startHttp("conformance-server.ts", ["http"])
afterAll(() => void upstream.process.kill("SIGKILL"))

const keyed = await Serving.gateway({ backends: { counter }, keys: ["one", "two"] })
/** Without keys, all clients of these tests are the gateway's own user. Each test has a client name, and so a caller, of its own. */
const { origin } = await Serving.gateway({
  backends: {
    counter,
    asking,
    hasty: { ...asking, parkedTimeToLive: "50 millis" },
    narrow: { ...asking, maxInFlight: 2 },
    brief: { ...asking, idleTimeToLive: "500 millis" },
    sleepy: { ...counter, stateless: true, idleTimeToLive: "100 millis" },
    broken: { ...Kit.counter("--fail-start"), sessions },
    modern: { ...Eras.modernStdio(), sessions },
    remote: { url: upstream.url, sessions }
  },
  cleanupInterval: "50 millis"
})
const at = (backend: string) => `${origin}/mcp/${backend}`

interface More {
  readonly capabilities?: object
  readonly headers?: Record<string, string>
  readonly version?: string
}

/** Opens a session of a client with this name. Its calls return the text of the result. */
const open = async (url: string, name: string, { capabilities = {}, headers = {}, version = "1" }: More = {}) => {
  const body = {
    ...JSON.parse(Kit.initializeBody),
    params: { protocolVersion: "2025-06-18", capabilities, clientInfo: { name, version } }
  }
  const response = await Kit.initialize(url, headers, JSON.stringify(body))
  const session = String(response.headers.get("mcp-session-id"))
  const answer = await Kit.answerOf(response)
  const post = (message: string) => Kit.post(url, session, message, headers)
  const call = (tool: string, id: number | string = 1, args = {}) => post(Kit.toolCall(id, tool, args))
  return {
    status: response.status,
    answer,
    id: session,
    post,
    call,
    text: async (tool: string, id?: number | string, args = {}): Promise<string> =>
      (await Kit.answerOf(await call(tool, id, args))).result?.content[0].text,
    initialized: async () => void await (await post(Serving.notification("initialized"))).text(),
    end: async () => (await Serving.remove(url, session, headers)).status
  }
}

const ping = JSON.stringify({ jsonrpc: "2.0", id: 1, method: "ping" })

const backendOf = async (name: string) =>
  (await Serving.overview(origin)).backends.find((backend) => backend.name === name)

/** Opens the GET stream of a session. `changes` are the methods and URIs of its notifications. */
const listen = async (url: string, session: string) => {
  const stop = new AbortController()
  const changes: Array<string> = []
  const response = await Kit.listen(url, session, {}, stop.signal)
  const read = Kit.readEvents(response, ({ data }) => {
    const { method, params } = JSON.parse(data || "{}")
    changes.push(params?.uri ?? method)
    return false
  })
  read.catch(() => {})
  return { changes, stop: () => stop.abort() }
}

describe("sessions by caller", () => {
  it("100 fresh sessions with one call each count from 1 to 100, apart from those of another principal", async () => {
    const counts = async (key: string, sessions: number) => {
      const all: Array<number> = []
      for (let i = 0; i < sessions; i++) {
        const client = new Client({ name: "hosted", version: "1.0.0" })
        const options = { requestInit: { headers: Kit.bearer(key) } }
        await client.connect(new StreamableHTTPClientTransport(new URL(keyed.url), options))
        const result = await client.callTool({ name: "count" })
        all.push(Number(Array.isArray(result.content) && result.content[0].text))
        await client.close()
      }
      return all
    }
    const expected = Array.from({ length: 100 }, (_, i) => i + 1)
    const counted = await Promise.all([counts("one", 100), counts("two", 30)])
    assert.deepStrictEqual(counted, [expected, expected.slice(0, 30)])
  })

  it("sessions share a process by the name and the capabilities of the client, whatever its version", async () => {
    const pidOf = async (name: string, more: More = {}) => (await open(at("asking"), name, more)).text("pid")
    const pid = await pidOf("kind")
    assert.strictEqual(await pidOf("kind", { version: "2" }), pid)
    const others = [await pidOf("kinder"), await pidOf("kind", { capabilities: { roots: {} } })]
    const modern = await Modern.toolText(at("asking"), "pid", { client: "kind" })
    assert.strictEqual(new Set([pid, modern, ...others]).size, 4)
  })

  it("a session has a process of its own if its caller cannot be told from others", async () => {
    const more = { headers: { "x-forwarded-for": "192.0.2.1" } }
    const [one, other] = [await open(at("counter"), "proxied", more), await open(at("counter"), "proxied", more)]
    const counts = [await one.text("count"), await one.text("count"), await other.text("count")]
    assert.deepStrictEqual(counts, ["1", "2", "1"])
  })

  it("initialize is answered from the handshake, and starts no process if one runs", async () => {
    const first = await open(at("asking"), "curious")
    const { launches } = await backendOf("asking")
    const second = await open(at("asking"), "curious")
    assert.deepStrictEqual(first.answer, second.answer)
    assert.deepStrictEqual(second.answer.result, {
      protocolVersion: "2025-06-18",
      capabilities: {
        tools: { listChanged: true },
        resources: { subscribe: true, listChanged: true },
        logging: {}
      },
      serverInfo: { name: "asking", version: "1.0.0" },
      instructions: "Ask away."
    })
    assert.strictEqual((await backendOf("asking")).launches, launches)
  })

  it("initialize is refused with the server's stderr if the server does not start, which counts once", async () => {
    const { answer, status } = await open(at("broken"), "unlucky")
    assert.strictEqual(status, 502)
    assert.include(answer.error.message, "cannot open the database")
    assert.strictEqual((await backendOf("broken")).launchFailures, 1)
  })

  it("a session by caller does not sleep, and ends when it is idle", async () => {
    const session = await open(at("sleepy"), "sleepy")
    assert.strictEqual(await session.text("count"), "1")
    await Kit.eventually("it has ended", async () => (await backendOf("sleepy")).light === 0)
    assert.strictEqual((await session.call("count")).status, 404)
    assert.strictEqual((await backendOf("sleepy")).asleep, 0)
  })
})

describe("sessions of one caller", () => {
  it("two sessions of a caller may use the same ids and progress tokens at the same time", async () => {
    const [one, other] = await Promise.all([open(at("asking"), "twins"), open(at("asking"), "twins")])
    const answers = await Promise.all([one.call("progress"), other.call("progress"), other.call("pid", 2)])
    const [first = [], second = []] = await Promise.all(answers.map(Serving.messagesOf))
    assert.lengthOf(first, 4)
    assert.deepStrictEqual(first, second)
    assert.strictEqual(await one.text("pid"), await other.text("pid"))
  })

  it("each session has a log level of its own", async () => {
    const clients = await Promise.all([Eras.legacy(at("asking"), {}), Eras.legacy(at("asking"), {})])
    const [loud, quiet] = clients
    await loud.client.setLoggingLevel("info")
    assert.deepStrictEqual([await loud.call("log"), await quiet.call("log")], ["logged", "logged"])
    await Kit.eventually("the log has come", () => loud.heard.logs.length === 2)
    assert.deepStrictEqual([loud.heard.logs, quiet.heard.logs], [["a info", "a error"], []])
    await Promise.all(clients.map(({ client }) => client.close()))
  })

  it("a session is asked only the questions of its own calls", async () => {
    const names = ["first", "second", "third"]
    const clients = await Promise.all(names.map((name) => Eras.legacy(at("asking"), undefined, name)))
    const rounds = clients.map(({ call }) => call("rounds", { times: 3 }))
    assert.deepStrictEqual(await Promise.all(rounds), names.map((name) => [name, name, name].join()))
    for (const { call, heard } of clients) {
      assert.deepStrictEqual(heard.asked, ["round 1", "round 2", "round 3"])
      assert.include(await call("sample"), "sampled")
      assert.include(await call("roots"), "file:///home")
    }
    // Calls one after another meet the same process.
    assert.strictEqual(new Set(await Promise.all(clients.map(({ call }) => call("pid")))).size <= 3, true)
    await Promise.all(clients.map(({ client }) => client.close()))
  })

  it("a session cancels only its own calls, also when it is deleted", async () => {
    const [one, other] = await Promise.all([open(at("asking"), "busy"), open(at("asking"), "busy")])
    const pid = Number(await one.text("pid"))
    const running = [await one.call("stall", 7), await one.call("stall", 8), await other.call("stall", 7)]
    const waiting = other.text("untilSignal", 8)
    await (await one.post(Serving.notification("cancelled", { requestId: 7 }))).text()
    const heard = async () => JSON.parse(await other.text("heard", "heard"))
    const cancelled = async () => (await heard()).filter((what: string) => what.startsWith("notifications/cancelled"))
    await Kit.eventually("one call is cancelled", async () => (await cancelled()).length === 1)
    assert.strictEqual(await one.end(), 204)
    await Kit.eventually("another call is cancelled", async () => (await cancelled()).length === 2)
    assert.strictEqual((await one.call("pid")).status, 404)
    Kit.kill(pid, "SIGUSR2")
    assert.strictEqual(await waiting, "released")
    assert.lengthOf(await cancelled(), 2)
    await Promise.all(running.map((response) => response.body?.cancel()))
  })

  it("sessions of a caller may together run maxInFlight calls, and get an error with status 200 for another one", async () => {
    const all = await Promise.all([1, 2, 3].map(() => open(at("narrow"), "eager")))
    const [one, two, three] = all
    if (one === undefined || two === undefined || three === undefined) throw new Error("not three sessions")
    const running = [one.call("never"), two.call("never")]
    await Kit.eventually("two calls run", async () => (await backendOf("narrow")).inFlight === 2)
    const refused = await three.call("pid")
    assert.strictEqual(refused.status, 200)
    assert.match((await Kit.answerOf(refused)).error.message, /limit of 2 running requests/)
    await Promise.all(all.map((session) => session.end()))
    await Promise.all(running.map(async (response) => (await response).text()))
  })

  it("each running call gets an error when the process ends, and the sessions go on with a new process", async () => {
    const all = await Promise.all([1, 2, 3].map(() => open(at("counter"), "crashing")))
    const [one, two, three] = all
    if (one === undefined || two === undefined || three === undefined) throw new Error("not three sessions")
    assert.deepStrictEqual([await one.text("count"), await two.text("count")], ["1", "2"])
    const pending = [one.call("never"), two.call("never")]
    await Kit.eventually("they run", async () => (await backendOf("counter")).inFlight === 2)
    for (const response of [await three.call("crash"), ...await Promise.all(pending)]) {
      assert.match((await Kit.answerOf(response)).error.message, /code 7/)
    }
    assert.deepStrictEqual([await one.text("count"), await two.text("count"), await three.text("count")], [
      "1",
      "2",
      "3"
    ])
  })
})

describe("a question to a session by caller", () => {
  const capabilities = { elicitation: {} }
  /** Makes a call that asks. Returns the question, and a function that answers it and returns the result. */
  const ask = async (session: Awaited<ReturnType<typeof open>>, id: number) => {
    const response = await session.call("ask", id)
    const reading = Serving.reading(response)
    await Kit.eventually("it asks", () => reading.text.includes("elicitation/create"))
    const [question] = Serving.messagesIn(reading.text)
    return async (answer: string) => {
      const result = { action: "accept", content: { answer } }
      await (await session.post(JSON.stringify({ jsonrpc: "2.0", id: question.id, result }))).text()
      await Kit.eventually("it is answered", () => reading.done)
      return Serving.messagesIn(reading.text).at(-1).result.content[0].text
    }
  }
  const parked = async (backend: string) => (await backendOf(backend)).parked

  it("a question ends with its session or its call, and not with those of another session", async () => {
    const all = await Promise.all([1, 2, 3].map(() => open(at("asking"), "asked", { capabilities })))
    const answers = await Promise.all(all.map((session) => ask(session, 1)))
    const [cancelling, deleted] = all
    assert.strictEqual(await parked("asking"), 3)
    await (await cancelling?.post(Serving.notification("cancelled", { requestId: 1 })))?.text()
    await Kit.eventually("the question of the cancelled call has ended", async () => await parked("asking") === 2)
    assert.strictEqual(await deleted?.end(), 204)
    await Kit.eventually("the question of the deleted session has ended", async () => await parked("asking") === 1)
    assert.strictEqual(await answers[2]?.("here"), "answered here")
    assert.strictEqual(await parked("asking"), 0)
  })

  it("a question ends at once when its server answers the call by itself, or when the process ends", async () => {
    const session = await open(at("asking"), "withdrawn", { capabilities })
    const pid = Number(await session.text("pid"))
    for (
      const [tool, signal, last] of [["giveUp", "SIGUSR2", /gave up/], ["ask", "SIGKILL", /signal SIGKILL/]] as const
    ) {
      const reading = Serving.reading(await session.call(tool))
      await Kit.eventually("it asks", () => reading.text.includes("elicitation/create"))
      Kit.kill(pid, signal)
      await Kit.eventually("it has ended", () => reading.done)
      const [question, withdrawn, answer] = Serving.messagesIn(reading.text)
      assert.deepStrictEqual([withdrawn.method, withdrawn.params.requestId], ["notifications/cancelled", question.id])
      assert.match(JSON.stringify(answer), last)
    }
    assert.strictEqual(await parked("asking"), 0)
  })

  it("a question ends when its call is cancelled just after the answer to the question", async () => {
    const session = await open(at("asking"), "undecided", { capabilities })
    const response = await session.call("rounds", 7)
    const reading = Serving.reading(response)
    await Kit.eventually("it asks", () => reading.text.includes("elicitation/create"))
    const [{ id }] = Serving.messagesIn(reading.text)
    const answer = JSON.stringify({ jsonrpc: "2.0", id, result: { action: "accept", content: { answer: "yes" } } })
    await (await session.post(`[${answer},${Serving.notification("cancelled", { requestId: 7 })}]`)).text()
    await Kit.eventually("no question is left", async () => await parked("asking") === 0)
  })

  it("the 33rd question of a call ends the call at the server", async () => {
    const session = await open(at("asking"), "insistent", { capabilities })
    const reading = Serving.reading(await session.call("rounds", 1, { times: 33 }))
    for (let id = 1; id <= 32; id++) {
      await Kit.eventually("it asks", () => Serving.messagesIn(reading.text).some((message) => message.id === id))
      const result = { action: "accept", content: { answer: "again" } }
      await (await session.post(JSON.stringify({ jsonrpc: "2.0", id, result }))).text()
    }
    await Kit.eventually("it has ended", () => reading.done)
    assert.match(reading.text, /more than 32 times/)
    await Kit.eventually("no question is left", async () => await parked("asking") === 0)
  })

  it("a question ends its call at once when the gateway shuts down", async () => {
    const { stop, url } = await Serving.gateway({ backends: { asking }, drainTimeout: "60 seconds" })
    const reading = Serving.reading(await (await open(url, "late", { capabilities })).call("ask"))
    await Kit.eventually("it asks", () => reading.text.includes("elicitation/create"))
    const stopped = stop()
    await Kit.eventually("it has ended", () => reading.done)
    assert.match(reading.text, /the gateway is shutting down/)
    await stopped
  })

  it("a question waits longer than parkedTimeToLive", async () => {
    const answer = await ask(await open(at("hasty"), "slow", { capabilities }), 1)
    await new Promise((resolve) => setTimeout(resolve, 200))
    assert.strictEqual(await answer("at last"), "answered at last")
  })
})

describe("the GET stream of a session by caller", () => {
  it("a GET stream brings the changes that its session has subscribed to, and takes no place of a call", async () => {
    const url = at("narrow")
    const all = await Promise.all(["test://a", "test://b", "test://c"].map(async (uri) => {
      const session = await open(url, "listeners")
      await session.initialized()
      const subscribe = JSON.stringify({ jsonrpc: "2.0", id: 1, method: "resources/subscribe", params: { uri } })
      assert.deepStrictEqual((await Kit.answerOf(await session.post(subscribe))).result, {})
      return { session, uri, ...await listen(url, session.id) }
    }))
    const [{ session } = {}] = all
    await Kit.eventually("all have heard", async () => {
      assert.strictEqual(await session?.text("change"), "changed")
      return all.every(({ changes }) => changes.includes("notifications/tools/list_changed"))
    })
    for (const { changes, stop, uri } of all) {
      await Kit.eventually("the resource has changed", () => uri === "test://c" || changes.includes(uri))
      const others = ["test://a", "test://b", "test://c"].filter((each) => each !== uri)
      assert.notIncludeMembers(changes, others)
      stop()
    }
  })

  it("a GET stream keeps the caller's process, which ends when no session reads a stream and no call comes", async () => {
    const url = at("brief")
    const session = await open(url, "reader")
    await session.initialized()
    const { changes, stop } = await listen(url, session.id)
    await Kit.eventually("it hears", async () => {
      await session.text("change")
      return changes.length > 0
    })
    const pid = Number(await session.text("pid"))
    await new Promise((resolve) => setTimeout(resolve, 1500))
    assert.isTrue(Kit.alive(pid))
    stop()
    await Kit.eventually("the process has ended, and the session lives", async () => {
      assert.strictEqual((await session.post(ping)).status, 200)
      return !Kit.alive(pid)
    })
  })
})

describe("many sessions by caller", async () => {
  const small = { maxSessions: 20, maxSessionsPerBackend: 3, maxSessionsPerKey: 20 }
  const { url } = await Serving.gateway({ backends: { counter }, keys: ["one", "two"], ...small })
  const [one, two] = ["one", "two"].map((key) => ({ headers: Kit.bearer(key) }))

  it("many sessions that are never deleted go on, take no place of a process, and no caller loses its state", async () => {
    assert.strictEqual(await (await open(url, "kept", two)).text("count"), "1")
    for (let i = 1; i <= 60; i++) {
      const session = await open(url, "restless", one)
      assert.strictEqual(session.status, 200)
      assert.strictEqual(await session.text("count"), String(i))
    }
    assert.strictEqual(await (await open(url, "kept", two)).text("count"), "2")
  })

  it("many sessions read a stream each, and their calls still get a process", async () => {
    const all = await Promise.all(Array.from({ length: 20 }, () => open(url, "crowd", two)))
    const streams = await Promise.all(all.map(({ id }) => Kit.listen(url, id, two?.headers)))
    const counts = await Promise.all(all.map((session) => session.text("count")))
    assert.deepStrictEqual(counts.map(Number).toSorted((a, b) => a - b), Array.from({ length: 20 }, (_, i) => i + 1))
    await Promise.all(streams.map((stream) => stream.body?.cancel()))
  })
})

describe("an operator", () => {
  it("an operator sees sessions by caller beside the process that they share, and ends one of them alone", async () => {
    const [one, other] = [await open(at("counter"), "seen"), await open(at("counter"), "seen")]
    assert.deepStrictEqual([await one.text("count"), await other.text("count")], ["1", "2"])
    const rows = (await Serving.overview(origin)).sessions.filter(({ client }) => client === "seen 1")
    const light = rows.filter((row) => row.light)
    assert.deepStrictEqual(light.map(({ pid, requests }) => [pid, requests]), [[null, 1], [null, 1]])
    assert.deepStrictEqual(rows.filter((row) => !row.light).map(({ requests }) => requests), [2])
    const row = light.find(({ session }) => session === one.id.slice(0, 8))
    assert.strictEqual((await fetch(`${origin}/sessions/${row.id}`, { method: "DELETE" })).status, 204)
    assert.strictEqual((await one.call("count")).status, 404)
    assert.strictEqual(await other.text("count"), "3")
  })
})

describe("other back ends with sessions by caller", () => {
  it("a modern server on stdio asks, reports, logs and tells of changes", async () => {
    const [one, other] = await Promise.all([Eras.legacy(at("modern")), Eras.legacy(at("modern"))])
    await one.client.setLoggingLevel("debug")
    assert.strictEqual(JSON.parse(await one.call("ask")).responses.who.action, "accept")
    assert.strictEqual(await one.call("steps"), "done")
    assert.deepStrictEqual([one.heard.progress, other.heard.progress], [[1, 2, 3], []])
    await Kit.eventually("the log has come", () => one.heard.logs.length === 3)
    await Kit.eventually("both have heard of the change", async () => {
      await one.call("change")
      return [one, other].every(({ heard }) => heard.changes.includes("tools"))
    })
    assert.deepStrictEqual([other.heard.asked, other.heard.logs], [[], []])
    await Promise.all([one, other].map(({ client }) => client.close()))
  })

  it("a legacy HTTP server has one upstream session for all sessions of a caller", async () => {
    const [one, other] = await Promise.all([Eras.legacy(at("remote")), Eras.legacy(at("remote"))])
    assert.include(await one.call("test_elicitation", { message: "who?" }), "accept")
    assert.include(await other.call("test_simple_text"), "simple text")
    assert.deepStrictEqual([one.heard.asked, other.heard.asked], [["who?"], []])
    assert.strictEqual((await backendOf("remote")).sessions, 1)
    await Promise.all([one, other].map(({ client }) => client.close()))
  })
})
