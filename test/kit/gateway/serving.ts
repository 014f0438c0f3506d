/** Gateways, commands, servers and folders. They end with the test that made them, or else with the file. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import type { IncomingMessage, ServerResponse } from "node:http"
import { createServer, request } from "node:http"
import type { Socket } from "node:net"
import { connect } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, assert, onTestFinished, TestRunner } from "vitest"
import * as Kit from "./gateway.ts"

/** Runs at the end of the test, or else of the file. */
export const atEnd = (end: () => unknown): void => {
  if (TestRunner.getCurrentTest() === undefined) afterAll(async () => void await end())
  else onTestFinished(async () => void await end())
}

/** A gateway, with the URL of its only back end. */
export const gateway = async (...args: Parameters<typeof Kit.start>) => {
  const running = await Kit.start(...args)
  atEnd(running.stop)
  return { ...running, url: `${running.origin}/mcp` }
}

/** The gateway's command with these flags. It serves the counter unless the flags name what it serves. */
export const command = async (flags: ReadonlyArray<string>, environment: Record<string, string> = {}) => {
  const { args, command } = Kit.counter()
  const isComplete = flags.some((flag) => flag === "--" || flag === "--config")
  const run = Kit.run(["--port", "0", ...flags, ...(isComplete ? [] : ["--", command, ...args])], environment)
  atEnd(() => {
    run.child.kill("SIGTERM")
    return run.exit
  })
  const url = await Kit.urlOf(run)
  return { ...run, url, origin: new URL(url).origin, port: Number(new URL(url).port) }
}

// Any message.
// oxlint-disable-next-line typescript/no-explicit-any
type Json = any

/** An HTTP server. `message` is the first JSON-RPC message of the request, `{}` without one. */
export const upstream = async (
  answer: (response: ServerResponse, message: Json, request: IncomingMessage, body: string) => void
) => {
  const server = createServer(async (request, response) => {
    let body = ""
    for await (const chunk of request) body += chunk
    answer(response, [JSON.parse(body || "{}")].flat()[0], request, body)
  }).listen(0, "127.0.0.1")
  await new Promise((resolve) => server.on("listening", resolve))
  atEnd(() => {
    server.closeAllConnections()
    server.close()
  })
  return `http://127.0.0.1:${Kit.portOf(server)}`
}

export const json = { "content-type": "application/json" }

/** Answers `initialize` as a server of a legacy revision. */
export const initialized = (response: ServerResponse, id: unknown): void => {
  const result = { protocolVersion: "2025-06-18", capabilities: {}, serverInfo: { name: "x", version: "1" } }
  response.writeHead(200, { ...json, "mcp-session-id": "s" }).end(JSON.stringify({ jsonrpc: "2.0", id, result }))
}

export const directory = (): string => {
  const path = mkdtempSync(join(tmpdir(), "gateway-"))
  atEnd(() => rmSync(path, { recursive: true }))
  return path
}

/** Writes a text, or a value as JSON, to a file in a directory of its own. Returns its path. */
export const file = (name: string, content: unknown): string => {
  const path = join(directory(), name)
  writeFileSync(path, typeof content === "string" ? content : JSON.stringify(content))
  return path
}

/** The JSON of `/sessions`. */
export const overview = async (origin: string, headers: Record<string, string> = {}): Promise<{
  readonly sessions: ReadonlyArray<Json>
  readonly backends: ReadonlyArray<Json>
  readonly closes: Record<string, number>
  readonly history: ReadonlyArray<Json>
  readonly now: number
}> => (await fetch(`${origin}/sessions`, { headers })).json()

export const remove = (url: string, session: string, headers = {}): Promise<Response> =>
  fetch(url, { method: "DELETE", headers: { "mcp-session-id": session, ...headers } })

/** Sends a request. Unlike `fetch`, accepts any path and any `Host`. Stops reading when the answer includes `words`. */
export const ask = async (
  origin: string,
  path: string,
  headers: Record<string, string> = {},
  method = "POST",
  { body = Kit.initializeBody, words }: { readonly body?: string; readonly words?: string } = {}
) => {
  const { hostname, port } = new URL(origin)
  const options = { hostname, port, path, method, agent: false, setHost: !("host" in headers) }
  const response = await new Promise<IncomingMessage>((resolve, reject) => {
    request({ ...options, headers: { ...Kit.headers, ...headers } }, resolve)
      .on("error", reject)
      .end(method === "POST" ? body : undefined)
  })
  let text = ""
  for await (const chunk of response) {
    text += chunk
    if (words !== undefined && text.includes(words)) break
  }
  return { status: response.statusCode, session: String(response.headers["mcp-session-id"]), text }
}

export const statusOf = async (url: string, session: string, message: string): Promise<number> =>
  (await Kit.post(url, session, message)).status

export const notification = (method: string, params: object = {}): string =>
  JSON.stringify({ jsonrpc: "2.0", method: `notifications/${method}`, params })

/** The messages in the text of an event stream. */
export const messagesIn = (text: string): ReadonlyArray<Json> =>
  text.split("\n").flatMap((line) => line.startsWith("data: {") ? [JSON.parse(line.slice(6))] : [])

export const messagesOf = async (response: Response): Promise<ReadonlyArray<Json>> => messagesIn(await response.text())

/** The first events of a response. Then closes its connection. */
export const firstEvents = async (response: Response, count: number): Promise<ReadonlyArray<Kit.Event>> => {
  const events: Array<Kit.Event> = []
  await Kit.readEvents(response, (event) => events.push(event) === count)
  return events
}

/** Reads a response. `text` is the part that has arrived, and `done` is true after its end. */
export const reading = (response: Response) => {
  const state = { text: "", done: false }
  const decoder = new TextDecoder()
  const read = async () => {
    for await (const chunk of response.body ?? []) state.text += decoder.decode(chunk, { stream: true })
    state.done = true
  }
  void read().catch(() => undefined)
  return state
}

/** Sends a request. The function that it returns aborts it, and fails if it was answered. */
export const leaving = (send: (signal: AbortSignal) => Promise<unknown>): () => Promise<void> => {
  const aborter = new AbortController()
  const ended = send(aborter.signal).then(() => "answered", () => "aborted")
  return async () => {
    aborter.abort()
    assert.strictEqual(await ended, "aborted")
  }
}

/** Sends a request, and reads nothing of its response. Returns when the response has begun. */
export const unread = async (url: string, session: string, method: "GET" | "POST", body = ""): Promise<Socket> => {
  const { host, hostname, pathname, port } = new URL(url)
  const headers = { ...Kit.headers, host, "mcp-session-id": session, "content-length": `${body.length}` }
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}`)
  const socket = connect(Number(port), hostname)
  socket.write([`${method} ${pathname} HTTP/1.1`, ...lines, "", body].join("\r\n"))
  await new Promise((resolve) => socket.once("readable", resolve))
  return socket
}

/** The data of all events of a response. `atFirst` runs when the first one has come. */
export const allEvents = async (response: Response, atFirst: () => void): Promise<ReadonlyArray<string>> => {
  const events: Array<string> = []
  await Kit.readEvents(response, ({ data }) => {
    if (events.push(data) === 1) atFirst()
    return false
  })
  return events
}

/** The text of `/metrics`. */
export const scrape = async (origin: string, headers: Record<string, string> = {}): Promise<string> =>
  (await fetch(`${origin}/metrics`, { headers })).text()
