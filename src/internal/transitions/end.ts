/** The end of the pool: after `shutdown` nothing comes in, after `forceClose` nothing is leased. */
import type { Cause } from "effect"
import { HashMap } from "effect"
import type { Limits, Step } from "../draft.ts"
import { detach, Draft, endIfEmpty, retire, startClosing, unchanged } from "../draft.ts"
import * as Queue from "../queue.ts"
import type { Launch, Phase, State } from "../state.ts"

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
