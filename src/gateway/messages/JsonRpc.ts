/**
 * What the gateway reads of a JSON-RPC message: enough to route it. The message itself is forwarded as it came.
 */
import { Option, Predicate } from "effect"
import * as JsonText from "./JsonText.ts"

/** The id of a request: a string, a number, or (in errors only) null. */
export type Id = string | number | null

export interface Request {
  readonly _tag: "Request"
  readonly id: Id
  readonly method: string
  readonly params: unknown
  readonly progressToken: Id | undefined
}

export interface Notification {
  readonly _tag: "Notification"
  readonly method: string
  readonly params: unknown
  readonly progressToken: Id | undefined
}

export interface Response {
  readonly _tag: "Response"
  readonly id: Id
  readonly failed: boolean
}

export type Message = Request | Notification | Response

/** JSON-RPC 2.0 and MCP error codes that the gateway itself sends. */
export const codes = {
  parseError: -32700,
  invalidRequest: -32600,
  invalidParams: -32602,
  internal: -32603,
  gateway: -32000,
  timeout: -32001,
  // The official SDK has given both this number.
  sessionNotFound: -32001
} as const

/** Levels of arrays and objects in a message. Some megabytes of opening brackets cost `JSON.parse` a second and 100 MB. */
const maxDepth = 256

/** Whether a text is nested deeper than what is parsed. */
export const isTooDeep = (text: string): boolean => JsonText.isDeeper(text, maxDepth)

/** Why a text that `isTooDeep` is refused. */
export const tooDeep = `nested deeper than ${maxDepth} levels`

const parseJson = Option.liftThrowable((text: string): unknown => JSON.parse(text))

/** Parses JSON; `None` if the text is not JSON, or too deep. */
export const parse = (text: string): Option.Option<unknown> => isTooDeep(text) ? Option.none() : parseJson(text)

/** What one line or body says; `undefined` if it is no JSON-RPC 2.0 message (batches included), or too deep. */
export const read = (text: string): Message | undefined => {
  const json = parse(text)
  return Option.isSome(json) ? classify(json.value) : undefined
}

/**
 * The error that stands for an answer that `isTooDeep`, so that its request ends now and not at `requestTimeout`; `undefined` for
 * any other text.
 */
export const errorForTooDeep = (text: string): string | undefined => {
  if (!isTooDeep(text)) return undefined
  const members = Option.getOrElse(membersOf(text), () => [])
  const shallow = members.map(([name, value]): JsonText.Member => [name, isTooDeep(`[${value}`) ? "{}" : value])
  const message = read(JsonText.make(shallow))
  return message?._tag === "Response" ? error(message.id, codes.gateway, `The answer is ${tooDeep}`) : undefined
}

/** Fails for what is no JSON. */
const membersOf = Option.liftThrowable(JsonText.members)

/** The same of what has been parsed. */
export const classify = (json: unknown): Message | undefined => {
  if (!isRecord(json) || json["jsonrpc"] !== "2.0") return undefined
  const { id, method, params } = json
  if (method !== undefined) {
    if (typeof method !== "string") return undefined
    if (id === undefined) {
      return { _tag: "Notification", method, params, progressToken: idField(params, "progressToken") }
    }
    if (!isId(id) || id === null) return undefined
    return { _tag: "Request", id, method, params, progressToken: idField(field(params, "_meta"), "progressToken") }
  }
  if (id === undefined || !isId(id)) return undefined
  return "result" in json || "error" in json ? { _tag: "Response", id, failed: "error" in json } : undefined
}

const isRecord = (json: unknown): json is { readonly [name: string]: unknown } =>
  Predicate.isObject(json) && !Array.isArray(json)

/** A number that no double holds (`1e400`) could be neither told apart nor answered. */
const isId = (value: unknown): value is Id => typeof value === "string" || Number.isFinite(value) || value === null

/** A field of what has been parsed, whatever that is. */
export const field = (value: unknown, name: string): unknown =>
  Predicate.hasProperty(value, name) ? value[name] : undefined

const idField = (value: unknown, name: string): Id | undefined => {
  const id = field(value, name)
  return isId(id) ? id : undefined
}

/** The id of the request that a message cancels, if it does. */
export const cancelledId = (message: Message): Id | undefined =>
  message._tag === "Notification" && message.method === "notifications/cancelled"
    ? idField(message.params, "requestId")
    : undefined

/** Ids of different JSON types differ: 1 is not "1". */
export const idKey = (id: Id): string => `${typeof id}:${id}`

/** A JSON-RPC error of the gateway's own making. */
export const error = (id: Id, code: number, message: string, data?: unknown): string =>
  JSON.stringify({ jsonrpc: "2.0", id, error: data === undefined ? { code, message } : { code, message, data } })

/** On stdio a message is one line. Line ends in valid JSON are white space only, so a space can stand for each. */
export const toLine = (text: string): string => `${text.replace(/[\r\n]/g, " ")}\n`

/** Whether a text is an error response. */
export const isError = (text: string): boolean => {
  const message = read(text)
  return message?._tag === "Response" && message.failed
}
