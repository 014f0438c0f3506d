/** What operators do to a running gateway: check, reload, drain, hurry, kill, trace. */
import { Duration, Effect } from "effect"
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, assert, beforeAll, describe, it } from "vitest"
import * as Gateway from "../../src/gateway/Gateway.ts"
import * as Collector from "../kit/gateway/collector.ts"
import { runInProcess } from "../kit/gateway/command.ts"
import * as Kit from "../kit/gateway/gateway.ts"

const directory = mkdtempSync(join(tmpdir(), "gateway-"))
afterAll(() => rmSync(directory, { recursive: true }))

const write = (name: string, content: unknown): string => {
  mkdirSync(directory, { recursive: true })
  const file = join(directory, name)
  writeFileSync(file, typeof content === "string" ? content : JSON.stringify(content))
  return file
}

/** Starts a session and a request that never ends by itself; the process's id. */
const busy = async (url: string) => {
  const session = await Kit.open(url)
  const pid = await Kit.pidOf(url, session)
  return { session, pid }
}

describe("checking", () => {
  it("--check says what a good configuration serves, and starts nothing", async () => {
    const file = write("check.json", { mcpServers: { one: Kit.counter(), two: { url: "https://example.org/mcp" } } })
    const { exit, output } = await runInProcess(["--check", "--config", file])
    assert.strictEqual(exit, 0)
    assert.include(output, "The configuration is valid. Back ends: one, two")
    assert.notInclude(output, "http://")
  })

  it("--check refuses a program that is not there", async () => {
    const file = write("missing.json", { mcpServers: { one: { command: "no-such-program" }, two: Kit.counter() } })
    const { exit, output } = await runInProcess(["--check", "--config", file])
    assert.strictEqual(exit, 1)
    assert.include(output, "one: there is no program \"no-such-program\"")
    assert.notInclude(output, "two:")
  })

  it("--check refuses a wrong one with exit code 1", async () => {
    const { exit, output } = await runInProcess([
      "--check",
      "--config",
      write("wrong.json", { mcpServers: { one: { command: "" } } })
    ])
    assert.strictEqual(exit, 1)
    assert.include(output, "mcpServers.one.command: must not be empty")
  })
})

describe("in a program", () => {
  it("options that make no sense are refused with every fault, its path and what is allowed", () => {
    const exit = Effect.runSync(Effect.flip(Gateway.config({
      backends: {
        "a/b": { command: "x" },
        ok: { command: "x", spares: -1, env: { "A=B": "" } },
        remote: { url: "no url" }
      },
      maxSessions: 0,
      requestTimeout: "0 seconds"
    })))
    assert.deepStrictEqual(exit.faults.map((fault) => fault.split(": ")[0]), [
      "requestTimeout",
      "maxSessions",
      "backends.a/b",
      "backends.ok.spares",
      "backends.ok.env",
      "backends.remote.url"
    ])
  })

  it("a checked configuration has every setting, given or default, for all and for the one server", () => {
    const { backends, settings } = Effect.runSync(Gateway.config({
      backends: { own: { command: "x", maxInFlight: 1, idleTimeToLive: Duration.infinity }, plain: { command: "x" } },
      maxInFlight: 7
    }))
    assert.deepStrictEqual(
      [settings.maxInFlight, backends.get("own")?.settings.maxInFlight, backends.get("plain")?.settings.maxInFlight],
      [7, 1, 7]
    )
    assert.strictEqual(backends.get("own")?.settings.idleTimeToLive, Duration.infinity)
  })
})

describe("a gateway of a file", () => {
  let gateway: Kit.Run
  let url: string
  beforeAll(async () => {
    const { args: [fixture = ""] = [] } = Kit.counter()
    const file = write("sources.json", {
      mcpServers: {
        plain: { command: "${NODE}", args: ["${MISSING:-" + fixture + "}"] },
        own: { ...Kit.counter(), maxInFlight: 1 }
      },
      gateway: { host: "127.0.0.2", maxInFlight: 5, requestTimeout: "1 minute" }
    })
    const args = ["--port", "0", "--config", file, "--max-in-flight", "2", "--drain-timeout", "0 seconds"]
    gateway = Kit.run(args, { GATEWAY_HOST: "127.0.0.3", NODE: process.execPath })
    url = await Kit.urlOf(gateway)
  })
  afterAll(async () => {
    gateway.child.kill("SIGTERM")
    assert.strictEqual(await gateway.exit, 0)
  })

  it("the command line comes before the environment, that before the file, and a server's own before all", async () => {
    assert.match(url, /^http:\/\/127\.0\.0\.3:/)
    const refusals = async (at: string) => {
      const session = await Kit.open(at)
      // Accepted calls stay in flight, because the test sends no signal.
      const responses = [1, 2, 3].map((id) => Kit.post(at, session, Kit.toolCall(id, "untilSignal")))
      const statuses = await Promise.all(responses.map(async (response) => (await response).status))
      return statuses.filter((status) => status === 429).length
    }
    assert.deepStrictEqual([await refusals(url), await refusals(url.replace("plain", "own"))], [1, 2])
  })

  it("serves its servers, with variables from the environment", async () => {
    assert.strictEqual(await Kit.toolText(url, await Kit.open(url), "count"), "1")
  })

  it("answers an unknown path with 404 and a pointer to /mcp, without back end names", async () => {
    for (const [method, path] of [["GET", "/sse"], ["POST", "/sse"], ["GET", "/a/b/c"], ["DELETE", "/"]] as const) {
      const response = await fetch(new URL(path, url), { method })
      assert.strictEqual(response.status, 404)
      const text = await response.text()
      assert.include(text, "MCP is at /mcp/NAME")
      assert.notInclude(text, new URL(url).pathname)
    }
  })

  it("answers HEAD wherever it answers GET", async () => {
    for (const path of ["/", "/health", "/ready"]) {
      assert.strictEqual((await fetch(new URL(path, url), { method: "HEAD" })).status, 200)
    }
  })
})

describe("SIGHUP", () => {
  const entry = (mark: string) => ({ ...Kit.counter(), env: { MARK: mark } })
  const serve = (mcpServers: object) => write("reload.json", { mcpServers })
  // The tests share one gateway and run in this order.
  let gateway: Kit.Run
  let url: string
  beforeAll(() => {
    gateway = Kit.run(["--port", "0", "--config", serve({ kept: entry("1") })])
  })
  afterAll(async () => {
    gateway.child.kill("SIGTERM")
    assert.strictEqual(await gateway.exit, 0)
  })
  const at = (name: string) => new URL(`/mcp/${name}`, url).href
  const reload = () => gateway.child.kill("SIGHUP")

  it("before the gateway is up does not end it, and it is reloaded by the next one", async () => {
    // Node takes some 50 milliseconds to reach the first line of the command; until then it dies of the signal.
    const hangUp = 1
    await Kit.eventually("it listens for SIGHUP", () => Kit.catches(gateway.child.pid ?? 0, hangUp))
    reload()
    url = await Kit.urlOf(gateway)
    serve({ kept: entry("1"), changed: entry("1"), removed: entry("1") })
    reload()
    await Kit.eventually("the file is read again", async () => {
      const response = await fetch(at("changed"), { method: "POST" })
      return response.status !== 404
    })
  })

  it("serves what the file says now: sessions of changed and removed entries end, the others live on; a wrong file changes nothing", async () => {
    const [kept, changed, removed] = await Promise.all(["kept", "changed", "removed"].map((name) => busy(at(name))))
    serve({ kept: entry("1"), changed: entry("2"), added: entry("1") })
    reload()
    await Kit.eventually(
      "it is told",
      () => gateway.output().includes("session closed: the configuration of the back end has changed")
    )
    await Kit.eventually("two processes are gone", () => !Kit.alive(changed?.pid ?? 0) && !Kit.alive(removed?.pid ?? 0))
    assert.include(gateway.output(), "\"message\":\"reloaded\"")
    assert.isTrue(Kit.alive(kept?.pid ?? 0))
    assert.strictEqual(await Kit.toolText(at("kept"), kept?.session ?? "", "count"), "1")
    assert.strictEqual((await Kit.post(at("changed"), changed?.session ?? "", Kit.toolCall(1, "count"))).status, 404)
    assert.strictEqual((await fetch(at("removed"), { method: "POST", headers: Kit.headers, body: "{}" })).status, 404)
    const seen = JSON.parse(await Kit.toolText(at("changed"), await Kit.open(at("changed")), "environment"))
    assert.strictEqual(seen.env.MARK, "2")
    assert.strictEqual(await Kit.toolText(at("added"), await Kit.open(at("added")), "count"), "1")
    write("reload.json", "{")
    reload()
    await Kit.eventually("the fault is told", () => gateway.output().includes("Not reloaded"))
    assert.strictEqual(await Kit.toolText(at("kept"), kept?.session ?? "", "count"), "2")
  })

  it("tells of programs that are not there, as the start does", async () => {
    serve({ kept: entry("1"), typo: { command: "no-such-program" } })
    reload()
    await Kit.eventually("it is told", () => gateway.output().includes("typo: there is no program"))
  })

  it("while the gateway stops changes nothing: what it started is ended in order", async () => {
    const { args, command } = Kit.counter()
    const gateway = Kit.run(["--port", "0", "--close-grace", "200 millis", "--", command, ...args, "--stubborn"])
    const { pid } = await busy(await Kit.urlOf(gateway))
    gateway.child.kill("SIGTERM")
    let isOver = false
    const exit = gateway.exit.then((code) => {
      isOver = true
      return code
    })
    await Kit.eventually("it is over", () => {
      if (!isOver) gateway.child.kill("SIGHUP")
      return isOver
    })
    assert.strictEqual(await exit, 0)
    assert.isFalse(Kit.alive(pid))
  })
})

describe("a gateway", () => {
  /** Whatever it is sent, the processes obey only SIGKILL. */
  const stubborn = ["--", Kit.counter().command, ...Kit.counter().args, "--stubborn"]

  it("whose reader of stdout and stderr has gone serves on, and ends in order", async () => {
    const gateway = Kit.run(["--port", "0", "--close-grace", "100 millis", ...stubborn])
    const { child, exit } = gateway
    const url = await Kit.urlOf(gateway)
    child.stdout?.destroy()
    child.stderr?.destroy()
    // Each is logged to stdout; the signal is answered on stderr.
    const sessions = [await Kit.open(url), await Kit.open(url)]
    const pids = await Promise.all(sessions.map((session) => Kit.pidOf(url, session)))
    child.kill("SIGTERM")
    assert.strictEqual(await exit, 0)
    assert.isFalse(pids.some(Kit.alive))
  })

  it("that an exception ends leaves no process", async () => {
    const throwing = "data:text/javascript,process.on('SIGUSR2', () => { throw new Error('nobody catches it') })"
    const gateway = Kit.run(["--port", "0", ...stubborn], { NODE_OPTIONS: `--import "${throwing}"` })
    const url = await Kit.urlOf(gateway)
    const pid = await Kit.pidOf(url, await Kit.open(url))
    gateway.child.kill("SIGUSR2")
    assert.strictEqual(await gateway.exit, 1)
    assert.include(gateway.output(), "nobody catches it")
    await Kit.eventually("the process is gone", () => !Kit.alive(pid))
  })
})

describe("stopping", () => {
  const command = [Kit.counter().command, ...Kit.counter().args]

  it("SIGTERM lets running requests end, refuses new sessions, says so in /ready, and leaves no process", async () => {
    const settings = ["--drain-timeout", "1 minute", "--close-grace", "100 millis"]
    const gateway = Kit.run(["--port", "0", ...settings, "--", ...command, "--grandchild"])
    const url = await Kit.urlOf(gateway)
    const session = await Kit.open(url)
    const pids: ReadonlyArray<number> = JSON.parse(await Kit.toolText(url, session, "pids"))
    const stop = new AbortController()
    const stream = await Kit.listen(url, session, {}, stop.signal)
    const running = await Kit.post(url, session, Kit.toolCall(1, "untilSignal"))
    gateway.child.kill("SIGTERM")
    await Kit.eventually("it is not ready", async () => (await fetch(new URL("/ready", url))).status === 503)
    const refused = await Kit.initialize(url)
    assert.strictEqual(refused.status, 503)
    Kit.kill(pids[0] ?? 0, "SIGUSR2")
    assert.include(await running.text(), "\"released\"")
    // The GET stream does not keep it.
    await stream.text()
    assert.strictEqual(await gateway.exit, 0)
    assert.isFalse(pids.some(Kit.alive))
    assert.include(gateway.output(), "session opened")
  })

  it("answers a running request with a JSON-RPC error after drainTimeout, and refuses a session that is still starting", async () => {
    const file = write("drain.json", {
      mcpServers: { counter: Kit.counter(), starting: { command: "sleep", args: ["100"], spares: 0 } }
    })
    const settings = ["--drain-timeout", "200 millis", "--close-grace", "100 millis"]
    const gateway = Kit.run(["--port", "0", ...settings, "--config", file])
    const url = await Kit.urlOf(gateway)
    const session = await Kit.open(url)
    const running = Kit.post(url, session, Kit.toolCall("endless", "never"))
    const before = Kit.children(gateway.child.pid ?? 0).length
    const opening = Kit.initialize(new URL("/mcp/starting", url).href)
    await Kit.eventually("the request runs, and the process starts", async () => {
      const inFlight = await Kit.inFlight(new URL(url).origin)
      return inFlight === 1 && Kit.children(gateway.child.pid ?? 0).length > before
    })
    gateway.child.kill("SIGTERM")
    const { error, id } = await (await running).json()
    assert.deepStrictEqual([id, error.message], ["endless", "the gateway is shutting down"])
    const refused = await opening
    const told = await refused.json()
    assert.deepStrictEqual([refused.status, told.id, told.error.message], [503, 0, "The gateway is shutting down"])
    await gateway.exit
  })

  it("one Ctrl-C that arrives twice, as npm hands it on, lets running requests end as well", async () => {
    const gateway = Kit.run(["--port", "0", "--drain-timeout", "1 minute", "--", ...command])
    const url = await Kit.urlOf(gateway)
    const { pid, session } = await busy(url)
    const running = await Kit.post(url, session, Kit.toolCall(1, "untilSignal"))
    // The kernel may merge two pending SIGINTs, so the second is a SIGTERM, which the gateway treats alike.
    gateway.child.kill("SIGINT")
    gateway.child.kill("SIGTERM")
    await Kit.eventually("they have arrived", () => gateway.output().includes("Stopping"))
    Kit.kill(pid, "SIGUSR2")
    assert.include(await running.text(), "\"released\"")
    assert.strictEqual(await gateway.exit, 0)
  })

  it("a second signal, as the first one's line says, ends everything at once, stubborn processes included", async () => {
    const gateway = Kit.run(["--port", "0", "--drain-timeout", "1 minute", "--close-grace", "1 minute", "--"].concat([
      Kit.counter().command,
      ...Kit.counter().args,
      "--stubborn",
      "--grandchild"
    ]))
    const url = await Kit.urlOf(gateway)
    const session = await Kit.open(url)
    const pids: ReadonlyArray<number> = JSON.parse(await Kit.toolText(url, session, "pids"))
    const running = Kit.post(url, session, Kit.toolCall(1, "never")).catch(() => undefined)
    await Kit.eventually(
      "the request runs",
      async () => (await (await fetch(new URL("/sessions", url))).json()).sessions[0].inFlight === 1
    )
    gateway.child.kill("SIGINT")
    await Kit.eventually("it says how to hurry", () => gateway.output().includes("Stopping"))
    assert.match(
      gateway.output(),
      /^Stopping: running requests have up to 60 seconds \(drainTimeout\)\. Send the signal again to stop at once\.$/m
    )
    // The first second's count as one.
    await Kit.eventually("it has ended", () => !gateway.child.kill("SIGINT"))
    assert.strictEqual(await gateway.exit, 130)
    await running
    await Kit.eventually("no process is left", () => !pids.some(Kit.alive))
  })

  it("a gateway killed with SIGKILL takes the processes along that obey the end of their stdin", async () => {
    const gateway = Kit.run(["--port", "0", "--spares", "1", "--", Kit.counter().command, ...Kit.counter().args])
    const url = await Kit.urlOf(gateway)
    await Kit.open(url)
    const pids = Kit.descendants(gateway.child.pid ?? 0)
    assert.isAtLeast(pids.length, 1)
    gateway.child.kill("SIGKILL")
    await gateway.exit
    await Kit.eventually("no process is left", () => !pids.some(Kit.alive))
  })
})

describe("telemetry", () => {
  it("with a variable that is not valid is refused, and told which", async () => {
    const gateway = Kit.run(["--port", "0", "--", Kit.counter().command, ...Kit.counter().args], {
      OTEL_EXPORTER_OTLP_ENDPOINT: "nonsense"
    })
    assert.strictEqual(await gateway.exit, 1)
    assert.include(gateway.output(), "A variable of OpenTelemetry (OTEL_…) is not valid")
    assert.notInclude(gateway.output(), "because of a bug")
    assert.notInclude(gateway.output(), "    at file:")
  })

  it("goes to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names: a span per request and launch, without ids or keys", async () => {
    const collector = await Collector.start()
    const gateway = Kit.run(["--port", "0", "--", Kit.counter().command, ...Kit.counter().args], {
      OTEL_EXPORTER_OTLP_ENDPOINT: collector.url,
      GATEWAY_KEYS: "a-secret-key-0123"
    })
    const url = await Kit.urlOf(gateway)
    const key = { authorization: "Bearer a-secret-key-0123" }
    const opened = await fetch(url, { method: "POST", headers: { ...Kit.headers, ...key }, body: Kit.initializeBody })
    await opened.text()
    const session = opened.headers.get("mcp-session-id") ?? ""
    await (await Kit.post(url, session, Kit.toolCall(1, "count"), {
      ...key,
      "mcp-protocol-version": "2025-06-18"
    })).text()
    gateway.child.kill("SIGTERM")
    await gateway.exit
    const traces = collector.bodies("/v1/traces").join()
    for (const name of ["\"name\":\"POST\"", "tools/call", "SessionPool.launch"]) assert.include(traces, name)
    // By the semantic conventions for MCP.
    const attributes = Object.fromEntries(
      [...traces.matchAll(/\{"key":"((?:mcp|jsonrpc|gen_ai)[\w.]*)","value":\{"stringValue":"([^"]*)"\}\}/g)]
        .map(([, key = "", value = ""]) => [key, value])
    )
    assert.deepStrictEqual(attributes, {
      "mcp_gateway.backend": "counter-server",
      "mcp.method.name": "tools/call",
      "mcp.session.id": session.slice(0, 8),
      "mcp.protocol.version": "2025-06-18",
      "jsonrpc.request.id": "1",
      "gen_ai.operation.name": "execute_tool",
      "gen_ai.tool.name": "count"
    })
    const metrics = collector.bodies("/v1/metrics").join()
    assert.include(metrics, "\"name\":\"mcp_gateway_live_sessions\"")
    assert.match(metrics, /"name":"mcp_gateway_request_duration_seconds"[^[]*"unit":"s"/)
    const all = collector.bodies().join()
    assert.notInclude(all, session)
    assert.notInclude(all, "a-secret-key-0123")
    collector.stop()
  })
})
