/** A client of revision 2026-07-28 without a library. */
import * as Modern from "../../../src/gateway/protocol/Modern.ts"
import * as RequestHeaders from "../../../src/gateway/protocol/RequestHeaders.ts"
import { fixture, headers, node } from "./gateway.ts"
import { messagesIn } from "./serving.ts"

/** A legacy server whose tools ask their client. */
export const asking = (...args: ReadonlyArray<string>) => node("asking-server.ts", ...args)
/** The same in a shell, for many processes. */
export const light = { command: "sh", args: [fixture("asking.sh")] }

export interface Said {
  readonly status: number
  readonly headers: Headers
  /** All messages, in order: one, or those of a stream. */
  readonly messages: ReadonlyArray<Message>
  /** The last of them. */
  readonly last: Message
}

// Any message.
// oxlint-disable-next-line typescript/no-explicit-any
type Message = any

export interface Options {
  readonly id?: string | number
  readonly key?: string
  readonly client?: string
  readonly capabilities?: object
  readonly meta?: object
  readonly headers?: Record<string, string>
  readonly signal?: AbortSignal
}

export const everything = { elicitation: { form: {}, url: {} }, sampling: {}, roots: {} }

export const body = (method: string, params: object, { capabilities = {}, client = "raw", id = 1, meta }: Options) => ({
  jsonrpc: "2.0",
  id,
  method,
  params: {
    ...params,
    _meta: {
      [Modern.metaKeys.protocolVersion]: Modern.version,
      [Modern.metaKeys.clientInfo]: { name: client, version: "1" },
      [Modern.metaKeys.clientCapabilities]: capabilities,
      ...meta
    }
  }
})

export const send = (url: string, method: string, params: object, options: Options = {}): Promise<Response> =>
  fetch(url, {
    method: "POST",
    headers: {
      ...headers,
      ...RequestHeaders.headersOf(method, params),
      ...(options.key === undefined ? {} : { authorization: `Bearer ${options.key}` }),
      ...options.headers
    },
    body: JSON.stringify(body(method, params, options)),
    ...(options.signal === undefined ? {} : { signal: options.signal })
  })

/** Sends a request and reads the whole response. */
export const request = async (url: string, method: string, params: object, options: Options = {}): Promise<Said> => {
  const response = await send(url, method, params, options)
  const text = await response.text()
  const messages: ReadonlyArray<Message> = text.startsWith("{") ? [JSON.parse(text)] : messagesIn(text)
  return { status: response.status, headers: response.headers, messages, last: messages.at(-1) }
}

export const callTool = (url: string, name: string, args: object = {}, options: Options & { again?: object } = {}) =>
  request(url, "tools/call", { name, arguments: args, ...options.again }, options)

/** The text of a tool's result. */
export const textOf = (said: Said): string => said.last.result?.content?.[0]?.text

/** Calls a tool. Returns the text of its result. */
export const toolText = async (url: string, name: string, options: Options = {}): Promise<string> =>
  textOf(await callTool(url, name, {}, options))

/** The same, with texts as answers to forms. "yes" is the answer to a form without a text. */
export const answers = (said: Said, ...texts: ReadonlyArray<string>) =>
  retry(said, (i) => ({ action: "accept", content: { answer: texts[i] ?? "yes" } }))

/** The parameters with which a client retries a call that asked, with its answer to each question. */
export const retry = ({ last: { result } }: Said, answerTo: (question: number) => object) => ({
  requestState: result.requestState,
  inputResponses: Object.fromEntries(Object.keys(result.inputRequests).map((key, i) => [key, answerTo(i)]))
})
