/** Servers of revision 2026-07-28 behind the gateway, with clients of both eras at the same time. */
import { afterAll, assert, describe, it } from "@effect/vitest"
import { Client as ModernClient } from "@modelcontextprotocol/client"
import * as Eras from "../kit/gateway/eras.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"

type Client = Awaited<ReturnType<typeof Eras.modern | typeof Eras.legacy>>

const kinds = ["stdio", "http"] as const

describe.each(kinds)("clients of both eras of a modern server on %s", async (kind) => {
  const upstream = kind === "http" ? await Eras.startHttp("modern-server.ts", ["http"]) : undefined
  afterAll(() => void upstream?.process.kill("SIGKILL"))
  const server = upstream === undefined ? Eras.modernStdio() : { url: upstream.url }
  const { url } = await Serving.gateway({ backends: { server } })
  /** One modern and one legacy client, shared by most tests. Every further client starts a process. */
  const clients: ReadonlyArray<Client> = await Promise.all([Eras.modern(url), Eras.legacy(url)])
  /** A legacy client that sets no log level. */
  const quiet = await Eras.legacy(url)
  afterAll(() => Promise.all([...clients, quiet].map(({ client }) => client.close())))

  const both = (use: (client: Client) => Promise<void>) =>
    Promise.all(clients.map((client) => {
      for (const each of Object.values(client.heard)) each.length = 0
      return use(client)
    }))
  /** Like `both`, with new clients that have exactly these capabilities. */
  const bothWith = async (capabilities: object, use: (client: Client) => Promise<void>) => {
    const own = await Promise.all([Eras.modern(url, capabilities), Eras.legacy(url, capabilities)])
    await Promise.all(own.map(async (client) => {
      await use(client)
      await client.client.close()
    }))
  }

  it("the server introduces itself and answers calls", () =>
    both(async ({ call, client }) => {
      assert.strictEqual(client.getServerVersion()?.name, "modern")
      assert.strictEqual(client.getInstructions(), "Use it well.")
      assert.deepInclude(client.getServerCapabilities(), { tools: { listChanged: true } })
      assert.include((await client.listTools()).tools.map(({ name }) => name), "echo")
      assert.strictEqual(await call("echo", { message: "ä\nb" }), "ä\nb")
      assert.strictEqual((await client.readResource({ uri: "test://watched" })).contents.length, 1)
      assert.strictEqual((await client.getPrompt({ name: "simple" })).messages.length, 1)
    }))

  it("the server sees the name and the capabilities of a client of either era", async () => {
    const capabilities = { elicitation: { form: {} }, roots: {} }
    await bothWith(capabilities, async ({ call, client }) => {
      const { envelope } = JSON.parse(await call("whoami"))
      const name = client instanceof ModernClient ? "modern" : "legacy"
      assert.strictEqual(envelope["io.modelcontextprotocol/clientInfo"].name, name)
      assert.deepStrictEqual(envelope["io.modelcontextprotocol/clientCapabilities"], capabilities)
    })
  })

  it("the server asks for input, and gets it with its own state", () =>
    both(async ({ call, heard }) => {
      const { responses, state } = JSON.parse(await call("ask"))
      assert.strictEqual(responses.who.action, "accept")
      assert.strictEqual(state, "asked once")
      assert.deepStrictEqual(heard.asked, ["Who are you?"])
    }))

  it("the server asks for several inputs at once, in several rounds, and for a retry without input", () =>
    both(async ({ call, heard }) => {
      const { what, where, who } = JSON.parse(await call("ask-all"))
      assert.strictEqual(who.action, "accept")
      assert.strictEqual(what.content.text, "sampled")
      assert.strictEqual(where.roots[0].name, "home")
      assert.strictEqual(await call("rounds", { count: 4 }), "4 rounds")
      assert.deepStrictEqual(heard.asked.slice(1), ["Round 0", "Round 1", "Round 2", "Round 3"])
      assert.strictEqual(await call("wait-for-state"), "came back")
      assert.strictEqual(JSON.parse(await call("page")).page.action, "accept")
    }))

  it("the server reports progress, and logs to clients that ask for a level", () =>
    both(async ({ call, client, heard }) => {
      if ("setLoggingLevel" in client && heard.logs.length === 0) await client.setLoggingLevel("debug").catch(() => {})
      assert.strictEqual(await call("steps"), "done")
      assert.deepStrictEqual(heard.progress, [1, 2, 3])
      await Kit.eventually("the log has come", () => heard.logs.length === 3)
      assert.deepStrictEqual(heard.logs, ["step 1", "step 2", "step 3"])
    }))

  it("a legacy client without a log level gets no log", async () => {
    assert.strictEqual(await quiet.call("steps"), "done")
    assert.deepStrictEqual(quiet.heard.logs, [])
  })

  it("the server's errors reach the client unchanged", () =>
    both(async ({ call }) => {
      const failure = await call("fail").then(() => undefined, (error: unknown) => error)
      assert.include(String(failure), "It has failed")
      assert.deepInclude(failure, { code: -32000, data: { why: "told to" } })
    }))

  it("the server is told of a cancellation", () =>
    both(async ({ call, client, heard }) => {
      const stop = new AbortController()
      const message = client instanceof ModernClient ? "modern" : "legacy"
      const running = call("never", { message }, stop.signal).catch(() => "stopped")
      await Kit.eventually("it runs", () => heard.progress.length === 1)
      stop.abort()
      assert.strictEqual(await running, "stopped")
      await Kit.eventually("the server has stopped", async () => {
        const { log } = JSON.parse(await call("whoami"))
        return log.includes(`${message} was cancelled`)
      })
    }))

  it("the server never asks a client without the capability", () =>
    bothWith({}, async ({ call }) => {
      const failure = await call("ask").then(String, String)
      assert.match(failure, /capabilit/i)
    }))

  it("a legacy client gets the changes that it subscribed to, until it unsubscribes", async () => {
    const { call, client, heard } = quiet
    await client.subscribeResource({ uri: "test://watched" })
    await call("change")
    await Kit.eventually("both changes are told", () => heard.changes.length >= 2)
    assert.sameMembers([...new Set(heard.changes)], ["tools", "test://watched"])
    await client.unsubscribeResource({ uri: "test://watched" })
    // Notifications keep their order, so all of the first change's arrive before the second's.
    const toolChanges = () => heard.changes.filter((each) => each === "tools").length
    const toldOfTwo = async () => {
      heard.changes.length = 0
      for (const count of [1, 2]) {
        await call("change")
        await Kit.eventually("the tools have changed", () => toolChanges() >= count)
      }
      return heard.changes.slice(0, heard.changes.lastIndexOf("tools") + 1)
    }
    // The gateway keeps the old listen for half a second.
    const isUnwatched = async () => !(await toldOfTwo()).includes("test://watched")
    await Kit.eventually("the resource is told of no longer", isUnwatched)
    assert.deepStrictEqual(await toldOfTwo(), ["tools", "tools"])
  })

  it("a modern client gets the changes that it listens to", async () => {
    const { call, client, heard } = await Eras.modern(url)
    const subscription = await client.listen({ toolsListChanged: true, resourceSubscriptions: ["test://watched"] })
    await call("change")
    await Kit.eventually("both changes are told", () => heard.changes.length === 2)
    await subscription.close()
    await client.close()
  })
})
