/** The parts of `oidc-provider` that `oidcProvider.ts` uses. The package has no types. */
declare module "oidc-provider" {
  import type { JsonWebKey } from "node:crypto"
  import type { IncomingMessage, ServerResponse } from "node:http"

  /** How access tokens for one resource look. */
  export interface ResourceServerInfo {
    readonly scope: string
    readonly audience: string
    readonly accessTokenFormat: "jwt" | "opaque"
    readonly accessTokenTTL: number
    readonly jwt: { readonly sign: { readonly alg: string } }
  }

  /** Makes the store of one kind of records. */
  export type Adapter = (kind: string) => object

  interface Token {
    readonly accountId?: string
    readonly resourceServer?: ResourceServerInfo
  }

  interface Grant {
    readonly addOIDCScope: (scope: string) => void
    readonly addResourceScope: (resource: string, scope: string) => void
    readonly save: () => Promise<string>
  }

  interface AccessToken {
    readonly save: () => Promise<string>
  }

  interface Interaction {
    readonly params: {
      readonly client_id: string
      readonly login_hint?: string
      readonly resource?: string
      readonly scope?: string
    }
  }

  export interface Configuration {
    readonly clients: ReadonlyArray<Readonly<Record<string, unknown>>>
    readonly adapter: Adapter
    readonly clientDefaults: Readonly<Record<string, unknown>>
    readonly clockTolerance: number
    readonly cookies: { readonly keys: ReadonlyArray<string> }
    readonly jwks: { readonly keys: ReadonlyArray<JsonWebKey> }
    readonly fetch: (url: string) => Promise<Response>
    readonly findAccount: (context: object, id: string) => object
    readonly pkce: { readonly required: () => boolean }
    readonly expiresWithSession: () => boolean
    readonly issueRefreshToken: () => boolean
    readonly extraTokenClaims: (context: object, token: Token) => object
    readonly interactions: { readonly url: (context: object, interaction: { readonly uid: string }) => string }
    readonly renderError: (context: { body: unknown }, error: object) => void
    readonly rotateRefreshToken: boolean
    readonly scopes: ReadonlyArray<string>
    readonly ttl: Readonly<Record<string, number | ((context: object, token: Token) => number)>>
    readonly features: {
      readonly clientIdMetadataDocument: { readonly ack: string; readonly enabled: boolean }
      readonly devInteractions: { readonly enabled: boolean }
      readonly introspection: { readonly allowedPolicy: () => boolean; readonly enabled: boolean }
      readonly registration: { readonly enabled: boolean }
      readonly resourceIndicators: {
        readonly enabled: boolean
        readonly getResourceServerInfo: (context: object, indicator: string) => ResourceServerInfo
        readonly useGrantedResource: () => boolean
      }
    }
  }

  export class Provider {
    constructor(issuer: string, configuration: Configuration)
    callback(): (request: IncomingMessage, response: ServerResponse) => void
    interactionDetails(request: IncomingMessage, response: ServerResponse): Promise<Interaction>
    interactionFinished(request: IncomingMessage, response: ServerResponse, result: object): Promise<void>
    readonly AccessToken: new(properties: object) => AccessToken
    readonly Client: { readonly find: (id: string) => Promise<object | undefined> }
    readonly Grant: new(properties: { readonly accountId: string; readonly clientId: string }) => Grant
    readonly ResourceServer: new(indicator: string, info: ResourceServerInfo) => object
  }

  export const errors: { readonly InvalidTarget: new() => Error }
}

declare module "oidc-provider/lib/adapters/memory_adapter.js" {
  import type { Adapter } from "oidc-provider"
  export const createMemoryAdapter: () => Adapter
}
