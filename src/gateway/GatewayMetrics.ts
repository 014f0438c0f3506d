/** The metrics of the gateway, each with the attribute `backend`; and the figures of the last seconds, for the page. */
import type { Context } from "effect"
import { Metric } from "effect"

const requests = Metric.counter("mcp_gateway_requests_total", {
  description: "Requests of clients that ended, by method and outcome (ok, error)",
  incremental: true
})
const duration = Metric.histogram("mcp_gateway_request_duration_seconds", {
  description: "How long requests took, by method",
  boundaries: Metric.exponentialBoundaries({ start: 0.001, factor: 4, count: 10 })
})
const garbage = Metric.counter("mcp_gateway_garbage_lines_total", {
  description: "Lines on a back end's stdout that were no JSON-RPC message",
  incremental: true
})
const refusals = Metric.counter("mcp_gateway_refusals_total", {
  description: "HTTP requests that were refused, by status",
  incremental: true
})

/** Methods of the specification; others are counted together, so that no client can fill the memory with names. */
const methods = new Set([
  "initialize",
  "ping",
  "tools/list",
  "tools/call",
  "resources/list",
  "resources/templates/list",
  "resources/read",
  "resources/subscribe",
  "resources/unsubscribe",
  "prompts/list",
  "prompts/get",
  "completion/complete",
  "logging/setLevel",
  "tasks/get",
  "tasks/result",
  "tasks/list",
  "tasks/cancel"
])

export interface GatewayMetrics {
  /** A request has ended. */
  readonly request: (method: string, outcome: "ok" | "error", millis: number) => void
  readonly garbage: () => void
}

/** What happened since it was last taken. */
export interface Recent {
  requests: number
  errors: number
  /** At most this many durations are kept; they are the first ones of the time. */
  millis: Array<number>
}

const keptDurations = 10_000

export const recent = (): Recent => ({ requests: 0, errors: 0, millis: [] })

/** The metrics of one back end. */
export const make = (backend: string, registry: Context.Context<never>, recent: Recent): GatewayMetrics => {
  const garbageLines = Metric.withAttributes(garbage, { backend })
  const byMethod = new Map<string, ReturnType<typeof forMethod>>()
  const forMethod = (method: string) => ({
    ok: Metric.withAttributes(requests, { backend, method, outcome: "ok" }),
    error: Metric.withAttributes(requests, { backend, method, outcome: "error" }),
    duration: Metric.withAttributes(duration, { backend, method })
  })
  return {
    request: (name, outcome, millis) => {
      const method = methods.has(name) ? name : "other"
      let metrics = byMethod.get(method)
      if (metrics === undefined) byMethod.set(method, metrics = forMethod(method))
      metrics[outcome].updateUnsafe(1, registry)
      metrics.duration.updateUnsafe(millis / 1000, registry)
      recent.requests++
      if (outcome === "error") recent.errors++
      if (recent.millis.length < keptDurations) recent.millis.push(millis)
    },
    garbage: () => garbageLines.updateUnsafe(1, registry)
  }
}

/** Counts a refused request. */
export const refused = (status: number) => Metric.update(Metric.withAttributes(refusals, { status: String(status) }), 1)
