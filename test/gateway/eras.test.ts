/**
 * Clients of both eras on the same URL at the same time: the official ones, in front of the official server for everything
 * and of one that counts; what they share, and what not.
 */
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import * as Client2 from "@modelcontextprotocol/client"
import { Client as Client1 } from "@modelcontextprotocol/sdk/client/index.js"
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js"
import * as Types from "@modelcontextprotocol/sdk/types.js"
import { Effect, FileSystem } from "effect"
import * as PeerOwner from "../../src/gateway/auth/PeerOwner.ts"
import * as Modern from "../../src/gateway/protocol/Modern.ts"
import * as Callers from "../../src/gateway/sessions/Callers.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import { callTool, everything as capabilities, request, send, textOf } from "../kit/gateway/modern.ts"

const script = (path: string, ...args: ReadonlyArray<string>) => ({
  command: process.execPath,
  args: [new URL(path, import.meta.url).pathname, ...args]
})
const everything = script("../../node_modules/@modelcontextprotocol/server-everything/dist/index.js", "stdio")
const asking = script("../fixtures/asking-server.ts")

let gateway: Kit.Running
let keyed: Kit.Running
beforeAll(async () => {
  const backends = { everything, asking }
  gateway = await Kit.start({ backends })
  keyed = await Kit.start({ backends, keys: ["one", "two"] })
})
afterAll(async () => {
  await gateway.stop()
  await keyed.stop()
})

const info = { name: "eras", version: "1.0.0" }
const answer = { name: "Ada", check: true }
const roots = { roots: [{ uri: "file:///home/ada", name: "home" }] }
const sampled = { role: "assistant" as const, model: "m", content: { type: "text" as const, text: "sampled" } }

const modern = async (url: string): Promise<Client2.Client> => {
  const client = new Client2.Client(info, {
    capabilities,
    versionNegotiation: { mode: { pin: Modern.version } }
  })
  client.setRequestHandler("elicitation/create", async () => ({ action: "accept", content: answer }))
  client.setRequestHandler("sampling/createMessage", async () => sampled)
  client.setRequestHandler("roots/list", async () => roots)
  await client.connect(new Client2.StreamableHTTPClientTransport(new URL(url)))
  return client
}

const legacy = async (url: string): Promise<Client1> => {
  const client = new Client1(info, { capabilities })
  client.setRequestHandler(Types.ElicitRequestSchema, () => ({ action: "accept", content: answer }))
  client.setRequestHandler(Types.CreateMessageRequestSchema, () => sampled)
  client.setRequestHandler(Types.ListRootsRequestSchema, () => roots)
  await client.connect(new StreamableHTTPClientTransport(new URL(url)))
  return client
}

/** What each tool of the server needs; those without an entry need nothing. */
const args: Readonly<Record<string, Record<string, unknown>>> = {
  "echo": { message: "hi" },
  "get-sum": { a: 1, b: 2 },
  "get-annotated-message": { messageType: "error", includeImage: false },
  "get-structured-content": { location: "New York" },
  "trigger-long-running-operation": { duration: 0.1, steps: 2 },
  "trigger-sampling-request": { prompt: "x" },
  "trigger-url-elicitation": { url: "https://example.com/sign-in" },
  "gzip-file-as-resource": { name: "x.gz", data: "data:text/plain,hi" }
}

const text = (result: unknown): string => JSON.stringify(result)

describe("both eras on one URL", () => {
  it("a modern client can use every tool of the server for everything, while a legacy one does the same", async () => {
    const url = `${gateway.origin}/mcp/everything`
    const [one, two] = await Promise.all([legacy(url), modern(url)])
    // A tool of tasks, which is an extension in the modern era.
    const usable = (tools: ReadonlyArray<{ readonly name: string }>) =>
      tools.map(({ name }) => name).filter((name) => name !== "simulate-research-query").toSorted()
    const names = usable((await two.listTools()).tools)
    assert.deepStrictEqual(names, usable((await one.listTools()).tools))
    assert.isAbove(names.length, 14)
    for (const name of names) {
      const [mine, theirs] = await Promise.all([
        one.callTool({ name, arguments: args[name] ?? {} }),
        two.callTool({ name, arguments: args[name] ?? {} })
      ])
      const same = (result: Readonly<Record<string, unknown>>) => [
        Array.isArray(result["content"]) ? result["content"].map(({ type }) => type) : [],
        result["isError"] ?? false
      ]
      assert.deepStrictEqual(same(theirs), same(mine), name)
      assert.notStrictEqual(theirs.isError, true, name)
    }
    assert.include(text(await two.callTool({ name: "trigger-elicitation-request" })), "Ada")
    assert.include(
      text(await two.callTool({ name: "trigger-sampling-request", arguments: { prompt: "x" } })),
      "sampled"
    )
    assert.include(text(await two.callTool({ name: "get-roots-list" })), "file:///home/ada")
    // By the error that wants the client to visit a page and to call again.
    const page = { url: "https://example.com/sign-in", errorPath: true }
    assert.notStrictEqual((await two.callTool({ name: "trigger-url-elicitation", arguments: page })).isError, true)
    await Promise.all([one.close(), two.close()])
  })

  it("a modern client's prompts, resources and completions are the server's", async () => {
    const client = await modern(`${gateway.origin}/mcp/everything`)
    const { prompts } = await client.listPrompts()
    assert.isAbove(prompts.length, 2)
    const { resources } = await client.listResources()
    const [first] = resources
    assert.isDefined(first)
    const { contents } = await client.readResource({ uri: String(first?.uri) })
    assert.strictEqual(contents.length, 1)
    const { completion } = await client.complete({
      ref: { type: "ref/prompt", name: "completable-prompt" },
      argument: { name: "department", value: "E" }
    })
    assert.deepStrictEqual(completion.values, ["Engineering"])
    await client.close()
  })

  it("a client that looks for the newest revision finds it, and one that knows none goes on as before", async () => {
    const url = `${gateway.origin}/mcp/asking`
    const auto = new Client2.Client(info, { versionNegotiation: { mode: "auto" } })
    await auto.connect(new Client2.StreamableHTTPClientTransport(new URL(url)))
    assert.strictEqual(auto.getNegotiatedProtocolVersion(), Modern.version)
    const plain = new Client2.Client(info)
    await plain.connect(new Client2.StreamableHTTPClientTransport(new URL(url)))
    assert.strictEqual(plain.getNegotiatedProtocolVersion(), "2025-06-18")
    await Promise.all([auto.close(), plain.close()])
  })

  it("nobody reaches a lane by guessing its name as a session", async () => {
    const url = `${gateway.origin}/mcp/asking`
    const pid = Number(textOf(await callTool(url, "pid")))
    const client = {
      info: JSON.stringify({ name: "raw", version: "1" }),
      name: undefined,
      capabilities: Modern.capabilitiesOf({}, "{}")
    }
    const id = Callers.identify({ backend: "asking", principal: "", known: true, client })
    for (const method of ["GET", "DELETE", "POST"]) {
      const said = await fetch(url, {
        method,
        headers: { ...Kit.headers, "mcp-session-id": `lane0-${id}` },
        ...(method === "POST" ? { body: Kit.toolCall(1, "count") } : {})
      })
      assert.strictEqual(said.status, 404, method)
    }
    const { sessions } = await (await fetch(`${gateway.origin}/sessions`)).json()
    // It was a right name.
    assert.isTrue(sessions.some((each: { readonly pid: number; readonly session: string }) => each.pid === pid))
    assert.isTrue(Kit.alive(pid))
  })
})

/** Starts a call of `untilSignal`. It runs until `release`. */
const callUntilSignal = async (url: string, options: object) => {
  const pid = textOf(await callTool(url, "pid", {}, options))
  const call = callTool(url, "untilSignal", {}, options)
  await Kit.eventually("it runs", async () => (await Kit.sessionOn(gateway.origin, Number(pid)))?.inFlight === 1)
  return { call, pid, release: () => process.kill(Number(pid), "SIGUSR2") }
}

describe("what is shared", () => {
  const count = async (key: string, more: object = {}) =>
    textOf(await callTool(`${keyed.origin}/mcp/asking`, "count", {}, { key, ...more }))

  it("two tabs of one client meet the same process; another key, another client, other capabilities do not", async () => {
    assert.deepStrictEqual([await count("one"), await count("one")], ["1", "2"])
    assert.strictEqual(await count("two"), "1")
    assert.strictEqual(await count("one", { client: "another" }), "1")
    assert.strictEqual(await count("one", { capabilities: { roots: {} } }), "1")
    assert.deepStrictEqual([await count("one"), await count("two")], ["3", "2"])
  })

  it("the server is told who its client is", async () => {
    for (const client of ["raw", "another"]) {
      const said = await callTool(`${keyed.origin}/mcp/asking`, "client", {}, { key: "one", client })
      assert.strictEqual(textOf(said), client)
    }
  })

  it("a call that may ask has its process to itself: what runs beside it meets another", async () => {
    const url = `${gateway.origin}/mcp/asking`
    const options = { client: "beside", capabilities }
    const { call, pid, release } = await callUntilSignal(url, options)
    assert.notStrictEqual(textOf(await callTool(url, "pid", {}, options)), pid)
    release()
    assert.strictEqual(textOf(await call), "released")
    assert.strictEqual(textOf(await callTool(url, "pid", {}, options)), pid)
  })

  it("calls that cannot ask run beside each other in one process", async () => {
    const url = `${keyed.origin}/mcp/asking`
    const options = { key: "one", client: "another" }
    const said = await Promise.all([1, 2, 3].map(() => callTool(url, "pid", {}, options)))
    assert.strictEqual(new Set(said.map(textOf)).size, 1)
  })

  it("reads the kernel's table of connections once for all callers that wait for it", async () => {
    let reads = 0
    const read = (file: string) =>
      Effect.sync(() => {
        if (file.endsWith("/tcp")) reads++
        return ""
      })
    const users = PeerOwner.readUsers(FileSystem.makeNoop({ readFileString: read }))
    // An interrupted caller does not take the read from the others.
    const first = Effect.timeoutOption(users, 0)
    await Effect.runPromise(
      Effect.all([first, ...Array.from({ length: 1000 }, () => users)], { concurrency: "unbounded" })
    )
    assert.strictEqual(reads, 1)
    await Effect.runPromise(users)
    assert.strictEqual(reads, 2)
  })

  it("without keys, processes of the gateway's own user share; whoever cannot be told apart shares nothing", async () => {
    const table = [
      "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode",
      "   0: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 1 1 0",
      "   1: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000    33        0 2 1 0",
      "   2: 0A00000A:C351 0A00000B:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 3 1 0",
      "   3: 00000000000000000000000001000000:C352 00000000000000000000000001000000:1F90 01 0:0 0:0 0 1001 0 4 1",
      "   4: 0000000000000000FFFF00000100007F:C353 0000000000000000FFFF00000100007F:1F90 01 0:0 0:0 0 1002 0 5 1"
    ].join("\n")
    assert.deepStrictEqual(
      [0xc350, 0xc351, 0xc352, 0xc353, 0xc354].map((port) => PeerOwner.usersOf(table).get(`${port}:8080`)),
      [33, undefined, 1001, 1002, undefined]
    )
    // Another user's socket with the same ports, on another loopback address.
    const twice = `${table}\n   5: 0200007F:C350 0100007F:1F90 01 0:0 0:0 0 1000 0 6 1`
    assert.isUndefined(PeerOwner.usersOf(twice).get("50000:8080"))
    const client = { info: "{}", name: undefined, capabilities: Modern.capabilitiesOf({}, "{}") }
    const loner = { backend: "asking", principal: "", known: false, client }
    assert.notStrictEqual(Callers.identify(loner), Callers.identify(loner))
    const url = `${gateway.origin}/mcp/asking`
    const first = Number(textOf(await callTool(url, "count", {}, { client: "own" })))
    assert.strictEqual(Number(textOf(await callTool(url, "count", {}, { client: "own" }))), first + 1)
    // A proxy of the same user speaks for others.
    for (const header of ["forwarded", "x-forwarded-for", "via"]) {
      const said = await callTool(url, "count", {}, { client: "own", headers: { [header]: "1.2.3.4" } })
      assert.strictEqual(textOf(said), "1", header)
    }
  })
})

describe("subscriptions/listen", () => {
  const open = async (notifications: object, more: object = {}, url = `${gateway.origin}/mcp/asking`) => {
    const aborter = new AbortController()
    const response = await send(url, "subscriptions/listen", { notifications }, {
      id: "listener",
      client: "listener",
      signal: aborter.signal,
      ...more
    })
    const heard: Array<Record<string, unknown>> = []
    const done = Kit.readEvents(response, ({ data }) => {
      heard.push(JSON.parse(data))
      return false
    }).catch(() => undefined)
    await Kit.eventually("it is acknowledged", () => heard.length > 0)
    return { heard, close: () => aborter.abort(), done, url }
  }
  const tag = { [Modern.metaKeys.subscriptionId]: "listener" }

  it("is acknowledged with what the server can tell, and brings that and nothing else, under its id", async () => {
    const { close, heard, url } = await open({
      toolsListChanged: true,
      promptsListChanged: true,
      resourceSubscriptions: ["test://a"]
    }, { capabilities })
    assert.deepStrictEqual(heard[0], {
      jsonrpc: "2.0",
      method: "notifications/subscriptions/acknowledged",
      params: { notifications: { toolsListChanged: true, resourceSubscriptions: ["test://a"] }, _meta: tag }
    })
    // On another lane of the same client, too.
    const options = { client: "listener", capabilities }
    const { call, pid, release } = await callUntilSignal(url, options)
    assert.notStrictEqual(textOf(await callTool(url, "pid", {}, options)), pid)
    await callTool(url, "change", {}, options)
    release()
    await call
    await Kit.eventually("both are heard", () => heard.length >= 3)
    assert.deepStrictEqual(heard.slice(1).map(({ method, params }) => [method, params]), [
      ["notifications/tools/list_changed", { _meta: tag }],
      ["notifications/resources/updated", { uri: "test://a", _meta: tag }]
    ])
    close()
    await Kit.eventually("the server is told that nobody listens any more", async () => {
      const said = textOf(await callTool(url, "heard", {}, { client: "listener", capabilities }))
      return said.includes("resources/subscribe test://a") && said.includes("resources/unsubscribe test://a")
    })
  })

  it("ends with its client: the lease goes, and the process when it has been idle", async () => {
    const own = await Kit.start({
      backends: { asking },
      idleTimeToLive: "100 millis",
      cleanupInterval: "20 millis"
    })
    const url = `${own.origin}/mcp/asking`
    const aborter = new AbortController()
    const response = await send(url, "subscriptions/listen", { notifications: {} }, { signal: aborter.signal })
    // Asked by the same client while it listens: on a busy machine a process could be idle for too long before it does.
    const pid = Number(textOf(await callTool(url, "pid")))
    // The process of a client that does not listen. It became idle later, so once it is gone, `pid` would be gone too.
    const other = Number(textOf(await callTool(url, "pid", {}, { client: "other" })))
    await Kit.eventually("the other process is gone", () => !Kit.alive(other))
    assert.isTrue(Kit.alive(pid))
    assert.isDefined(await Kit.sessionOn(own.origin, pid))
    aborter.abort()
    await response.text().catch(() => undefined)
    await Kit.eventually("the process is gone", () => !Kit.alive(pid))
    await own.stop()
  })

  it("ends without an answer when its process ends, and with one when the gateway does", async () => {
    const { done, heard, url } = await open({ toolsListChanged: true }, { client: "crashing" })
    await callTool(url, "crash", {}, { client: "crashing" })
    await done
    assert.strictEqual(heard.length, 1)

    const own = Kit.run(["--port", "0", "--", asking.command, ...asking.args])
    const other = await open({}, { id: 5 }, await Kit.urlOf(own))
    own.child.kill("SIGTERM")
    await other.done
    assert.deepStrictEqual(other.heard.at(-1), {
      jsonrpc: "2.0",
      id: 5,
      result: { resultType: "complete", _meta: { [Modern.metaKeys.subscriptionId]: 5 } }
    })
  })

  it("ends when its process is ended by an operator, who does not wait for its client", async () => {
    const { done, url } = await open({ toolsListChanged: true }, { client: "ended" })
    const pid = Number(textOf(await callTool(url, "pid", {}, { client: "ended" })))
    const { sessions } = await (await fetch(`${gateway.origin}/sessions`)).json()
    const session = sessions.find((each: { readonly pid: number }) => each.pid === pid)
    const response = await fetch(`${gateway.origin}/sessions/${session.id}`, { method: "DELETE" })
    assert.strictEqual(response.status, 204)
    assert.isFalse(Kit.alive(pid))
    await done
  })

  it("without a filter is refused", async () => {
    for (const params of [{}, { notifications: [] }, { notifications: { resourceSubscriptions: [1] } }]) {
      const { last, status } = await request(`${gateway.origin}/mcp/asking`, "subscriptions/listen", params)
      assert.deepStrictEqual([status, last.error.code], [400, -32602])
    }
  })
})
