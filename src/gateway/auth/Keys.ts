/** Authenticates clients and operators by bearer keys. */
import { Effect } from "effect"
import { createHash, timingSafeEqual } from "node:crypto"
import type { Authenticator } from "./Authenticator.ts"
import { Challenge, open } from "./Authenticator.ts"
import type { Principal } from "./Principal.ts"

export const howToShowKey = "Send one of the gateway's keys as Authorization: Bearer KEY"

const digest = (text: string): Buffer => createHash("sha256").update(text).digest()

/** Accepts requests that carry one of the keys. A principal's id is a digest of its key. */
const oneOf = (keys: ReadonlyArray<string>, message: string): Authenticator => {
  const known = keys.map(digest).map((hash) => {
    const principal: Principal = { id: hash.toString("hex").slice(0, 32), claims: {} }
    return { hash, accepted: Effect.succeed(principal) }
  })
  const wwwAuthenticate = `Bearer realm="effect-session-pool", error_description="${message}"`
  const refused = Effect.fail(new Challenge({ status: 401, message, wwwAuthenticate }))
  return {
    authenticate: ({ headers }) => {
      const shown = digest(/^bearer +(.+)$/i.exec(headers["authorization"] ?? "")?.[1]?.trim() ?? "")
      let result: Effect.Effect<Principal, Challenge> = refused
      // Compares the digests of all keys, each in constant time.
      for (const { accepted, hash } of known) if (timingSafeEqual(hash, shown)) result = accepted
      return result
    }
  }
}

/** The authenticator of clients. Without keys it accepts every request. */
export const clients = (keys: ReadonlyArray<string>): Authenticator =>
  keys.length === 0 ? open : oneOf(keys, howToShowKey)

const noAdminKeys = new Challenge({
  status: 403,
  message: "The gateway has keys for clients but none for operators; add one to the setting adminKeys"
})

/** The authenticator of operators. Without `adminKeys` it accepts every request if `clients` does, and else refuses every request. */
export const operators = (adminKeys: ReadonlyArray<string>, clients: Authenticator): Authenticator => {
  if (adminKeys.length > 0) {
    return oneOf(adminKeys, "Send one of the operators' keys (adminKeys) as Authorization: Bearer KEY")
  }
  return clients === open ? open : { authenticate: () => Effect.fail(noAdminKeys) }
}
