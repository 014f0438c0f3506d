/** Random choices that a seed repeats. */

export interface Random {
  /** At least 0, below 1. */
  readonly next: () => number
  /** An integer of at least 0, below `n`. */
  readonly below: (n: number) => number
  readonly chance: (probability: number) => boolean
  readonly pick: <A>(items: ReadonlyArray<A>) => A
}

/** A small generator (mulberry32). */
export const make = (seed: number): Random => {
  let state = seed | 0
  const next = (): number => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
  const below = (n: number): number => Math.floor(next() * n)
  return {
    next,
    below,
    chance: (probability) => next() < probability,
    pick: (items) => {
      const at = below(items.length)
      for (const item of items.slice(at, at + 1)) return item
      throw new Error("there is nothing to pick from")
    }
  }
}

/** The generator of one case of a run, so the case can run without those before it. */
export const ofCase = (seed: number, index: number): Random =>
  make(Math.imul(seed, 0x9e3779b1) ^ Math.imul(index, 0x85ebca6b))
