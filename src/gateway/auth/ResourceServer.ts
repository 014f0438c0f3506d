/** Accepts access tokens, as an OAuth resource server of the MCP specification (basic/authorization; RFC 6750, 8707 and 9728). */
import { Cache, Clock, Duration, Effect, Exit } from "effect"
import { HttpServerRequest } from "effect/http"
import { TLSSocket } from "node:tls"
import type * as Settings from "../settings/Settings.ts"
import type { Authenticator, AuthenticatorRequest, AuthenticatorRoute } from "./Authenticator.ts"
import { Challenge } from "./Authenticator.ts"
import type { Claims, Unavailable } from "./AuthorizationServer.ts"
import * as AuthorizationServer from "./AuthorizationServer.ts"
import { bearerOf } from "./Keys.ts"
import * as PeerOwner from "./PeerOwner.ts"
import type { Principal } from "./Principal.ts"
import { idOf } from "./Principal.ts"
import { jsonResponse } from "./Routes.ts"

/** The path of the metadata of a resource (RFC 9728). The path of the resource follows. */
const wellKnown = "/.well-known/oauth-protected-resource"

/** The paths of resources: the gateway as a whole, and each form of a back end's URL. */
const resources = ["", "/mcp", "/mcp/:backend", "/:backend/mcp"] as const

/** The path of a resource, and the back end that it names. A URL of no back end stands for the gateway as a whole. */
const resourceIn = (url: string): { readonly path: string; readonly named?: string | undefined } => {
  const [, path = "", first, last] = /^(\/mcp(?:\/([\w.-]+))?|\/([\w.-]+)\/mcp)\/?(?:\?|$)/.exec(url) ?? []
  return { path, named: first ?? last }
}

/**
 * The cache of verified claims. A hit saves the check of the signature, or the introspection. Every request checks expiry, audience and
 * scopes.
 */
const remembered = { time: "30 seconds", most: 1000 } as const

/** After a warning about the authorization server the gateway logs none for this long, in milliseconds. */
const quietTime = 10_000

export type Options =
  & Parameters<typeof AuthorizationServer.make>[0]
  & Pick<
    Settings.GatewaySettings,
    "authAudience" | "authScopes" | "authClockTolerance" | "publicUrl"
  >

/**
 * Makes the authenticator. `scopesOf` returns the further scopes of the back end with that name. Without a name, it returns those of the
 * only back end, and none if there are several.
 */
export const make = Effect.fnUntraced(function*(
  settings: Options,
  scopesOf: (named: string | undefined) => ReadonlyArray<string>
) {
  const { authAudience, authIssuer } = settings
  const verified = yield* Cache.makeWith(yield* AuthorizationServer.make(settings), {
    capacity: remembered.most,
    timeToLive: (exit) => Exit.isSuccess(exit) ? remembered.time : "1 second"
  })

  let quietUntil = 0
  const unavailable = ({ reason }: Unavailable) =>
    Effect.flatMap(Clock.currentTimeMillis, (now) => {
      const isQuiet = now < quietUntil
      if (!isQuiet) quietUntil = now + quietTime
      const warning = isQuiet ? Effect.void : Effect.logWarning(`The authorization server cannot be used: ${reason}`)
      return Effect.andThen(warning, Effect.fail(outage))
    })

  const authenticate: Authenticator["authenticate"] = (request, backend) => {
    const { path } = resourceIn(request.url)
    const base = baseOf(request, settings)
    const required = scopesNeeded(settings, scopesOf(backend))
    const refuse = (status: 401 | 403, message: string, error?: string) => {
      const parameters = {
        error,
        error_description: error === undefined ? undefined : message,
        scope: required.join(" ") || undefined,
        resource_metadata: `${base}${wellKnown}${path}`
      }
      return Effect.fail(new Challenge({ status, message, wwwAuthenticate: bearerChallenge(parameters) }))
    }
    const invalid = ({ reason }: { readonly reason: string }) =>
      refuse(401, `The access token ${reason}`, "invalid_token")

    const token = bearerOf(request.headers)
    if (token === undefined) return refuse(401, `Send an access token of ${authIssuer} as Authorization: Bearer TOKEN`)
    const audiences = authAudience.length > 0 ? authAudience : [base, `${base}/`, `${base}${path}`]
    return Effect.matchEffect(Cache.get(verified, token), {
      onFailure: (error) => error._tag === "Unavailable" ? unavailable(error) : invalid(error),
      onSuccess: (claims) =>
        Effect.flatMap(Clock.currentTimeMillis, (now) => {
          const reason = faultIn(claims, audiences, now / 1000, settings)
          if (reason !== undefined) return invalid({ reason })
          const granted = scopesIn(claims)
          const missing = required.filter((scope) => !granted.includes(scope))
          return missing.length === 0
            ? Effect.succeed(principalOf(claims, settings))
            : refuse(403, `The access token lacks the scope ${missing.join(" ")}`, "insufficient_scope")
        })
    })
  }

  const metadata = Effect.map(HttpServerRequest.HttpServerRequest, (request) => {
    const { named, path } = resourceIn(request.url.slice(wellKnown.length))
    const scopes = scopesNeeded(settings, scopesOf(named))
    return jsonResponse(
      JSON.stringify({
        resource: `${baseOf(request, settings)}${path}`,
        authorization_servers: [authIssuer],
        ...scopes.length === 0 ? {} : { scopes_supported: scopes },
        bearer_methods_supported: ["header"]
      }),
      200
    )
  })
  const routes = resources.map((path): AuthenticatorRoute => ({ path: `${wellKnown}${path}`, handler: metadata }))
  return { authenticate, routes }
})

const outage = new Challenge({
  status: 503,
  message: "The authorization server cannot be used now, so the gateway cannot check the access token; try again",
  retryAfter: 5
})

const scopesNeeded = (
  { authScopes }: Pick<Options, "authScopes">,
  further: ReadonlyArray<string>
) => [...new Set([...authScopes, ...further])]

/** The URL of the gateway, as the client of the request knows it: in its normal form, which is ASCII. */
const baseOf = (
  request: Pick<AuthenticatorRequest, "headers" | "source">,
  { authAudience, publicUrl }: Pick<Options, "authAudience" | "publicUrl">
): string => {
  if (publicUrl !== "") return new URL(publicUrl).href.replace(/\/+$/, "")
  const socket = PeerOwner.socketOf(request)
  // `Hosts` has checked that the gateway serves this name.
  const [, name = "", port = ""] = /^(.*?)(?::(\d+))?$/.exec(request.headers["host"] ?? "") ?? []
  const url = new URL(`${socket instanceof TLSSocket ? "https" : "http"}://${name}`)
  // A client that chose the port would choose the audience of its token: that of another server on this machine.
  url.port = String((authAudience.length === 0 ? socket?.localPort : undefined) ?? port)
  return url.origin
}

/** The header `WWW-Authenticate`. No value has a quote or a backslash: settings, a path and the gateway's own texts. */
const bearerChallenge = (parameters: Readonly<Record<string, string | undefined>>): string =>
  `Bearer ${
    Object.entries(parameters).flatMap(([name, value]) => value === undefined ? [] : `${name}="${value}"`).join(", ")
  }`

/** Why a token with these claims is refused at this time, in seconds. */
const faultIn = (
  { aud, client_id, exp, iss, nbf, sub }: Claims,
  audiences: ReadonlyArray<string>,
  now: number,
  { authClockTolerance, authIssuer }: Options
): string | undefined => {
  const tolerance = Duration.toSeconds(authClockTolerance)
  if (iss !== authIssuer) return "is of another issuer"
  if (typeof exp !== "number") return "has no exp, and so never expires"
  if (exp + tolerance <= now) return "has expired"
  if (nbf !== undefined && !(typeof nbf === "number" && nbf - tolerance <= now)) return "is not valid yet"
  if (![aud].flat().some((each) => isText(each) && audiences.includes(each))) {
    return `is not for this server: its aud must have ${audiences.join(" or ")}`
  }
  return isText(sub) || isText(client_id) ? undefined : "has neither sub nor client_id"
}

/** The scopes in a token. Some authorization servers call them `scp`, and write a list. */
const scopesIn = ({ scope, scp }: Claims): ReadonlyArray<unknown> =>
  [scope, scp].flat().flatMap((each) => isText(each) ? each.split(" ") : [])

const principalOf = (claims: Claims, { authClockTolerance, authIssuer }: Options): Principal => {
  const { client_id, email, exp, preferred_username, sub } = claims
  return {
    // Without the token, so that the sessions of a caller survive a renewed token.
    id: isText(sub) ? idOf("sub", authIssuer, sub) : idOf("client_id", authIssuer, String(client_id)),
    name: [preferred_username, email, client_id, sub].find(isText),
    expiresAt: (Number(exp) + Duration.toSeconds(authClockTolerance)) * 1000,
    claims
  }
}

const isText = (value: unknown): value is string => typeof value === "string" && value !== ""
