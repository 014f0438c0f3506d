/**
 * Pools of long-lived connections, one connection per session key, for Effect servers.
 *
 * @since 0.1.0
 */

/**
 * Names a session of one back end: the string `backend/session`.
 *
 * @since 0.1.0
 */
export * as SessionKey from "./SessionKey.ts"

/**
 * The pool: one long-lived connection per key.
 *
 * @since 0.1.0
 */
export * as SessionPool from "./SessionPool.ts"
