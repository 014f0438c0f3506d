/** Processes: how they start, wait, sleep, fail and end. */
import { Duration, Effect, Logger } from "effect"
import { existsSync, mkdtempSync, readFileSync, realpathSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { assert, beforeEach, describe, it } from "vitest"
import * as Cooldown from "../../src/gateway/sessions/Cooldown.ts"
import * as Spares from "../../src/gateway/transports/Spares.ts"
import * as StdioProcess from "../../src/gateway/transports/StdioProcess.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as StillClock from "../kit/gateway/stillClock.ts"

const temporary = () => mkdtempSync(join(tmpdir(), "gateway-"))
const overview = async (gateway: Kit.Running) => (await fetch(`${gateway.origin}/sessions`)).json()

describe("the environment of a process", () => {
  it("is its entry's directory and variables", async () => {
    const cwd = realpathSync(temporary())
    const gateway = await Kit.start({ backends: { counter: { ...Kit.counter(), cwd, env: { OWN: "yes" } } } })
    const url = `${gateway.origin}/mcp`
    const seen = JSON.parse(await Kit.toolText(url, await Kit.open(url), "environment"))
    assert.deepStrictEqual([seen.cwd, seen.env.OWN], [cwd, "yes"])
    await gateway.stop()
    rmSync(cwd, { recursive: true })
  })
})

describe("a process that misbehaves", () => {
  it("one that stops reading fails its session once a message waits for too long, and the gateway goes on", async () => {
    const gateway = await Kit.start({
      backends: { counter: Kit.counter() },
      writeTimeout: "300 millis",
      closeGrace: "100 millis"
    })
    const url = `${gateway.origin}/mcp`
    const session = await Kit.open(url)
    await Kit.toolText(url, session, "deaf")
    // More than the pipe and the queue hold.
    const answers = await Promise.all(Array.from({ length: 40 }, async (_, i) => {
      const response = await Kit.post(url, session, Kit.toolCall(i, "count", { filler: "x".repeat(100_000) }))
      return response.status === 404 ? "404" : (await response.json()).error.message
    }))
    assert.isTrue(answers.every((answer) => answer === "404" || /has not read its stdin/.test(answer)), answers.join())
    assert.strictEqual(await Kit.toolText(url, await Kit.open(url), "count"), "1")
    await gateway.stop()
  })

  it("one that closes its stdout fails its session at once", async () => {
    const clock = await StillClock.make()
    const gateway = await Kit.start({ backends: { counter: Kit.counter() } }, clock)
    const url = `${gateway.origin}/mcp`
    const answer = Kit.post(url, await Kit.open(url), Kit.toolCall(1, "mute"))
    const { error } = await (await clock.passUntilSettled("it is told", answer)).json()
    assert.include(error.message, "closed its stdout")
    await gateway.stop()
  })

  it("a line over the limit fails its session, and the gateway goes on", async () => {
    const gateway = await Kit.start({ backends: { counter: Kit.counter() }, maxLineBytes: 10_000 })
    const url = `${gateway.origin}/mcp`
    const { error } = await (await Kit.post(url, await Kit.open(url), Kit.toolCall(1, "big", { size: 20_000 }))).json()
    assert.include(error.message, "10000 bytes")
    assert.strictEqual(await Kit.toolText(url, await Kit.open(url), "count"), "1")
    await gateway.stop()
  })

  it("one that does not answer initialize in time is 502, and gone", async () => {
    const directory = temporary()
    const gateway = await Kit.start({
      backends: { slow: Kit.counter("--slow-start", join(directory, "pid")) },
      startTimeout: "300 millis"
    })
    const response = await Kit.initialize(`${gateway.origin}/mcp`)
    assert.strictEqual(response.status, 502)
    assert.include(await response.text(), "300ms")
    await Kit.eventually("no session is left", async () => (await overview(gateway)).sessions.length === 0)
    await gateway.stop()
    rmSync(directory, { recursive: true })
  })

  it("a server has all of startTimeout to answer initialize, also where requestTimeout is shorter, and hears of no cancellation", async () => {
    const directory = temporary()
    const file = join(directory, "heard")
    const params = { progressToken: "start", progress: 1 }
    const progress = JSON.stringify({ jsonrpc: "2.0", method: "notifications/progress", params })
    const clock = await StillClock.make()
    const gateway = await Kit.start({
      backends: { slow: { command: "sh", args: ["-c", `echo '${progress}'; exec tee ${file} >/dev/null`] } },
      requestTimeout: "200 millis",
      startTimeout: "2 seconds"
    }, clock)
    const body = Kit.initializeBody.replace("\"params\":{", "$&\"_meta\":{\"progressToken\":\"start\"},")
    const answer = fetch(`${gateway.origin}/mcp`, { method: "POST", headers: Kit.headers, body })
    await Kit.eventually("it has heard it", () => existsSync(file) && readFileSync(file, "utf8").includes("initialize"))
    const response = await clock.passUntilSettled("it is told", answer)
    assert.strictEqual(response.status, 502)
    assert.include(await response.text(), "initialize within 2s")
    await gateway.stop()
    assert.notInclude(readFileSync(file, "utf8"), "notifications/cancelled")
    rmSync(directory, { recursive: true })
  })

  it("one that does not answer initialize in time is told with the end of its stderr, without its secrets, or with what may help", async () => {
    const directory = temporary()
    const file = join(directory, "said")
    const shell = (script: string) => ({ command: "sh", args: ["-c", script], env: { TOKEN: "s3cr3t-token" } })
    const clock = await StillClock.make()
    const gateway = await Kit.start({
      backends: {
        talks: shell(`echo "waiting for $TOKEN to load" >&2; : > ${file}; exec cat >/dev/null`),
        silent: shell("exec cat >/dev/null")
      },
      startTimeout: "500 millis"
    }, clock)
    const initialize = (name: string) => Kit.initialize(`${gateway.origin}/mcp/${name}`)
    const told = async (answer: Promise<Response>): Promise<string> =>
      (await (await clock.passUntilSettled("it is told", answer)).json()).error.message
    const talks = initialize("talks")
    await Kit.eventually("it has said so", () => existsSync(file))
    // `overview` is a round trip through this event loop, so the gateway has read the stderr by now.
    await overview(gateway)
    const reason = await told(talks)
    assert.match(reason, /within 500ms; its stderr: waiting for \S* to load$/)
    assert.notInclude(reason, "s3cr3t")
    const hint = await told(initialize("silent"))
    for (const part of ["within 500ms and wrote nothing on stderr", "PATH, HOME", "env", "raise startTimeout"]) {
      assert.include(hint, part)
    }
    await gateway.stop()
    rmSync(directory, { recursive: true })
  })
})

describe("the end of a process", () => {
  /** A back end that sees only the end of its stdin: SIGTERM means nothing to it. */
  const obeysOnlyEof = (file: string) => ({
    command: "sh",
    args: ["-c", `trap '' TERM; ${[Kit.counter().command, ...Kit.counter().args].join(" ")}; echo left > ${file}`]
  })

  it("begins with the end of its stdin, so that one that obeys nothing else leaves by itself", async () => {
    const directory = temporary()
    const file = join(directory, "left")
    const gateway = await Kit.start({ backends: { eof: obeysOnlyEof(file) } })
    const url = `${gateway.origin}/mcp`
    const session = await Kit.open(url)
    await fetch(url, { method: "DELETE", headers: { "mcp-session-id": session } })
    assert.strictEqual(readFileSync(file, "utf8"), "left\n")
    await gateway.stop()
    rmSync(directory, { recursive: true })
  })

  for (const how of ["DELETE", "a crash", "the idle time"] as const) {
    it(`after ${how} takes along what it started, behind a shell as well`, async () => {
      const { args, command } = Kit.counter("--grandchild")
      const clock = await StillClock.make()
      const gateway = await Kit.start({
        backends: { shell: { command: "sh", args: ["-c", `${[command, ...args].join(" ")}; sleep 1000`] } },
        closeGrace: "200 millis"
      }, clock)
      const url = `${gateway.origin}/mcp`
      const before = new Set(Kit.descendants(process.pid))
      const session = await Kit.open(url)
      const pids: ReadonlyArray<number> = JSON.parse(await Kit.toolText(url, session, "pids"))
      const all = [...pids, ...Kit.descendants(process.pid).filter((pid) => !before.has(pid))]
      assert.isAtLeast(all.length, 3)
      const end = () => fetch(url, { method: "DELETE", headers: { "mcp-session-id": session } })
      if (how === "DELETE") await clock.passUntilSettled("it is deleted", end())
      if (how === "a crash") {
        // The server dies; the shell around it sleeps on, and its stdout stays open.
        const response = Kit.post(url, session, Kit.toolCall(1, "crash"))
        const [shell = 0] = all.filter((pid) => !pids.includes(pid))
        process.kill(shell, "SIGKILL")
        assert.match((await (await response).json()).error.message, /SIGKILL|stdout/)
      }
      if (how === "the idle time") await clock.pass("1 hour")
      await clock.passUntil("all are gone", () => !all.some(Kit.alive))
      assert.strictEqual((await Kit.post(url, session, Kit.toolCall(1, "count"))).status, 404)
      await gateway.stop()
    })
  }

  it("npx in front of a server leaves nothing either", async () => {
    const gateway = await Kit.start({
      backends: { npx: { command: "npx", args: ["mcp-server-everything", "stdio"] } },
      closeGrace: "100 millis"
    })
    const url = `${gateway.origin}/mcp`
    const before = new Set(Kit.descendants(process.pid))
    const session = await Kit.open(url)
    const started = Kit.descendants(process.pid).filter((pid) => !before.has(pid))
    assert.isAtLeast(started.length, 2)
    await fetch(url, { method: "DELETE", headers: { "mcp-session-id": session } })
    await Kit.eventually("all are gone", () => !started.some(Kit.alive))
    await gateway.stop()
  })

  it("while messages are on their way to it fails them, each with why or 404, and costs the gateway nothing", async () => {
    const gateway = await Kit.start({ backends: { counter: Kit.counter() } })
    const url = `${gateway.origin}/mcp`
    for (let round = 0; round < 3; round++) {
      const session = await Kit.open(url)
      const pid = await Kit.pidOf(url, session)
      const answers = Promise.all(Array.from({ length: 40 }, async (_, i) => {
        if (i === 5) process.kill(pid, "SIGKILL")
        const response = await Kit.post(url, session, Kit.toolCall(i, "count", { filler: "x".repeat(10_000) }))
        const body = await response.json()
        return body.id === i && (response.status === 404 || "result" in body || /SIGKILL/.test(body.error.message))
      }))
      assert.isTrue((await answers).every(Boolean))
    }
    assert.strictEqual(await Kit.toolText(url, await Kit.open(url), "count"), "1")
    await gateway.stop()
  })
})

describe("cool-down", () => {
  const broken = { command: "sh", args: ["-c", "echo cannot open the database >&2; exit 3"] }
  const coolsDown = (gateway: Kit.Running) =>
    Kit.eventually("its own start has failed too", async () => {
      const { backends } = await (await fetch(`${gateway.origin}/health`)).json()
      return backends.broken === "cooling down"
    })

  it("after three failures in a row starts are refused at once for a while, then one is tried, then longer", () => {
    let state = Cooldown.initial
    const pauses: Array<number> = []
    for (let i = 0; i < 9; i++) {
      state = Cooldown.failed(state, state, "x")
      state = Cooldown.confirmed(state, state, 0, "x")
      pauses.push(state.until / 1000)
    }
    assert.deepStrictEqual(pauses, [0, 0, 10, 20, 40, 80, 160, 300, 300])
    assert.strictEqual(Cooldown.check(state, "b", 299_000)?.seconds, 1)
    assert.strictEqual(Cooldown.check(state, "b", 300_000), undefined)
    assert.deepStrictEqual(Cooldown.succeeded(state), { ...Cooldown.initial, started: true })
  })

  it("is told to clients as 503 with Retry-After, with the last failure to operators; other back ends go on", async () => {
    const gateway = await Kit.start({ backends: { broken, good: Kit.counter() } })
    const url = `${gateway.origin}/mcp/broken`
    const statuses: Array<number> = []
    for (let i = 0; i < 3; i++) statuses.push((await Kit.initialize(url)).status)
    await coolsDown(gateway)
    const refused = await Kit.initialize(url)
    assert.deepStrictEqual([...statuses, refused.status], [502, 502, 502, 503])
    assert.isAtLeast(Number(refused.headers.get("retry-after")), 1)
    assert.include(await refused.text(), "failed to start 3 times in a row; the gateway tries again in")
    const health = await (await fetch(`${gateway.origin}/health`)).json()
    assert.deepStrictEqual(health.backends, { broken: "cooling down", good: "not started" })
    assert.strictEqual((await fetch(`${gateway.origin}/ready`)).status, 200)
    const { backends } = await overview(gateway)
    assert.strictEqual(backends[0].state, "cooling down")
    assert.match(backends[0].lastFailure, /exit code 3; its stderr: cannot open the database$/)
    assert.strictEqual(
      await Kit.toolText(`${gateway.origin}/mcp/good`, await Kit.open(`${gateway.origin}/mcp/good`), "count"),
      "1"
    )
    await gateway.stop()
  })

  it("a gateway of which no back end starts is not ready", async () => {
    const gateway = await Kit.start({ backends: { broken } })
    for (let i = 0; i < 3; i++) await Kit.initialize(`${gateway.origin}/mcp`)
    await coolsDown(gateway)
    assert.strictEqual((await fetch(`${gateway.origin}/ready`)).status, 503)
    assert.strictEqual((await fetch(`${gateway.origin}/health`)).status, 200)
    await gateway.stop()
  })
})

describe("warm spares", () => {
  const spares = async (gateway: Kit.Running) => (await overview(gateway)).backends[0].spares

  it("each is given to one session only, others are started in their place, and none is left in the end", async () => {
    const gateway = await Kit.start({ backends: { counter: { ...Kit.counter(), spares: 2 } } })
    const url = `${gateway.origin}/mcp`
    await Kit.eventually("two are ready", async () => (await spares(gateway)) === 2)
    const sessions = await Promise.all(Array.from({ length: 3 }, () => Kit.open(url)))
    const pids = await Promise.all(sessions.map((session) => Kit.pidOf(url, session)))
    assert.strictEqual(new Set(pids).size, 3)
    const counts = await Promise.all(sessions.map((session) => Kit.toolText(url, session, "count")))
    assert.deepStrictEqual(counts, ["1", "1", "1"])
    await Kit.eventually("two are ready again", async () => (await spares(gateway)) === 2)
    const first = await fetch(url, { method: "DELETE", headers: { "mcp-session-id": sessions[0] ?? "" } })
    assert.strictEqual(first.status, 204)
    assert.isFalse(Kit.alive(pids[0] ?? 0))
    const mine = children()
    await gateway.stop()
    assert.isFalse(pids.some(Kit.alive))
    assert.isFalse(mine.some(Kit.alive))
  })

  it("one that dies unused is noticed, and never given away", async () => {
    const gateway = await Kit.start({ backends: { counter: { ...Kit.counter(), spares: 1 } } })
    const url = `${gateway.origin}/mcp`
    await Kit.eventually("one is ready", async () => (await spares(gateway)) === 1)
    const before = children()
    for (const pid of before) process.kill(pid, "SIGKILL")
    await Kit.eventually("its end is noticed", async () => (await spares(gateway)) === 0)
    assert.strictEqual(await Kit.toolText(url, await Kit.open(url), "count"), "1")
    await gateway.stop()
  })

  it("one that dies unused is told with how it ended, the end of its stderr, and when another is started", async () => {
    const told: Array<string> = []
    const command = { command: "sh", args: ["-c", "echo no database >&2; exit 3"], env: {}, cwd: undefined }
    const limits = {
      maxLineBytes: 1000,
      writeTimeout: Duration.seconds(1),
      closeGrace: Duration.seconds(1),
      stderrLevel: "debug" as const
    }
    const start = StdioProcess.start(command, process.env, limits, (text) => text)
    const waiting = Effect.gen(function*() {
      yield* Spares.make(1, start, yield* Effect.scope, Effect.void)
      yield* Effect.promise(() => Kit.eventually("it is told", () => told.length > 0))
    })
    const logger = Logger.layer([Logger.make(({ message }) => void told.push(String(message)))])
    await Effect.runPromise(Effect.provide(Effect.scoped(waiting), logger))
    assert.deepStrictEqual(told, [
      "A spare process ended before a session used it; another starts in 10 seconds. Reason: " +
      "the back end ended with exit code 3; its stderr: no database"
    ])
  })

  it("those that were taken end together with the gateway, not one after the other", async () => {
    const directory = temporary()
    const [ending, left] = [join(directory, "ending"), join(directory, "left")]
    const count = 3
    // After the end of its stdin each process waits for all the others'. If the gateway ended them one by one, it would have to
    // kill them.
    const script = `trap '' TERM; ${Object.values(Kit.counter()).flat().join(" ")}; echo end >> ${ending}
      while [ $(wc -l < ${ending}) -lt ${count} ]; do sleep 0.02; done; echo left >> ${left}`
    const gateway = await Kit.start({
      backends: { counter: { command: "sh", args: ["-c", script], spares: 1 } },
      closeGrace: "20 seconds"
    })
    const url = `${gateway.origin}/mcp`
    const pids: Array<number> = []
    for (let i = 0; i < count; i++) {
      await Kit.eventually("one is ready", async () => (await spares(gateway)) === 1)
      pids.push(await Kit.pidOf(url, await Kit.open(url)))
    }
    await gateway.stop()
    assert.isAtLeast(readFileSync(left, "utf8").trim().split("\n").length, count)
    assert.isFalse(pids.some(Kit.alive))
    rmSync(directory, { recursive: true })
  })

  it("a gateway that stops right after one was taken leaves neither that nor the one that would replace it", async () => {
    const directory = temporary()
    const file = join(directory, "pid")
    const before = new Set(children())
    const clock = await StillClock.make()
    const backends = { counter: { ...Kit.counter("--slow-start", file), spares: 1 } }
    const gateway = await Kit.start({ backends }, clock)
    const url = `${gateway.origin}/mcp`
    await Kit.eventually("one is ready", async () => (await spares(gateway)) === 1)
    const opening = Kit.initialize(url).catch(() => undefined)
    await Kit.eventually("it is taken", () => existsSync(file))
    await gateway.stop()
    await opening
    assert.deepStrictEqual(children().filter((pid) => !before.has(pid) && Kit.alive(pid)), [])
    // Nor is one started later.
    await clock.pass("1 minute")
    assert.deepStrictEqual(children().filter((pid) => !before.has(pid) && Kit.alive(pid)), [])
    rmSync(directory, { recursive: true })
  })

  it("one that dies while the gateway stops takes along what it started", async () => {
    const before = new Set(children())
    const mine = () => children().filter((pid) => !before.has(pid))
    const gateway = await Kit.start({
      backends: { counter: { ...Kit.counter("--grandchild"), spares: 2 } },
      closeGrace: "100 millis"
    })
    await Kit.eventually("two are there with what they start", () => mine().length === 4)
    const all = mine()
    Kit.kill(all[0] ?? 0, "SIGKILL")
    await gateway.stop()
    assert.isFalse(all.some(Kit.alive))
  })

  /** The counter servers that this test process has started. */
  const children = (): ReadonlyArray<number> => Kit.descendants(process.pid)
})

describe("sessions of a stateless back end", () => {
  let clock: StillClock.StillClock
  beforeEach(async () => {
    clock = await StillClock.make()
  })
  const start = (more: object = {}) =>
    Kit.start({ backends: { counter: { ...Kit.counter(), stateless: true } }, ...more }, clock)

  /** Longer than a session may be idle. */
  const pastIdleTime = "31 minutes"

  const sleepingSession = async (gateway: Kit.Running, messages: ReadonlyArray<string> = []) => {
    const url = `${gateway.origin}/mcp`
    const session = await Kit.open(url)
    for (
      const message of ["{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}", ...messages]
    ) await (await Kit.post(url, session, message)).text()
    const pid = await Kit.pidOf(url, session)
    await clock.pass(pastIdleTime)
    await clock.passUntil("the process is gone", () => !Kit.alive(pid))
    await clock.passUntil("the session sleeps", async () => (await overview(gateway)).backends[0].asleep === 1)
    return { url, session, pid }
  }

  it("sleep when idle and wake with the next message: new process, same id, handshake replayed unseen", async () => {
    const gateway = await start()
    const { pid, session, url } = await sleepingSession(gateway, [
      "{\"jsonrpc\":\"2.0\",\"id\":\"l\",\"method\":\"logging/setLevel\",\"params\":{\"level\":\"debug\"}}",
      "{\"jsonrpc\":\"2.0\",\"id\":\"s1\",\"method\":\"resources/subscribe\",\"params\":{\"uri\":\"a:1\"}}",
      "{\"jsonrpc\":\"2.0\",\"id\":\"s2\",\"method\":\"resources/subscribe\",\"params\":{\"uri\":\"a:2\"}}",
      "{\"jsonrpc\":\"2.0\",\"id\":\"u\",\"method\":\"resources/unsubscribe\",\"params\":{\"uri\":\"a:1\"}}"
    ])
    const answers = await Promise.all([1, 2, 3].map(() => Kit.toolText(url, session, "heard")))
    for (const answer of answers) {
      assert.deepStrictEqual(JSON.parse(answer), [
        "initialize",
        "notifications/initialized",
        "logging/setLevel",
        "resources/subscribe"
      ])
    }
    assert.notStrictEqual(await Kit.pidOf(url, session), pid)
    await gateway.stop()
  })

  it("a GET stream wakes them too, and a Last-Event-ID of the earlier process is no trouble", async () => {
    const gateway = await start()
    const { session, url } = await sleepingSession(gateway)
    const stop = new AbortController()
    const response = await Kit.listen(url, session, { "last-event-id": "abcdef01-1-1" }, stop.signal)
    assert.strictEqual(response.status, 200)
    assert.strictEqual(await Kit.toolText(url, session, "count"), "1")
    stop.abort()
    await gateway.stop()
  })

  it("DELETE ends one that sleeps: it does not wake any more", async () => {
    const gateway = await start()
    const { session, url } = await sleepingSession(gateway)
    const ended = await fetch(url, { method: "DELETE", headers: { "mcp-session-id": session } })
    assert.strictEqual(ended.status, 204)
    assert.strictEqual((await Kit.post(url, session, Kit.toolCall(1, "count"))).status, 404)
    assert.strictEqual((await overview(gateway)).backends[0].asleep, 0)
    await gateway.stop()
  })

  it("a process that crashes is replaced by the next message", async () => {
    const gateway = await start()
    const url = `${gateway.origin}/mcp`
    const session = await Kit.open(url)
    const { error } = await (await Kit.post(url, session, Kit.toolCall(1, "crash"))).json()
    assert.include(error.message, "exit code 7")
    await Kit.eventually("the session works again", async () => {
      const response = await Kit.post(url, session, Kit.toolCall(2, "count"))
      return response.status === 200 && "result" in (await response.json())
    })
    await gateway.stop()
  })

  it("only so many sleep: the oldest is forgotten first", async () => {
    const gateway = await start({ maxAsleep: 2 })
    const url = `${gateway.origin}/mcp`
    const sessions: Array<string> = []
    for (let i = 0; i < 3; i++) {
      sessions.push(await Kit.open(url))
      await clock.pass(pastIdleTime)
      // Not only retired: it sleeps, as the latest of all, when it has been closed.
      await clock.passUntil("it is closed", async () => {
        const text = await (await fetch(`${gateway.origin}/metrics`)).text()
        return /^session_pool_open_sessions\{pool="gateway"\} 0$/m.test(text)
      })
    }
    const statuses = await Promise.all(
      sessions.map(async (session) => (await Kit.post(url, session, Kit.toolCall(1, "count"))).status)
    )
    assert.deepStrictEqual(statuses, [404, 200, 200])
    await gateway.stop()
  })

  it("when the process does not start again the client is told so, and the session stays asleep", async () => {
    const directory = temporary()
    const flag = join(directory, "flag")
    const gateway = await start({ backends: { counter: { ...Kit.counter("--fail-if", flag), stateless: true } } })
    const { session, url } = await sleepingSession(gateway)
    writeFileSync(flag, "")
    const response = await Kit.post(url, session, Kit.toolCall(1, "count"))
    assert.strictEqual(response.status, 502)
    assert.include(await response.text(), "exit code 4")
    rmSync(directory, { recursive: true })
    assert.strictEqual(await Kit.toolText(url, session, "count"), "1")
    await gateway.stop()
  })
})

describe("what an operator sees and does", () => {
  it("the list of sessions says who, how long, how much; DELETE by number ends one, process and all", async () => {
    const gateway = await Kit.start({ backends: { counter: Kit.counter() } })
    const url = `${gateway.origin}/mcp`
    const session = await Kit.open(url)
    const pid = await Kit.pidOf(url, session)
    const { backends, sessions } = await overview(gateway)
    const [row] = sessions
    assert.deepStrictEqual(
      [row.backend, row.session, row.client, row.state, row.requests, row.inFlight, row.pid],
      ["counter", session.slice(0, 8), "raw 1.0.0", "idle", 1, 0, pid]
    )
    assert.isAbove(row.memoryBytes, 1_000_000)
    assert.strictEqual(backends[0].requests, 2)
    assert.notInclude(JSON.stringify(await overview(gateway)), session)
    const ended = await fetch(`${gateway.origin}/sessions/${row.id}`, { method: "DELETE" })
    assert.strictEqual(ended.status, 204)
    assert.isFalse(Kit.alive(pid))
    assert.strictEqual((await fetch(`${gateway.origin}/sessions/${row.id}`, { method: "DELETE" })).status, 404)
    assert.strictEqual((await Kit.post(url, session, Kit.toolCall(1, "count"))).status, 404)
    await gateway.stop()
  })

  it("the live stream of it begins at once and goes on", async () => {
    const clock = await StillClock.make()
    const gateway = await Kit.start({ backends: { counter: Kit.counter() } }, clock)
    const snapshots: Array<{ readonly sessions: ReadonlyArray<unknown> }> = []
    const stop = new AbortController()
    const response = await fetch(`${gateway.origin}/sessions/events`, { signal: stop.signal })
    const read = Kit.readEvents(response, ({ data }) => snapshots.push(JSON.parse(data)) === 2)
    await Kit.eventually("it begins", () => snapshots.length === 1)
    await clock.passUntilSettled("it goes on", read)
    stop.abort()
    assert.deepStrictEqual(snapshots.map(({ sessions }) => sessions.length), [0, 0])
    await gateway.stop()
  })

  it("the metrics have names with units, and count what happened", async () => {
    const gateway = await Kit.start({ backends: { counter: Kit.counter() } })
    const url = `${gateway.origin}/mcp`
    const session = await Kit.open(url)
    await Kit.toolText(url, session, "count")
    await Kit.toolText(url, session, "garbage")
    await (await Kit.post(url, session, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"made/up\"}")).text()
    await (await Kit.post(url, "unknown", Kit.toolCall(1, "count"))).text()
    const text = await (await fetch(`${gateway.origin}/metrics`)).text()
    for (
      const line of [
        /^mcp_gateway_requests_total\{backend="counter",method="tools\/call",outcome="ok"\} [2-9]/m,
        /^mcp_gateway_requests_total\{backend="counter",method="other",outcome="ok"\} [1-9]/m,
        /^mcp_gateway_request_duration_seconds_bucket\{backend="counter",method="tools\/call",le="\+Inf"\} [1-9]/m,
        /^mcp_gateway_garbage_lines_total\{backend="counter"\} [1-9]/m,
        /^mcp_gateway_refusals_total\{status="404"\} [1-9]/m,
        /^session_pool_launches_total\{pool="gateway",outcome="success"\} [1-9]/m,
        /^# HELP mcp_gateway_requests_total /m
      ]
    ) assert.match(text, line)
    await gateway.stop()
  })
})
