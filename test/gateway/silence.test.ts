/** Requests whose answer is long in coming: neither their client nor a proxy may take the silence for the end. */
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import type { Server, ServerResponse } from "node:http"
import { createServer } from "node:http"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Modern from "../../src/gateway/protocol/Modern.ts"
import * as Kit from "../kit/gateway/gateway.ts"
import { send } from "../kit/gateway/modern.ts"
import * as StillClock from "../kit/gateway/stillClock.ts"

const directory = mkdtempSync(join(tmpdir(), "silence-"))
/** While it exists, the processes of `gated` do not read. */
const gate = join(directory, "gate")
const { args, command } = Kit.counter()

let gateway: Kit.Running
let clock: StillClock.StillClock
let server: Server
/** The requests that the HTTP servers have not answered. */
const held: Array<{ readonly id: unknown; readonly response: ServerResponse }> = []
const answer = (id: unknown, result: object = {}) => JSON.stringify({ jsonrpc: "2.0", id, result })
const json = { "content-type": "application/json" }

/** A server on Streamable HTTP: at `/modern` of revision 2026-07-28, else of an earlier one. */
const serve = (response: ServerResponse, isModern: boolean, method: string, body: string) => {
  const { id, method: asked } = [JSON.parse(body || "{}")].flat()[0]
  if (asked === "initialize" && !isModern) {
    return response.writeHead(200, { ...json, "mcp-session-id": "s" })
      .end(answer(id, { protocolVersion: "2025-06-18", capabilities: {}, serverInfo: { name: "x", version: "1" } }))
  }
  if (asked === "server/discover" && isModern) {
    return response.writeHead(200, json).end(answer(id, {
      resultType: "complete",
      supportedVersions: [Modern.version],
      capabilities: { tools: {} },
      ttlMs: 0,
      cacheScope: "private"
    }))
  }
  if (method !== "POST") return response.writeHead(method === "GET" ? 405 : 204).end()
  if (asked !== undefined && id === undefined) return response.writeHead(202).end()
  if (asked === "stream") response.writeHead(200, { "content-type": "text/event-stream" }).flushHeaders()
  held.push({ id, response })
}

beforeAll(async () => {
  server = createServer((request, response) => {
    let body = ""
    request.on("data", (chunk) => {
      body += chunk
    }).on("end", () => serve(response, request.url === "/modern", request.method ?? "", body))
  }).listen(0, "127.0.0.1")
  await new Promise((resolve) => server.on("listening", resolve))
  const origin = `http://127.0.0.1:${Kit.portOf(server)}`
  clock = await StillClock.make()
  gateway = await Kit.start({
    backends: {
      counter: Kit.counter(),
      http: { url: `${origin}/legacy` },
      modern: { url: `${origin}/modern`, era: "modern" },
      gated: {
        command: "sh",
        args: ["-c", `while [ -e ${gate} ]; do sleep 0.02; done; exec "$0" "$@"`, command, ...args],
        stateless: true,
        idleTimeToLive: "10 seconds"
      },
      mute: Kit.counter("--slow-start", join(directory, "mute"))
    },
    requestTimeout: "Infinity",
    startTimeout: "2 minutes"
  }, clock)
})
afterAll(async () => {
  await clock.passUntilSettled("the gateway has stopped", gateway.stop())
  server.closeAllConnections()
  server.close()
  rmSync(directory, { recursive: true })
})

const at = (backend: string) => `${gateway.origin}/mcp/${backend}`

/** Lets seconds pass in the gateway until something has happened; it may take a while to arrive. */
const passUntil = (what: string, happened: () => boolean | Promise<boolean>, seconds = 1) =>
  Kit.eventually(what, async () => {
    if (await happened()) return true
    await clock.pass(`${seconds} seconds`)
    return false
  })

/** The response to a request, whose time has to pass. */
const headerOf = async (request: Promise<Response>, seconds?: number): Promise<Response> => {
  let response: Response | undefined
  void request.then((got) => {
    response = got
  })
  await passUntil("there is a response", () => response !== undefined, seconds)
  return request
}

/** What has come of a response. */
const reading = (response: Response) => {
  const state = { text: "", done: false }
  const decoder = new TextDecoder()
  const read = async () => {
    for await (const chunk of response.body ?? []) state.text += decoder.decode(chunk, { stream: true })
    state.done = true
  }
  void read().catch(() => undefined)
  return state
}

/** The messages in what has come. */
const messagesIn = (text: string) =>
  text.split("\n").flatMap((line) => line.startsWith("data: {") ? [JSON.parse(line.slice(6))] : [])

const message = (method: string, id: unknown = 1) => JSON.stringify({ jsonrpc: "2.0", id, method, params: {} })

/** Sends a request that gets no answer until it is released; `release` gives what its answer must hold. */
interface Silent {
  readonly sent: Promise<Response>
  readonly release: () => Promise<string>
}

const releaseHeld = async () => {
  await Kit.eventually("the server has it", () => held.length > 0)
  for (const { id, response } of held.splice(0)) {
    const text = answer(id, { late: true })
    if (response.headersSent) response.end(`data: ${text}\n\n`)
    else response.writeHead(200, json).end(text)
  }
  return "late"
}

const onProcess = async (body: string, headers: Record<string, string> = {}): Promise<Silent> => {
  const session = await Kit.open(at("counter"))
  const release = async () => {
    await Kit.toolText(at("counter"), session, "speak")
    return "spoken"
  }
  return { sent: Kit.post(at("counter"), session, body, headers), release }
}

const onHttp = async (method: string): Promise<Silent> => ({
  sent: Kit.post(at("http"), await Kit.open(at("http")), message(method)),
  release: releaseHeld
})

const wakes = async (): Promise<Silent> => {
  const session = await Kit.open(at("gated"))
  await passUntil("it sleeps", async () => {
    const { sessions } = await (await fetch(`${gateway.origin}/sessions`)).json()
    return sessions.every(({ backend }: { readonly backend: string }) => backend !== "gated")
  }, 15)
  writeFileSync(gate, "")
  return {
    sent: Kit.post(at("gated"), session, Kit.toolCall(1, "raw")),
    release: async () => {
      rmSync(gate)
      return "raw"
    }
  }
}

const kinds: Record<string, () => Promise<Silent>> = {
  "a call of a process": () => onProcess(Kit.toolCall(1, "silent")),
  "the same in revision 2025-11-25": () =>
    onProcess(Kit.toolCall(1, "silent"), { "mcp-protocol-version": "2025-11-25" }),
  "a batch": () => onProcess(`[${Kit.toolCall(1, "silent")}]`),
  "a call of a session that wakes": wakes,
  "a call of an HTTP back end": () => onHttp("anything"),
  "a call of an HTTP back end that has opened a stream": () => onHttp("stream"),
  "a batch for an HTTP back end": async () => ({
    sent: Kit.post(at("http"), await Kit.open(at("http")), `[${message("anything")}]`),
    release: releaseHeld
  }),
  "a call of a modern back end in a session": async () => ({
    sent: Kit.post(at("modern"), await Kit.open(at("modern")), message("tools/list")),
    release: releaseHeld
  }),
  "a call of a modern client": async () => ({
    sent: send(at("counter"), "tools/call", { name: "silent", arguments: {} }),
    release: async () => {
      await (await send(at("counter"), "tools/call", { name: "speak", arguments: {} })).text()
      return "spoken"
    }
  }),
  "a call of a modern client that is passed through": async () => ({
    sent: send(at("modern"), "tools/call", { name: "any", arguments: {} }),
    release: releaseHeld
  })
}

describe("a request whose answer is long in coming", () => {
  for (const [kind, start] of Object.entries(kinds)) {
    it(`sends something every 15 seconds, so that no proxy gives it up: ${kind}`, async () => {
      const { release, sent } = await start()
      const response = await headerOf(sent)
      assert.deepStrictEqual([response.status, response.headers.get("content-type")], [200, "text/event-stream"])
      const come = reading(response)
      await Kit.eventually("the first bytes", () => come.text !== "")
      for (let i = 0; i < 3; i++) {
        const before = come.text.length
        await clock.pass("15 seconds")
        await Kit.eventually("a heartbeat", () => come.text.length > before)
      }
      assert.deepStrictEqual(messagesIn(come.text), [])
      const expected = await release()
      await Kit.eventually("the stream ends", () => come.done)
      const messages = messagesIn(come.text)
      assert.deepStrictEqual(messages.map(({ id }) => id), [1])
      assert.include(JSON.stringify(messages[0].result), expected)
    })
  }
})

describe("a stream that silence has opened", () => {
  const version = { "mcp-protocol-version": "2025-11-25" }

  it("is resumed from its first event by a client of 2025-11-25 that was cut off, and has the answer", async () => {
    const session = await Kit.open(at("counter"))
    const stop = new AbortController()
    const headers = { ...Kit.headers, ...version, "mcp-session-id": session }
    const sent = fetch(at("counter"), { method: "POST", headers, body: Kit.toolCall(1, "silent"), signal: stop.signal })
    const events: Array<Kit.Event> = []
    await Kit.readEvents(await headerOf(sent), (event) => events.push(event) === 1)
    stop.abort()
    assert.deepStrictEqual(events.map(({ data }) => data), [""])
    const again = { ...version, "last-event-id": events[0]?.id ?? "" }
    // Resumed before the answer, cut off once more, and resumed after it.
    const stopAgain = new AbortController()
    assert.strictEqual((await Kit.listen(at("counter"), session, again, stopAgain.signal)).status, 200)
    stopAgain.abort()
    await Kit.toolText(at("counter"), session, "speak")
    const answered = await Kit.answerOf(await Kit.listen(at("counter"), session, again))
    assert.deepStrictEqual([answered.id, answered.result.content[0].text], [1, "spoken"])
  })

  it("ends with an error when the process dies, and when the session is deleted", async () => {
    for (const [end, reason] of [["crash", "exit code 7"], ["DELETE", "deleted"]] as const) {
      const session = await Kit.open(at("counter"))
      const response = await headerOf(Kit.post(at("counter"), session, Kit.toolCall(1, "silent")))
      if (end === "crash") await (await Kit.post(at("counter"), session, Kit.toolCall(2, "crash"))).text()
      else await fetch(at("counter"), { method: "DELETE", headers: { "mcp-session-id": session } })
      const { error, id } = await Kit.answerOf(response)
      assert.strictEqual(id, 1)
      assert.include(error.message, reason)
    }
  })

  const refusals: Record<string, (response: ServerResponse) => void> = {
    "a JSON-RPC error": (response) =>
      response.writeHead(500, json).end(
        "{\"jsonrpc\":\"2.0\",\"id\":null,\"error\":{\"code\":-32000,\"message\":\"500\"}}"
      ),
    "another text": (response) => response.writeHead(500, { "content-type": "text/html" }).end("<html>no</html>"),
    "no text": (response) => response.writeHead(404).end(),
    "a broken connection": (response) => void response.destroy()
  }
  for (const [what, refuse] of Object.entries(refusals)) {
    it(`ends with an error for its request when the HTTP back end answers late with ${what}`, async () => {
      const silent = [
        async () => Kit.post(at("http"), await Kit.open(at("http")), message("anything", "mine")),
        () => send(at("modern"), "tools/call", { name: "any", arguments: {} }, { id: "mine" })
      ]
      for (const sent of silent) {
        const response = await headerOf(sent())
        await Kit.eventually("the server has it", () => held.length > 0)
        for (const each of held.splice(0)) refuse(each.response)
        const { error, id } = await Kit.answerOf(response)
        assert.strictEqual(id, "mine")
        assert.isString(error.message)
      }
    })
  }

  it("ends with an error when the session does not wake", async () => {
    const { release, sent } = await wakes()
    const response = await headerOf(sent)
    const ended = reading(response)
    await passUntil("its start has timed out", () => ended.done, 15)
    const [{ error, id }] = messagesIn(ended.text)
    assert.strictEqual(id, 1)
    assert.include(error.message, "did not answer initialize")
    await release()
  })

  it("ends with an error when the gateway stops", async () => {
    const { args, command } = Kit.counter()
    const flags = ["--port", "0", "--stream-after", "100 millis", "--drain-timeout", "0 seconds"]
    const stopping = Kit.run([...flags, "--", command, ...args])
    const url = new URL("/mcp", await Kit.urlOf(stopping)).href
    const response = await Kit.post(url, await Kit.open(url), Kit.toolCall(1, "silent"))
    assert.strictEqual(response.headers.get("content-type"), "text/event-stream")
    stopping.child.kill("SIGTERM")
    assert.include((await Kit.answerOf(response)).error.message, "shutting down")
    assert.strictEqual(await stopping.exit, 0)
  })
})

describe("requests that start a back end", () => {
  it("never streams initialize or server/discover early", async () => {
    const starting = [Kit.initialize(at("mute")), send(at("mute"), "server/discover", {})]
    for (const sent of starting) assert.strictEqual((await headerOf(sent, 15)).status, 502)
  })
})
