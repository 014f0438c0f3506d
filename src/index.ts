/**
 * Keyed pools of long-lived connections, one per session, for Effect servers.
 *
 * @since 0.1.0
 */

/**
 * @since 0.1.0
 */
export * as SessionKey from "./SessionKey.ts"

/**
 * @since 0.1.0
 */
export * as SessionPool from "./SessionPool.ts"
