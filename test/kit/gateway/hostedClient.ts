/** The habits of hosted clients such as claude.ai and ChatGPT: OAuth as the first answer says it, then a fresh session for each call. */
import { createHash, randomBytes } from "node:crypto"
import * as Kit from "./gateway.ts"
import { browse } from "./oidcProvider.ts"

export interface Hosted {
  /** As in its `clientInfo`. */
  readonly name: string
  readonly redirectUrl: string
  /** Ends each session after its call. */
  readonly endsSessions: boolean
}

export const claude: Hosted = {
  name: "claude-ai",
  redirectUrl: "https://claude.ai/api/mcp/auth_callback",
  endsSessions: true
}
export const chatGpt: Hosted = {
  name: "openai-mcp",
  redirectUrl: "https://chatgpt.com/connector_platform_oauth_redirect",
  endsSessions: false
}

const json = async (response: Response) => {
  if (!response.ok) throw new Error(`${response.url} answered ${response.status}: ${await response.text()}`)
  return response.json()
}

/** Gets an access token for an account, from what the server's 401 says. */
export const logIn = async (url: string, hosted: Hosted, account: string): Promise<string> => {
  const refused = await Kit.initialize(url)
  await refused.text()
  const challenge = refused.headers.get("www-authenticate") ?? ""
  const said = (name: string) => new RegExp(`${name}="([^"]*)"`).exec(challenge)?.[1] ?? ""
  const { authorization_servers, resource } = await json(await fetch(said("resource_metadata")))
  const server = await json(await fetch(`${authorization_servers[0]}/.well-known/oauth-authorization-server`))
  const registration = { client_name: hosted.name, redirect_uris: [hosted.redirectUrl] }
  const { client_id } = await json(
    await fetch(server.registration_endpoint, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(registration)
    })
  )
  const verifier = randomBytes(32).toString("base64url")
  const address = new URL(server.authorization_endpoint)
  address.search = new URLSearchParams({
    client_id,
    code_challenge: createHash("sha256").update(verifier).digest("base64url"),
    code_challenge_method: "S256",
    login_hint: account,
    redirect_uri: hosted.redirectUrl,
    resource,
    response_type: "code",
    scope: said("scope")
  }).toString()
  const returned = await browse(address)
  const body = new URLSearchParams({
    client_id,
    code: returned.searchParams.get("code") ?? "",
    code_verifier: verifier,
    grant_type: "authorization_code",
    redirect_uri: hosted.redirectUrl,
    resource
  })
  const { access_token } = await json(await fetch(server.token_endpoint, { method: "POST", body }))
  return access_token
}

/** Calls a tool in a fresh session. Returns the text of its result. */
export const call = async (url: string, hosted: Hosted, token: string, tool: string): Promise<string> => {
  const authorization = Kit.bearer(token)
  const body = Kit.initializeBody.replace("\"raw\"", JSON.stringify(hosted.name))
  const opened = await Kit.initialize(url, authorization, body)
  await json(opened)
  const session = opened.headers.get("mcp-session-id") ?? ""
  const send = (body: string) => Kit.post(url, session, body, authorization)
  await (await send(JSON.stringify({ jsonrpc: "2.0", method: "notifications/initialized" }))).text()
  const { result } = await Kit.answerOf(await send(Kit.toolCall(1, tool)))
  if (hosted.endsSessions) {
    await fetch(url, { method: "DELETE", headers: { "mcp-session-id": session, ...authorization } })
  }
  return result.content[0].text
}
