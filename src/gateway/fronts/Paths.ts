/** The paths of MCP, and the answer at paths that do not exist. */
import { HttpServerResponse } from "effect/http"
import * as Keys from "../auth/Keys.ts"

/** The paths of MCP. The second form is for clients that recognise an MCP server by the end of its URL. */
export const mcp = ["/mcp/:backend", "/:backend/mcp", "/mcp"] as const

/** Paths where clients look for OAuth after the gateway has asked them for a key. */
const oauth = /\/(\.well-known\/(oauth-|openid-configuration).*|register|authorize|token)$/

/**
 * The 404 at a path that does not exist. It names no back ends: `/mcp` does, after the access checks. At a path of
 * OAuth it is an OAuth error in JSON, because clients show its description to their users.
 */
export const nothingAt = (url: string, hasKeys: boolean): HttpServerResponse.HttpServerResponse => {
  const [path = ""] = url.split("?", 1)
  const status = 404
  if (!oauth.test(path)) return HttpServerResponse.text(nothingHere, { status })
  const instead = hasKeys ? Keys.howToShowKey : "It asks for no key"
  const error = { error: "invalid_request", error_description: `This gateway has no OAuth. ${instead}` }
  return HttpServerResponse.text(JSON.stringify(error), { status, contentType: "application/json" })
}

const nothingHere = "Not found. MCP is at /mcp/NAME, or at /mcp if the gateway has only one server.\n"
