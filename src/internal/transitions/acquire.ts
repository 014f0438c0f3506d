/**
 * Getting hold of a session, and giving up the wait for it. Each step that finds a session touches it: moves `lastUsedAt`
 * and counts the request.
 */
import type { Cause } from "effect"
import { Hash, HashMap, Option } from "effect"
import type { Hit, Limits, Shortage, Step } from "../draft.ts"
import {
  canEvict,
  detach,
  Draft,
  enqueue,
  hasRoom,
  serve,
  shortageOf,
  slotAt,
  slotOf,
  takePlace,
  unchanged,
  withSlot
} from "../draft.ts"
import * as Queue from "../queue.ts"
import type { Launch, Session, Validation } from "../state.ts"
import { Launching, Live, State, Waiting } from "../state.ts"
import { release } from "./release.ts"

/** The lookup-and-touch, atomic because `hit` (`pool.ts`) runs it in one `Ref.modify`: no launch, no lease. */
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

const touched = <K, A>(live: Live<K, A>, now: number, leases: number, validation = live.validation): Live<K, A> =>
  new Live(live.session, now, live.requestCount + 1, live.errorCount, leases, live.validatedAt, validation)

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

const isUnchecked = <K, A>(live: Live<K, A>, limits: Limits, now: number): boolean =>
  live.validation !== undefined ||
  (live.leases === 0 && now - Math.max(live.lastUsedAt, live.validatedAt) > limits.validateAfter)

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
  | { readonly _tag: "Full"; readonly shortage: Shortage }
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
        return unchanged(state, { _tag: "Full", shortage: shortageOf(state.inventory, limits, slot.launch.group) })
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
  const { group, hash, key } = launch
  if (state.inventory.phase._tag === "Closing") return unchanged(state, { _tag: "Closed" })
  const slot = slotAt(state, key, hash)
  if (slot !== undefined && slot._tag !== "Failed") return join(state, limits, key, now, validation)
  if (slot !== undefined && now < slot.until) return unchanged(state, { _tag: "Failed", cause: slot.cause })
  const d = new Draft(state, limits)
  if (hasRoom(d, group)) {
    takePlace(d, group)
    d.slots = withSlot(state, key, hash, new Launching(launch, 1))
    d.own.launching++
    d.count("misses")
    d.actions.push({ _tag: "Launch", launch })
    return d.end({ _tag: "Join", launch, queued: false })
  }
  // A caller that an eviction makes room for is on its way in, so `maxWaiting` does not turn it away.
  if (d.inventory.waiting >= limits.maxWaiting && !canEvict(d, group)) {
    // Not `unchanged`: what the search dropped because it is in use need not be dropped by the next refusal again.
    return d.end({ _tag: "Full", shortage: shortageOf(d.inventory, limits, group) })
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

/** After `acquireTimeout`: leaves the queue if the claim still waits for a place, and says why there is none; else changes nothing. */
export const giveUp = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  key: K,
  id: number
): Step<Shortage | undefined, K, A, E> => {
  const slot = slotOf(state, key)
  if (slot?._tag !== "Waiting" || slot.launch.id !== id) return unchanged(state, undefined)
  const [{ actions }, next] = leaveQueue(state, limits, slot)
  return [{ result: shortageOf(next.inventory, limits, slot.launch.group), actions }, next]
}
