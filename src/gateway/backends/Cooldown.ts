/**
 * The starts of a back end that fail. One that fails three times in a row, and again for the gateway itself, is left alone for a
 * while, each time longer.
 */
import { CoolingDown } from "../GatewayErrors.ts"

export interface Cooldown {
  /** Starts that failed in a row. */
  readonly failures: number
  /** Until when no start is tried. */
  readonly until: number
  readonly lastFailure: string | undefined
}

export const initial: Cooldown = { failures: 0, until: 0, lastFailure: undefined }

const tolerated = 3
const shortest = 10_000
const longest = 5 * 60_000

export const succeeded = (_: Cooldown): Cooldown => initial

/**
 * A client's start has failed. `seen` is the state when that start began: starts that fail together count once, so that one
 * client's burst is not taken for failures in a row.
 */
export const failed = (self: Cooldown, seen: Cooldown, reason: string): Cooldown =>
  self === seen ? { ...self, failures: self.failures + 1, lastFailure: reason } : self

/** Whether the back end itself may be the reason. */
export const isSuspect = (self: Cooldown): boolean => self.failures >= tolerated

/** The gateway's own start has failed too, which it made because of `suspect`. A start that went well meanwhile says otherwise. */
export const confirmed = (self: Cooldown, suspect: Cooldown, now: number, reason: string): Cooldown => {
  if (!isSuspect(self)) return self
  const { failures } = suspect
  const pause = Math.min(longest, shortest * 2 ** (failures - tolerated))
  return { failures, until: now + pause, lastFailure: reason }
}

/** Whether a start is to be refused now. */
export const check = (self: Cooldown, backend: string, now: number): CoolingDown | undefined =>
  now >= self.until ? undefined : new CoolingDown({
    backend,
    failures: self.failures,
    seconds: Math.ceil((self.until - now) / 1000)
  })
