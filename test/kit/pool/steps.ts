/**
 * A state carried through transitions with plain values. After each step it is counted anew: what the state says of
 * itself is what it holds, within its limits, and nobody waits who need not.
 */
import { assert } from "@effect/vitest"
import { Cause, Deferred, Hash, HashMap, Option, Scope } from "effect"
import * as Queue from "../../../src/internal/queue.ts"
import type { Action, Launch, Places, Retired, Session, Slot, State, Validation } from "../../../src/internal/state.ts"
import { Live, make } from "../../../src/internal/state.ts"
import * as Transitions from "../../../src/internal/transitions.ts"

export type S = State<string, string, string>

const off: Transitions.Limits = {
  capacity: Infinity,
  groupCapacity: Infinity,
  maxWaiting: Infinity,
  maxErrorCount: 3,
  failureTimeToLive: 0,
  validateAfter: Infinity
}

export const launch = (id: number, key: string, group?: string): Launch<string, string, string> => ({
  id,
  key,
  hash: Hash.hash(key),
  group,
  idleTimeToLive: 100,
  scope: Scope.makeUnsafe(),
  done: Deferred.makeUnsafe(),
  cancelled: Deferred.makeUnsafe()
})

/** A connection that is open already, for `adopt`. */
export const session = (id: number, key: string, now = 50, group?: string): Session<string, string> => ({
  id,
  key,
  hash: Hash.hash(key),
  group,
  value: "adopted",
  scope: Scope.makeUnsafe(),
  createdAt: now,
  openedAt: now,
  expiresAt: Infinity,
  idleTimeToLive: 100
})

/** A lookup that fails at once. */
export const failure = (why: string): Transitions.LookupFailure<string> => ({
  cause: Cause.fail(why),
  duration: 0,
  timedOut: false
})

export const validation = (): Validation => Deferred.makeUnsafe()

/** A hit as a step of its own: nothing is to be done after it. */
export const withoutActions = <R>(
  [result, state]: Transitions.Hit<R, string, string, string>
): Transitions.Step<R, string, string, string> => [{ result, actions: [] }, state]

/** Carries a state through steps, and keeps the actions of the last one. */
export class Run {
  state: S
  actions: ReadonlyArray<Action<string, string, string>> = []
  /** Places handed to callers of `set` that have neither adopted nor returned them. */
  readonly granted: Array<unknown> = []
  private readonly setting = new Map<Deferred.Deferred<boolean>, unknown>()
  readonly limits: Transitions.Limits
  private readonly gone = new Map<number, Retired<string, string>>()
  /** Off for thousands of sessions: counting them after each step takes too long. */
  recount = true
  constructor(limits: Partial<Transitions.Limits> = {}, seed = 1) {
    this.limits = { ...off, ...limits }
    this.state = make(seed)
  }
  step<R>(f: (state: S, limits: Transitions.Limits) => Transitions.Step<R, string, string, string>): R {
    const before = this.state
    const [{ actions, result }, after] = f(before, this.limits)
    // A function of its input: the same step on the same state decides the same.
    assert.deepStrictEqual(f(before, this.limits)[0].actions.map(({ _tag }) => _tag), actions.map(({ _tag }) => _tag))
    this.state = after
    this.actions = actions
    for (const action of actions) {
      if (action._tag === "Grant" && action.place) this.granted.push(this.setting.get(action.granted))
    }
    if (this.recount) assertCounted(after, this.limits, this.granted)
    return result
  }
  get tags() {
    return this.actions.map(({ _tag }) => _tag)
  }
  acquire(id: number, key: string, now = 0, group?: string) {
    const mine = launch(id, key, group)
    const result = this.step((state, limits) => Transitions.acquire(state, limits, now, mine, validation()))
    return { launch: mine, result }
  }
  land(launch: Launch<string, string, string>, now = 0, expiresAt = Infinity) {
    const value = `value ${launch.id}`
    return this.step((state, limits) => Transitions.landed(state, limits, launch, value, now, now, expiresAt))
  }
  /** Acquires and lands: a live session with one lease. */
  open(id: number, key: string, now = 0, group?: string): Launch<string, string, string> {
    const { launch } = this.acquire(id, key, now, group)
    this.land(launch, now)
    return launch
  }
  /** A live session without leases. */
  idle(id: number, key: string, now = 0, group?: string): void {
    this.open(id, key, now, group)
    this.release(id, key, now)
  }
  release(id: number, key: string, now = 0, how: Transitions.Result = "neither") {
    this.step((state, limits) => Transitions.release(state, limits, { id, key, hash: Hash.hash(key) }, now, how))
  }
  abandon(id: number, key: string, now = 0) {
    this.step((state, limits) => Transitions.abandon(state, limits, key, id, now))
  }
  lingers(id: number) {
    this.step((state, limits) => Transitions.lingers(state, limits, id))
  }
  launchLingers(launch: Launch<string, string, string>) {
    this.step((state, limits) => Transitions.launchLingers(state, limits, launch))
  }
  /** Also for the second time. */
  closed(id: number, end?: Transitions.CloseEnd) {
    const entry = Option.getOrUndefined(HashMap.get(this.state.inventory.retired, id)) ?? this.gone.get(id)
    if (entry === undefined) return assert.fail(`session ${id} was never retired`)
    this.gone.set(id, entry)
    const { reason, session } = entry
    this.step((state, limits) => Transitions.closed(state, limits, { session, reason, end }))
  }
  launchClosed(launch: Launch<string, string, string>) {
    this.step((state, limits) => Transitions.launchClosed(state, limits, launch))
  }
  /** As a caller of `set`; `held`: with the place that was granted to it. */
  adopt(
    session: Session<string, string>,
    held = false,
    entry: Transitions.Entry = { createdAt: session.openedAt, requestCount: 0, errorCount: 0 }
  ) {
    const granted = Deferred.makeUnsafe<boolean>()
    this.setting.set(granted, session.group)
    if (held) this.dropGrant(session.group)
    return this.step((state, limits) => Transitions.adopt(state, limits, session, { granted, held }, entry))
  }
  offer(id: number) {
    this.step((state, limits) => Transitions.offer(state, limits, id))
  }
  rejected(id: number) {
    this.step((state, limits) => Transitions.rejected(state, limits, id))
  }
  returnGrant(ticket: number, group?: string) {
    const { phase, queue } = this.state.inventory
    // The closed pool takes no place back.
    if (phase._tag === "Open" && !HashMap.has(queue.entries, ticket)) this.dropGrant(group)
    return this.step((state, limits) => Transitions.returnGrant(state, limits, ticket, group))
  }
  private dropGrant(group: unknown) {
    const at = this.granted.indexOf(group)
    assert.isAtLeast(at, 0, "no place was granted")
    this.granted.splice(at, 1)
  }
  invalidate(key: string) {
    return this.step((state, limits) => Transitions.invalidate(state, limits, key))
  }
  slot(key: string): Slot<string, string, string> | undefined {
    return Option.getOrUndefined(HashMap.get(this.state.slots, key))
  }
  live(key: string): Live<string, string> {
    const slot = this.slot(key)
    assert.instanceOf(slot, Live)
    return slot as Live<string, string>
  }
}

// -----------------------------------------------------------------------------
// Counting anew
// -----------------------------------------------------------------------------

/** What holds a place: the group it counts in, and whether the place comes back by itself. */
interface Holder {
  readonly group: unknown
  readonly closing: boolean
}

const holders = ({ inventory, slots }: S, granted: ReadonlyArray<unknown>): ReadonlyArray<Holder> => [
  ...[...HashMap.values(slots)].flatMap((slot) =>
    slot._tag === "Live"
      ? [{ group: slot.session.group, closing: false }]
      : slot._tag === "Launching"
      ? [{ group: slot.launch.group, closing: false }]
      : []
  ),
  ...[...HashMap.values(inventory.retired)].map(({ leases, lingers, session: { group } }) => ({
    group,
    closing: leases === 0 && !lingers
  })),
  ...[...HashMap.values(inventory.detached)].map(({ callers, launch: { group }, lingers }) => ({
    group,
    closing: callers === 0 && !lingers
  })),
  ...granted.map((group) => ({ group, closing: false }))
]

const assertPlaces = (
  places: Places<string>,
  held: ReadonlyArray<Holder>,
  sessions: ReadonlyArray<Live<string, string>>
) => {
  assert.strictEqual(places.used, held.length, "used")
  assert.strictEqual(places.closing, held.filter(({ closing }) => closing).length, "closing")
  const candidates = new Set(HashMap.values(places.idle.keys))
  for (const { leases, session: { key } } of sessions) {
    if (leases === 0) assert.isTrue(candidates.has(key), `idle ${key} is a candidate for eviction`)
  }
  // What is remembered as oldest is older than whatever else is idle.
  const [last] = places.oldest.slice(-1)
  for (const { lastUsedAt, leases, session: { id, key } } of sessions) {
    if (last === undefined || leases > 0 || lastUsedAt > last.lastUsedAt) continue
    assert.isTrue(
      places.oldest.some((found) => found.id === id && found.lastUsedAt === lastUsedAt),
      `${key} is remembered`
    )
  }
  const live = new Set(sessions.map(({ session: { key } }) => key))
  for (const key of candidates) assert.isTrue(live.has(key), `the candidate ${key} is live`)
}

/** Each waiter of a key stands in the queue once, and the queue holds nobody else but callers of `set`. */
const assertQueue = ({ inventory, slots }: S): void => {
  const queued = [...Queue.entries(inventory.queue)]
  const tickets = queued.flatMap(([ticket, { granted, key }]) => granted === undefined ? [`${ticket} ${key}`] : [])
  const waiting = [...HashMap.entries(slots)].flatMap(([key, slot]) =>
    slot._tag === "Waiting" ? [{ ticket: `${slot.ticket} ${key}`, callers: slot.callers }] : []
  )
  assert.deepStrictEqual(tickets.toSorted(), waiting.map(({ ticket }) => ticket).toSorted())
  assert.strictEqual(
    inventory.waiting,
    waiting.reduce((sum, { callers }) => sum + callers, 0) + queued.length - tickets.length,
    "waiting"
  )
}

/** The first in the queue has no place to go, and no idle session is kept that nobody closes for a waiter. */
const assertNobodyWaitsInVain = (
  { inventory }: S,
  limits: Transitions.Limits,
  held: ReadonlyArray<Holder>,
  sessions: ReadonlyArray<Live<string, string>>
): void => {
  const queued = [...Queue.entries(inventory.queue)].map(([, waiter]) => waiter)
  const isFull = (group: unknown) => held.filter((holder) => holder.group === group).length >= limits.groupCapacity
  const first = queued[0]
  if (first !== undefined) assert.isTrue(held.length >= limits.capacity || isFull(first.group), "a place stays empty")
  const idle = sessions.filter(({ leases }) => leases === 0)
  for (const group of new Set(queued.map(({ group }) => group))) {
    if (!isFull(group)) continue
    const waiters = queued.filter((waiter) => waiter.group === group).length
    const coming = held.filter((holder) => holder.closing && holder.group === group).length
    const kept = idle.filter(({ session }) => session.group === group).length
    assert.isTrue(coming >= waiters || kept === 0, `a session of ${String(group)} stays idle`)
  }
  if (held.length >= limits.capacity && queued.some(({ group }) => !isFull(group))) {
    const coming = held.filter(({ closing }) => closing).length
    assert.isTrue(coming > 0 || idle.length === 0, "a session stays idle")
  }
}

/** What the state says of itself is what it holds. */
export const assertCounted = (state: S, limits: Transitions.Limits, granted: ReadonlyArray<unknown>): void => {
  const { active, inventory, slots } = state
  const sessions = [...HashMap.values(slots)].filter((slot) => slot._tag === "Live")
  const held = holders(state, granted)
  assert.strictEqual(inventory.live, sessions.length, "live")
  assert.strictEqual(active, sessions.filter(({ leases }) => leases > 0).length, "active")
  const launching = [...HashMap.values(slots)].filter(({ _tag }) => _tag === "Launching")
  assert.strictEqual(inventory.launching, launching.length, "launching")
  assert.isTrue(held.length <= limits.capacity, "within the capacity")
  assertQueue(state)
  assertPlaces(inventory.places, held, limits.capacity === Infinity ? [] : sessions)
  const groups = new Set([...HashMap.keys(inventory.groups), ...held.map(({ group }) => group)])
  for (const group of limits.groupCapacity === Infinity ? [] : groups) {
    const ofGroup = held.filter((holder) => holder.group === group)
    const places = Option.getOrThrow(HashMap.get(inventory.groups, group))
    assert.isTrue(ofGroup.length > 0 && ofGroup.length <= limits.groupCapacity, "within the capacity of the group")
    assertPlaces(places, ofGroup, sessions.filter(({ session }) => session.group === group))
  }
  if (limits.groupCapacity === Infinity) assert.strictEqual(HashMap.size(inventory.groups), 0)
  assertNobodyWaitsInVain(state, limits, held, sessions)
}
