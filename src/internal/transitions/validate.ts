/**
 * A check of the connection begins and ends. While it runs it holds a lease, so that nothing closes the session under it.
 */
import { Hash, HashMap, Option } from "effect"
import type { Limits, Step } from "../draft.ts"
import { becomeIdleAfterValidation, Draft, retire, slotOf, unchanged } from "../draft.ts"
import type { Session, State, Validation } from "../state.ts"
import { Live } from "../state.ts"
import { release } from "./release.ts"

/**
 * Has a session that the caller leases validated: begins it, or joins the one that runs. `Invalid`: another caller's check has
 * refused it meanwhile; undefined: it was retired for another reason.
 */
export const revalidate = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  key: K,
  id: number,
  validation: Validation
): Step<
  { readonly validation: Validation; readonly begin: Session<K, A> | undefined } | "Invalid" | undefined,
  K,
  A,
  E
> => {
  const slot = slotOf(state, key)
  if (slot?._tag !== "Live" || slot.session.id !== id) {
    const entry = HashMap.get(state.inventory.retired, id)
    return unchanged(state, Option.isSome(entry) && entry.value.reason === "Invalid" ? "Invalid" : undefined)
  }
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

/**
 * The validation has its answer: a session found invalid is retired. Its own lease ends with it, unless the check still runs
 * (`goesOn`): then the shell releases it.
 */
export const validated = <K, A, E>(
  state: State<K, A, E>,
  limits: Limits,
  key: K,
  id: number,
  valid: boolean,
  now: number,
  goesOn = false
): Step<void, K, A, E> => {
  const slot = slotOf(state, key)
  if (slot?._tag !== "Live" || slot.session.id !== id) {
    return goesOn
      ? unchanged(state, undefined)
      : release(state, limits, { id, key, hash: Hash.hash(key) }, now, "neither")
  }
  const d = new Draft(state, limits)
  const { errorCount, lastUsedAt, requestCount, session } = slot
  const leases = slot.leases - 1
  if (!valid) {
    retire(d, slot, "Invalid", goesOn ? slot.leases : leases)
    return d.end(undefined)
  }
  const live = new Live(session, lastUsedAt, requestCount, errorCount, leases, now, undefined)
  d.slots = HashMap.set(d.slots, key, live)
  if (leases === 0) {
    d.active--
    if (session.idleTimeToLive === 0) retire(d, live, "IdleTimeout")
    else becomeIdleAfterValidation(d, live)
  }
  return d.end(undefined)
}
