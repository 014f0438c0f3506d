/**
 * Watches a running pool, and names the first broken promise. It compares every state of the pool's `Ref` with what the lookups and the
 * callers see. The promises have the numbers of `invariants.test.ts`.
 */
import { HashMap, Option, Struct } from "effect"
import { isDeepStrictEqual } from "node:util"
import type { SessionPool } from "../../../src/index.ts"
import * as Ordered from "../../../src/internal/ordered.ts"
import * as State from "../../../src/internal/state.ts"
import * as Handover from "../pool/handover.ts"
import type { Lookup, Options } from "./plan.ts"

/** A connection that a lookup or a caller of `set` has opened. */
export class Connection {
  readonly key: string
  /** The plan of its lookup. Undefined for a connection of `set`, which is open before it has a place. */
  readonly lookup: Lookup | undefined
  /** The pool owns it and must close it. False until `set` takes it. */
  accepted: boolean
  /** The id of its session; 0 before it has one. */
  session = 0
  closes = 0
  /** Callers that use it at this moment. */
  users = 0
  closingSince = Infinity
  /** The last use that a caller has seen. The pool may know of a later one. */
  usedAt = 0
  died = false

  constructor(key: string, lookup: Lookup | undefined) {
    this.key = key
    this.lookup = lookup
    this.accepted = lookup !== undefined
  }
}

type PoolState = State.State<string, Connection, "refused">
type Live = State.Live<string, Connection>

/** Key, step and time of a call. */
export type Call = ReturnType<Watch["call"]>

export class Watch {
  /** The first broken promise. */
  broken: string | undefined
  /** The pool's scope closes, or has closed. */
  ending = false
  readonly handover = Handover.make()
  readonly now: () => number
  private readonly options: Options
  private readonly punctual: boolean
  private readonly isGrouped: boolean
  /** False in a run that is not punctual: a close may exceed `closeTimeout` before its finalizer begins, unseen by this class. */
  private readonly everyCloseIsSeen: boolean
  private readonly connections: Array<Connection> = []
  private state: PoolState = State.make()
  private steps = 0
  /** The ids of sessions that have left their slot, each with the step in which it left. */
  private readonly gone = new Map<number, number>()
  private readonly requestCounts = new Map<number, number>()
  private readonly got = new Map<number, number>()

  constructor(options: Options, punctual: boolean, now: () => number) {
    this.options = options
    this.punctual = punctual
    this.isGrouped = options.groupCapacity < Infinity
    this.everyCloseIsSeen = punctual || options.closeTimeout === Infinity
    this.now = now
  }

  fail(promise: number, fact: string, ...ids: ReadonlyArray<unknown>): void {
    this.broken ??= `promise ${promise}: ${[fact, ...ids].join(" ")}`
  }

  /** Observes every state from here on, by a setter on the property in which the pool's `Ref` keeps it. */
  attach({ pool }: SessionPool.SessionPool<string, Connection, "refused">): void {
    this.state = pool.state.ref.current
    Object.defineProperty(pool.state.ref, "current", {
      get: () => this.state,
      set: (next: PoolState) => {
        const before = this.state
        this.state = next
        this.steps++
        this.slots(before)
        this.counts()
        this.queue(before)
      }
    })
  }

  // ---------------------------------------------------------------------------
  // Reports of lookups
  // ---------------------------------------------------------------------------

  opens(key: string, lookup: Lookup | undefined): Connection {
    const connection = new Connection(key, lookup)
    this.connections.push(connection)
    const { capacity, closeTimeout } = this.options
    const landing = this.connections.filter((other) =>
      other.key === key && other.lookup !== undefined && other.session === 0 && other.closingSince === Infinity
    )
    const leaving = this.leaving().filter(({ opening }) => !("value" in opening) && opening.key === key)
    if (landing.length > 1 + leaving.length && this.everyCloseIsSeen) this.fail(5, "two lookups run for", key)
    const open = this.connections.filter(({ closes, closingSince, lookup, session }) =>
      closes === 0 && this.now() - closingSince < closeTimeout && (lookup !== undefined || session !== 0)
    )
    if (open.length > capacity && this.everyCloseIsSeen) this.fail(6, "more connections are open than", capacity)
    return connection
  }

  closeBegins(connection: Connection): void {
    connection.closingSince = Math.min(connection.closingSince, this.now())
    if (connection.users > 0 && !this.ending) this.fail(2, "a session closes with users:", connection.session)
  }

  closes(connection: Connection): void {
    if (++connection.closes > 1) this.fail(4, "a session is closed again:", connection.session)
  }

  // ---------------------------------------------------------------------------
  // Reports of callers
  // ---------------------------------------------------------------------------

  call(key: string) {
    return { key, step: this.steps, at: this.now() }
  }

  /** A caller has got a connection from a call. */
  gets(connection: Connection, { at, key, step }: Call): void {
    const { session } = connection
    const got = (this.got.get(session) ?? 0) + 1
    this.got.set(session, got)
    connection.usedAt = Math.max(connection.usedAt, at)
    const live = this.live().find(({ session: { id } }) => id === session)
    if (connection.key !== key) this.fail(5, "a caller got a session of another key:", session)
    if (got > (this.requestCounts.get(session) ?? 0)) this.fail(1, "a caller got a session without a touch:", session)
    if ((live?.lastUsedAt ?? at) < at) this.fail(1, "a caller got a session whose last use is earlier:", session)
    if ((this.gone.get(session) ?? Infinity) <= step) this.fail(3, "a call got a session retired before it:", session)
  }

  /** A caller has invalidated the session that it leases. */
  reported({ session }: Connection): void {
    if (!this.gone.has(session)) this.fail(3, "a session is still in the pool after its lease retired it:", session)
  }

  // ---------------------------------------------------------------------------
  // Checks of each state
  // ---------------------------------------------------------------------------

  private live(): ReadonlyArray<Live> {
    return [...HashMap.values(this.state.slots)].filter((slot) => slot._tag === "Live")
  }

  private leaving(): ReadonlyArray<State.Leaving<string, Connection, "refused">> {
    return [...HashMap.values(this.state.leaving)]
  }

  /** A session leaves its slot only by a retirement whose reason holds, and never comes back. */
  private slots(before: PoolState): void {
    const { state } = this
    if (before.slots === state.slots) return
    for (const [key, slot] of HashMap.entries(state.slots)) {
      const id = idOf(slot)
      if (this.gone.has(id)) this.fail(3, "a session is back in its slot:", id)
      if (slot._tag !== "Live") continue
      this.requestCounts.set(id, slot.requestCount)
      const was = slotOf(before, key)
      if (was?._tag === "Live" && was.session === slot.session) this.used(was, slot)
    }
    for (const [key, slot] of HashMap.entries(before.slots)) {
      const id = idOf(slot)
      if (slot._tag === "Failed" || idOf(slotOf(state, key)) === id) continue
      this.gone.set(id, this.steps)
      if (slot._tag !== "Live") continue
      const leaving = Option.getOrUndefined(HashMap.get(state.leaving, id))
      if (leaving?.reason === undefined) this.fail(4, "a session left its slot unretired:", id)
      else this.retired(slot, leaving.reason, leaving.holders)
    }
  }

  private used(before: Live, { lastUsedAt, requestCount, session: { expiresAt, id, idleTimeToLive } }: Live): void {
    if (lastUsedAt < before.lastUsedAt || requestCount < before.requestCount) this.fail(1, "a session lost a use:", id)
    const idle = before.leases > 0 ? 0 : this.now() - before.lastUsedAt
    const isOverdue = this.now() >= expiresAt || idle > idleTimeToLive
    if (requestCount > before.requestCount && isOverdue) this.fail(7, "a caller got an overdue session:", id)
  }

  private retired(live: Live, reason: SessionPool.Reason, holders: number): void {
    const { expiresAt, id, idleTimeToLive, value } = live.session
    const idle = this.now() - Math.max(live.lastUsedAt, value.usedAt)
    const isOldest = this.live().every(({ lastUsedAt, leases }) => leases > 0 || lastUsedAt >= live.lastUsedAt)
    const holds: Partial<Record<SessionPool.Reason, boolean>> = {
      IdleTimeout: idleTimeToLive === 0 || (live.leases === 0 && idle > idleTimeToLive),
      MaxLifetime: this.now() >= expiresAt,
      Evicted: holders === 0 && (this.isGrouped || isOldest),
      Errors: live.errorCount + 1 >= this.options.maxErrorCount,
      PoolClosed: this.ending,
      Disconnected: value.died
    }
    if (holds[reason] === false) this.fail(7, `a session was retired as ${reason} too early:`, id)
    // The step that ends the last lease of a session may also retire it.
    if (holders !== live.leases && holders !== live.leases - 1) this.fail(2, "a retired session lost leases:", id)
  }

  /** The counters equal the data, every user of a connection has a lease, and no limit is exceeded. */
  private counts(): void {
    const { state } = this
    const { groups, places } = state
    const { capacity, groupCapacity } = this.options
    const slots = [...HashMap.values(state.slots)]
    const live = this.live()
    const waiting = slots.filter((slot) => slot._tag === "Waiting")
    const launching = slots.filter((slot) => slot._tag === "Launching")
    const sets = [...Ordered.values(state.waiting)].filter(({ launch }) => launch.adopts !== undefined)
    const leaving = this.leaving()
    const sessions = live.map(({ leases, session }) => ({ leases, session }))
    for (const { holders, opening } of leaving) {
      if ("value" in opening) sessions.push({ leases: holders, session: opening })
    }
    for (const { leases, session: { id, value } } of sessions) {
      value.session = id
      if (!this.requestCounts.has(id)) this.requestCounts.set(id, leases)
      if (value.users > leases && !this.ending) this.fail(2, "a session has more users than leases:", id)
    }
    const held = live.length + launching.length + leaving.filter(({ hasPlace }) => hasPlace).length
    const idle = live.filter(({ leases }) => leases === 0)
    const counted = {
      active: live.length - idle.length,
      leases: sum(sessions.map(({ leases }) => leases)),
      live: live.length,
      launching: launching.length,
      waiters: sum(waiting.map(({ callers }) => callers)) + sets.length,
      used: capacity < Infinity ? held : 0,
      idle: capacity < Infinity ? idle.length : 0
    }
    const shown = {
      ...Struct.pick(state, ["active", "leases", "live", "launching", "waiters"]),
      used: places.used,
      idle: places.idle.size
    }
    if (!isDeepStrictEqual(shown, counted)) this.fail(9, "counts", JSON.stringify(shown), JSON.stringify(counted))
    if ([...waiting, ...launching].some(({ callers }) => callers < 1)) {
      this.fail(5, "a launch without callers still runs")
    }
    const crowded = [...HashMap.values(groups)].some(({ used }) => used > groupCapacity)
    if (places.used > capacity || crowded) this.fail(6, "too many places taken")
  }

  /** Every caller that can be served has been, in order of arrival. Pools with groups are left to the model. */
  private queue(before: PoolState): void {
    if (this.isGrouped) return
    const { capacity } = this.options
    const { places, waiting } = this.state
    const tickets = new Set([...Ordered.values(waiting)].map(({ launch }) => launch.id))
    const isComing = places.closing >= waiting.size
    if (waiting.size > 0 && places.used < capacity) this.fail(6, "a place is free, and a caller waits for it")
    if (places.idle.size > 0 && !isComing) this.fail(6, "an idle session could make room, and a caller waits")
    if (before.waiting === waiting) return
    const longest = Math.min(...tickets)
    for (const { launch: { id, key } } of Ordered.values(before.waiting)) {
      const slot = slotOf(this.state, key)
      const served = !tickets.has(id) && slot?._tag === "Launching" && slot.launch.id === id
      if (served && id > longest) this.fail(6, "a caller was served before one that has waited longer:", id)
    }
  }

  // ---------------------------------------------------------------------------
  // Moments of rest
  // ---------------------------------------------------------------------------

  /** Called when nothing can run before time passes, so every cleanup that is due has run. */
  rests(): void {
    if (this.ending || !this.punctual) return
    const { acquireTimeout, cleanupInterval } = this.options
    for (const { lastUsedAt, leases, session: { expiresAt, id, idleTimeToLive, value } } of this.live()) {
      const idle = leases > 0 ? 0 : this.now() - lastUsedAt
      const isLate = idle > idleTimeToLive + cleanupInterval || this.now() > expiresAt + cleanupInterval
      if (isLate) this.fail(7, "an expired session is still in the pool:", id)
      if (value.died) this.fail(7, "a session has died, and is still in the pool:", id)
    }
    const { places: { idle }, waiting } = this.state
    const patience = Math.min(5000, acquireTimeout / 2)
    const isImpatient = [...Ordered.values(waiting)].some(({ since }) => this.now() >= since + patience)
    const counts = !this.isGrouped && idle.size > 0 && isImpatient
    if (counts) this.fail(6, "a waiter counts on a slow close, and a session is idle")
  }

  /** Called when the pool's scope has closed. It waited for every close, except those that exceeded `closeTimeout`. */
  scopeClosed(): void {
    const open = this.connections.find(({ closes, session }) => session !== 0 && closes === 0)
    if (open !== undefined && this.options.closeTimeout === Infinity) this.fail(8, "a session is open:", open.session)
  }

  /** Called when the pool has closed and nothing is left to run. */
  ended(atEnd: ReadonlyArray<number>, afterwards: ReadonlyArray<number>): void {
    // Finalizers that exceeded `closeTimeout` still run for a while.
    const left = this.options.closeTimeout === Infinity ? atEnd : afterwards
    if (sum(left) > 0) this.fail(8, "fibers, timers and tasks are left:", ...left)
    const unclosed = this.connections.find(({ accepted, closes }) => accepted && closes !== 1)
    if (unclosed !== undefined) this.fail(4, "a session was never closed:", unclosed.session)
    const { active, failures, leases, leaving, slots, totals, waiting } = this.state
    const sessions = this.connections.filter(({ session }) => session !== 0)
    if (sum(Object.values(totals.closes)) !== sessions.length) this.fail(4, "the closes are miscounted")
    const held = [HashMap.size(slots), HashMap.size(leaving), waiting.size, failures.size, active, leases]
    if (sum(held) > 0) this.fail(8, "the closed pool still holds", ...held)
  }
}

const sum = (numbers: ReadonlyArray<number>): number => numbers.reduce((total, n) => total + n, 0)

const slotOf = (state: PoolState, key: string) => Option.getOrUndefined(HashMap.get(state.slots, key))

/** 0 for a slot without launch and session. */
const idOf = (slot: State.Slot<string, Connection, "refused"> | undefined): number => {
  if (slot === undefined || slot._tag === "Failed") return 0
  return slot._tag === "Live" ? slot.session.id : slot.launch.id
}
