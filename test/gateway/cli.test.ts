/** The command in a process of its own: its output and its signals. */
import { spawn, spawnSync } from "node:child_process"
import { cpSync, mkdirSync, writeFileSync } from "node:fs"
import type { Socket } from "node:net"
import { connect } from "node:net"
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
  it("--name NAME names the server of -- COMMAND", async () => {
    const { exit, output } = await runInProcess(["--check", "--name", "mine", "--", process.execPath, fixture])
    assert.deepStrictEqual([exit, output], [0, "The configuration is valid. Back ends: mine\n"])
  })

  it("answers requests with 503 while it starts, until its routes are installed", async () => {
    const port = await Kit.freePort()
    const gateway = run(["--port", String(port), "--", process.execPath, fixture])
    const answers: Array<Promise<number>> = []
    // Sends requests one after another until the gateway prints that it is up.
    while (!gateway.output().includes("Stop it with")) {
      const taken = await new Promise<boolean>((resolve) => {
        const socket = connect(port, "127.0.0.1")
        socket.once("connect", () => resolve(true)).once("error", () => resolve(false))
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

  it("a SIGTERM to npm, as a supervisor sends it, ends npm start and leaves no process", async () => {
    const npm = spawn("npm", ["start", "--", "--port", "0", "--close-grace", "100 millis"])
    await Kit.open(await url(Kit.follow(npm)))
    const started = Kit.descendants(npm.pid ?? 0)
    assert.isAtLeast(started.length, 2)
    npm.kill("SIGTERM")
    await Kit.eventually("all are gone", () => !started.some(Kit.alive))
  })

  it("refuses a wrong configuration with the faults of its file, its variables and its flags, and starts nothing", async () => {
    const file = Serving.file("wrong.json", {
      mcpServers: { "/": { command: "x" }, typo: { command: "x", arg: [], args: ["${NOT_SET_ANYWHERE}"] } },
      gateway: { idleTimeToLive: "soon", more: true }
    })
    const { exit, output } = await runInProcess(["--port", "many", "--config", file], { GATEWAY_SPARES: "-1" })
    assert.strictEqual(exit, 1)
    const paths = ["--port:", "GATEWAY_SPARES:", "gateway.idleTimeToLive:", "gateway.more:", "mcpServers./:"]
      .concat("mcpServers.typo.arg:", "mcpServers.typo.args[0]: the environment variable NOT_SET_ANYWHERE")
    for (const path of paths) assert.include(output, `  ${path}`)
  })

  it("exits with 1 for an unknown flag", async () => {
    const { exit, output } = run(["--frob", "--port", "0"])
    assert.strictEqual(await exit, 1)
    assert.include(output(), "frob")
  })

  it("prints what to install if its platform is missing, and shows any other error as it is", () => {
    const folder = Serving.directory()
    /** Runs the command where `program` is the rest of the gateway, and no package is installed. */
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
      const needed = `The gateway needs ${name}, which is not installed. Run npm install ${name} `
      assert.isTrue(said.startsWith(needed), said)
      assert.lengthOf(said.trimEnd().split("\n"), 1)
    }
    const others = [["import \"other\"", "'other'"], ["import \"./none.ts\"", "none.ts"], [
      "throw new Error(\"odd\")",
      "odd"
    ]]
    for (const [program = "", part = ""] of others) {
      const said = saidWith(program)
      assert.include(said, part)
      assert.include(said, "    at ")
      assert.notInclude(said, "npm install")
    }
  })
})
