/**
 * The vocabulary of revision 2026-07-28 (basic/index, basic/transports/streamable-http, basic/patterns/mrtr). It is
 * stateless: each request names its client and the client's capabilities. "Modern" and "legacy" are the specification's
 * own names of the eras.
 */
import { Result } from "effect"
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

/** The requests that a client can answer, and the extensions that it supports. */
export interface Capabilities {
  readonly roots: boolean
  readonly sampling: { readonly tools: boolean; readonly context: boolean } | undefined
  readonly elicitation: { readonly form: boolean; readonly url: boolean } | undefined
  readonly extensions: Json.JsonObject | undefined
}

/** A client, as it describes itself. */
export interface Client {
  /** `undefined` if the client does not describe itself. */
  readonly info: Json.JsonObject | undefined
  readonly name: string | undefined
  readonly capabilities: Capabilities
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
  const meta = metaOf(request.params)
  const state = Json.field(request.params, "requestState")
  if (state !== undefined && typeof state !== "string") {
    return Result.fail(invalid("params.requestState must be a string"))
  }
  const responses = Json.field(request.params, "inputResponses")
  if (responses !== undefined && !(Json.isObject(responses) && Object.values(responses).every(Json.isObject))) {
    return Result.fail(invalid("params.inputResponses must be an object of objects"))
  }
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
    requestState: state,
    inputResponses: responses
  })
}

const metaOf = (params: unknown): unknown => Json.field(params, "_meta")

const isInfo = (value: unknown): boolean => typeof Json.field(value, "name") === "string"

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
 * The fault of a request's revision, method or `_meta`. The revision is checked before the rest of `_meta`. A client of a later revision may
 * have another `_meta`, and must learn which revisions are supported.
 */
const faultOf = (request: JsonRpc.Request): Fault | undefined => {
  const meta = metaOf(request.params)
  const requested = Json.field(meta, metaKeys.protocolVersion)
  const unnamed = versionFault(request)
  if (unnamed !== undefined) return unnamed
  if (requested !== version) {
    const message = `Unsupported protocol version; supported: ${supportedVersions.join(", ")}`
    return {
      reason: "invalid",
      code: codes.unsupportedVersion,
      message,
      data: { supported: supportedVersions, requested }
    }
  }
  if (removedMethods.includes(request.method)) {
    const message = `Method not found: revision ${version} has no ${request.method}`
    return { reason: "unknown", code: JsonRpc.codes.methodNotFound, message }
  }
  if (!Json.isObject(Json.field(meta, metaKeys.clientCapabilities))) {
    return invalid(`params._meta: ${metaKeys.clientCapabilities} must be an object`)
  }
  const info = Json.field(meta, metaKeys.clientInfo)
  if (info !== undefined && !isInfo(info)) {
    return invalid(`params._meta: ${metaKeys.clientInfo} must be an object with a name`)
  }
  const level = Json.field(meta, metaKeys.logLevel)
  return level !== undefined && !(typeof level === "string" && logLevels.includes(level))
    ? invalid(`params._meta: ${metaKeys.logLevel} must be one of ${logLevels.join(", ")}`)
    : undefined
}

/** The name and the version of a client, from its `clientInfo`. */
export const nameOf = (info: unknown): string | undefined => {
  const { name, version } = Json.objectOf(info)
  if (typeof name !== "string") return undefined
  return `${name} ${typeof version === "string" ? version : ""}`.trim().slice(0, 100)
}

/** The capabilities that a client declares. */
export const capabilitiesOf = (given: unknown): Capabilities => {
  const { elicitation, extensions, roots, sampling } = Json.objectOf(given)
  const url = Json.field(elicitation, "url") !== undefined
  return {
    roots: Json.isObject(roots),
    sampling: Json.isObject(sampling)
      ? { tools: Json.field(sampling, "tools") !== undefined, context: Json.field(sampling, "context") !== undefined }
      : undefined,
    // Elicitation without a mode means forms (client/elicitation, "Capabilities").
    elicitation: Json.isObject(elicitation)
      ? { form: Json.field(elicitation, "form") !== undefined || !url, url }
      : undefined,
    extensions: Json.isObject(extensions) ? extensions : undefined
  }
}

/** True if a server can ask the client for anything. */
export const canBeAsked = ({ elicitation, roots, sampling }: Capabilities): boolean =>
  roots || sampling !== undefined || elicitation !== undefined

/** The capabilities of a client, for a legacy `initialize`. */
export const legacyCapabilities = ({ elicitation, extensions, roots, sampling }: Capabilities): Json.JsonObject => {
  const modes = (given: Readonly<Record<string, boolean>> | undefined) =>
    given && Object.fromEntries(Object.entries(given).flatMap(([name, has]) => has ? [[name, {}]] : []))
  return { roots: roots ? {} : undefined, sampling: modes(sampling), elicitation: modes(elicitation), extensions }
}

/** The capabilities that a client would need to be asked this, and lacks. In the form of the specification. */
export const missing = (capabilities: Capabilities, method: string, params: unknown): object | undefined => {
  const { elicitation, roots, sampling } = capabilities
  switch (method) {
    case "roots/list":
      return roots ? undefined : { roots: {} }
    case "sampling/createMessage": {
      const tools = Json.field(params, "tools") !== undefined
      if (sampling === undefined || (tools && !sampling.tools)) return { sampling: tools ? { tools: {} } : {} }
      return undefined
    }
    case "elicitation/create": {
      const mode = Json.field(params, "mode") === "url" ? "url" : "form"
      return elicitation?.[mode] === true ? undefined : { elicitation: { [mode]: {} } }
    }
    default:
      return {}
  }
}

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

/**
 * The capabilities of a legacy server in the form of this revision. Without tasks, which are an extension here and have
 * another form.
 */
export const serverCapabilities = (capabilities: unknown): Json.JsonObject => ({
  ...Json.objectOf(capabilities),
  tasks: undefined
})

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
