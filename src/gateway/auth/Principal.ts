import { createHash } from "node:crypto"

/**
 * The caller that an authenticator recognised. A session belongs to the principal that opened it. For every other principal it does
 * not exist.
 *
 * @category models
 * @since 0.1.0
 */
export interface Principal {
  /** Callers with the same id are the same caller. The id is never shown to clients. Empty for callers that cannot be told apart. */
  readonly id: string
  /**
   * The name that operators see in logs and on the page, cut and with control characters escaped. Never a secret. Default: the first
   * characters of the id.
   */
  readonly name?: string | undefined
  /** When its credentials expire, in milliseconds since 1970. The event streams of its requests end within 5 seconds. Default: never. */
  readonly expiresAt?: number | undefined
  /** What the authenticator knows of the caller, such as the claims of a JWT. */
  readonly claims: Readonly<Record<string, unknown>>
}

/** The principal of every caller, if the gateway does not ask who is calling. */
export const nobody: Principal = { id: "", claims: {} }

/** An id: a digest of texts that together identify the caller. */
export const idOf = (...parts: ReadonlyArray<string>): string =>
  createHash("sha256").update(parts.join("\0")).digest("hex").slice(0, 32)
