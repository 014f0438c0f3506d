/** The authenticator of clients, from the settings: a trusted proxy, keys, access tokens. */
import { Effect } from "effect"
import * as Settings from "../settings/Settings.ts"
import type { Authenticator } from "./Authenticator.ts"
import { open } from "./Authenticator.ts"
import * as Keys from "./Keys.ts"
import * as ResourceServer from "./ResourceServer.ts"
import * as TrustedProxy from "./TrustedProxy.ts"

const howToUseProxy = "Send the request through the proxy that authenticates callers"

/** Makes the authenticator. Without such settings it accepts every request. `scopesOf` is that of `ResourceServer.make`. */
export const make = Effect.fnUntraced(function*(
  settings: Settings.GatewaySettings,
  scopesOf: (named: string | undefined) => ReadonlyArray<string>
) {
  if (!Settings.isAuthenticated(settings)) return open
  const { authIssuer, keys } = settings
  const recognisers = [TrustedProxy.recogniser(settings), Keys.recogniser(keys)]
  const refused = Effect.fail(Keys.challenge(keys.length > 0 ? Keys.howToShowKey : howToUseProxy))
  const others: Authenticator = authIssuer === ""
    ? { authenticate: () => refused }
    : yield* ResourceServer.make(settings, scopesOf)
  const authenticate: Authenticator["authenticate"] = (request, backend) => {
    for (const recognise of recognisers) {
      const caller = recognise(request)
      if (caller !== undefined) return Effect.succeed(caller)
    }
    return others.authenticate(request, backend)
  }
  return { ...others, authenticate }
})
