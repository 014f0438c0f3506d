/** What happens to the sessions of a pool, for `SessionPool.events`. Times are milliseconds. */
import type { Cause, Exit } from "effect"
import type { Reason } from "./state.ts"

/**
 * What `events` tells: each has the session's `key` and its `id`. Times are milliseconds.
 *
 * @category models
 * @since 0.1.0
 */
export type Event<K, E> =
  /** A lookup has opened a session; `duration`: how long it took. */
  | { readonly _tag: "Launched"; readonly key: K; readonly id: number; readonly duration: number }
  /** A lookup has failed, died, interrupted itself or timed out. One that was cancelled, as nobody waited any more, is not told. */
  | {
    readonly _tag: "LaunchFailed"
    readonly key: K
    readonly id: number
    readonly duration: number
    readonly cause: Cause.Cause<E>
  }
  /** `set` has put an open connection into the pool. */
  | { readonly _tag: "Adopted"; readonly key: K; readonly id: number }
  /** No new lease can get the session; it closes when its last lease ends. */
  | { readonly _tag: "Retired"; readonly key: K; readonly id: number; readonly reason: Reason }
  /** The finalizers have run; `duration`: how long they took; `exit`: how they ended. */
  | {
    readonly _tag: "Closed"
    readonly key: K
    readonly id: number
    readonly reason: Reason
    readonly duration: number
    readonly exit: Exit.Exit<void, unknown>
  }
  /**
   * The finalizers run longer than `closeTimeout`: left to themselves, they no longer count against `capacity`. Those of a cancelled
   * lookup have an `id` of their own.
   */
  | { readonly _tag: "CloseTimedOut"; readonly key: K; readonly id: number; readonly duration: number }
  /** A lease is held longer than `leakDetection`; `site`: the span it was taken in, and the stack that asked for it. */
  | {
    readonly _tag: "LeaseLeaked"
    readonly key: K
    readonly id: number
    readonly duration: number
    readonly site: string
  }
