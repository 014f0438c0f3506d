/**
 * The metrics of the gateway, most with the attribute `backend`; and counts for the page.
 *
 * To add a gauge of a back end, add a line to `gauges` and to `look` of `operators/Overview`, a row to the table of metrics in
 * `REFERENCE.md`, and a panel to `deploy/dashboard.json`. `test/gateway/metrics.test.ts` compares these two with the exported metrics.
 */
import type { Context } from "effect"
import { Effect, Metric, Struct } from "effect"

/** Why sessions end. */
export const endReasons = [
  "process exited",
  "backend failed",
  "client gone",
  "idle",
  "evicted",
  "deleted",
  "ended by operator",
  "reloaded",
  "moved",
  "replica lost",
  "call cancelled",
  "shutdown",
  "other"
] as const
export type EndReason = typeof endReasons[number]

/** The states of a back end. `failing`: the last start failed, and the next one is tried. */
export const backendStates = ["not started", "ok", "failing", "cooling down"] as const
export type BackendState = typeof backendStates[number]

const counter = (name: string, description: string) =>
  Metric.counter(`mcp_gateway_${name}_total`, { description, incremental: true })

const gauge = (name: string, description: string) => Metric.gauge(`mcp_gateway_${name}`, { description })

const requests = counter("requests", "Finished requests of clients, by method and outcome (ok, error)")
const duration = Metric.histogram("mcp_gateway_request_duration_seconds", {
  description: "Duration of requests of clients, by method",
  attributes: { unit: "seconds" },
  boundaries: Metric.exponentialBoundaries({ start: 0.001, factor: 4, count: 10 })
})
const garbage = counter("garbage_lines", "Lines on a back end's stdout that were not JSON-RPC messages")
const closes = counter("closed_sessions", "Closed sessions, lanes of modern clients included, by reason")
const refusals = counter("refusals", "Refused HTTP requests, by status of the answer")

/** The gauges of each back end. */
const gauges = {
  sessions: gauge(
    "live_sessions",
    "Sessions that have a process or a session on an HTTP back end, lanes of modern clients included"
  ),
  light: gauge("light_sessions", "Sessions that are kept by caller, and use the processes of their caller"),
  inFlight: gauge("in_flight_requests", "Requests that the back end has not answered yet"),
  asleep: gauge("asleep_sessions", "Sessions of stateless back ends that have no process"),
  parked: gauge("parked_calls", "Calls that wait for their client's input"),
  spares: gauge("spare_processes", "Processes started in advance for new sessions")
}
const state = gauge("backend_state", "1 for the present state of the back end, 0 for other states")
const waiting = gauge("waiting_calls", "Calls that wait for a place among the sessions or for a lane, by resource")
const maxSessions = gauge("max_sessions", "The setting maxSessions: most live sessions at once")

/** The methods of the specification. All others count as `other`, so that no client can fill the memory with names. */
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

export interface RequestMetrics {
  /** Records a request that has ended. */
  readonly request: (method: string, outcome: "ok" | "error", millis: number) => void
  readonly garbage: () => void
}

/** Counts since the start, for the page. */
export interface Totals {
  requests: number
  errors: number
  launches: number
  launchFailures: number
  /** The durations of requests since the last sample, at most `keptDurations`. */
  readonly millis: Array<number>
}

const keptDurations = 10_000

export const totals = (): Totals => ({ requests: 0, errors: 0, launches: 0, launchFailures: 0, millis: [] })

/** The metrics of one back end. */
export const make = (backend: string, registry: Context.Context<never>, totals: Totals): RequestMetrics => {
  const garbageLines = Metric.withAttributes(garbage, { backend })
  // Makes the series at 0. The increase from 0 to 1 would not show in Prometheus if a series appeared with 1.
  garbageLines.valueUnsafe(registry)
  for (const reason of endReasons) Metric.withAttributes(closes, { backend, reason }).valueUnsafe(registry)
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
      totals.requests++
      if (outcome === "error") totals.errors++
      if (totals.millis.length < keptDurations) totals.millis.push(millis)
    },
    garbage: () => garbageLines.updateUnsafe(1, registry)
  }
}

const set = (metric: Metric.Gauge<number>, attributes: Record<string, string>, value: number) =>
  Metric.update(Metric.withAttributes(metric, attributes), value)

/** Sets the gauges of one back end. Without values, for a removed back end, to zero: a gauge cannot be unset. */
export const setBackend = Effect.fnUntraced(function*(
  backend: string,
  values?: Readonly<Record<keyof typeof gauges, number>> & { readonly state: BackendState }
) {
  for (const name of Struct.keys(gauges)) yield* set(gauges[name], { backend }, values?.[name] ?? 0)
  for (const each of backendStates) yield* set(state, { backend, state: each }, each === values?.state ? 1 : 0)
})

/** Sets the gauges of the gateway as a whole. */
export const setTotals = (totals: { readonly place: number; readonly lane: number; readonly maxSessions: number }) =>
  Effect.all([
    set(waiting, { resource: "place" }, totals.place),
    set(waiting, { resource: "lane" }, totals.lane),
    set(maxSessions, {}, totals.maxSessions)
  ], { discard: true })

/** Counts a closed session. */
export const closed = (backend: string, reason: string) =>
  Metric.update(Metric.withAttributes(closes, { backend, reason }), 1)

/** Counts a refused request. */
export const refused = (status: number) => Metric.update(Metric.withAttributes(refusals, { status: String(status) }), 1)
