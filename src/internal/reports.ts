/** The reports of a pool: events, metrics (each with the attribute `pool`), logs, and leases that are held too long. */
import { Cause, Context, Effect, Equal, Fiber, Metric, Option, PubSub, Record, Tracer } from "effect"
import type { SessionPoolError } from "./errors.ts"
import type { Event, Identity } from "./state.ts"
import { noTotals } from "./state.ts"

/** The state of the reports of one pool. */
export interface Reports<in out K, in out E> {
  /** The name of the pool. */
  readonly pool: string
  /** The context of the pool, in which metrics are updated and logs are written. */
  readonly context: Context.Context<never>
  readonly metrics: ReturnType<typeof makeMetrics>
  /** The buffer of `events`, made by its first reader. The element `undefined` marks the end of the pool. */
  events: PubSub.PubSub<Event<K, E | SessionPoolError> | undefined> | undefined
  /** True once the end was published. Nothing is published after it. */
  hasEnded: boolean
  /** The leases held now, the oldest first. `undefined` if `leakDetection` is off. */
  readonly leases: Set<LeaseTrace<K>> | undefined
  /** When each defect was last logged, by its text. */
  readonly logged: Map<string, number>
}

export const make = <K, E>(pool: string, context: Context.Context<never>, detectsLeaks: boolean): Reports<K, E> => ({
  pool,
  context,
  metrics: makeMetrics(pool, context),
  events: undefined,
  hasEnded: false,
  leases: detectsLeaks ? new Set() : undefined,
  logged: new Map()
})

// -----------------------------------------------------------------------------
// Metrics
// -----------------------------------------------------------------------------

const boundaries = Metric.exponentialBoundaries({ start: 0.001, factor: 4, count: 10 })

const histogramOf = (name: string, description: string, pool: string) =>
  Metric.histogram(name, { description, attributes: { pool, unit: "seconds" }, boundaries })

/**
 * The entry of a metric in the registry. Each `updateUnsafe` searches for the entry. Updating the entry itself saves a tenth of the time of
 * a use.
 */
const entryOf = <State>(metric: Metric.Metric<number, State>, registry: Context.Context<never>) => {
  // Reading the metric creates its entry.
  metric.valueUnsafe(registry)
  const attributes = { ...metric.attributes, ...Context.get(registry, Metric.CurrentMetricAttributes) }
  for (const entry of Context.get(registry, Metric.MetricRegistry).values()) {
    if (entry.id === metric.id && Equal.equals(entry.attributes, attributes)) return entry.hooks
  }
  throw new Error(
    `SessionPool: the metric registry does not keep the metric ${metric.id}; provide one that does, or none.`
  )
}

/** The metrics of one pool. */
const makeMetrics = (pool: string, registry: Context.Context<never>) => {
  const counter = (name: string, description: string, attributes: Record<string, string> = {}) => {
    const metric = Metric.counter(name, { description, incremental: true, attributes: { pool, ...attributes } })
    // Makes the series at 0. The increase from 0 to 1 would not show in Prometheus if the series appeared with 1.
    metric.valueUnsafe(registry)
    return () => metric.updateUnsafe(1, registry)
  }
  const histogram = (name: string, description: string) => {
    const metric = histogramOf(name, description, pool)
    return (millis: number) => metric.updateUnsafe(millis / 1000, registry)
  }
  const gauge = (name: string, description: string) => {
    const metric = Metric.gauge(name, { description, attributes: { pool } })
    return (change: number) => metric.modifyUnsafe(change, registry)
  }
  const launches = (outcome: string) =>
    counter("session_pool_launches_total", "Lookups that ended: success, failure, timeout", { outcome })
  const acquisitions = (outcome: string) =>
    counter("session_pool_acquisitions_total", "Callers that met a full pool: waited, timeout, refused", { outcome })
  const open = gauge("session_pool_open_sessions", "Sessions opened or adopted, and not closed")
  const waiting = gauge("session_pool_waiting", "Callers that wait for a place now")
  const leases = Metric.gauge("session_pool_leases", { description: "Leases held now", attributes: { pool } })
  const leaseDuration = histogramOf("session_pool_lease_duration_seconds", "How long leases were held", pool)
  return {
    launched: launches("success"),
    launchFailed: launches("failure"),
    launchTimedOut: launches("timeout"),
    launchDuration: histogram("session_pool_launch_duration_seconds", "How long lookups took"),
    opened: open,
    retired: Record.map(
      noTotals.closes,
      (_, reason) => counter("session_pool_retirements_total", "Sessions retired, by reason", { reason })
    ),
    closeDuration: histogram("session_pool_close_duration_seconds", "How long finalizers took"),
    closeTimedOut: counter("session_pool_close_timeouts_total", "Finalizers that ran longer than closeTimeout"),
    leaked: counter("session_pool_leaked_leases_total", "Leases held longer than leakDetection"),
    waiting,
    waited: acquisitions("waited"),
    waitDuration: histogram("session_pool_wait_duration_seconds", "How long callers waited for a place"),
    timedOut: acquisitions("timeout"),
    refused: acquisitions("refused"),
    leases: entryOf(leases, registry),
    leaseDuration: entryOf(leaseDuration, registry)
  }
}

// -----------------------------------------------------------------------------
// Events
// -----------------------------------------------------------------------------

/** Counts an event in the metrics, and publishes it. */
export const emit = <K, E>(self: Reports<K, E>, event: Event<K, E | SessionPoolError>): void => {
  const { metrics } = self
  switch (event._tag) {
    case "Launched":
      metrics.launched()
      metrics.opened(1)
      metrics.launchDuration(event.duration)
      break
    case "LaunchFailed":
      if (event.timedOut) metrics.launchTimedOut()
      else metrics.launchFailed()
      metrics.launchDuration(event.duration)
      break
    case "Waited":
      for (let caller = 0; caller < event.callers; caller++) {
        metrics.waited()
        metrics.waitDuration(event.duration)
      }
      break
    case "Adopted":
      metrics.opened(1)
      break
    case "Retired":
      metrics.retired[event.reason]()
      break
    case "Closed":
      metrics.opened(-1)
      metrics.closeDuration(event.duration)
      break
    case "CloseTimedOut":
      metrics.closeTimedOut()
      break
    case "LeaseLeaked":
      metrics.leaked()
  }
  publish(self, event)
}

/** Publishes an event, or the end (`undefined`). A reader that lags loses the oldest events, and never slows the pool. */
export const publish = <K, E>(
  { context, events, hasEnded }: Reports<K, E>,
  event: Event<K, E | SessionPoolError> | undefined
): void => {
  // A close that timed out may end, and emit `Closed`, after the end of the pool.
  if (events === undefined || hasEnded) return
  // `publishUnsafe` refuses when the buffer is full. `publish` drops the oldest event instead.
  if (!PubSub.publishUnsafe(events, event)) Effect.runForkWith(context)(PubSub.publish(events, event))
}

// -----------------------------------------------------------------------------
// Logs
// -----------------------------------------------------------------------------

/** Logs about one session, or about the pool. */
export const log = <K, E>({ context, pool }: Reports<K, E>, message: Effect.Effect<void>, session?: number): void => {
  const annotations = session === undefined ? { pool } : { pool, session }
  Effect.runForkWith(context)(Effect.annotateLogs(message, annotations))
}

/** How many defects `logged` remembers. */
const loggedLimit = 100

/** Logs a defect of a user's function. Logs the same defect at most once a minute. */
export const logDefect = <K, E>(
  self: Reports<K, E>,
  option: string,
  cause: Cause.Cause<unknown>,
  now: number
): void => {
  const text = `${option}: ${Cause.pretty(cause)}`
  const last = self.logged.get(text)
  if (last !== undefined && now - last < 60_000) return
  if (self.logged.size >= loggedLimit) self.logged.clear()
  self.logged.set(text, now)
  log(self, Effect.logError(`The option ${option} of the session pool failed with a defect`, cause))
}

// -----------------------------------------------------------------------------
// Leaked leases
// -----------------------------------------------------------------------------

/** A lease that is held now, with what its report needs. */
export interface LeaseTrace<out K> {
  readonly session: Identity<K>
  readonly takenAt: number
  readonly span: Tracer.AnySpan | undefined
  readonly site: Error | undefined
}

/**
 * The stack of the call that asks for a lease, if `isTraced`. Taken when the user's code makes the effect, because the stack of a running
 * effect is that of the run loop. Cheap, because V8 formats a stack only when it is read.
 */
export const callSite = (isTraced: boolean): Error | undefined => isTraced ? new Error("lease taken here") : undefined

/** The span of the running fiber. */
export const currentSpan = (): Tracer.AnySpan | undefined => {
  const fiber = Fiber.getCurrent()
  return fiber === undefined ? undefined : Option.getOrUndefined(Context.getOption(fiber.context, Tracer.ParentSpan))
}

/** The span and the stack of a lease, as text. */
const describe = <K>({ site, span }: LeaseTrace<K>): string => {
  const lines: Array<string> = []
  if (span !== undefined) lines.push(`span ${span._tag === "Span" ? span.name : span.spanId} (${span.traceId})`)
  if (site?.stack !== undefined) lines.push(site.stack)
  return lines.length > 0 ? lines.join("\n") : "unknown"
}

/** Reports each lease held for `limit` milliseconds, once. Returns the milliseconds until the next lease can reach the limit. */
export const reportLeaks = <K, E>(self: Reports<K, E>, limit: number, now: number): number => {
  for (const lease of self.leases ?? []) {
    const duration = now - lease.takenAt
    if (duration < limit) return limit - duration
    self.leases?.delete(lease)
    const { id, key } = lease.session
    const site = describe(lease)
    emit(self, { _tag: "LeaseLeaked", key, id, duration, site })
    log(self, Effect.logWarning(`A lease is held for ${duration} ms (leakDetection: ${limit} ms)`, site), id)
  }
  return limit
}
