/**
 * A `SessionKey` names a session of one back end: the string `backend/session`.
 *
 * The name of a back end cannot contain a `/`, so two different pairs never make the same key. A key is a plain string,
 * because a `HashMap` hashes and compares a string faster than any structure.
 *
 * @module
 * @since 0.1.0
 */
import { Effect, Schema } from "effect"
import type { Brand } from "effect"

/**
 * The key `backend/session`.
 *
 * @category models
 * @since 0.1.0
 */
export type SessionKey = string & Brand.Brand<"SessionKey">

/**
 * A part of a key is empty, or the back end contains a `/`. The message names the part but never its value, because
 * session ids are often secrets.
 *
 * **Example** (What the message says)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SessionKey } from "effect-session-pool"
 *
 * const error = Effect.runSync(Effect.flip(SessionKey.make("everything", "")))
 * error.message // => "The session of a session key is empty; it must have at least one character."
 * ```
 *
 * @category errors
 * @since 0.1.0
 */
export class InvalidSessionKey extends Schema.TaggedError<InvalidSessionKey>()("InvalidSessionKey", {
  /** The invalid part. */
  part: Schema.Literals(["backend", "session"]),
  /** `empty`: the part has no characters. `separator`: the part contains a `/`. */
  reason: Schema.Literals(["empty", "separator"])
}) {
  override get message(): string {
    return this.reason === "empty"
      ? `The ${this.part} of a session key is empty; it must have at least one character.`
      : `The ${this.part} of a session key contains a "/", which separates back end and session; leave it out.`
  }
}

const fault = (backend: string, session: string): InvalidSessionKey | undefined => {
  if (backend === "") return new InvalidSessionKey({ part: "backend", reason: "empty" })
  if (backend.includes("/")) return new InvalidSessionKey({ part: "backend", reason: "separator" })
  if (session === "") return new InvalidSessionKey({ part: "session", reason: "empty" })
  return undefined
}

const join = (backend: string, session: string): SessionKey =>
  // Both callers check the parts with `fault` first.
  `${backend}/${session}` as SessionKey

/**
 * Makes a key from its parts. Fails with `InvalidSessionKey` if a part is empty or `backend` contains a `/`.
 *
 * **When to use**
 *
 * Use for parts that come from outside, such as a session id from a request.
 *
 * **Example** (Making a key)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SessionKey } from "effect-session-pool"
 *
 * const key = Effect.runSync(SessionKey.make("everything", "2f6e"))
 * key // => "everything/2f6e"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (backend: string, session: string): Effect.Effect<SessionKey, InvalidSessionKey> =>
  Effect.suspend(() => {
    const invalid = fault(backend, session)
    return invalid === undefined ? Effect.succeed(join(backend, session)) : Effect.fail(invalid)
  })

/**
 * Makes a key from its parts, as `make`, but throws the `InvalidSessionKey`.
 *
 * **When to use**
 *
 * Use for parts that are known to be valid, such as constants.
 *
 * **Example** (Making a key from constants)
 *
 * ```ts
 * import { SessionKey } from "effect-session-pool"
 *
 * SessionKey.makeUnsafe("everything", "a/b") // => "everything/a/b"
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeUnsafe = (backend: string, session: string): SessionKey => {
  const invalid = fault(backend, session)
  if (invalid !== undefined) throw invalid
  return join(backend, session)
}

/**
 * Returns the back end of a key: the text before the first `/`.
 *
 * **Example** (Reading the back end)
 *
 * ```ts
 * import { SessionKey } from "effect-session-pool"
 *
 * SessionKey.backend(SessionKey.makeUnsafe("everything", "a/b")) // => "everything"
 * ```
 *
 * @category getters
 * @since 0.1.0
 */
export const backend = (key: SessionKey): string => key.slice(0, key.indexOf("/"))

/**
 * Returns the session of a key: the text after the first `/`.
 *
 * **Example** (Reading the session)
 *
 * ```ts
 * import { SessionKey } from "effect-session-pool"
 *
 * SessionKey.session(SessionKey.makeUnsafe("everything", "a/b")) // => "a/b"
 * ```
 *
 * @category getters
 * @since 0.1.0
 */
export const session = (key: SessionKey): string => key.slice(key.indexOf("/") + 1)

/**
 * Decodes a key from a string, with the same rules as `make`.
 *
 * **Example** (Decoding a key)
 *
 * ```ts
 * import { Schema } from "effect"
 * import { SessionKey } from "effect-session-pool"
 *
 * Schema.decodeUnknownSync(SessionKey.schema)("everything/2f6e") // => "everything/2f6e"
 * ```
 *
 * @category schemas
 * @since 0.1.0
 */
export const schema = Schema.String.check(
  Schema.makeFilter((input: string) => {
    const at = input.indexOf("/")
    if (at < 0) return "a session key is \"backend/session\": the \"/\" is missing"
    return fault(input.slice(0, at), input.slice(at + 1))?.message
  })
).pipe(Schema.brand("SessionKey"))
