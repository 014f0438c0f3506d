/** What the README tells to type and to write down does what it says; its `ts` blocks are run by `examples.test.ts`. */
import { execFileSync } from "node:child_process"
import { existsSync, readFileSync } from "node:fs"
import { dirname, join } from "node:path"
import { afterAll, assert, describe, it } from "vitest"
import * as CommandName from "../../src/gateway/settings/CommandName.ts"
import * as Config from "../../src/gateway/settings/Config.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import { pathWithCurl } from "../kit/programs.ts"
import { block, blocks, readme } from "../kit/readme.ts"

const root = new URL("../..", import.meta.url).pathname
const scripts = JSON.parse(readFileSync(`${root}package.json`, "utf8")).scripts

/** Each line that stands in a block of commands, and what runs it. */
const commands: ReadonlyArray<readonly [RegExp, string]> = [
  [/^npm ci && npm start$/, ".ci/run, cli.test.ts"],
  [/^npm ci && npm test$/, ".ci/run"],
  [/^npm install effect-session-pool effect( @effect\/platform-node)?$/, "test/package/install.ts"],
  [/^(npm start --|npx effect-session-pool) -- COMMAND ARGS…/, "cli.test.ts, test/package/install.ts"],
  [/^npm start -- --config servers.json( --check)?/, "cli.test.ts"],
  [/^curl \S+ http:\/\/127\.0\.0\.1:8420\//, "below"],
  [/^SESSION=PUT-THE-ID-HERE$/, "below"],
  [/^docker run --rm -d /, "nothing; readmeDeployment.test.ts compares it"],
  [/^export (DATABASE_URL|GATEWAY_STATE_KEY)=/, "replicas/readme.test.ts"],
  [/^echo '.*' > everything\.json$/, "replicas/readme.test.ts"],
  [/^npm start -- --cluster /, "replicas/readme.test.ts"],
  [/^sleep 10; curl /, "replicas/readme.test.ts"],
  [/^(HEADERS=|SESSION=\$\(curl |curl -s http:\/\/127\.0\.0\.1:8430\/mcp )/, "replicas/readme.test.ts"],
  [/^mkdir -p ~/, "nothing: it makes the folders of the next lines"],
  [/^effect-session-pool --completions (bash|zsh|fish) >/, "help.test.ts"]
]

describe("the README", () => {
  // As `npm start` does.
  const gateway = Kit.run(["--port", "0"])
  afterAll(async () => {
    gateway.child.kill("SIGTERM")
    await gateway.exit
  })

  it("has no command that nothing runs", () => {
    const lines = blocks("sh").flatMap((block) => block.split("\n")).filter((line) => line !== "")
    assert.deepStrictEqual(lines.filter((line) => !commands.some(([known]) => known.test(line))), [])
  })

  it("names scripts that there are", () => {
    const named = [...readme.matchAll(/`npm run ([\w:]+)/g)].map(([, name = ""]) => name)
    assert.isAbove(named.length, 10)
    assert.deepStrictEqual(named.filter((name) => !(name in scripts)), [])
  })

  it("links to sections and files that there are, as do the documents that it links to", () => {
    const anchorsOf = (text: string) =>
      [...text.replace(/^```[\s\S]*?^```/gm, "").matchAll(/^#+ (.*)$/gm)].map(([, heading = ""]) =>
        heading.toLowerCase().replace(/[^\w\- ]/g, "").replaceAll(" ", "-")
      )
    for (const file of ["README.md", "test/bench/README.md", "test/conformance.md"]) {
      const text = readFileSync(`${root}${file}`, "utf8")
      for (const [link, path = "", anchor] of text.matchAll(/\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)/g)) {
        const target = path === "" ? `${root}${file}` : join(dirname(`${root}${file}`), path)
        assert.isTrue(existsSync(target), `${file}: ${link}`)
        if (anchor !== undefined) assert.include(anchorsOf(readFileSync(target, "utf8")), anchor, `${file}: ${link}`)
      }
    }
  })

  it("shows a configuration that is one", () => {
    const file = { name: "servers.json", text: block("json", "\"gateway\"") }
    const read = Config.load({ flags: {}, environment: { SEARCH_KEY: "a", REMOTE_KEY: "b" }, file, entries: {} })
    assert.notInstanceOf(read, Config.InvalidConfig)
    const names = read instanceof Config.InvalidConfig ? [] : [...read.backends.keys()]
    assert.deepStrictEqual(names, ["files", "search", "remote"])
  })

  it("gives a command whose back end is where it says", () => {
    const [, command = "", name = ""] = /such as `(npx [^`]+)`\.[^.]*this one is\s+at `\/mcp\/([^`]+)`/.exec(readme) ??
      []
    assert.include(command, " -y ")
    assert.strictEqual(CommandName.fromCommand(command.split(" ")), name)
  })

  it("asks a gateway with curl whether it answers, gets a session and lists its tools", async () => {
    const { host } = new URL(await Kit.urlOf(gateway))
    const lines = blocks("sh").flatMap((block) => block.split("\n")).filter((line) =>
      line.startsWith("curl ") && line.includes("127.0.0.1:8420/")
    )
    assert.lengthOf(lines, 3)
    const run = (line: string, env: Record<string, string> = {}) =>
      execFileSync("bash", ["-c", line.replaceAll("127.0.0.1:8420", host)], {
        encoding: "utf8",
        env: { ...process.env, PATH: pathWithCurl(), ...env }
      })
    const [health, initialize, list] = [run(lines[0] ?? ""), run(lines[1] ?? ""), lines[2] ?? ""]
    assert.include(health, "\"status\":\"ok\"")
    assert.match(initialize, /^HTTP\/1\.1 200 OK\r\n/)
    assert.match(initialize, /^mcp-session-id: [0-9a-f-]{36}\r$/m)
    // What the server itself has answered.
    const answer = JSON.parse(initialize.slice(initialize.indexOf("\r\n\r\n")))
    assert.strictEqual(answer.id, 1)
    assert.isString(answer.result.serverInfo.name)
    const [, session = ""] = /^mcp-session-id: (\S+)/m.exec(initialize) ?? []
    const { result } = JSON.parse(run(list, { SESSION: session }))
    assert.include(result.tools.map(({ name }: { readonly name: string }) => name), "echo")
  })
})
