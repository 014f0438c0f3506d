/**
 * Leak detection: which leases are out, since when, and where each was taken. Exists only when it is switched on.
 */
import { Effect, Tracer } from "effect"
import type { Context } from "effect"
import type { Pool } from "./pool.ts"
import { log, publish, timeOf } from "./pool.ts"

/** One lease that is out. */
export interface LeaseTrace<out K> {
  readonly key: K
  readonly id: number
  readonly takenAt: number
  readonly span: Tracer.AnySpan | undefined
  readonly at: CallSite | undefined
}

/** The stack of whoever asked for a lease; V8 writes it out only if it is read. */
export type CallSite = Error

/** In the order in which they were taken; all have the same time limit, so the first is the first to exceed it. */
export type LeakDetector<K> = Set<LeaseTrace<K>>

export const make = <K>(): LeakDetector<K> => new Set()

/**
 * Where a lease is asked for, if anybody wants to know. To be called where the user's own code calls: when the effect
 * runs, the stack is that of Effect's run loop, and names nobody.
 */
export const callSite = <K>(leaks: LeakDetector<K> | undefined): CallSite | undefined =>
  leaks === undefined ? undefined : new Error("lease taken here")

/** The span of the running fiber, if it has one. */
export const spanOf = (context: Context.Context<never>): Tracer.AnySpan | undefined =>
  context.mapUnsafe.get(Tracer.ParentSpan.key) as Tracer.AnySpan | undefined // the key's own type

const site = <K>({ at, span }: LeaseTrace<K>): string => {
  const lines: Array<string> = []
  if (span !== undefined) lines.push(`span ${span._tag === "Span" ? span.name : span.spanId} (${span.traceId})`)
  if (at?.stack !== undefined) lines.push(at.stack)
  return lines.length > 0 ? lines.join("\n") : "unknown"
}

/** Reports every lease held for longer than `leakDetection`, once. */
export const watch = <K, A, E>(self: Pool<K, A, E>, leases: LeakDetector<K>): Effect.Effect<never> => {
  const limit = self.options.leakDetection
  const round = Effect.sync(() => {
    const now = timeOf(self)
    for (const lease of leases) {
      const duration = now - lease.takenAt
      if (duration < limit) return limit - duration
      leases.delete(lease)
      self.metrics.leaked(self.context)
      publish(self, { _tag: "LeaseLeaked", key: lease.key, id: lease.id, duration, site: site(lease) })
      const message = `A lease is held for ${duration} ms (leakDetection: ${limit} ms)`
      log(self, Effect.annotateLogs(Effect.logWarning(message, site(lease)), "session", lease.id))
    }
    return limit
  })
  return Effect.forever(Effect.flatMap(round, (wait) => Effect.sleep(wait)))
}
