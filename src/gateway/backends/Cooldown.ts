/** How the starts of a back end go: after three failures in a row it is left alone for a while, each time longer. */
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

export const failed = (self: Cooldown, now: number, reason: string): Cooldown => {
  const failures = self.failures + 1
  const pause = failures < tolerated ? 0 : Math.min(longest, shortest * 2 ** (failures - tolerated))
  return { failures, until: now + pause, lastFailure: reason }
}

/** Whether a start is to be refused now. */
export const check = (self: Cooldown, backend: string, now: number): CoolingDown | undefined =>
  now >= self.until ? undefined : new CoolingDown({
    backend,
    failures: self.failures,
    seconds: Math.ceil((self.until - now) / 1000),
    lastFailure: self.lastFailure ?? ""
  })
