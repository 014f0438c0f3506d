/** Whose fault a failed start is: a client whose `initialize` a back end cannot take must not close it for the others. */
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs"
import type { Server } from "node:http"
import { createServer } from "node:http"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, assert, beforeAll, describe, it } from "vitest"
import * as Cooldown from "../../src/gateway/sessions/Cooldown.ts"
import * as Kit from "../kit/gateway/gateway.ts"

const answer = "{\"jsonrpc\":\"2.0\",\"id\":0,\"result\":{\"protocolVersion\":\"2025-06-18\",\"capabilities\":{}}}"

/** A server that dies of one client's `initialize`, notes those of the gateway's own, and answers all others. */
const picky = (noted: string, onOwn = "") => ({
  command: "sh",
  args: [
    "-c",
    `read -r line
    case $line in
      *crash*) echo "secret of the crash" >&2; exit 3 ;;
      *effect-session-pool*) echo $$ >> ${noted}; ${onOwn} ;;
    esac
    echo '${answer}'
    exec cat >/dev/null`
  ]
})

const initialize = (url: string, name: string, key: string) =>
  fetch(url, {
    method: "POST",
    headers: { ...Kit.headers, authorization: `Bearer ${key}` },
    body: Kit.initializeBody.replace("\"raw\"", JSON.stringify(name))
  })

describe("starts that one client makes fail", () => {
  const directory = mkdtempSync(join(tmpdir(), "gateway-"))
  const file = (name: string) => join(directory, name)
  const noted = (name: string) => existsSync(file(name)) ? readFileSync(file(name), "utf8").trim().split("\n") : []
  let gateway: Kit.Running
  let upstream: Server
  /** The `initialize` that the HTTP server has answered, by who sent them. */
  const asked: Array<string> = []
  const ended: Array<string> = []
  beforeAll(async () => {
    upstream = createServer((request, response) => {
      if (request.method === "DELETE") {
        ended.push(String(request.headers["mcp-session-id"]))
        return response.writeHead(204).end()
      }
      let body = ""
      request.on("data", (chunk) => {
        body += chunk
      }).on("end", () => {
        const { name } = JSON.parse(body).params.clientInfo
        asked.push(name)
        if (name === "crash") return response.writeHead(500).end("secret of the crash")
        response.writeHead(200, { "content-type": "application/json", "mcp-session-id": name }).end(answer)
      })
    }).listen(0, "127.0.0.1")
    await new Promise((resolve) => upstream.on("listening", resolve))
    gateway = await Kit.start({
      backends: {
        picky: picky(file("picky")),
        tried: picky(file("tried")),
        hung: picky(file("hung"), "exec sleep 1000"),
        remote: { url: `http://127.0.0.1:${Kit.portOf(upstream)}/`, era: "legacy" }
      },
      keys: ["theirs", "ours"],
      adminKeys: ["operators"],
      startTimeout: "1 hour",
      closeGrace: "100 millis"
    })
  })
  afterAll(async () => {
    await gateway.stop()
    upstream.closeAllConnections()
    upstream.close()
    rmSync(directory, { recursive: true })
  })

  const crash = async (backend: string) => {
    const response = await initialize(`${gateway.origin}/mcp/${backend}`, "crash", "theirs")
    return [response.status, (await response.json()).error.message]
  }
  const well = async (backend: string) => (await initialize(`${gateway.origin}/mcp/${backend}`, "well", "ours")).status

  it("do not close the back end for other keys, and the failing client alone is told why", async () => {
    for (let i = 0; i < 8; i++) {
      const [status, message] = await crash("picky")
      assert.strictEqual(status, 502)
      assert.include(message, "secret of the crash")
    }
    assert.strictEqual(await well("picky"), 200)
  })

  it("make the gateway start it once by itself, which ends that start again", async () => {
    for (let i = 0; i < 3; i++) await crash("tried")
    await Kit.eventually("the gateway has started one", () => noted("tried").length > 0)
    await Kit.eventually("it is not left", () => !noted("tried").some((pid) => Kit.alive(Number(pid))))
    assert.strictEqual((await crash("tried"))[0], 502)
    assert.lengthOf(noted("tried"), 1)
  })

  it("do not start it again while such a start hangs, and let others in meanwhile", async () => {
    for (let i = 0; i < 3; i++) await crash("hung")
    await Kit.eventually("the gateway has started one", () => noted("hung").length === 1)
    for (let i = 0; i < 6; i++) assert.strictEqual((await crash("hung"))[0], 502)
    assert.strictEqual(await well("hung"), 200)
    assert.strictEqual(noted("hung").length, 1)
  })

  it("do not close an HTTP back end either, where the gateway asks in a session of its own and ends it", async () => {
    for (let i = 0; i < 3; i++) assert.strictEqual((await crash("remote"))[0], 502)
    await Kit.eventually("the gateway's own session has ended", () => ended.includes("effect-session-pool"))
    assert.deepStrictEqual(asked.filter((name) => name !== "crash"), ["effect-session-pool"])
    for (let i = 0; i < 3; i++) assert.strictEqual((await crash("remote"))[0], 502)
    assert.strictEqual(await well("remote"), 200)
  })

  it("are no reason to leave a process behind when the gateway stops", async () => {
    const other = await Kit.start({
      backends: { hung: picky(file("last"), "exec sleep 1000") },
      closeGrace: "100 millis"
    })
    for (let i = 0; i < 3; i++) await initialize(`${other.origin}/mcp`, "crash", "")
    await Kit.eventually("the gateway has started one", () => noted("last").length === 1)
    await other.stop()
    assert.isFalse(Kit.alive(Number(noted("last")[0])))
  })
})

describe("a back end that is at fault itself", () => {
  const secret = "what one client's start wrote"
  it("cools down, and its 503 tells another key only that it fails", async () => {
    const gateway = await Kit.start({
      backends: { broken: { command: "sh", args: ["-c", `echo "${secret}" >&2; exit 3`] } },
      keys: ["theirs", "ours"],
      adminKeys: ["operators"]
    })
    const url = `${gateway.origin}/mcp`
    for (let i = 0; i < 3; i++) {
      assert.include(await (await initialize(url, "any", "theirs")).text(), secret)
    }
    const overview = async () => {
      const response = await fetch(`${gateway.origin}/sessions`, { headers: { authorization: "Bearer operators" } })
      return (await response.json()).backends[0]
    }
    await Kit.eventually("it cools down", async () => (await overview()).state === "cooling down")
    const refused = await initialize(url, "any", "ours")
    const text = await refused.text()
    assert.strictEqual(refused.status, 503)
    assert.notInclude(text, secret)
    assert.notInclude(text, "exit code")
    assert.include((await overview()).lastFailure, secret)
    await gateway.stop()
  })

  it("cools down also where it may have only one session", async () => {
    const gateway = await Kit.start({ backends: { broken: { command: "false" } }, maxSessionsPerBackend: 1 })
    for (let i = 0; i < 3; i++) assert.strictEqual((await Kit.initialize(`${gateway.origin}/mcp`)).status, 502)
    const state = async () => (await (await fetch(`${gateway.origin}/sessions`)).json()).backends[0].state
    await Kit.eventually("it cools down", async () => (await state()) === "cooling down")
    assert.strictEqual((await Kit.initialize(`${gateway.origin}/mcp`)).status, 503)
    await gateway.stop()
  })

  it("has failed once when starts that ran together failed, whenever each of them ends", () => {
    const { failed, initial } = Cooldown
    const once = failed(initial, initial, "x")
    const late = failed(failed(once, initial, "x"), initial, "x")
    assert.deepStrictEqual([once.failures, late.failures, failed(once, once, "x").failures], [1, 1, 2])
  })

  it("is not left alone when a client's start goes well while the gateway's own fails", () => {
    const suspect: Cooldown.Cooldown = { failures: 3, until: 0, lastFailure: "x", started: false }
    assert.strictEqual(Cooldown.confirmed(Cooldown.succeeded(suspect), suspect, 0, "x"), Cooldown.succeeded(suspect))
  })
})
