/** Runs the blocks of the gateway's manual. `examples.test.ts` runs its `ts` block, `deploy.test.ts` the files to deploy with. */
import { execFileSync } from "node:child_process"
import { afterAll, assert, describe, it } from "vitest"
import * as Config from "../../src/gateway/app/Config.ts"
import * as PeerOwner from "../../src/gateway/auth/PeerOwner.ts"
import * as Documents from "../kit/documents.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import { callTool, textOf } from "../kit/gateway/modern.ts"
import * as Serving from "../kit/gateway/serving.ts"
import { pathWithCurl } from "../kit/programs.ts"

const manual = "src/gateway/README.md"
const address = "127.0.0.1:8420"

describe("the gateway's manual", () => {
  // As `npm start` does.
  const gateway = Kit.run(["--port", "0"])
  afterAll(async () => {
    gateway.child.kill("SIGTERM")
    await gateway.exit
  })
  const host = async () => new URL(await Kit.urlOf(gateway)).host

  it("shows what a start prints, as does the README", async () => {
    const there = await host()
    for (const document of [manual, "README.md"]) {
      const printed = Documents.block(document, "text", "The gateway is up").replaceAll(address, there)
      await Kit.eventually("the gateway prints it", () => gateway.output().includes(printed))
    }
  })

  it("shows requests that check the health, open a session, list its tools, end it, and ask without a session", async () => {
    const there = await host()
    const [health, initialize, inSession, modern, ...others] = Documents.blocks(manual, "sh")
      .filter((text) => text.includes(`http://${address}/`)).map((text) => text.replaceAll(address, there))
    assert.deepStrictEqual(others, [])
    const [arrays = ""] = initialize?.split("\n") ?? []
    const run = (...lines: ReadonlyArray<string | undefined>) =>
      execFileSync("bash", ["-c", lines.join("\n")], {
        encoding: "utf8",
        env: { ...process.env, PATH: pathWithCurl() }
      })
    /** The names of the tools in the one line of an output that lists them. */
    const toolsIn = (output: string): ReadonlyArray<string> => {
      const line = output.split("\n").find((line) => line.includes("\"tools\":[")) ?? ""
      const { result } = JSON.parse(line.slice(line.indexOf("{"), line.lastIndexOf("}") + 1))
      return result.tools.map(({ name }: { readonly name: string }) => name)
    }
    assert.include(run(health), "\"status\":\"ok\"")
    const opened = run(initialize)
    assert.include(opened, "HTTP/1.1 200 OK\r\n")
    assert.include(opened, "\"serverInfo\"")
    const session = opened.split("\r\n").find((line) => line.startsWith("mcp-session-id: "))?.split(": ")[1] ?? ""
    const used = run(arrays, inSession?.replace("PUT-THE-ID-HERE", session))
    // JSON has no line break at its end, so the next answer begins in the same line.
    const [listed = "", ended = ""] = used.split("HTTP/1.1 ")
    assert.include(toolsIn(listed), "echo")
    assert.match(ended, /^204 /)
    assert.include(toolsIn(run(arrays, modern)), "echo")
  })

  it("shows a configuration file that loads", () => {
    const file = { name: "servers.json", text: Documents.block(manual, "json", "\"gateway\"") }
    const read = Config.load({ flags: {}, environment: { SEARCH_KEY: "a", REMOTE_KEY: "b" }, file, entries: {} })
    assert.notInstanceOf(read, Config.InvalidConfig)
    const names = read instanceof Config.InvalidConfig ? [] : [...read.backends.keys()]
    assert.deepStrictEqual(names, ["files", "search", "remote"])
  })
})

describe("modern clients without keys", async () => {
  const { url } = await Serving.gateway({ backends: { counter: Kit.counter() } })

  /** One run of a program: it counts once. */
  const count = async (program: string, headers: Record<string, string> = {}): Promise<string> =>
    textOf(await callTool(url, "count", {}, { client: program, headers }))

  it("two runs of one program share a process, and another clientInfo has its own", async () => {
    assert.deepStrictEqual([await count("agent"), await count("agent"), await count("agent+run2")], ["1", "2", "1"])
  })

  it.each(PeerOwner.relayed)(
    "behind a proxy with %s each call has its own process",
    async (name) => {
      assert.include(Documents.read(manual).toLowerCase(), `\`${name}\``)
      const headers = { [name]: "10.0.0.1" }
      assert.deepStrictEqual([await count("proxied", headers), await count("proxied", headers)], ["1", "1"])
    }
  )
})
