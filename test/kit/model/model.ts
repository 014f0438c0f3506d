/**
 * What a pool should do, as plain mutable data: a list of everything that exists, a list of timers, and what each step
 * causes, done at once. No fibers, no persistent data, no identity but that of objects; every count is counted anew.
 *
 * What happens in one moment happens here in the order in which it is caused, depth first. Fibers may take turns in
 * another way where several callers go on at once: that is the explorer's to test. The model also leaves out eviction by
 * sample (above 4,096 idle sessions), `keepAlive`, leak detection, events, metrics, functions of the user that throw,
 * finalizers that fail and the fields of errors: `options.test.ts` and `api.test.ts` test each.
 */
import type { SessionPool } from "../../../src/index.ts"

type Off = "maxWaiting" | "acquireTimeout" | "lookupTimeout" | "closeTimeout" | "drainTimeout" | "failureTimeToLive"
type Numbers =
  | Off
  | "capacity"
  | "groupCapacity"
  | "maxErrorCount"
  | "validateAfter"
  | "maxLifetime"
  | "cleanupInterval"

/** Times are milliseconds; what is off is infinity. */
export interface Options extends Readonly<Record<Numbers, number>> {
  readonly idleTimeToLive: (key: string) => number
  readonly groupBy: (key: string) => string
  /** In the order in which the pool visits them. */
  readonly keys: ReadonlyArray<string>
  /** What the lookup and the close of the n-th connection do, and what the n-th validation says. */
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
  /** 2: its first session was found invalid. 3: what came in its place is being checked. */
  attempt?: 2 | 3
}

/** A connection, or what is to become one. */
export interface Session {
  readonly key: string
  id: number
  state: "waiting" | "launching" | "live" | "retired" | "closing"
  /** Its close takes so long that nobody counts on its place. */
  lingers?: boolean
  /** Its key leads to it. */
  current: boolean
  /** 0: none yet. */
  connection: number
  /** Who waits for it, then who leases it. */
  callers: Array<Caller>
  /** A validation runs, and these wait for its answer. */
  checking?: Array<Caller> | undefined
  reason?: SessionPool.Reason
  requests: number
  errors: number
  createdAt: number
  openedAt: number
  expiresAt: number
  lastUsedAt: number
  validatedAt: number
}

export class Model {
  now = 0
  opened = 0
  ended = false
  sessions: Array<Session> = []
  timers: Array<{ readonly at: number; readonly run: () => void }> = []
  readonly closed: Array<number> = []
  /** Closes that hang, with what they free when they end. */
  readonly hanging = new Map<number, () => void>()
  readonly rejected = new Set<number>()
  readonly checks = new Set<Session>()
  readonly failures = new Map<string, { readonly until: number; readonly error: string }>()
  readonly closes: Partial<Record<SessionPool.Reason, number>> = {}
  readonly totals = { hits: 0, misses: 0, joins: 0, launches: 0, launchFailures: 0, errors: 0 }
  readonly options: Options
  private closing = false
  private caused: Array<() => void> = []
  private ids = 0
  private validations = 0

  constructor(options: Options) {
    this.options = options
    const tick = () => {
      this.sweep()
      this.after(options.cleanupInterval, tick)
    }
    tick()
  }

  // Time and steps

  /** One step of the pool; what it causes follows at once, each with what that causes in turn. */
  run<A>(step: () => A): A {
    const outer = this.caused
    this.caused = []
    const result = step()
    for (const next of this.caused.splice(0)) this.run(next)
    this.caused = outer
    return result
  }

  private after(millis: number, run: () => void): void {
    if (millis === 0) this.caused.push(run)
    else this.timers.push({ at: this.now + millis, run })
  }

  advance(to: number): void {
    const due = this.timers.filter(({ at }) => at <= to).toSorted((x, y) => x.at - y.at)[0]
    this.now = due?.at ?? to
    if (due === undefined) return
    this.timers = this.timers.filter((timer) => timer !== due)
    this.run(due.run)
    this.advance(to)
  }

  // Places and the queue for them

  at = (key: string) => this.sessions.find((s) => s.current && s.key === key)
  live = (key: string) => this.sessions.find((s) => s.state === "live" && s.key === key)
  waiting = () => this.in("waiting").reduce((sum, s) => sum + s.callers.length, 0)
  leases = (s: Session) => s.callers.length + (s.checking === undefined ? 0 : 1)

  private in(state: Session["state"], group?: string): Array<Session> {
    return this.sessions.filter((s) =>
      s.state === state && (group ?? this.options.groupBy(s.key)) === this.options.groupBy(s.key)
    )
  }

  private coming(group?: string): Array<Session> {
    return this.in("closing", group).filter(({ lingers }) => lingers !== true)
  }

  private full(group?: string): boolean {
    const used = this.sessions.filter((s) =>
      s.state !== "waiting" && (group === undefined || this.options.groupBy(s.key) === group)
    )
    return used.length >= (group === undefined ? this.options.capacity : this.options.groupCapacity)
  }

  private idlest(group?: string): Session | undefined {
    const idle = this.in("live", group).filter((s) => this.leases(s) === 0)
    return idle.toSorted((x, y) => x.lastUsedAt - y.lastUsedAt || x.id - y.id)[0]
  }

  private evict(group?: string): boolean {
    const idlest = this.idlest(group)
    if (idlest !== undefined) this.retire(idlest, "Evicted")
    return idlest !== undefined
  }

  /** False: there is no place, and none to wait for. */
  private enqueue(s: Session, caller: Caller): boolean {
    const group = this.options.groupBy(s.key)
    const full = this.full() || this.full(group)
    const evictable = this.idlest(this.full(group) ? group : undefined) !== undefined
    if (full && this.waiting() >= this.options.maxWaiting && !evictable) return false
    this.sessions.push(s)
    caller.session = s
    if (!full) this.place(s)
    else {
      this.serve()
      this.wait(caller)
    }
    return true
  }

  private wait(caller: Caller): void {
    this.after(this.options.acquireTimeout, () => {
      if (caller.result === "waits" && caller.session?.state === "waiting") this.leave(caller, "CapacityExceeded")
    })
  }

  /** First come, first served: each waiter gets a free place, counts on one that comes, or evicts. */
  private serve(): void {
    let coming = this.coming().length
    const comingIn = new Map<string, number>()
    for (const s of this.in("waiting")) {
      const group = this.options.groupBy(s.key)
      const ofGroup = comingIn.get(group) ?? this.coming(group).length
      if (this.full(group) && ofGroup > 0) {
        if (!this.full() || coming > 0) coming--
        else if (!this.evict()) return
        comingIn.set(group, ofGroup - 1)
      } else if (this.full(group)) {
        if (this.evict(group)) comingIn.set(group, 0)
      } else if (!this.full()) this.place(s)
      else if (coming > 0) coming--
      else if (!this.evict()) return
    }
  }

  private place(s: Session): void {
    s.state = "launching"
    this.caused.push(() => s.callers[0]?.kind === "set" ? this.adopt(s, s.callers[0]) : this.launch(s))
  }

  // Getting a session

  private fresh(caller: Caller, connection: number): Session {
    const times = { createdAt: this.now, openedAt: 0, expiresAt: 0, lastUsedAt: 0, validatedAt: 0 }
    const counts = { id: ++this.ids, connection, requests: 0, errors: 0 }
    return { key: caller.key, state: "waiting", current: connection === 0, callers: [caller], ...times, ...counts }
  }

  acquire(caller: Caller): void {
    const s = this.at(caller.key)
    const failure = this.failures.get(caller.key)
    if (s === undefined) {
      if (caller.kind === "getOption") caller.result = "None"
      else if (this.closing) caller.result = "PoolClosed"
      else if (failure !== undefined && this.now < failure.until) caller.result = failure.error
      else if (this.enqueue(this.fresh(caller, 0), caller)) this.totals.misses++
      else caller.result = "CapacityExceeded"
    } else if (s.state === "waiting" && this.waiting() >= this.options.maxWaiting) {
      caller.result = "CapacityExceeded"
    } else {
      const idle = s.callers.length > 0 ? 0 : this.now - Math.max(s.lastUsedAt, s.validatedAt)
      caller.session = s
      s.callers.push(caller)
      if (s.state === "waiting") this.wait(caller)
      if (s.state !== "live") this.totals.joins++
      else {
        this.touch(s.key)
        if (s.checking !== undefined || idle > this.options.validateAfter) this.check(s, caller)
        else this.leased(s, caller)
      }
    }
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
    const prove = caller.attempt === 2
    if (prove) caller.attempt = 3
    if (prove && s.state === "live") this.check(s, caller)
    // The check of another that waited.
    else if (prove && s.reason === "Invalid") this.refused(caller)
    else caller.result = `has ${s.connection}`
  }

  /** Interrupted, or without a place for too long. */
  leave(caller: Caller, why: string): void {
    const s = caller.session
    caller.result = why
    if (s?.state !== "waiting" && s?.state !== "launching") return this.release(caller, "neither")
    s.callers = s.callers.filter((other) => other !== caller)
    if (s.callers.length > 0) return
    if (s.state === "launching") return this.close(s)
    this.sessions = this.sessions.filter((other) => other !== s)
    if (caller.kind === "set") this.reject(s)
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
      s.createdAt = this.now
      s.reason = "Invalidated"
      return this.open(s, s.current ? "live" : "retired")
    }
    if (s.current) this.failures.set(s.key, { until: this.now + this.options.failureTimeToLive, error })
    for (const caller of s.callers) caller.result = error
    this.close(s)
  }

  private open(s: Session, state: "live" | "retired"): void {
    s.state = state
    s.openedAt = s.lastUsedAt = s.validatedAt = this.now
    s.expiresAt = this.now + this.options.maxLifetime
    s.requests += s.callers.length
    for (const caller of s.callers) this.caused.push(() => this.leased(s, caller))
  }

  set(caller: Caller): void {
    const s = this.fresh(caller, ++this.opened)
    this.carryOver(s)
    if (!this.closing && this.enqueue(s, caller)) return
    caller.result = this.closing ? "PoolClosed" : "CapacityExceeded"
    this.reject(s, !this.closing)
  }

  private carryOver(s: Session): void {
    const old = this.live(s.key)
    if (old !== undefined) Object.assign(s, { createdAt: old.createdAt, requests: old.requests, errors: old.errors })
  }

  private adopt(s: Session, caller: Caller): void {
    const old = this.at(s.key)
    caller.result = "set"
    s.callers = []
    this.carryOver(s)
    if (old?.state === "live") this.retire(old, "Replaced")
    else if (old !== undefined) {
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
    const checking = s.checking = [caller]
    this.checks.add(s)
    const says = this.options.validations(++this.validations)
    if (says !== "hangs") this.caused.push(() => this.checked(s, says === "yes"))
    else this.after(this.options.lookupTimeout, () => s.checking === checking && this.checked(s, false))
  }

  checked(s: Session, valid: boolean): void {
    for (const caller of s.checking ?? []) {
      this.caused.push(() => valid ? this.leased(s, caller) : this.refused(caller))
    }
    s.checking = undefined
    this.checks.delete(s)
    if (valid) s.validatedAt = this.now
    else if (s.state === "live") this.retire(s, "Invalid")
    this.unused(s)
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
    this.unused(s)
  }

  error(s: Session): void {
    this.totals.errors++
    if (++s.errors >= this.options.maxErrorCount && s.state === "live") this.retire(s, "Errors")
  }

  /** If the last lease has ended. */
  private unused(s: Session): void {
    if (this.leases(s) > 0) return
    if (s.state === "retired") this.close(s)
    else if (s.state === "live" && this.options.idleTimeToLive(s.key) === 0) this.retire(s, "IdleTimeout")
    else this.serve()
  }

  retire(s: Session, reason: SessionPool.Reason): void {
    Object.assign(s, { state: "retired", current: false, reason })
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
    const known = this.options.keys.map((key) => this.at(key)).filter((s) => s !== undefined && s.state !== "waiting")
    const matching = known.filter((s) => s && (which === "every" || (s.state === "live" && this.leases(s) === 0)))
    const ids = matching.map((s) => s?.id)
    if (which === "every") this.failures.clear()
    return matching.filter((s, i) => s && this.at(s.key)?.id === ids[i] && this.run(() => this.invalidate(s.key)))
      .length
  }

  sweep(): number {
    return this.options.keys.filter((key) => {
      const s = this.live(key)
      if (s === undefined) return false
      const old = this.now >= s.expiresAt
      const idle = s.callers.length === 0 && this.now - s.lastUsedAt > this.options.idleTimeToLive(key)
      if (old || idle) this.run(() => this.retire(s, old ? "MaxLifetime" : "IdleTimeout"))
      return old || idle
    }).length
  }

  private close(s: Session): void {
    Object.assign(s, { state: "closing", current: false, callers: [] })
    this.caused.push(() => {
      this.shut(s.connection, () => this.gone(s))
      const { capacity, closeTimeout, groupCapacity } = this.options
      const counted = 5000
      if (Math.min(capacity, groupCapacity) === Infinity || counted >= closeTimeout) return
      this.after(counted, () => {
        if (!this.sessions.includes(s)) return
        s.lingers = true
        this.serve()
      })
    })
  }

  /** What could not be adopted is closed; the end waits for what came before it. */
  private reject({ connection }: Session, waits = true): void {
    if (waits) this.rejected.add(connection)
    this.caused.push(() =>
      this.shut(connection, () => {
        this.rejected.delete(connection)
        this.over()
      })
    )
  }

  private shut(connection: number, free: () => void): void {
    this.hanging.set(connection, free)
    if (this.options.closes(connection) === "ends") this.closeEnds(connection)
    else this.after(this.options.closeTimeout, free)
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
    const waiting = this.in("waiting")
    this.sessions = this.sessions.filter((s) => s.state !== "waiting")
    for (const s of [...waiting, ...this.in("launching")]) {
      for (const caller of s.callers) caller.result = "PoolClosed"
      if (s.state === "launching") this.close(s)
      else if (!s.current) this.reject(s)
    }
    for (const s of this.in("live")) this.retire(s, "PoolClosed")
    this.after(this.options.drainTimeout, () => this.in("retired").forEach((s) => this.close(s)))
    this.over()
  }

  /** Once nothing is left the pool has ended, and validations that still run are given up. */
  private over(): void {
    if (!this.closing || this.sessions.length > 0 || this.rejected.size > 0 || this.ended) return
    this.ended = true
    for (const s of this.checks) this.checked(s, false)
  }
}
