/** Recognition of the revisions that a stdio server supports. */
import { assert, describe, it } from "@effect/vitest"
import { existsSync } from "node:fs"
import { join } from "node:path"
import * as Eras from "../kit/gateway/eras.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"
import * as StillClock from "../kit/gateway/stillClock.ts"

/** Each test has its own back end, because the gateway remembers the era of a back end. */
const { origin } = await Serving.gateway({
  backends: {
    dies: Eras.odd("dies"),
    refuses: Eras.odd("refuses"),
    modernFirst: Eras.modernStdio("dual"),
    legacyFirst: Eras.modernStdio("dual"),
    modern: { ...Eras.modernStdio("dual"), era: "modern" },
    legacy: { ...Eras.modernStdio(), era: "legacy" },
    versions: Eras.odd("modern")
  }
})
const urlOf = (backend: string) => `${origin}/mcp/${backend}`

/** Clients of both eras, connected at the same time, list the tools of a server that has none. */
const serveBoth = async (url: string) => {
  const clients = await Promise.all([Eras.modern(url, {}), Eras.legacy(url, {})])
  for (const { client } of clients) assert.deepStrictEqual((await client.listTools()).tools, [])
}

describe("a legacy stdio server", () => {
  it("is served to clients of both eras if it exits at the probe, and is probed once", async () => {
    const url = urlOf("dies")
    await serveBoth(url)
    const second = await Eras.modern(url, { roots: {} })
    assert.strictEqual(second.client.getServerVersion()?.name, "dies")
  })

  it("is served to clients of both eras if it does not answer the probe", async () => {
    const asked = join(Serving.directory(), "asked")
    const clock = await StillClock.make()
    const { url } = await Serving.gateway({ backends: { it: Eras.odd("silent", asked) } }, clock)
    const served = serveBoth(url)
    await Kit.eventually("it is asked", () => existsSync(asked))
    await clock.pass("5 seconds")
    await served
  })

  it("is not taken for a modern one if it refuses initialize: the client gets the refusal", async () => {
    const before = Kit.descendants(process.pid)
    for (let i = 0; i < 2; i++) {
      const { error } = await (await Kit.initialize(urlOf("refuses"))).json()
      assert.deepStrictEqual(error, { code: -32000, message: "not with me" })
    }
    await Kit.eventually("no process is left", () => Kit.descendants(process.pid).every((pid) => before.includes(pid)))
  })
})

describe("a stdio server of both eras", () => {
  it.each(["modern", "legacy"])(
    "serves legacy clients without translation when a %s client came first",
    async (first) => {
      const url = urlOf(first === "modern" ? "modernFirst" : "legacyFirst")
      if (first === "modern") await Eras.modern(url)
      const { call, client } = await Eras.legacy(url)
      // A translated request would have the modern keys.
      assert.notProperty(JSON.parse(await call("whoami")).envelope ?? {}, "io.modelcontextprotocol/protocolVersion")
      assert.strictEqual(client.getServerVersion()?.name, "modern")
    }
  )
})

describe("the setting era", () => {
  it("lets legacy clients use a back end of era modern without a probe", async () => {
    const { call } = await Eras.legacy(urlOf("modern"))
    assert.property(JSON.parse(await call("whoami")).envelope, "io.modelcontextprotocol/protocolVersion")
  })

  it("passes on the refusal of a modern server to a client if the era is legacy", async () => {
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

  it("ends its session when it exits, and leaves no process", async () => {
    const { stop, url } = await Serving.gateway({ backends: { it: Eras.modernStdio() } })
    const before = Kit.descendants(process.pid)
    const legacy = await Eras.legacy(url)
    assert.include(await legacy.call("crash").then(String, String), "exit code 7")
    const isUnknown = async () => (await legacy.call("echo").then(String, String)).includes("Session not found")
    await Kit.eventually("the session is unknown", isUnknown)
    const again = await Eras.legacy(url)
    assert.strictEqual(await again.call("echo", { message: "again" }), "again")
    await stop()
    assert.deepStrictEqual(Kit.descendants(process.pid).filter((pid) => !before.includes(pid)), [])
  })
})
