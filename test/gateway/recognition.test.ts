/** How it is found out which revisions a stdio server speaks, and who is served in which way. */
import { afterEach, assert, describe, it } from "@effect/vitest"
import * as Eras from "../kit/gateway/eras.ts"
import * as Kit from "../kit/gateway/gateway.ts"

let gateway: Kit.Running
let url = ""
const start = async (
  entry: { readonly command: string; readonly args: ReadonlyArray<string> },
  era?: "modern" | "legacy"
) => {
  gateway = await Kit.start({ backends: { it: { ...entry, ...(era === undefined ? {} : { era }) } } })
  url = `${gateway.origin}/mcp/it`
}
const odd = (kind: string) => ({
  command: process.execPath,
  args: [new URL("../fixtures/era-server.ts", import.meta.url).pathname, kind]
})
afterEach(() => gateway.stop())

describe("a stdio server of earlier revisions", () => {
  it("that dies when it is asked, is served to both, and asked no more", async () => {
    await start(odd("dies"))
    const [modern, legacy] = await Promise.all([Eras.modern(url, {}), Eras.legacy(url, {})])
    assert.deepStrictEqual((await modern.client.listTools()).tools, [])
    assert.deepStrictEqual((await legacy.client.listTools()).tools, [])
    const second = await Eras.modern(url, { roots: {} })
    assert.strictEqual(second.client.getServerVersion()?.name, "dies")
  })

  it("that is silent when it is asked, is served to both", async () => {
    await start(odd("silent"))
    const [modern, legacy] = await Promise.all([Eras.modern(url, {}), Eras.legacy(url, {})])
    assert.deepStrictEqual((await modern.client.listTools()).tools, [])
    assert.deepStrictEqual((await legacy.client.listTools()).tools, [])
  })

  it("that refuses initialize is not taken for a modern one: the client reads its refusal", async () => {
    await start(odd("refuses"))
    for (let i = 0; i < 2; i++) {
      const { error } = await (await Kit.initialize(url)).json()
      assert.deepStrictEqual(error, { code: -32000, message: "not with me" })
    }
    await Kit.eventually("no process is left", () => Kit.descendants(process.pid).length === 0)
  })
})

describe("a stdio server of both", () => {
  it("is served to legacy clients in its own legacy way, whoever came first", async () => {
    for (const first of ["modern", "legacy"] as const) {
      await start(Eras.modernStdio("dual"))
      if (first === "modern") await Eras.modern(url)
      const { call, client } = await Eras.legacy(url)
      // In its own way nothing is added to what the client says.
      assert.notProperty(JSON.parse(await call("whoami")).envelope ?? {}, "io.modelcontextprotocol/protocolVersion")
      assert.strictEqual(client.getServerVersion()?.name, "modern")
      if (first === "modern") await gateway.stop()
    }
  })
})

describe("the setting era", () => {
  it("modern: legacy clients get a face at once", async () => {
    await start(Eras.modernStdio("dual"), "modern")
    const { call } = await Eras.legacy(url)
    assert.property(JSON.parse(await call("whoami")).envelope, "io.modelcontextprotocol/protocolVersion")
  })

  it("legacy: a modern server's refusal is the client's to read", async () => {
    await start(Eras.modernStdio(), "legacy")
    assert.strictEqual((await (await Kit.initialize(url)).json()).error.code, -32022)
  })
})

describe("a modern stdio server", () => {
  it("gives a legacy client the version that it asked for, if there is such one", async () => {
    await start(Eras.modernStdio())
    const versionOf = async (protocolVersion: string) => {
      const body = Kit.initializeBody.replace("2025-06-18", protocolVersion)
      const response = await fetch(url, { method: "POST", headers: Kit.headers, body })
      return (await response.json()).result.protocolVersion
    }
    assert.strictEqual(await versionOf("2025-03-26"), "2025-03-26")
    assert.strictEqual(await versionOf("2025-06-18"), "2025-06-18")
    assert.strictEqual(await versionOf("2031-01-01"), "2025-11-25")
  })

  it("that ends takes the sessions with it, and leaves nothing behind", async () => {
    await start(Eras.modernStdio())
    const legacy = await Eras.legacy(url)
    const failure = await legacy.call("crash").then(String, String)
    assert.include(failure, "exit code 7")
    await Kit.eventually(
      "the session is unknown",
      async () => (await legacy.call("echo").then(String, String)).includes("no such session")
    )
    const again = await Eras.legacy(url)
    assert.strictEqual(await again.call("echo", { message: "again" }), "again")
    await gateway.stop()
    assert.deepStrictEqual(Kit.descendants(process.pid), [])
    await start(odd("modern"))
  })
})
