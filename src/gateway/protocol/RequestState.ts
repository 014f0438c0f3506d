/**
 * The `requestState` of a parked call. It is sealed, so that only the gateway can make or read one
 * (basic/patterns/mrtr, "Server Requirements": integrity, principal, expiry, and the request that it belongs to).
 */
import { Option, Schema } from "effect"
import { createCipheriv, createDecipheriv, createHash, hkdfSync, randomBytes } from "node:crypto"
import * as Json from "./Json.ts"

/** The content of a state. */
const State = Schema.Struct({
  /** The parked call. */
  call: Schema.String,
  principal: Schema.String,
  backend: Schema.String,
  /** The replica where the call is parked, if there are several. */
  replica: Schema.optionalKey(Schema.String),
  /** A digest of the request's method and arguments. */
  digest: Schema.String,
  /** The expiry, in milliseconds since 1970. */
  expires: Schema.Finite
})

export type State = typeof State.Type

/** Seals with AES-256-GCM (NIST SP 800-38D). Each state has a new nonce. */
export interface Seal {
  readonly seal: (state: State) => string
  /** The content of a state. `None` if it was not sealed with this key, or was changed. */
  readonly open: (text: string) => Option.Option<State>
}

const nonceLength = 12
const tagLength = 16

/**
 * Seals with a key that is derived from a secret (HKDF, RFC 5869). Without a secret the key is random, so only this
 * process can open its states.
 */
export const make = (secret: string | undefined): Seal => {
  const key = secret === undefined
    ? randomBytes(32)
    : new Uint8Array(hkdfSync("sha256", secret, "", "effect-session-pool requestState", 32))
  const decrypt = Option.liftThrowable((text: string): unknown => {
    const bytes = Buffer.from(text, "base64url")
    const end = bytes.length - tagLength
    const decipher = createDecipheriv("aes-256-gcm", key, bytes.subarray(0, nonceLength), { authTagLength: tagLength })
    decipher.setAuthTag(bytes.subarray(end))
    const plain = Buffer.concat([decipher.update(bytes.subarray(nonceLength, end)), decipher.final()])
    return JSON.parse(plain.toString("utf8"))
  })
  return {
    seal: (state) => {
      const nonce = randomBytes(nonceLength)
      const cipher = createCipheriv("aes-256-gcm", key, nonce)
      const sealed = Buffer.concat([cipher.update(JSON.stringify(state), "utf8"), cipher.final()])
      return Buffer.concat([nonce, sealed, cipher.getAuthTag()]).toString("base64url")
    },
    open: (text) =>
      // Accepts only one text for each state: Node's decoder ignores characters that are not base64url, and unused last
      // bits.
      Buffer.from(text, "base64url").toString("base64url") === text
        ? Option.flatMap(decrypt(text), Schema.decodeUnknownOption(State))
        : Option.none()
  }
}

/** A digest of a request's method and arguments. The order of members does not matter. */
export const digest = (method: string, params: unknown): string =>
  createHash("sha256").update(Json.canonical([method, params])).digest("base64url")
