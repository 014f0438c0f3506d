/** JSON-RPC 2.0 messages as values. Each keeps the text that came, so that a message is forwarded unchanged. */
import { Option } from "effect"
import * as Json from "./Json.ts"

/** The id of a request: a string, a number, or (in errors only) null. An object is a number that a double cannot hold (`Json.ts`). */
export type Id = string | number | object | null

interface Call {
  readonly method: string
  readonly params: unknown
  readonly progressToken: Id | undefined
  readonly text: string
}

export interface Request extends Call {
  readonly _tag: "Request"
  readonly id: Id
}

export interface Notification extends Call {
  readonly _tag: "Notification"
}

/** A result, or an error if `failed`. */
export interface Response {
  readonly _tag: "Response"
  readonly id: Id
  readonly failed: boolean
  readonly result: unknown
  readonly error: unknown
  /** True if the transport made it, because the server gave no answer. */
  readonly unanswered?: boolean
  readonly text: string
}

/** A message: `_tag` says which kind. `text` is its JSON. */
export type Message = Request | Notification | Response

/** JSON-RPC 2.0 and MCP error codes that the gateway itself sends. */
export const codes = {
  parseError: -32700,
  invalidRequest: -32600,
  methodNotFound: -32601,
  invalidParams: -32602,
  internal: -32603,
  gateway: -32000,
  timeout: -32001,
  // The official SDK uses this number for both errors.
  sessionNotFound: -32001
} as const

/** Reads one line or body. `undefined` if it is a batch, is no JSON-RPC 2.0 message, or is too deep. */
export const read = (text: string): Message | undefined => {
  const json = Json.parse(text)
  return Option.isSome(json) ? classify(json.value, text) : undefined
}

/** Reads a parsed value. `text` is its JSON, as it came. */
export const classify = (json: unknown, text: string): Message | undefined => {
  if (!Json.isObject(json) || json["jsonrpc"] !== "2.0") return undefined
  const { error, id, method, params, result } = json
  if (method !== undefined) {
    if (typeof method !== "string") return undefined
    if (id === undefined) {
      return { _tag: "Notification", method, params, progressToken: idField(params, "progressToken"), text }
    }
    if (!isId(id) || id === null) return undefined
    const progressToken = idField(Json.field(params, "_meta"), "progressToken")
    return { _tag: "Request", id, method, params, progressToken, text }
  }
  if (id === undefined || !isId(id)) return undefined
  return "result" in json || "error" in json
    ? { _tag: "Response", id, failed: "error" in json, result, error, text }
    : undefined
}

/** Whether a value is an id. A number beyond a double (`1e400`) is none: most servers could not repeat it in their answer. */
const isId = (value: unknown): value is Id =>
  typeof value === "string" || typeof value === "number" || value === null ||
  Json.isRaw(value) && Number.isFinite(Json.numberOf(value))

const idField = (value: unknown, name: string): Id | undefined => {
  const id = Json.field(value, name)
  return isId(id) ? id : undefined
}

/** A map key for an id. A long number counts as the double that servers read. */
export const idKey = (id: Id): IdKey => typeof id === "object" && id !== null ? Json.numberOf(id) : id

export type IdKey = string | number | null

export const isSameId = (a: Id, b: Id): boolean => a === b || (typeof a === "object" && idKey(a) === idKey(b))

/** The id of the request that a message cancels; `undefined` if it cancels none. */
export const cancelledId = (message: Message): Id | undefined =>
  message._tag === "Notification" && message.method === "notifications/cancelled"
    ? idField(message.params, "requestId")
    : undefined

export const request = (id: Id, method: string, params: unknown): Request => ({
  _tag: "Request",
  id,
  method,
  params,
  progressToken: idField(Json.field(params, "_meta"), "progressToken"),
  text: Json.stringify({ jsonrpc: "2.0", id, method, params })
})

export const notification = (method: string, params?: unknown): Notification => ({
  _tag: "Notification",
  method,
  params,
  progressToken: idField(params, "progressToken"),
  text: Json.stringify({ jsonrpc: "2.0", method, params })
})

export const result = (id: Id, result: unknown): Response => {
  const text = Json.stringify({ jsonrpc: "2.0", id, result })
  return { _tag: "Response", id, failed: false, result, error: undefined, text }
}

/** An error with these members. */
export const failure = (id: Id, error: unknown): Response => {
  const text = Json.stringify({ jsonrpc: "2.0", id, error })
  return { _tag: "Response", id, failed: true, result: undefined, error, text }
}

export const error = (id: Id, code: number, message: string, data?: unknown): Response =>
  failure(id, { code, message, data })

/** Asks the other end to cancel a request. */
export const cancellation = (requestId: Id, reason: string): Notification =>
  notification("notifications/cancelled", { requestId, reason })

/** The code of an error. `NaN` if it has none. */
export const codeOf = (error: unknown): number => Json.numberOf(Json.field(error, "code"))

/**
 * The error to send instead of an answer that is nested too deep. It ends the request now, not at `requestTimeout`. `undefined` for any
 * other text.
 */
export const errorForTooDeep = (text: string): Response | undefined => {
  if (!Json.isTooDeep(text)) return undefined
  const message = read(Json.shallow(text))
  return message?._tag === "Response" ? error(message.id, codes.gateway, `The answer is ${Json.tooDeep}`) : undefined
}

/** A message as one line, for stdio. In valid JSON a line end is white space, so a space can replace it. */
export const toLine = ({ text }: Message): string => `${text.replace(/[\r\n]/g, " ")}\n`
