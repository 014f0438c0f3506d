/** One process per client session, gone with it: with the official client and the official server, and a counter. */
import { Client } from "@modelcontextprotocol/sdk/client/index.js"
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js"
import {
  CreateMessageRequestSchema,
  ElicitRequestSchema,
  ListRootsRequestSchema,
  LoggingMessageNotificationSchema,
  ToolListChangedNotificationSchema
} from "@modelcontextprotocol/sdk/types.js"
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs"
import { createServer } from "node:http"
import { createRequire } from "node:module"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, assert, beforeAll, describe, it } from "vitest"
import * as Kit from "../kit/gateway/gateway.ts"
import * as StillClock from "../kit/gateway/stillClock.ts"
import { shortOrLong } from "../kit/long.ts"

const everything = {
  command: process.execPath,
  args: [createRequire(import.meta.url).resolve("@modelcontextprotocol/server-everything/dist/index.js"), "stdio"],
  env: {},
  cwd: undefined
}

describe("with the official client and server-everything", () => {
  let gateway: Kit.Running
  beforeAll(async () => {
    gateway = await Kit.start({ backends: { everything } })
  })
  afterAll(() => gateway.stop())

  it("lists and calls tools, with progress, in concurrent sessions", async () => {
    const length = shortOrLong(4, 20)
    const results = await Promise.all(Array.from({ length }, async (_, i) => {
      const client = await Kit.connect(`${gateway.origin}/mcp/everything`)
      const { tools } = await client.listTools()
      const echo = await Kit.call(client, "echo", { message: `session ${i}` })
      const progress: Array<number> = []
      await client.callTool(
        { name: "trigger-long-running-operation", arguments: { duration: 0.2, steps: 3 } },
        undefined,
        { onprogress: (update) => progress.push(update.progress) }
      )
      await client.close()
      return [tools.some(({ name }) => name === "echo"), echo, progress]
    }))
    assert.deepStrictEqual(results, Array.from({ length }, (_, i) => [true, `Echo: session ${i}`, [1, 2, 3]]))
  })

  it("carries the server's own requests to its client, and the answers back: sampling, elicitation, roots", async () => {
    const client = await Kit.connect(`${gateway.origin}/mcp/everything`)
    client.setRequestHandler(CreateMessageRequestSchema, ({ params }) => ({
      model: "none",
      role: "assistant",
      content: { type: "text", text: `sampled with ${params.maxTokens} tokens` }
    }))
    client.setRequestHandler(ElicitRequestSchema, () => ({ action: "decline" }))
    client.setRequestHandler(ListRootsRequestSchema, () => ({ roots: [{ uri: "file:///here", name: "here" }] }))
    assert.include(
      await Kit.call(client, "trigger-sampling-request", { prompt: "hello", maxTokens: 7 }),
      "sampled with 7 tokens"
    )
    assert.include(await Kit.call(client, "trigger-elicitation-request"), "declined")
    assert.include(await Kit.call(client, "get-roots-list"), "file:///here")
    await client.close()
  })

  it("carries log messages of the server to its client", async () => {
    const client = await Kit.connect(`${gateway.origin}/mcp`)
    const logged: Array<unknown> = []
    client.setNotificationHandler(LoggingMessageNotificationSchema, (message) => {
      logged.push(message.params.level)
    })
    await client.setLoggingLevel("debug")
    await Kit.call(client, "toggle-simulated-logging")
    await Kit.eventually("a log message arrives", () => logged.length > 0)
    await client.close()
  })
})

describe("with a server that counts", () => {
  let gateway: Kit.Running
  let url: string
  beforeAll(async () => {
    gateway = await Kit.start({ backends: { counter: Kit.counter() }, idleTimeToLive: "30 minutes" })
    url = `${gateway.origin}/mcp/counter`
  })
  afterAll(() => gateway.stop())

  it("each of several concurrent sessions counts 1 to 20, whatever the others do with the same ids", async () => {
    const length = shortOrLong(4, 10)
    const counts = await Promise.all(Array.from({ length }, async () => {
      const session = await Kit.open(url)
      const texts = await Promise.all(Array.from({ length: 20 }, async (_, i) => {
        const response = await Kit.post(url, session, Kit.toolCall(i + 1, "count"))
        const { id, result } = await response.json()
        assert.strictEqual(id, i + 1)
        return Number(result.content[0].text)
      }))
      return texts.toSorted((a, b) => a - b)
    }))
    assert.deepStrictEqual(counts, Array.from({ length }, () => Array.from({ length: 20 }, (_, i) => i + 1)))
  })

  it("DELETE answers 204 when the process is gone, and afterwards the session is unknown", async () => {
    const session = await Kit.open(url)
    const pid = await Kit.pidOf(url, session)
    assert.isTrue(Kit.alive(pid))
    const response = await fetch(url, { method: "DELETE", headers: { "mcp-session-id": session } })
    assert.strictEqual(response.status, 204)
    assert.isFalse(Kit.alive(pid))
    assert.strictEqual((await Kit.post(url, session, Kit.toolCall(1, "count"))).status, 404)
    assert.strictEqual((await fetch(url, { method: "DELETE", headers: { "mcp-session-id": session } })).status, 404)
  })

  it("a stream of GET ends after the DELETE of its session is answered, not while its end is waited for", async () => {
    const ended: Array<() => void> = []
    const upstream = createServer((request, response) => {
      let body = ""
      request.on("data", (chunk) => {
        body += chunk
      }).on("end", () => {
        if (request.method === "DELETE") return void ended.push(() => response.writeHead(204).end())
        if (request.method === "GET") {
          return response.writeHead(200, { "content-type": "text/event-stream" }).write(": \n\n")
        }
        const { id } = JSON.parse(body)
        const result = { protocolVersion: "2025-06-18", capabilities: {}, serverInfo: { name: "x", version: "1" } }
        response.writeHead(200, { "content-type": "application/json", "mcp-session-id": "s" })
          .end(JSON.stringify({ jsonrpc: "2.0", id, result }))
      })
    }).listen(0, "127.0.0.1")
    await new Promise((resolve) => upstream.on("listening", resolve))
    // Its process goes when the test lets the grace pass.
    const clock = await StillClock.make()
    const still = await Kit.start({
      backends: {
        http: { url: `http://127.0.0.1:${Kit.portOf(upstream)}`, era: "legacy" },
        stubborn: Kit.counter("--stubborn")
      }
    }, clock)
    for (const backend of ["stubborn", "http"]) {
      const url = `${still.origin}/mcp/${backend}`
      const session = await Kit.open(url)
      let isOpen = true
      const listening = (await Kit.listen(url, session)).text().then(() => {
        isOpen = false
      })
      const deleted = fetch(url, { method: "DELETE", headers: { "mcp-session-id": session } })
      let status = 0
      void deleted.then((response) => {
        status = response.status
      })
      await Kit.eventually(
        "the session is unknown",
        async () => (await Kit.post(url, session, Kit.toolCall(1, "count"))).status === 404
      )
      assert.deepStrictEqual([backend, isOpen, status], [backend, true, 0])
      if (backend === "http") await Kit.eventually("it has heard of it", () => ended.length > 0)
      for (const end of ended) end()
      assert.strictEqual((await clock.passUntilSettled("DELETE is answered", deleted)).status, 204)
      await listening
    }
    await clock.passUntilSettled("the gateway has stopped", still.stop())
    upstream.closeAllConnections()
    upstream.close()
  })

  it("the official client ends a session whose process is slow to leave, and reports no error", async () => {
    const slow = await Kit.start({ backends: { stubborn: Kit.counter("--stubborn") }, closeGrace: "500 millis" })
    const client = new Client({ name: "test", version: "1.0.0" })
    const transport = new StreamableHTTPClientTransport(new URL(`${slow.origin}/mcp`), {
      reconnectionOptions: {
        initialReconnectionDelay: 100,
        maxReconnectionDelay: 100,
        reconnectionDelayGrowFactor: 1,
        maxRetries: 2
      }
    })
    const errors: Array<string> = []
    // The client has no other way to report them.
    // oxlint-disable-next-line unicorn/prefer-add-event-listener
    client.onerror = (error) => errors.push(error.message)
    await client.connect(transport)
    await Kit.eventually("its stream is open", async () => {
      const { sessions } = await (await fetch(`${slow.origin}/sessions`)).json()
      return sessions[0]?.streams === 1
    })
    await transport.terminateSession()
    await client.close()
    assert.deepStrictEqual(errors, [])
    await slow.stop()
  })

  it("a crash is told to every pending request with its exit code, and the session is unknown from then on", async () => {
    const session = await Kit.open(url)
    const waiting = Kit.post(url, session, Kit.toolCall("waiting", "never"))
    const crashing = Kit.post(url, session, Kit.toolCall("crashing", "crash"))
    for (const [response, id] of [[await waiting, "waiting"], [await crashing, "crashing"]] as const) {
      const body = await response.json()
      assert.strictEqual(body.id, id)
      assert.include(body.error.message, "exit code 7")
    }
    await Kit.eventually("the session is unknown", async () => {
      const response = await Kit.post(url, session, Kit.toolCall(1, "count"))
      return response.status === 404
    })
  })

  it("a death by signal is told with the signal", async () => {
    const session = await Kit.open(url)
    const body = await (await Kit.post(url, session, Kit.toolCall(1, "killed"))).json()
    assert.include(body.error.message, "SIGKILL")
  })

  it("garbage on stdout is skipped, and the answer after it arrives", async () => {
    const session = await Kit.open(url)
    const { result } = await (await Kit.post(url, session, Kit.toolCall(1, "garbage"))).json()
    assert.strictEqual(result.content[0].text, "after garbage")
  })

  it("skips a message of a back end nested deeper than 256 levels, and passes on the answer after it", async () => {
    const session = await Kit.open(url)
    const typeOf = async (count: number) => {
      const response = await Kit.post(url, session, Kit.toolCall(1, "deep", { count }))
      assert.include(await response.text(), "after depth")
      return response.headers.get("content-type")
    }
    // An answer that nothing precedes is JSON.
    assert.deepStrictEqual([await typeOf(256), await typeOf(257)], ["text/event-stream", "application/json"])
  })

  it("a request goes on when its client has gone, and its session lives", async () => {
    const session = await Kit.open(url)
    const pid = await Kit.pidOf(url, session)
    const gone = new AbortController()
    // It has begun when its first progress is here.
    await fetch(url, {
      method: "POST",
      headers: { ...Kit.headers, "mcp-session-id": session },
      body: Kit.toolCall("cut", "untilSignal"),
      signal: gone.signal
    })
    const again = async () => (await Kit.post(url, session, Kit.toolCall("cut", "count"))).status
    gone.abort()
    await Kit.eventually(
      "the gateway knows that its client is gone",
      async () => (await Kit.sessionOn(gateway.origin, pid))?.streams === 0
    )
    assert.strictEqual(await again(), 400)
    Kit.kill(pid, "SIGUSR2")
    await Kit.eventually("it is answered, so its id is free", async () => (await again()) === 200)
  })

  it("answers as a stream once progress comes first, and the answer ends it", async () => {
    const session = await Kit.open(url)
    const body = JSON.stringify({
      jsonrpc: "2.0",
      id: 1,
      method: "tools/call",
      params: { name: "progress", _meta: { progressToken: "p" } }
    })
    const response = await Kit.post(url, session, body)
    assert.include(response.headers.get("content-type"), "text/event-stream")
    const data = (await response.text()).split("\n").filter((line) => line.startsWith("data: "))
    const methods = data.map((line) => JSON.parse(line.slice(6)).method ?? "answer")
    assert.deepStrictEqual(methods, ["notifications/progress", "answer"])
  })

  it("a message that belongs to no request reaches the GET stream of the official client", async () => {
    const client = await Kit.connect(url)
    let changed = 0
    client.setNotificationHandler(ToolListChangedNotificationSchema, () => {
      changed++
    })
    await Kit.call(client, "announce")
    await Kit.eventually("the notification arrives", () => changed === 1)
    await client.close()
  })

  it("forwards a message as it came: unknown fields, _meta, unicode, big numbers and white space", async () => {
    const session = await Kit.open(url)
    const message = "{ \"jsonrpc\":\"2.0\",\t\"id\":\"ü\\n\u2028\", \"method\":\"tools/call\",\r\n \"params\":" +
      "{\"name\":\"raw\",\"big\":12345678901234567890.10,\"_meta\":{\"x/y\":null}}, \"extra\":[1e400,\"\u{1F600}\"]}"
    const { id, result } = await (await Kit.post(url, session, message)).json()
    assert.strictEqual(id, "ü\n\u2028")
    assert.strictEqual(result.content[0].text, message.replace(/[\r\n]/g, " "))
  })
})

describe("processes", () => {
  it("a stubborn process and its grandchild, behind a shell, are gone after the gateway has stopped", async () => {
    const { args, command } = Kit.counter("--stubborn", "--grandchild")
    const script = [command, ...args].map((part) => `'${part}'`).join(" ")
    const gateway = await Kit.start({
      backends: { shell: { command: "sh", args: ["-c", `${script}; true`], env: {}, cwd: undefined } },
      closeGrace: "100 millis"
    })
    const url = `${gateway.origin}/mcp/shell`
    const session = await Kit.open(url)
    const { result } = await (await Kit.post(url, session, Kit.toolCall(1, "pids"))).json()
    const pids: ReadonlyArray<number> = JSON.parse(result.content[0].text)
    assert.isTrue(pids.every(Kit.alive))
    await gateway.stop()
    assert.isFalse(pids.some(Kit.alive))
  })

  it("a back end that fails to start is told as 502 with its exit code and the end of its stderr", async () => {
    const gateway = await Kit.start({ backends: { broken: Kit.counter("--fail-start") } })
    const response = await fetch(`${gateway.origin}/mcp/broken`, {
      method: "POST",
      headers: Kit.headers,
      body: Kit.initializeBody
    })
    assert.strictEqual(response.status, 502)
    const { error, id } = await response.json()
    assert.strictEqual(id, 0)
    assert.include(error.message, "exit code 3")
    assert.include(error.message, "cannot open the database")
    await gateway.stop()
  })

  it("a command that does not exist or may not be run is told as 502 with what to do", async () => {
    const told = {
      "no-such-command": "(ENOENT): install the program",
      "/no/such/command": "(ENOENT): is its path right?",
      "/etc/passwd": "(EACCES): the gateway's user may not run it"
    }
    for (const [command, part] of Object.entries(told)) {
      const gateway = await Kit.start({ backends: { missing: { command } } })
      const response = await fetch(`${gateway.origin}/mcp`, {
        method: "POST",
        headers: Kit.headers,
        body: Kit.initializeBody
      })
      assert.strictEqual(response.status, 502)
      const { message } = (await response.json()).error
      assert.include(message, `"${command}" could not be started ${part}`)
      await gateway.stop()
    }
  })

  it("a child sees the safe part of the environment and its own entry, and nothing else", async () => {
    const entry = Kit.counter()
    const script =
      "printf '%s' '{\"jsonrpc\":\"2.0\",\"id\":0,\"result\":{\"env\":\"'; env | sort | tr '\\n' ' '; echo '\"}}'; cat"
    const gateway = await Kit.start({
      backends: { env: { ...entry, command: "sh", args: ["-c", script], env: { OWN: "yes" } } },
      environment: { PATH: process.env["PATH"], GATEWAY_KEY: "secret" }
    })
    const response = await fetch(`${gateway.origin}/mcp`, {
      method: "POST",
      headers: Kit.headers,
      body: Kit.initializeBody
    })
    const text = await response.text()
    assert.include(text, "OWN=yes")
    assert.notInclude(text, "secret")
    await gateway.stop()
  })
})

describe("a client that goes while its session starts", () => {
  it("leaves no process behind", async () => {
    const directory = mkdtempSync(join(tmpdir(), "gateway-"))
    const file = join(directory, "pid")
    const gateway = await Kit.start({ backends: { slow: Kit.counter("--slow-start", file) } })
    const gone = new AbortController()
    const opening = fetch(`${gateway.origin}/mcp`, {
      method: "POST",
      headers: Kit.headers,
      body: Kit.initializeBody,
      signal: gone.signal
    }).then(() => "answered", () => "aborted")
    const pid = () => existsSync(file) ? Number(readFileSync(file, "utf8")) : 0
    await Kit.eventually("the process has read initialize", () => pid() > 0)
    assert.isTrue(Kit.alive(pid()))
    gone.abort()
    assert.strictEqual(await opening, "aborted")
    await Kit.eventually("the process is gone", () => !Kit.alive(pid()))
    await gateway.stop()
    rmSync(directory, { recursive: true })
  })
})
