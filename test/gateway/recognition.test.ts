/** How it is found out which revisions a stdio server speaks, and who is served in which way. */
import { assert, beforeAll, describe, it } from "@effect/vitest"
import { existsSync } from "node:fs"
import { join } from "node:path"
import * as Eras from "../kit/gateway/eras.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"
import * as StillClock from "../kit/gateway/stillClock.ts"

const odd = (kind: string, ...args: ReadonlyArray<string>) => ({
  command: process.execPath,
  args: [new URL("../fixtures/era-server.ts", import.meta.url).pathname, kind, ...args]
})

/** A back end for each test: what is known of one is not known of another. */
const backends = {
  dies: odd("dies"),
  refuses: odd("refuses"),
  modernFirst: Eras.modernStdio("dual"),
  legacyFirst: Eras.modernStdio("dual"),
  modern: { ...Eras.modernStdio("dual"), era: "modern" },
  legacy: { ...Eras.modernStdio(), era: "legacy" },
  versions: odd("modern")
} as const

let origin = ""
const urlOf = (backend: keyof typeof backends) => `${origin}/mcp/${backend}`
beforeAll(async () => {
  origin = (await Serving.gateway({ backends })).origin
})

/** Clients of both eras, connected at the same time, list the tools of a server that has none. */
const serveBoth = async (url: string) => {
  const clients = await Promise.all([Eras.modern(url, {}), Eras.legacy(url, {})])
  for (const { client } of clients) assert.deepStrictEqual((await client.listTools()).tools, [])
}

describe("a stdio server of earlier revisions", () => {
  it("that dies when it is asked, is served to both, and asked no more", async () => {
    const url = urlOf("dies")
    await serveBoth(url)
    const second = await Eras.modern(url, { roots: {} })
    assert.strictEqual(second.client.getServerVersion()?.name, "dies")
  })

  it("that is silent when it is asked, is served to both", async () => {
    const asked = join(Serving.directory(), "asked")
    const clock = await StillClock.make()
    const { url } = await Serving.gateway({ backends: { it: odd("silent", asked) } }, clock)
    const served = serveBoth(url)
    await Kit.eventually("it is asked", () => existsSync(asked))
    await clock.pass("5 seconds")
    await served
  })

  it("that refuses initialize is not taken for a modern one: the client reads its refusal", async () => {
    const before = Kit.descendants(process.pid)
    for (let i = 0; i < 2; i++) {
      const { error } = await (await Kit.initialize(urlOf("refuses"))).json()
      assert.deepStrictEqual(error, { code: -32000, message: "not with me" })
    }
    await Kit.eventually("no process is left", () => Kit.descendants(process.pid).every((pid) => before.includes(pid)))
  })
})

describe("a stdio server of both", () => {
  it.each(["modern", "legacy"])(
    "is served to legacy clients in its own legacy way when a %s one came first",
    async (first) => {
      const url = urlOf(first === "modern" ? "modernFirst" : "legacyFirst")
      if (first === "modern") await Eras.modern(url)
      const { call, client } = await Eras.legacy(url)
      // In its own way nothing is added to what the client says.
      assert.notProperty(JSON.parse(await call("whoami")).envelope ?? {}, "io.modelcontextprotocol/protocolVersion")
      assert.strictEqual(client.getServerVersion()?.name, "modern")
    }
  )
})

describe("the setting era", () => {
  it("modern: legacy clients get a face at once", async () => {
    const { call } = await Eras.legacy(urlOf("modern"))
    assert.property(JSON.parse(await call("whoami")).envelope, "io.modelcontextprotocol/protocolVersion")
  })

  it("legacy: a modern server's refusal is the client's to read", async () => {
    assert.strictEqual((await (await Kit.initialize(urlOf("legacy"))).json()).error.code, -32022)
  })
})

describe("a modern stdio server", () => {
  it.each([
    ["2025-03-26", "2025-03-26"],
    ["2025-06-18", "2025-06-18"],
    ["2031-01-01", "2025-11-25"]
  ])("gives a legacy client that asks for version %s version %s", async (wanted, given) => {
    const response = await Kit.post(urlOf("versions"), "", Kit.initializeBody.replace("2025-06-18", wanted))
    assert.strictEqual((await response.json()).result.protocolVersion, given)
  })

  it("that ends takes the sessions with it, and leaves nothing behind", async () => {
    const own = await Kit.start({ backends: { it: Eras.modernStdio() } })
    const url = `${own.origin}/mcp/it`
    const before = Kit.descendants(process.pid)
    const legacy = await Eras.legacy(url)
    assert.include(await legacy.call("crash").then(String, String), "exit code 7")
    await Kit.eventually(
      "the session is unknown",
      async () => (await legacy.call("echo").then(String, String)).includes("Session not found")
    )
    const again = await Eras.legacy(url)
    assert.strictEqual(await again.call("echo", { message: "again" }), "again")
    await own.stop()
    assert.deepStrictEqual(Kit.descendants(process.pid).filter((pid) => !before.includes(pid)), [])
  })
})
