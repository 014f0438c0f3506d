/** The metrics of a pool, each with the attribute `pool`. Nothing here is touched by a hit. */
import type { Context } from "effect"
import { Metric } from "effect"
import type { Reason } from "./state.ts"

const launches = Metric.counter("session_pool_launches_total", {
  description: "Lookups that ended, by outcome (success, failure, timeout)",
  incremental: true
})
const retirements = Metric.counter("session_pool_retirements_total", {
  description: "Sessions retired, by reason",
  incremental: true
})
const open = Metric.gauge("session_pool_open_sessions", {
  description: "Sessions opened or adopted and not yet closed"
})
const seconds = Metric.exponentialBoundaries({ start: 0.001, factor: 4, count: 10 })
const launchDuration = Metric.histogram("session_pool_launch_duration_seconds", {
  description: "How long lookups took, failed ones included",
  attributes: { unit: "seconds" },
  boundaries: seconds
})
const closeDuration = Metric.histogram("session_pool_close_duration_seconds", {
  description: "How long finalizers took",
  attributes: { unit: "seconds" },
  boundaries: seconds
})
const closeTimeouts = Metric.counter("session_pool_close_timeouts_total", {
  description: "Finalizers that ran longer than closeTimeout",
  incremental: true
})
const leaks = Metric.counter("session_pool_leaked_leases_total", {
  description: "Leases held longer than leakDetection",
  incremental: true
})

export type PoolMetrics = ReturnType<typeof make>

/** The metrics of the pool with this name. */
export const make = (pool: string) => {
  const outcome = (value: string) => Metric.withAttributes(launches, { pool, outcome: value })
  const succeeded = outcome("success")
  const failures = { failure: outcome("failure"), timeout: outcome("timeout") }
  const opened = Metric.withAttributes(open, { pool })
  const launchTime = Metric.withAttributes(launchDuration, { pool })
  const closeTime = Metric.withAttributes(closeDuration, { pool })
  const timeouts = Metric.withAttributes(closeTimeouts, { pool })
  const leaked = Metric.withAttributes(leaks, { pool })
  const retiredFor = new Map<Reason, typeof succeeded>()
  const retirement = (reason: Reason) => {
    const known = retiredFor.get(reason)
    if (known !== undefined) return known
    const counter = Metric.withAttributes(retirements, { pool, reason })
    retiredFor.set(reason, counter)
    return counter
  }
  type Registry = Context.Context<never>
  return {
    launched: (registry: Registry, millis: number) => {
      succeeded.updateUnsafe(1, registry)
      opened.modifyUnsafe(1, registry)
      launchTime.updateUnsafe(millis / 1000, registry)
    },
    launchFailed: (registry: Registry, how: "failure" | "timeout", millis: number) => {
      failures[how].updateUnsafe(1, registry)
      launchTime.updateUnsafe(millis / 1000, registry)
    },
    adopted: (registry: Registry) => opened.modifyUnsafe(1, registry),
    retired: (registry: Registry, reason: Reason) => retirement(reason).updateUnsafe(1, registry),
    closed: (registry: Registry, millis: number) => {
      opened.modifyUnsafe(-1, registry)
      closeTime.updateUnsafe(millis / 1000, registry)
    },
    closeTimedOut: (registry: Registry) => timeouts.updateUnsafe(1, registry),
    leaked: (registry: Registry) => leaked.updateUnsafe(1, registry)
  }
}
