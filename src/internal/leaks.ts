/**
 * Leak detection: which leases are out, since when, and where each was taken. Exists only when it is switched on.
 */
import { Clock, Effect, Tracer } from "effect"
import type { Context } from "effect"
import type { Pool } from "./pool.ts"
import { publish } from "./pool.ts"

/** One lease that is out. */
export interface LeaseTrace<out K> {
  readonly key: K
  readonly id: number
  readonly takenAt: number
  readonly site: string
}

/** In the order in which they were taken; all have the same time limit, so the first is the first to exceed it. */
export type LeakDetector<K> = Set<LeaseTrace<K>>

export const make = <K>(): LeakDetector<K> => new Set()

/** Where the running fiber is: its span if it has one, else the stack. */
export const site = (context: Context.Context<never>): string => {
  const span = context.mapUnsafe.get(Tracer.ParentSpan.key) as Tracer.AnySpan | undefined // the key's own type
  if (span !== undefined) {
    return span._tag === "Span" ? `span ${span.name} (${span.traceId})` : `span ${span.spanId} (${span.traceId})`
  }
  return new Error("lease taken here").stack ?? "unknown"
}

/** Reports every lease held for longer than `leakDetection`, once. */
export const watch = <K, A, E>(self: Pool<K, A, E>, leases: LeakDetector<K>): Effect.Effect<never> => {
  const limit = self.options.leakDetection
  const round = Effect.gen(function*() {
    const now = yield* Clock.currentTimeMillis
    for (const lease of leases) {
      const duration = now - lease.takenAt
      if (duration < limit) return limit - duration
      leases.delete(lease)
      self.metrics.leaked(self.context)
      publish(self, { _tag: "LeaseLeaked", key: lease.key, id: lease.id, duration, site: lease.site })
      yield* Effect.logWarning(`A lease is held for ${duration} ms (leakDetection: ${limit} ms)`, lease.site).pipe(
        Effect.annotateLogs({ pool: self.options.name, session: lease.id })
      )
    }
    return limit
  })
  return Effect.forever(Effect.flatMap(round, (wait) => Effect.sleep(wait)))
}
