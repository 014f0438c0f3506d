/** Cool-downs. A client whose `initialize` crashes a back end must not close it for other clients. */
import { existsSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "vitest"
import * as Cooldown from "../../src/gateway/sessions/Cooldown.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"

const answer = "{\"jsonrpc\":\"2.0\",\"id\":0,\"result\":{\"protocolVersion\":\"2025-06-18\",\"capabilities\":{}}}"

/** A server that crashes at one client's `initialize`. It writes down the gateway's own, and answers all others. */
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
  Kit.initialize(url, Kit.bearer(key), Kit.initializeBody.replace("\"raw\"", JSON.stringify(name)))

describe("cool-downs and one client's failing starts", async () => {
  const directory = Serving.directory()
  const file = (name: string) => join(directory, name)
  const noted = (name: string) => existsSync(file(name)) ? readFileSync(file(name), "utf8").trim().split("\n") : []
  /** The name of each client that sent `initialize` to the HTTP server. */
  const asked: Array<string> = []
  const ended: Array<string> = []
  const remote = await Serving.upstream((response, { params }, request) => {
    if (request.method === "DELETE") {
      ended.push(String(request.headers["mcp-session-id"]))
      return response.writeHead(204).end()
    }
    const { name } = params.clientInfo
    asked.push(name)
    if (name === "crash") return response.writeHead(500).end("secret of the crash")
    response.writeHead(200, { ...Serving.json, "mcp-session-id": name }).end(answer)
  })
  const gateway = await Serving.gateway({
    backends: {
      picky: picky(file("picky")),
      tried: picky(file("tried")),
      hung: picky(file("hung"), "exec sleep 1000"),
      remote: { url: remote, era: "legacy" }
    },
    keys: ["theirs", "ours"],
    adminKeys: ["operators"],
    startTimeout: "1 hour",
    closeGrace: "100 millis"
  })

  const crash = async (backend: string) => {
    const response = await initialize(`${gateway.origin}/mcp/${backend}`, "crash", "theirs")
    assert.strictEqual(response.status, 502)
    return (await response.json()).error.message
  }
  const crashThrice = async (backend: string) => {
    for (let i = 0; i < 3; i++) await crash(backend)
  }
  const well = async (backend: string) => (await initialize(`${gateway.origin}/mcp/${backend}`, "well", "ours")).status

  it("one client's failing starts do not close the back end for other keys, and only that client is told why", async () => {
    for (let i = 0; i < 8; i++) assert.include(await crash("picky"), "secret of the crash")
    assert.strictEqual(await well("picky"), 200)
  })

  it("after one client's failing starts, the gateway starts the back end once itself and ends that start", async () => {
    await crashThrice("tried")
    await Kit.eventually("the gateway has started one", () => noted("tried").length > 0)
    await Kit.eventually("it is not left", () => !noted("tried").some((pid) => Kit.alive(Number(pid))))
    await crash("tried")
    assert.lengthOf(noted("tried"), 1)
  })

  it("one client's failing starts do not close an HTTP back end, which the gateway tries in a session that it ends", async () => {
    await crashThrice("remote")
    await Kit.eventually("the gateway's own session has ended", () => ended.includes("effect-session-pool"))
    assert.deepStrictEqual(asked.filter((name) => name !== "crash"), ["effect-session-pool"])
    await crashThrice("remote")
    assert.strictEqual(await well("remote"), 200)
  })

  it("a hanging start of the gateway's own is the only one, lets other clients in, and leaves no process", async () => {
    await crashThrice("hung")
    await Kit.eventually("the gateway has started one", () => noted("hung").length === 1)
    for (let i = 0; i < 2; i++) await crashThrice("hung")
    assert.strictEqual(await well("hung"), 200)
    assert.strictEqual(noted("hung").length, 1)
    const pid = Number(noted("hung")[0])
    assert.isTrue(Kit.alive(pid))
    await gateway.stop()
    assert.isFalse(Kit.alive(pid))
  })
})

describe("cool-downs of a broken back end", () => {
  const secret = "what one client's start wrote"
  it("a broken back end cools down, and its 503 tells another key only that it fails", async () => {
    const backends = { broken: { command: "sh", args: ["-c", `echo "${secret}" >&2; exit 3`] } }
    const keys = { keys: ["theirs", "ours"], adminKeys: ["operators"] }
    const { origin, url } = await Serving.gateway({ backends, ...keys })
    for (let i = 0; i < 3; i++) {
      assert.include(await (await initialize(url, "any", "theirs")).text(), secret)
    }
    const shown = async () => (await Serving.overview(origin, Kit.bearer("operators"))).backends[0]
    await Kit.eventually("it cools down", async () => (await shown()).state === "cooling down")
    const refused = await initialize(url, "any", "ours")
    const text = await refused.text()
    assert.strictEqual(refused.status, 503)
    assert.notInclude(text, secret)
    assert.notInclude(text, "exit code")
    assert.include((await shown()).lastFailure, secret)
  })

  it("starts that run together and fail count as one failure, even if one of them ends late", () => {
    const { failed, initial } = Cooldown
    const once = failed(initial, initial, "x")
    const late = failed(failed(once, initial, "x"), initial, "x")
    assert.deepStrictEqual([once.failures, late.failures, failed(once, once, "x").failures], [1, 1, 2])
  })

  it("a client's start that succeeds while the gateway's own start fails prevents the cool-down", () => {
    const suspect: Cooldown.Cooldown = { failures: 3, until: 0, lastFailure: "x", started: false }
    assert.strictEqual(Cooldown.confirmed(Cooldown.succeeded, suspect, 0, "x"), Cooldown.succeeded)
  })
})
