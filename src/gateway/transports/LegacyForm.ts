/**
 * Translates between a server of revision 2026-07-28 and a client of an earlier revision: the handshake, the server's questions,
 * and results. Pure functions; `LegacyFace` runs the conversation.
 */
import { Option, Predicate } from "effect"
import { randomUUID } from "node:crypto"
import * as JsonRpc from "../protocol/JsonRpc.ts"
import * as JsonText from "../protocol/JsonText.ts"
import * as Modern from "../protocol/Modern.ts"
import type * as Subscriptions from "./Subscriptions.ts"

// ---------------------------------------------------------------------------
// The handshake
// ---------------------------------------------------------------------------

/** The client's info and capabilities, which each request to the server must repeat. */
export interface Client {
  readonly info: string
  /** The JSON of the capabilities, as a server of revision 2026-07-28 reads them. */
  readonly json: string
  readonly capabilities: Modern.Capabilities
}

export const unknownClient: Client = { info: "{}", json: "{}", capabilities: Modern.capabilitiesOf({}, "{}") }

/** Reads the client's info and capabilities from its `initialize`. */
export const clientOf = ({ params }: JsonRpc.Request, line: string): Client => {
  const own = JsonText.member(line, "params") ?? "{}"
  const text = (name: string) => JsonText.isObject(own) ? JsonText.member(own, name) : undefined
  const given = text("capabilities") ?? "{}"
  const capabilities = JsonRpc.field(params, "capabilities")
  // In revision 2026-07-28 tasks are an extension with another form, and there is no notification of changed roots.
  const json = JsonText.isObject(given)
    ? JsonText.edit(given, { tasks: undefined, ...(JsonRpc.field(capabilities, "roots") ? { roots: "{}" } : {}) })
    : "{}"
  return {
    info: text("clientInfo") ?? unnamed,
    json,
    capabilities: Modern.capabilitiesOf(capabilities, json)
  }
}

/** The revision for the answer to `initialize`: the client's own if it is known, else the newest legacy one. */
export const versionFor = ({ params }: JsonRpc.Request): string => {
  const wanted = JsonRpc.field(params, "protocolVersion")
  return Modern.legacyVersions.find((each) => each === wanted) ?? newestLegacy
}

const newestLegacy = "2025-11-25"
const unnamed = "{\"name\":\"unknown\",\"version\":\"0\"}"

/** The capabilities of a server that `LegacyFace` needs. */
export interface Abilities {
  readonly logging: boolean
  readonly subscribe: boolean
  readonly lists: Subscriptions.Filter
}

export const noAbilities: Abilities = { logging: false, subscribe: false, lists: {} }

/** Reads the result of `server/discover`. `undefined` if the server does not speak revision 2026-07-28. */
export const abilitiesOf = (result: string): Abilities | undefined => {
  const json = Option.getOrUndefined(JsonRpc.parse(result))
  const versions = JsonRpc.field(json, "supportedVersions")
  if (!Array.isArray(versions) || !versions.includes(Modern.version)) return undefined
  const can = JsonRpc.field(json, "capabilities")
  const listChanged = (what: string) => JsonRpc.field(JsonRpc.field(can, what), "listChanged") === true
  return {
    logging: Predicate.isObject(JsonRpc.field(can, "logging")),
    subscribe: JsonRpc.field(JsonRpc.field(can, "resources"), "subscribe") === true,
    lists: {
      ...(listChanged("tools") ? { toolsListChanged: true } : {}),
      ...(listChanged("prompts") ? { promptsListChanged: true } : {}),
      ...(listChanged("resources") ? { resourcesListChanged: true } : {})
    }
  }
}

/** Makes the result of a client's `initialize` from the result of `server/discover`. */
export const initializeResult = (result: string, version: string): string => {
  const serverInfo = JsonText.member(JsonText.member(result, "_meta") ?? "{}", Modern.metaKeys.serverInfo)
  const instructions = JsonText.member(result, "instructions")
  return JsonText.make([
    ["protocolVersion", JSON.stringify(version)],
    ["capabilities", JsonText.member(result, "capabilities") ?? "{}"],
    ["serverInfo", serverInfo ?? unnamed],
    ...(instructions === undefined ? [] : [["instructions", instructions] as const])
  ])
}

// ---------------------------------------------------------------------------
// Questions
// ---------------------------------------------------------------------------

/** A question of the server to the client. */
export interface Question {
  readonly key: string
  readonly method: string
  /** The parameters of the question as JSON. */
  readonly params: string
  readonly value: unknown
}

export const questionOf = (key: string, json: string, value: unknown): Question => {
  const method = String(JsonRpc.field(value, "method"))
  const params = Modern.withoutHop(JsonText.isObject(json) ? JsonText.member(json, "params") ?? "{}" : "{}")
  const isPage = method === "elicitation/create" && JsonRpc.field(JsonRpc.field(value, "params"), "mode") === "url"
  return {
    key,
    method,
    // Earlier revisions need an id for the visit to a URL. The client learns of its end by the result of the call.
    params: isPage ? JsonText.edit(params, { elicitationId: JSON.stringify(randomUUID()) }) : params,
    value: JsonRpc.field(value, "params")
  }
}

/** Why the client cannot be asked this question. `undefined` if it can. */
export const unaskable = ({ capabilities }: Client, { method, value }: Question): string | undefined => {
  if (!Modern.inputMethods.includes(method)) return `the server asked for unknown input: ${JSON.stringify(method)}`
  const missing = Modern.missing(capabilities, method, value)
  return missing === undefined
    ? undefined
    : `the server needs a capability that the client has not declared: ${JSON.stringify(missing)}`
}

// ---------------------------------------------------------------------------
// Results
// ---------------------------------------------------------------------------

/** Removes from a result the members that would confuse a client of an earlier revision. */
export const legacyResult = (method: string, result: string): string => {
  if (!JsonText.isObject(result)) return result
  const meta = JsonText.member(result, "_meta") ?? "{}"
  const kept = JsonText.isObject(meta) ? Modern.withoutHopKeys(meta) : meta
  const structured = method === "tools/call" ? JsonText.member(result, "structuredContent") : undefined
  const tools = method === "tools/list" ? JsonText.member(result, "tools") : undefined
  return JsonText.edit(result, {
    resultType: undefined,
    ttlMs: undefined,
    cacheScope: undefined,
    _meta: kept === "{}" ? undefined : kept,
    // Earlier revisions allow only objects as `structuredContent`, and only schemas of objects as `outputSchema`.
    ...(structured === undefined || JsonText.isObject(structured) ? {} : { structuredContent: undefined }),
    ...(tools === undefined || !tools.includes("\"outputSchema\"") ? {} : { tools: legacyTools(tools) })
  })
}

const legacyTools = (tools: string): string => {
  const list = JsonText.elements(tools).map((tool) => {
    const schema = JsonText.isObject(tool) ? JsonText.member(tool, "outputSchema") : undefined
    const isOfObjects = schema === undefined ||
      (JsonText.isObject(schema) && JsonText.member(schema, "type") === "\"object\"")
    return isOfObjects ? tool : JsonText.edit(tool, { outputSchema: undefined })
  })
  return `[${list.join(",")}]`
}
