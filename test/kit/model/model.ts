/**
 * The expected behaviour of a pool, as plain mutable data: a list of sessions, a list of timers, and the effects of each step. It has
 * no fibers, no persistent data and no counters: every count is computed from the lists.
 *
 * Within one moment, effects happen in the order of their causes. Fibers of a real pool may interleave in other ways, which the explorer
 * tests. The model leaves out `keepAlive`, leak detection, events, metrics, functions of the user that throw, finalizers that fail, and
 * the fields of errors.
 */
import { Struct } from "effect"
import type { SessionPool } from "../../../src/index.ts"
import type { LimitName } from "./comparison.ts"

/** Times are in milliseconds. An option that is off is infinity. */
export interface Options extends Readonly<Record<LimitName, number>> {
  readonly idleTimeToLive: (key: string) => number
  readonly groupBy: (key: string) => string | undefined
  /** In the order in which the pool visits them. */
  readonly keys: ReadonlyArray<string>
  /** How the lookup and the close of the n-th connection end, and what the n-th validation answers. */
  readonly lookups: (n: number) => "opens" | "fails" | "hangs"
  readonly closes: (n: number) => "ends" | "hangs"
  readonly validations: (n: number) => "yes" | "no" | "hangs"
}

export interface Caller {
  readonly kind: "get" | "use" | "lease" | "getOption" | "set"
  readonly key: string
  /** Callers are served in this order. */
  readonly ticket: number
  /** `waits`, then `has` and the connection, then how the call ended. */
  result: string
  session?: Session
}

type History = Pick<Session, "createdAt" | "requestCount" | "errorCount">

/** A connection, or a launch that may become one. */
export class Session {
  readonly key: string
  readonly group: string | undefined
  readonly ticket: number
  /** `set` brought the connection. */
  readonly isGiven: boolean
  state: "waiting" | "launching" | "live" | "retired" | "closing" = "waiting"
  /** The key leads to this session: it is not retired, closing or invalidated, nor a `set` that waits. */
  current: boolean
  hasPlace = false
  /** 0 before the connection is open. */
  connection: number
  /** The callers that wait for it, then those that lease it. */
  callers: ReadonlyArray<Caller>
  /** The callers that wait for the answer of a running check. */
  checking: Array<Caller> | undefined
  reason: SessionPool.Reason | undefined
  history: History | undefined
  requestCount = 0
  errorCount = 0
  createdAt = 0
  openedAt = 0
  expiresAt = 0
  lastUsedAt = 0
  validatedAt = 0
  /** The number of its last use, in the order of all uses of the pool. */
  used = 0
  askedAt = 0
  /** The time from which it counts on closing places. */
  since = 0
  /** A session was retired for it. */
  isPromised = false

  constructor(caller: Caller, { groupBy }: Options, connection: number) {
    this.key = caller.key
    this.group = groupBy(caller.key)
    this.ticket = caller.ticket
    this.isGiven = connection > 0
    this.current = connection === 0
    this.connection = connection
    this.callers = [caller]
  }
}

export class Model {
  now = 0
  opened = 0
  ended = false
  sessions: ReadonlyArray<Session> = []
  timers: ReadonlyArray<{ readonly at: number; readonly run: () => void }> = []
  readonly closed: Array<number> = []
  /** Closes that hang, with what happens when they end. */
  readonly hanging = new Map<number, () => void>()
  readonly failures = new Map<string, { readonly until: number; readonly error: string }>()
  readonly closes: Partial<Record<SessionPool.Reason, number>> = {}
  readonly totals = { hits: 0, misses: 0, joins: 0, launches: 0, launchFailures: 0, errors: 0 }
  readonly waits = { waited: 0, timedOut: 0, refused: 0 }
  readonly options: Options
  /** How long a waiter counts on a closing place. */
  readonly patience: number
  private ending = false
  private stepper: Caller | undefined
  /** Effects of the present step, and steps that follow when all of these are done. */
  private readonly due: Array<() => void> = []
  private readonly later: Array<() => void> = []
  private isActing = false
  private uses = 0
  private validations = 0

  constructor(options: Options) {
    this.options = options
    this.patience = Math.min(5000, options.acquireTimeout / 2)
    const tick = () => {
      this.sweep()
      this.after(options.cleanupInterval, tick)
    }
    tick()
  }

  // Time and steps

  /** Runs one step of the pool, then its effects in order. Then the caller that took the step continues. */
  run<A>(step: () => A): A {
    const result = step()
    if (this.isActing) return result
    this.isActing = true
    for (let act = this.due.shift(); act !== undefined; act = this.due.shift()) act()
    this.isActing = false
    this.stepper = undefined
    const next = this.later.shift()
    if (next !== undefined) this.run(next)
    return result
  }

  /** Callers continue. The caller that takes this step continues only after the step has ended. */
  private wake(callers: ReadonlyArray<Caller>, f: (caller: Caller) => void): void {
    this.due.push(() => {
      for (const caller of callers) {
        if (caller === this.stepper) this.later.push(() => f(caller))
        else f(caller)
      }
    })
  }

  private after(millis: number, run: () => void): void {
    if (millis === 0) this.later.push(run)
    else this.timers = [...this.timers, { at: this.now + millis, run }]
  }

  advance(to: number): void {
    const due = this.timers.filter(({ at }) => at <= to).toSorted((x, y) => x.at - y.at)[0]
    this.now = due?.at ?? to
    if (due === undefined) return
    this.timers = this.timers.filter((timer) => timer !== due)
    this.run(due.run)
    this.advance(to)
  }

  // What a user of the pool sees

  at(key: string): Session | undefined {
    return this.sessions.find((s) => s.current && s.key === key)
  }

  live(key: string): Session | undefined {
    return this.those("live").find((s) => s.key === key)
  }

  those(state: Session["state"]): ReadonlyArray<Session> {
    return this.sessions.filter((s) => s.state === state)
  }

  /** With the connection instead of the id. */
  info(s: Session): Omit<SessionPool.Info<string>, "key"> {
    const { connection: id, callers: { length: leases } } = s
    const counts = Struct.pick(s, ["createdAt", "openedAt", "lastUsedAt", "requestCount", "errorCount"])
    return { ...counts, id, leases, state: leases > 0 ? "active" : "idle" }
  }

  stats(): Omit<SessionPool.Stats, "closes"> & { readonly closes: object } {
    const live = this.those("live")
    const active = live.filter((s) => s.callers.length > 0).length
    const launching = this.those("launching").filter(({ current }) => current).length
    return {
      ...this.totals,
      ...this.waits,
      closes: this.closes,
      launching,
      idle: live.length - active,
      active,
      retired: this.sessions.length - live.length - launching - this.those("waiting").length,
      waiting: this.waiting(),
      leases: [...live, ...this.those("retired")].flatMap(({ callers }) => callers).length,
      failures: [...this.failures.values()].filter(({ until }) => until > this.now).length
    }
  }

  private waiting(): number {
    return this.those("waiting").flatMap(({ callers }) => callers).length
  }

  overdue(s: Session): SessionPool.Reason | undefined {
    if (this.now >= s.expiresAt) return "MaxLifetime"
    const idle = s.callers.length > 0 ? 0 : this.now - s.lastUsedAt
    return idle > this.options.idleTimeToLive(s.key) ? "IdleTimeout" : undefined
  }

  // Places and the queue for them

  private isFull(): boolean {
    return this.sessions.filter(({ hasPlace }) => hasPlace).length >= this.options.capacity
  }

  private isGroupFull(group: string | undefined): boolean {
    const taken = this.sessions.filter((s) => s.hasPlace && s.group === group)
    return group !== undefined && taken.length >= this.options.groupCapacity
  }

  /** The least recently used idle session that an eviction for this group may close. */
  private idlest(group: string | undefined): Session | undefined {
    const isGroupFull = this.isGroupFull(group)
    return this.those("live")
      .filter((s) => s.callers.length === 0 && (!isGroupFull || s.group === group))
      .toSorted((x, y) => x.used - y.used)[0]
  }

  /** Evicts for a waiter, which counts on the place of that session from now on. */
  private evictFor(waiter: Session, group: string | undefined): boolean {
    const idlest = this.idlest(group)
    if (idlest === undefined) return false
    // A waiting `set` replaces the session of its key when that becomes idle.
    const isReplaced = waiter.isGiven && idlest.key === waiter.key
    if (isReplaced) waiter.history = { ...idlest }
    this.retire(idlest, isReplaced ? "Replaced" : "Evicted")
    Object.assign(waiter, { since: this.now, isPromised: true })
    return true
  }

  /** Serves waiters in order: each gets a free place, counts on a closing one, or evicts. */
  private serve(): void {
    const closing = this.those("closing").filter(({ hasPlace }) => hasPlace)
    let coming = closing.length
    const comingIn = new Map<string | undefined, number>()
    for (const s of this.those("waiting").toSorted((x, y) => x.ticket - y.ticket)) {
      const { group } = s
      const [isFree, isGroupFull] = [!this.isFull(), this.isGroupFull(group)]
      const isImpatient = this.patience === 0 ? !s.isPromised : this.now - s.since >= this.patience
      // A `set` earlier in this loop may have taken over this launch.
      if (s.state !== "waiting") continue
      if (isFree && !isGroupFull) this.place(s)
      if (isFree && !isGroupFull) continue
      if (isGroupFull) {
        const ofGroup = comingIn.get(group) ?? closing.filter((other) => other.group === group).length
        const isEvicted = (ofGroup <= 0 || isImpatient) && this.evictFor(s, group)
        comingIn.set(group, isEvicted ? ofGroup : ofGroup - 1)
        if (isEvicted || ofGroup <= 0) continue
      }
      if (isFree || (coming > 0 && (isGroupFull || !isImpatient))) coming--
      else if (!this.evictFor(s, undefined)) return
    }
  }

  /** False if the caller is refused: no place is free, and it may not wait. */
  private enqueue(s: Session, caller: Caller, hasRetired = false): boolean {
    const isFull = this.isFull() || this.isGroupFull(s.group)
    const mayWait = hasRetired || this.waiting() < this.options.maxWaiting || this.idlest(s.group) !== undefined
    if (isFull && !mayWait) {
      this.refuse(caller)
      return false
    }
    const old = this.live(s.key)
    if (isFull && old !== undefined) {
      s.history = { ...old }
      if (old.callers.length === 0) this.retire(old, "Replaced")
    }
    s.isPromised = hasRetired || old?.state === "closing"
    caller.session = s
    s.since = s.askedAt = this.now
    this.sessions = [...this.sessions, s]
    if (!isFull) this.place(s)
    else {
      this.serve()
      this.wait(caller)
    }
    return true
  }

  private refuse(caller: Caller): void {
    this.waits.refused++
    caller.result = "CapacityExceeded"
  }

  private wait(caller: Caller): void {
    const isWaiting = () => caller.result === "waits" && caller.session?.state === "waiting"
    const remind = () => {
      if (!isWaiting()) return
      this.serve()
      const left = (caller.session?.since ?? 0) + this.patience - this.now
      this.after(left > 0 ? left : this.patience, remind)
    }
    if (this.patience > 0) this.after(this.patience, remind)
    this.after(this.options.acquireTimeout, () => {
      if (!isWaiting()) return
      this.waits.timedOut++
      this.leave(caller, "CapacityExceeded")
    })
  }

  private hasWaited(s: Session, callers: number): void {
    if (this.now > s.askedAt) this.waits.waited += callers
  }

  private place(s: Session): void {
    this.hasWaited(s, s.callers.length)
    s.hasPlace = true
    if (s.isGiven) return this.adopt(s)
    s.state = "launching"
    this.due.push(() => this.launch(s))
  }

  // Getting a session

  acquire(caller: Caller, isTrusted = false): void {
    if (!this.isActing) this.stepper = caller
    const joinsOnly = caller.kind === "getOption"
    const s = this.at(caller.key)
    const reason = s?.state === "live" ? this.overdue(s) : undefined
    const failure = this.failures.get(caller.key)
    if (s !== undefined && reason === undefined) this.join(caller, s, isTrusted)
    else if (joinsOnly) caller.result = "None"
    else if (this.ending) caller.result = "PoolClosed"
    else if (failure !== undefined && this.now < failure.until) caller.result = failure.error
    else {
      if (s !== undefined && reason !== undefined) this.retire(s, reason)
      const fresh = new Session(caller, this.options, 0)
      if (this.enqueue(fresh, caller, isTrusted || s !== undefined)) this.totals.misses++
    }
  }

  private join(caller: Caller, s: Session, isTrusted: boolean): void {
    const mayWait = s.isPromised || this.waiting() < this.options.maxWaiting
    if (s.state === "waiting" && !mayWait) return this.refuse(caller)
    const idle = s.callers.length > 0 ? 0 : this.now - Math.max(s.lastUsedAt, s.validatedAt)
    caller.session = s
    s.callers = [...s.callers, caller]
    if (s.state === "waiting") this.wait(caller)
    if (s.state !== "live") this.totals.joins++
    else {
      this.touched(s)
      if (!isTrusted && (s.checking !== undefined || idle > this.options.validateAfter)) this.check(s, caller)
      else this.leased(caller)
    }
  }

  touch(key: string): number | null {
    const s = this.live(key)
    if (s === undefined || this.overdue(s) !== undefined) return null
    this.touched(s)
    return s.connection
  }

  private touched(s: Session): void {
    this.totals.hits++
    s.requestCount++
    this.use(s)
  }

  private use(s: Session): void {
    s.lastUsedAt = this.now
    s.used = ++this.uses
  }

  private leased(caller: Caller): void {
    if (caller.result === "waits") caller.result = `has ${caller.session?.connection}`
  }

  /** A caller leaves: interrupted or timed out. */
  leave(caller: Caller, why: string): void {
    const s = caller.session
    caller.result = why
    if (s?.state !== "waiting" && s?.state !== "launching") return this.release(caller, "neither")
    if (s.state === "waiting") this.hasWaited(s, 1)
    s.callers = s.callers.filter((other) => other !== caller)
    if (s.callers.length === 0) this.drop(s)
  }

  /** Drops a session that is not open yet. */
  private drop(s: Session): void {
    if (s.state === "launching" || s.isGiven) this.close(s)
    else this.remove(s)
  }

  private remove(s: Session): void {
    this.sessions = this.sessions.filter((other) => other !== s)
  }

  // Launching and adoption

  private launch(s: Session): void {
    s.connection = ++this.opened
    this.after(this.options.lookupTimeout, () => this.launched(s, "LookupTimeout"))
    const what = this.options.lookups(s.connection)
    if (what !== "hangs") this.launched(s, what === "opens" ? undefined : "Broken")
  }

  launched(s: Session, error: string | undefined): void {
    if (s.state !== "launching") return
    this.totals[error === undefined ? "launches" : "launchFailures"]++
    if (error === undefined) {
      if (!s.current) s.reason = "Invalidated"
      return this.open(s)
    }
    if (s.current) this.failures.set(s.key, { until: this.now + this.options.failureTimeToLive, error })
    for (const caller of s.callers) caller.result = error
    this.close(s)
  }

  private open(s: Session, history: History = { createdAt: this.now, requestCount: 0, errorCount: 0 }): void {
    s.state = s.current ? "live" : "retired"
    s.createdAt = history.createdAt
    s.requestCount = history.requestCount + s.callers.length
    s.errorCount = history.errorCount
    s.openedAt = s.validatedAt = this.now
    s.expiresAt = this.now + this.options.maxLifetime
    this.use(s)
    const { callers } = s
    this.wake(callers, (caller) => this.leased(caller))
  }

  set(caller: Caller): void {
    const s = new Session(caller, this.options, ++this.opened)
    if (this.ending) caller.result = "PoolClosed"
    if (!this.ending && this.enqueue(s, caller)) return
    this.sessions = [...this.sessions, s]
    this.close(s)
  }

  private adopt(s: Session): void {
    const old = this.at(s.key)
    const history = old?.state === "live" ? { ...old } : s.history
    for (const caller of s.callers) caller.result = "set"
    s.callers = []
    if (old?.state === "live") this.retire(old, "Replaced")
    else if (old !== undefined) {
      s.callers = old.callers
      for (const caller of s.callers) caller.session = s
      if (old.state === "waiting") this.hasWaited(old, old.callers.length)
      this.drop(old)
    }
    s.current = true
    this.failures.delete(s.key)
    this.open(s, history)
  }

  // Validation

  private check(s: Session, caller: Caller): void {
    if (s.checking !== undefined) return void s.checking.push(caller)
    const checking = s.checking = [caller]
    this.due.push(() => {
      const says = this.options.validations(++this.validations)
      if (says !== "hangs") this.checked(s, says === "yes")
      else this.after(this.options.validateTimeout, () => s.checking === checking && this.checked(s, false))
    })
  }

  checked(s: Session, isValid: boolean): void {
    const callers = s.checking ?? []
    s.checking = undefined
    if (isValid) s.validatedAt = this.now
    else if (s.state === "live") this.retire(s, "Invalid")
    this.wake(callers, (caller) => isValid ? this.leased(caller) : this.refused(caller))
  }

  private refused(caller: Caller): void {
    if (caller.result !== "waits") return
    this.run(() => this.release(caller, "neither"))
    this.run(() => this.acquire(caller, true))
  }

  // Release, errors, retirement, close

  release(caller: Caller, how: "success" | "error" | "neither"): void {
    const s = caller.session
    if (s === undefined || !s.callers.includes(caller)) return
    s.callers = s.callers.filter((other) => other !== caller)
    if (how === "error") this.totals.errors++
    if (s.state === "live") {
      this.use(s)
      if (how === "success") s.errorCount = 0
      if (how === "error") s.errorCount++
      if (s.errorCount >= this.options.maxErrorCount) this.retire(s, "Errors")
      else if (s.callers.length === 0 && this.options.idleTimeToLive(s.key) === 0) this.retire(s, "IdleTimeout")
      else if (s.callers.length === 0) this.serve()
    } else if (s.callers.length === 0) this.close(s)
  }

  /** Counts an error of the present session of a key, or of the session of a lease. */
  recordError(s: Session | undefined): void {
    if (s?.state !== "live") return
    this.totals.errors++
    if (++s.errorCount >= this.options.maxErrorCount) this.retire(s, "Errors")
  }

  retire(s: Session, reason: SessionPool.Reason): void {
    Object.assign(s, { state: "retired", current: false, reason })
    if (s.callers.length === 0) this.close(s)
  }

  /** True if a session or launch was retired. */
  invalidate(key: string): boolean {
    const s = this.at(key)
    this.failures.delete(key)
    if (s?.state === "live") this.retire(s, "Invalidated")
    else if (s?.state === "launching") s.current = false
    return s !== undefined && s.state !== "waiting"
  }

  /** Spares sessions that are newer than the call. */
  invalidateAll(which: "idle" | undefined): number {
    if (which === undefined) this.failures.clear()
    const isMatching = (s: Session) => which === undefined || (s.state === "live" && s.callers.length === 0)
    return this.options.keys
      .map((key) => this.at(key))
      .filter((s) => s !== undefined && s.state !== "waiting" && isMatching(s))
      .filter((s) => s?.current && isMatching(s) && this.run(() => this.invalidate(s.key))).length
  }

  sweep(): number {
    return this.options.keys.filter((key) => {
      const s = this.live(key)
      const reason = s && this.overdue(s)
      if (s !== undefined && reason !== undefined) this.run(() => this.retire(s, reason))
      return reason !== undefined
    }).length
  }

  private close(s: Session): void {
    Object.assign(s, { state: "closing", current: false, callers: [] })
    this.due.push(() => {
      if (s.checking !== undefined) this.checked(s, false)
      const { connection } = s
      this.hanging.set(connection, () => this.gone(s))
      if (this.options.closes(connection) === "ends") this.closeEnds(connection)
      else this.after(this.options.closeTimeout, () => this.gone(s))
    })
  }

  closeEnds(connection: number): void {
    const free = this.hanging.get(connection)
    this.hanging.delete(connection)
    this.closed.push(connection)
    free?.()
  }

  /** Frees the place: the session has closed, or its close has timed out. */
  private gone(s: Session): void {
    if (!this.sessions.includes(s)) return
    this.remove(s)
    if (s.reason !== undefined) this.closes[s.reason] = (this.closes[s.reason] ?? 0) + 1
    if (s.hasPlace) this.serve()
    this.ended ||= this.ending && this.sessions.length === 0
  }

  // The end

  end(): void {
    this.ending = true
    this.failures.clear()
    for (const s of this.sessions) {
      if (s.state === "live") this.retire(s, "PoolClosed")
      if (s.state !== "waiting" && s.state !== "launching") continue
      for (const caller of s.callers) caller.result = "PoolClosed"
      this.drop(s)
    }
    this.after(this.options.drainTimeout, () => this.those("retired").forEach((s) => this.close(s)))
    this.ended = this.sessions.length === 0
  }
}
