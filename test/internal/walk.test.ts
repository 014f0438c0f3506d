/**
 * Takes random steps in random order. After each step `assertCounted` recounts the state. The walk also keeps its own record of the
 * claims of callers and of the life of each session, and compares it with the state.
 */
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Exit, HashMap } from "effect"
import * as Ordered from "../../src/internal/ordered.ts"
import type { Check, Session } from "../../src/internal/state.ts"
import { make, openingOf } from "../../src/internal/state.ts"
import * as Transitions from "../../src/internal/transitions.ts"
import * as Random from "../kit/random.ts"
import type { Action, Given, Slot } from "./steps.ts"
import * as Kit from "./steps.ts"

const keys = ["x1", "x2", "x3", "y1", "y2", "-1"]

const configurations: Record<string, Given> = {
  "without limits": {},
  "at capacity": { capacity: 2 },
  "at the capacity of the groups": { groupCapacity: 1 },
  "at both capacities, with few waiting": { capacity: 3, groupCapacity: 2, maxWaiting: 3 },
  "without patience": { capacity: 3, acquireTimeout: 0 },
  "with validation": { capacity: 4, validate: () => Effect.succeed(true), validateAfter: 10 },
  "with a memory for failures": { capacity: 3, failureTimeToLive: 30, idleTimeToLive: 0 }
}

/** Every other event and action happens at most once to a launch or session. */
const mayRepeat = new Set(["Closed", "Waited", "check", "complete:"])

class Walk {
  readonly steps: Kit.Steps
  readonly random: Random.Random
  /** One id per claim: of a caller on a launch or session, or of a `set` that waits. */
  claims: Array<number> = []
  /** Claims of callers that got a failure, which give them up in the next step. */
  readonly refused: Array<number> = []
  /** The lookups, checks and closes that the shell would be running. */
  readonly lookups: Array<number> = []
  readonly checks: Array<{ readonly session: Session<string, string>; readonly check: Check }> = []
  readonly closes: Array<number> = []
  /** Events and actions so far that must not happen twice, such as `close 7`. */
  readonly happened = new Set<string>()
  readonly counts: Record<string, unknown> = { hits: 0, ...make().totals }
  readonly closed: Record<string, number> = { ...make().totals.closes }
  isForced = false

  constructor(seed: number, given: Given) {
    this.steps = new Kit.Steps(given)
    this.random = Random.make(seed)
  }

  count(name: string, times = 1): void {
    this.counts[name] = Number(this.counts[name]) + times
  }

  once(what: string): void {
    assert.isFalse(this.happened.has(what), `${what} twice`)
    this.happened.add(what)
  }

  /** Removes and returns a random element. */
  draw<T>(from: Array<T>): T | undefined {
    return from.splice(this.random.below(from.length), 1)[0]
  }

  /** Runs a step one millisecond later, records its actions, and compares. */
  step(change: (steps: Kit.Steps) => void): void {
    const { steps } = this
    steps.now++
    steps.actions = []
    change(steps)
    for (const action of steps.actions) this.book(action)
    this.compare()
    for (const id of this.refused.splice(0)) this.step(() => steps.on(id, Transitions.abandon))
  }

  book(action: Action): void {
    const [what, id] = Kit.describe(action).split(" ")
    if (!mayRepeat.has(`${what}`)) this.once(`${what} ${id}`)
    if (what === "Launched") this.count("launches")
    if (what === "LaunchFailed") this.count("launchFailures")
    switch (action._tag) {
      case "Launch":
        this.lookups.push(action.launch.id)
        break
      case "Close":
        this.closes.push(action.leaving.opening.id)
        break
      case "Check":
        assert.isFalse(this.checks.some(({ session }) => session === action.session))
        this.checks.push(action)
        break
      case "Emit":
        if (action.event._tag === "Waited") this.count("waited", action.event.callers)
        break
      case "Complete":
        this.complete(action.deferred, action.exit)
    }
  }

  complete(deferred: Deferred.Deferred<unknown, unknown>, exit: Exit.Exit<unknown, unknown>): void {
    const isFirst = Deferred.doneUnsafe(deferred, exit)
    // After the end, the close of a late `set` completes `ending` once more.
    assert.isTrue(isFirst || this.steps.state.ending !== undefined, "completed twice")
    const launch = this.steps.launches.find(({ done }) => done === deferred)
    if (launch === undefined || (Exit.isSuccess(exit) && launch.adopts === undefined)) return
    if (Exit.isFailure(exit)) this.refused.push(...this.claims.filter((id) => id === launch.id))
    this.claims = this.claims.filter((id) => id !== launch.id)
  }

  /** The state has the claims of the record, and its totals are those of the record. */
  compare(): void {
    const { hits, leaving, slots, totals, waiting } = this.steps.state
    const held = [
      ...Array.from(HashMap.values(slots)).flatMap((slot) => Array(holdersOf(slot)).fill(openingOf(slot).id)),
      ...Array.from(HashMap.values(leaving)).flatMap(({ holders, opening }) => Array(holders).fill(opening.id)),
      ...Array.from(Ordered.values(waiting)).flatMap(({ launch }) => launch.adopts === undefined ? [] : launch.id)
    ]
    assert.sameMembers(held, this.isForced ? [] : this.claims)
    assert.deepStrictEqual({ hits, ...totals }, { ...this.counts, closes: this.closed })
  }

  // ---------------------------------------------------------------------------
  // Steps
  // ---------------------------------------------------------------------------

  acquire(steps: Kit.Steps): void {
    const { random } = this
    const key = random.pick(keys)
    const launch = random.chance(0.8) ? steps.newLaunch(key, undefined, random.pick([Infinity, 200])) : null
    const acquired = steps.ask(key, launch, random.chance(0.9) ? Kit.newCheck() : null)
    switch (acquired._tag) {
      case "Leased":
        this.count("hits")
        this.claims.push(acquired.session.id)
        break
      case "Joined":
        this.count(acquired.launch === launch ? "misses" : "joins")
        this.claims.push(acquired.launch.id)
        break
      case "Full":
        this.count("refused")
    }
  }

  hit(steps: Kit.Steps): void {
    const lease = this.random.pick([0, 1] as const)
    const session = steps.hit(this.random.pick(keys), lease)
    if (session === undefined) return
    this.count("hits")
    if (lease === 1) this.claims.push(session.id)
  }

  /** A caller leaves: a waiter gives up its claim, a holder releases its session. */
  leave(steps: Kit.Steps): void {
    const id = this.draw(this.claims)
    if (id === undefined) return
    const { adopts, done } = steps.of(id)
    const how = this.random.pick(["success", "error", "neither"] as const)
    const isOpen = Deferred.isDoneUnsafe(done)
    if (!isOpen || (adopts === undefined && this.random.chance(0.2))) return steps.on(id, Transitions.abandon)
    if (how === "error" && !this.isForced) this.count("errors")
    steps.release(id, how)
  }

  /** A caller's `acquireTimeout` is over. The caller leaves if it still waits for a place. */
  timeOut(steps: Kit.Steps): void {
    const id = this.draw(this.claims)
    if (id === undefined) return
    const isWaiting = Ordered.get(steps.state.waiting, id) !== undefined
    assert.strictEqual(steps.on(id, Transitions.giveUp) !== undefined, isWaiting)
    if (isWaiting) this.count("timedOut")
    else this.claims.push(id)
  }

  land(steps: Kit.Steps): void {
    const id = this.draw(this.lookups)
    const exit = this.random.pick([Exit.succeed("opened"), Exit.succeed("opened"), Exit.fail("no"), Exit.interrupt()])
    if (id !== undefined) steps.land(id, exit)
  }

  set(steps: Kit.Steps): void {
    if (steps.set(this.random.pick(keys)) !== undefined) this.count("refused")
    else this.claims.push(steps.launches.length)
  }

  check(steps: Kit.Steps): void {
    const asked = this.draw(this.checks)
    const isValid = this.random.chance(0.6)
    if (asked !== undefined) steps.step((d) => Transitions.checked(d, asked.session, asked.check, isValid))
  }

  /** A close ends, or times out and ends later. */
  close(steps: Kit.Steps): void {
    const id = this.draw(this.closes)
    if (id === undefined) return
    const hasTimedOut = this.happened.has(`CloseTimedOut ${id}`)
    const timesOut = !hasTimedOut && this.random.chance(0.2)
    const reason = steps.closes.get(id)?.reason
    if (!hasTimedOut && reason !== undefined) this.closed[reason] = (this.closed[reason] ?? 0) + 1
    if (timesOut) this.closes.push(id)
    steps.closed(id, timesOut)
  }

  /** A step about the present slot of a key. */
  atSlot(steps: Kit.Steps): void {
    const slot = steps.slot(this.random.pick(keys))
    if (slot === undefined) return
    const { id } = openingOf(slot)
    const isLive = slot._tag === "Live"
    this.random.pick([
      () => steps.on(id, Transitions.serveAgain),
      () => isLive && steps.step((d) => Transitions.startCheck(d, slot.session, Kit.newCheck(true))),
      () => {
        if (isLive) this.count("errors")
        steps.on(id, Transitions.recordError)
      },
      () => assert.strictEqual(steps.invalidate(id), isLive || slot._tag === "Launching"),
      () => {
        const isOver = Transitions.isExpired(slot, steps.now)
        assert.strictEqual(steps.on(id, Transitions.expire), isOver && isLive)
        assert.strictEqual(steps.slot(openingOf(slot).key) === slot, !isOver)
      }
    ])()
  }

  /** The more often an operation is listed, the more likely it is. */
  readonly operations = [
    ...Array(10).fill(this.acquire),
    ...Array(3).fill(this.hit),
    ...Array(7).fill(this.leave),
    ...Array(6).fill(this.land),
    ...Array(6).fill(this.close),
    ...Array(8).fill(this.atSlot),
    ...Array(2).fill(this.check),
    ...Array(2).fill(this.set),
    this.timeOut,
    (steps: Kit.Steps) => void steps.at(steps.now + this.random.below(120))
  ]

  turn(): void {
    const operation = this.random.pick(this.operations)
    this.step((steps) => operation.call(this, steps))
  }

  /** Ends the pool: everything closes once, and nothing is left. */
  end(): void {
    this.step((steps) => steps.end())
    for (let turn = 0; turn < 20; turn++) this.turn()
    this.isForced = true
    this.step((steps) => steps.step(Transitions.forceClose))
    while (this.closes.length > 0) this.step((steps) => this.close(steps))
    while (this.claims.length > 0) this.step((steps) => this.leave(steps))
    const { ending, leaving } = this.steps.state
    assert.isTrue(HashMap.isEmpty(leaving))
    assert.isTrue(ending !== undefined && Deferred.isDoneUnsafe(ending))
  }
}

const holdersOf = (slot: Slot): number => slot._tag === "Live" ? slot.leases : slot._tag === "Failed" ? 0 : slot.callers

describe("random walks", () => {
  for (const [name, given] of Object.entries(configurations)) {
    it(`steps in any order keep every count, claim and limit ${name}`, () => {
      for (let seed = 1; seed <= 5; seed++) {
        const walk = new Walk(seed, given)
        for (let turn = 0; turn < 150; turn++) walk.turn()
        walk.end()
      }
    })
  }
})
