/**
 * Assigns a caller's calls to its processes, as plain transitions. A lane is one process of a caller.
 *
 * A process does not say which call its questions and log messages belong to. So a call that may cause either holds a
 * lane exclusively until it is over. All other calls share the lowest lane that is not held exclusively. So calls that
 * follow one another meet the same process and its state.
 */
import type { Deferred } from "effect"

/** A lane that is in use. */
export interface Lane {
  /** True if one call holds the lane exclusively. */
  readonly exclusive: boolean
  /** The number of calls that share the lane. */
  readonly shared: number
}

/** The lanes of one caller, by number, and the calls that wait for one. */
export interface Lanes {
  readonly lanes: ReadonlyArray<Lane>
  readonly waiting: ReadonlyArray<Deferred.Deferred<void>>
}

export const none: Lanes = { lanes: [], waiting: [] }

/** The result of a claim: the number of a lane, or `Wait`. Then wait until `waiter` completes, and claim again. */
export type Claim =
  | { readonly _tag: "Claimed"; readonly lane: number }
  | { readonly _tag: "Wait" }

const free: Lane = { exclusive: false, shared: 0 }

/** Claims the lowest suitable lane, of at most `max`. */
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

/** Gives a lane back. Returns all waiters, so that each can claim again. */
export const release = (
  self: Lanes,
  lane: number,
  exclusive: boolean
): readonly [ReadonlyArray<Deferred.Deferred<void>>, Lanes] => {
  const held = self.lanes[lane] ?? free
  const next = replace(self, lane, exclusive ? { ...held, exclusive: false } : shared(held, -1))
  // Drops unused lanes at the end. A later claim adds them again.
  const last = next.lanes.findLastIndex((each) => each.exclusive || each.shared > 0)
  return [self.waiting, { lanes: next.lanes.slice(0, last + 1), waiting: [] }]
}

/** Removes a waiter, whether or not it was woken. */
export const leave = (self: Lanes, waiter: Deferred.Deferred<void>): Lanes => ({
  ...self,
  waiting: self.waiting.filter((each) => each !== waiter)
})

const shared = (lane: Lane, by: number): Lane => ({ ...lane, shared: lane.shared + by })

const replace = (self: Lanes, at: number, lane: Lane): Lanes => ({
  ...self,
  lanes: at < self.lanes.length ? self.lanes.with(at, lane) : [...self.lanes, lane]
})
