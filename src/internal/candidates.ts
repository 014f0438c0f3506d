/**
 * A persistent set of keys, any of which can be drawn by its position in constant time.
 *
 * Eviction looks here for an idle session: all keys of a small set, a random sample of a large one, so that finding the
 * session to evict never means a walk over a million of them.
 */
import { HashMap, Option } from "effect"

export interface Candidates<out K> {
  /** Dense: the positions are 0 … size - 1, in no particular order. */
  readonly keys: HashMap.HashMap<number, K>
  readonly positions: HashMap.HashMap<unknown, number>
}

export const empty: Candidates<never> = { keys: HashMap.empty(), positions: HashMap.empty() }

export const size = <K>(self: Candidates<K>): number => HashMap.size(self.keys)

/** Whether a key, with its hash, is in the set. */
export const has = <K>(self: Candidates<K>, key: K, hash: number): boolean => HashMap.hasHash(self.positions, key, hash)

/** Adds a key; the set itself if it is in it already. */
export const add = <K>(self: Candidates<K>, key: K): Candidates<K> => {
  if (HashMap.has(self.positions, key)) return self
  const position = size(self)
  return {
    keys: HashMap.set(self.keys, position, key),
    positions: HashMap.set(self.positions, key, position)
  }
}

/** Takes a key out; the last key moves into its position, so that the positions stay dense. */
export const remove = <K>(self: Candidates<K>, key: K): Candidates<K> => {
  const position = HashMap.get(self.positions, key)
  if (Option.isNone(position)) return self
  const last = size(self) - 1
  const positions = HashMap.remove(self.positions, key)
  if (position.value === last) return { keys: HashMap.remove(self.keys, last), positions }
  const moved = HashMap.getUnsafe(self.keys, last)
  return {
    keys: HashMap.remove(HashMap.set(self.keys, position.value, moved), last),
    positions: HashMap.set(positions, moved, position.value)
  }
}

/** The key at a position from 0 to size - 1. */
export const at = <K>(self: Candidates<K>, position: number): K => HashMap.getUnsafe(self.keys, position)
