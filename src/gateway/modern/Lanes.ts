/**
 * Which of a caller's processes a call gets, as plain transitions.
 *
 * What a process asks or logs says nothing of the call that it is for. So a call for which it may do either has a process to
 * itself, a lane, until it is over; all others run in the lowest lane that no such call holds. Calls that come one after the
 * other so meet the same process, and with it whatever it remembers.
 */
import type { Deferred } from "effect"

/** One process of a caller, while somebody uses it. */
export interface Lane {
  /** A call has it to itself. */
  readonly exclusive: boolean
  /** Calls that share it. */
  readonly shared: number
}

/** The lanes of one caller, by number, and who waits for one. */
export interface Lanes {
  readonly lanes: ReadonlyArray<Lane>
  readonly waiting: ReadonlyArray<Deferred.Deferred<void>>
}

export const none: Lanes = { lanes: [], waiting: [] }

/** What a call gets: the number of its lane, or the advice to wait until `waiter` completes and to ask again. */
export type Claim =
  | { readonly _tag: "Claimed"; readonly lane: number }
  | { readonly _tag: "Wait" }

const free: Lane = { exclusive: false, shared: 0 }

/** Claims the lowest lane that will do, of at most `max`. */
export const claim = (
  self: Lanes,
  exclusive: boolean,
  max: number,
  waiter: Deferred.Deferred<void>
): readonly [Claim, Lanes] => {
  const found = self.lanes.findIndex((lane) => !lane.exclusive && (!exclusive || lane.shared === 0))
  const lane = found >= 0 ? found : self.lanes.length
  if (lane >= max) return [{ _tag: "Wait" }, { ...self, waiting: [...self.waiting, waiter] }]
  const held = self.lanes[lane] ?? free
  return [{ _tag: "Claimed", lane }, replace(self, lane, exclusive ? { ...held, exclusive } : shared(held, 1))]
}

/** Gives a lane back; who has waited for one. */
export const release = (
  self: Lanes,
  lane: number,
  exclusive: boolean
): readonly [ReadonlyArray<Deferred.Deferred<void>>, Lanes] => {
  const held = self.lanes[lane] ?? free
  const next = replace(self, lane, exclusive ? { ...held, exclusive: false } : shared(held, -1))
  // The numbers of lanes that nobody holds come back when they are needed.
  const last = next.lanes.findLastIndex((each) => each.exclusive || each.shared > 0)
  return [self.waiting, { lanes: next.lanes.slice(0, last + 1), waiting: [] }]
}

/** Who has waited goes, with or without a lane. */
export const leave = (self: Lanes, waiter: Deferred.Deferred<void>): Lanes => ({
  ...self,
  waiting: self.waiting.filter((each) => each !== waiter)
})

const shared = (lane: Lane, by: number): Lane => ({ ...lane, shared: lane.shared + by })

const replace = (self: Lanes, at: number, lane: Lane): Lanes => ({
  ...self,
  lanes: at < self.lanes.length ? self.lanes.with(at, lane) : [...self.lanes, lane]
})
