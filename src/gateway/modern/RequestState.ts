/**
 * The `requestState` of a parked call: sealed, so that nobody but the gateway can make or read one (basic/patterns/mrtr,
 * "Server Requirements": integrity, principal, expiry, the request that it belongs to).
 */
import { Option, Schema } from "effect"
import { createCipheriv, createDecipheriv, createHash, hkdfSync, randomBytes } from "node:crypto"

/** What a state says. */
const State = Schema.Struct({
  /** The parked call. */
  call: Schema.String,
  principal: Schema.String,
  backend: Schema.String,
  /** The replica where the call is parked, where there are several. */
  replica: Schema.optionalKey(Schema.String),
  /** Of the request's method and arguments. */
  digest: Schema.String,
  /** In milliseconds since 1970. */
  expires: Schema.Finite
})

export type State = typeof State.Type

/** Seals with AES-256-GCM (NIST SP 800-38D); the nonce of each state is new. */
export interface Seal {
  readonly seal: (state: State) => string
  /** What a state says, if it was sealed here. */
  readonly open: (text: string) => Option.Option<State>
}

const nonceLength = 12
const tagLength = 16

/** Seals with a key that is derived from a secret (HKDF, RFC 5869); `undefined`: with one that this process makes up. */
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
      // A state has one form only: Node's decoder passes over what is no base64url, and over the last bits.
      Buffer.from(text, "base64url").toString("base64url") === text
        ? Option.flatMap(decrypt(text), Schema.decodeUnknownOption(State))
        : Option.none()
  }
}

/** Stands for a request's method and arguments in its state; the order of members does not matter. */
export const digest = (method: string, params: unknown): string =>
  createHash("sha256").update(JSON.stringify(sorted([method, params]))).digest("base64url")

/** The same value with the members of all objects in order, so that equal values have equal texts. */
const sorted = (value: unknown): unknown => {
  if (Array.isArray(value)) return value.map(sorted)
  if (typeof value !== "object" || value === null) return value
  return Object.entries(value).toSorted(([a], [b]) => a < b ? -1 : 1).map(([name, each]) => [name, sorted(each)])
}
