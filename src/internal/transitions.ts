/**
 * Every step that the shell runs, in the order of a session's life: acquire, land, adopt, release, check, retire, close, end. The parts
 * that several steps share are in `places.ts`: retire, leave, serve the waiters, put a session in.
 *
 * A step is a pure function from one state to the next. It changes only its `Draft`, and lists in the draft's actions the effects that the
 * shell runs after it. `step` in `shell.ts` runs each step in one `Ref.modify`. The exception is `hit`, which `leasing.ts` and `touch` run
 * directly.
 *
 * A caller names its session or launch by id, never by key alone. So a release, error or time-out of an old session finds another id in the
 * slot, and changes nothing there.
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

/** Why a live session has expired; `undefined` if it has not. A lease may last beyond `maxLifetime`, but no new caller gets the session. */
export const overdue = <K, A>(live: Live<K, A>, now: number): Reason | undefined =>
  now >= live.session.expiresAt
    ? "MaxLifetime"
    : live.leases === 0 && now - live.lastUsedAt > live.session.idleTimeToLive
    ? "IdleTimeout"
    : undefined

/**
 * The atomic lookup-and-touch: finds the live session of a key, sets `lastUsedAt`, counts the request, and with `lease` 1 takes a lease.
 * Finds `undefined`, and changes nothing, if there is no session, or if it must be checked or retired first. `acquire` handles those cases.
 *
 * An unbounded pool skips the draft, which saves 5 % of the time of a use.
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

/** Whether a new caller must wait for a check: another caller waits for one, or the session was idle for longer than `validateAfter`. */
const needsCheck = <K, A>(
  { check, lastUsedAt, leases, validatedAt }: Live<K, A>,
  options: Resolved<K, A>,
  now: number
) => check?.isBackground === false || (leases === 0 && now - Math.max(lastUsedAt, validatedAt) > options.validateAfter)

/** The result of `acquire`. */
export type Acquired<K, A, E> =
  /** A lease of a live session. If there is a `check`, the caller uses the session only after the check says true. */
  | { readonly _tag: "Leased"; readonly session: Session<K, A>; readonly check: Check | undefined }
  /** A share in a launch. `waits`: the launch waits for a place. */
  | { readonly _tag: "Joined"; readonly launch: Launch<K, A, E>; readonly waits: boolean }
  /** The remembered failure of the key, or `PoolClosed`. */
  | { readonly _tag: "Failed"; readonly cause: Cause.Cause<E | SessionPoolError> }
  /** No place, and `maxWaiting` callers wait already. */
  | { readonly _tag: "Full"; readonly shortage: Shortage }
  /** No session and no launch, and the call starts none. */
  | { readonly _tag: "Absent" }

/**
 * Leases the session of a key, or joins its launch. If there is neither, starts `launch`, or queues it for a place.
 *
 * `launch` is `undefined` for `getOption`: then the step starts and retires nothing. `check` is the check to run if the session must be
 * validated first. Without it the caller takes the session unchecked.
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
  // True if the session of this caller was retired, below or after a refused check. Its place becomes free, so this caller may wait for it
  // even if `maxWaiting` callers wait already.
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
      // A launch that was promised a place takes further callers, also beyond `maxWaiting`: they need no place of their own.
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

/** Takes a lease of a live session. Starts a check, or joins the one that runs, if the session needs it. */
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

/** Whether one more caller may enter the queue: fewer than `maxWaiting` callers wait, or an idle session can be evicted for this one. */
const mayWait = <K, A, E>(d: Draft<K, A, E>, group: unknown): boolean =>
  d.state.waiters < d.options.maxWaiting || Places.canEvict(d, group)

const refuse = <K, A, E>(d: Draft<K, A, E>, group: unknown) => {
  d.count("refused")
  return { _tag: "Full", shortage: Places.shortageOf(d, group) } as const
}

const closedExit = (): Exit.Exit<never, SessionPoolError> => Exit.fail(poolClosed())

/**
 * The caller of a launch stops waiting. If it was the last caller, the launch is cancelled. A connection of `set` that still waits for a
 * place is closed. If the launch has succeeded meanwhile, the caller's lease ends.
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

/** The caller's `acquireTimeout` has passed: it leaves the queue. Returns `undefined`, and changes nothing, if the launch got its place. */
export const giveUp = <K, A, E>(d: Draft<K, A, E>, launch: Launch<K, A, E>): Shortage | undefined => {
  if (Ordered.get(d.state.waiting, launch.id) === undefined) return undefined
  abandon(d, launch)
  d.count("timedOut")
  return Places.shortageOf(d, launch.group)
}

/** Serves the queue for a waiter whose patience may have passed. Returns the milliseconds until the waiter calls this again. */
export const serveAgain = <K, A, E>(d: Draft<K, A, E>, launch: Launch<K, A, E>): number => {
  Places.serve(d)
  const { patience } = d.options
  const waiter = Ordered.get(d.state.waiting, launch.id)
  const left = waiter === undefined ? 0 : waiter.since + patience - d.now
  // Its patience has passed and no session is idle. The step that makes a session idle serves the queue, so this waiter need not poll.
  return left > 0 ? left : patience
}

// -----------------------------------------------------------------------------
// Land
// -----------------------------------------------------------------------------

/**
 * The lookup ended, or timed out, after `duration`. On success the session goes live, and each caller of the launch gets a lease. On
 * failure the callers get the cause. This wakes the callers. A no-op for a launch that was cancelled or replaced, because it is closing.
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
    // A lookup that interrupted itself is not remembered as a failure, so the next caller tries again.
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
    // The launch was invalidated: its callers get the session, which is retired from the start.
    d.state.leases += leaving.holders
    d.state.leaving = HashMap.set(d.state.leaving, id, { ...leaving, opening: session, reason: "Invalidated" })
    d.emit({ _tag: "Retired", key, id, reason: "Invalidated" })
  }
  d.complete(launch.done, exit)
}

/** How many failures the pool remembers. */
export const failureLimit = 1024

/** Remembers a failed launch for `failureTimeToLive`, and forgets expired failures and those beyond the limit. */
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

/** How many failures are remembered now. Expired ones stay at the head until `remember`, `expire` or a caller forgets them. */
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
 * `set`: puts an open connection under its key, or into the queue for a place. The connection goes live or is closed. Returns the shortage
 * if the queue is full; `launch.done` reports every other outcome.
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
  // The session to replace is idle. Retire it now, so that `serve` evicts no other session for this connection.
  const isReplaced = live?.leases === 0
  if (isReplaced) Places.retire(d, live, "Replaced")
  Places.enqueue(d, launch, live === undefined ? undefined : Places.historyOf(live), isReplaced)
  Places.serve(d)
  return undefined
}

// -----------------------------------------------------------------------------
// Release
// -----------------------------------------------------------------------------

/** The outcome of a lease: a `use` that succeeded, a `use` that failed, or neither. `get` and an interruption are neither. */
export type Outcome = "success" | "error" | "neither"

/** Ends a lease, sets `lastUsedAt`, and counts the outcome. The last release closes a session that was retired earlier. */
export const release = <K, A, E>(d: Draft<K, A, E>, identity: Identity<K>, outcome: Outcome): void => {
  const slot = d.live(identity)
  if (slot === undefined) return releaseLeaving(d, identity.id, outcome)
  const errorCount = outcome === "success" ? 0 : outcome === "error" ? slot.errorCount + 1 : slot.errorCount
  const live = { ...slot, lastUsedAt: d.now, leases: slot.leases - 1, errorCount }
  Places.putUsed(d, slot, live)
  if (outcome === "error") d.count("errors")
  // A session at the limit is retired at once, so a live session reaches it only by this error.
  const reason = errorCount >= d.options.maxErrorCount
    ? "Errors"
    : live.leases === 0 && live.session.idleTimeToLive === 0
    ? "IdleTimeout"
    : undefined
  if (reason !== undefined) retireById(d, live.session, reason)
  else if (live.leases === 0) Places.serve(d)
}

/** Ends a lease of a retired session, or the share of a caller in an invalidated launch. The last holder closes it. */
const releaseLeaving = <K, A, E>(d: Draft<K, A, E>, id: number, outcome: Outcome): void => {
  const leaving = Option.getOrUndefined(HashMap.get(d.state.leaving, id))
  // This claim has ended already: its launch failed, or `forceClose` or `shutdown` ended it.
  if (leaving === undefined || leaving.holders === 0) return
  if (leaving.reason !== undefined) d.state.leases--
  if (outcome === "error") d.count("errors")
  Places.leave(d, { ...leaving, holders: leaving.holders - 1 })
}

/** Counts an error of a session; without an `id`, of the present session of the key. At `maxErrorCount` the session is retired. */
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

/** Starts a background check of an idle session, unless a check runs. The check takes no lease and does not count as use. */
export const startCheck = <K, A, E>(d: Draft<K, A, E>, session: Session<K, A>, check: Check): void => {
  const slot = d.live(session)
  if (slot === undefined || slot.leases > 0 || slot.check !== undefined) return
  d.setSlot(session, { ...slot, check })
  d.actions.push({ _tag: "Check", session, check })
}

/** The check ended. A refused session is retired. Wakes the callers that wait for the check; if it refused, they launch a new session. */
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

/** Retires the live session with this id, if there is one. Returns whether there was. */
export const retireById = <K, A, E>(d: Draft<K, A, E>, identity: Identity<K>, reason: Reason): boolean => {
  const live = d.live(identity)
  if (live !== undefined) Places.retire(d, live, reason)
  return live !== undefined
}

/** If the slot `matches`: retires its session or running launch, or forgets its failure. True if a session or launch was retired. */
export const invalidate = <K, A, E>(
  d: Draft<K, A, E>,
  identity: { readonly key: K; readonly hash: number },
  matches: (slot: Slot<K, A, E>) => boolean
): boolean => {
  const slot = d.slot(identity)
  // The lookup of a waiting launch has not started, so its session will be newer than this call.
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

/** Whether a slot has expired, so that `expire` would retire its session or forget its failure. */
export const isExpired = <K, A, E>(slot: Slot<K, A, E>, now: number): boolean =>
  slot._tag === "Live" ? overdue(slot, now) !== undefined : slot._tag === "Failed" && now >= slot.until

/** The step of the sweep for one expired slot. Checks it again: a caller may have used it since. True if a session was retired. */
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

/** The finalizers ended with `exit`, or without an `exit` took longer than `closeTimeout`. The first of the two returns the place. */
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

/** The pool ends: every waiting caller fails with `PoolClosed`, every launch is cancelled, every session is retired. */
export const shutdown = <K, A, E>(d: Draft<K, A, E>, ending: Deferred.Deferred<void>): void => {
  for (const { launch } of Ordered.values(d.state.waiting)) {
    d.complete(launch.done, closedExit())
    if (launch.adopts !== undefined) Places.discard(d, launch)
  }
  d.state.ending = ending
  d.state.waiting = Ordered.empty
  d.state.waiters = 0
  for (const leaving of HashMap.values(d.state.leaving)) {
    // Cancel the invalidated launches that still have callers.
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

/** `drainTimeout` has passed: closes the sessions that are still leased. */
export const forceClose = <K, A, E>(d: Draft<K, A, E>): void => {
  for (const leaving of HashMap.values(d.state.leaving)) {
    if (leaving.holders === 0) continue
    d.state.leases -= leaving.holders
    Places.leave(d, { ...leaving, holders: 0 })
  }
}

/** In an ending pool, the step that closes the last session or launch completes `ending`. */
const endIfEmpty = <K, A, E>(d: Draft<K, A, E>): void => {
  const { ending, leaving } = d.state
  if (ending !== undefined && HashMap.isEmpty(leaving)) d.complete(ending, Exit.void)
}
