/**
 * Small scenarios, each a race that pools have lost, for the search through all schedules up to a bound: two or three
 * fibers with one or two operations each.
 */
import type { Lookup, Operation, Options, Plan } from "./plan.ts"
import { operation, plainLookup, plainOptions, run } from "./plan.ts"
import type { Chooser, Verdict } from "./schedule.ts"

export interface Scenario {
  readonly name: string
  readonly run: (chooser: Chooser) => Verdict
}

const scenario = (
  name: string,
  fibers: ReadonlyArray<ReadonlyArray<Operation>>,
  options: Partial<Options> = {},
  lookups: ReadonlyArray<Partial<Lookup>> = [{}],
  endsEarly = false
): Scenario => {
  const plan: Plan = {
    options: { ...plainOptions, ...options },
    lookups: lookups.map((lookup) => ({ ...plainLookup, ...lookup })),
    fibers,
    endsEarly,
    isRead: false
  }
  return { name, run: (chooser) => run(plan, chooser, false) }
}

const make = (kind: Operation["kind"]) => (key = "a1", rest: Partial<Operation> = {}) => operation(kind, key, rest)
const get = make("get")
const use = make("use")
const touch = make("touch")
const set = make("set")
const invalidate = make("invalidate")

const interrupted = { interrupted: true }
const failing = { fails: true }

export const scenarios: ReadonlyArray<Scenario> = [
  scenario("a get and an invalidate of one key", [[get()], [invalidate()], [get()]]),
  scenario("a session invalidated in use and got again", [[use()], [invalidate(), use()]]),
  scenario("zero time to live: the last release and the next get", [[use(), use()], [use()]], { idleTimeToLive: 0 }),
  scenario("a touch while time passes", [[use(), touch()], [touch()]], { idleTimeToLive: 5, cleanupInterval: 5 }, [
    { livesFor: 3 }
  ]),
  scenario("the first caller of a launch is interrupted, the second stays", [[get("a1", interrupted)], [get()]]),
  scenario("all callers of a launch are interrupted", [[get("a1", interrupted)], [get("a1", interrupted)], [get()]]),
  scenario("one place, two keys", [[use("a1")], [use("a2")]], { capacity: 1 }),
  scenario("one place, a waiter is interrupted as it is served", [[use("a1")], [use("a2", interrupted)], [use("a3")]], {
    capacity: 1
  }),
  scenario("one place, a waiter gives up as it is served", [[use("a1")], [use("a2")]], {
    capacity: 1,
    acquireTimeout: 3
  }, [{ takes: 2, closing: 1 }]),
  scenario("one place, the launch in it fails", [[use("a1")], [use("a2")]], { capacity: 1 }, [{ ends: "fails" }, {}]),
  scenario("the last error and another user", [[use("a1", failing)], [use("a1", failing), use()]], {
    maxErrorCount: 2
  }),
  scenario("a set and a launch of one key", [[use()], [set()]]),
  scenario("a set and an interrupted launch of one key", [[get("a1", interrupted)], [set()], [get()]]),
  scenario("one place, a set waits and is interrupted", [[use("a1")], [set("a2", interrupted)], [use("a3")]], {
    capacity: 1
  }),
  scenario("a connection that dies as it is used", [[use(), use()], [use()]], {}, [{ livesFor: 1 }]),
  scenario("a validation and an invalidation", [[use(), use()], [invalidate()]], { validateAfter: 0 }, [
    { valid: false },
    {}
  ]),
  scenario("a launch and its time-out", [[use()], [use()]], { lookupTimeout: 3 }, [{ takes: 3 }]),
  scenario("a sweep and a get", [[use(), use()], [operation("sweep")]], { idleTimeToLive: 2, cleanupInterval: 3 }),
  scenario("the end during a launch and a use", [[use("a1", { holds: 3 })], [use("a2")]], {}, [{ takes: 4 }], true),
  scenario("the end while a caller waits", [[use("a1", { holds: 5 })], [use("a2")]], { capacity: 1 }, [{}], true),
  scenario("the end that drains", [[use("a1", { holds: 6 })], [use("a1")]], { drainTimeout: 4 }, [{}], true)
]
