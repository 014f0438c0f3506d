/**
 * Three failed starts in a row make a back end suspect. The gateway then starts it once itself. If that start fails too, the back
 * end cools down: the gateway refuses starts for a pause, which doubles each time, up to 5 minutes.
 */
import type { BackendState } from "../telemetry/GatewayMetrics.ts"
import type { NotNow } from "./GatewayErrors.ts"
import { coolingDown } from "./GatewayErrors.ts"

export interface Cooldown {
  /** Failed starts in a row. */
  readonly failures: number
  /** Starts are refused before this time, in milliseconds. */
  readonly until: number
  /** Why the last start failed, if it did. */
  readonly lastFailure: string | undefined
  /** Whether a start has ever succeeded. */
  readonly started: boolean
}

export const initial: Cooldown = { failures: 0, until: 0, lastFailure: undefined, started: false }

export const stateOf = ({ lastFailure, started, until }: Cooldown, now: number): BackendState =>
  now < until ? "cooling down" : lastFailure !== undefined ? "failing" : started ? "ok" : "not started"

const tolerated = 3
const shortest = 10_000
const longest = 5 * 60_000

/** The state after a start that succeeded. */
export const succeeded: Cooldown = { ...initial, started: true }

/** Records a failure for operators. It does not count toward the cool-down. */
export const noted = (self: Cooldown, reason: string): Cooldown =>
  self.lastFailure === reason ? self : { ...self, lastFailure: reason }

/**
 * Records that a client's start failed. `seen` is the state when that start began. Starts that fail together count once, so a
 * burst of starts does not count as failures in a row.
 */
export const failed = (self: Cooldown, seen: Cooldown, reason: string): Cooldown =>
  self === seen ? { ...self, failures: self.failures + 1, lastFailure: reason } : self

/** Whether so many starts failed in a row that the back end itself may be at fault. */
export const isSuspect = (self: Cooldown): boolean => self.failures >= tolerated

/** Starts the pause after the gateway's own start failed. A no-op if a client's start succeeded meanwhile. */
export const confirmed = (self: Cooldown, suspect: Cooldown, now: number, reason: string): Cooldown => {
  if (!isSuspect(self)) return self
  const { failures } = suspect
  const pause = Math.min(longest, shortest * 2 ** (failures - tolerated))
  return { ...self, failures, until: now + pause, lastFailure: reason }
}

/** The error that refuses a start now. `undefined` if a start is allowed. */
export const check = (self: Cooldown, backend: string, now: number): NotNow | undefined =>
  now >= self.until ? undefined : coolingDown(backend, self.failures, Math.ceil((self.until - now) / 1000))
