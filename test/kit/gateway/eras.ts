/** The official clients of both eras, side by side, and servers on Streamable HTTP in processes of their own. */
import { Client as ModernClient, StreamableHTTPClientTransport } from "@modelcontextprotocol/client"
import { Client } from "@modelcontextprotocol/sdk/client/index.js"
import { StreamableHTTPClientTransport as LegacyTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js"
import {
  CreateMessageRequestSchema,
  ElicitRequestSchema,
  ListRootsRequestSchema,
  LoggingMessageNotificationSchema,
  ResourceUpdatedNotificationSchema,
  ToolListChangedNotificationSchema
} from "@modelcontextprotocol/sdk/types.js"
import type { ChildProcess } from "node:child_process"
import { spawn } from "node:child_process"
import * as Kit from "./gateway.ts"

const fixture = (name: string) => new URL(`../../fixtures/${name}`, import.meta.url).pathname

export const modernStdio = (...args: ReadonlyArray<string>) => ({
  command: process.execPath,
  args: [fixture("modern-server.ts"), ...args]
})

export interface HttpServer {
  readonly url: string
  readonly process: ChildProcess
}

/** Starts a fixture that listens on a port, and waits until it does. */
export const startHttp = async (name: string, args: ReadonlyArray<string>, port?: number): Promise<HttpServer> => {
  const own = port ?? await Kit.freePort()
  const url = `http://127.0.0.1:${own}/mcp`
  const child = spawn(process.execPath, [fixture(name), ...args], {
    env: { ...process.env, PORT: String(own) },
    stdio: "ignore"
  })
  await Kit.eventually("the server listens", () => fetch(url).then(() => true, () => false))
  return { url, process: child }
}

/** What a client has heard, and what it was asked. */
export interface Heard {
  readonly asked: Array<string>
  readonly progress: Array<number>
  readonly logs: Array<unknown>
  readonly changes: Array<string>
}

const heardNothing = (): Heard => ({ asked: [], progress: [], logs: [], changes: [] })

const sampled = { model: "none", role: "assistant", content: { type: "text", text: "sampled" } } as const
const roots = { roots: [{ uri: "file:///home", name: "home" }] }

export interface Connected<C> {
  readonly client: C
  readonly heard: Heard
  /** Calls a tool; the text of its result. */
  readonly call: (name: string, args?: Record<string, unknown>, signal?: AbortSignal) => Promise<string>
}

const capabilities = { sampling: {}, elicitation: { form: {}, url: {} }, roots: {} }

const textOf = (result: object): string => {
  const [first] = "content" in result && Array.isArray(result.content) ? result.content : []
  return String(first?.text)
}

/** The official 1.x client. It answers what it is asked; a form with `answer`, nothing if there is none. */
export const legacy = async (
  url: string,
  can: object = capabilities,
  answer = "legacy"
): Promise<Connected<Client>> => {
  const client = new Client({ name: "legacy", version: "1.0.0" }, { capabilities: can })
  const heard = heardNothing()
  if ("elicitation" in can) {
    client.setRequestHandler(ElicitRequestSchema, ({ params }) => {
      heard.asked.push(params.message)
      if (answer === "") throw new Error("nobody is there")
      return { action: "accept", content: { answer } }
    })
  }
  if ("sampling" in can) client.setRequestHandler(CreateMessageRequestSchema, () => sampled)
  if ("roots" in can) client.setRequestHandler(ListRootsRequestSchema, () => roots)
  client.setNotificationHandler(LoggingMessageNotificationSchema, ({ params }) => void heard.logs.push(params.data))
  client.setNotificationHandler(ToolListChangedNotificationSchema, () => void heard.changes.push("tools"))
  client.setNotificationHandler(
    ResourceUpdatedNotificationSchema,
    ({ params }) => void heard.changes.push(params.uri)
  )
  await client.connect(new LegacyTransport(new URL(url)))
  return {
    client,
    heard,
    call: async (name, args = {}, signal) =>
      textOf(
        await client.callTool({ name, arguments: args }, undefined, {
          onprogress: ({ progress }) => void heard.progress.push(progress),
          ...(signal === undefined ? {} : { signal })
        })
      )
  }
}

/** The official 2.x client, pinned to revision 2026-07-28. */
export const modern = async (
  url: string,
  can: object = capabilities,
  answer = "modern"
): Promise<Connected<ModernClient>> => {
  const client = new ModernClient({ name: "modern", version: "1.0.0" }, {
    capabilities: can,
    versionNegotiation: { mode: { pin: "2026-07-28" } }
  })
  const heard = heardNothing()
  if ("elicitation" in can) {
    client.setRequestHandler("elicitation/create", ({ params }) => {
      heard.asked.push(params.message)
      return { action: "accept" as const, content: { answer } }
    })
  }
  if ("sampling" in can) client.setRequestHandler("sampling/createMessage", () => sampled)
  if ("roots" in can) client.setRequestHandler("roots/list", () => roots)
  client.setNotificationHandler("notifications/message", ({ params }) => void heard.logs.push(params.data))
  client.setNotificationHandler("notifications/tools/list_changed", () => void heard.changes.push("tools"))
  client.setNotificationHandler("notifications/resources/updated", ({ params }) => void heard.changes.push(params.uri))
  await client.connect(new StreamableHTTPClientTransport(new URL(url)))
  return {
    client,
    heard,
    call: async (name, args = {}, signal) =>
      textOf(
        await client.callTool({
          name,
          arguments: args,
          _meta: { "io.modelcontextprotocol/logLevel": "debug" }
        }, {
          onprogress: ({ progress }) => void heard.progress.push(progress),
          ...(signal === undefined ? {} : { signal })
        })
      )
  }
}
