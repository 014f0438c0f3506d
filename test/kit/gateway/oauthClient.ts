/** The official clients with their own OAuth, each with an account that logs in by `browse` instead of a browser. */
import * as Modern from "@modelcontextprotocol/client"
import type { OAuthClientProvider } from "@modelcontextprotocol/sdk/client/auth.js"
import { UnauthorizedError } from "@modelcontextprotocol/sdk/client/auth.js"
import { Client } from "@modelcontextprotocol/sdk/client/index.js"
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js"
import type { OAuthClientInformationMixed, OAuthTokens } from "@modelcontextprotocol/sdk/shared/auth.js"
import * as OidcProvider from "./oidcProvider.ts"

/** What a client keeps of one user: its registration and its tokens. */
export class Credentials implements OAuthClientProvider {
  readonly redirectUrl = OidcProvider.redirectUrl
  readonly clientMetadata = { client_name: "a test", redirect_uris: [this.redirectUrl] }
  /** What the authorization server said when the browser returned last: the code. */
  returned = new URLSearchParams()
  /** The tokens that the client got, in order. */
  readonly got: Array<OAuthTokens> = []
  readonly account: string
  readonly clientMetadataUrl?: string
  #client: OAuthClientInformationMixed | undefined
  #verifier = ""
  #discovered: Modern.OAuthDiscoveryState | undefined

  /** With `documented`, the client says who it is by its metadata document instead of registering. */
  constructor(account: string, documented = false) {
    this.account = account
    if (documented) this.clientMetadataUrl = OidcProvider.documentedClient
  }

  clientInformation() {
    return this.#client
  }
  saveClientInformation(client: OAuthClientInformationMixed) {
    this.#client = client
  }
  tokens() {
    return this.got.at(-1)
  }
  saveTokens(tokens: OAuthTokens) {
    this.got.push(tokens)
  }
  codeVerifier() {
    return this.#verifier
  }
  saveCodeVerifier(verifier: string) {
    this.#verifier = verifier
  }
  discoveryState() {
    return this.#discovered
  }
  saveDiscoveryState(discovered: Modern.OAuthDiscoveryState) {
    this.#discovered = discovered
  }
  async redirectToAuthorization(address: URL) {
    address.searchParams.set("login_hint", this.account)
    this.returned = (await OidcProvider.browse(address)).searchParams
  }
}

const info = { name: "a test", version: "1.0.0" }

/** A client of the SDK 1.32. It logs in if the server asks for it. */
export const connect = async (url: string, credentials: Credentials) => {
  const client = new Client(info)
  const first = new StreamableHTTPClientTransport(new URL(url), { authProvider: credentials })
  try {
    await client.connect(first)
    return client
  } catch (error) {
    if (!(error instanceof UnauthorizedError)) throw error
  }
  await first.finishAuth(credentials.returned.get("code") ?? "")
  await client.connect(new StreamableHTTPClientTransport(new URL(url), { authProvider: credentials }))
  return client
}

/** The same with the SDK 2.4. It also logs in again if its token lacks a scope. */
export const connectModern = async (
  url: string,
  credentials: Credentials,
  mode: "legacy" | { readonly pin: string }
) => {
  const client = new Modern.Client(info, { versionNegotiation: { mode } })
  const first = new Modern.StreamableHTTPClientTransport(new URL(url), { authProvider: credentials })
  try {
    await client.connect(first)
    return client
  } catch (error) {
    if (!(error instanceof Modern.UnauthorizedError)) throw error
  }
  await first.finishAuth(credentials.returned)
  await client.connect(new Modern.StreamableHTTPClientTransport(new URL(url), { authProvider: credentials }))
  return client
}
