/** Sessions: one process per session of a client. */
import { Client } from "@modelcontextprotocol/sdk/client/index.js"
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js"
import { existsSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { assert, describe, it } from "vitest"
import * as Kit from "../kit/gateway/gateway.ts"
import * as Serve from "../kit/gateway/serving.ts"
import * as StillClock from "../kit/gateway/stillClock.ts"

const { origin } = await Serve.gateway({
  backends: { counter: Kit.counter(), pickyLines: { ...Kit.counter(), maxLineBytes: 10_000 } }
})
const url = `${origin}/mcp/counter`

describe("sessions", () => {
  it("have their own process each, also if they use the same request ids", async () => {
    const numbers = Array.from({ length: 20 }, (_, i) => i + 1)
    await Promise.all(Array.from({ length: 4 }, async () => {
      const session = await Kit.open(url)
      const answers = await Promise.all(numbers.map(async (id) => {
        const answer = await Kit.answerOf(await Kit.post(url, session, Kit.toolCall(id, "count")))
        assert.strictEqual(answer.id, id)
        return Number(answer.result.content[0].text)
      }))
      assert.deepStrictEqual(answers.toSorted((a, b) => a - b), numbers)
    }))
  })

  it("forward a message as it came: unknown fields, _meta, unicode, big numbers and white space", async () => {
    const message = "{ \"jsonrpc\":\"2.0\",\t\"id\":\"ü\\n\u2028\", \"method\":\"tools/call\",\r\n \"params\":" +
      "{\"name\":\"raw\",\"big\":12345678901234567890.10,\"_meta\":{\"x/y\":null}}, \"extra\":[1e400,\"\u{1F600}\"]}"
    const { id, result } = await Kit.answerOf(await Kit.post(url, await Kit.open(url), message))
    assert.deepStrictEqual([id, result.content[0].text], ["ü\n\u2028", message.replace(/[\r\n]/g, " ")])
  })

  const failures = {
    crash: ["counter", "exit code 7"],
    killed: ["counter", "SIGKILL"],
    mute: ["counter", "closed its stdout"],
    big: ["pickyLines", "10000 bytes"]
  } as const
  for (const [tool, [backend, reason]] of Object.entries(failures)) {
    it(`answer every pending request with why the process failed, and are unknown afterwards: ${reason}`, async () => {
      const at = `${origin}/mcp/${backend}`
      const session = await Kit.open(at)
      const waiting = Kit.post(at, session, Kit.toolCall("waiting", "never"))
      const failing = Kit.post(at, session, Kit.toolCall("failing", tool, { size: 20_000 }))
      for (const [response, expected] of [[await waiting, "waiting"], [await failing, "failing"]] as const) {
        const { error, id } = await response.json()
        assert.strictEqual(id, expected)
        assert.include(error.message, reason)
      }
      const status = () => Serve.statusOf(at, session, Kit.toolCall(1, "count"))
      await Kit.eventually("it is unknown", async () => await status() === 404)
      assert.strictEqual(await Kit.toolText(at, await Kit.open(at), "count"), "1")
    })
  }

  it("continue a request whose client disconnects", async () => {
    const session = await Kit.open(url)
    const pid = await Kit.pidOf(url, session)
    // The request runs once its first progress arrives.
    await Serve.firstEvents(await Kit.post(url, session, Kit.toolCall("cut", "untilSignal")), 1)
    const again = () => Serve.statusOf(url, session, Kit.toolCall("cut", "count"))
    const streams = async () => (await Kit.sessionOn(origin, pid))?.streams
    await Kit.eventually("the gateway knows that its client is gone", async () => await streams() === 0)
    assert.strictEqual(await again(), 400)
    Kit.kill(pid, "SIGUSR2")
    await Kit.eventually("it is answered, which frees its id", async () => await again() === 200)
  })
})

describe("DELETE", () => {
  it("ends a GET stream of its session after its own answer, not while the process ends", async () => {
    const ended: Array<() => void> = []
    const upstream = await Serve.upstream((response, { id }, { method }) => {
      if (method === "DELETE") return ended.push(() => response.writeHead(204).end())
      if (method === "GET") return response.writeHead(200, { "content-type": "text/event-stream" }).write(": \n\n")
      Serve.initialized(response, id)
    })
    // The process exits when the test lets closeGrace pass.
    const clock = await StillClock.make()
    const backends = { http: { url: upstream, era: "legacy" }, stubborn: Kit.counter("--stubborn") } as const
    const still = await Serve.gateway({ backends }, clock)
    for (const backend of ["stubborn", "http"]) {
      const url = `${still.origin}/mcp/${backend}`
      const session = await Kit.open(url)
      const listening = Serve.reading(await Kit.listen(url, session))
      let status = 0
      const deleted = Serve.remove(url, session).then((response) => (status = response.status))
      const isUnknown = async () => await Serve.statusOf(url, session, Kit.toolCall(1, "count")) === 404
      await Kit.eventually("the session is unknown", isUnknown)
      // A second DELETE changes nothing.
      assert.strictEqual((await Serve.remove(url, session)).status, 404)
      assert.deepStrictEqual([backend, listening.done, status], [backend, false, 0])
      if (backend === "http") await Kit.eventually("the upstream has the DELETE", () => ended.length > 0)
      for (const end of ended) end()
      assert.strictEqual(await clock.passUntilSettled("DELETE is answered", deleted), 204)
      await Kit.eventually("the stream ends", () => listening.done)
    }
  })

  it("ends the process of a session whose client leaves its GET stream unread", async () => {
    const { origin, url } = await Serve.gateway({ backends: { counter: Kit.counter() }, stallTimeout: "1 hour" })
    const session = await Kit.open(url)
    const pid = await Kit.pidOf(url, session)
    const socket = await Serve.unread(url, session, "GET")
    await Kit.eventually("it listens", async () => (await Kit.sessionOn(origin, pid))?.streams === 1)
    await Kit.toolText(url, session, "flood", { count: 300, size: 100_000 })
    assert.strictEqual((await Serve.remove(url, session)).status, 204)
    assert.isFalse(Kit.alive(pid))
    socket.destroy()
  })

  it("is answered with 503, a body, Retry-After and close if the gateway stops before the process exits", async () => {
    const backends = { stubborn: Kit.counter("--stubborn") }
    const { origin, stop, url } = await Serve.gateway({ backends, closeGrace: "2 seconds" }, await StillClock.make())
    const deleting = Serve.remove(url, await Kit.open(url))
    await Kit.eventually("the session ends", async () => (await Serve.overview(origin)).sessions.length === 0)
    const stopped = stop()
    const refused = await deleting
    const { error } = await refused.json()
    assert.deepStrictEqual([refused.status, error.message], [503, "The gateway is shutting down"])
    assert.deepInclude(Object.fromEntries(refused.headers), { "retry-after": "10", connection: "close" })
    await stopped
  })

  it("causes no error in the official client while the process is slow to exit", async () => {
    const backends = { stubborn: Kit.counter("--stubborn") }
    const { origin, url } = await Serve.gateway({ backends, closeGrace: "500 millis" })
    const client = new Client({ name: "test", version: "1.0.0" })
    const delays = { initialReconnectionDelay: 100, maxReconnectionDelay: 100, reconnectionDelayGrowFactor: 1 }
    const transport = new StreamableHTTPClientTransport(new URL(url), {
      reconnectionOptions: { ...delays, maxRetries: 2 }
    })
    const errors: Array<string> = []
    // The client has no other way to report them.
    // oxlint-disable-next-line unicorn/prefer-add-event-listener
    client.onerror = (error) => errors.push(error.message)
    await client.connect(transport)
    const streams = async () => (await Serve.overview(origin)).sessions[0]?.streams
    await Kit.eventually("its stream is open", async () => await streams() === 1)
    await transport.terminateSession()
    await client.close()
    assert.deepStrictEqual(errors, [])
  })
})

describe("failed starts", () => {
  const failures = [
    [Kit.counter("--fail-start"), /exit code 3.*cannot open the database/s],
    [{ command: "no-such-command" }, /"no-such-command" could not be started \(ENOENT\): install the program/],
    [
      { command: "/no/such/command" },
      /"\/no\/such\/command" could not be started \(ENOENT\): install the program, or correct its path/
    ],
    [{ command: "/etc/passwd" }, /could not be started \(EACCES\): the gateway's user may not run it/]
  ] as const
  for (const [broken, reason] of failures) {
    it(`are answered with 502 and the reason: ${reason}`, async () => {
      const { url } = await Serve.gateway({ backends: { broken } })
      const response = await Kit.initialize(url)
      const { error, id } = await response.json()
      assert.deepStrictEqual([response.status, id], [502, 0])
      assert.match(error.message, reason)
    })
  }

  it("leave no process when the client disconnects", async () => {
    const file = join(Serve.directory(), "pid")
    const { url } = await Serve.gateway({ backends: { slow: Kit.counter("--slow-start", file) } })
    const leave = Serve.leaving((signal) =>
      fetch(url, { method: "POST", headers: Kit.headers, body: Kit.initializeBody, signal })
    )
    const pid = () => existsSync(file) ? Number(readFileSync(file, "utf8")) : 0
    await Kit.eventually("the process has read initialize", () => pid() > 0)
    assert.isTrue(Kit.alive(pid()))
    await leave()
    await Kit.eventually("the process is gone", () => !Kit.alive(pid()))
  })
})
