/**
 * The parts of a JSON-RPC message that the gateway reads to route it. The gateway forwards the text of a message unchanged.
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
  // The official SDK uses this number for both errors.
  sessionNotFound: -32001
} as const

/** How deep arrays and objects of a message may nest. Some megabytes of opening brackets cost `JSON.parse` a second and 100 MB. */
const maxDepth = 256

/** Whether a text is nested deeper than the gateway parses. */
export const isTooDeep = (text: string): boolean => JsonText.isDeeper(text, maxDepth)

/** The reason in errors for a text that `isTooDeep`. */
export const tooDeep = `nested deeper than ${maxDepth} levels`

const parseJson = Option.liftThrowable((text: string): unknown => JSON.parse(text))

/** Parses JSON. `None` if the text is not JSON or is too deep. */
export const parse = (text: string): Option.Option<unknown> => isTooDeep(text) ? Option.none() : parseJson(text)

/** Reads one line or body. `undefined` if it is a batch, is no JSON-RPC 2.0 message, or is too deep. */
export const read = (text: string): Message | undefined => {
  const json = parse(text)
  return Option.isSome(json) ? classify(json.value) : undefined
}

/**
 * The error to send instead of an answer that `isTooDeep`. It ends the request now, not at `requestTimeout`. `undefined` for any other
 * text.
 */
export const errorForTooDeep = (text: string): string | undefined => {
  if (!isTooDeep(text)) return undefined
  const members = Option.getOrElse(membersOf(text), () => [])
  const shallow = members.map(([name, value]): JsonText.Member => [name, isTooDeep(`[${value}`) ? "{}" : value])
  const message = read(JsonText.make(shallow))
  return message?._tag === "Response" ? error(message.id, codes.gateway, `The answer is ${tooDeep}`) : undefined
}

/** The members of an object's text; `None` if the text is not JSON. */
const membersOf = Option.liftThrowable(JsonText.members)

/** Reads a parsed value, as `read` does a text. */
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

/** Whether a value is an id. A number beyond a double (`1e400`) is none: the gateway could not distinguish it or answer it. */
const isId = (value: unknown): value is Id => typeof value === "string" || Number.isFinite(value) || value === null

/** A field of a parsed value; `undefined` if the value has no such field. */
export const field = (value: unknown, name: string): unknown =>
  Predicate.hasProperty(value, name) ? value[name] : undefined

const idField = (value: unknown, name: string): Id | undefined => {
  const id = field(value, name)
  return isId(id) ? id : undefined
}

/** The id of the request that a message cancels; `undefined` if it cancels none. */
export const cancelledId = (message: Message): Id | undefined =>
  message._tag === "Notification" && message.method === "notifications/cancelled"
    ? idField(message.params, "requestId")
    : undefined

/** A map key for an id. Ids of different JSON types have different keys: 1 is not "1". */
export const idKey = (id: Id): string => `${typeof id}:${id}`

/** The text of a JSON-RPC error that the gateway itself sends. */
export const error = (id: Id, code: number, message: string, data?: unknown): string =>
  JSON.stringify({ jsonrpc: "2.0", id, error: data === undefined ? { code, message } : { code, message, data } })

/** A message as one line, for stdio. In valid JSON a line end is white space, so a space can replace it. */
export const toLine = (text: string): string => `${text.replace(/[\r\n]/g, " ")}\n`

/** Whether a text is an error response. */
export const isError = (text: string): boolean => {
  const message = read(text)
  return message?._tag === "Response" && message.failed
}
