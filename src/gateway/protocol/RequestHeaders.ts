/**
 * The headers of Streamable HTTP in revision 2026-07-28. They repeat parts of a request, so that intermediaries can route by them. A server
 * that reads the body has to check that they agree with it (basic/transports/streamable-http).
 *
 * Tools may name arguments that are repeated, too ("Custom Headers from Tool Parameters").
 */
import { Option, Result } from "effect"
import * as Json from "./Json.ts"
import type * as JsonRpc from "./JsonRpc.ts"
import * as Modern from "./Modern.ts"

/** An argument and the header that repeats it. */
interface Declaration {
  readonly path: ReadonlyArray<string>
  readonly header: string
}

/** The declarations of a back end's tools, by name, from the newest lists that the gateway saw. */
export type ParamHeaders = Map<string, ReadonlyArray<Declaration>>

/** More tools than this are not remembered. */
const maxTools = 10_000
const maxDepth = 100
const keyword = "x-mcp-header"

/**
 * Records the declarations of the tools in an answer to `tools/list`. Most servers declare nothing, which a text search
 * finds out at once.
 */
export const note = (known: ParamHeaders, { result, text }: JsonRpc.Response): void => {
  if (known.size === 0 && !text.includes(keyword)) return
  const tools = Json.field(result, "tools")
  for (const tool of Array.isArray(tools) ? tools : []) {
    const name = Json.field(tool, "name")
    if (typeof name !== "string") continue
    const declarations = [...declared(Json.field(tool, "inputSchema"), [])]
    if (declarations.length === 0) known.delete(name)
    else if (known.size < maxTools) known.set(name, declarations)
  }
}

/** The declarations in a schema. Only those that are reached by `properties` count. */
function* declared(schema: unknown, path: ReadonlyArray<string>): Generator<Declaration> {
  if (path.length > maxDepth) return
  for (const [name, each] of Object.entries(Json.objectOf(Json.field(schema, "properties")))) {
    const header = Json.field(each, keyword)
    if (typeof header === "string" && /^[\w!#$%&'*+.^`|~-]+$/.test(header)) yield { path: [...path, name], header }
    yield* declared(each, [...path, name])
  }
}

/** The headers that repeat arguments of a call, with the arguments' values. */
const paramsOf = (method: string, params: unknown, known: ParamHeaders): ReadonlyArray<readonly [string, unknown]> =>
  method === "tools/call" && known.size > 0
    ? (known.get(Json.textOf(Json.field(params, "name"))) ?? []).map(({ header, path }) => [
      `Mcp-Param-${header}`,
      Json.at(params, "arguments", ...path)
    ])
    : []

/** The parameter that the header `Mcp-Name` repeats, by method. */
const named: Readonly<Record<string, string>> = { "tools/call": "name", "prompts/get": "name", "resources/read": "uri" }

const nameOf = (method: string, params: unknown): unknown =>
  Object.hasOwn(named, method) ? Json.field(params, named[method] ?? "") : undefined

/** The fault of the first header that differs from the body, if there is one. */
export const fault = (
  request: JsonRpc.Request,
  headers: Modern.Headers,
  known: ParamHeaders
): Modern.Fault | undefined => {
  const { method, params } = request
  const name = nameOf(method, params)
  const wrong = mismatch(headers, "MCP-Protocol-Version", Json.at(params, "_meta", Modern.metaKeys.protocolVersion)) ??
    mismatch(headers, "Mcp-Method", method) ??
    // The back end refuses a value that is no string, unless the request has the header.
    (typeof name === "string" || (name !== undefined && headers["mcp-name"] !== undefined)
      ? mismatch(headers, "Mcp-Name", name)
      : undefined)
  if (wrong !== undefined) return wrong
  for (const [header, value] of paramsOf(method, params, known)) {
    const wrong = value === undefined || value === null ? undefined : mismatch(headers, header, value)
    // A fault of the request itself, such as its revision, comes first.
    if (wrong !== undefined) return Option.getOrElse(Result.getFailure(Modern.read(request)), () => wrong)
  }
  return undefined
}

/** Intermediaries route by these, so they are never encoded. */
const plain = ["MCP-Protocol-Version", "Mcp-Method"]

const mismatch = (headers: Modern.Headers, header: string, body: unknown): Modern.Fault | undefined => {
  const shown = headers[header.toLowerCase()]
  if (shown !== undefined && says(plain.includes(header) ? shown : decode(shown), body)) return undefined
  const wrong = shown === undefined
    ? "is missing"
    : `says ${JSON.stringify(shown)}, the body ${JSON.stringify(body)}`
  const message = `Header mismatch: the header ${header} ${wrong}`
  return { reason: "invalid", code: Modern.codes.headerMismatch, message }
}

/** True if a header's text is the value in the body. Numbers are compared as numbers: 42.0 is 42. */
const says = (shown: string | undefined, body: unknown): boolean =>
  typeof body === "number" || Json.isRaw(body)
    ? shown !== undefined && /^-?\d+(\.\d+)?$/.test(shown) && Number(shown) === Json.numberOf(body)
    : shown === Json.textOf(body)

/** The headers for a request to a back end. */
export const headersOf = (
  method: string,
  params: unknown,
  known: ParamHeaders = new Map()
): Record<string, string> => ({
  "mcp-protocol-version": Modern.version,
  "mcp-method": method,
  ...Object.fromEntries(
    [["Mcp-Name", nameOf(method, params)] as const, ...paramsOf(method, params, known)].flatMap(([header, value]) =>
      typeof value === "string" || typeof value === "boolean" || isPlainNumber(value)
        ? [[header.toLowerCase(), encode(Json.textOf(value))]]
        : []
    )
  )
})

/** True for a number that is written without an exponent, as the header must be. */
const isPlainNumber = (value: unknown): boolean =>
  (typeof value === "number" || Json.isRaw(value)) && !/e/i.test(Json.textOf(value))

/** Decodes the value of a header. A text that no header can hold comes as `=?base64?…?=`. `undefined` if its base64 is not valid. */
const decode = (value: string): string | undefined => {
  const encoded = /^=\?base64\?(.*)\?=$/.exec(value)?.[1]
  if (encoded === undefined) return value
  const bytes = Buffer.from(encoded, "base64")
  return bytes.toString("base64") === encoded ? bytes.toString("utf8") : undefined
}

/** The inverse of `decode`. */
const encode = (value: string): string =>
  /^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$/.test(value) && !/^=\?base64\?.*\?=$/.test(value)
    ? value
    : `=?base64?${Buffer.from(value, "utf8").toString("base64")}?=`
