/** The paths that there are, and what is said at others. */
import { HttpServerResponse } from "effect/http"
import * as Access from "./Access.ts"

/** Of MCP: the second is for clients that recognise an MCP server by the end of its URL. */
export const mcp = ["/mcp/:backend", "/:backend/mcp", "/mcp"] as const

/**
 * True if the URL's path is written literally as `path`. Of a path with a parameter, only the part before it is compared. A router
 * also takes `//sessions`, `/Sessions` and `/%73essions` for `/sessions`, but a proxy that closes `/sessions` may not.
 */
export const isLiteral = (path: string, url: string): boolean => {
  const [given = ""] = url.split("?", 1)
  const parameter = path.indexOf(":")
  return parameter < 0 ? given === path : given.startsWith(path.slice(0, parameter))
}

/** Where clients look for OAuth that have been asked for a key. */
const oauth = /\/(\.well-known\/(oauth-|openid-configuration).*|register|authorize|token)$/

/**
 * What is answered where there is nothing. The names of back ends are told at `/mcp`, to those who may know. Of an OAuth error,
 * which is JSON, a client shows the description to its user.
 */
export const nothingAt = (url: string, hasKeys: boolean): HttpServerResponse.HttpServerResponse => {
  const [path = ""] = url.split("?", 1)
  const status = 404
  if (!oauth.test(path)) return HttpServerResponse.text(nothingHere, { status })
  const instead = hasKeys ? Access.howToShowKey : "This gateway asks for no key"
  const error = { error: "invalid_request", error_description: `There is no OAuth here. ${instead}` }
  return HttpServerResponse.text(JSON.stringify(error), { status, contentType: "application/json" })
}

const nothingHere = "There is nothing here. MCP is at /mcp/NAME, and at /mcp where there is one server only.\n"
