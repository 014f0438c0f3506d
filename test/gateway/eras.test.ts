/** Clients of both eras on the same URL at the same time: their tools, the processes that they share, and subscriptions. */
import { assert, describe, it } from "@effect/vitest"
import * as Client2 from "@modelcontextprotocol/client"
import * as PeerOwner from "../../src/gateway/auth/PeerOwner.ts"
import * as Modern from "../../src/gateway/protocol/Modern.ts"
import * as Callers from "../../src/gateway/sessions/Callers.ts"
import * as Eras from "../kit/gateway/eras.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as ModernKit from "../kit/gateway/modern.ts"
import { callTool, everything as capabilities, request, send, toolText } from "../kit/gateway/modern.ts"
import * as Serving from "../kit/gateway/serving.ts"

const program = "../../node_modules/@modelcontextprotocol/server-everything/dist/index.js"
const everything = { command: process.execPath, args: [new URL(program, import.meta.url).pathname, "stdio"] }
const asking = ModernKit.asking()

const { origin } = await Serving.gateway({ backends: { everything, asking } })
const url = `${origin}/mcp/asking`
/** The back end `asking` of a gateway with keys. */
const { url: keyed } = await Serving.gateway({ backends: { asking }, keys: ["one", "two"] })

type Options = ModernKit.Options

const pidOf = async (options: Options = {}) => Number(await toolText(url, "pid", options))

/** The arguments of the tools. A tool without an entry needs none. */
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

describe("both eras on one URL", () => {
  it("a modern client uses every tool of server-everything while a legacy client does the same", async () => {
    const url = `${origin}/mcp/everything`
    const [{ client: one }, { call, client: two, heard }] = await Promise.all([Eras.legacy(url), Eras.modern(url)])
    // One tool needs tasks, which are an extension in the modern era.
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
    assert.isAbove(heard.asked.length, 0)
    assert.include(await call("trigger-sampling-request", { prompt: "x" }), "sampled")
    assert.include(await call("get-roots-list"), "file:///home")
    // This error asks the client to visit a page and to call again.
    const page = { url: "https://example.com/sign-in", errorPath: true }
    assert.notStrictEqual((await two.callTool({ name: "trigger-url-elicitation", arguments: page })).isError, true)
    await Promise.all([one.close(), two.close()])
  })

  it("a modern client gets the server's prompts, resources and completions", async () => {
    const { client } = await Eras.modern(`${origin}/mcp/everything`)
    const { prompts } = await client.listPrompts()
    assert.isAbove(prompts.length, 2)
    const { resources: [first] } = await client.listResources()
    assert.lengthOf((await client.readResource({ uri: String(first?.uri) })).contents, 1)
    const { completion } = await client.complete({
      ref: { type: "ref/prompt", name: "completable-prompt" },
      argument: { name: "department", value: "E" }
    })
    assert.deepStrictEqual(completion.values, ["Engineering"])
    await client.close()
  })

  it("a client that looks for the newest revision finds it, and any other client uses the legacy one", async () => {
    const versionOf = async (options: Client2.ClientOptions) => {
      const client = new Client2.Client({ name: "eras", version: "1.0.0" }, options)
      await client.connect(new Client2.StreamableHTTPClientTransport(new URL(url)))
      const version = client.getNegotiatedProtocolVersion()
      await client.close()
      return version
    }
    assert.strictEqual(await versionOf({ versionNegotiation: { mode: "auto" } }), Modern.version)
    assert.strictEqual(await versionOf({}), "2025-06-18")
  })

  it("refuses a request that names a lane as its session with 404", async () => {
    const pid = await pidOf()
    const client = { info: { name: "raw", version: "1" }, name: undefined, capabilities: Modern.capabilitiesOf({}) }
    const lane = `lane0-${Callers.identify({ backend: "asking", principal: { id: "" }, known: true, client })}`
    for (const method of ["GET", "DELETE", "POST"]) {
      const call = { body: Kit.toolCall(1, "count") }
      const { status } = await Serving.ask(origin, "/mcp/asking", { "mcp-session-id": lane }, method, call)
      assert.strictEqual(status, 404, method)
    }
    // The lane exists.
    assert.isDefined(await Kit.sessionOn(origin, pid))
    assert.isTrue(Kit.alive(pid))
  })
})

/** Starts a call that runs until `release`. */
const callUntilSignal = async (options: Options) => {
  const pid = await pidOf(options)
  const call = toolText(url, "untilSignal", options)
  await Kit.untilRunning(origin, pid)
  return { call, pid, release: () => process.kill(pid, "SIGUSR2") }
}

describe("shared processes", () => {
  const count = (key: string, more: Options = {}) => toolText(keyed, "count", { key, ...more })

  it("requests share a process if they have the same key, client and capabilities, and only then", async () => {
    assert.deepStrictEqual([await count("one"), await count("one")], ["1", "2"])
    assert.strictEqual(await count("two"), "1")
    assert.strictEqual(await count("one", { client: "another" }), "1")
    assert.strictEqual(await count("one", { capabilities: { roots: {} } }), "1")
    // The order of members tells no callers apart.
    const orders = [{ form: {}, url: {} }, { url: {}, form: {} }]
    const counts = orders.map((elicitation) => () => count("one", { capabilities: { elicitation } }))
    assert.deepStrictEqual([await counts[0]?.(), await counts[1]?.()], ["1", "2"])
    assert.deepStrictEqual([await count("one"), await count("two")], ["3", "2"])
  })

  it("the server gets the name of its client", async () => {
    for (const client of ["raw", "another"]) {
      assert.strictEqual(await toolText(keyed, "client", { key: "one", client }), client)
    }
  })

  it("a call that may ask for input has its process to itself, so a call at the same time gets another", async () => {
    const options = { client: "beside", capabilities }
    const { call, pid, release } = await callUntilSignal(options)
    assert.notStrictEqual(await pidOf(options), pid)
    release()
    assert.strictEqual(await call, "released")
    assert.strictEqual(await pidOf(options), pid)
  })

  it("calls that cannot ask for input run at the same time in one process", async () => {
    const pids = await Promise.all([1, 2, 3].map(() => toolText(keyed, "pid", { key: "one", client: "another" })))
    assert.strictEqual(new Set(pids).size, 1)
  })

  it("reads the kernel's table of connections once for all callers that wait for it", async () => {
    let reads = 0
    const users = () =>
      PeerOwner.readUsers(() => {
        reads++
        return Promise.resolve("")
      })
    await Promise.all(Array.from({ length: 1000 }, users))
    assert.strictEqual(reads, 1)
    await users()
    assert.strictEqual(reads, 2)
  })

  it("without keys, programs of the gateway's own user share a process, and unidentified callers share none", async () => {
    const table = [
      "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode",
      "   0: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 1 1 0",
      "   1: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000    33        0 2 1 0",
      "   2: 0A00000A:C351 0A00000B:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 3 1 0",
      "   3: 00000000000000000000000001000000:C352 00000000000000000000000001000000:1F90 01 0:0 0:0 0 1001 0 4 1",
      "   4: 0000000000000000FFFF00000100007F:C353 0000000000000000FFFF00000100007F:1F90 01 0:0 0:0 0 1002 0 5 1"
    ].join("\n")
    const ports = [0xc350, 0xc351, 0xc352, 0xc353, 0xc354]
    const users = ports.map((port) => PeerOwner.usersOf(table).get(`${port}:8080`))
    assert.deepStrictEqual(users, [33, undefined, 1001, 1002, undefined])
    // Another user's socket with the same ports, on another loopback address.
    const twice = `${table}\n   5: 0200007F:C350 0100007F:1F90 01 0:0 0:0 0 1000 0 6 1`
    assert.isUndefined(PeerOwner.usersOf(twice).get("50000:8080"))
    const client = { info: {}, name: undefined, capabilities: Modern.capabilitiesOf({}) }
    const loner = { backend: "asking", principal: { id: "" }, known: false, client }
    assert.notStrictEqual(Callers.identify(loner), Callers.identify(loner))
    const options = { client: "own" }
    const first = Number(await toolText(url, "count", options))
    assert.strictEqual(await toolText(url, "count", options), String(first + 1))
  })
})

describe("subscriptions/listen", () => {
  const open = async (notifications: object, more: Options = {}, at = url) => {
    const aborter = new AbortController()
    const options = { id: "listener", client: "listener", signal: aborter.signal, ...more }
    const come = Serving.reading(await send(at, "subscriptions/listen", { notifications }, options))
    const heard = () => Serving.messagesIn(come.text)
    await Kit.eventually("it is acknowledged", () => heard().length > 0)
    const ended = () => Kit.eventually("the stream ends", () => come.done)
    return { heard, close: () => aborter.abort(), ended }
  }
  const tag = { [Modern.metaKeys.subscriptionId]: "listener" }

  it("acknowledges what the server can tell, and sends only that, under the id of the listen", async () => {
    const options = { client: "listener", capabilities }
    const wanted = { toolsListChanged: true, promptsListChanged: true, resourceSubscriptions: ["test://a"] }
    const { close, heard } = await open(wanted, options)
    assert.deepStrictEqual(heard()[0], {
      jsonrpc: "2.0",
      method: "notifications/subscriptions/acknowledged",
      params: { notifications: { toolsListChanged: true, resourceSubscriptions: ["test://a"] }, _meta: tag }
    })
    // The change comes from another lane of the same client.
    const { call, pid, release } = await callUntilSignal(options)
    assert.notStrictEqual(await pidOf(options), pid)
    await toolText(url, "change", options)
    release()
    await call
    await Kit.eventually("both are heard", () => heard().length >= 3)
    assert.deepStrictEqual(heard().slice(1).map(({ method, params }) => [method, params]), [
      ["notifications/tools/list_changed", { _meta: tag }],
      ["notifications/resources/updated", { uri: "test://a", _meta: tag }]
    ])
    close()
    await Kit.eventually("the server gets the unsubscription", async () => {
      const said = await toolText(url, "heard", options)
      return said.includes("resources/subscribe test://a") && said.includes("resources/unsubscribe test://a")
    })
  })

  it("a client that leaves its listen frees the lease, and the process ends once it is idle", async () => {
    const times = { idleTimeToLive: "100 millis", cleanupInterval: "20 millis" } as const
    const own = await Serving.gateway({ backends: { asking }, ...times })
    const { close } = await open({}, { client: "raw" }, own.url)
    // The same client asks while it listens, because on a busy machine an unused process could expire first.
    const pid = Number(await toolText(own.url, "pid", {}))
    // The process of a client that does not listen. It became idle later, so once it is gone, `pid` would be gone too.
    const other = Number(await toolText(own.url, "pid", { client: "other" }))
    await Kit.eventually("the other process is gone", () => !Kit.alive(other))
    assert.isTrue(Kit.alive(pid))
    assert.isDefined(await Kit.sessionOn(own.origin, pid))
    close()
    await Kit.eventually("the process is gone", () => !Kit.alive(pid))
  })

  it("a listen ends without an answer when its process ends, and with one when the gateway stops", async () => {
    const { ended, heard } = await open({ toolsListChanged: true }, { client: "crashing" })
    await callTool(url, "crash", {}, { client: "crashing" })
    await ended()
    assert.lengthOf(heard(), 1)

    const own = await Serving.gateway({ backends: { asking }, drainTimeout: "1 minute" })
    const other = await open({}, { id: 5 }, own.url)
    await own.stop()
    await other.ended()
    const result = { resultType: "complete", _meta: { [Modern.metaKeys.subscriptionId]: 5 } }
    assert.deepStrictEqual(other.heard().at(-1), { jsonrpc: "2.0", id: 5, result })
  })

  it("a listen ends when an operator ends its process, without a wait for its client", async () => {
    const { ended } = await open({ toolsListChanged: true }, { client: "ended" })
    const pid = await pidOf({ client: "ended" })
    const { sessions } = await Serving.overview(origin)
    const { id } = sessions.find((each: { readonly pid: number }) => each.pid === pid)
    assert.strictEqual((await fetch(`${origin}/sessions/${id}`, { method: "DELETE" })).status, 204)
    assert.isFalse(Kit.alive(pid))
    await ended()
  })

  it("refuses a listen without a filter", async () => {
    for (const params of [{}, { notifications: [] }, { notifications: { resourceSubscriptions: [1] } }]) {
      const { last, status } = await request(url, "subscriptions/listen", params)
      assert.deepStrictEqual([status, last.error.code], [400, -32602])
    }
  })
})
