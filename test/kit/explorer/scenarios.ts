/** Small races that other pools have lost. The explorer runs each in every schedule up to a bound of deviations. */
import type { Limits, Lookup, Operation, Plan } from "./plan.ts"
import { plainLimits, plainLookup, plainOperation } from "./plan.ts"

interface Rest extends Partial<Limits> {
  readonly lookups?: ReadonlyArray<Partial<Lookup>>
  readonly endsEarly?: boolean
}

const scenario = (
  name: string,
  fibers: ReadonlyArray<ReadonlyArray<Operation>>,
  { endsEarly = false, lookups = [{}], ...limits }: Rest = {}
): { readonly name: string; readonly plan: Plan } => ({
  name,
  plan: {
    limits: { ...plainLimits, ...limits },
    lookups: lookups.map((lookup) => ({ ...plainLookup, ...lookup })),
    fibers,
    endsEarly,
    isRead: false
  }
})

/** Operations on one key. A name with `Cut` is interrupted at once. */
const of = (key: string) => {
  const make = (kind: Operation["kind"], rest?: Partial<Operation>) => ({ ...plainOperation, kind, key, ...rest })
  const interrupted = { interrupted: true }
  return {
    get: make("get"),
    getCut: make("get", interrupted),
    use: make("use"),
    useCut: make("use", interrupted),
    useLong: make("use", { holds: 5 }),
    set: make("set"),
    setCut: make("set", interrupted),
    invalidate: make("invalidate"),
    sweep: make("sweep")
  }
}
const [a, b, c] = [of("a1"), of("a2"), of("b1")]
const dying = [{ livesFor: 3 }]
const invalid = [{ isValid: false }, {}]
const twoPlaces = { capacity: 2, acquireTimeout: 4 }
const slow = [{ takes: 3, closing: 5 }] as const

export const scenarios = [
  scenario("a get and an invalidate of one key", [[a.get], [a.invalidate], [a.get]]),
  scenario("a session invalidated in use and got again", [[a.use], [a.invalidate, a.use]]),
  scenario("the last release and a get without idle time", [[a.use, a.use], [a.use]], { idleTimeToLive: 0 }),
  scenario("the first caller of a launch is interrupted", [[a.getCut], [a.get]]),
  scenario("two keys for one place", [[a.use], [b.use]], { capacity: 1 }),
  scenario("a waiter is interrupted as it is served", [[a.use], [b.useCut], [c.use]], { capacity: 1 }),
  scenario("a waiter times out as it is served", [[a.use], [b.use]], { capacity: 1, acquireTimeout: 8, lookups: slow }),
  scenario("a slow close", [[a.use, a.invalidate], [b.use], [c.use]], { ...twoPlaces, lookups: slow }),
  scenario("a set and a launch of one key", [[a.use], [a.set]]),
  scenario("a set and an interrupted launch of one key", [[a.getCut], [a.set], [a.get]]),
  scenario("a set waits and is interrupted", [[a.use], [b.setCut], [c.use]], { capacity: 1 }),
  scenario("a connection dies as it is used", [[a.use, a.use], [a.use]], { lookups: dying }),
  scenario("a check and an invalidation", [[a.use, a.use], [a.invalidate]], { validateAfter: 0, lookups: invalid }),
  scenario("a launch and its time-out", [[a.use], [a.use]], { lookupTimeout: 3, lookups: slow }),
  scenario("a sweep and a get", [[a.use, a.use], [a.sweep]], { idleTimeToLive: 2, cleanupInterval: 3 }),
  scenario("the end during a launch and a use", [[a.useLong], [b.use]], { lookups: slow, endsEarly: true }),
  scenario("the end while a caller waits", [[a.useLong], [b.use]], { capacity: 1, endsEarly: true }),
  scenario("a drain at the end", [[a.useLong], [a.use]], { drainTimeout: 4, endsEarly: true })
]
