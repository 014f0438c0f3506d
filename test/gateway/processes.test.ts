/** Processes: how they start, wait, sleep, fail and end. */
import { existsSync, readFileSync, realpathSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "vitest"
import type { Entry } from "../../src/gateway/Gateway.ts"
import * as AheadClock from "../kit/gateway/aheadClock.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serve from "../kit/gateway/serving.ts"
import * as StillClock from "../kit/gateway/stillClock.ts"

const counter = Kit.counter()
const shell = (script: string, env = {}) => ({ command: "sh", args: ["-c", script], env })
/** The counter's command in a shell's script. */
const inShell = (...flags: ReadonlyArray<string>) => Object.values(Kit.counter(...flags)).flat().join(" ")
const call = Kit.toolCall(1, "count")
/** The descendants of this process that start after this call. */
const startedFromNow = () => {
  const before = new Set(Kit.descendants(process.pid))
  return () => Kit.descendants(process.pid).filter((pid) => !before.has(pid))
}
const textOf = (file: string) => existsSync(file) ? readFileSync(file, "utf8") : ""
const messageOf = async (response: Response): Promise<string> => (await response.json()).error.message

it("a process gets the directory and variables of its entry and the safe variables of the gateway, and no others", async () => {
  const cwd = realpathSync(Serve.directory())
  const { url } = await Serve.gateway({
    backends: { counter: { ...counter, cwd, env: { OWN: "yes" } } },
    environment: { PATH: process.env["PATH"], GATEWAY_KEY: "secret" }
  })
  const seen = JSON.parse(await Kit.toolText(url, await Kit.open(url), "environment"))
  assert.deepStrictEqual([seen.cwd, seen.env.OWN, seen.env.PATH], [cwd, "yes", process.env["PATH"]])
  assert.notInclude(JSON.stringify(seen), "secret")
})

describe("a process that does not answer initialize", () => {
  it("fails the start with 502 after startTimeout, without a cancellation, also if requestTimeout is shorter", async () => {
    const file = join(Serve.directory(), "heard")
    const progress = Serve.notification("progress", { progressToken: "start", progress: 1 })
    const clock = await StillClock.make()
    const { origin, stop, url } = await Serve.gateway({
      backends: { slow: shell(`echo '${progress}'; exec tee ${file} >/dev/null`) },
      requestTimeout: "200 millis",
      startTimeout: "2 seconds"
    }, clock)
    const body = Kit.initializeBody.replace("\"params\":{", "$&\"_meta\":{\"progressToken\":\"start\"},")
    const answer = fetch(url, { method: "POST", headers: Kit.headers, body })
    await Kit.eventually("it has heard it", () => textOf(file).includes("initialize"))
    const response = await clock.passUntilSettled("it is told", answer)
    assert.strictEqual(response.status, 502)
    assert.include(await response.text(), "initialize within 2s")
    await Kit.eventually("no session is left", async () => (await Serve.overview(origin)).sessions.length === 0)
    await stop()
    assert.notInclude(textOf(file), "notifications/cancelled")
  })

  it("fails the start with the end of its stderr without secrets, or with hints if that is empty", async () => {
    const file = join(Serve.directory(), "said")
    const env = { TOKEN: "s3cr3t-token" }
    const clock = await StillClock.make()
    const { origin } = await Serve.gateway({
      backends: {
        talks: shell(`echo "waiting for $TOKEN to load" >&2; : > ${file}; exec cat >/dev/null`, env),
        silent: shell("exec cat >/dev/null")
      },
      startTimeout: "500 millis"
    }, clock)
    const initialize = (name: string) => Kit.initialize(`${origin}/mcp/${name}`)
    const told = async (answer: Promise<Response>) => messageOf(await clock.passUntilSettled("it is told", answer))
    const talks = initialize("talks")
    await Kit.eventually("it has said so", () => existsSync(file))
    // `overview` is a round trip through this event loop, so the gateway has read the stderr by now.
    await Serve.overview(origin)
    const reason = await told(talks)
    assert.match(reason, /within 500ms; its stderr: waiting for \S* to load$/)
    assert.notInclude(reason, "s3cr3t")
    const hint = await told(initialize("silent"))
    for (const part of ["within 500ms and wrote nothing on stderr", "PATH, HOME", "env", "raise startTimeout"]) {
      assert.include(hint, part)
    }
  })
})

describe("end of a process", () => {
  it("begins with the end of its stdin, for a process that ignores signals", async () => {
    const file = join(Serve.directory(), "left")
    const { url } = await Serve.gateway({ backends: { eof: shell(`trap '' TERM; ${inShell()}; echo left > ${file}`) } })
    await Serve.remove(url, await Kit.open(url))
    assert.strictEqual(textOf(file), "left\n")
  })

  const ends: Record<string, (gateway: Kit.Running, url: string, session: string, shell: number) => unknown> = {
    "DELETE": (_, url, session) => void Serve.remove(url, session),
    "the end of the gateway": (gateway) => gateway.stop(),
    // The server dies. The shell around it sleeps on, and its stdout stays open.
    "a crash": async (_, url, session, shell) => {
      const response = Kit.post(url, session, Kit.toolCall(1, "crash"))
      process.kill(shell, "SIGKILL")
      assert.match(await messageOf(await response), /SIGKILL|stdout/)
    }
  }
  for (const how of [...Object.keys(ends), "the idle time"]) {
    it(`ends its children after ${how}, behind a shell and although they ignore SIGTERM`, async () => {
      const clock = await StillClock.make()
      const mine = startedFromNow()
      const gateway = await Serve.gateway({
        backends: { shell: shell(`${inShell("--grandchild", "--stubborn")}; sleep 1000`) },
        closeGrace: "200 millis"
      }, clock)
      const { url } = gateway
      const session = await Kit.open(url)
      const pids: ReadonlyArray<number> = JSON.parse(await Kit.toolText(url, session, "pids"))
      const all = mine()
      assert.isAtLeast(all.length, 3)
      if (how === "the idle time") await clock.pass("1 hour")
      await ends[how]?.(gateway, url, session, all.find((pid) => !pids.includes(pid)) ?? 0)
      await clock.passUntil("all are gone", () => !all.some(Kit.alive))
      if (how !== "the end of the gateway") assert.strictEqual(await Serve.statusOf(url, session, call), 404)
    })
  }

  it("ends npx in front of a server after DELETE", async () => {
    const mine = startedFromNow()
    const npx = { command: "npx", args: ["mcp-server-everything", "stdio"] }
    const { url } = await Serve.gateway({ backends: { npx }, closeGrace: "100 millis" })
    const session = await Kit.open(url)
    const all = mine()
    assert.isAtLeast(all.length, 2)
    await Serve.remove(url, session)
    await Kit.eventually("all are gone", () => !all.some(Kit.alive))
  })

  it("fails the messages on their way to it with the reason or 404, and the gateway goes on", async () => {
    const { url } = await Serve.gateway({ backends: { counter } })
    for (let round = 0; round < 3; round++) {
      const session = await Kit.open(url)
      const pid = await Kit.pidOf(url, session)
      await Promise.all(Array.from({ length: 40 }, async (_, i) => {
        if (i === 5) process.kill(pid, "SIGKILL")
        const filled = Kit.toolCall(i, "count", { filler: "x".repeat(10_000) })
        const response = await Kit.post(url, session, filled)
        const { error, id, result } = await response.json()
        assert.strictEqual(id, i)
        assert.isTrue(response.status === 404 || result !== undefined || /SIGKILL/.test(error.message))
      }))
    }
    assert.strictEqual(await Kit.toolText(url, await Kit.open(url), "count"), "1")
  })
})

it("a back end that fails to start three times in a row is refused with 503, and tried again after increasing pauses", async () => {
  const broken = shell("echo cannot open the database >&2; exit 3")
  const clock = AheadClock.make()
  const { origin } = await Serve.gateway({ backends: { broken, good: counter } }, clock)
  const initialize = () => Kit.initialize(`${origin}/mcp/broken`)
  for (let i = 0; i < 2; i++) assert.strictEqual((await initialize()).status, 502)
  for (const pause of [10, 20, 40, 80, 160, 300, 300]) {
    assert.strictEqual((await initialize()).status, 502)
    const isCooling = async () => (await (await fetch(`${origin}/health`)).json()).backends.broken === "cooling down"
    await Kit.eventually("the gateway's own start has failed too", isCooling)
    const refused = await initialize()
    assert.strictEqual(refused.status, 503)
    assert.approximately(Number(refused.headers.get("retry-after")), pause, 3)
    assert.match(await messageOf(refused), /failed to start \d+ times in a row; the gateway tries again in/)
    clock.pass(`${pause} seconds`)
  }
  const [{ lastFailure }] = (await Serve.overview(origin)).backends
  assert.match(lastFailure, /exit code 3; its stderr: cannot open the database$/)
  assert.strictEqual((await Kit.initialize(`${origin}/mcp/good`)).status, 200)
})

describe("warm spares", () => {
  const ready = ({ origin }: { readonly origin: string }, count: number) =>
    Kit.eventually(`${count} are ready`, async () => (await Serve.overview(origin)).backends[0].spares === count)

  it("serve one session each, are replaced, and end with the gateway", async () => {
    const mine = startedFromNow()
    const gateway = await Serve.gateway({ backends: { counter: { ...counter, spares: 2 } } })
    const { stop, url } = gateway
    await ready(gateway, 2)
    const sessions = await Promise.all(Array.from({ length: 3 }, () => Kit.open(url)))
    const pids = await Promise.all(sessions.map((session) => Kit.pidOf(url, session)))
    assert.strictEqual(new Set(pids).size, 3)
    await ready(gateway, 2)
    assert.strictEqual((await Serve.remove(url, sessions[0] ?? "")).status, 204)
    assert.isFalse(Kit.alive(pids[0] ?? 0))
    const all = mine()
    await stop()
    assert.isFalse([...pids, ...all].some(Kit.alive))
  })

  it("serve no session after they die unused, and are logged with the reason and the time of the next start", async () => {
    const file = join(Serve.directory(), "config.json")
    const talking = { ...shell(`echo no database >&2; exec ${inShell()}`), spares: 1 }
    writeFileSync(file, JSON.stringify({ mcpServers: { talking } }))
    const gateway = await Serve.command(["--config", file])
    await ready(gateway, 1)
    for (const pid of Kit.descendants(gateway.child.pid ?? 0)) process.kill(pid, "SIGKILL")
    await ready(gateway, 0)
    const told = "A spare process ended before a session used it; another starts in 10 seconds. Reason: " +
      "the back end ended by signal SIGKILL; its stderr: no database"
    await Kit.eventually("it is told", () => gateway.output().includes(told))
    assert.strictEqual(await Kit.toolText(gateway.url, await Kit.open(gateway.url), "count"), "1")
  })

  it("end concurrently when the gateway stops, taken ones included", async () => {
    const directory = Serve.directory()
    const [ending, left] = [join(directory, "ending"), join(directory, "left")]
    // After the end of its stdin, each process waits for all others to reach the same point. If the gateway ended them one by one, it would
    // have to kill them.
    const script = `trap '' TERM; ${inShell()}; echo end >> ${ending}
      while [ $(wc -l < ${ending}) -lt 3 ]; do sleep 0.02; done; echo left >> ${left}`
    const backends = { counter: { ...shell(script), spares: 1 } }
    const gateway = await Serve.gateway({ backends, closeGrace: "20 seconds" })
    const pids: Array<number> = []
    for (let i = 0; i < 3; i++) {
      await ready(gateway, 1)
      pids.push(await Kit.pidOf(gateway.url, await Kit.open(gateway.url)))
    }
    await gateway.stop()
    assert.isAtLeast(textOf(left).trim().split("\n").length, 3)
    assert.isFalse(pids.some(Kit.alive))
  })

  it("end with the gateway when they are taken right before its stop, and are not replaced", async () => {
    const file = join(Serve.directory(), "pid")
    const mine = startedFromNow()
    const clock = await StillClock.make()
    const slow = { ...Kit.counter("--slow-start", file), spares: 1 }
    const gateway = await Serve.gateway({ backends: { slow } }, clock)
    await ready(gateway, 1)
    const opening = Kit.initialize(gateway.url).catch(() => undefined)
    await Kit.eventually("it is taken", () => existsSync(file))
    await gateway.stop()
    await opening
    assert.deepStrictEqual(mine().filter(Kit.alive), [])
    // No spare starts later.
    await clock.pass("1 minute")
    assert.deepStrictEqual(mine().filter(Kit.alive), [])
  })

  it("leave no child when they die while the gateway stops", async () => {
    const mine = startedFromNow()
    const backends = { counter: { ...Kit.counter("--grandchild"), spares: 2 } }
    const { stop } = await Serve.gateway({ backends, closeGrace: "100 millis" })
    await Kit.eventually("two are there with what they start", () => mine().length === 4)
    const all = mine()
    Kit.kill(all[0] ?? 0, "SIGKILL")
    await stop()
    assert.isFalse(all.some(Kit.alive))
  })
})

describe("sessions of a stateless back end", () => {
  const start = async (entry: Entry = counter, more = {}) => {
    const clock = await StillClock.make()
    return { clock, ...await Serve.gateway({ backends: { counter: { ...entry, stateless: true } }, ...more }, clock) }
  }
  /** Longer than the idle time of a session. */
  const pastIdleTime = "31 minutes"
  const asleep = async (origin: string) => (await Serve.overview(origin)).backends[0].asleep

  const sleeping = async (entry?: Entry, ...messages: ReadonlyArray<string>) => {
    const { clock, origin, url } = await start(entry)
    const session = await Kit.open(url)
    for (const message of messages) await (await Kit.post(url, session, message)).text()
    const pid = await Kit.pidOf(url, session)
    await clock.pass(pastIdleTime)
    const sleeps = async () => !Kit.alive(pid) && await asleep(origin) === 1
    await clock.passUntil("its process is gone and it sleeps", sleeps)
    return { origin, url, session, pid }
  }

  it("sleep when idle, and wake at the next message with the same id, a new process and the replayed handshake", async () => {
    const request = (method: string, params: object) => JSON.stringify({ jsonrpc: "2.0", id: method, method, params })
    const { pid, session, url } = await sleeping(
      counter,
      Serve.notification("initialized"),
      request("logging/setLevel", { level: "debug" }),
      request("resources/subscribe", { uri: "a:1" }),
      request("resources/subscribe", { uri: "a:2" }),
      request("resources/unsubscribe", { uri: "a:1" })
    )
    const replayed = ["initialize", "notifications/initialized", "logging/setLevel", "resources/subscribe"]
    for (const heard of await Promise.all([1, 2, 3].map(() => Kit.toolText(url, session, "heard")))) {
      assert.deepStrictEqual(JSON.parse(heard), replayed)
    }
    assert.notStrictEqual(await Kit.pidOf(url, session), pid)
  })

  it("wake at a GET stream too, also with a Last-Event-ID of the earlier process", async () => {
    const { session, url } = await sleeping()
    assert.strictEqual((await Kit.listen(url, session, { "last-event-id": "abcdef01-1-1" })).status, 200)
    assert.strictEqual(await Kit.toolText(url, session, "count"), "1")
  })

  it("do not wake after DELETE", async () => {
    const { origin, session, url } = await sleeping()
    assert.strictEqual((await Serve.remove(url, session)).status, 204)
    assert.strictEqual(await Serve.statusOf(url, session, call), 404)
    assert.strictEqual(await asleep(origin), 0)
  })

  it("get a new process at the next message after a crash", async () => {
    const { url } = await start()
    const session = await Kit.open(url)
    assert.include(await messageOf(await Kit.post(url, session, Kit.toolCall(1, "crash"))), "exit code 7")
    await Kit.eventually("it works again", async () => {
      const response = await Kit.post(url, session, call)
      return response.status === 200 && "result" in await response.json()
    })
  })

  it("are forgotten while they sleep beyond maxAsleep, the oldest first", async () => {
    const { clock, origin, url } = await start(counter, { maxAsleep: 2 })
    const sessions: Array<string> = []
    for (let i = 0; i < 3; i++) {
      sessions.push(await Kit.open(url))
      await clock.pass(pastIdleTime)
      // A session sleeps once it is closed, so this fixes the order.
      const closed = /^session_pool_open_sessions\{pool="gateway"\} 0$/m
      await clock.passUntil("it is closed", async () => closed.test(await Serve.scrape(origin)))
    }
    const statuses = await Promise.all(sessions.map((session) => Serve.statusOf(url, session, call)))
    assert.deepStrictEqual(statuses, [404, 200, 200])
  })

  it("stay asleep when the process does not start again, and the client gets the reason", async () => {
    const flag = join(Serve.directory(), "flag")
    const { session, url } = await sleeping(Kit.counter("--fail-if", flag))
    writeFileSync(flag, "")
    const response = await Kit.post(url, session, call)
    assert.strictEqual(response.status, 502)
    assert.include(await response.text(), "exit code 4")
    rmSync(flag)
    assert.strictEqual(await Kit.toolText(url, session, "count"), "1")
  })
})

describe("the operator's routes", () => {
  it("list a session with client, state, requests and memory, and DELETE by number ends it with its process", async () => {
    const { origin, url } = await Serve.gateway({ backends: { counter } })
    const session = await Kit.open(url)
    const pid = await Kit.pidOf(url, session)
    const { backends, sessions: [row] } = await Serve.overview(origin)
    const { id, memoryBytes, ...seen } = row
    const expected = { backend: "counter", session: session.slice(0, 8), client: "raw 1.0.0", state: "idle" }
    assert.deepInclude(seen, { ...expected, requests: 1, inFlight: 0, pid })
    assert.isAbove(memoryBytes, 1_000_000)
    assert.strictEqual(backends[0].requests, 2)
    const end = async () => (await fetch(`${origin}/sessions/${id}`, { method: "DELETE" })).status
    assert.strictEqual(await end(), 204)
    assert.isFalse(Kit.alive(pid))
    assert.strictEqual(await end(), 404)
    assert.strictEqual(await Serve.statusOf(url, session, call), 404)
  })

  it("send all readers of /sessions/events one snapshot every two seconds, and a new one after all have left", async () => {
    const clock = await StillClock.make()
    const { origin, url } = await Serve.gateway({ backends: { counter } }, clock)
    /** Reads the events. `seen` has the number of sessions of each snapshot. */
    const read = async () => {
      const aborter = new AbortController()
      const seen: Array<number> = []
      const response = await fetch(`${origin}/sessions/events`, { signal: aborter.signal })
      const count = ({ data }: Kit.Event) => seen.push(JSON.parse(data).sessions.length) < 0
      void Kit.readEvents(response, count).catch(() => undefined)
      await Kit.eventually("the first snapshot has come", () => seen.length > 0)
      return { seen, leave: () => aborter.abort() }
    }
    const first = await read()
    await Kit.open(url)
    const all = [first, ...await Promise.all(Array.from({ length: 5 }, read))]
    assert.deepStrictEqual(all.map(({ seen }) => seen), all.map(() => [0]))
    await clock.pass("2 seconds")
    await Kit.eventually("the next one has come", () => all.every(({ seen }) => seen.length === 2))
    assert.deepStrictEqual(all.map(({ seen }) => seen), all.map(() => [0, 1]))
    await Kit.open(url)
    for (const reader of all) reader.leave()
    await Kit.eventually("it is a new one", async () => {
      const again = await read()
      again.leave()
      return again.seen[0] === 2
    })
  })
})
