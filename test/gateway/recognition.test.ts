/** How it is found out which revisions a stdio server speaks, and who is served in which way. */
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { existsSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Eras from "../kit/gateway/eras.ts"
import * as Kit from "../kit/gateway/gateway.ts"
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

let gateway: Kit.Running
const urlOf = (backend: keyof typeof backends) => `${gateway.origin}/mcp/${backend}`
beforeAll(async () => {
  gateway = await Kit.start({ backends })
})
afterAll(async () => {
  await gateway.stop()
  assert.deepStrictEqual(Kit.descendants(process.pid), [])
})

describe("a stdio server of earlier revisions", () => {
  it("that dies when it is asked, is served to both, and asked no more", async () => {
    const url = urlOf("dies")
    const [modern, legacy] = await Promise.all([Eras.modern(url, {}), Eras.legacy(url, {})])
    assert.deepStrictEqual((await modern.client.listTools()).tools, [])
    assert.deepStrictEqual((await legacy.client.listTools()).tools, [])
    const second = await Eras.modern(url, { roots: {} })
    assert.strictEqual(second.client.getServerVersion()?.name, "dies")
  })

  it("that is silent when it is asked, is served to both", async () => {
    const directory = mkdtempSync(join(tmpdir(), "gateway-"))
    const clock = await StillClock.make()
    const timed = await Kit.start({ backends: { it: odd("silent", join(directory, "asked")) } }, clock)
    const url = `${timed.origin}/mcp/it`
    const both = Promise.all([Eras.modern(url, {}), Eras.legacy(url, {})])
    await Kit.eventually("it is asked", () => existsSync(join(directory, "asked")))
    await clock.pass("5 seconds")
    const [modern, legacy] = await both
    assert.deepStrictEqual((await modern.client.listTools()).tools, [])
    assert.deepStrictEqual((await legacy.client.listTools()).tools, [])
    await timed.stop()
    rmSync(directory, { recursive: true })
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
  it("is served to legacy clients in its own legacy way, whoever came first", async () => {
    for (const first of ["modern", "legacy"] as const) {
      const url = urlOf(`${first}First`)
      if (first === "modern") await Eras.modern(url)
      const { call, client } = await Eras.legacy(url)
      // In its own way nothing is added to what the client says.
      assert.notProperty(JSON.parse(await call("whoami")).envelope ?? {}, "io.modelcontextprotocol/protocolVersion")
      assert.strictEqual(client.getServerVersion()?.name, "modern")
    }
  })
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
  it("gives a legacy client the version that it asked for, if there is such one", async () => {
    const versionOf = async (protocolVersion: string) => {
      const body = Kit.initializeBody.replace("2025-06-18", protocolVersion)
      const response = await fetch(urlOf("versions"), { method: "POST", headers: Kit.headers, body })
      return (await response.json()).result.protocolVersion
    }
    assert.strictEqual(await versionOf("2025-03-26"), "2025-03-26")
    assert.strictEqual(await versionOf("2025-06-18"), "2025-06-18")
    assert.strictEqual(await versionOf("2031-01-01"), "2025-11-25")
  })

  it("that ends takes the sessions with it, and leaves nothing behind", async () => {
    const own = await Kit.start({ backends: { it: Eras.modernStdio() } })
    const url = `${own.origin}/mcp/it`
    const before = Kit.descendants(process.pid)
    const legacy = await Eras.legacy(url)
    const failure = await legacy.call("crash").then(String, String)
    assert.include(failure, "exit code 7")
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
