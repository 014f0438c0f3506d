/**
 * Every step that the shell runs, in the order of a session's life: acquire, land, adopt, release, check, retire, close, end. The moves
 * that several steps share (retire, leave, serve a waiter, put a session in) are in `places.ts`.
 *
 * A step is a pure function from one state to the next: it changes its `Draft` only, and says in the draft's actions what is to be done
 * after it. The shell runs each step in one `Ref.modify`. `hit` is the exception: `leasing.ts` and `touch` run it directly.
 *
 * A caller's claim is the id of what it waits for or leases, never the key alone. A release, error or time-out of an old session finds
 * another id in the slot and changes nothing there.
 */
import type { Deferred } from "effect"
import { Cause, Exit, Hash, HashMap, Option } from "effect"
import type { SessionPoolError } from "./errors.ts"
import { poolClosed } from "./errors.ts"
import type { Resolved } from "./options.ts"
import * as Ordered from "./ordered.ts"
import type { Shortage } from "./places.ts"
import * as Places from "./places.ts"
import type { Check, Identity, Launch, Leaving, Live, Reason, Session, Slot, State } from "./state.ts"
import { Draft, setHash } from "./state.ts"

// -----------------------------------------------------------------------------
// Acquire
// -----------------------------------------------------------------------------

/** Why a live session has expired, if it has. A holder may keep it beyond its lifetime, but no new caller gets it. */
export const overdue = <K, A>(live: Live<K, A>, now: number): Reason | undefined =>
  now >= live.session.expiresAt
    ? "MaxLifetime"
    : live.leases === 0 && now - live.lastUsedAt > live.session.idleTimeToLive
    ? "IdleTimeout"
    : undefined

/**
 * The lookup-and-touch: finds the live session of a key, moves `lastUsedAt`, counts the request, and with `lease` 1 takes a lease, all
 * in one step. `undefined`, and no change, if there is none, or if it must be checked or retired first (`acquire` does).
 *
 * An unbounded pool skips the draft: a use takes 0.95 of the time.
 */
export const hit = <K, A, E>(
  state: State<K, A, E>,
  options: Resolved<K, A>,
  key: K,
  now: number,
  lease: 0 | 1
): readonly [found: Session<K, A> | undefined, State<K, A, E>] => {
  const hash = Hash.hash(key)
  const slot = HashMap.getHash(state.slots, key, hash)
  if (slot._tag === "None" || slot.value._tag !== "Live") return [undefined, state]
  const live = slot.value
  if (overdue(live, now) !== undefined || (lease === 1 && needsCheck(live, options, now))) return [undefined, state]
  const after = touched(live, now, lease)
  if (options.isBounded) {
    const d = new Draft(state, options, now)
    d.state.hits++
    Places.putUsed(d, live, after)
    return [live.session, d.state]
  }
  return [live.session, {
    ...state,
    slots: setHash<K, Slot<K, A, E>>(state.slots, key, hash, after),
    hits: state.hits + 1,
    active: lease === 1 && live.leases === 0 ? state.active + 1 : state.active,
    leases: state.leases + lease
  }]
}

const touched = <K, A>(live: Live<K, A>, now: number, leases: number): Live<K, A> => ({
  ...live,
  lastUsedAt: now,
  requestCount: live.requestCount + 1,
  leases: live.leases + leases
})

/** A session needs a check if a caller waits for one already, or if it was idle for longer than `validateAfter`. */
const needsCheck = <K, A>(
  { check, lastUsedAt, leases, validatedAt }: Live<K, A>,
  options: Resolved<K, A>,
  now: number
) => check?.isBackground === false || (leases === 0 && now - Math.max(lastUsedAt, validatedAt) > options.validateAfter)

/** The result of `acquire`: a lease, a claim on a launch, or a refusal. */
export type Acquired<K, A, E> =
  /** Usable once `check` says true, if there is one. */
  | { readonly _tag: "Leased"; readonly session: Session<K, A>; readonly check: Check | undefined }
  | { readonly _tag: "Joined"; readonly launch: Launch<K, A, E>; readonly waits: boolean }
  | { readonly _tag: "Failed"; readonly cause: Cause.Cause<E | SessionPoolError> }
  | { readonly _tag: "Full"; readonly shortage: Shortage }
  | { readonly _tag: "Absent" }

/**
 * Leases the session of a key or joins its launch; if there is neither, starts `launch`, at once or when there is a place. Without a
 * `launch` nothing is started or retired. `check` is for a session that must be validated first; without it the session is trusted.
 */
export const acquire = <K, A, E>(
  d: Draft<K, A, E>,
  identity: { readonly key: K; readonly hash: number },
  launch: Launch<K, A, E> | undefined,
  check: Check | undefined
): Acquired<K, A, E> => {
  if (d.state.ending !== undefined) {
    return launch === undefined ? { _tag: "Absent" } : { _tag: "Failed", cause: Cause.fail(poolClosed()) }
  }
  // A caller whose session was retired for it, below or by a refused check, may wait for that place even if maxWaiting callers do.
  let hasRetired = check === undefined
  const slot = d.slot(identity)
  switch (slot?._tag) {
    case "Live": {
      const reason = overdue(slot, d.now)
      if (reason === undefined) return lease(d, slot, check)
      if (launch === undefined) break
      Places.retire(d, slot, reason)
      hasRetired = true
      break
    }
    case "Launching":
      d.count("joins")
      d.setSlot(slot.launch, { ...slot, callers: slot.callers + 1 })
      return { _tag: "Joined", launch: slot.launch, waits: false }
    case "Waiting":
      // A place on its way to the launch is for all of its callers.
      if (
        d.state.waiters >= d.options.maxWaiting && Ordered.get(d.state.waiting, slot.launch.id)?.isPromised !== true
      ) {
        return refuse(d, slot.launch.group)
      }
      d.count("joins")
      d.setSlot(slot.launch, { ...slot, callers: slot.callers + 1 })
      d.state.waiters++
      return { _tag: "Joined", launch: slot.launch, waits: true }
    case "Failed":
      if (launch === undefined) break
      if (d.now < slot.until) return { _tag: "Failed", cause: slot.cause }
      Places.forget(d, slot)
  }
  if (launch === undefined) return { _tag: "Absent" }
  if (Places.hasRoom(d, launch.group)) {
    d.count("misses")
    Places.takePlace(d, launch.group)
    Places.startLaunch(d, launch, 1)
    return { _tag: "Joined", launch, waits: false }
  }
  if (!hasRetired && !mayWait(d, launch.group)) return refuse(d, launch.group)
  d.count("misses")
  d.setSlot(launch, { _tag: "Waiting", launch, callers: 1 })
  Places.enqueue(d, launch, undefined, hasRetired)
  Places.serve(d)
  return { _tag: "Joined", launch, waits: true }
}

const lease = <K, A, E>(d: Draft<K, A, E>, live: Live<K, A>, check: Check | undefined): Acquired<K, A, E> => {
  d.state.hits++
  const { session } = live
  const awaited = check !== undefined && needsCheck(live, d.options, d.now)
    ? { ...(live.check ?? check), isBackground: false }
    : undefined
  Places.putUsed(d, live, { ...touched(live, d.now, 1), check: awaited ?? live.check })
  if (awaited !== undefined && live.check === undefined) d.actions.push({ _tag: "Check", session, check: awaited })
  return { _tag: "Leased", session, check: awaited }
}

/** Whether one more caller may enter the queue. `maxWaiting` does not refuse a caller that an eviction makes room for. */
const mayWait = <K, A, E>(d: Draft<K, A, E>, group: unknown): boolean =>
  d.state.waiters < d.options.maxWaiting || Places.canEvict(d, group)

const refuse = <K, A, E>(d: Draft<K, A, E>, group: unknown) => {
  d.count("refused")
  return { _tag: "Full", shortage: Places.shortageOf(d, group) } as const
}

const closedExit = (): Exit.Exit<never, SessionPoolError> => Exit.fail(poolClosed())

/**
 * Gives up a claim on a launch, or the lease that it has become. The last caller to go cancels the launch; a connection of `set` that
 * still waits is closed.
 */
export const abandon = <K, A, E>(d: Draft<K, A, E>, launch: Launch<K, A, E>): void => {
  if (launch.adopts !== undefined) {
    if (Ordered.get(d.state.waiting, launch.id) === undefined) return
    Places.dequeue(d, launch, 1, 0)
    return Places.discard(d, launch)
  }
  const slot = d.slot(launch)
  if (slot?._tag === "Waiting" && slot.launch.id === launch.id) {
    const callers = slot.callers - 1
    Places.dequeue(d, launch, 1, callers)
    return callers > 0 ? d.setSlot(launch, { ...slot, callers }) : d.removeSlot(launch)
  }
  if (slot?._tag === "Launching" && slot.launch.id === launch.id) {
    if (slot.callers > 1) return d.setSlot(launch, { ...slot, callers: slot.callers - 1 })
    d.removeSlot(launch)
    d.state.launching--
    return Places.discard(d, launch)
  }
  release(d, launch, "neither")
}

/** After `acquireTimeout`: leaves the queue and says why there is no place. `undefined`, and no change, if the wait is over already. */
export const giveUp = <K, A, E>(d: Draft<K, A, E>, launch: Launch<K, A, E>): Shortage | undefined => {
  if (Ordered.get(d.state.waiting, launch.id) === undefined) return undefined
  abandon(d, launch)
  d.count("timedOut")
  return Places.shortageOf(d, launch.group)
}

/** Serves a waiter whose patience may be over. Returns the milliseconds until it asks again. */
export const serveAgain = <K, A, E>(d: Draft<K, A, E>, launch: Launch<K, A, E>): number => {
  Places.serve(d)
  const { patience } = d.options
  const waiter = Ordered.get(d.state.waiting, launch.id)
  const left = waiter === undefined ? 0 : waiter.since + patience - d.now
  // Nothing is idle. The step that makes a session idle serves the queue, so the next time can wait.
  return left > 0 ? left : patience
}

// -----------------------------------------------------------------------------
// Land
// -----------------------------------------------------------------------------

/**
 * The lookup ended, or timed out, after `duration`. On success the session goes live and each caller's claim becomes a lease. On failure
 * its callers get the cause. A no-op for a cancelled launch, which is closing already.
 */
export const land = <K, A, E>(
  d: Draft<K, A, E>,
  launch: Launch<K, A, E>,
  exit: Exit.Exit<A, E | SessionPoolError>,
  duration: number,
  timedOut: boolean
): void => {
  const slot = d.slot(launch)
  const isLaunching = slot?._tag === "Launching" && slot.launch === launch
  const leaving = Option.getOrUndefined(HashMap.get(d.state.leaving, launch.id))
  const isInvalidated = !isLaunching && leaving?.opening === launch && leaving.holders > 0
  if (!isLaunching && !isInvalidated) return
  const { id, key } = launch
  if (isLaunching) {
    d.removeSlot(launch)
    d.state.launching--
  }
  if (Exit.isFailure(exit)) {
    // An interrupted lookup is not remembered: later callers try again.
    if (isLaunching && !Cause.hasInterruptsOnly(exit.cause)) remember(d, launch, exit.cause)
    d.count("launchFailures")
    d.emit({ _tag: "LaunchFailed", key, id, duration, cause: exit.cause, timedOut })
    d.complete(launch.done, exit)
    return Places.discard(d, launch)
  }
  d.count("launches")
  d.emit({ _tag: "Launched", key, id, duration })
  const session = Places.sessionOf(launch, exit.value, d.now, d.now)
  if (isLaunching) {
    Places.putOpened(d, session, slot.callers, slot.callers, 0)
  } else if (leaving !== undefined) {
    // The launch was invalidated. Only its waiting callers get the session.
    d.state.leases += leaving.holders
    d.state.leaving = HashMap.set(d.state.leaving, id, { ...leaving, opening: session, reason: "Invalidated" })
    d.emit({ _tag: "Retired", key, id, reason: "Invalidated" })
  }
  d.complete(launch.done, exit)
}

/** How many failures are remembered at once. */
export const failureLimit = 1024

const remember = <K, A, E>(
  d: Draft<K, A, E>,
  launch: Launch<K, A, E>,
  cause: Cause.Cause<E | SessionPoolError>
): void => {
  const { failureTimeToLive } = d.options
  if (failureTimeToLive === 0) return
  const ticket = ++d.state.ticket
  const failed = {
    _tag: "Failed",
    launch,
    cause,
    until: d.now + failureTimeToLive,
    ticket
  } as const
  d.setSlot(launch, failed)
  d.state.failures = Ordered.insert(d.state.failures, ticket, failed)
  let oldest = Ordered.first(d.state.failures)
  while (oldest !== undefined && (oldest.until <= d.now || d.state.failures.size > failureLimit)) {
    Places.forget(d, oldest)
    oldest = Ordered.first(d.state.failures)
  }
}

/** The failures that are remembered now: those at the head may have expired. */
export const countFailures = <K, A, E>({ failures }: State<K, A, E>, now: number): number => {
  let count = failures.size
  for (const { until } of Ordered.values(failures)) {
    if (until > now) break
    count--
  }
  return count
}

// -----------------------------------------------------------------------------
// Adopt
// -----------------------------------------------------------------------------

/**
 * `set`: puts an open connection under its key, or into the queue for a place. From this step on the pool owns it: it goes live or is
 * closed. Returns the shortage if it is refused; `launch.done` reports every other outcome.
 */
export const adopt = <K, A, E>(d: Draft<K, A, E>, launch: Launch<K, A, E>, value: A): Shortage | undefined => {
  if (d.state.ending !== undefined) {
    d.complete(launch.done, closedExit())
    Places.discard(d, launch)
    return undefined
  }
  const slot = d.slot(launch)
  if (Places.hasRoom(d, launch.group)) {
    Places.takePlace(d, launch.group)
    Places.putAdopted(d, launch, value, undefined)
    return undefined
  }
  if (!mayWait(d, launch.group)) {
    Places.discard(d, launch)
    return refuse(d, launch.group).shortage
  }
  const live = slot?._tag === "Live" ? slot : undefined
  // The session to be replaced is idle, so retire it before any other idle session is evicted.
  const isReplaced = live?.leases === 0
  if (isReplaced) Places.retire(d, live, "Replaced")
  Places.enqueue(d, launch, live === undefined ? undefined : Places.historyOf(live), isReplaced)
  Places.serve(d)
  return undefined
}

// -----------------------------------------------------------------------------
// Release
// -----------------------------------------------------------------------------

/** The outcome of a lease: a `use` that succeeded, a `use` that failed, or neither (`get`, an interruption). */
export type Outcome = "success" | "error" | "neither"

/** Ends a lease, moves `lastUsedAt`, and counts the outcome. The last release closes a session that was retired before. */
export const release = <K, A, E>(d: Draft<K, A, E>, identity: Identity<K>, outcome: Outcome): void => {
  const slot = d.live(identity)
  if (slot === undefined) return releaseLeaving(d, identity.id, outcome)
  const errorCount = outcome === "success" ? 0 : outcome === "error" ? slot.errorCount + 1 : slot.errorCount
  const live = { ...slot, lastUsedAt: d.now, leases: slot.leases - 1, errorCount }
  Places.putUsed(d, slot, live)
  if (outcome === "error") d.count("errors")
  // Only this error can reach the limit: a session at the limit is no longer live.
  const reason = errorCount >= d.options.maxErrorCount
    ? "Errors"
    : live.leases === 0 && live.session.idleTimeToLive === 0
    ? "IdleTimeout"
    : undefined
  if (reason !== undefined) retireById(d, live.session, reason)
  else if (live.leases === 0) Places.serve(d)
}

const releaseLeaving = <K, A, E>(d: Draft<K, A, E>, id: number, outcome: Outcome): void => {
  const leaving = Option.getOrUndefined(HashMap.get(d.state.leaving, id))
  // `forceClose` has taken the lease back.
  if (leaving === undefined || leaving.holders === 0) return
  if (leaving.reason !== undefined) d.state.leases--
  if (outcome === "error") d.count("errors")
  Places.leave(d, { ...leaving, holders: leaving.holders - 1 })
}

/** Counts an error of a session, or of the present one of a key; at `maxErrorCount` it is retired at once. */
export const recordError = <K, A, E>(
  d: Draft<K, A, E>,
  identity: { readonly key: K; readonly hash: number; readonly id?: number }
): void => {
  const slot = d.slot(identity)
  if (slot?._tag !== "Live" || (identity.id !== undefined && identity.id !== slot.session.id)) return
  d.count("errors")
  const live = { ...slot, errorCount: slot.errorCount + 1 }
  d.setSlot(live.session, live)
  if (live.errorCount >= d.options.maxErrorCount) Places.retire(d, live, "Errors")
}

// -----------------------------------------------------------------------------
// Check
// -----------------------------------------------------------------------------

/** Begins a check of a session in the background, if it is idle and none runs. It is no lease and no use. */
export const startCheck = <K, A, E>(d: Draft<K, A, E>, session: Session<K, A>, check: Check): void => {
  const slot = d.live(session)
  if (slot === undefined || slot.leases > 0 || slot.check !== undefined) return
  d.setSlot(session, { ...slot, check })
  d.actions.push({ _tag: "Check", session, check })
}

/** Ends a check. A refused session is retired, and the callers that wait for the check launch a new one. */
export const checked = <K, A, E>(d: Draft<K, A, E>, session: Session<K, A>, check: Check, isValid: boolean): void => {
  const slot = d.live(session)
  if (slot !== undefined) {
    const live = { ...slot, check: undefined, validatedAt: isValid ? d.now : slot.validatedAt }
    d.setSlot(session, live)
    if (!isValid) Places.retire(d, live, "Invalid")
  }
  d.complete(check.isValid, Exit.succeed(isValid))
}

// -----------------------------------------------------------------------------
// Retire
// -----------------------------------------------------------------------------

/** Retires this very session, if it is still in the pool. */
export const retireById = <K, A, E>(d: Draft<K, A, E>, identity: Identity<K>, reason: Reason): boolean => {
  const live = d.live(identity)
  if (live !== undefined) Places.retire(d, live, reason)
  return live !== undefined
}

/** Retires the session or launch of a key, or forgets its failure, if it `matches`. True if a session or launch was retired. */
export const invalidate = <K, A, E>(
  d: Draft<K, A, E>,
  identity: { readonly key: K; readonly hash: number },
  matches: (slot: Slot<K, A, E>) => boolean
): boolean => {
  const slot = d.slot(identity)
  // A waiting launch has not started. Its session will be newer than this call.
  if (slot === undefined || slot._tag === "Waiting" || !matches(slot)) return false
  switch (slot._tag) {
    case "Live":
      Places.retire(d, slot, "Invalidated")
      return true
    case "Launching": {
      const { callers: holders, launch } = slot
      d.removeSlot(launch)
      d.state.launching--
      Places.leave(d, { opening: launch, reason: undefined, holders, hasPlace: true })
      return true
    }
    case "Failed":
      Places.forget(d, slot)
      return false
  }
}

/** Whether a slot has expired, so that `expire` would retire or forget it. */
export const isExpired = <K, A, E>(slot: Slot<K, A, E>, now: number): boolean =>
  slot._tag === "Live" ? overdue(slot, now) !== undefined : slot._tag === "Failed" && now >= slot.until

/** Retires or forgets a candidate of the sweep, if it is still expired. True if a session was retired. */
export const expire = <K, A, E>(d: Draft<K, A, E>, identity: Identity<K>): boolean => {
  const slot = d.slot(identity)
  if (slot?._tag === "Failed" && d.now >= slot.until) Places.forget(d, slot)
  const reason = slot?._tag === "Live" ? overdue(slot, d.now) : undefined
  if (slot?._tag === "Live" && reason !== undefined) Places.retire(d, slot, reason)
  return reason !== undefined
}

// -----------------------------------------------------------------------------
// Close
// -----------------------------------------------------------------------------

/** Reports a close that ended, or timed out (no `exit`), after `duration`. The first of the two frees the place. */
export const closed = <K, A, E>(
  d: Draft<K, A, E>,
  { opening: { id, key }, reason }: Leaving<K, A, E>,
  duration: number,
  exit: Exit.Exit<void, unknown> | undefined
): void => {
  if (exit === undefined) d.emit({ _tag: "CloseTimedOut", key, id, duration })
  else if (reason !== undefined) d.emit({ _tag: "Closed", key, id, reason, duration, exit })
  const leaving = Option.getOrUndefined(HashMap.get(d.state.leaving, id))
  if (leaving === undefined) return
  d.state.leaving = HashMap.remove(d.state.leaving, id)
  if (reason !== undefined) {
    const { totals } = d.state
    d.state.totals = { ...totals, closes: { ...totals.closes, [reason]: totals.closes[reason] + 1 } }
  }
  if (leaving.hasPlace) {
    Places.returnPlace(d, leaving.opening.group)
    Places.serve(d)
  }
  endIfEmpty(d)
}

// -----------------------------------------------------------------------------
// End
// -----------------------------------------------------------------------------

/** The pool ends: every caller that waits gets `PoolClosed`, every launch is cancelled, every session is retired. */
export const shutdown = <K, A, E>(d: Draft<K, A, E>, ending: Deferred.Deferred<void>): void => {
  for (const { launch } of Ordered.values(d.state.waiting)) {
    d.complete(launch.done, closedExit())
    if (launch.adopts !== undefined) Places.discard(d, launch)
  }
  d.state.ending = ending
  d.state.waiting = Ordered.empty
  d.state.waiters = 0
  for (const leaving of HashMap.values(d.state.leaving)) {
    // Only launches that were invalidated and still have callers.
    if (leaving.reason !== undefined || leaving.holders === 0 || !("done" in leaving.opening)) continue
    d.complete(leaving.opening.done, closedExit())
    Places.leave(d, { ...leaving, holders: 0 })
  }
  for (const slot of HashMap.values(d.state.slots)) {
    if (slot._tag === "Live") {
      Places.retire(d, slot, "PoolClosed")
    } else if (slot._tag === "Launching") {
      d.complete(slot.launch.done, closedExit())
      Places.discard(d, slot.launch)
    }
  }
  d.state.slots = HashMap.empty()
  d.state.launching = 0
  d.state.failures = Ordered.empty
  endIfEmpty(d)
}

/** After `drainTimeout`: closes what is still leased. */
export const forceClose = <K, A, E>(d: Draft<K, A, E>): void => {
  for (const leaving of HashMap.values(d.state.leaving)) {
    if (leaving.holders === 0) continue
    d.state.leases -= leaving.holders
    Places.leave(d, { ...leaving, holders: 0 })
  }
}

/** In an ending pool, the step that takes out the last thing ends the pool. */
const endIfEmpty = <K, A, E>(d: Draft<K, A, E>): void => {
  const { ending, leaving } = d.state
  if (ending !== undefined && HashMap.isEmpty(leaving)) d.complete(ending, Exit.void)
}
