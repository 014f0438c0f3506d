/** A plan says what the fibers of one run do to one pool. It is plain data, which `run.ts` runs under any schedule. */
import { Record, Schema } from "effect"
import type { Limit } from "../limits.ts"
import { drawn, one, several, toNumber } from "../limits.ts"

const Rarely = one([false, false, false, false, true])

/** Nothing, a yield, or milliseconds. */
export type Pause = "none" | "yield" | number
const pause = <A extends Pause | "fails">(...values: ReadonlyArray<A>) => one(values)

/** One run of the lookup. */
const Lookup = Schema.Struct({
  takes: pause<Pause>("yield", "yield", "yield", "none", 3, 8),
  ends: one(["opens", "opens", "opens", "opens", "opens", "opens", "fails", "dies", "hangs"]),
  closing: pause<Pause | "fails">("none", "none", "none", "yield", 3, 15, 15, "fails"),
  /** What `validate` answers about this connection, each time. */
  isValid: one([true, true, true, true, false]),
  /** The connection dies after this many milliseconds. */
  livesFor: one<ReadonlyArray<Limit>>(["off", "off", "off", 1, 10])
})
export type Lookup = typeof Lookup.Type

const Operation = Schema.Struct({
  kind: one([
    ...(["get", "get", "use", "use", "use", "getOption", "touch", "set", "invalidate"] as const),
    ...(["report", "invalidateAll", "recordError", "sweep", "pause"] as const)
  ]),
  /** The group of a key is its first letter. */
  key: one<ReadonlyArray<string>>(["a1", "a2", "b1", "b2"]),
  /** How long the caller holds its lease. */
  holds: pause<Pause>("yield", "yield", "yield", "none", 3, 12, 25),
  /** `use` ends with a failure. */
  fails: Rarely,
  /** Runs in a fiber that is interrupted at once: the schedule decides how far it gets. */
  interrupted: Rarely
})
export type Operation = typeof Operation.Type

const limits = {
  capacity: ["off", 1, 2, 2, 2, 3],
  groupCapacity: ["off", "off", "off", 1, 2],
  idleTimeToLive: ["off", 0, 10, 10, 10],
  cleanupInterval: [10],
  maxErrorCount: ["off", 1, 2, 2, 2],
  maxLifetime: ["off", "off", "off", 5],
  acquireTimeout: ["off", "off", 0, 5, 8],
  maxWaiting: ["off", "off", "off", 0, 2],
  // Never off, so a lookup that hangs ends.
  lookupTimeout: [20],
  failureTimeToLive: [0, 0, 15],
  validateAfter: ["off", "off", "off", 0, 5],
  keepAlive: ["off", "off", 7],
  closeTimeout: ["off", "off", 10],
  drainTimeout: [0, 0, 5, "off"]
} satisfies Record<string, ReadonlyArray<Limit>>
export type Limits = { readonly [P in keyof typeof limits]: Limit }
export type Options = { readonly [P in keyof typeof limits]: number }

/** Up to twelve fibers with mixed operations on a pool of small capacity. */
export const Plan = Schema.Struct({
  limits: drawn(limits),
  /** Each launch takes the next one, in a cycle. */
  lookups: several(Lookup, 4),
  fibers: several(several(Operation, 2), 12),
  /** The pool's scope closes while the fibers run, instead of after them. */
  endsEarly: Rarely,
  /** A fiber reads the events of the pool, slowly. */
  isRead: Rarely
})
export type Plan = typeof Plan.Type

export const optionsOf = (plan: Plan): Options => Record.map(plan.limits, (limit: Limit) => toNumber(limit))

export const plainLimits: Limits = {
  ...Record.map(limits, () => "off" as const),
  cleanupInterval: 1000,
  failureTimeToLive: 0,
  drainTimeout: 0
}
export const plainLookup: Lookup = { takes: "yield", ends: "opens", closing: "none", isValid: true, livesFor: "off" }
export const plainOperation: Operation = { kind: "get", key: "a1", holds: "yield", fails: false, interrupted: false }
