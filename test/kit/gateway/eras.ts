/** The official clients, and servers in processes of their own. */
import type { ClientOptions } from "@modelcontextprotocol/client"
import { Client as Client2, StreamableHTTPClientTransport } from "@modelcontextprotocol/client"
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
import { createRequire } from "node:module"
import * as Kit from "./gateway.ts"

export const modernStdio = (...args: ReadonlyArray<string>) => Kit.node("modern-server.ts", ...args)

/** A server of `era-server.ts`, which differs from an official server as its arguments say. */
export const odd = (...args: ReadonlyArray<string>) => Kit.node("era-server.ts", ...args)

/** The program of an official server. */
export const official = (name: string): string =>
  createRequire(import.meta.url).resolve(`@modelcontextprotocol/server-${name}/dist/index.js`)

export const officialStdio = (name: string, ...args: ReadonlyArray<string>) => Kit.node(official(name), ...args)

export interface HttpServer {
  readonly url: string
  readonly process: ChildProcess
}

/** Starts a program, or a fixture by its name, that listens on a port. Waits until it does. */
export const startHttp = async (program: string, args: ReadonlyArray<string>, port?: number): Promise<HttpServer> => {
  const own = port ?? await Kit.freePort()
  const url = `http://127.0.0.1:${own}/mcp`
  const child = spawn(process.execPath, [Kit.fixture(program), ...args], {
    env: { ...process.env, PORT: String(own) },
    stdio: "ignore"
  })
  await Kit.eventually("the server listens", () => fetch(url).then(() => true, () => false))
  return { url, process: child }
}

/** Everything that a client has received. */
export interface Heard {
  readonly asked: Array<string>
  readonly progress: Array<number>
  readonly logs: Array<unknown>
  readonly changes: Array<string>
  /** The errors that the client passed to its `onerror`. */
  readonly errors: Array<unknown>
}

const sampled = { model: "none", role: "assistant", content: { type: "text", text: "sampled" } } as const
const roots = { roots: [{ uri: "file:///home", name: "home" }] }

/** Records what a client receives. `elicit` answers a form with `answer`, and fails if that is empty. */
const attend = (client: object, answer: string) => {
  const heard: Heard = { asked: [], progress: [], logs: [], changes: [], errors: [] }
  Object.assign(client, { onerror: (error: unknown) => heard.errors.push(error) })
  return {
    heard,
    elicit: ({ params }: { readonly params: { readonly message: string } }) => {
      heard.asked.push(params.message)
      if (answer === "") throw new Error("there is no answer")
      return { action: "accept" as const, content: { answer } }
    },
    onprogress: ({ progress }: { readonly progress: number }) => void heard.progress.push(progress),
    onLog: ({ params }: { readonly params: { readonly data: unknown } }) => void heard.logs.push(params.data),
    onTools: () => void heard.changes.push("tools"),
    onResource: ({ params }: { readonly params: { readonly uri: string } }) => void heard.changes.push(params.uri)
  }
}

export interface Connected<C> {
  readonly client: C
  readonly heard: Heard
  /** Calls a tool. Returns the text of its result. */
  readonly call: (name: string, args?: Record<string, unknown>, signal?: AbortSignal) => Promise<string>
}

const capabilities = { sampling: {}, elicitation: { form: {}, url: {} }, roots: {} }

const textOf = (result: object): string => {
  const [first] = "content" in result && Array.isArray(result.content) ? result.content : []
  return String(first?.text)
}

export type AnyClient = Client | Client2

const never = new AbortController().signal

/** The official 1.x client. It answers questions: a form with `answer`, or with an error if that is empty. */
export const legacy = async (
  url: string,
  can: object = capabilities,
  answer = "legacy"
): Promise<Connected<Client>> => {
  const client = new Client({ name: "legacy", version: "1.0.0" }, { capabilities: can })
  const { elicit, heard, onLog, onprogress, onResource, onTools } = attend(client, answer)
  if ("elicitation" in can) client.setRequestHandler(ElicitRequestSchema, elicit)
  if ("sampling" in can) client.setRequestHandler(CreateMessageRequestSchema, () => sampled)
  if ("roots" in can) client.setRequestHandler(ListRootsRequestSchema, () => roots)
  client.setNotificationHandler(LoggingMessageNotificationSchema, onLog)
  client.setNotificationHandler(ToolListChangedNotificationSchema, onTools)
  client.setNotificationHandler(ResourceUpdatedNotificationSchema, onResource)
  await client.connect(new LegacyTransport(new URL(url)))
  const call: Connected<Client>["call"] = async (name, args = {}, signal = never) =>
    textOf(await client.callTool({ name, arguments: args }, undefined, { onprogress, signal }))
  return { client, heard, call }
}

/** The official 2.x client, by default pinned to revision 2026-07-28. */
export const modern = async (
  url: string,
  can: object = capabilities,
  answer = "modern",
  options: ClientOptions = { versionNegotiation: { mode: { pin: "2026-07-28" } } }
): Promise<Connected<Client2>> => {
  const client = new Client2({ name: "modern", version: "1.0.0" }, { ...options, capabilities: can })
  const { elicit, heard, onLog, onprogress, onResource, onTools } = attend(client, answer)
  if ("elicitation" in can) client.setRequestHandler("elicitation/create", elicit)
  if ("sampling" in can) client.setRequestHandler("sampling/createMessage", () => sampled)
  if ("roots" in can) client.setRequestHandler("roots/list", () => roots)
  client.setNotificationHandler("notifications/message", onLog)
  client.setNotificationHandler("notifications/tools/list_changed", onTools)
  client.setNotificationHandler("notifications/resources/updated", onResource)
  await client.connect(new StreamableHTTPClientTransport(new URL(url)))
  const _meta = { "io.modelcontextprotocol/logLevel": "debug" }
  const call: Connected<Client2>["call"] = async (name, args = {}, signal = never) =>
    textOf(await client.callTool({ name, arguments: args, _meta }, { onprogress, signal }))
  return { client, heard, call }
}

/** The official 2.x client in its legacy mode, in which it opens a session. */
export const legacy2 = (url: string, can?: object): Promise<Connected<Client2>> => modern(url, can, "modern", {})
