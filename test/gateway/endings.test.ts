/** Why sessions end: what the log says of each end, and what it is counted as. */
import { Duration } from "effect"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { createServer } from "node:http"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, assert, beforeAll, describe, it } from "vitest"
import * as Endings from "../../src/gateway/sessions/Endings.ts"
import * as Kit from "../kit/gateway/gateway.ts"

interface Close {
  readonly level: string
  readonly message: string
  readonly annotations: { readonly session?: string; readonly backend?: string; readonly reason?: string }
}

describe("session endings without a noted reason", () => {
  const without = (reason: Parameters<typeof Endings.ofPool>[0]) => Endings.ofPool(reason, Duration.minutes(1))

  it("are a shutdown only when the pool itself has closed", () => {
    assert.strictEqual(without("PoolClosed").reason, "shutdown")
    for (const reason of ["Invalidated", "Disconnected", "MaxLifetime", "Errors", "Replaced", "Invalid"] as const) {
      assert.deepStrictEqual(without(reason), { reason: "other", text: `the pool closed it: ${reason}` })
    }
  })
})

describe("session endings", () => {
  const directory = mkdtempSync(join(tmpdir(), "gateway-"))
  let knows = true
  const upstream = createServer((request, response) => {
    let body = ""
    request.on("data", (chunk) => (body += chunk)).on("end", () => {
      const { id = 0, method = "" } = body === "" ? {} : JSON.parse(body)
      if (!knows || method !== "initialize") return void response.writeHead(404).end()
      const result = { protocolVersion: "2025-06-18", capabilities: {}, serverInfo: { name: "up", version: "1" } }
      response.writeHead(200, { "content-type": "application/json", "mcp-session-id": "theirs" })
        .end(JSON.stringify({ jsonrpc: "2.0", id, result }))
    })
  }).listen(0, "127.0.0.1")
  let gateway: Kit.Run
  let origin: string
  const urlOf = (backend: string) => `${origin}/mcp/${backend}`
  const write = (mark: string) =>
    writeFileSync(
      join(directory, "config.json"),
      JSON.stringify({
        mcpServers: {
          counter: Kit.counter(),
          brief: { ...Kit.counter(), idleTimeToLive: "100 millis" },
          gone: { ...Kit.counter(), streamLostTimeToLive: "200 millis" },
          remote: { url: `http://127.0.0.1:${Kit.portOf(upstream)}/mcp`, era: "legacy" },
          edited: { ...Kit.counter(), env: { MARK: mark } }
        },
        gateway: { maxSessions: 2, cleanupInterval: "50 millis" }
      })
    )
  beforeAll(async () => {
    await Kit.eventually("the upstream listens", () => upstream.listening)
    write("one")
    gateway = Kit.run(["--port", "0", "--config", join(directory, "config.json")])
    origin = new URL(await Kit.urlOf(gateway)).origin
  })
  afterAll(async () => {
    gateway.child.kill("SIGTERM")
    await gateway.exit
    upstream.close()
    rmSync(directory, { recursive: true })
  })

  const closes = (): ReadonlyArray<Close> =>
    gateway.output().split("\n").filter((line) => line.startsWith("{") && line.endsWith("}"))
      .map((line): Close => JSON.parse(line)).filter(({ message }) => message.startsWith("session closed: "))
  /** What is logged of the end of a session: its level, its reason and its text. */
  const logged = async (session: string) => {
    const find = () => closes().find(({ annotations }) => annotations.session === session.slice(0, 8))
    await Kit.eventually("it is logged", () => find() !== undefined)
    const record = find()
    return [record?.level, record?.annotations.reason, record?.message.slice("session closed: ".length)]
  }
  const call = async (backend: string, session: string, name: string, args = {}) =>
    (await Kit.post(urlOf(backend), session, Kit.toolCall(1, name, args))).text()

  it("logs a DELETE of the client as deleted", async () => {
    const session = await Kit.open(urlOf("counter"))
    await fetch(urlOf("counter"), { method: "DELETE", headers: { "mcp-session-id": session } })
    assert.deepStrictEqual(await logged(session), ["INFO", "deleted", "the session was deleted"])
  })

  it("logs the end by an operator as ended by operator", async () => {
    const session = await Kit.open(urlOf("counter"))
    const { sessions } = await (await fetch(`${origin}/sessions`)).json()
    const { id } = sessions.find((each: { readonly session: string }) => each.session === session.slice(0, 8))
    await fetch(`${origin}/sessions/${id}`, { method: "DELETE" })
    assert.deepStrictEqual(await logged(session), [
      "INFO",
      "ended by operator",
      "an operator ended the session"
    ])
  })

  it("logs how the process of a session ended, with its stderr", async () => {
    const crashed = await Kit.open(urlOf("counter"))
    await call("counter", crashed, "complain", { text: "out of memory\n", crash: true })
    assert.deepStrictEqual(await logged(crashed), [
      "WARN",
      "process exited",
      "the back end ended with exit code 7; its stderr: out of memory"
    ])
    const killed = await Kit.open(urlOf("counter"))
    await call("counter", killed, "killed")
    assert.deepStrictEqual(await logged(killed), ["WARN", "process exited", "the back end ended by signal SIGKILL"])
  })

  it("logs a closed stdout and a forgotten upstream session as failures of the back end", async () => {
    const mute = await Kit.open(urlOf("counter"))
    await call("counter", mute, "mute")
    assert.deepStrictEqual(await logged(mute), ["WARN", "backend failed", "the back end has closed its stdout"])
    const forgotten = await Kit.open(urlOf("remote"))
    knows = false
    await call("remote", forgotten, "anything")
    const [level, reason, text] = await logged(forgotten)
    assert.deepStrictEqual([level, reason], ["WARN", "backend failed"])
    assert.include(text, "no longer knows its session")
  })

  it("logs and counts an idle session as idle, with its idle time", async () => {
    const session = await Kit.open(urlOf("brief"))
    assert.deepStrictEqual(await logged(session), ["INFO", "idle", "no request and no stream for 100ms"])
  })

  it("logs a session whose client lost its stream and stayed silent as client gone", async () => {
    const session = await Kit.open(urlOf("gone"))
    const aborter = new AbortController()
    await Kit.listen(urlOf("gone"), session, {}, aborter.signal)
    aborter.abort()
    const [level, reason] = await logged(session)
    assert.deepStrictEqual([level, reason], ["INFO", "client gone"])
  })

  it("logs an evicted session as evicted, with the setting that was reached", async () => {
    const [first = ""] = [await Kit.open(urlOf("counter")), await Kit.open(urlOf("counter"))]
    const third = await Kit.open(urlOf("counter"))
    const [level, reason, text] = await logged(first)
    assert.deepStrictEqual([level, reason], ["INFO", "evicted"])
    assert.include(text, "maxSessions")
    await fetch(urlOf("counter"), { method: "DELETE", headers: { "mcp-session-id": third } })
  })

  it("logs a session that a reload ends as reloaded", async () => {
    const session = await Kit.open(urlOf("edited"))
    write("two")
    gateway.child.kill("SIGHUP")
    assert.deepStrictEqual(await logged(session), ["INFO", "reloaded", "the configuration of the back end has changed"])
  })

  it("counts session endings by reason, the same in the log, the page and the metric", async () => {
    const counted: { [reason: string]: number } = {}
    for (const { annotations: { reason = "" } } of closes()) counted[reason] = (counted[reason] ?? 0) + 1
    const { closes: listed } = await (await fetch(`${origin}/sessions`)).json()
    assert.deepStrictEqual(listed, counted)
    const metrics = await (await fetch(`${origin}/metrics`)).text()
    const measured: { [reason: string]: number } = {}
    for (
      const [, reason = "", count] of metrics.matchAll(/^mcp_gateway_closed_sessions_total\{.*reason="(.*?)"\} (\d+)/gm)
    ) {
      measured[reason] = (measured[reason] ?? 0) + Number(count)
    }
    const none = Object.fromEntries(Endings.reasons.map((reason) => [reason, 0]))
    assert.deepStrictEqual(measured, { ...none, ...counted })
    assert.strictEqual(Object.keys(counted).length, 8)
  })
})
