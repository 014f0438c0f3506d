/**
 * Tool arguments that clients of revision 2026-07-28 repeat in headers, so that intermediaries can route by them
 * (basic/transports/streamable-http, "Custom Headers from Tool Parameters"). A tool names them in its schema. A server
 * that reads the body has to check that the headers agree with it.
 */
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

/** The fault of the first header that differs from the body, if there is one. */
export const mismatch = (known: ParamHeaders, params: unknown, headers: Modern.Headers): Modern.Fault | undefined => {
  if (known.size === 0) return undefined
  for (const { header, path } of known.get(Json.textOf(Json.field(params, "name"))) ?? []) {
    const body = path.reduce(Json.field, Json.field(params, "arguments"))
    if (body === undefined || body === null) continue
    const shown = headers[`mcp-param-${header.toLowerCase()}`]
    const message = shown === undefined
      ? `the header Mcp-Param-${header} is missing`
      : !says(Modern.decodeHeader(shown), body)
      ? `the header Mcp-Param-${header} says ${JSON.stringify(shown)}, the body ${JSON.stringify(body)}`
      : undefined
    if (message !== undefined) {
      return { reason: "invalid", code: Modern.codes.headerMismatch, message: `Header mismatch: ${message}` }
    }
  }
  return undefined
}

/** The headers that repeat arguments of a call. */
export const headersOf = (known: ParamHeaders, params: unknown): Record<string, string> =>
  Object.fromEntries(
    (known.get(Json.textOf(Json.field(params, "name"))) ?? []).flatMap(({ header, path }) => {
      const value = path.reduce(Json.field, Json.field(params, "arguments"))
      return typeof value === "string" || typeof value === "boolean" || isPlainNumber(value)
        ? [[`mcp-param-${header.toLowerCase()}`, Modern.encodeHeader(Json.textOf(value))]]
        : []
    })
  )

/** True for a number that is written without an exponent, as the header must be. */
const isPlainNumber = (value: unknown): boolean =>
  (typeof value === "number" || Json.isRaw(value)) && !/e/i.test(Json.textOf(value))

const keyword = "x-mcp-header"

const maxDepth = 100

/** The declarations in a schema. Only those that are reached by `properties` count. */
function* declared(schema: unknown, path: ReadonlyArray<string>): Generator<Declaration> {
  if (path.length > maxDepth) return
  const properties = Json.field(schema, "properties")
  for (const [name, each] of Object.entries(Json.objectOf(properties))) {
    const header = Json.field(each, keyword)
    if (typeof header === "string" && /^[\w!#$%&'*+.^`|~-]+$/.test(header)) yield { path: [...path, name], header }
    yield* declared(each, [...path, name])
  }
}

/** True if a header's text is the value in the body. Numbers are compared as numbers: 42.0 is 42. */
const says = (shown: string | undefined, body: unknown): boolean =>
  typeof body === "number" || Json.isRaw(body)
    ? shown !== undefined && /^-?\d+(\.\d+)?$/.test(shown) && Number(shown) === Json.numberOf(body)
    : shown === Json.textOf(body)
