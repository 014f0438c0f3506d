/**
 * The vocabulary of revision 2026-07-28 (basic/index, basic/transports/streamable-http, basic/patterns/mrtr). It is
 * stateless: each request names its client and the client's capabilities. "Modern" and "legacy" are the specification's
 * own names of the eras.
 */
import { Predicate, Result } from "effect"
import * as Json from "./Json.ts"
import * as JsonRpc from "./JsonRpc.ts"

export const version = "2026-07-28"
export const supportedVersions = [version]
/** The earlier revisions, the newest last. */
export const legacyVersions = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"]

/** The keys of `_meta` that concern one hop. Each end of a hop sets its own. */
export const metaKeys = {
  protocolVersion: "io.modelcontextprotocol/protocolVersion",
  clientInfo: "io.modelcontextprotocol/clientInfo",
  clientCapabilities: "io.modelcontextprotocol/clientCapabilities",
  logLevel: "io.modelcontextprotocol/logLevel",
  subscriptionId: "io.modelcontextprotocol/subscriptionId",
  serverInfo: "io.modelcontextprotocol/serverInfo"
} as const

export const codes = {
  headerMismatch: -32020,
  missingCapability: -32021,
  unsupportedVersion: -32022
} as const

/** Levels of log messages, the least severe first (RFC 5424, section 6.2.1). */
export const logLevels = ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"]

/** A client, as it describes itself. */
export interface Client {
  /** `undefined` if the client does not describe itself. */
  readonly info: Json.JsonObject | undefined
  readonly name: string | undefined
  /** See `capabilitiesOf`. */
  readonly capabilities: Json.JsonObject
}

/** A request of this revision that has been checked. */
export interface Call {
  readonly request: JsonRpc.Request
  readonly client: Client
  /** The least severe level that the client wants. `undefined` if it wants no log messages. */
  readonly logLevel: string | undefined
  readonly requestState: string | undefined
  /** The client's answers, by key. `undefined` if the request has none. */
  readonly inputResponses: Json.JsonObject | undefined
}

/** A question of a server for a call's client. */
export interface InputRequest {
  readonly key: string
  readonly method: string
  readonly params: Json.JsonObject
}

/** Why a request is refused. */
export interface Fault {
  readonly reason: "invalid" | "unknown"
  readonly code: number
  readonly message: string
  readonly data?: unknown
}

export type Headers = Readonly<Record<string, string | undefined>>

/** True if a message is of this era. Its content decides; if that does not say, its header does. */
export const isModern = (message: JsonRpc.Message, headers: Headers): boolean => {
  if (message._tag === "Response") return false
  if (Json.field(metaOf(message.params), metaKeys.protocolVersion) !== undefined) return true
  if (message._tag === "Request" && message.method === "initialize") return false
  return headers["mcp-protocol-version"] === version ||
    (message._tag === "Request" && (message.method === "server/discover" || message.method === "subscriptions/listen"))
}

/** Checks a request. */
export const read = (request: JsonRpc.Request): Result.Result<Call, Fault> => {
  const fault = faultOf(request)
  if (fault !== undefined) return Result.fail(fault)
  const { inputResponses, requestState } = Json.objectOf(request.params)
  const meta = metaOf(request.params)
  const info = Json.field(meta, metaKeys.clientInfo)
  const level = Json.field(meta, metaKeys.logLevel)
  return Result.succeed({
    request,
    client: {
      info: Json.isObject(info) ? info : undefined,
      name: nameOf(info),
      capabilities: capabilitiesOf(Json.field(meta, metaKeys.clientCapabilities))
    },
    logLevel: typeof level === "string" ? level : undefined,
    requestState: typeof requestState === "string" ? requestState : undefined,
    inputResponses: Json.isObject(inputResponses) ? inputResponses : undefined
  })
}

const metaOf = (params: unknown): unknown => Json.field(params, "_meta")

const invalid = (message: string): Fault => ({
  reason: "invalid",
  code: JsonRpc.codes.invalidParams,
  message: `Invalid params: ${message}`
})

/** The fault of a request that does not name its revision. */
export const versionFault = ({ params }: JsonRpc.Request): Fault | undefined =>
  typeof Json.field(metaOf(params), metaKeys.protocolVersion) === "string"
    ? undefined
    : invalid(`params._meta: ${metaKeys.protocolVersion} must be a string, such as "${version}"`)

/**
 * The fault of a request. The revision is checked first. A client of a later revision may have another `_meta`, and must learn which
 * revisions are supported.
 */
const faultOf = (request: JsonRpc.Request): Fault | undefined => {
  const { method, params } = request
  const unnamed = versionFault(request)
  if (unnamed !== undefined) return unnamed
  const requested = Json.field(metaOf(params), metaKeys.protocolVersion)
  if (requested !== version) {
    const message = `Unsupported protocol version; supported: ${supportedVersions.join(", ")}`
    const data = { supported: supportedVersions, requested }
    return { reason: "invalid", code: codes.unsupportedVersion, message, data }
  }
  if (removedMethods.includes(method)) {
    const message = `Method not found: revision ${version} has no ${method}`
    return { reason: "unknown", code: JsonRpc.codes.methodNotFound, message }
  }
  const wrong = members.find(({ isValid, path }) => !isValid(Json.at(params, ...path)))
  return wrong && invalid(`params.${wrong.path.join(": ")} must be ${wrong.allowed}`)
}

const isInfo = (value: unknown): boolean => typeof Json.field(value, "name") === "string"

const areObjects = (value: unknown): boolean => Json.isObject(value) && Object.values(value).every(Json.isObject)

const optional = (isValid: (value: unknown) => boolean) => (value: unknown) => value === undefined || isValid(value)

/** The members of a request's parameters that are checked. */
const members = [
  { path: ["_meta", metaKeys.clientCapabilities], isValid: Json.isObject, allowed: "an object" },
  { path: ["_meta", metaKeys.clientInfo], isValid: optional(isInfo), allowed: "an object with a name" },
  {
    path: ["_meta", metaKeys.logLevel],
    isValid: optional((level) => logLevels.some((each) => each === level)),
    allowed: `one of ${logLevels.join(", ")}`
  },
  { path: ["requestState"], isValid: optional(Predicate.isString), allowed: "a string" },
  { path: ["inputResponses"], isValid: optional(areObjects), allowed: "an object of objects" }
]

/** The name and the version of a client, from its `clientInfo`. */
export const nameOf = (info: unknown): string | undefined => {
  const { name, version } = Json.objectOf(info)
  if (typeof name !== "string") return undefined
  return `${name} ${typeof version === "string" ? version : ""}`.trim().slice(0, 100)
}

/** The declared capabilities that matter to servers: the questions that the client can answer, and its extensions. */
export const capabilitiesOf = (given: unknown): Json.JsonObject => {
  const { elicitation, extensions, roots, sampling } = Json.objectOf(given)
  const ifObject = (value: unknown) => Json.isObject(value) ? value : undefined
  // Elicitation without a mode means forms (client/elicitation, "Capabilities").
  const forms = Json.field(elicitation, "url") === undefined ? { form: {} } : {}
  return {
    // The gateway passes on no notification of changed roots.
    roots: ifObject(roots) && {},
    sampling: ifObject(sampling),
    elicitation: ifObject(elicitation) && { ...forms, ...Json.objectOf(elicitation) },
    extensions: ifObject(extensions)
  }
}

/** True if a server can ask the client for anything. */
export const canBeAsked = ({ elicitation, roots, sampling }: Json.JsonObject): boolean =>
  [elicitation, roots, sampling].some(Predicate.isNotUndefined)

/** The capabilities that a client would need to be asked this, and lacks. In the form of the specification. */
export const missing = (
  capabilities: Json.JsonObject,
  method: string,
  params: unknown
): Json.JsonObject | undefined => {
  const needed = neededFor(method, params)
  return covers(capabilities, needed) ? undefined : needed
}

const neededFor = (method: string, params: unknown): Json.JsonObject => {
  switch (method) {
    case "roots/list":
      return { roots: {} }
    case "sampling/createMessage":
      return { sampling: Json.field(params, "tools") === undefined ? {} : { tools: {} } }
    default:
      return { elicitation: Json.field(params, "mode") === "url" ? { url: {} } : { form: {} } }
  }
}

/** True if a value has all members of another, and their members. */
const covers = (value: unknown, needed: Json.JsonObject): boolean =>
  Object.entries(needed).every(([name, inner]) => {
    const has = Json.field(value, name)
    return has !== undefined && covers(has, Json.objectOf(inner))
  })

/** The requests of a server that the gateway passes to the client as input requests. */
export const inputMethods: ReadonlyArray<string> = ["elicitation/create", "sampling/createMessage", "roots/list"]

/** The requests of a client that may be answered with `input_required`. */
export const mayRequireInput: ReadonlyArray<string> = ["tools/call", "prompts/get", "resources/read"]

/** The methods of earlier revisions that this one has removed. */
export const removedMethods: ReadonlyArray<string> = [
  "initialize",
  "ping",
  "logging/setLevel",
  "resources/subscribe",
  "resources/unsubscribe",
  "tasks/list",
  "tasks/result"
]

const cacheable = [
  "server/discover",
  "tools/list",
  "prompts/list",
  "resources/list",
  "resources/templates/list",
  "resources/read"
]

/**
 * The result of a legacy server, with the members that this revision adds. A legacy server does not say how long a list
 * is valid, so the list is stale at once. It may differ between callers, so it is private.
 */
export const completed = (method: string, result: Json.JsonObject, serverInfo: unknown): Json.JsonObject => ({
  resultType: "complete",
  ...(cacheable.includes(method) ? { ttlMs: 0, cacheScope: "private" } : {}),
  ...result,
  ...(serverInfo !== undefined && (result["_meta"] === undefined || Json.isObject(result["_meta"]))
    ? { _meta: { ...Json.objectOf(result["_meta"]), [metaKeys.serverInfo]: serverInfo } }
    : {})
})

/**
 * The error of a legacy server. Codes that this revision has removed or reserves become codes that it defines
 * (basic/index, "Error Codes").
 */
export const mappedError = (error: unknown): unknown => {
  const code = JsonRpc.codeOf(error)
  if (code === resourceNotFound) return { ...Json.objectOf(error), code: JsonRpc.codes.invalidParams }
  if (!(code >= firstReserved && code <= lastReserved)) return error
  return { ...Json.objectOf(error), code: JsonRpc.codes.internal, data: { code } }
}

const resourceNotFound = -32002
const lastReserved = -32020
const firstReserved = -32099

/** The code of the error with which a server of 2025-11-25 first sends a client to a web page. */
export const urlElicitationRequired = -32042

/** The parameters of a subscription's notification, with the subscription's id, as its client knows it. */
export const tagged = (params: unknown, id: JsonRpc.Id): Json.JsonObject => ({
  ...Json.objectOf(params),
  _meta: { ...Json.objectOf(Json.field(params, "_meta")), [metaKeys.subscriptionId]: id }
})

/** `_meta` without the keys that concern one hop. */
export const withoutHopKeys = (meta: unknown): Json.JsonObject =>
  Object.fromEntries(Object.entries(Json.objectOf(meta)).filter(([name]) => !hopKeys.includes(name)))

const hopKeys: ReadonlyArray<string> = Object.values(metaKeys)

/** The parameters of a server's request, without the parts that concern its own hop. */
export const withoutHop = (params: unknown): Json.JsonObject => ({
  ...Json.objectOf(params),
  _meta: Json.unlessEmpty({ ...withoutHopKeys(Json.field(params, "_meta")), progressToken: undefined }),
  task: undefined
})

/** The `_meta` of the gateway's own requests. */
export const ownMeta = (client: unknown, capabilities: unknown): Json.JsonObject => ({
  [metaKeys.protocolVersion]: version,
  [metaKeys.clientInfo]: client,
  [metaKeys.clientCapabilities]: capabilities
})

/** True if an answer to `server/discover` is that of a modern server. */
export const speaksModern = ({ error, result }: JsonRpc.Response): boolean => {
  const code = JsonRpc.codeOf(error)
  return Array.isArray(Json.field(result, "supportedVersions")) || code === codes.unsupportedVersion ||
    code === codes.missingCapability || code === codes.headerMismatch
}
