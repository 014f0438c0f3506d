/** The official servers on stdio, through the gateway, with both official clients: 1.x, and 2.x in its legacy mode. */
import * as Client2 from "@modelcontextprotocol/client"
import { Client as Client1 } from "@modelcontextprotocol/sdk/client/index.js"
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js"
import { ResourceUpdatedNotificationSchema } from "@modelcontextprotocol/sdk/types.js"
import { readFileSync, realpathSync } from "node:fs"
import { createRequire } from "node:module"
import { join } from "node:path"
import { afterAll, assert, beforeAll, describe, it } from "vitest"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"

const server = (name: string) =>
  createRequire(import.meta.url).resolve(`@modelcontextprotocol/server-${name}/dist/index.js`)
const directory = realpathSync(Serving.directory())
const info = { name: "real", version: "1.0.0" }

interface Connected {
  readonly client: Client1 | Client2.Client
  readonly call: (name: string, args?: Record<string, unknown>, signal?: AbortSignal) => Promise<unknown>
  readonly updates: Array<string>
  /** What the client has complained of. */
  readonly errors: Array<unknown>
}

/** The options of a call with a signal. */
const until = (signal?: AbortSignal) => signal === undefined ? {} : { signal }

const clients: Record<string, (url: URL) => Promise<Connected>> = {
  "client 1.x": async (url) => {
    const client = new Client1(info)
    const [errors, updates]: [Array<unknown>, Array<string>] = [[], []]
    Object.assign(client, { onerror: (error: unknown) => errors.push(error) })
    await client.connect(new StreamableHTTPClientTransport(url))
    client.setNotificationHandler(ResourceUpdatedNotificationSchema, ({ params }) => void updates.push(params.uri))
    const call: Connected["call"] = async (name, args = {}, signal) =>
      (await client.callTool({ name, arguments: args }, undefined, until(signal))).content
    return { client, call, updates, errors }
  },
  "client 2.x": async (url) => {
    const client = new Client2.Client(info)
    const [errors, updates]: [Array<unknown>, Array<string>] = [[], []]
    Object.assign(client, { onerror: (error: unknown) => errors.push(error) })
    await client.connect(new Client2.StreamableHTTPClientTransport(url))
    client.setNotificationHandler("notifications/resources/updated", ({ params }) => void updates.push(params.uri))
    const call: Connected["call"] = async (name, args = {}, signal) =>
      (await client.callTool({ name, arguments: args }, until(signal))).content
    return { client, call, updates, errors }
  }
}

let origin = ""
beforeAll(async () => {
  const node = (...args: ReadonlyArray<string>) => ({ command: process.execPath, args })
  const gateway = await Serving.gateway({
    backends: {
      everything: node(server("everything"), "stdio"),
      memory: { ...node(server("memory")), env: { MEMORY_FILE_PATH: join(directory, "memory.json") } },
      filesystem: node(server("filesystem"), directory)
    }
  })
  origin = gateway.origin
})

for (const [name, connect] of Object.entries(clients)) {
  describe(`with ${name}`, () => {
    const open = (backend: string) => connect(new URL(`${origin}/mcp/${backend}`))

    let everything: Connected
    beforeAll(async () => {
      everything = await open("everything")
    })
    afterAll(() => everything.client.close())

    it("server-everything lists, reads, prompts, echoes and pings", async () => {
      const { call, client } = everything
      assert.isAbove((await client.listTools()).tools.length, 5)
      assert.isAbove((await client.listPrompts()).prompts.length, 0)
      const { resources } = await client.listResources()
      const [resource] = resources
      assert.strictEqual((await client.readResource({ uri: resource?.uri ?? "" })).contents.length, 1)
      assert.isAbove((await client.getPrompt({ name: "simple-prompt" })).messages.length, 0)
      assert.deepStrictEqual(await call("echo", { message: name }), [{ type: "text", text: `Echo: ${name}` }])
      await client.ping()
    })

    it("a subscription of server-everything brings its updates", async () => {
      const { call, client, updates } = everything
      const uri = "demo://resource/dynamic/text/1"
      await client.subscribeResource({ uri })
      await call("toggle-subscriber-updates")
      await Kit.eventually("an update arrives", () => updates.includes(uri))
    })

    it("a call that is cancelled ends at the client and at the gateway, without complaints, and the session goes on", async () => {
      const { call, errors } = everything
      const stop = new AbortController()
      const long = call("trigger-long-running-operation", { duration: 60, steps: 600 }, stop.signal)
      const ended = long.then(() => "answered", () => "cancelled")
      await call("echo", { message: "meanwhile" })
      stop.abort()
      assert.strictEqual(await ended, "cancelled")
      await Kit.eventually("it has ended at the gateway", async () => (await Kit.inFlight(origin)) === 0)
      assert.deepStrictEqual(await call("echo", { message: "on" }), [{ type: "text", text: "Echo: on" }])
      assert.deepStrictEqual(errors, [])
    })

    it("server-memory keeps what it is told", async () => {
      const { call, client } = await open("memory")
      const entity = { name: `${name} entity`, entityType: "test", observations: ["seen"] }
      await call("create_entities", { entities: [entity] })
      assert.include(JSON.stringify(await call("search_nodes", { query: entity.name })), "seen")
      await client.close()
      assert.include(readFileSync(join(directory, "memory.json"), "utf8"), entity.name)
    })

    it("server-filesystem writes and reads, and what it writes is on the disk", async () => {
      const { call, client } = await open("filesystem")
      const path = join(directory, `${name}.txt`)
      const content = "line 1\nline 2 \u{1F600} \u2028 end"
      await call("write_file", { path, content })
      assert.strictEqual(readFileSync(path, "utf8"), content)
      assert.include(JSON.stringify(await call("read_text_file", { path })), "line 2 \u{1F600}")
      await client.close()
    })
  })
}
