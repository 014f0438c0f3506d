/** The authenticator of clients, from the settings: keys and access tokens. */
import { Effect } from "effect"
import type * as Settings from "../settings/Settings.ts"
import type { Authenticator } from "./Authenticator.ts"
import { open } from "./Authenticator.ts"
import * as Keys from "./Keys.ts"
import * as ResourceServer from "./ResourceServer.ts"

export type Options = ResourceServer.Options & Pick<Settings.GatewaySettings, "keys">

/** Makes the authenticator. Without keys and an authorization server it accepts every request. `scopesOf` is that of `ResourceServer.make`. */
export const make = Effect.fnUntraced(function*(
  settings: Options,
  scopesOf: (named: string | undefined) => ReadonlyArray<string>
) {
  const { authIssuer, keys } = settings
  if (keys.length === 0 && authIssuer === "") return open
  const byKey = Keys.recogniser(keys)
  const refused = Effect.fail(Keys.keyChallenge(Keys.howToShowKey))
  const others: Authenticator = authIssuer === ""
    ? { authenticate: () => refused }
    : yield* ResourceServer.make(settings, scopesOf)
  return {
    ...others,
    authenticate: (request, backend) => {
      const known = byKey(request.headers)
      return known === undefined ? others.authenticate(request, backend) : Effect.succeed(known)
    }
  } satisfies Authenticator
})
