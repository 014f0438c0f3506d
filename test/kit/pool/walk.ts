/**
 * Callers, back ends and time as dice, on the transitions alone: each turn takes one thing that the shell may do next,
 * and keeps a ledger of what everyone must hold after it. Nothing runs but the transitions, so a walk of thousands of
 * turns takes a moment, and a seed repeats it.
 */
import { assert } from "@effect/vitest"
import { Cause, Deferred, Hash, HashMap } from "effect"
import type { Action, Launch, Reason, Session, Slot } from "../../../src/internal/state.ts"
import * as Transitions from "../../../src/internal/transitions.ts"
import * as Random from "../random.ts"
import { failure, launch, Run, session, validation, withoutActions } from "./steps.ts"

type L = Launch<string, string, string>

interface Claim {
  readonly key: string
  readonly id: number
}

interface Setter {
  readonly ticket: number
  readonly session: Session<string, string>
  readonly entry: Transitions.Entry
  /** The pool closed while it waited. */
  readonly refused: boolean
}

const keys = ["x1", "x2", "x3", "y1", "y2", "z1"]
const groupOf = (key: string) => key.slice(0, 1)

export class Walk {
  readonly run: Run
  readonly random: (below: number) => number
  now = 0
  lastId = 0
  ended = false
  /** What callers hold: claims on launches that have not ended, and leases. */
  waiting: Array<Claim> = []
  leases: Array<Claim> = []
  /** Callers that were told a failure, and have not given their claim up yet. */
  refused: Array<Claim> = []
  /** Validations that run; each has a lease of its own. */
  validations: Array<Claim> = []
  /** What was under a key when it was last to be retired. */
  readonly seen = new Map<string, Slot<string, string, string> | undefined>()
  /** Lookups that run, those given up whose resources are not closed yet, and finalizers that run. */
  launching: Array<L> = []
  discarding: Array<L> = []
  closing: Array<Session<string, string>> = []
  setters: Array<Setter> = []
  readonly opened = new Set<number>()
  readonly retired = new Map<number, Reason>()
  readonly closed = new Set<number>()
  readonly totals = { hits: 0, misses: 0, joins: 0, launches: 0, launchFailures: 0, errors: 0 }
  readonly closes = new Map<Reason, number>()

  constructor(seed: number, limits: Partial<Transitions.Limits>) {
    this.run = new Run(limits)
    this.random = Random.make(seed).below
  }

  pick<T>(from: ReadonlyArray<T>): T | undefined {
    return from[this.random(from.length || 1)]
  }

  /** Takes one out at random. */
  draw<T>(from: Array<T>): T | undefined {
    return from.splice(this.random(from.length || 1), 1)[0]
  }

  // ---------------------------------------------------------------------------
  // The ledger
  // ---------------------------------------------------------------------------

  /** Books the actions of the last step, and compares what everyone holds. */
  book(): void {
    this.bookActions()
    for (const [key, slot] of HashMap.entries(this.run.state.slots)) {
      if (slot._tag === "Live") this.compareLeases(slot.session.id, slot.leases)
      else if (slot._tag !== "Failed") this.compareCallers(slot.launch.id, slot.callers)
      assert.strictEqual(slot._tag === "Live" ? slot.session.key : key, key)
    }
    const { detached, retired, totals } = this.run.state.inventory
    for (const [id, { callers }] of HashMap.entries(detached)) this.compareCallers(id, callers)
    for (const [id, { leases }] of HashMap.entries(retired)) {
      if (!this.closing.some((session) => session.id === id)) this.compareLeases(id, leases)
    }
    const { closes, ...counts } = totals
    assert.deepStrictEqual({ hits: this.run.state.hits, ...counts }, this.totals)
    for (const [reason, count] of Object.entries(closes)) {
      assert.strictEqual(count, this.closes.get(reason as Reason) ?? 0, reason)
    }
  }

  bookActions(): void {
    const { actions } = this.run
    this.run.actions = []
    for (const action of actions) this.bookAction(action)
  }

  compareLeases(id: number, leases: number): void {
    const held = [...this.leases, ...this.validations].filter((claim) => claim.id === id)
    assert.strictEqual(leases, held.length, "leases")
  }

  compareCallers(id: number, callers: number): void {
    assert.strictEqual(callers, this.waiting.filter((claim) => claim.id === id).length, "callers")
  }

  bookAction(action: Action<string, string, string>): void {
    switch (action._tag) {
      case "Launch":
        assert.isFalse(this.launching.includes(action.launch), "launched twice")
        this.launching.push(action.launch)
        break
      case "Cancel":
        assert.isTrue(this.launching.includes(action.launch), "cancelled what does not run")
        this.launching = this.launching.filter((launch) => launch !== action.launch)
        this.discarding.push(action.launch)
        break
      case "Open":
      case "Adopt":
        assert.isFalse(this.opened.has(action.session.id), "opened twice")
        this.opened.add(action.session.id)
        if (action._tag === "Open") this.totals.launches++
        break
      case "Deliver":
        this.leases.push(...this.waiting.filter(({ id }) => id === action.launch.id))
        this.waiting = this.waiting.filter(({ id }) => id !== action.launch.id)
        break
      case "Refuse":
        this.refused.push(...this.waiting.filter(({ id }) => id === action.launch.id))
        this.waiting = this.waiting.filter(({ id }) => id !== action.launch.id)
        break
      case "Retire":
        assert.isTrue(this.opened.has(action.session.id), "retired what was never opened")
        assert.isFalse(this.retired.has(action.session.id), "retired twice")
        this.retired.set(action.session.id, action.reason)
        break
      case "Close":
        assert.strictEqual(this.retired.get(action.session.id), action.reason)
        assert.isFalse(this.closed.has(action.session.id), "closed twice")
        this.closed.add(action.session.id)
        this.closing.push(action.session)
        break
      case "End":
        assert.isFalse(this.ended, "ended twice")
        this.ended = true
        break
      case "Grant":
        break
    }
  }

  // ---------------------------------------------------------------------------
  // What may happen
  // ---------------------------------------------------------------------------

  turn(): void {
    const moves = [
      () => this.acquire(),
      () => this.acquire(),
      () => this.acquire(),
      () => this.join(),
      () => this.lease(),
      () => this.touch(),
      () => this.release(),
      () => this.release(),
      () => this.release(),
      () => this.abandon(),
      () => this.giveUp(),
      () => this.land(),
      () => this.land(),
      () => this.land(),
      () => this.fail(),
      () => this.discard(),
      () => this.linger(),
      () => this.close(),
      () => this.close(),
      () => this.set(),
      () => this.carryOn(),
      () => this.validate(),
      () => this.validated(),
      () => this.retire(),
      () => this.recordError(),
      () => this.expire(),
      () => void (this.now += this.random(40))
    ]
    moves[this.random(moves.length)]?.()
    this.book()
  }

  got(key: string, mine: number, result: Transitions.Acquired<string, string, string>): void {
    switch (result._tag) {
      case "Join":
        this.waiting.push({ key, id: result.launch.id })
        this.totals[result.launch.id === mine ? "misses" : "joins"]++
        break
      case "Leased":
      case "Validate": {
        this.totals.hits++
        const claim = { key, id: result.session.id }
        this.leases.push(claim)
        if (result._tag === "Validate" && result.begin) this.begun(claim)
        assert.strictEqual(this.run.live(key).lastUsedAt, this.now)
        break
      }
      case "Full":
        assert.isAtLeast(this.run.state.inventory.waiting, this.run.limits.maxWaiting)
        break
      case "Failed": {
        const slot = this.run.slot(key)
        assert.isTrue(slot?._tag === "Failed" && this.now < slot.until)
        break
      }
      case "Closed":
      case "Absent":
        break
    }
  }

  begun(claim: Claim): void {
    assert.isFalse(this.validations.some(({ id }) => id === claim.id), "validated twice at once")
    this.validations.push(claim)
  }

  acquire(): void {
    const key = this.pick(keys) ?? ""
    const before = this.run.slot(key)
    const id = ++this.lastId
    const mine = { ...launch(id, key, groupOf(key)), idleTimeToLive: this.random(3) * 50 }
    const result = this.run.step((state, limits) => Transitions.acquire(state, limits, this.now, mine, validation()))
    assert.isTrue(before?._tag !== "Live" || result._tag === "Leased" || result._tag === "Validate", "a hit")
    this.got(key, id, result)
  }

  join(): void {
    const key = this.pick(keys) ?? ""
    this.got(
      key,
      -1,
      this.run.step((state, limits) => Transitions.join(state, limits, key, this.now, validation()))
    )
  }

  lease(): void {
    const key = this.pick(keys) ?? ""
    const leased = this.run.step((state, limits) =>
      withoutActions(Transitions.lease(state, limits, key, Hash.hash(key), this.now))
    )
    if (leased !== undefined) this.got(key, -1, { _tag: "Leased", session: leased })
  }

  touch(): void {
    const key = this.pick(keys) ?? ""
    const touched = this.run.step((state) => withoutActions(Transitions.touch(state, key, this.now)))
    if (touched._tag === "None") return
    this.totals.hits++
    assert.strictEqual(this.run.live(key).lastUsedAt, this.now)
  }

  release(): void {
    const claim = this.draw(this.leases)
    if (claim === undefined) return
    const how = this.pick(["success", "error", "neither"] as const) ?? "neither"
    if (how === "error") this.totals.errors++
    this.run.release(claim.id, claim.key, this.now, how)
  }

  abandon(): void {
    const refused = this.draw(this.refused)
    if (refused !== undefined) {
      const before = this.run.state
      this.run.abandon(refused.id, refused.key, this.now)
      assert.strictEqual(this.run.state, before)
    }
    const claim = this.draw(this.waiting)
    if (claim !== undefined) this.run.abandon(claim.id, claim.key, this.now)
  }

  giveUp(): void {
    const claim = this.pick(this.waiting)
    if (claim === undefined) return
    const isQueued = this.run.slot(claim.key)?._tag === "Waiting"
    const gone = this.run.step((state, limits) => Transitions.giveUp(state, limits, claim.key, claim.id))
    assert.strictEqual(gone !== undefined, isQueued && !this.launching.some(({ id }) => id === claim.id))
    if (gone !== undefined) this.waiting.splice(this.waiting.indexOf(claim), 1)
  }

  land(): void {
    const launch = this.draw(this.launching)
    if (launch === undefined) return
    const session = this.run.land(launch, this.now, this.now + 50 + this.random(200))
    assert.isDefined(session, "a launch that runs is wanted")
  }

  fail(): void {
    const launch = this.draw(this.launching)
    if (launch === undefined) return
    this.totals.launchFailures++
    this.discarding.push(launch)
    const remember = this.random(2) === 0
    this.run.step((state, limits) =>
      Transitions.launchFailed(state, limits, launch, failure("refused"), remember, this.now)
    )
    assert.includeMembers(this.run.tags, ["TellFailed", "Refuse"])
  }

  /** What a launch without callers had acquired is closed; it may have landed or failed after all. */
  discard(): void {
    const launch = this.draw(this.discarding)
    if (launch === undefined) return
    assert.isUndefined(this.run.land(launch, this.now))
    this.run.step((state, limits) => Transitions.launchFailed(state, limits, launch, failure("late"), true, this.now))
    assert.deepStrictEqual(this.run.tags, [])
    this.run.launchClosed(launch)
    this.book()
    // A close that had timed out and ends at last says so again.
    this.run.launchClosed(launch)
    const { state } = this.run
    this.run.launchLingers(launch)
    assert.strictEqual(this.run.state, state)
  }

  /** A close takes a while, maybe for the second time. */
  linger(): void {
    const [session, launch] = [this.pick(this.closing), this.pick(this.discarding)]
    if (session !== undefined) this.run.lingers(session.id)
    this.book()
    if (launch !== undefined) this.run.launchLingers(launch)
  }

  close(): void {
    const session = this.draw(this.closing)
    if (session === undefined) return
    const reason = this.retired.get(session.id)
    assert.isDefined(reason)
    if (reason !== undefined) this.closes.set(reason, (this.closes.get(reason) ?? 0) + 1)
    this.run.closed(session.id)
    this.book()
    this.run.closed(session.id)
    const { state } = this.run
    this.run.lingers(session.id)
    assert.strictEqual(this.run.state, state)
  }

  set(): void {
    const key = this.pick(keys) ?? ""
    const mine = session(++this.lastId, key, this.now, groupOf(key))
    const before = this.run.state.inventory.waiting
    const result = this.run.adopt(mine)
    if (result._tag === "Queued") this.setters.push({ ...result, session: mine, refused: false })
    if (result._tag === "Full") assert.isAtLeast(before, this.run.limits.maxWaiting)
  }

  /** A caller of `set` that waited takes its place, or goes away. */
  carryOn(): void {
    const setter = this.draw(this.setters)
    if (setter === undefined) return
    const { entry, refused, session, ticket } = setter
    const isQueued = HashMap.has(this.run.state.inventory.queue.entries, ticket)
    if (isQueued || this.random(4) === 0) {
      this.run.returnGrant(ticket, groupOf(session.key))
      assert.isFalse(HashMap.has(this.run.state.inventory.queue.entries, ticket))
    } else {
      this.run.adopt({ ...session, openedAt: this.now }, !refused, entry)
    }
  }

  validate(): void {
    const claim = this.pick(this.leases) ?? { key: this.pick(keys) ?? "", id: this.random(this.lastId + 1) }
    const { id, key } = claim
    const step = this.random(2) === 0 ? Transitions.revalidate : Transitions.probe
    const isLeased = this.leases.includes(claim)
    if (step === Transitions.revalidate && !isLeased) return
    const started = this.run.step((state, limits) => step(state, limits, key, id, validation()))
    if (typeof started === "object" && started.begin !== undefined) this.begun({ key, id: started.begin.id })
  }

  validated(): void {
    const claim = this.draw(this.validations)
    if (claim === undefined) return
    const { id, key } = claim
    const valid = this.random(3) > 0
    this.run.step((state, limits) => Transitions.validated(state, limits, key, id, valid, this.now))
  }

  retire(): void {
    const key = this.pick(keys) ?? ""
    const slot = this.run.slot(key)
    const present = slot?._tag === "Live" ? slot.session.id : slot?._tag === "Launching" ? slot.launch.id : undefined
    // As it is, or as it was when it was looked at last.
    const seen = this.random(2) === 0 ? slot : this.seen.get(key) ?? slot
    this.seen.set(key, slot)
    if (this.random(4) === 0) {
      assert.strictEqual(this.run.invalidate(key), present !== undefined)
      return
    }
    if (seen !== undefined && this.random(2) === 0) {
      const retired = this.run.step((state, limits) => Transitions.invalidateSeen(state, limits, key, seen))
      assert.strictEqual(retired, seen === slot ? present !== undefined : undefined)
      return
    }
    const id = this.random(2) === 0 ? present : this.random(this.lastId + 1)
    const retired = this.run.step((state, limits) => Transitions.disconnected(state, limits, key, id ?? -1))
    assert.strictEqual(retired, slot?._tag === "Live" && present === id)
  }

  recordError(): void {
    const key = this.pick(keys) ?? ""
    if (this.run.slot(key)?._tag === "Live") this.totals.errors++
    this.run.step((state, limits) => Transitions.recordError(state, limits, key))
  }

  expire(): void {
    for (const key of keys) {
      const wasLive = this.run.slot(key)?._tag === "Live"
      const retired = this.run.step((state, limits) => Transitions.expire(state, limits, key, this.now))
      assert.isTrue(!retired || wasLive)
      this.book()
    }
  }

  // ---------------------------------------------------------------------------
  // The end
  // ---------------------------------------------------------------------------

  /** Closes the pool as the shell does, with everyone going on until nothing is left. */
  shutdown(): void {
    const phase = { _tag: "Closing", ended: Deferred.makeUnsafe<void>() } as const
    const refusal = () => Cause.fail("closed")
    const { entries } = this.run.state.inventory.queue
    this.setters = this.setters.map((setter) => ({ ...setter, refused: HashMap.has(entries, setter.ticket) }))
    this.run.step((state, limits) => Transitions.shutdown(state, limits, refusal, phase))
    this.book()
    assert.deepStrictEqual([this.waiting, this.launching], [[], []], "everyone was told, every launch cancelled")
    for (let turn = 0; turn < 20; turn++) this.turn()
    this.run.step((state, limits) => Transitions.forceClose(state, limits))
    this.bookActions()
    this.leases = []
    this.validations = []
    while (this.closing.length > 0) this.close()
    while (this.discarding.length > 0) this.discard()
    this.book()
    assert.isTrue(this.ended)
    assert.deepStrictEqual(new Set(this.retired.keys()), this.opened)
    assert.deepStrictEqual(this.closed, this.opened)
    assert.strictEqual(HashMap.size(this.run.state.slots), 0)
  }
}
