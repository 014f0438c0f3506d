/** Requests with a late answer: heartbeats keep the connections of clients and proxies open. */
import { rmSync, writeFileSync } from "node:fs"
import type { ServerResponse } from "node:http"
import { join } from "node:path"
import { assert, describe, it } from "vitest"
import * as Kit from "../kit/gateway/gateway.ts"
import { send } from "../kit/gateway/modern.ts"
import { event, json, stream } from "../kit/gateway/scripted.ts"
import * as Serve from "../kit/gateway/serving.ts"
import * as StillClock from "../kit/gateway/stillClock.ts"

const directory = Serve.directory()
/** While this file exists, the processes of `gated` do not start. */
const gate = join(directory, "gate")
/** The requests that the HTTP servers have not answered. */
const held: Array<{ readonly id: unknown; readonly response: ServerResponse }> = []
const discovered = {
  resultType: "complete",
  supportedVersions: ["2026-07-28"],
  capabilities: { tools: {} },
  ttlMs: 0,
  cacheScope: "private"
}

/** A server on Streamable HTTP: at `/modern` of revision 2026-07-28, else of an earlier one. */
const upstream = await Serve.upstream((response, { id, method }, request) => {
  if (method === "initialize" && request.url !== "/modern") return Serve.initialized(response, id)
  if (method === "server/discover") return json(response, { id, result: discovered })
  if (request.method !== "POST") return response.writeHead(request.method === "GET" ? 405 : 204).end()
  if (method !== undefined && id === undefined) return response.writeHead(202).end()
  if (method === "stream") stream(response).flushHeaders()
  held.push({ id, response })
})
const clock = await StillClock.make()
const { args, command } = Kit.counter()
const { origin } = await Serve.gateway({
  backends: {
    counter: Kit.counter(),
    http: { url: `${upstream}/legacy` },
    modern: { url: `${upstream}/modern`, era: "modern" },
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
const at = (backend: string) => `${origin}/mcp/${backend}`

/** Passes time until a request has a response. */
const headerOf = (sent: Promise<Response>, step: `${number} seconds` = "1 seconds") =>
  clock.passUntilSettled("there is a response", sent, step)

/** Answers the requests that the HTTP servers hold. */
const respond = async (answerTo: (response: ServerResponse, id: unknown) => void) => {
  await Kit.eventually("the server has it", () => held.length > 0)
  for (const { id, response } of held.splice(0)) answerTo(response, id)
}

/** A request without an answer until `release`, which returns a text that the answer must include. */
interface Silent {
  readonly sent: Promise<Response>
  readonly release: () => Promise<string> | string
}

const releaseHeld = async () => {
  await respond((response, id) => {
    const message = { id, result: { late: true } }
    if (response.headersSent) response.end(event(message))
    else json(response, message)
  })
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

const onHttp = async (backend: string, body: string): Promise<Silent> => ({
  sent: Kit.post(at(backend), await Kit.open(at(backend)), body),
  release: releaseHeld
})

const wakes = async (): Promise<Silent> => {
  const session = await Kit.open(at("gated"))
  await clock.passUntil("it sleeps", async () => {
    const { sessions } = await Serve.overview(origin)
    return sessions.every(({ backend }) => backend !== "gated")
  }, "15 seconds")
  writeFileSync(gate, "")
  const release = () => {
    rmSync(gate)
    return "raw"
  }
  return { sent: Kit.post(at("gated"), session, Kit.toolCall(1, "raw")), release }
}

const message = (method: string, id: unknown = 1) => JSON.stringify({ jsonrpc: "2.0", id, method, params: {} })
const ofModernClient = (backend: string, tool: string, id = 1) =>
  send(at(backend), "tools/call", { name: tool, arguments: {} }, { id })
const silent = Kit.toolCall(1, "silent")
const newest = { "mcp-protocol-version": "2025-11-25" }

const kinds: Record<string, () => Promise<Silent>> = {
  "a call of a process": () => onProcess(silent),
  "a call of a process in revision 2025-11-25": () => onProcess(silent, newest),
  "a batch": () => onProcess(`[${silent}]`),
  "a call of a session that wakes": wakes,
  "a call of an HTTP back end": () => onHttp("http", message("anything")),
  "a call of an HTTP back end that has opened a stream": () => onHttp("http", message("stream")),
  "a batch for an HTTP back end": () => onHttp("http", `[${message("anything")}]`),
  "a call of a modern back end in a session": () => onHttp("modern", message("tools/list")),
  "a call of a modern client": async () => ({
    sent: ofModernClient("counter", "silent"),
    release: async () => {
      await (await ofModernClient("counter", "speak")).text()
      return "spoken"
    }
  }),
  "a call of a modern client that is passed through": async () => ({
    sent: ofModernClient("modern", "any"),
    release: releaseHeld
  })
}

describe("a request with a late answer", () => {
  for (const [kind, start] of Object.entries(kinds)) {
    it(`has a heartbeat every 15 seconds: ${kind}`, async () => {
      const { release, sent } = await start()
      const response = await headerOf(sent)
      assert.deepStrictEqual([response.status, response.headers.get("content-type")], [200, "text/event-stream"])
      const come = Serve.reading(response)
      await Kit.eventually("the first bytes", () => come.text !== "")
      for (let i = 0; i < 3; i++) {
        const before = come.text.length
        await clock.pass("15 seconds")
        await Kit.eventually("a heartbeat", () => come.text.length > before)
      }
      assert.deepStrictEqual(Serve.messagesIn(come.text), [])
      const expected = await release()
      await Kit.eventually("the stream ends", () => come.done)
      const messages = Serve.messagesIn(come.text)
      assert.deepStrictEqual(messages.map(({ id }) => id), [1])
      assert.include(JSON.stringify(messages[0].result), expected)
    })
  }

  it("gets no early stream if it is initialize or server/discover", async () => {
    const starting = [Kit.initialize(at("mute")), send(at("mute"), "server/discover", {})]
    for (const sent of starting) assert.strictEqual((await headerOf(sent, "15 seconds")).status, 502)
  })
})

describe("a stream opened after streamAfter", () => {
  const url = at("counter")

  it("can be resumed from its first event by a client of 2025-11-25, and then has the answer", async () => {
    const session = await Kit.open(url)
    const response = await headerOf(Kit.post(url, session, silent, newest))
    const [first] = await Serve.firstEvents(response, 1)
    assert.strictEqual(first?.data, "")
    const again = { ...newest, "last-event-id": first?.id ?? "" }
    // Resumed before the answer, cut off once more, and resumed after it.
    const resumed = await Kit.listen(url, session, again)
    assert.strictEqual(resumed.status, 200)
    await resumed.body?.cancel()
    await Kit.toolText(url, session, "speak")
    const { id, result } = await Kit.answerOf(await Kit.listen(url, session, again))
    assert.deepStrictEqual([id, result.content[0].text], [1, "spoken"])
  })

  it("ends with an error when the process dies or the session is deleted", async () => {
    const ends = {
      "exit code 7": async (session: string) => (await Kit.post(url, session, Kit.toolCall(2, "crash"))).text(),
      "deleted": (session: string) => Serve.remove(url, session)
    }
    for (const [reason, end] of Object.entries(ends)) {
      const session = await Kit.open(url)
      const response = await headerOf(Kit.post(url, session, silent))
      await end(session)
      const { error, id } = await Kit.answerOf(response)
      assert.strictEqual(id, 1)
      assert.include(error.message, reason)
    }
  })

  const jsonRpc = { jsonrpc: "2.0", id: null, error: { code: -32000, message: "500" } }
  const refusals: Record<string, (response: ServerResponse) => unknown> = {
    "a JSON-RPC error": (response) => response.writeHead(500, Serve.json).end(JSON.stringify(jsonRpc)),
    "another text": (response) => response.writeHead(500, { "content-type": "text/html" }).end("<html>no</html>"),
    "no text": (response) => response.writeHead(404).end(),
    "a broken connection": (response) => response.destroy()
  }
  for (const [what, refuse] of Object.entries(refusals)) {
    it(`ends with an error when the HTTP back end answers late with ${what}`, async () => {
      const ofLegacyClient = async () => Kit.post(at("http"), await Kit.open(at("http")), message("anything", 9))
      for (const sent of [ofLegacyClient, () => ofModernClient("modern", "any", 9)]) {
        const response = await headerOf(sent())
        await respond(refuse)
        const { error, id } = await Kit.answerOf(response)
        assert.strictEqual(id, 9)
        assert.isString(error.message)
      }
    })
  }

  it("ends with an error when the session does not wake", async () => {
    const { release, sent } = await wakes()
    const come = Serve.reading(await headerOf(sent))
    await clock.passUntil("its start has timed out", () => come.done, "15 seconds")
    const [{ error, id }] = Serve.messagesIn(come.text)
    assert.strictEqual(id, 1)
    assert.include(error.message, "did not answer initialize")
    await release()
  })

  it("ends with an error when the gateway stops", async () => {
    const { stop, url } = await Serve.gateway({ backends: { counter: Kit.counter() }, streamAfter: "100 millis" })
    const response = await Kit.post(url, await Kit.open(url), silent)
    assert.strictEqual(response.headers.get("content-type"), "text/event-stream")
    const stopping = stop()
    assert.include((await Kit.answerOf(response)).error.message, "shutting down")
    await stopping
  })
})
