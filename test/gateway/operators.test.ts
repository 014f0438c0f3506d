/** The command for operators: --check, reload, stop and telemetry. */
import { createHash } from "node:crypto"
import { writeFileSync } from "node:fs"
import { afterAll, assert, describe, it } from "vitest"
import * as Collector from "../kit/gateway/collector.ts"
import { runInProcess } from "../kit/gateway/command.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serving from "../kit/gateway/serving.ts"

/** Opens a session. Returns its id and the processes of its back end. */
const open = async (url: string) => {
  const session = await Kit.open(url)
  const pids: ReadonlyArray<number> = JSON.parse(await Kit.toolText(url, session, "pids"))
  return { session, pids: pids.filter((pid) => pid > 0) }
}

/** Flags that serve a counter with these arguments. */
const counter = (...more: ReadonlyArray<string>) => {
  const { args, command } = Kit.counter(...more)
  return ["--", command, ...args]
}

const gone = (pids: ReadonlyArray<number>) => Kit.eventually("no process is left", () => !pids.some(Kit.alive))

const printed = (gateway: Kit.Run, words: string) =>
  Kit.eventually(`it prints ${words}`, () => gateway.output().includes(words))

describe("--check", () => {
  const two = Kit.counter()
  it.each([
    ["The configuration is valid. Back ends: one, two", 0, { one: two, two: { url: "https://example.org/mcp" } }],
    ["one: there is no program \"no-such-program\"", 1, { one: { command: "no-such-program" }, two }],
    ["mcpServers.one.command: must not be empty", 1, { one: { command: "" } }]
  ])("prints %s with exit code %i, and starts nothing", async (words, exit, mcpServers) => {
    const finished = await runInProcess(["--check", "--config", Serving.file("check.json", { mcpServers })])
    assert.strictEqual(finished.exit, exit)
    assert.include(finished.output, words)
    assert.notMatch(finished.output, /http:|two:/)
  })
})

describe("a gateway with a configuration file", async () => {
  const { args: [fixture = ""] = [] } = Kit.counter()
  const file = Serving.file("sources.json", {
    mcpServers: {
      plain: { command: "${NODE}", args: ["${MISSING:-" + fixture + "}"] },
      own: { ...Kit.counter(), maxInFlight: 1 }
    },
    gateway: { host: "127.0.0.2", maxInFlight: 5, requestTimeout: "1 minute" }
  })
  const flags = ["--config", file, "--max-in-flight", "2", "--drain-timeout", "0 seconds"]
  const { url } = await Serving.command(flags, { GATEWAY_HOST: "127.0.0.3", NODE: process.execPath })

  it("prefers a server's own setting, then the command line, then the environment, then the file", async () => {
    assert.match(url, /^http:\/\/127\.0\.0\.3:/)
    const refusals = async (at: string) => {
      const session = await Kit.open(at)
      // Accepted calls stay in flight, because the test sends no signal.
      const responses = await Promise.all([1, 2, 3].map((id) => Kit.post(at, session, Kit.toolCall(id, "untilSignal"))))
      return responses.filter(({ status }) => status === 429).length
    }
    assert.deepStrictEqual([await refusals(url), await refusals(url.replace("plain", "own"))], [1, 2])
  })

  it.each(["GET /sse", "POST /sse", "GET /a/b/c", "DELETE /"])(
    "answers %s with 404 and a pointer to /mcp, without names of back ends",
    async (request) => {
      const [method = "", path = ""] = request.split(" ")
      const response = await fetch(new URL(path, url), { method })
      const text = await response.text()
      assert.strictEqual(response.status, 404)
      assert.include(text, "MCP is at /mcp/NAME")
      assert.notInclude(text, "plain")
    }
  )

  it("answers HEAD on the routes with GET", async () => {
    for (const path of ["/", "/health", "/ready"]) {
      assert.strictEqual((await fetch(new URL(path, url), { method: "HEAD" })).status, 200)
    }
  })
})

describe("SIGHUP", () => {
  const entry = (mark: string) => ({ ...Kit.counter(), env: { MARK: mark } })
  const file = Serving.file("reload.json", { mcpServers: { kept: entry("1") } })
  const serve = (mcpServers: object) => writeFileSync(file, JSON.stringify({ mcpServers }))
  // The tests share one gateway and run in this order.
  const gateway = Kit.run(["--port", "0", "--config", file])
  afterAll(() => {
    gateway.child.kill("SIGTERM")
    return gateway.exit
  })
  let url: string
  const at = (name: string) => new URL(`/mcp/${name}`, url).href
  const reload = () => gateway.child.kill("SIGHUP")

  it("does not end a gateway that is starting, and a second one reloads it", async () => {
    // Node needs 50 ms to reach the first line of the command. Until then the signal ends it.
    const hangUp = 1
    await Kit.eventually("it listens for SIGHUP", () => Kit.catches(gateway.child.pid ?? 0, hangUp))
    reload()
    url = await Kit.urlOf(gateway)
    serve({ kept: entry("1"), changed: entry("1"), removed: entry("1"), light: { ...entry("1"), sessions: "caller" } })
    reload()
    await Kit.eventually("the file is read again", async () => (await Kit.initialize(at("changed"))).status !== 404)
  })

  it("ends the sessions of changed and removed entries, and no sessions if the file is wrong", async () => {
    const [kept, changed, removed] = [await open(at("kept")), await open(at("changed")), await open(at("removed"))]
    const light = await open(at("light"))
    serve({ kept: entry("1"), changed: entry("2"), added: entry("1"), light: entry("1") })
    reload()
    await printed(gateway, "session closed: the configuration of the back end has changed")
    await gone([...changed.pids, ...removed.pids, ...light.pids])
    assert.strictEqual((await Kit.post(at("light"), light.session, Kit.toolCall(1, "count"))).status, 404)
    assert.include(gateway.output(), "\"message\":\"reloaded\"")
    assert.isTrue(kept.pids.every(Kit.alive))
    assert.strictEqual(await Kit.toolText(at("kept"), kept.session, "count"), "1")
    assert.strictEqual((await Kit.post(at("changed"), changed.session, Kit.toolCall(1, "count"))).status, 404)
    assert.strictEqual((await Kit.initialize(at("removed"))).status, 404)
    const seen = JSON.parse(await Kit.toolText(at("changed"), await Kit.open(at("changed")), "environment"))
    assert.strictEqual(seen.env.MARK, "2")
    assert.strictEqual(await Kit.toolText(at("added"), await Kit.open(at("added")), "count"), "1")
    writeFileSync(file, "{")
    reload()
    await printed(gateway, "Not reloaded")
    serve({ kept: entry("1"), typo: { command: "no-such-program" } })
    reload()
    await printed(gateway, "typo: there is no program")
    assert.strictEqual(await Kit.toolText(at("kept"), kept.session, "count"), "2")
  })
})

describe("end of the command", () => {
  it("stops in order after the readers of stdout and stderr have closed them, also if it gets SIGHUPs meanwhile", async () => {
    const { child, exit, url } = await Serving.command(["--close-grace", "200 millis", ...counter("--stubborn")])
    assert.match(url, /\/mcp\/counter-server$/)
    child.stdout?.destroy()
    child.stderr?.destroy()
    // The gateway logs each session to stdout, and answers the signal on stderr.
    const sessions = [await open(url), await open(url)]
    child.kill("SIGTERM")
    await Kit.eventually("it is over", () => child.exitCode !== null || !child.kill("SIGHUP"))
    assert.strictEqual(await exit, 0)
    assert.isFalse(sessions.flatMap(({ pids }) => pids).some(Kit.alive))
  })

  it("leaves no process after an uncaught exception", async () => {
    const throwing = "data:text/javascript,process.on('SIGUSR2', () => { throw new Error('an uncaught error') })"
    const gateway = await Serving.command(counter("--stubborn"), { NODE_OPTIONS: `--import "${throwing}"` })
    const { pids } = await open(gateway.url)
    gateway.child.kill("SIGUSR2")
    assert.strictEqual(await gateway.exit, 1)
    assert.include(gateway.output(), "an uncaught error")
    await gone(pids)
  })
})

describe("SIGINT and SIGTERM", () => {
  it("let running requests end and leave no process, also if both come at once, as from npm", async () => {
    const flags = ["--drain-timeout", "1 minute", "--close-grace", "100 millis", ...counter("--grandchild")]
    const { child, exit, output, url } = await Serving.command(flags)
    const { pids, session } = await open(url)
    const stream = await Kit.listen(url, session)
    const running = await Kit.post(url, session, Kit.toolCall(1, "untilSignal"))
    // The kernel may merge two pending SIGINTs, so the second is a SIGTERM, which the gateway treats alike.
    child.kill("SIGINT")
    child.kill("SIGTERM")
    await Kit.eventually("it is not ready", async () => (await fetch(new URL("/ready", url))).status === 503)
    assert.strictEqual((await Kit.initialize(url)).status, 503)
    Kit.kill(pids[0] ?? 0, "SIGUSR2")
    assert.include(await running.text(), "\"released\"")
    // A GET stream does not delay the stop.
    await stream.text()
    assert.strictEqual(await exit, 0)
    assert.isFalse(pids.some(Kit.alive))
    assert.include(output(), "session opened")
  })

  it("fail a running request after drainTimeout, and a session that is starting", async () => {
    const file = Serving.file("drain.json", {
      mcpServers: { counter: Kit.counter(), starting: { command: "sleep", args: ["100"], spares: 0 } }
    })
    const settings = ["--drain-timeout", "200 millis", "--close-grace", "100 millis", "--config", file]
    const { child, origin, url } = await Serving.command(settings)
    const session = await Kit.open(url)
    const running = Kit.post(url, session, Kit.toolCall("endless", "never"))
    const before = Kit.children(child.pid ?? 0).length
    const opening = Kit.initialize(`${origin}/mcp/starting`)
    const started = async () => await Kit.inFlight(origin) === 1 && Kit.children(child.pid ?? 0).length > before
    await Kit.eventually("the request runs, and the process starts", started)
    child.kill("SIGTERM")
    const answer = await Kit.answerOf(await running)
    assert.deepStrictEqual([answer.id, answer.error.message], ["endless", "the gateway is shutting down"])
    const refused = await opening
    const { error, id } = await refused.json()
    assert.deepStrictEqual([refused.status, id, error.message], [503, 0, "The gateway is shutting down"])
  })

  it("stop the gateway at once when sent again, as the output of the first one says", async () => {
    const flags = ["--drain-timeout", "1 minute", "--close-grace", "1 minute", ...counter("--stubborn", "--grandchild")]
    const gateway = await Serving.command(flags)
    const { child, origin, url } = gateway
    const { pids, session } = await open(url)
    const running = Kit.post(url, session, Kit.toolCall(1, "never")).catch(() => undefined)
    await Kit.eventually("the request runs", async () => await Kit.inFlight(origin) === 1)
    child.kill("SIGINT")
    await printed(gateway, "Stopping")
    assert.match(
      gateway.output(),
      /^Stopping: running requests have up to 60 seconds \(drainTimeout\)\. Send the signal again to stop at once\.$/m
    )
    // Signals of the first second count as one.
    await Kit.eventually("it has ended", () => !child.kill("SIGINT"))
    assert.strictEqual(await gateway.exit, 130)
    await running
    await gone(pids)
  })
})

describe("telemetry", () => {
  it("refuses to start with an invalid OTEL_ variable, without a stack trace", async () => {
    const gateway = Kit.run(["--port", "0", ...counter()], { OTEL_EXPORTER_OTLP_ENDPOINT: "nonsense" })
    assert.strictEqual(await gateway.exit, 1)
    assert.include(gateway.output(), "A variable of OpenTelemetry (OTEL_…) is not valid")
    assert.notMatch(gateway.output(), /because of a bug| {4}at file:/)
  })

  it("sends the collector a span per request and launch, without whole ids or keys", async () => {
    const collector = await Collector.start()
    const gateway = await Serving.command(counter(), {
      OTEL_EXPORTER_OTLP_ENDPOINT: collector.url,
      GATEWAY_KEYS: "a-secret-key-0123"
    })
    const { url } = gateway
    const headers = { "authorization": "Bearer a-secret-key-0123", "mcp-protocol-version": "2025-06-18" }
    const opened = await Kit.post(url, "", Kit.initializeBody, headers)
    const session = opened.headers.get("mcp-session-id") ?? ""
    await opened.text()
    await (await Kit.post(url, session, Kit.toolCall(1, "count"), headers)).text()
    gateway.child.kill("SIGTERM")
    await gateway.exit
    const traces = collector.bodies("/v1/traces").join()
    for (const name of ["\"name\":\"POST\"", "tools/call", "SessionPool.launch"]) assert.include(traces, name)
    // The semantic conventions of OpenTelemetry define these names.
    const attributes = Object.fromEntries(
      [...traces.matchAll(/\{"key":"((?:mcp|jsonrpc|gen_ai|enduser)[\w.]*)","value":\{"stringValue":"([^"]*)"\}\}/g)]
        .map(([, key = "", value = ""]) => [key, value])
    )
    assert.deepStrictEqual(attributes, {
      "mcp_gateway.backend": "counter-server",
      "mcp.method.name": "tools/call",
      "mcp.session.id": session.slice(0, 8),
      "mcp.protocol.version": "2025-06-18",
      "jsonrpc.request.id": "1",
      "gen_ai.operation.name": "execute_tool",
      "gen_ai.tool.name": "count",
      "enduser.id": createHash("sha256").update("a-secret-key-0123").digest("hex").slice(0, 8)
    })
    const metrics = collector.bodies("/v1/metrics").join()
    assert.include(metrics, "\"name\":\"mcp_gateway_live_sessions\"")
    assert.match(metrics, /"name":"mcp_gateway_request_duration_seconds"[^[]*"unit":"s"/)
    const all = collector.bodies().join()
    assert.notInclude(all, session)
    assert.notInclude(all, "a-secret-key-0123")
  })
})
