/**
 * Watches a pool while it runs, and says which of the nine invariants is broken. It sees every state that the `Ref` ever
 * holds, and what the lookups and the callers see from outside, and compares the two.
 */
import { HashMap } from "effect"
import type { SessionPool } from "../../../src/index.ts"
import type { Limits } from "../../../src/internal/draft.ts"
import * as Queue from "../../../src/internal/queue.ts"
import type * as State from "../../../src/internal/state.ts"
import * as Handover from "../pool/handover.ts"
import type { Left } from "./schedule.ts"

/** A connection as a lookup, or a caller of `set`, opens it. */
export interface Connection {
  readonly key: string
  /** Given to `set`: open before it has a place, and the pool's to close once it is accepted. */
  readonly brought: boolean
  accepted: boolean
  /** The id of its session; 0 before there is one. */
  session: number
  closes: number
  /** Callers that use it at this moment. */
  users: number
  /** When its finalizer began. */
  closingSince: number
  /** When its lookup had opened it; of one that `set` brings, nothing is known. */
  openedAt: number
  /** The last use that a caller knows of; the pool may know of a later one. */
  usedAt: number
  /** It has died by itself. */
  died: boolean
}

type PoolState = State.State<string, Connection, "refused" | SessionPool.AcquireError>

export interface Bounds extends Limits {
  readonly cleanupInterval: number
  readonly closeTimeout: number
  readonly maxLifetime: number
}

/** What a caller knew when it called. */
export interface Call {
  readonly key: string
  readonly step: number
  readonly at: number
}

export class Watch {
  /** The first broken promise. */
  broken: string | undefined
  /** The pool's scope closes, or has closed. */
  ending = false
  readonly connections: Array<Connection> = []
  /** Of the connections that `set` is given. Each of those calls may hold a place that the state does not show. */
  readonly handover = Handover.make()
  private readonly bounds: Bounds
  /** Time passes only when nothing else can run, so nothing is late. */
  private readonly punctual: boolean
  readonly now: () => number
  private state: PoolState | undefined
  private steps = 0
  /** Ids that have left their slot, with the step after which they were gone. */
  private readonly gone = new Map<number, number>()
  private readonly requestCounts = new Map<number, number>()
  private readonly got = new Map<number, number>()
  private readonly lookups = new Map<string, number>()

  constructor(bounds: Bounds, punctual: boolean, now: () => number) {
    this.bounds = bounds
    this.punctual = punctual
    this.now = now
  }

  /** A late close may exceed `closeTimeout` before its finalizer begins; from then on only the pool knows of it. */
  private get everyCloseIsSeen(): boolean {
    return this.punctual || this.bounds.closeTimeout === Infinity
  }

  fail(promise: string): void {
    this.broken ??= promise
  }

  /** Sees every state from here on: the pool's `Ref` keeps it in a property, which becomes a watched one. */
  attach({ pool }: SessionPool.SessionPool<string, Connection, "refused">): void {
    let current: PoolState = pool.state.ref.current
    this.state = current
    Object.defineProperty(pool.state.ref, "current", {
      get: () => current,
      set: (next: PoolState) => {
        const before = current
        current = next
        this.state = next
        this.steps++
        this.changed(before, next)
      }
    })
  }

  // ---------------------------------------------------------------------------
  // What the lookups see
  // ---------------------------------------------------------------------------

  lookupBegins(key: string): void {
    const running = (this.lookups.get(key) ?? 0) + 1
    this.lookups.set(key, running)
    const detached = this.state === undefined ? [] : [...HashMap.values(this.state.inventory.detached)]
    if (this.everyCloseIsSeen && running > 1 + detached.filter(({ launch }) => launch.key === key).length) {
      this.fail(`5 single flight: ${running} lookups run for ${key}`)
    }
  }

  lookupEnds(key: string): void {
    this.lookups.set(key, (this.lookups.get(key) ?? 0) - 1)
  }

  opens(key: string, brought = false): Connection {
    const connection = {
      key,
      brought,
      accepted: !brought,
      session: 0,
      closes: 0,
      users: 0,
      closingSince: Infinity,
      openedAt: Infinity,
      usedAt: 0,
      died: false
    }
    this.connections.push(connection)
    const { capacity, closeTimeout } = this.bounds
    let open = 0
    for (const { brought, closes, closingSince, session } of this.connections) {
      const leftToItself = this.now() - closingSince >= closeTimeout
      if (closes === 0 && !leftToItself && !(brought && session === 0)) open++
    }
    if (open > capacity && this.everyCloseIsSeen) {
      this.fail(`6 bounded: ${open} connections are open, capacity is ${capacity}`)
    }
    return connection
  }

  closeBegins(connection: Connection): void {
    connection.closingSince = Math.min(connection.closingSince, this.now())
    if (connection.users > 0 && !this.ending) {
      this.fail(`2 no use after close: session ${connection.session} closes with ${connection.users} users`)
    }
  }

  closes(connection: Connection): void {
    if (++connection.closes > 1) this.fail(`4 closed exactly once: session ${connection.session} is closed again`)
  }

  // ---------------------------------------------------------------------------
  // What the callers see
  // ---------------------------------------------------------------------------

  call(key: string): Call {
    return { key, step: this.steps, at: this.now() }
  }

  /** A caller has got a connection from a call. */
  gets(connection: Connection, { at, key, step }: Call): void {
    const { session } = connection
    connection.usedAt = Math.max(connection.usedAt, at)
    const got = (this.got.get(session) ?? 0) + 1
    this.got.set(session, got)
    const counted = this.requestCounts.get(session) ?? 0
    if (got > counted) this.fail(`1 atomic touch: session ${session} counts ${counted} requests, ${got} have got it`)
    if (connection.key !== key) this.fail(`5 single flight: ${key} was answered with a session of ${connection.key}`)
    if ((this.gone.get(session) ?? Infinity) <= step) {
      this.fail(`3 no resurrection: session ${session} was got by a call made after its retirement`)
    }
    const slot = this.slot(key)
    if (slot?._tag === "Live" && slot.session.id === session && slot.lastUsedAt < at) {
      this.fail(`1 atomic touch: session ${session} was got at ${at}, and last used at ${slot.lastUsedAt}`)
    }
  }

  /** A caller that leases the connection does something with it. */
  uses(connection: Connection): void {
    if (connection.closingSince < Infinity && !this.ending) {
      this.fail(`2 no use after close: session ${connection.session} is used after its close began`)
    }
  }

  usedUntilNow(connection: Connection): void {
    connection.usedAt = this.now()
  }

  private slot(key: string) {
    if (this.state === undefined) return undefined
    const found = HashMap.get(this.state.slots, key)
    return found._tag === "Some" ? found.value : undefined
  }

  // ---------------------------------------------------------------------------
  // What the states show
  // ---------------------------------------------------------------------------

  private changed(before: PoolState, state: PoolState): void {
    this.departures(before, state)
    this.counters(state)
    this.queue(before, state)
    this.leases(state)
  }

  /** Every session that leaves its slot is retired for a reason that holds, and never comes back. */
  private departures(before: PoolState, state: PoolState): void {
    if (before.slots === state.slots) return
    for (const [key, slot] of HashMap.entries(state.slots)) {
      const id = idOf(slot)
      if (id !== undefined && this.gone.has(id)) this.fail(`3 no resurrection: session ${id} is back under ${key}`)
      if (slot._tag !== "Live") continue
      slot.session.value.session = slot.session.id
      this.requestCounts.set(slot.session.id, slot.requestCount)
      const was = HashMap.get(before.slots, key)
      if (was._tag === "Some" && was.value._tag === "Live" && was.value.session === slot.session) {
        this.used(was.value, slot)
      }
    }
    for (const [key, slot] of HashMap.entries(before.slots)) {
      const id = idOf(slot)
      const successor = HashMap.get(state.slots, key)
      if (id === undefined || (successor._tag === "Some" && idOf(successor.value) === id)) continue
      this.gone.set(id, this.steps)
      if (slot._tag !== "Live") continue
      const retired = HashMap.get(state.inventory.retired, id)
      if (retired._tag === "None") this.fail(`4 closed exactly once: session ${id} has left its slot unretired`)
      else this.reason(slot, retired.value)
    }
  }

  /** What a touch counts only grows. */
  private used(before: State.Live<string, Connection>, { lastUsedAt, requestCount, session }: typeof before): void {
    if (lastUsedAt < before.lastUsedAt) {
      this.fail(
        `1 atomic touch: the last use of session ${session.id} went back from ${before.lastUsedAt} to ${lastUsedAt}`
      )
    }
    if (requestCount < before.requestCount) this.fail(`1 atomic touch: session ${session.id} lost a request`)
  }

  private reason(live: State.Live<string, Connection>, { leases, reason }: State.Retired<string, Connection>): void {
    const { id, idleTimeToLive } = live.session
    const users = live.validation === undefined ? live.leases : live.leases - 1
    const idle = this.now() - Math.max(live.lastUsedAt, live.session.value.usedAt)
    if (leases > live.leases || leases < live.leases - 1) {
      this.fail(`2 no use after close: session ${id} had ${live.leases} leases, retired it has ${leases}`)
    }
    if (reason === "IdleTimeout" && idleTimeToLive > 0 && (users > 0 || idle <= idleTimeToLive)) {
      this.fail(`7 time: session ${id} timed out with ${users} users, ${idle} ms after its last use`)
    }
    if (reason === "MaxLifetime" && this.now() < live.session.expiresAt) {
      this.fail(`7 time: session ${id} was retired ${live.session.expiresAt - this.now()} ms too early`)
    }
    if (reason === "Evicted" && leases > 0) {
      this.fail(`2 no use after close: session ${id} was evicted with ${leases} leases`)
    }
    if (reason === "Errors" && live.errorCount + 1 < this.bounds.maxErrorCount) {
      this.fail(`3 no resurrection: session ${id} was retired at error ${live.errorCount + 1}`)
    }
    if (reason === "PoolClosed" && !this.ending) {
      this.fail(`8 the end: session ${id} was retired by an end that is none`)
    }
  }

  /** The counters say what the data shows, and nothing is beyond its limit. */
  private counters({ active, inventory, slots }: PoolState): void {
    const count = { active: 0, launching: 0, live: 0, waiting: 0, closing: 0 }
    for (const slot of HashMap.values(slots)) {
      if (slot._tag === "Waiting") count.waiting += slot.callers
      else if (slot._tag === "Launching") count.launching++
      else if (slot._tag === "Live") {
        count.live++
        if (slot.leases > 0) count.active++
      }
      if ("callers" in slot && slot.callers < 1) this.fail(`5 single flight: a launch that nobody waits for goes on`)
    }
    for (const [, { granted }] of Queue.entries(inventory.queue)) if (granted !== undefined) count.waiting++
    for (const { leases, lingers } of HashMap.values(inventory.retired)) if (leases === 0 && !lingers) count.closing++
    for (const { callers, lingers } of HashMap.values(inventory.detached)) {
      if (callers === 0 && !lingers) count.closing++
    }
    const { closing, used } = inventory.places
    const { launching, live, waiting } = inventory
    for (
      const [name, shown, real] of [
        ["active", active, count.active],
        ["launching", launching, count.launching],
        ["live", live, count.live],
        ["waiting", waiting, count.waiting],
        ["closing", closing, count.closing]
      ] as const
    ) if (shown !== real) this.fail(`9 nothing left: ${name} says ${shown}, there are ${real}`)
    const held = count.launching + count.live + HashMap.size(inventory.retired) + HashMap.size(inventory.detached)
    // A closed pool gives no places any more: one that was granted to a `set` before is not counted back.
    if (inventory.phase._tag === "Open" && (used < held || used > held + this.handover.underWay())) {
      this.fail(`6 bounded: ${used} places are taken by ${held} sessions and launches`)
    }
    if (used > this.bounds.capacity) {
      this.fail(`6 bounded: ${used} places are taken, capacity is ${this.bounds.capacity}`)
    }
    for (const places of HashMap.values(inventory.groups)) {
      if (places.used > this.bounds.groupCapacity) this.fail(`6 bounded: ${places.used} places of a group are taken`)
    }
  }

  /** Nobody waits who need not, and nobody is served before one who has waited longer. */
  private queue(before: PoolState, { inventory, slots }: PoolState): void {
    const { capacity, groupCapacity } = this.bounds
    const grouped = groupCapacity < Infinity
    const { places, queue } = inventory
    for (const [, waiter] of Queue.entries(queue)) {
      const group = grouped ? HashMap.get(inventory.groups, waiter.group) : undefined
      const ofGroup = group?._tag === "Some" ? group.value : undefined
      const groupFull = ofGroup !== undefined && ofGroup.used >= groupCapacity
      if (places.used < capacity && !groupFull) this.fail("6 bounded: a place is free, and one waits who could use it")
      const idle = [...HashMap.values(slots)].some((slot) =>
        slot._tag === "Live" && slot.leases === 0 && (!groupFull || slot.session.group === waiter.group)
      )
      const coming = groupFull ? ofGroup.closing > 0 : places.closing >= (grouped ? 1 : Queue.size(queue))
      if (idle && !coming) this.fail("6 bounded: an idle session could make room, and the queue waits")
    }
    if (grouped || before.inventory.queue === queue) return
    let longest = Infinity
    for (const [ticket] of Queue.entries(queue)) longest = Math.min(longest, ticket)
    for (const [ticket, waiter] of Queue.entries(before.inventory.queue)) {
      const slot = HashMap.get(slots, waiter.key)
      const served = waiter.granted === undefined && !HashMap.has(queue.entries, ticket) && slot._tag === "Some" &&
        slot.value._tag === "Launching"
      if (served && ticket > longest) this.fail(`6 bounded: ticket ${ticket} was served before ticket ${longest}`)
    }
  }

  /** Whoever uses a connection is counted. */
  private leases({ inventory, slots }: PoolState): void {
    const check = (connection: Connection, id: number, leases: number) => {
      if (connection.users > leases && !this.ending) {
        this.fail(`2 no use after close: session ${id} has ${connection.users} users and counts ${leases} leases`)
      }
    }
    for (const slot of HashMap.values(slots)) {
      if (slot._tag === "Live") check(slot.session.value, slot.session.id, slot.leases)
    }
    for (const { leases, session } of HashMap.values(inventory.retired)) {
      session.value.session = session.id
      if (!this.requestCounts.has(session.id)) this.requestCounts.set(session.id, leases)
      check(session.value, session.id, leases)
    }
  }

  // ---------------------------------------------------------------------------
  // Moments of rest
  // ---------------------------------------------------------------------------

  /** Nothing can run before time goes on, so every cleanup that is due has run. */
  rests(): void {
    if (this.state === undefined || this.ending || !this.punctual) return
    for (const slot of HashMap.values(this.state.slots)) {
      if (slot._tag !== "Live" || slot.leases > 0) continue
      const { id, idleTimeToLive, value } = slot.session
      const { cleanupInterval, maxLifetime } = this.bounds
      const [idle, age] = [this.now() - slot.lastUsedAt, this.now() - value.openedAt]
      const longest = idleTimeToLive + cleanupInterval
      if (idle > longest) this.fail(`7 time: session ${id} is idle for ${idle} ms, longest ${longest}`)
      if (age > maxLifetime + cleanupInterval) this.fail(`7 time: session ${id} is ${age} ms old`)
      if (value.died) this.fail(`7 time: session ${id} has died, and is still in the pool`)
    }
  }

  /** The pool's scope has closed: it waited for every close, but for those that took longer than `closeTimeout`. */
  scopeClosed(): void {
    for (const { closes, key, session } of this.connections) {
      if (session !== 0 && closes === 0 && this.bounds.closeTimeout === Infinity) {
        this.fail(`8 the end: session ${session} of ${key} is open, and the scope has closed`)
      }
    }
  }

  /** The pool has closed and nothing is left to run. */
  ended(atEnd: Left, afterwards: Left): void {
    // Finalizers that are left to themselves go on for a while.
    const { fibers, tasks, timers } = this.bounds.closeTimeout === Infinity ? atEnd : afterwards
    if (fibers + tasks + timers > 0) {
      this.fail(`8 the end: ${fibers} fibers, ${timers} timers and ${tasks} tasks are left`)
    }
    for (const { accepted, closes, key, session } of this.connections) {
      if (accepted && closes !== 1) {
        this.fail(`4 closed exactly once: session ${session} of ${key} was closed ${closes} times`)
      }
    }
    if (this.state === undefined) return
    const { active, inventory: { detached, launching, live, places, queue, retired, totals, waiting }, slots } =
      this.state
    const counted = Object.values(totals.closes).reduce((sum, closes) => sum + closes, 0)
    const sessions = this.connections.filter(({ session }) => session !== 0).length
    if (counted !== sessions) {
      this.fail(`4 closed exactly once: ${counted} closes are counted, there were ${sessions} sessions`)
    }
    const rest = [HashMap.size(slots), HashMap.size(detached), HashMap.size(retired), Queue.size(queue)].concat(
      [active, launching, live, waiting, places.closing]
    )
    if (rest.some((count) => count !== 0)) this.fail(`8 the end: the closed pool still holds ${rest.join(", ")}`)
  }
}

const idOf = <K, A, E>(slot: State.Slot<K, A, E>): number | undefined =>
  slot._tag === "Live" ? slot.session.id : slot._tag === "Failed" ? undefined : slot.launch.id
