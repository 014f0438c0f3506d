/**
 * What transitions are made of: what a step returns, how it finds a slot, the working copy of the state inside it, and the
 * moves that several transitions share: places, the queue for them, eviction, retirement. A draft lives only as long as
 * its step; the state it came from is never changed.
 */
import { HashMap, HashSet, Option } from "effect"
import * as Candidates from "./candidates.ts"
import * as Queue from "./queue.ts"
import type {
  Action,
  Detached,
  FoundIdle,
  Inventory,
  Launch,
  Live,
  Places,
  Reason,
  Slot,
  Totals,
  Waiter
} from "./state.ts"
import { Launching, noPlaces, State } from "./state.ts"

/** The options that the transitions read; times in milliseconds, what is off is infinity. */
export interface Limits {
  readonly capacity: number
  readonly groupCapacity: number
  readonly maxWaiting: number
  readonly maxErrorCount: number
  readonly failureTimeToLive: number
  readonly validateAfter: number
}

/** What a step returns: its decision, then what is to be done. */
export interface Outcome<out R, K, A, E> {
  readonly result: R
  readonly actions: ReadonlyArray<Action<K, A, E>>
}

export type Step<R, K, A, E> = readonly [Outcome<R, K, A, E>, State<K, A, E>]

/** What a step returns that nothing is to be done after. */
export type Hit<R, K, A, E> = readonly [result: R, state: State<K, A, E>]

export const none: ReadonlyArray<never> = []

export const unchanged = <R, K, A, E>(state: State<K, A, E>, result: R): Step<R, K, A, E> => [
  { result, actions: none },
  state
]

export const slotOf = <K, A, E>(state: State<K, A, E>, key: K): Slot<K, A, E> | undefined =>
  Option.getOrUndefined(HashMap.get(state.slots, key))

/** As `slotOf`. What every request runs hashes its key once: a use would do it four times, a launch six. */
export const slotAt = <K, A, E>(state: State<K, A, E>, key: K, hash: number): Slot<K, A, E> | undefined =>
  Option.getOrUndefined(HashMap.getHash(state.slots, key, hash))

/** Sets the slot of a key. `HashMap` exports no `set` that takes the hash. */
export const withSlot = <K, A, E>(state: State<K, A, E>, key: K, hash: number, slot: Slot<K, A, E>) =>
  HashMap.modifyHash(state.slots, key, hash, () => Option.some(slot))

type Mutable<T> = { -readonly [P in keyof T]: T[P] }

export class Draft<K, A, E> {
  readonly limits: Limits
  slots: HashMap.HashMap<K, Slot<K, A, E>>
  active: number
  hits: number
  /** To read; to change it, write to `own`. */
  inventory: Inventory<K, A, E>
  readonly actions: Array<Action<K, A, E>> = []
  private copy: Mutable<Inventory<K, A, E>> | undefined

  constructor(state: State<K, A, E>, limits: Limits) {
    this.limits = limits
    this.slots = state.slots
    this.active = state.active
    this.hits = state.hits
    this.inventory = state.inventory
  }

  /** Ends the step. */
  end<R>(result: R): Step<R, K, A, E> {
    return [{ result, actions: this.actions }, new State(this.slots, this.active, this.hits, this.inventory)]
  }

  slot(key: K): Slot<K, A, E> | undefined {
    return Option.getOrUndefined(HashMap.get(this.slots, key))
  }

  /** The inventory as this step's own, to be changed: copied once a step, and only by a step that changes it. */
  get own(): Mutable<Inventory<K, A, E>> {
    if (this.copy === undefined) {
      this.copy = { ...this.inventory }
      this.inventory = this.copy
    }
    return this.copy
  }

  count(total: "misses" | "joins" | "launches" | "launchFailures" | "errors"): void {
    const totals: Mutable<Totals> = { ...this.inventory.totals }
    totals[total]++
    this.own.totals = totals
  }
}

// -----------------------------------------------------------------------------
// Places
// -----------------------------------------------------------------------------

const groupPlaces = <K, A, E>(d: Draft<K, A, E>, group: unknown): Places<K> =>
  Option.getOrElse(HashMap.get(d.inventory.groups, group), () => noPlaces)

/** Applies a change to the places of the pool, and to those of the group if groups have a limit. */
const changePlaces = <K, A, E>(
  d: Draft<K, A, E>,
  group: unknown,
  limited: boolean,
  change: (places: Places<K>) => Places<K>
): void => {
  if (!limited || d.limits.capacity !== Infinity) d.own.places = change(d.inventory.places)
  if (d.limits.groupCapacity === Infinity) return
  const places = change(groupPlaces(d, group))
  const { groups } = d.inventory
  d.own.groups = places.used === 0 ? HashMap.remove(groups, group) : HashMap.set(groups, group, places)
}

export const takePlace = <K, A, E>(d: Draft<K, A, E>, group: unknown): void =>
  changePlaces(d, group, false, (places) => ({ ...places, used: places.used + 1 }))

/** The place is still taken, but comes back by itself when the close is over. */
export const startClosing = <K, A, E>(d: Draft<K, A, E>, group: unknown): void =>
  changePlaces(d, group, false, (places) => ({ ...places, closing: places.closing + 1 }))

/** The close lingers: whoever counted on its place is served by an eviction, if anything is idle. */
export const startLingering = <K, A, E>(d: Draft<K, A, E>, group: unknown): void => {
  changePlaces(d, group, false, (places) => ({ ...places, closing: places.closing - 1 }))
  serve(d)
}

/** Gives back a place that was being closed, and serves whoever waits for it. */
export const endClosing = <K, A, E>(d: Draft<K, A, E>, group: unknown, lingers: boolean): void => {
  const closing = lingers ? 0 : 1
  changePlaces(d, group, false, (places) => ({ ...places, used: places.used - 1, closing: places.closing - closing }))
  serve(d)
}

/** Gives back a place that nothing was opened in, and serves whoever waits for it. */
export const returnPlace = <K, A, E>(d: Draft<K, A, E>, group: unknown): void => {
  changePlaces(d, group, false, (places) => ({ ...places, used: places.used - 1 }))
  serve(d)
}

/** What a caller lacks that gets no place: one of its group, where that is full, else one of the pool. */
export interface Shortage {
  readonly scope: "pool" | "group"
  readonly limit: number
  /** So many callers wait for a place. */
  readonly waiting: number
}

export const shortageOf = <K, A, E>(
  { groups, waiting }: Inventory<K, A, E>,
  { capacity, groupCapacity }: Limits,
  group: unknown
): Shortage => {
  const places = HashMap.get(groups, group)
  return Option.isSome(places) && places.value.used >= groupCapacity
    ? { scope: "group", limit: groupCapacity, waiting }
    : { scope: "pool", limit: capacity, waiting }
}

/** A session under this key has become idle: it can be evicted now, at once if someone waits. */
export const becomeIdle = <K, A, E>(d: Draft<K, A, E>, key: K, group: unknown): void => {
  changePlaces(d, group, true, (places) => ({ ...places, idle: Candidates.add(places.idle, key) }))
  serve(d)
}

/**
 * As `becomeIdle`, after a validation, which is no use: the session may be older than all that are remembered as the oldest, and
 * takes its place among them.
 */
export const becomeIdleAfterValidation = <K, A, E>(d: Draft<K, A, E>, live: Live<K, A>): void => {
  const { group, id, key } = live.session
  const found = foundOf(live)
  changePlaces(d, group, true, (places) => {
    const last = places.oldest.at(-1)
    if (last === undefined || foundByUse(found, last) > 0) return places
    const oldest = [...places.oldest.filter((other) => other.id !== id), found].toSorted(foundByUse)
    return { ...places, oldest: oldest.slice(0, remembered) }
  })
  becomeIdle(d, key, group)
}

/**
 * Whether nothing changes when a session under this key becomes idle: nobody waits, and wherever idle sessions are looked
 * for its key is found already, since it was idle before. Saves a bounded pool most of the work of a release.
 */
export const idleChangesNothing = <K, A, E>(
  { groups, places, queue }: Inventory<K, A, E>,
  limits: Limits,
  key: K,
  hash: number,
  group: unknown
): boolean => {
  if (Queue.size(queue) > 0) return false
  if (limits.capacity !== Infinity && !Candidates.has(places.idle, key, hash)) return false
  if (limits.groupCapacity === Infinity) return true
  const ofGroup = HashMap.get(groups, group)
  return Option.isSome(ofGroup) && Candidates.has(ofGroup.value.idle, key, hash)
}

const forgetIdle = <K, A, E>(d: Draft<K, A, E>, key: K, group: unknown): void =>
  changePlaces(d, group, true, (places) => ({ ...places, idle: Candidates.remove(places.idle, key) }))

export const hasRoom = <K, A, E>(d: Draft<K, A, E>, group: unknown): boolean =>
  d.inventory.places.used < d.limits.capacity && groupPlaces(d, group).used < d.limits.groupCapacity

/**
 * Whether an idle session could be closed to make room in this group. Forgets the keys that it finds in use: end the step
 * with `d.end`, not with `unchanged`.
 */
export const canEvict = <K, A, E>(d: Draft<K, A, E>, group: unknown): boolean => {
  const groupFull = groupPlaces(d, group).used >= d.limits.groupCapacity
  return leastRecentlyUsed(d, groupFull ? { group } : undefined) !== undefined
}

// -----------------------------------------------------------------------------
// Waiters
// -----------------------------------------------------------------------------

export const enqueue = <K, A, E>(d: Draft<K, A, E>, waiter: Waiter<K>): number => {
  const queue = d.inventory.queue
  d.own.queue = Queue.push(queue, waiter)
  d.own.waiting++
  return queue.next
}

/**
 * Hands every free place to the longest waiter that may use it, and evicts an idle session for each waiter that no
 * place is on its way to. A `get` then launches, and goes on when that has landed (`Deliver`); a `set` goes on (`Grant`).
 *
 * Runs in every step that frees a place, adds a waiter or makes a session idle, so that after a step nobody waits who need not.
 * Not where a waiter leaves: it frees no place, and whoever waits behind it found nothing idle either, so counts on a close that
 * will serve it.
 */
export const serve = <K, A, E>(d: Draft<K, A, E>): void => {
  if (Queue.size(d.inventory.queue) === 0) return
  const { capacity, groupCapacity } = d.limits
  // Places that come back by themselves and that no earlier waiter counts on.
  let coming = d.inventory.places.closing
  let comingInGroup = HashMap.empty<unknown, number>()
  for (const [ticket, waiter] of Queue.entries(d.inventory.queue)) {
    const places = groupPlaces(d, waiter.group)
    const free = d.inventory.places.used < capacity
    const groupFree = places.used < groupCapacity
    if (free && groupFree) {
      grant(d, ticket, waiter)
      continue
    }
    const groupComing = Option.getOrElse(HashMap.get(comingInGroup, waiter.group), () => places.closing)
    if (!groupFree && groupComing <= 0) {
      // Only a session of its own group can make room.
      if (evict(d, { group: waiter.group })) comingInGroup = HashMap.set(comingInGroup, waiter.group, 0)
      continue
    }
    // What comes in a full group makes room in the pool too, unless that place is another waiter's already.
    if (free || coming > 0) coming--
    // The pool is full and nothing is idle: those behind this waiter wait too.
    else if (!evict(d, undefined)) return
    if (!groupFree) comingInGroup = HashMap.set(comingInGroup, waiter.group, groupComing - 1)
  }
}

const grant = <K, A, E>(d: Draft<K, A, E>, ticket: number, waiter: Waiter<K>): void => {
  takePlace(d, waiter.group)
  const queue = Queue.remove(d.inventory.queue, ticket)
  if (waiter.granted !== undefined) {
    d.own.queue = queue
    d.own.waiting--
    d.actions.push({ _tag: "Grant", granted: waiter.granted, place: true })
    return
  }
  const slot = d.slot(waiter.key)
  if (slot?._tag !== "Waiting") {
    throw new Error(`effect-session-pool: the queue holds a waiter without a slot (ticket ${ticket})`)
  }
  d.slots = HashMap.set(d.slots, waiter.key, new Launching(slot.launch, slot.callers))
  d.own.queue = queue
  d.own.waiting -= slot.callers
  d.own.launching++
  d.actions.push({ _tag: "Launch", launch: slot.launch })
}

// -----------------------------------------------------------------------------
// Eviction
// -----------------------------------------------------------------------------

/** Up to so many idle sessions the least recently used one is found exactly. */
export const exactEvictionLimit = 4096
/** So many of them are remembered: a comparison of 4,096 takes 1 ms, which so many evictions share. */
const remembered = 64
/** The default of Redis (`maxmemory-samples`); each costs two lookups in maps of all sessions. */
const sampleSize = 5

const evict = <K, A, E>(d: Draft<K, A, E>, within: { readonly group: unknown } | undefined): boolean => {
  const live = leastRecentlyUsed(d, within)
  if (live === undefined) return false
  retire(d, live, "Evicted")
  return true
}

/** The idle session used longest ago: exactly in a small set, the oldest of a sample in a large one (as Redis does). */
const leastRecentlyUsed = <K, A, E>(
  d: Draft<K, A, E>,
  within: { readonly group: unknown } | undefined
): Live<K, A> | undefined => {
  const places = within === undefined ? d.inventory.places : groupPlaces(d, within.group)
  const keep = (idle: Candidates.Candidates<K>, oldest: ReadonlyArray<FoundIdle<K>>) => {
    const changed = { ...places, idle, oldest }
    if (within === undefined) d.own.places = changed
    else d.own.groups = HashMap.set(d.inventory.groups, within.group, changed)
  }
  for (const [i, found] of places.oldest.entries()) {
    const slot = idleAt(d, found.key)
    if (slot?.session.id === found.id && slot.lastUsedAt === found.lastUsedAt) {
      keep(places.idle, places.oldest.slice(i))
      return slot
    }
  }
  let { idle } = places
  const sample: Array<Live<K, A>> = []
  // Each key dropped here was added by a release, so dropping costs no more in the long run than the releases did. It can
  // all fall on one step, when nearly all of many sessions are in use again since they were idle.
  while (sample.length < sampleSize && Candidates.size(idle) > exactEvictionLimit) {
    const seed = (Math.imul(d.inventory.seed, 1664525) + 1013904223) >>> 0
    d.own.seed = seed
    const key = Candidates.at(idle, Math.floor((seed / 4294967296) * Candidates.size(idle)))
    const slot = idleAt(d, key)
    if (slot !== undefined) sample.push(slot)
    else idle = Candidates.remove(idle, key)
  }
  if (Candidates.size(idle) > exactEvictionLimit) {
    keep(idle, [])
    return sample.toSorted(byUse)[0]
  }
  const all: Array<Live<K, A>> = []
  const inUse: Array<K> = []
  for (const key of HashMap.values(idle.keys)) {
    const slot = idleAt(d, key)
    if (slot !== undefined) all.push(slot)
    else inUse.push(key)
  }
  for (const key of inUse) idle = Candidates.remove(idle, key)
  all.sort(byUse)
  // But for those last used as late as any: what is used from now on may have the same time, and a lower id.
  const newest = all.at(-1)?.lastUsedAt ?? 0
  const oldest = all.slice(0, remembered).filter(({ lastUsedAt }) => lastUsedAt < newest)
  keep(idle, oldest.map(foundOf))
  return all[0]
}

const idleAt = <K, A, E>(d: Draft<K, A, E>, key: K): Live<K, A> | undefined => {
  const slot = d.slot(key)
  return slot?._tag === "Live" && slot.leases === 0 ? slot : undefined
}

const foundOf = <K, A>({ lastUsedAt, session: { id, key } }: Live<K, A>): FoundIdle<K> => ({ key, id, lastUsedAt })

const foundByUse = <K>(a: FoundIdle<K>, b: FoundIdle<K>): number => a.lastUsedAt - b.lastUsedAt || a.id - b.id

const byUse = <K, A>(a: Live<K, A>, b: Live<K, A>): number => a.lastUsedAt - b.lastUsedAt || a.session.id - b.session.id

// -----------------------------------------------------------------------------
// Retirement
// -----------------------------------------------------------------------------

/**
 * Takes a live session out of its slot. It closes now if nobody leases it, else with its last lease (`release`). Every
 * retirement is this move, but for the one in `landed`: a launch that was invalidated while it ran never gets a slot.
 */
export const retire = <K, A, E>(d: Draft<K, A, E>, live: Live<K, A>, reason: Reason, leases = live.leases): void => {
  const { session } = live
  d.slots = HashMap.remove(d.slots, session.key)
  if (live.leases > 0) d.active--
  d.own.live--
  d.own.retired = HashMap.set(d.inventory.retired, session.id, { session, leases, reason, lingers: false })
  forgetIdle(d, session.key, session.group)
  d.actions.push({ _tag: "Retire", session, reason })
  if (leases === 0) {
    startClosing(d, session.group)
    d.actions.push({ _tag: "Close", session, reason })
  }
}

/** Takes the launch from its slot; with callers it stays wanted, without it is cancelled. */
export const detach = <K, A, E>(d: Draft<K, A, E>, launch: Launch<K, A, E>, callers: number): void => {
  d.own.detached = HashMap.set(d.inventory.detached, launch.id, { launch, callers, lingers: false })
  if (callers === 0) startClosing(d, launch.group)
}

export const detached = <K, A, E>(d: Draft<K, A, E>, launch: Launch<K, A, E>): Detached<K, A, E> | undefined =>
  Option.getOrUndefined(HashMap.get(d.inventory.detached, launch.id))

/** In a closing pool, the step that takes out the last thing ends the pool. */
export const endIfEmpty = <K, A, E>(d: Draft<K, A, E>): void => {
  const { detached, offered, phase, retired } = d.inventory
  if (
    phase._tag === "Closing" && HashMap.isEmpty(retired) && HashMap.isEmpty(detached) && HashSet.isEmpty(offered)
  ) {
    d.actions.push({ _tag: "End", ended: phase.ended })
  }
}
