/** The authenticator of clients, from the settings: a trusted proxy, keys, access tokens. */
import { Effect } from "effect"
import * as Settings from "../settings/Settings.ts"
import type { Authenticator } from "./Authenticator.ts"
import { open } from "./Authenticator.ts"
import * as Keys from "./Keys.ts"
import * as ResourceServer from "./ResourceServer.ts"
import * as TrustedProxy from "./TrustedProxy.ts"

/** What a client without an access token has to do. */
export const howToAuthenticate = (settings: Settings.GatewaySettings): string => {
  if (!Settings.isAuthenticated(settings)) return "It asks for no key"
  return settings.keys.length > 0
    ? Keys.howToShowKey
    : "Send the request through the proxy that authenticates callers"
}

/** Makes the authenticator. It accepts every request if none of these is set. `ResourceServer.make` describes `scopesOf`. */
export const make = Effect.fnUntraced(function*(
  settings: Settings.GatewaySettings,
  scopesOf: (named: string | undefined) => ReadonlyArray<string>
) {
  if (!Settings.isAuthenticated(settings)) return open
  const recognisers = [TrustedProxy.recogniser(settings), Keys.recogniser(settings.keys)]
  const refused = Effect.fail(Keys.challenge(howToAuthenticate(settings)))
  const byToken: Authenticator = settings.authIssuer === ""
    ? { authenticate: () => refused }
    : yield* ResourceServer.make(settings, scopesOf)
  const authenticate: Authenticator["authenticate"] = (request, backend) => {
    for (const recognise of recognisers) {
      const caller = recognise(request)
      if (caller !== undefined) return Effect.succeed(caller)
    }
    return byToken.authenticate(request, backend)
  }
  return { ...byToken, authenticate }
})
