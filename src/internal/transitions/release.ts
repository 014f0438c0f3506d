/** A lease ends, an error is counted. The end of its last lease closes a session that was retired before. */
import { HashMap, Option } from "effect"
import type { Limits, Step } from "../draft.ts"
import {
  becomeIdle,
  Draft,
  idleChangesNothing,
  none,
  retire,
  slotAt,
  slotOf,
  startClosing,
  unchanged,
  withSlot
} from "../draft.ts"
import type { Identity } from "../state.ts"
import { Live, State } from "../state.ts"

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
    (session.idleTimeToLive > 0 && idleChangesNothing(state.inventory, limits, key, hash, session.group))
  if (how !== "error" && staysAsIs) {
    // Nothing follows from the end of this lease.
    const slots = withSlot(state, key, hash, live)
    return [{ result: undefined, actions: none }, new State(slots, active, state.hits, state.inventory)]
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
