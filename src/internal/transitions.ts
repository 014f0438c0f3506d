/**
 * Everything that can happen to a pool, in the order of a session's life. Each transition is a pure function
 * `(state, …) => [{ result, actions }, state]`, run by one `Ref.modify`; the shell then carries out what it says. The two
 * that find a session and touch it have no actions: `(state, …) => [result, state]`.
 *
 * A caller's claim is the id of what it waits for or leases, never the key: a release, error or time-out that belongs
 * to an old session finds another id in the slot and changes nothing there.
 */
import type { Cause, Deferred } from "effect"
import { Hash, HashMap, Option } from "effect"
import type { Limits, Step } from "./draft.ts"
import {
  becomeIdle,
  canEvict,
  detach,
  detached,
  Draft,
  endClosing,
  endIfEmpty,
  enqueue,
  hasRoom,
  retire,
  returnPlace,
  serve,
  startClosing,
  takePlace,
  wasIdle
} from "./draft.ts"
import * as Queue from "./queue.ts"
import type { Identity, Launch, Phase, Reason, Session, Slot, Validation } from "./state.ts"
import { Failed, Launching, Live, State, Waiting } from "./state.ts"

export type { Limits, Outcome, Step } from "./draft.ts"

const none: ReadonlyArray<never> = []

const noOutcome = { result: undefined, actions: none }

const unchanged = <R, K, A, E>(state: State<K, A, E>, result: R): Step<R, K, A, E> => [{ result, actions: none }, state]

const touched = <K, A>(live: Live<K, A>, now: number, leases: number, validation = live.validation): Live<K, A> =>
  new Live(live.session, now, live.requestCount + 1, live.errorCount, leases, live.validatedAt, validation)

const slotOf = <K, A, E>(state: State<K, A, E>, key: K) => Option.getOrUndefined(HashMap.get(state.slots, key))

// What every request runs hashes its key once: a use would do it four times.

const slotAt = <K, A, E>(state: State<K, A, E>, key: K, hash: number) =>
  Option.getOrUndefined(HashMap.getHash(state.slots, key, hash))

/** `HashMap` exports no `set` that takes the hash. */
const withSlot = <K, A, E>(state: State<K, A, E>, key: K, hash: number, slot: Live<K, A>) =>
  HashMap.modifyHash(state.slots, key, hash, () => Option.some(slot))

const isUnchecked = <K, A>(live: Live<K, A>, limits: Limits, now: number): boolean =>
  live.validation !== undefined ||
  (live.leases === 0 && now - Math.max(live.lastUsedAt, live.validatedAt) > limits.validateAfter)

// -----------------------------------------------------------------------------
// Lookup and touch
// -----------------------------------------------------------------------------

/** What a step returns that nothing is to be done after. */
export type Hit<R, K, A, E> = readonly [result: R, state: State<K, A, E>]

/** The atomic lookup-and-touch: no launch, no lease. */
export const touch = <K, A, E>(
  state: State<K, A, E>,
  key: K,
  now: number
): Hit<Option.Option<A>, K, A, E> => {
  const hash = Hash.hash(key)
  const slot = slotAt(state, key, hash)
  if (slot === undefined || slot._tag !== "Live") return [Option.none(), state]
  const slots = withSlot(state, key, hash, touched(slot, now, slot.leases))
  return [Option.some(slot.session.value), new State(slots, state.active, state.hits + 1, state.inventory)]
}

/** The fast path of `acquire`: leases a live session that needs no validation, else changes nothing. */
export const lease = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  key: K,
  hash: number,
  now: number
): Hit<Session<K, A> | undefined, K, A, E> => {
  const slot = slotAt(state, key, hash)
  if (slot === undefined || slot._tag !== "Live" || isUnchecked(slot, limits, now)) return [undefined, state]
  const slots = withSlot(state, key, hash, touched(slot, now, slot.leases + 1))
  const active = slot.leases === 0 ? state.active + 1 : state.active
  return [slot.session, new State(slots, active, state.hits + 1, state.inventory)]
}

/** What a caller has got: a lease, a claim on a launch or a validation, or a refusal. */
export type Acquired<K, A, E> =
  | { readonly _tag: "Leased"; readonly session: Session<K, A> }
  /** Leased; usable once the validation says true. `begin`: it is the caller's to start. */
  | {
    readonly _tag: "Validate"
    readonly session: Session<K, A>
    readonly validation: Validation
    readonly begin: boolean
  }
  | { readonly _tag: "Join"; readonly launch: Launch<K, A, E>; readonly queued: boolean }
  | { readonly _tag: "Failed"; readonly cause: Cause.Cause<E> }
  | { readonly _tag: "Full" }
  | { readonly _tag: "Closed" }
  | { readonly _tag: "Absent" }

/** Leases what is there or joins what is coming; says `Absent` instead of launching. */
export const join = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  key: K,
  now: number,
  validation: Validation
): Step<Acquired<K, A, E>, K, A, E> => {
  const slot = slotOf(state, key)
  if (slot === undefined || slot._tag === "Failed") return unchanged(state, { _tag: "Absent" })
  const d = new Draft(state, limits)
  switch (slot._tag) {
    case "Live": {
      d.hits++
      if (slot.leases === 0) d.active++
      const { session } = slot
      if (!isUnchecked(slot, limits, now)) {
        d.slots = HashMap.set(d.slots, key, touched(slot, now, slot.leases + 1))
        return d.end({ _tag: "Leased", session })
      }
      const begin = slot.validation === undefined
      // One lease for the caller, one for the validation itself: nothing can close the session under it.
      d.slots = HashMap.set(
        d.slots,
        key,
        touched(slot, now, slot.leases + (begin ? 2 : 1), slot.validation ?? validation)
      )
      return d.end({ _tag: "Validate", session, validation: slot.validation ?? validation, begin })
    }
    case "Launching": {
      d.count("joins")
      d.slots = HashMap.set(d.slots, key, new Launching(slot.launch, slot.callers + 1))
      return d.end({ _tag: "Join", launch: slot.launch, queued: false })
    }
    case "Waiting": {
      if (d.inventory.waiting >= limits.maxWaiting) {
        return unchanged(state, { _tag: "Full" })
      }
      d.count("joins")
      d.slots = HashMap.set(d.slots, key, new Waiting(slot.launch, slot.callers + 1, slot.ticket))
      d.own.waiting++
      return d.end({ _tag: "Join", launch: slot.launch, queued: true })
    }
  }
}

/** As `join`, but launches what is absent, at once or when a place is free. */
export const acquire = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  now: number,
  launch: Launch<K, A, E>,
  validation: Validation
): Step<Acquired<K, A, E>, K, A, E> => {
  const { group, key } = launch
  if (state.inventory.phase._tag === "Closing") return unchanged(state, { _tag: "Closed" })
  const slot = slotOf(state, key)
  if (slot !== undefined && slot._tag !== "Failed") return join(state, limits, key, now, validation)
  if (slot !== undefined && now < slot.until) return unchanged(state, { _tag: "Failed", cause: slot.cause })
  const d = new Draft(state, limits)
  if (hasRoom(d, group)) {
    takePlace(d, group)
    d.slots = HashMap.set(d.slots, key, new Launching(launch, 1))
    d.own.launching++
    d.count("misses")
    d.actions.push({ _tag: "Launch", launch })
    return d.end({ _tag: "Join", launch, queued: false })
  }
  // A caller that an eviction makes room for is on its way in, so `maxWaiting` does not turn it away.
  if (d.inventory.waiting >= limits.maxWaiting && !canEvict(d, group)) {
    // Not `unchanged`: what the search dropped because it is in use need not be dropped by the next refusal again.
    return d.end({ _tag: "Full" })
  }
  d.count("misses")
  const ticket = enqueue(d, { key, group, granted: undefined })
  d.slots = HashMap.set(d.slots, key, new Waiting(launch, 1, ticket))
  serve(d)
  return d.end({ _tag: "Join", launch, queued: true })
}

/** Gives up a claim: on a launch (the last caller to go cancels it) or, if it has landed by now, the lease. */
export const abandon = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  key: K,
  id: number,
  now: number
): Step<void, K, A, E> => {
  const slot = slotOf(state, key)
  if (slot?._tag === "Waiting" && slot.launch.id === id) return leaveQueue(state, limits, slot)
  if (slot?._tag === "Launching" && slot.launch.id === id) {
    const d = new Draft(state, limits)
    if (slot.callers > 1) {
      d.slots = HashMap.set(d.slots, key, new Launching(slot.launch, slot.callers - 1))
    } else {
      d.slots = HashMap.remove(d.slots, key)
      d.own.launching--
      detach(d, slot.launch, 0)
      d.actions.push({ _tag: "Cancel", launch: slot.launch })
    }
    return d.end(undefined)
  }
  const entry = Option.getOrUndefined(HashMap.get(state.inventory.detached, id))
  if (entry !== undefined && entry.callers > 0) {
    const d = new Draft(state, limits)
    detach(d, entry.launch, entry.callers - 1)
    if (entry.callers === 1) d.actions.push({ _tag: "Cancel", launch: entry.launch })
    return d.end(undefined)
  }
  return release(state, limits, { id, key, hash: Hash.hash(key) }, now, "neither")
}

const leaveQueue = <K, A, E>(state: State<K, A, E>, limits: Limits, slot: Waiting<K, A, E>): Step<void, K, A, E> => {
  const d = new Draft(state, limits)
  const { key } = slot.launch
  d.own.waiting--
  if (slot.callers > 1) {
    d.slots = HashMap.set(d.slots, key, new Waiting(slot.launch, slot.callers - 1, slot.ticket))
  } else {
    d.slots = HashMap.remove(d.slots, key)
    d.own.queue = Queue.remove(d.inventory.queue, slot.ticket)
  }
  return d.end(undefined)
}

/** After `acquireTimeout`: leaves the queue if the claim still waits for a place (true), else changes nothing. */
export const giveUp = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  key: K,
  id: number
): Step<boolean, K, A, E> => {
  const slot = slotOf(state, key)
  if (slot?._tag !== "Waiting" || slot.launch.id !== id) return unchanged(state, false)
  const [{ actions }, next] = leaveQueue(state, limits, slot)
  return [{ result: true, actions }, next]
}

// -----------------------------------------------------------------------------
// Launching
// -----------------------------------------------------------------------------

/** The lookup has succeeded: each caller's claim is now a lease. False: nobody wants the connection; close it. */
export const landed = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  launch: Launch<K, A, E>,
  value: A,
  startedAt: number,
  now: number,
  expiresAt: number
): Step<Session<K, A> | undefined, K, A, E> => {
  const { group, hash, id, idleTimeToLive, key, scope } = launch
  const session = { id, key, hash, group, value, scope, createdAt: now, openedAt: now, expiresAt, idleTimeToLive }
  const d = new Draft(state, limits)
  const slot = d.slot(key)
  if (slot?._tag === "Launching" && slot.launch === launch) {
    d.slots = HashMap.set(d.slots, key, new Live(session, now, slot.callers, 0, slot.callers, now, undefined))
    d.active++
    d.own.launching--
    d.own.live++
    d.count("launches")
    d.actions.push({ _tag: "Open", session, startedAt }, { _tag: "Deliver", launch, value })
    return d.end(session)
  }
  const entry = detached(d, launch)
  if (entry === undefined || entry.callers === 0) return unchanged(state, undefined)
  // Invalidated while launching: those who wait get it, and nobody else.
  d.own.detached = HashMap.remove(d.inventory.detached, id)
  d.own.retired = HashMap.set(d.inventory.retired, id, { session, leases: entry.callers, reason: "Invalidated" })
  d.count("launches")
  d.actions.push(
    { _tag: "Open", session, startedAt },
    { _tag: "Deliver", launch, value },
    { _tag: "Retire", session, reason: "Invalidated" }
  )
  return d.end(session)
}

/** The lookup has failed or timed out. True: its callers are told; false: it had been cancelled before. */
export const launchFailed = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  launch: Launch<K, A, E>,
  cause: Cause.Cause<E>,
  remember: boolean,
  now: number
): Step<boolean, K, A, E> => {
  const d = new Draft(state, limits)
  const slot = d.slot(launch.key)
  if (slot?._tag === "Launching" && slot.launch === launch) {
    d.slots = remember && limits.failureTimeToLive > 0
      ? HashMap.set(d.slots, launch.key, new Failed(launch.key, cause, now + limits.failureTimeToLive))
      : HashMap.remove(d.slots, launch.key)
    d.own.launching--
  } else {
    const entry = detached(d, launch)
    if (entry === undefined || entry.callers === 0) return unchanged(state, false)
  }
  d.count("launchFailures")
  // The place stays taken until what the lookup acquired is closed.
  detach(d, launch, 0)
  d.actions.push({ _tag: "Refuse", launch, cause })
  return d.end(true)
}

/** What a launch without callers had acquired is closed (or its close timed out): its place is free. */
export const launchClosed = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  launch: Launch<K, A, E>
): Step<void, K, A, E> => {
  const d = new Draft(state, limits)
  if (detached(d, launch) === undefined) return unchanged(state, undefined)
  d.own.detached = HashMap.remove(d.inventory.detached, launch.id)
  endClosing(d, launch.group)
  endIfEmpty(d)
  return d.end(undefined)
}

// -----------------------------------------------------------------------------
// Adoption
// -----------------------------------------------------------------------------

export type Adopted<K, A> =
  | { readonly _tag: "Adopted"; readonly session: Session<K, A> }
  | { readonly _tag: "Queued"; readonly ticket: number; readonly entry: Entry }
  | { readonly _tag: "Full" }
  | { readonly _tag: "Closed" }

/** What `set` carries over from the session that it replaces. */
export interface Entry {
  readonly createdAt: number
  readonly requestCount: number
  readonly errorCount: number
}

/**
 * Puts an open connection under its key. It needs a place like a launch: one that is free, or (`place: "granted"`) one
 * that was handed to it; else it queues.
 */
export const adopt = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  session: Session<K, A>,
  place: { readonly granted: Deferred.Deferred<boolean>; readonly held: boolean },
  entry: Entry
): Step<Adopted<K, A>, K, A, E> => {
  const { group, key, openedAt: now } = session
  const d = new Draft(state, limits)
  if (d.inventory.phase._tag === "Closing") {
    if (place.held) returnPlace(d, group)
    return d.end({ _tag: "Closed" })
  }
  const slot = d.slot(key)
  const carried = slot?._tag === "Live"
    ? { createdAt: slot.session.createdAt, requestCount: slot.requestCount, errorCount: slot.errorCount }
    : entry
  if (!place.held) {
    if (!hasRoom(d, group)) {
      if (d.inventory.waiting >= limits.maxWaiting && !canEvict(d, group)) {
        return d.end({ _tag: "Full" })
      }
      const ticket = enqueue(d, { key, group, granted: place.granted })
      serve(d)
      return d.end({ _tag: "Queued", ticket, entry: carried })
    }
    takePlace(d, group)
  }
  let id = session.id
  let callers = 0
  if (slot?._tag === "Live") {
    retire(d, slot, "Replaced")
  } else if (slot?._tag === "Waiting" || slot?._tag === "Launching") {
    // The adopted session takes over the launch's id, so that the callers' claims become leases of it.
    id = slot.launch.id
    callers = slot.callers
    if (slot._tag === "Waiting") {
      d.own.queue = Queue.remove(d.inventory.queue, slot.ticket)
      d.own.waiting -= callers
    } else {
      d.own.launching--
      detach(d, slot.launch, 0)
      d.actions.push({ _tag: "Cancel", launch: slot.launch })
    }
    d.actions.push({ _tag: "Deliver", launch: slot.launch, value: session.value })
    d.active++
  }
  const adopted = { ...session, id, createdAt: carried.createdAt }
  d.actions.push({ _tag: "Adopt", session: adopted })
  d.slots = HashMap.set(
    d.slots,
    key,
    new Live(adopted, now, carried.requestCount + callers, carried.errorCount, callers, now, undefined)
  )
  d.own.live++
  if (callers === 0) becomeIdle(d, key, group)
  return d.end({ _tag: "Adopted", session: adopted })
}

/** A caller of `set` goes away: out of the queue, or with the place that it was handed. True: it was in the queue. */
export const returnGrant = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  ticket: number,
  group: unknown
): Step<boolean, K, A, E> => {
  const d = new Draft(state, limits)
  if (HashMap.has(d.inventory.queue.entries, ticket)) {
    d.own.queue = Queue.remove(d.inventory.queue, ticket)
    d.own.waiting--
    return d.end(true)
  }
  if (d.inventory.phase._tag === "Open") returnPlace(d, group)
  return d.end(false)
}

// -----------------------------------------------------------------------------
// Validation
// -----------------------------------------------------------------------------

/** Has a session that the caller leases validated: begins it, or joins the one that runs; undefined if it is retired. */
export const revalidate = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  key: K,
  id: number,
  validation: Validation
): Step<{ readonly validation: Validation; readonly begin: Session<K, A> | undefined } | undefined, K, A, E> => {
  const slot = slotOf(state, key)
  if (slot?._tag !== "Live" || slot.session.id !== id) return unchanged(state, undefined)
  if (slot.validation !== undefined) return unchanged(state, { validation: slot.validation, begin: undefined })
  return beginValidation(state, limits, slot, validation)
}

/** Begins the background validation of a session if it is idle and none runs; it is no use of the session. */
export const probe = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  key: K,
  id: number,
  validation: Validation
): Step<{ readonly validation: Validation; readonly begin: Session<K, A> | undefined } | undefined, K, A, E> => {
  const slot = slotOf(state, key)
  // A validation that runs has a lease.
  return slot?._tag === "Live" && slot.session.id === id && slot.leases === 0
    ? beginValidation(state, limits, slot, validation)
    : unchanged(state, undefined)
}

const beginValidation = <K, A, E>(state: State<K, A, E>, limits: Limits, live: Live<K, A>, validation: Validation) => {
  const d = new Draft(state, limits)
  const { errorCount, lastUsedAt, leases, requestCount, session, validatedAt } = live
  if (leases === 0) d.active++
  d.slots = HashMap.set(
    d.slots,
    session.key,
    new Live(session, lastUsedAt, requestCount, errorCount, leases + 1, validatedAt, validation)
  )
  return d.end({ validation, begin: session })
}

/** The validation is over: its own lease ends, and a session found invalid is retired. */
export const validated = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  key: K,
  id: number,
  valid: boolean,
  now: number
): Step<void, K, A, E> => {
  const slot = slotOf(state, key)
  if (slot?._tag !== "Live" || slot.session.id !== id) {
    return release(state, limits, { id, key, hash: Hash.hash(key) }, now, "neither")
  }
  const d = new Draft(state, limits)
  const { errorCount, lastUsedAt, requestCount, session } = slot
  const leases = slot.leases - 1
  if (!valid) {
    retire(d, slot, "Invalid", leases)
    return d.end(undefined)
  }
  const live = new Live(session, lastUsedAt, requestCount, errorCount, leases, now, undefined)
  d.slots = HashMap.set(d.slots, key, live)
  if (leases === 0) {
    d.active--
    if (session.idleTimeToLive === 0) retire(d, live, "IdleTimeout")
    else becomeIdle(d, key, session.group)
  }
  return d.end(undefined)
}

// -----------------------------------------------------------------------------
// Release and errors
// -----------------------------------------------------------------------------

/** How a lease went: a `use` that succeeded, one that failed, or neither (`get`, an interruption). */
export type Result = "success" | "error" | "neither"

/** Ends a lease, moves `lastUsedAt`, and counts how it went, in one step. */
export const release = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  { hash, id, key }: Identity<K>,
  now: number,
  how: Result
): Step<void, K, A, E> => {
  const slot = slotAt(state, key, hash)
  if (slot?._tag !== "Live" || slot.session.id !== id) return releaseRetired(state, limits, id, how)
  const { requestCount, session, validatedAt, validation } = slot
  const leases = slot.leases - 1
  const errorCount = how === "success" ? 0 : how === "error" ? slot.errorCount + 1 : slot.errorCount
  const live = new Live(session, now, requestCount, errorCount, leases, validatedAt, validation)
  const active = leases === 0 ? state.active - 1 : state.active
  const staysAsIs = leases > 0 ||
    (session.idleTimeToLive > 0 && wasIdle(state.inventory, limits, key, hash, session.group))
  if (how !== "error" && staysAsIs) {
    // Nothing follows from the end of this lease.
    return [noOutcome, new State(withSlot(state, key, hash, live), active, state.hits, state.inventory)]
  }
  const d = new Draft(state, limits)
  d.slots = HashMap.set(d.slots, key, live)
  d.active = active
  if (how === "error") d.count("errors")
  // Only by this error: a session at the threshold is live no more.
  if (errorCount >= limits.maxErrorCount) {
    retire(d, live, "Errors")
  } else if (leases === 0) {
    if (session.idleTimeToLive === 0) retire(d, live, "IdleTimeout")
    else becomeIdle(d, key, session.group)
  }
  return d.end(undefined)
}

const releaseRetired = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  id: number,
  how: Result
): Step<void, K, A, E> => {
  const entry = Option.getOrUndefined(HashMap.get(state.inventory.retired, id))
  // No such lease: the closed pool has taken it back.
  if (entry === undefined || entry.leases === 0) return unchanged(state, undefined)
  const d = new Draft(state, limits)
  if (how === "error") d.count("errors")
  const leases = entry.leases - 1
  d.own.retired = HashMap.set(d.inventory.retired, id, { ...entry, leases })
  if (leases === 0) {
    startClosing(d, entry.session.group)
    d.actions.push({ _tag: "Close", session: entry.session, reason: entry.reason })
  }
  return d.end(undefined)
}

/** Counts an error of the present session; at the threshold it is retired at once. */
export const recordError = <K, A, E>(state: State<K, A, E>, limits: Limits, key: K): Step<void, K, A, E> => {
  const slot = slotOf(state, key)
  if (slot?._tag !== "Live") return unchanged(state, undefined)
  const { lastUsedAt, leases, requestCount, session, validatedAt, validation } = slot
  const live = new Live(session, lastUsedAt, requestCount, slot.errorCount + 1, leases, validatedAt, validation)
  const d = new Draft(state, limits)
  d.slots = HashMap.set(d.slots, key, live)
  d.count("errors")
  if (live.errorCount >= limits.maxErrorCount) retire(d, live, "Errors")
  return d.end(undefined)
}

// -----------------------------------------------------------------------------
// Retirement and close
// -----------------------------------------------------------------------------

/** Retires whatever is under the key; `id` narrows it to one session or launch. True if something was retired. */
export const invalidate = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  key: K,
  id?: number
): Step<boolean, K, A, E> => {
  const slot = slotOf(state, key)
  const d = new Draft(state, limits)
  switch (slot?._tag) {
    case "Live": {
      if (id !== undefined && slot.session.id !== id) return unchanged(state, false)
      retire(d, slot, "Invalidated")
      return d.end(true)
    }
    case "Launching": {
      if (id !== undefined && slot.launch.id !== id) return unchanged(state, false)
      d.slots = HashMap.remove(d.slots, key)
      d.own.launching--
      detach(d, slot.launch, slot.callers)
      return d.end(true)
    }
    case "Failed": {
      d.slots = HashMap.remove(d.slots, key)
      return d.end(false)
    }
    // What waits for a place is not launched yet: whoever waits gets a session newer than this call.
    default:
      return unchanged(state, false)
  }
}

/** Retires a session whose connection has died. */
export const disconnected = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  key: K,
  id: number
): Step<boolean, K, A, E> => {
  const slot = slotOf(state, key)
  if (slot?._tag !== "Live" || slot.session.id !== id) return unchanged(state, false)
  const d = new Draft(state, limits)
  retire(d, slot, "Disconnected")
  return d.end(true)
}

/** Why a slot has expired: a session's reason, or `Failure` for a remembered failure; undefined if it has not. */
export const expiry = <K, A, E>(
  slot: Slot<K, A, E>,
  now: number
): Reason | "Failure" | undefined => {
  if (slot._tag === "Failed") return now >= slot.until ? "Failure" : undefined
  if (slot._tag !== "Live") return undefined
  if (now >= slot.session.expiresAt) return "MaxLifetime"
  // A validation in the background is no use: else one that always runs with the sweep would keep a session for ever.
  const users = slot.validation === undefined ? slot.leases : slot.leases - 1
  return users === 0 && now - slot.lastUsedAt > slot.session.idleTimeToLive ? "IdleTimeout" : undefined
}

/** Re-checks one candidate of the sweep, and retires it if it has expired. True if a session was retired. */
export const expire = <K, A, E>(state: State<K, A, E>, limits: Limits, key: K, now: number): Step<boolean, K, A, E> => {
  const slot = slotOf(state, key)
  const reason = slot === undefined ? undefined : expiry(slot, now)
  if (slot === undefined || reason === undefined) return unchanged(state, false)
  const d = new Draft(state, limits)
  if (slot._tag === "Live" && reason !== "Failure") {
    retire(d, slot, reason)
    return d.end(true)
  }
  d.slots = HashMap.remove(d.slots, key)
  return d.end(false)
}

/** A session is closed (or its close timed out): its place is free. */
export const closed = <K, A, E>(state: State<K, A, E>, limits: Limits, id: number): Step<void, K, A, E> => {
  const entry = Option.getOrUndefined(HashMap.get(state.inventory.retired, id))
  if (entry === undefined) return unchanged(state, undefined)
  const d = new Draft(state, limits)
  const totals = d.inventory.totals
  d.own.retired = HashMap.remove(d.inventory.retired, id)
  d.own.totals = { ...totals, closes: { ...totals.closes, [entry.reason]: totals.closes[entry.reason] + 1 } }
  endClosing(d, entry.session.group)
  endIfEmpty(d)
  return d.end(undefined)
}

// -----------------------------------------------------------------------------
// The end
// -----------------------------------------------------------------------------

/** Closes the pool: refuses all who wait, cancels all launches, retires all sessions. */
export const shutdown = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  refusal: (key: K) => Cause.Cause<E>,
  phase: Extract<Phase, { readonly _tag: "Closing" }>
): Step<void, K, A, E> => {
  if (state.inventory.phase._tag === "Closing") return unchanged(state, undefined)
  const d = new Draft(state, limits)
  for (const [, waiter] of Queue.entries(d.inventory.queue)) {
    if (waiter.granted !== undefined) d.actions.push({ _tag: "Grant", granted: waiter.granted, place: false })
  }
  d.own.phase = phase
  d.own.queue = Queue.empty
  d.own.waiting = 0
  const refuse = (launch: Launch<K, A, E>) => d.actions.push({ _tag: "Refuse", launch, cause: refusal(launch.key) })
  for (const { callers, launch } of HashMap.values(d.inventory.detached)) {
    if (callers === 0) continue
    refuse(launch)
    detach(d, launch, 0)
    d.actions.push({ _tag: "Cancel", launch })
  }
  for (const slot of HashMap.values(state.slots)) {
    if (slot._tag === "Live") {
      retire(d, slot, "PoolClosed")
    } else if (slot._tag === "Waiting") {
      refuse(slot.launch)
    } else if (slot._tag === "Launching") {
      refuse(slot.launch)
      detach(d, slot.launch, 0)
      d.actions.push({ _tag: "Cancel", launch: slot.launch })
    }
  }
  d.slots = HashMap.empty()
  d.own.launching = 0
  endIfEmpty(d)
  return d.end(undefined)
}

/** After `drainTimeout`: closes what is still leased. */
export const forceClose = <K, A, E>(state: State<K, A, E>, limits: Limits): Step<void, K, A, E> => {
  const d = new Draft(state, limits)
  for (const entry of HashMap.values(state.inventory.retired)) {
    if (entry.leases === 0) continue
    const { reason, session } = entry
    d.own.retired = HashMap.set(d.inventory.retired, session.id, { ...entry, leases: 0 })
    startClosing(d, session.group)
    d.actions.push({ _tag: "Close", session, reason })
  }
  return d.end(undefined)
}
