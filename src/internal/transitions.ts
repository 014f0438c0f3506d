/**
 * Everything that can happen to a pool, in the order of a session's life. Each transition is a pure function
 * `(state, …) => [{ result, actions }, state]`, run by one `Ref.modify`; the shell then carries out what it says. The two
 * that find a session and touch it (`touch`, `lease`) have no actions: `(state, …) => [result, state]`.
 *
 * A caller's claim is the id of what it waits for or leases, never the key: a release, error or time-out that belongs
 * to an old session finds another id in the slot and changes nothing there.
 */
export type { Hit, Limits, Outcome, Step } from "./draft.ts"
// To look, not to change: `invalidateAll` sees what its predicate is asked of.
export { slotOf } from "./draft.ts"

// A session is found and touched, joined while it launches, or launched; the wait for it is given up.
export type { Acquired } from "./transitions/acquire.ts"
export { abandon, acquire, giveUp, join, lease, touch } from "./transitions/acquire.ts"

// The launch ends.
export type { LookupFailure } from "./transitions/launch.ts"
export { landed, launchClosed, launchFailed, launchLingers } from "./transitions/launch.ts"

// `set` brings a connection along.
export type { Adopted, Entry } from "./transitions/adopt.ts"
export { adopt, offer, reject, rejected, returnGrant } from "./transitions/adopt.ts"

// A connection is checked.
export { probe, revalidate, validated } from "./transitions/validate.ts"

// A lease ends, an error is counted; both may retire.
export type { Result } from "./transitions/release.ts"
export { recordError, release } from "./transitions/release.ts"

// A session is retired for a reason from outside, and closed.
export type { CloseEnd } from "./transitions/retire.ts"
export { closed, disconnected, expire, expiry, invalidate, invalidateSeen, lingers } from "./transitions/retire.ts"

// The pool ends.
export { forceClose, shutdown } from "./transitions/end.ts"
