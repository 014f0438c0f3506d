/** Runs the examples of the gateway's manual. `examples.test.ts` runs its `ts` block, `deploy.test.ts` the files in `deploy`. */
import { Effect } from "effect"
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
  afterAll(() => {
    gateway.child.kill("SIGTERM")
    return gateway.exit
  })
  const host = async () => new URL(await Kit.urlOf(gateway)).host

  it("shows the output of a start, as does the README", async () => {
    const there = await host()
    for (const document of [manual, "README.md"]) {
      const printed = Documents.block(document, "text", "The gateway is up").replaceAll(address, there)
      await Kit.eventually("the gateway prints it", () => gateway.output().includes(printed))
    }
  })

  it("shows requests that check the health, use a session, and call without one", async () => {
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
    /** The names of the tools that an output lists in one line. */
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
    // The JSON has no line break at its end, so the next answer begins in the same line.
    const [listed = "", ended = ""] = used.split("HTTP/1.1 ")
    assert.include(toolsIn(listed), "echo")
    assert.match(ended, /^204 /)
    assert.include(toolsIn(run(arrays, modern)), "echo")
  })

  const loadFile = (words: string) => {
    const file = { name: "servers.json", text: Documents.block(manual, "json", words) }
    const environment = { SEARCH_KEY: "a", REMOTE_KEY: "b" }
    return Effect.runSync(Config.load({ flags: {}, environment, file, entries: {} }))
  }

  it("shows a configuration file that loads", () => {
    assert.deepStrictEqual([...loadFile("idleTimeToLive").backends.keys()], ["files", "search", "remote"])
  })

  it("shows a configuration file for hosted clients that loads", () => {
    const { backends, settings } = loadFile("my-mcp-server")
    assert.strictEqual(settings.authIssuer, "https://auth.example.com")
    assert.deepStrictEqual(settings.authScopes, ["mcp"])
    assert.strictEqual(backends.get("notes")?.settings.sessions, "caller")
  })
})

describe("modern clients without keys", async () => {
  const { url } = await Serving.gateway({ backends: { counter: Kit.counter() } })

  /** Calls the tool that counts, as one run of a program. */
  const count = async (program: string, headers: Record<string, string> = {}): Promise<string> =>
    textOf(await callTool(url, "count", {}, { client: program, headers }))

  it("share a process in two runs of one program, and have their own with another clientInfo", async () => {
    assert.deepStrictEqual([await count("agent"), await count("agent"), await count("agent+run2")], ["1", "2", "1"])
  })

  it.each(PeerOwner.relayed)(
    "have a process for each call behind a proxy with %s",
    async (name) => {
      assert.include(Documents.read(manual).toLowerCase(), `\`${name}\``)
      const headers = { [name]: "10.0.0.1" }
      assert.deepStrictEqual([await count("proxied", headers), await count("proxied", headers)], ["1", "1"])
    }
  )
})
