/** `set`: a connection that is open already goes into the pool, or waits for a place there. */
import type { Deferred } from "effect"
import { HashMap, HashSet } from "effect"
import type { Limits, Shortage, Step } from "../draft.ts"
import {
  becomeIdle,
  canEvict,
  detach,
  Draft,
  endIfEmpty,
  enqueue,
  hasRoom,
  retire,
  returnPlace,
  serve,
  shortageOf,
  takePlace,
  unchanged
} from "../draft.ts"
import * as Queue from "../queue.ts"
import type { Offered, Session, State } from "../state.ts"
import { Live } from "../state.ts"

export type Adopted<K, A> =
  | { readonly _tag: "Adopted"; readonly session: Session<K, A> }
  | { readonly _tag: "Queued"; readonly ticket: number; readonly entry: Entry }
  | { readonly _tag: "Full"; readonly shortage: Shortage }
  | { readonly _tag: "Closed" }

/** What `set` carries over from the session that it replaces. */
export interface Entry {
  readonly createdAt: number
  readonly requestCount: number
  readonly errorCount: number
}

/**
 * Notes a connection that `set` was given: from here on the end of the pool waits until `adopt` has taken it or it is closed. Not
 * where the end has begun: a connection that offers the next one when it is closed would hold it up for ever.
 */
export const offer = <K, A, E>(state: State<K, A, E>, limits: Limits, id: number): Step<void, K, A, E> => {
  if (state.inventory.phase._tag === "Closing") return unchanged(state, undefined)
  const d = new Draft(state, limits)
  d.own.offered = HashSet.add(d.inventory.offered, id)
  return d.end(undefined)
}

/** A connection could not be adopted, and is to be closed. */
export const reject = <K, A, E>(state: State<K, A, E>, offered: Offered<K>): Step<void, K, A, E> => [
  { result: undefined, actions: [{ _tag: "Reject", offered }] },
  state
]

/** A connection that could not be adopted is closed (or its close timed out). */
export const rejected = <K, A, E>(state: State<K, A, E>, limits: Limits, id: number): Step<void, K, A, E> => {
  if (!HashSet.has(state.inventory.offered, id)) return unchanged(state, undefined)
  const d = new Draft(state, limits)
  d.own.offered = HashSet.remove(d.inventory.offered, id)
  endIfEmpty(d)
  return d.end(undefined)
}

/**
 * Puts an open connection under its key. It needs a place like a launch: one that is free, or (`place.held`) one
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
        return d.end({ _tag: "Full", shortage: shortageOf(d.inventory, limits, group) })
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
  d.own.offered = HashSet.remove(d.inventory.offered, session.id)
  if (callers === 0) becomeIdle(d, key, group)
  return d.end({ _tag: "Adopted", session: adopted })
}

/** A caller of `set` goes away: out of the queue, or with the place that it was handed. */
export const returnGrant = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  ticket: number,
  group: unknown
): Step<Shortage, K, A, E> => {
  const d = new Draft(state, limits)
  if (HashMap.has(d.inventory.queue.entries, ticket)) {
    d.own.queue = Queue.remove(d.inventory.queue, ticket)
    d.own.waiting--
  } else if (d.inventory.phase._tag === "Open") returnPlace(d, group)
  return d.end(shortageOf(d.inventory, limits, group))
}
