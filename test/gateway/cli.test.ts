/** The command line as a person uses it: a real process, its output, its signals. */
import { spawn, spawnSync } from "node:child_process"
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs"
import type { Socket } from "node:net"
import { connect, createServer } from "node:net"
import { join } from "node:path"
import { assert, describe, it } from "vitest"
import { runInProcess } from "../kit/gateway/command.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"

const [fixture = ""] = Kit.counter().args

const { run, urlOf: url } = Kit

/** The status of the answer to a request on a connection; 0 if that is cut. */
const answerOn = (socket: Socket) =>
  new Promise<number>((resolve) => {
    let text = ""
    socket.on("data", (chunk) => {
      text += chunk
    }).on("error", () => undefined).on("close", () => resolve(Number(text.split(" ")[1] ?? 0)))
      .write("GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
  })

describe("the command line", () => {
  it("without arguments serves server-everything, and says where and what to do next", async () => {
    const gateway = run(["--port", "0", "--close-grace", "100 millis"])
    const at = await url(gateway)
    assert.match(at, /^http:\/\/127\.0\.0\.1:\d+\/mcp\/everything$/)
    assert.include(gateway.output(), `claude mcp add --transport http everything ${at}`)
    assert.include(gateway.output(), "\"mcpServers\"")
    const [, shown = ""] = /```text\n(The gateway is up[\s\S]*?)```/.exec(
      readFileSync(new URL("../../README.md", import.meta.url), "utf8")
    ) ?? []
    assert.include(shown, "Watch it")
    assert.include(gateway.output(), shown.replaceAll("8420", new URL(at).port))
    const client = await Kit.connect(at)
    assert.strictEqual(await Kit.call(client, "echo", { message: "hello" }), "Echo: hello")
    await client.close()
    gateway.child.kill("SIGINT")
    await gateway.exit
  })

  it("-- COMMAND serves that command, and after SIGINT no process is left", async () => {
    const flags = ["--close-grace", "100 millis", "--", process.execPath, fixture, "--grandchild"]
    const { child, exit, url } = await Serving.command(flags)
    assert.match(url, /\/mcp\/counter-server$/)
    const pids: ReadonlyArray<number> = JSON.parse(await Kit.toolText(url, await Kit.open(url), "pids"))
    assert.isTrue(pids.every(Kit.alive))
    child.kill("SIGINT")
    await exit
    assert.isFalse(pids.some(Kit.alive))
  })

  it("--name NAME names the server of -- COMMAND", async () => {
    const { exit, output } = await runInProcess(["--check", "--name", "mine", "--", process.execPath, fixture])
    assert.deepStrictEqual([exit, output], [0, "The configuration is valid. Back ends: mine\n"])
  })

  it("answers requests while it starts, with 503 until its routes are installed", async () => {
    const port = await Kit.freePort()
    const gateway = run(["--port", String(port), "--", process.execPath, fixture])
    const answers: Array<Promise<number>> = []
    // From the first connection on that is taken, one after another until the gateway says that it is up.
    while (!gateway.output().includes("Stop it with")) {
      const taken = await new Promise<boolean>((resolve) => {
        const socket = connect(port, "127.0.0.1").once("connect", () => resolve(true)).once(
          "error",
          () => resolve(false)
        )
        answers.push(answerOn(socket))
      })
      if (!taken) answers.pop()
      // At most 200 connections a second, so they do not slow the start.
      await new Promise((resolve) => setTimeout(resolve, 5))
    }
    assert.includeMembers([200, 503], await Promise.all(answers))
    gateway.child.kill("SIGTERM")
    await gateway.exit
  })

  it("npm start is ended by a SIGTERM to npm, as a supervisor sends it, and no process is left", async () => {
    const npm = spawn("npm", ["start", "--", "--port", "0", "--close-grace", "100 millis"])
    let output = ""
    npm.stdout.on("data", (chunk) => {
      output += chunk
    })
    await Kit.eventually("npm start says where it listens", () => /http:\S+/.test(output))
    const at = /http:\S+/.exec(output)?.[0] ?? ""
    await Kit.open(at)
    const started = Kit.descendants(npm.pid ?? 0)
    assert.isAtLeast(started.length, 2)
    npm.kill("SIGTERM")
    await Kit.eventually("all are gone", () => !started.some(Kit.alive))
  })

  it("a wrong configuration is refused with the faults of its file, its variables and its flags, and nothing starts", async () => {
    const file = Serving.file("wrong.json", {
      mcpServers: { "/": { command: "x" }, typo: { command: "x", arg: [], args: ["${NOT_SET_ANYWHERE}"] } },
      gateway: { idleTimeToLive: "soon", more: true }
    })
    const { exit, output } = await runInProcess(["--port", "many", "--config", file], { GATEWAY_SPARES: "-1" })
    assert.strictEqual(exit, 1)
    for (
      const path of [
        "--port:",
        "GATEWAY_SPARES:",
        "gateway.idleTimeToLive:",
        "gateway.more:",
        "mcpServers./:",
        "mcpServers.typo.arg:",
        "mcpServers.typo.args[0]: the environment variable NOT_SET_ANYWHERE"
      ]
    ) assert.include(output, `  ${path}`)
  })

  it("a port that is taken is one clear message and exit code 1", async () => {
    const taken = createServer().listen(0, "127.0.0.1")
    await Kit.eventually("the port is taken", () => taken.listening)
    const port = Kit.portOf(taken)
    const { exit, output } = await runInProcess(["--port", String(port)])
    taken.close()
    assert.strictEqual(exit, 1)
    assert.include(output, `Cannot listen on 127.0.0.1:${port}`)
    assert.include(output, "Is another gateway running?")
    assert.notInclude(output, "    at ")
  })

  it("exits with 1, as a process of its own, for an unknown flag and for a wrong file", async () => {
    const file = Serving.file("unknown-setting.json", { mcpServers: {}, gateway: { unknownSetting: true } })
    const cases = [["--frob", "--port", "0"], ["--config", file, "--port", "0"]].map((args) => run(args))
    assert.deepStrictEqual(await Promise.all(cases.map(({ exit }) => exit)), [1, 1])
    assert.deepStrictEqual(
      cases.map(({ output }) => /frob|gateway\.unknownSetting:/.exec(output())?.[0]),
      ["frob", "gateway.unknownSetting:"]
    )
  })

  it("what a replica lacks is one clear message and exit code 1, without the database's password", async () => {
    const known = {
      DATABASE_URL: "postgresql://me:secret@127.0.0.1:1/postgres",
      GATEWAY_STATE_KEY: "the same key on every one of the replicas"
    }
    const cases: ReadonlyArray<readonly [Record<string, string>, string, string, ...ReadonlyArray<string>]> = [
      [{}, "127.0.0.1:8421", "--cluster needs more"],
      [{}, "127.0.0.1:8421", "GATEWAY_STATE_KEY, a secret of at least 32 characters"],
      [{}, "127.0.0.1:8421", "openssl rand -hex 32"],
      [known, "0.0.0.0:8421", "cannot reach 0.0.0.0"],
      [known, "[::]:8421", "cannot reach ::"],
      [known, "0:8421", "cannot reach 0."],
      [known, "127.0.0.1:8421", "must be at least 5 seconds", "--shard-lock-expiration", "4 seconds"],
      [known, "127.0.0.1:8421", "must be finite", "--shard-lock-expiration", "infinity"],
      [known, "8421", "--replica-address must be host:port"],
      [known, "127.0.0.1:8421", "The database cannot be used (Error: connect ECONNREFUSED 127.0.0.1:1)"],
      [{ ...known, DATABASE_URL: "//me:secret@localhost" }, "127.0.0.1:8421", "The database cannot be used"]
    ]
    for (const [environment, address, message, ...more] of cases) {
      const { exit, output } = await runInProcess(
        ["--cluster", "--replica-address", address, "--port", "0", ...more],
        environment
      )
      assert.deepStrictEqual([message, exit], [message, 1])
      assert.include(output, message)
      assert.notInclude(output, "    at ")
      assert.notInclude(output, "secret@")
    }
  })

  it("without its platform says what to install, and hides nothing else that is missing", () => {
    const folder = Serving.directory()
    /** What the command says where the rest of the gateway is this, and nothing is installed. */
    const saidWith = (program: string) => {
      writeFileSync(join(folder, "app/main.ts"), program)
      const { status, stderr } = spawnSync(process.execPath, ["bin.ts"], { cwd: folder, encoding: "utf8" })
      assert.strictEqual(status, 1)
      return stderr
    }
    mkdirSync(join(folder, "app"))
    writeFileSync(join(folder, "package.json"), JSON.stringify({ type: "module" }))
    cpSync(new URL("../../src/gateway/bin.ts", import.meta.url), join(folder, "bin.ts"))
    for (const name of ["@effect/platform-node", "effect"]) {
      const said = saidWith(`import "${name}/Part"`)
      assert.isTrue(
        said.startsWith(`The gateway needs ${name}, which is not installed. Run npm install ${name} `),
        said
      )
      assert.strictEqual(said.trimEnd().split("\n").length, 1, said)
    }
    const others = {
      "import \"other\"": "'other'",
      "import \"./none.ts\"": "none.ts",
      "throw new Error(\"odd\")": "odd"
    }
    for (const [program, part] of Object.entries(others)) {
      const said = saidWith(program)
      assert.include(said, part)
      assert.include(said, "    at ")
      assert.notInclude(said, "npm install")
    }
  })
})
