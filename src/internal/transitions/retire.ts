/**
 * The steps that retire a session for a reason from outside: its owner, its connection, its age. What they do then is
 * `retire` of `draft.ts`, as in every step that finds a reason on its way (`release`, `validated`, `adopt`, an eviction).
 * At the end `closed`, the last step of every session.
 */
import type { Exit } from "effect"
import { HashMap, Option } from "effect"
import type { Limits, Step } from "../draft.ts"
import { detach, Draft, endClosing, endIfEmpty, retire, slotOf, startLingering, unchanged } from "../draft.ts"
import type { Reason, Session, Slot, State } from "../state.ts"

/** Retires whatever is under the key. True if something was retired. */
export const invalidate = <K, A, E>(state: State<K, A, E>, limits: Limits, key: K): Step<boolean, K, A, E> => {
  const slot = slotOf(state, key)
  const d = new Draft(state, limits)
  switch (slot?._tag) {
    case "Live": {
      retire(d, slot, "Invalidated")
      return d.end(true)
    }
    case "Launching": {
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

/** As `invalidate`, if what is under the key is still just what was seen there; `undefined`: it is not. */
export const invalidateSeen = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  key: K,
  seen: Slot<K, A, E>
): Step<boolean | undefined, K, A, E> =>
  slotOf(state, key) === seen ? invalidate(state, limits, key) : unchanged(state, undefined)

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

/** The close of a session lingers. */
export const lingers = <K, A, E>(state: State<K, A, E>, limits: Limits, id: number): Step<void, K, A, E> => {
  const entry = Option.getOrUndefined(HashMap.get(state.inventory.retired, id))
  if (entry === undefined || entry.lingers) return unchanged(state, undefined)
  const d = new Draft(state, limits)
  d.own.retired = HashMap.set(d.inventory.retired, id, { ...entry, lingers: true })
  startLingering(d, entry.session.group)
  return d.end(undefined)
}

/** How a close ended, after so many milliseconds. */
export interface CloseEnd {
  readonly exit: Exit.Exit<void, unknown>
  readonly duration: number
}

/**
 * The close of a session is over (`end`) or has timed out (no `end`): its place is free. After a time-out the end is only told.
 */
export const closed = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  { end, reason, session }: {
    readonly session: Session<K, A>
    readonly reason: Reason
    readonly end: CloseEnd | undefined
  }
): Step<void, K, A, E> => {
  const { id } = session
  const entry = Option.getOrUndefined(HashMap.get(state.inventory.retired, id))
  const d = new Draft(state, limits)
  if (end !== undefined) d.actions.push({ _tag: "TellClosed", session, reason, ...end })
  if (entry === undefined) return [{ result: undefined, actions: d.actions }, state]
  const totals = d.inventory.totals
  d.own.retired = HashMap.remove(d.inventory.retired, id)
  d.own.totals = { ...totals, closes: { ...totals.closes, [entry.reason]: totals.closes[entry.reason] + 1 } }
  endClosing(d, entry.session.group, entry.lingers)
  endIfEmpty(d)
  return d.end(undefined)
}
