/** An MCP client on Streamable HTTP that costs as little as possible, so the benchmark measures the gateway. */
import type { IncomingHttpHeaders } from "node:http"
import { Agent, request } from "node:http"
import * as Kit from "../kit/gateway/gateway.ts"

export interface Reply {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  /** The JSON-RPC messages of the answer in order: one, or those of the event stream. */
  readonly messages: ReadonlyArray<string>
  /** From the first byte sent to the last byte received. */
  readonly millis: number
}

export interface Session {
  /** Sends a message of the session. `elsewhere` is the URL of another replica. */
  readonly exchange: (body: string, elsewhere?: string) => Promise<Reply>
  readonly end: () => Promise<void>
  /** How long the answer to `initialize` took. */
  readonly startMillis: number
}

/** Keeps connections open, as many as there are exchanges at once. */
export const connections = () => new Agent({ keepAlive: true })

/** Milliseconds after which a missing answer ends the benchmark. */
const patience = 60_000

const exchange = (agent: Agent, url: string, method: string, session: string | undefined, body: string) =>
  new Promise<Reply>((resolve, reject) => {
    const at = performance.now()
    const own = session === undefined ? {} : { "mcp-session-id": session, "mcp-protocol-version": "2025-06-18" }
    const length = body === "" ? {} : { "content-length": Buffer.byteLength(body) }
    const headers = { ...Kit.headers, ...length, ...own }
    const outgoing = request(url, { method, agent, headers }, (response) => {
      const chunks: Array<Buffer> = []
      response.on("data", (chunk) => chunks.push(chunk)).on("error", reject).on("end", () => {
        const millis = performance.now() - at
        const text = Buffer.concat(chunks).toString("utf8")
        const isStream = response.headers["content-type"]?.startsWith("text/event-stream") === true
        const messages = isStream ? eventData(text) : text === "" ? [] : [text]
        resolve({ status: response.statusCode ?? 0, headers: response.headers, messages, millis })
      })
    })
    outgoing.setTimeout(patience, () => outgoing.destroy(new Error(`no answer to ${body.slice(0, 100)}`)))
    outgoing.on("error", reject).end(body)
  })

const eventData = (text: string): ReadonlyArray<string> =>
  text.split("\n").filter((line) => line.startsWith("data: {")).map((line) => line.slice("data: ".length))

/** Opens a session as every client does. */
export const open = async (agent: Agent, url: string): Promise<Session> => {
  const opened = await exchange(agent, url, "POST", undefined, Kit.initializeBody)
  const id = opened.headers["mcp-session-id"]
  if (opened.status !== 200 || typeof id !== "string") {
    throw new Error(`no session: ${opened.status} ${opened.messages.join()}`)
  }
  await exchange(agent, url, "POST", id, initialized)
  return {
    exchange: (body, elsewhere = url) => exchange(agent, elsewhere, "POST", id, body),
    end: async () => void (await exchange(agent, url, "DELETE", id, "")),
    startMillis: opened.millis
  }
}

const initialized = JSON.stringify({ jsonrpc: "2.0", method: "notifications/initialized" })
