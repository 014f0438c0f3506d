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
  /** What the authenticator knows of the caller, such as the claims of a JWT. */
  readonly claims: Readonly<Record<string, unknown>>
}

/** The principal of every caller, if the gateway does not ask who is calling. */
export const nobody: Principal = { id: "", claims: {} }
