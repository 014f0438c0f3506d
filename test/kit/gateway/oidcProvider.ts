/** A real authorization server, `oidc-provider`, in this process. Every account may log in, and consents to everything. */
import { generateKeyPairSync } from "node:crypto"
import type { IncomingMessage, ServerResponse } from "node:http"
import { createServer } from "node:http"
import type { Configuration, ResourceServerInfo } from "oidc-provider"
import { errors, Provider } from "oidc-provider"
import { createMemoryAdapter } from "oidc-provider/lib/adapters/memory_adapter.js"
import { portOf } from "./gateway.ts"

/** The account that logs in if a client's request for authorization names none in `login_hint`. */
export const defaultAccount = "ada"

/** The gateway's own client, with which it introspects opaque tokens. */
export const gatewayClient = { id: "gateway", secret: "the gateway's secret" }

/** A client that is not registered. Its id is the address of its metadata document (CIMD). */
export const documentedClient = "https://client.example/metadata.json"

/** The address to which a user's browser returns. Nothing listens there. */
export const redirectUrl = "http://127.0.0.1:9/callback"

interface Options {
  /** Format of access tokens. Default: JWT. */
  readonly format?: "jwt" | "opaque"
  /** Scopes that clients may ask for. Default: `mcp`. */
  readonly scopes?: ReadonlyArray<string>
}

interface Wanted {
  /** Default: `defaultAccount`. */
  readonly account?: string
  /** The resource for which the token is good. */
  readonly resource: string
  /** In seconds. Default: the server's. */
  readonly lifetime?: number
}

export interface AuthorizationServer {
  readonly issuer: string
  /** Lifetime, in seconds, of access tokens from now on. */
  lifetime: number
  /** The paths of all requests, in order. */
  readonly requests: ReadonlyArray<string>
  /** Issues an access token with the scope `mcp`, as if a client had asked for it. */
  readonly token: (wanted: Wanted) => Promise<string>
  readonly stop: () => Promise<void>
}

const key = {
  ...generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey.export({ format: "jwk" }),
  alg: "ES256",
  kid: "the-key"
}

const clientDefaults = {
  grant_types: ["authorization_code", "refresh_token"],
  id_token_signed_response_alg: key.alg,
  response_types: ["code"],
  token_endpoint_auth_method: "none"
}

const metadataDocument = {
  client_id: documentedClient,
  client_name: "A client with a metadata document",
  redirect_uris: [redirectUrl],
  ...clientDefaults
}

const configuration = (
  resource: (indicator: string) => ResourceServerInfo,
  scopes: ReadonlyArray<string>
): Configuration => ({
  clients: [{
    client_id: gatewayClient.id,
    client_secret: gatewayClient.secret,
    grant_types: [],
    redirect_uris: [],
    response_types: [],
    token_endpoint_auth_method: "client_secret_basic"
  }],
  adapter: createMemoryAdapter(),
  clientDefaults,
  clockTolerance: 0,
  cookies: { keys: ["signs the cookies"] },
  jwks: { keys: [key] },
  fetch: async () => Response.json(metadataDocument),
  findAccount: (_, accountId) => ({ accountId, claims: () => ({ sub: accountId }) }),
  pkce: { required: () => true },
  expiresWithSession: () => false,
  issueRefreshToken: () => true,
  // A client whose stream ends while it sends a request may use its refresh token twice.
  rotateRefreshToken: false,
  extraTokenClaims: (_, { accountId }) => ({ preferred_username: accountId }),
  interactions: { url: (_, { uid }) => `/interaction/${uid}` },
  scopes: ["openid", "offline_access", ...scopes],
  renderError: (context, error) => {
    context.body = error
  },
  ttl: {
    AccessToken: (_, { resourceServer }) => resourceServer?.accessTokenTTL ?? 600,
    Grant: 3600,
    Interaction: 60,
    RefreshToken: 3600,
    Session: 3600
  },
  features: {
    clientIdMetadataDocument: { ack: "draft-02", enabled: true },
    devInteractions: { enabled: false },
    introspection: { allowedPolicy: () => true, enabled: true },
    registration: { enabled: true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (_, indicator) => resource(indicator),
      useGrantedResource: () => true
    }
  }
})

/** Starts the server on a free port. Every URL on 127.0.0.1 is a resource that it knows. */
export const start = async (options: Options = {}): Promise<AuthorizationServer> => {
  const { format = "jwt", scopes = ["mcp"] } = options
  const requests: Array<string> = []
  const server = createServer((request, response) => {
    requests.push(new URL(request.url ?? "/", issuer).pathname)
    if (request.url?.startsWith("/interaction/")) void logIn(provider, request, response)
    else handle(request, response)
  }).listen(0, "127.0.0.1")
  await new Promise((resolve) => server.once("listening", resolve))
  const issuer = `http://127.0.0.1:${portOf(server)}`

  const resource = (indicator: string): ResourceServerInfo => {
    if (URL.parse(indicator)?.hostname !== "127.0.0.1") throw new errors.InvalidTarget()
    return {
      scope: scopes.join(" "),
      audience: indicator,
      accessTokenFormat: format,
      accessTokenTTL: running.lifetime,
      jwt: { sign: { alg: key.alg } }
    }
  }
  const provider = new Provider(issuer, configuration(resource, scopes))
  const handle = provider.callback()

  const running: AuthorizationServer = {
    issuer,
    lifetime: 600,
    requests,
    token: async ({ account = defaultAccount, lifetime = running.lifetime, resource: indicator }) => {
      const client = await provider.Client.find(gatewayClient.id)
      const grant = new provider.Grant({ accountId: account, clientId: gatewayClient.id })
      grant.addResourceScope(indicator, "mcp")
      return new provider.AccessToken({
        accountId: account,
        client,
        expiresIn: lifetime,
        extra: { preferred_username: account },
        grantId: await grant.save(),
        gty: "authorization_code",
        resourceServer: new provider.ResourceServer(indicator, resource(indicator)),
        scope: "mcp"
      }).save()
    },
    stop: async () => {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    }
  }
  return running
}

/** Logs the account in that the client names, and grants what the client asks for. */
const logIn = async (provider: Provider, request: IncomingMessage, response: ServerResponse): Promise<void> => {
  const { params } = await provider.interactionDetails(request, response)
  const accountId = params.login_hint ?? defaultAccount
  const grant = new provider.Grant({ accountId, clientId: params.client_id })
  if (params.scope !== undefined) grant.addOIDCScope(params.scope)
  if (params.resource !== undefined) grant.addResourceScope(params.resource, params.scope ?? "")
  const consent = { grantId: await grant.save() }
  await provider.interactionFinished(request, response, { login: { accountId }, consent })
}

/**
 * Follows an address as a browser does, with its cookies, until it leads away from its origin. Returns the address that it leads to: a
 * client's `redirect_uri` with the code.
 */
export const browse = async (address: URL): Promise<URL> => {
  const cookies = new Map<string, string>()
  let at = address
  while (at.origin === address.origin) {
    const cookie = [...cookies].map(([name, value]) => `${name}=${value}`).join("; ")
    const response = await fetch(at, { headers: { cookie }, redirect: "manual" })
    for (const text of response.headers.getSetCookie()) {
      const [, name = "", value = ""] = /^([^=]+)=([^;]*)/.exec(text) ?? []
      cookies.set(name, value)
    }
    const location = response.headers.get("location")
    if (location === null) throw new Error(`${at.pathname} answered ${response.status}: ${await response.text()}`)
    at = new URL(location, at)
  }
  return at
}
