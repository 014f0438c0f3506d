/**
 * Translates between a server of revision 2026-07-28 and a client of an earlier revision: the handshake, the server's questions,
 * and results. Pure functions; `LegacyFace` runs the conversation.
 */
import { randomUUID } from "node:crypto"
import * as Json from "../protocol/Json.ts"
import type * as JsonRpc from "../protocol/JsonRpc.ts"
import * as Modern from "../protocol/Modern.ts"

// ---------------------------------------------------------------------------
// The handshake
// ---------------------------------------------------------------------------

/** The client's info and capabilities, which each request to the server must repeat. */
type Client = Pick<Modern.Client, "info" | "capabilities">

/** Reads the client's info and capabilities from its `initialize`. */
export const clientOf = ({ params }: JsonRpc.Request): Client => {
  const given = Json.objectOf(Json.field(params, "capabilities"))
  return {
    info: { ...unnamed, ...Json.objectOf(Json.field(params, "clientInfo")) },
    // In revision 2026-07-28 tasks are an extension with another form.
    capabilities: { ...given, ...Modern.capabilitiesOf(given), tasks: undefined }
  }
}

/** The revision for the answer to `initialize`: the client's own if it is known, else the newest legacy one. */
export const versionFor = ({ params }: JsonRpc.Request): string => {
  const wanted = Json.field(params, "protocolVersion")
  return Modern.legacyVersions.find((each) => each === wanted) ?? newestLegacy
}

const newestLegacy = "2025-11-25"
const unnamed = { name: "unknown", version: "0" }

/** Whether a result of `server/discover` names revision 2026-07-28. */
export const isSupported = (result: unknown): boolean => {
  const versions = Json.field(result, "supportedVersions")
  return Array.isArray(versions) && versions.includes(Modern.version)
}

/** Makes the result of a client's `initialize` from the result of `server/discover`. */
export const initializeResult = (result: unknown, protocolVersion: string): Json.JsonObject => ({
  protocolVersion,
  capabilities: Json.field(result, "capabilities") ?? {},
  serverInfo: Json.at(result, "_meta", Modern.metaKeys.serverInfo) ?? unnamed,
  instructions: Json.field(result, "instructions")
})

// ---------------------------------------------------------------------------
// Questions
// ---------------------------------------------------------------------------

/** The questions in a result of the type `input_required`. */
export const questionsOf = (result: unknown): ReadonlyArray<Modern.InputRequest> =>
  Object.entries(Json.objectOf(Json.field(result, "inputRequests"))).map(([key, request]) => {
    const method = Json.textOf(Json.field(request, "method"))
    const params = Modern.withoutHop(Json.field(request, "params"))
    const isPage = method === "elicitation/create" && params["mode"] === "url"
    // Earlier revisions need an id for the visit to a URL. The result of the call tells the client that the visit is over.
    return { key, method, params: isPage ? { ...params, elicitationId: randomUUID() } : params }
  })

/** Why the client cannot be asked this question. `undefined` if it can. */
export const unaskable = ({ capabilities }: Client, { method, params }: Modern.InputRequest): string | undefined => {
  if (!Modern.inputMethods.includes(method)) return `the server asked for unknown input: ${JSON.stringify(method)}`
  const missing = Modern.missing(capabilities, method, params)
  return missing === undefined
    ? undefined
    : `the server needs a capability that the client has not declared: ${JSON.stringify(missing)}`
}

// ---------------------------------------------------------------------------
// Results
// ---------------------------------------------------------------------------

/** Removes from a result the members that would confuse a client of an earlier revision. */
export const legacyResult = (method: string, result: unknown): unknown => {
  if (!Json.isObject(result)) return result
  const { _meta, structuredContent, tools } = result
  return {
    ...result,
    resultType: undefined,
    ttlMs: undefined,
    cacheScope: undefined,
    _meta: Json.isObject(_meta) ? Json.unlessEmpty(Modern.withoutHopKeys(_meta)) : _meta,
    // Earlier revisions allow only objects as `structuredContent`, and only schemas of objects as `outputSchema`.
    ...(method === "tools/call" && !Json.isObject(structuredContent) ? { structuredContent: undefined } : {}),
    ...(method === "tools/list" && Array.isArray(tools) ? { tools: tools.map(legacyTool) } : {})
  }
}

const legacyTool = (tool: unknown): unknown => {
  const schema = Json.field(tool, "outputSchema")
  const isOfObjects = schema === undefined || Json.field(schema, "type") === "object"
  return isOfObjects ? tool : { ...Json.objectOf(tool), outputSchema: undefined }
}
