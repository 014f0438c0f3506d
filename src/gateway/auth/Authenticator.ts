/** The seam for authentication: recognises the caller of a request, or refuses the request. */
import { Context, Data, Effect } from "effect"
import type { HttpRouter, HttpServerRequest, HttpServerResponse } from "effect/http"
import * as Principal from "./Principal.ts"

/**
 * Refuses a request. The client gets the status with a JSON-RPC error that carries the message.
 *
 * @category errors
 * @since 0.1.0
 */
export class Challenge extends Data.TaggedError("Challenge")<{
  /** 503 if the caller cannot be recognised now, such as in an outage of an authorization server. */
  readonly status: 401 | 403 | 503
  readonly message: string
  /** The header `WWW-Authenticate`, which says how to authenticate. A 401 must have it. */
  readonly wwwAuthenticate?: string | undefined
  /** The header `Retry-After`, in seconds. A 503 should have it. */
  readonly retryAfter?: number | undefined
}> {
  /** The headers of the response. */
  get headers(): Record<string, string> {
    return {
      ...this.wwwAuthenticate === undefined ? {} : { "www-authenticate": this.wwwAuthenticate },
      ...this.retryAfter === undefined ? {} : { "retry-after": String(this.retryAfter) }
    }
  }
}

/**
 * The part of a request that an authenticator sees: everything but the body.
 *
 * @category models
 * @since 0.1.0
 */
export type AuthenticatorRequest = Pick<
  HttpServerRequest.HttpServerRequest,
  "headers" | "method" | "remoteAddress" | "source" | "url"
>

/**
 * A route for GET that an authenticator adds, such as the metadata of a protected resource (RFC 9728). It is open to everyone.
 *
 * @category models
 * @since 0.1.0
 */
export interface AuthenticatorRoute {
  readonly path: HttpRouter.PathInput
  readonly handler: Effect.Effect<HttpServerResponse.HttpServerResponse, never, HttpServerRequest.HttpServerRequest>
}

/**
 * Recognises the caller of each request.
 *
 * @category models
 * @since 0.1.0
 */
export interface Authenticator {
  /**
   * Returns the caller of a request. Runs for each request of MCP, after the checks of host and origin. `backend` is the back end that the
   * caller asks for. It is `undefined` if there is no such back end, and on the operators' routes.
   */
  readonly authenticate: (
    request: AuthenticatorRequest,
    backend: string | undefined
  ) => Effect.Effect<Principal.Principal, Challenge>
  /** The routes that it adds. Default: none. */
  readonly routes?: ReadonlyArray<AuthenticatorRoute> | undefined
}

/** Recognises the caller of a request, or returns `undefined`. */
export type Recognise = (request: Pick<AuthenticatorRequest, "headers" | "source">) => Principal.Principal | undefined

/** Accepts every request. All callers are then the same principal, whose id is empty. */
export const open: Authenticator = { authenticate: () => Effect.succeed(Principal.nobody) }

/**
 * The authenticator of clients. Without one the gateway uses the settings `trustedProxies`, `keys` and `auth`.
 *
 * **When to use**
 *
 * Use to authenticate clients in another way. The gateway then ignores those settings. The page, `/sessions` and `/metrics` ask for
 * `adminKeys`, and are closed without them.
 *
 * @category services
 * @since 0.1.0
 */
export const ClientAuthenticator: Context.Reference<Authenticator | undefined> = Context.Reference<
  Authenticator | undefined
>("effect-session-pool/gateway/ClientAuthenticator", { defaultValue: () => undefined })
