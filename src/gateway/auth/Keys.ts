/** Authenticates clients and operators by keys. A key may have a name, as `name:key`. */
import { Effect } from "effect"
import type { Headers } from "effect/http"
import { createHash, timingSafeEqual } from "node:crypto"
import type { Authenticator, Recognise } from "./Authenticator.ts"
import { Challenge, open } from "./Authenticator.ts"
import type { Principal } from "./Principal.ts"
import { idOf } from "./Principal.ts"

/** Splits a key of the settings into its name and the part that clients send. */
export const parse = (text: string): { readonly name: string | undefined; readonly value: string } => {
  const [, name, value = text] = /^([\w.-]{1,64}):(.*)$/.exec(text) ?? []
  return { name, value: value.trim() }
}

/** The credentials of `Authorization: Bearer`. */
export const bearerOf = (headers: Headers.Headers): string | undefined =>
  /^bearer +(.+)$/i.exec(headers["authorization"] ?? "")?.[1]?.trim()

const digest = (text: string): Buffer => createHash("sha256").update(text).digest()

/** Recognises callers that show one of the keys. A principal's id is a digest of the key's name, so it survives another key. */
export const recogniser = (keys: ReadonlyArray<string>): Recognise => {
  const known = keys.map(parse).map(({ name, value }) => {
    const principal: Principal = { id: name === undefined ? idOf(value) : idOf("key", name), name, claims: {} }
    return { hash: digest(value), principal }
  })
  return ({ headers }) => {
    let found: Principal | undefined
    for (const shown of [bearerOf(headers), headers["x-api-key"]]) {
      const hash = digest(shown ?? "")
      // Compares the digests of all keys, each in constant time.
      for (const each of known) if (timingSafeEqual(each.hash, hash)) found = each.principal
    }
    return found
  }
}

export const howToShowKey = "Send one of the gateway's keys as Authorization: Bearer KEY or as X-API-Key: KEY"

export const challenge = (message: string): Challenge =>
  new Challenge({
    status: 401,
    message,
    wwwAuthenticate: `Bearer realm="effect-session-pool", error_description="${message}"`
  })

const noAdminKeys = new Challenge({
  status: 403,
  message: "The gateway authenticates clients but has no keys for operators; add one to the setting adminKeys"
})

/** The authenticator of operators. Without `adminKeys` it accepts every request if `clients` does, and else refuses every request. */
export const operators = (adminKeys: ReadonlyArray<string>, clients: Authenticator): Authenticator => {
  if (adminKeys.length === 0) return clients === open ? open : { authenticate: () => Effect.fail(noAdminKeys) }
  const recognise = recogniser(adminKeys)
  const refused = challenge("Send one of the operators' keys (adminKeys) as Authorization: Bearer KEY")
  return {
    authenticate: (request) => Effect.fromNullishOr(recognise(request)).pipe(Effect.mapError(() => refused))
  }
}
