/** The end of a launch: its session goes live, or its callers are told why not. */
import type { Cause } from "effect"
import { HashMap } from "effect"
import type { Limits, Step } from "../draft.ts"
import {
  detach,
  detached,
  Draft,
  endClosing,
  endIfEmpty,
  slotAt,
  startLingering,
  unchanged,
  withSlot
} from "../draft.ts"
import type { Launch, Session, State } from "../state.ts"
import { Failed, Live } from "../state.ts"

/** The lookup has succeeded: each caller's claim is now a lease. `undefined`: nobody wants the connection; close it. */
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
  const slot = slotAt(state, key, hash)
  if (slot?._tag === "Launching" && slot.launch === launch) {
    d.slots = withSlot(state, key, hash, new Live(session, now, slot.callers, 0, slot.callers, now, undefined))
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
  d.own.retired = HashMap.set(d.inventory.retired, id, {
    session,
    leases: entry.callers,
    reason: "Invalidated",
    lingers: false
  })
  d.count("launches")
  d.actions.push(
    { _tag: "Open", session, startedAt },
    { _tag: "Deliver", launch, value },
    { _tag: "Retire", session, reason: "Invalidated" }
  )
  return d.end(session)
}

/** How a lookup failed, after so many milliseconds. */
export interface LookupFailure<out E> {
  readonly cause: Cause.Cause<E>
  readonly duration: number
  readonly timedOut: boolean
}

/** The lookup has failed or timed out: its callers are told, unless it was cancelled before. False: it has landed, or is closed. */
export const launchFailed = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  launch: Launch<K, A, E>,
  failure: LookupFailure<E>,
  remember: boolean,
  now: number
): Step<boolean, K, A, E> => {
  const { cause } = failure
  const d = new Draft(state, limits)
  const slot = d.slot(launch.key)
  if (slot?._tag === "Launching" && slot.launch === launch) {
    d.slots = remember && limits.failureTimeToLive > 0
      ? HashMap.set(d.slots, launch.key, new Failed(launch.key, cause, now + limits.failureTimeToLive))
      : HashMap.remove(d.slots, launch.key)
    d.own.launching--
  } else {
    const entry = detached(d, launch)
    if (entry === undefined || entry.callers === 0) return unchanged(state, entry !== undefined)
  }
  d.count("launchFailures")
  // The place stays taken until what the lookup acquired is closed.
  detach(d, launch, 0)
  d.actions.push({ _tag: "TellFailed", launch, ...failure }, { _tag: "Refuse", launch, cause })
  return d.end(true)
}

/** The close of what a launch without callers had acquired lingers, or its lookup does. */
export const launchLingers = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  launch: Launch<K, A, E>
): Step<void, K, A, E> => {
  const d = new Draft(state, limits)
  const entry = detached(d, launch)
  if (entry === undefined || entry.lingers) return unchanged(state, undefined)
  d.own.detached = HashMap.set(d.inventory.detached, launch.id, { ...entry, lingers: true })
  startLingering(d, launch.group)
  return d.end(undefined)
}

/** What a launch without callers had acquired is closed (or its close timed out): its place is free. */
export const launchClosed = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  launch: Launch<K, A, E>
): Step<void, K, A, E> => {
  const d = new Draft(state, limits)
  const entry = detached(d, launch)
  if (entry === undefined) return unchanged(state, undefined)
  d.own.detached = HashMap.remove(d.inventory.detached, launch.id)
  endClosing(d, launch.group, entry.lingers)
  endIfEmpty(d)
  return d.end(undefined)
}
