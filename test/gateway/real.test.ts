/** The official servers through the gateway, with both official clients: 1.x, and 2.x in its legacy mode. */
import { readFileSync, realpathSync } from "node:fs"
import { join } from "node:path"
import { afterAll, assert, beforeAll, describe, it } from "vitest"
import * as Eras from "../kit/gateway/eras.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"

const directory = realpathSync(Serving.directory())
const remote = await Eras.startHttp(Eras.official("everything"), ["streamableHttp"])
afterAll(() => void remote.process.kill("SIGKILL"))
const memory = { MEMORY_FILE_PATH: join(directory, "memory.json") }
const { origin } = await Serving.gateway({
  backends: {
    stdio: Eras.officialStdio("everything", "stdio"),
    http: { url: remote.url },
    memory: { ...Eras.officialStdio("memory"), env: memory },
    filesystem: Eras.officialStdio("filesystem", directory)
  }
})

const clients = { "client 1.x": Eras.legacy, "client 2.x": Eras.legacy2 } as const

describe.each(Object.entries(clients))("%s", (name, connect) => {
  const open = (backend: string, can?: object): Promise<Eras.Connected<Eras.AnyClient>> =>
    connect(`${origin}/mcp/${backend}`, can)

  describe.each(["stdio", "http"])("server-everything on %s", (backend) => {
    let everything: Eras.Connected<Eras.AnyClient>
    beforeAll(async () => {
      everything = await open(backend)
    })
    afterAll(() => everything.client.close())

    it("lists, reads, prompts, echoes and pings", async () => {
      const { call, client } = everything
      assert.isAbove((await client.listTools()).tools.length, 5)
      assert.isAbove((await client.listPrompts()).prompts.length, 0)
      const { resources } = await client.listResources()
      const [resource] = resources
      assert.strictEqual((await client.readResource({ uri: resource?.uri ?? "" })).contents.length, 1)
      assert.isAbove((await client.getPrompt({ name: "simple-prompt" })).messages.length, 0)
      assert.strictEqual(await call("echo", { message: name }), `Echo: ${name}`)
      await client.ping()
    })

    it("sends updates of a subscribed resource", async () => {
      const { call, client, heard } = everything
      const uri = "demo://resource/dynamic/text/1"
      await client.subscribeResource({ uri })
      await call("toggle-subscriber-updates")
      await Kit.eventually("an update arrives", () => heard.changes.includes(uri))
    })

    it("serves calls with progress in concurrent sessions", async () => {
      const count = 4
      const results = await Promise.all(Array.from({ length: count }, async (_, i) => {
        const { call, client, heard } = await open(backend)
        const echo = await call("echo", { message: `session ${i}` })
        await call("trigger-long-running-operation", { duration: 0.1, steps: 3 })
        await client.close()
        return [echo, heard.progress]
      }))
      assert.deepStrictEqual(results, Array.from({ length: count }, (_, i) => [`Echo: session ${i}`, [1, 2, 3]]))
    })

    it("sends sampling, elicitation, roots and log messages to the client of the session", async () => {
      const { call, client, heard } = await open(backend)
      assert.include(await call("trigger-sampling-request", { prompt: "x", maxTokens: 1 }), "sampled")
      await call("trigger-elicitation-request")
      assert.lengthOf(heard.asked, 1)
      assert.include(await call("get-roots-list"), "file:///home")
      await client.setLoggingLevel("debug")
      await call("toggle-simulated-logging")
      await Kit.eventually("a log message arrives", () => heard.logs.length > 0)
      await client.close()
    })

    it("ends a cancelled call at the gateway too, without an error at the client, and the session goes on", async () => {
      const { call, heard } = everything
      // One step in a minute, because progress that crosses the cancellation is an error to the client.
      const args = { duration: 60, steps: 1 }
      const cancel = Serving.leaving((signal) => call("trigger-long-running-operation", args, signal))
      await Kit.eventually("it runs", async () => (await Kit.inFlight(origin)) === 1)
      await cancel()
      await Kit.eventually("it has ended at the gateway", async () => (await Kit.inFlight(origin)) === 0)
      assert.strictEqual(await call("echo", { message: "on" }), "Echo: on")
      assert.deepStrictEqual(heard.errors, [])
    })
  })

  it("stores an entity with server-memory", async () => {
    const { call, client } = await open("memory")
    const entity = { name: `${name} entity`, entityType: "test", observations: ["seen"] }
    await call("create_entities", { entities: [entity] })
    assert.include(await call("search_nodes", { query: entity.name }), "seen")
    await client.close()
    assert.include(readFileSync(memory.MEMORY_FILE_PATH, "utf8"), entity.name)
  })

  it("writes a file with server-filesystem, and reads it", async () => {
    // With roots, the server would serve those of the client.
    const { call, client } = await open("filesystem", {})
    const path = join(directory, `${name}.txt`)
    const content = "line 1\nline 2 \u{1F600} \u2028 end"
    await call("write_file", { path, content })
    assert.strictEqual(readFileSync(path, "utf8"), content)
    assert.include(await call("read_text_file", { path }), "line 2 \u{1F600}")
    await client.close()
  })
})
