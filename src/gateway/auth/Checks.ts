/** Faults of settings that belong together: each value is allowed, but not without another one. */
import { Predicate } from "effect"
import type * as Settings from "../settings/Settings.ts"
import type { Backends } from "../transports/Backends.ts"
import type { Fault } from "../transports/Kinds.ts"
import * as Hosts from "./Hosts.ts"

/**
 * Reports settings of authentication that would protect nothing, or less than they seem to. `auth` is the object `auth` of the file or the
 * program.
 */
export const check = (settings: Settings.GatewaySettings, auth: unknown, backends: Backends, fault: Fault): void => {
  const { allowedHosts, host, proxyHeader, publicUrl, trustedProxies } = settings
  const { authAudience, authClientId, authClientSecret, authIssuer, authScopes } = settings
  if (authIssuer === "") {
    const withScopes = [...backends.values()].filter((backend) => backend.settings.scopes.length > 0)
    const isUnused = authClientId !== "" || authAudience.length > 0 || authScopes.length > 0
    // A program may write `auth: { issuer: process.env.ISSUER }`, and the variable may be unset.
    const lacksIssuer = Predicate.isObject(auth) && auth["issuer"] === undefined
    if (withScopes.length > 0 || isUnused || lacksIssuer) {
      fault("auth.issuer", "is missing: without it, the gateway asks for no token")
    }
  } else if (publicUrl === "" && authAudience.length === 0 && (!Hosts.isLoopback(host) || allowedHosts.length > 0)) {
    fault(
      "auth",
      "needs publicUrl (such as https://mcp.example.com) or auth.audience, because clients reach the gateway under several " +
        "names: a client that chooses the name would choose the audience of its token"
    )
  }
  const pair = (first: string, hasFirst: boolean, second: string, hasSecond: boolean) => {
    if (hasFirst && !hasSecond) fault(second, `is missing: ${first} needs it`)
    if (hasSecond && !hasFirst) fault(first, `is missing: ${second} needs it`)
  }
  pair("proxyHeader", proxyHeader !== "", "trustedProxies", trustedProxies.length > 0)
  pair("auth.clientId", authClientId !== "", "auth.clientSecret", authClientSecret !== "")
}
