/**
 * What a pool should do, as plain mutable data: one list of everything that exists, a list of timers, and a list of what
 * is still to be done in this moment. No fibers, no persistent data, no identity but that of objects.
 *
 * What happens in one moment happens here in the order in which it was caused. The pool's fibers may take turns in
 * another one where several callers go on at once; the explorer of schedules tests that. Besides, the model leaves out:
 * eviction by sample (above 4,096 idle sessions), `keepAlive`, leak detection, events, metrics, functions of the user
 * that throw, finalizers that fail, the fields of an error other than its tag. They have tests of their own.
 */
import type { SessionPool } from "../../src/index.ts"

/** Times are milliseconds; what is off is infinity. */
export interface Options {
  readonly capacity: number
  readonly groupCapacity: number
  readonly maxWaiting: number
  readonly maxErrorCount: number
  readonly acquireTimeout: number
  readonly lookupTimeout: number
  readonly closeTimeout: number
  readonly drainTimeout: number
  readonly failureTimeToLive: number
  readonly validateAfter: number
  readonly maxLifetime: number
  readonly cleanupInterval: number
  /** In the order in which the pool visits them. */
  readonly keys: ReadonlyArray<string>
  readonly idleTimeToLive: (key: string) => number
  readonly groupBy: (key: string) => unknown
  /** What the n-th connection's lookup does, what its close does, and what the n-th validation says. */
  readonly lookups: (n: number) => "opens" | "fails" | "hangs"
  readonly closes: (n: number) => "ends" | "hangs"
  readonly validations: (n: number) => "yes" | "no" | "hangs"
}

export interface Caller {
  readonly kind: "get" | "use" | "getOption" | "set"
  readonly key: string
  /** `waits`, then `has` and the connection, or how it ended. */
  result: string
  session?: Session
  /** 2: a session was found invalid. 3: what came in its place is being checked. */
  attempt?: number
}

export interface Session {
  readonly key: string
  id: number
  state: "waiting" | "launching" | "live" | "retired" | "closing"
  /** Its key leads to it. */
  current: boolean
  /** 0: none yet. */
  connection: number
  /** Who waits for it, then who leases it. */
  callers: Array<Caller>
  /** A validation runs, and these wait for its answer. */
  checking?: Array<Caller> | undefined
  reason?: SessionPool.Reason
  createdAt: number
  openedAt: number
  expiresAt: number
  lastUsedAt: number
  validatedAt: number
  requests: number
  errors: number
}

export class Model {
  now = 0
  opened = 0
  ended = false
  closing = false
  sessions: Array<Session> = []
  readonly closed: Array<number> = []
  /** Closes that hang, with what they free when they end. */
  readonly hanging = new Map<number, () => void>()
  readonly checks = new Set<Session>()
  readonly failures = new Map<string, { readonly until: number; readonly error: string }>()
  readonly closes: Partial<Record<SessionPool.Reason, number>> = {}
  readonly totals = { hits: 0, misses: 0, joins: 0, launches: 0, launchFailures: 0, errors: 0 }
  readonly options: Options
  timers: Array<{ readonly at: number; readonly run: () => void }> = []
  private todo: Array<() => void> = []
  private ids = 0
  private validations = 0

  constructor(options: Options) {
    this.options = options
    const tick = () => {
      this.sweep()
      this.after(options.cleanupInterval, tick)
    }
    this.after(options.cleanupInterval, tick)
  }

  // Time, and what is still to be done in this moment

  after(millis: number, run: () => void): void {
    if (millis === 0) this.todo.push(run)
    else this.timers.push({ at: this.now + millis, run })
  }

  /** One step of the pool; what it causes follows at once, each with what that causes in turn. */
  run<A>(step: () => A): A {
    const outer = this.todo
    this.todo = []
    const result = step()
    const caused = this.todo
    for (const next of caused) this.run(next)
    this.todo = outer
    return result
  }

  advance(to: number): void {
    const due = this.timers.filter(({ at }) => at <= to).toSorted((x, y) => x.at - y.at)[0]
    this.now = due?.at ?? to
    if (due === undefined) return
    this.timers = this.timers.filter((timer) => timer !== due)
    this.run(due.run)
    this.advance(to)
  }

  // Looking at it

  at = (key: string) => this.sessions.find((s) => s.current && s.key === key)
  live = (key: string) => this.sessions.find((s) => s.state === "live" && s.key === key)
  waiting = () => this.sessions.reduce((sum, s) => sum + (s.state === "waiting" ? s.callers.length : 0), 0)
  leases = (s: Session) => s.callers.length + (s.checking === undefined ? 0 : 1)

  // Places and the queue for them

  private in(group: unknown, ...states: ReadonlyArray<Session["state"]>): Array<Session> {
    return this.sessions.filter((s) =>
      states.includes(s.state) && (group === undefined || this.options.groupBy(s.key) === group)
    )
  }

  private full(group: unknown, reserved = 0): boolean {
    const used = this.in(group, "launching", "live", "retired", "closing").length
    return used + reserved >= (group === undefined ? this.options.capacity : this.options.groupCapacity)
  }

  private idlest(group: unknown): Session | undefined {
    const idle = this.in(group, "live").filter((s) => this.leases(s) === 0)
    return idle.toSorted((x, y) => x.lastUsedAt - y.lastUsedAt || x.id - y.id)[0]
  }

  private evict(group: unknown): boolean {
    const idlest = this.idlest(group)
    if (idlest !== undefined) this.retire(idlest, "Evicted")
    return idlest !== undefined
  }

  /** False: there is no place, and none to wait for. */
  private enqueue(s: Session, caller: Caller, place: (s: Session) => void): boolean {
    const group = this.options.groupBy(s.key)
    const full = this.full(undefined) || this.full(group)
    const evictable = this.idlest(this.full(group) ? group : undefined) !== undefined
    if (full && this.waiting() >= this.options.maxWaiting && !evictable) return false
    this.sessions.push(s)
    caller.session = s
    if (full) {
      this.serve()
      this.wait(caller)
    } else place(s)
    return true
  }

  private wait(caller: Caller): void {
    this.after(this.options.acquireTimeout, () => {
      if (caller.result === "waits" && caller.session?.state === "waiting") this.leave(caller, "CapacityExceeded")
    })
  }

  /** First come, first served: each waiter that may use a free place, counts on one that comes, or evicts. */
  private serve(): void {
    let coming = this.in(undefined, "closing").length
    let reserved = 0
    const comingIn = new Map<unknown, number>()
    for (const s of this.in(undefined, "waiting")) {
      const group = this.options.groupBy(s.key)
      const ofGroup = comingIn.get(group) ?? this.in(group, "closing").length
      if (!this.full(undefined, reserved) && !this.full(group)) this.place(s)
      else if (this.full(group) && ofGroup > 0) {
        comingIn.set(group, ofGroup - 1)
        if (coming > 0) coming--
        else reserved++
      } else if (this.full(group)) {
        if (this.evict(group)) comingIn.set(group, 0)
      } else if (coming > 0) coming--
      else if (!this.evict(undefined)) return
    }
  }

  private place(s: Session): void {
    s.state = "launching"
    const [caller] = s.callers
    if (caller?.kind === "set") this.todo.push(() => this.adopt(s, caller))
    else this.todo.push(() => this.launch(s))
  }

  // Getting a session

  private fresh(key: string, caller: Caller, connection: number): Session {
    const times = { createdAt: this.now, openedAt: 0, expiresAt: 0, lastUsedAt: 0, validatedAt: 0 }
    const counts = { id: ++this.ids, connection, requests: 0, errors: 0 }
    return { key, state: "waiting", current: connection === 0, callers: [caller], ...times, ...counts }
  }

  acquire(caller: Caller): void {
    const { key, kind } = caller
    const s = this.at(key)
    const failure = this.failures.get(key)
    if (s === undefined) {
      if (kind === "getOption") caller.result = "None"
      else if (this.closing) caller.result = "PoolClosed"
      else if (failure !== undefined && this.now < failure.until) caller.result = failure.error
      else if (this.enqueue(this.fresh(key, caller, 0), caller, (s) => this.place(s))) this.totals.misses++
      else caller.result = "CapacityExceeded"
      return
    }
    if (s.state === "waiting" && this.waiting() >= this.options.maxWaiting) {
      caller.result = "CapacityExceeded"
      return
    }
    const unchecked = s.checking !== undefined || (s.callers.length === 0 &&
      this.now - Math.max(s.lastUsedAt, s.validatedAt) > this.options.validateAfter)
    caller.session = s
    s.callers.push(caller)
    if (s.state !== "live") this.totals.joins++
    if (s.state === "waiting") this.wait(caller)
    if (s.state !== "live") return
    this.touch(key)
    if (unchecked) this.check(s, caller)
    else this.leased(s, caller)
  }

  touch(key: string): number | undefined {
    const s = this.live(key)
    if (s === undefined) return undefined
    this.totals.hits++
    s.requests++
    s.lastUsedAt = this.now
    return s.connection
  }

  private leased(s: Session, caller: Caller): void {
    if (caller.result !== "waits") return
    if (caller.attempt === 2) {
      caller.attempt = 3
      if (s.state === "live") return this.check(s, caller)
    }
    caller.result = `has ${s.connection}`
  }

  /** Interrupted, or without a place for too long. */
  leave(caller: Caller, why: string): void {
    const s = caller.session
    caller.result = why
    if (s === undefined) return
    if (s.state !== "waiting" && s.state !== "launching") return this.release(caller, "neither")
    s.callers = s.callers.filter((other) => other !== caller)
    if (s.callers.length > 0) return
    if (s.state === "launching") return this.close(s)
    this.sessions = this.sessions.filter((other) => other !== s)
    if (caller.kind === "set") this.shut(s.connection, () => {})
    this.serve()
  }

  // Launching

  private launch(s: Session): void {
    s.connection = ++this.opened
    this.after(this.options.lookupTimeout, () => this.launched(s, "LookupTimeout"))
    const what = this.options.lookups(s.connection)
    if (what !== "hangs") this.launched(s, what === "opens" ? undefined : "Broken")
  }

  launched(s: Session, error: string | undefined): void {
    if (s.state !== "launching") return
    const { callers, key } = s
    this.totals[error === undefined ? "launches" : "launchFailures"]++
    if (error === undefined) {
      this.open(s, s.current ? "live" : "retired")
      s.createdAt = this.now
      s.reason = "Invalidated"
      return
    }
    if (s.current) this.failures.set(key, { until: this.now + this.options.failureTimeToLive, error })
    this.close(s)
    for (const caller of callers) caller.result = error
  }

  private open(s: Session, state: "live" | "retired"): void {
    s.state = state
    s.openedAt = s.lastUsedAt = s.validatedAt = this.now
    s.expiresAt = this.now + this.options.maxLifetime
    s.requests += s.callers.length
    for (const caller of s.callers) this.todo.push(() => this.leased(s, caller))
  }

  // Adoption

  set(caller: Caller): void {
    const s = this.fresh(caller.key, caller, ++this.opened)
    const old = this.live(caller.key)
    if (old !== undefined) Object.assign(s, { createdAt: old.createdAt, requests: old.requests, errors: old.errors })
    if (!this.closing && this.enqueue(s, caller, () => this.adopt(s, caller))) return
    caller.result = this.closing ? "PoolClosed" : "CapacityExceeded"
    this.shut(s.connection, () => {})
  }

  private adopt(s: Session, caller: Caller): void {
    const old = this.at(s.key)
    caller.result = "set"
    s.callers = []
    if (old?.state === "live") {
      Object.assign(s, { createdAt: old.createdAt, requests: old.requests, errors: old.errors })
      this.retire(old, "Replaced")
    } else if (old !== undefined) {
      s.id = old.id
      s.callers = old.callers
      for (const caller of s.callers) caller.session = s
      if (old.state === "launching") this.close(old)
      else this.sessions = this.sessions.filter((other) => other !== old)
    }
    s.current = true
    this.failures.delete(s.key)
    this.open(s, "live")
    this.serve()
  }

  // Validation

  private check(s: Session, caller: Caller): void {
    if (s.checking !== undefined) return void s.checking.push(caller)
    const waiting = s.checking = [caller]
    this.checks.add(s)
    const what = this.options.validations(++this.validations)
    if (what !== "hangs") return void this.todo.push(() => this.checked(s, what === "yes"))
    this.after(this.options.lookupTimeout, () => {
      if (s.checking === waiting) this.checked(s, false)
    })
  }

  checked(s: Session, valid: boolean): void {
    const { checking = [] } = s
    s.checking = undefined
    this.checks.delete(s)
    if (s.state === "live" && !valid) this.retire(s, "Invalid")
    else if (s.state === "live") s.validatedAt = this.now
    if (this.leases(s) === 0) this.unused(s)
    for (const caller of checking) {
      this.todo.push(() => valid ? this.leased(s, caller) : this.refused(caller))
    }
  }

  private refused(caller: Caller): void {
    if (caller.result !== "waits") return
    this.run(() => this.release(caller, "neither"))
    if (caller.attempt !== undefined) caller.result = "ValidationFailed"
    else if (caller.kind === "getOption") caller.result = "None"
    else {
      caller.attempt = 2
      this.acquire(caller)
    }
  }

  // Release, errors, retirement, close

  release(caller: Caller, how: "success" | "error" | "neither"): void {
    const s = caller.session
    if (s === undefined || !s.callers.includes(caller)) return
    s.callers = s.callers.filter((other) => other !== caller)
    if (s.state === "live") s.lastUsedAt = this.now
    if (how === "success") s.errors = 0
    if (how === "error") this.error(s)
    if (this.leases(s) === 0) this.unused(s)
  }

  error(s: Session): void {
    this.totals.errors++
    if (++s.errors >= this.options.maxErrorCount && s.state === "live") this.retire(s, "Errors")
  }

  /** The last lease has ended. */
  private unused(s: Session): void {
    if (s.state === "retired") this.close(s)
    else if (s.state === "live" && this.options.idleTimeToLive(s.key) === 0) this.retire(s, "IdleTimeout")
    else this.serve()
  }

  retire(s: Session, reason: SessionPool.Reason): void {
    s.current = false
    s.state = "retired"
    s.reason = reason
    if (this.leases(s) === 0) this.close(s)
  }

  /** True if something was retired. */
  invalidate(key: string): boolean {
    const s = this.at(key)
    this.failures.delete(key)
    if (s?.state === "live") this.retire(s, "Invalidated")
    else if (s?.state === "launching") s.current = false
    return s !== undefined && s.state !== "waiting"
  }

  /** What comes while this goes on is newer than the call and stays. */
  invalidateAll(which: "every" | "idle"): number {
    const all = this.options.keys.map((key) => ({ key, s: this.at(key) }))
    const known = all.filter(({ s }) =>
      s !== undefined && s.state !== "waiting" && (which === "every" || (s.state === "live" && this.leases(s) === 0))
    )
    if (which === "every") this.failures.clear()
    const ids = known.map(({ key, s }) => ({ key, id: s?.id }))
    return ids.filter(({ id, key }) => this.at(key)?.id === id && this.run(() => this.invalidate(key))).length
  }

  sweep(): number {
    const expired = this.options.keys.filter((key) => {
      const s = this.live(key)
      if (s === undefined) return false
      const idle = s.callers.length === 0 ? this.now - s.lastUsedAt : 0
      const reason = this.now >= s.expiresAt ? "MaxLifetime" : "IdleTimeout"
      if (reason === "IdleTimeout" && idle <= this.options.idleTimeToLive(key)) return false
      this.run(() => this.retire(s, reason))
      return true
    })
    return expired.length
  }

  private close(s: Session): void {
    s.current = false
    s.state = "closing"
    s.callers = []
    this.todo.push(() => this.shut(s.connection, () => this.gone(s)))
  }

  private shut(connection: number, free: () => void): void {
    if (this.options.closes(connection) === "ends") {
      this.closed.push(connection)
      return free()
    }
    this.hanging.set(connection, free)
    this.after(this.options.closeTimeout, free)
  }

  closeEnds(connection: number): void {
    const free = this.hanging.get(connection)
    this.hanging.delete(connection)
    this.closed.push(connection)
    free?.()
  }

  private gone(s: Session): void {
    if (!this.sessions.includes(s)) return
    this.sessions = this.sessions.filter((other) => other !== s)
    if (s.reason !== undefined) this.closes[s.reason] = (this.closes[s.reason] ?? 0) + 1
    this.serve()
    this.over()
  }

  // The end

  end(): void {
    this.closing = true
    const waiting = this.in(undefined, "waiting", "launching")
    for (const s of waiting) {
      for (const caller of s.callers) caller.result = "PoolClosed"
      if (s.state === "launching") this.close(s)
      else if (!s.current) this.todo.push(() => this.shut(s.connection, () => {}))
    }
    this.sessions = this.sessions.filter((s) => s.state !== "waiting")
    for (const s of this.in(undefined, "live")) this.retire(s, "PoolClosed")
    const force = () => this.in(undefined, "retired").forEach((s) => this.close(s))
    this.after(this.options.drainTimeout, force)
    this.over()
  }

  /** When nothing is left the pool has ended, and validations that still run are given up. */
  private over(): void {
    if (!this.closing || this.sessions.length > 0 || this.ended) return
    this.ended = true
    for (const s of this.checks) this.checked(s, false)
  }
}
