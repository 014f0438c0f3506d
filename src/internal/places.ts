/**
 * Places. A launch takes a place, a close returns it, and `serve` hands it to the longest waiter.
 *
 * An eviction ends a session, so the two functions that end sessions are here too: `retire` takes a session out of its slot, and `leave`
 * closes a session or launch that has no holders.
 */
import { Exit, HashMap, Option } from "effect"
import * as Ordered from "./ordered.ts"
import type { Draft, Failed, History, Launch, Leaving, Live, Places, Reason, Session, Waiter } from "./state.ts"
import { noPlaces } from "./state.ts"

// -----------------------------------------------------------------------------
// Places
// -----------------------------------------------------------------------------

const groupPlaces = <K, A, E>(d: Draft<K, A, E>, group: unknown): Places<K, A> =>
  Option.getOrElse(HashMap.get(d.state.groups, group), noPlaces<K, A>)

/** Changes the places of the pool and of the group. A place without a limit is not counted. */
const changePlaces = <K, A, E>(
  d: Draft<K, A, E>,
  group: unknown,
  change: (places: Places<K, A>) => Places<K, A>
): void => {
  if (d.options.capacity !== Infinity) d.state.places = change(d.state.places)
  if (d.options.groupCapacity === Infinity || group === undefined) return
  const places = change(groupPlaces(d, group))
  const { groups } = d.state
  d.state.groups = places.used === 0 ? HashMap.remove(groups, group) : HashMap.set(groups, group, places)
}

const isGroupFull = <K, A, E>(d: Draft<K, A, E>, group: unknown): boolean =>
  group !== undefined && groupPlaces(d, group).used >= d.options.groupCapacity

export const hasRoom = <K, A, E>(d: Draft<K, A, E>, group: unknown): boolean =>
  d.state.places.used < d.options.capacity && !isGroupFull(d, group)

export const takePlace = <K, A, E>(d: Draft<K, A, E>, group: unknown): void =>
  changePlaces(d, group, (places) => ({ ...places, used: places.used + 1 }))

/** Returns the place of a session or launch that has closed. */
export const returnPlace = <K, A, E>(d: Draft<K, A, E>, group: unknown): void =>
  changePlaces(d, group, (places) => ({ ...places, used: places.used - 1, closing: places.closing - 1 }))

/** The limit that leaves a caller without a place: the group's if the group is full, else the pool's. */
export interface Shortage {
  readonly scope: "pool" | "group"
  readonly limit: number
  /** Callers that wait for a place. */
  readonly waiting: number
}

export const shortageOf = <K, A, E>(d: Draft<K, A, E>, group: unknown): Shortage => {
  const { options, state: { waiters: waiting } } = d
  return isGroupFull(d, group)
    ? { scope: "group", limit: options.groupCapacity, waiting }
    : { scope: "pool", limit: options.capacity, waiting }
}

// -----------------------------------------------------------------------------
// Idle sessions
// -----------------------------------------------------------------------------

/**
 * Puts a session that was touched, leased or released into its slot, and updates the counts and the order of the idle sessions. A
 * session without leases becomes the most recently used idle one.
 */
export const putUsed = <K, A, E>(d: Draft<K, A, E>, before: Live<K, A>, after: Live<K, A>): void => {
  d.state.leases += after.leases - before.leases
  d.state.active += Number(after.leases > 0) - Number(before.leases > 0)
  removeIdle(d, before)
  d.setSlot(after.session, { ...after, ticket: after.leases === 0 ? addIdle(d, after.session) : 0 })
}

const addIdle = <K, A, E>(d: Draft<K, A, E>, session: Session<K, A>): number => {
  if (!d.options.isBounded) return 0
  const ticket = ++d.state.ticket
  changePlaces(d, session.group, (places) => ({ ...places, idle: Ordered.insert(places.idle, ticket, session) }))
  return ticket
}

const removeIdle = <K, A, E>(d: Draft<K, A, E>, { session, ticket }: Live<K, A>): void => {
  if (ticket === 0) return
  changePlaces(d, session.group, (places) => ({ ...places, idle: Ordered.remove(places.idle, ticket) }))
}

/** The session to evict for a launch of this group: the least recently used idle one, of the group if the group is full. */
const leastRecentlyUsed = <K, A, E>(d: Draft<K, A, E>, group: unknown): Live<K, A> | undefined => {
  const { idle } = isGroupFull(d, group) ? groupPlaces(d, group) : d.state.places
  const session = Ordered.first(idle)
  const slot = session === undefined ? undefined : d.slot(session)
  return slot?._tag === "Live" ? slot : undefined
}

export const canEvict = <K, A, E>(d: Draft<K, A, E>, group: unknown): boolean =>
  leastRecentlyUsed(d, group) !== undefined

// -----------------------------------------------------------------------------
// Leaving
// -----------------------------------------------------------------------------

/**
 * Retires a live session: takes it out of its slot, so that no further caller gets it. It closes now if it has no leases, else when its
 * last lease ends (`releaseLeaving`).
 *
 * Every live session is retired here. The reasons and the functions that decide on them, in `transitions.ts` unless noted:
 *
 * - `IdleTimeout`, `MaxLifetime`: `acquire` for the caller that finds the session expired, and `expire` for the sweep. With an
 *   `idleTimeToLive` of zero, `release` of the last lease.
 * - `Errors`: `release` and `recordError`. `Invalid`: `checked`. `Disconnected`: `watch` in `shell.ts`, through `retireById`.
 * - `Invalidated`: `invalidate`, and `invalidate` of a lease, through `retireById`. `PoolClosed`: `shutdown`.
 * - `Evicted`: `evictFor` below. `Replaced`: `adopt`, and `putAdopted` and `evictFor` below.
 *
 * The one exception is the session of an invalidated launch: it never has a slot, so `land` marks it as retired.
 */
export const retire = <K, A, E>(d: Draft<K, A, E>, live: Live<K, A>, reason: Reason): void => {
  const { leases, session } = live
  d.removeSlot(session)
  removeIdle(d, live)
  d.state.live--
  if (leases > 0) d.state.active--
  d.emit({ _tag: "Retired", key: session.key, id: session.id, reason })
  leave(d, { opening: session, reason, holders: leases, hasPlace: true })
}

/** Puts an opening into `leaving`. If it has no holders, it closes, and its place counts as closing from now on. */
export const leave = <K, A, E>(d: Draft<K, A, E>, leaving: Leaving<K, A, E>): void => {
  const { hasPlace, holders, opening } = leaving
  d.state.leaving = HashMap.set(d.state.leaving, opening.id, leaving)
  if (holders > 0) return
  if (hasPlace) changePlaces(d, opening.group, (places) => ({ ...places, closing: places.closing + 1 }))
  d.actions.push({ _tag: "Close", leaving })
}

/**
 * Closes a launch that opens no session: it failed, was cancelled, or was replaced by `set`. Also closes a connection of `set` that is
 * not put in, which has no place to return.
 */
export const discard = <K, A, E>(d: Draft<K, A, E>, launch: Launch<K, A, E>): void =>
  leave(d, { opening: launch, reason: undefined, holders: 0, hasPlace: launch.adopts === undefined })

/** Forgets a remembered failure. */
export const forget = <K, A, E>(d: Draft<K, A, E>, failed: Failed<K, A, E>): void => {
  d.removeSlot(failed.launch)
  d.state.failures = Ordered.remove(d.state.failures, failed.ticket)
}

// -----------------------------------------------------------------------------
// Waiters
// -----------------------------------------------------------------------------

/** Adds a launch to the queue. Its ticket is the id of the launch, because ids grow in the order in which launches are prepared. */
export const enqueue = <K, A, E>(
  d: Draft<K, A, E>,
  launch: Launch<K, A, E>,
  history: History | undefined,
  isPromised: boolean
): void => {
  const waiter = { launch, history, askedAt: d.now, since: d.now, isPromised }
  d.state.waiting = Ordered.insert(d.state.waiting, launch.id, waiter)
  d.state.waiters++
}

/** Takes `callers` of a launch out of the queue. Takes the launch out too, unless `others` of its callers still wait. */
export const dequeue = <K, A, E>(
  d: Draft<K, A, E>,
  { id, key }: Launch<K, A, E>,
  callers: number,
  others: number
): void => {
  const duration = d.now - (Ordered.get(d.state.waiting, id)?.askedAt ?? d.now)
  d.state.waiters -= callers
  if (others === 0) d.state.waiting = Ordered.remove(d.state.waiting, id)
  // An eviction made room at once, so these callers did not wait.
  if (duration === 0) return
  d.count("waited", callers)
  d.emit({ _tag: "Waited", key, id, duration, callers })
}

/**
 * Serves the queue: visits the waiters in order, the longest waiter first, and does one of three things for each.
 *
 * 1. A place is free: the waiter gets it (`grant`). Its lookup starts, or its connection of `set` is put in. A lookup that starts wakes
 *    no caller yet, see `Waiter` in `state.ts`.
 * 2. A place is closing that no earlier waiter counts on: the waiter counts on that place, and stays in the queue. The step that ends the
 *    close (`closed`) serves the queue again.
 * 3. No such place is closing, or the waiter has counted on one for `patience`: an idle session is evicted for it (`evictFor`). The waiter
 *    counts on the place of that session from now on.
 *
 * Every step that frees a place, adds a waiter or makes a session idle runs this. So after each step, every waiter that can be served has
 * been. A waiter that leaves the queue frees no place, so such a step does not run this.
 */
export const serve = <K, A, E>(d: Draft<K, A, E>): void => {
  if (d.state.waiting.size === 0) return
  // Closing places that no earlier waiter counts on: in the pool, and in each full group.
  let unclaimed = d.state.places.closing
  let unclaimedInGroup = HashMap.empty<unknown, number>()
  for (const waiter of Ordered.values(d.state.waiting)) {
    const { launch: { group, id } } = waiter
    // `putAdopted` took this launch out of the queue: an earlier grant put in a connection of `set` under its key.
    if (Ordered.get(d.state.waiting, id) === undefined) continue
    const isFree = d.state.places.used < d.options.capacity
    const isFull = isGroupFull(d, group)
    if (isFree && !isFull) {
      grant(d, waiter)
      continue
    }
    const { patience } = d.options
    // With a `patience` of zero, a waiter counts only on the place of a session that was retired for it.
    const isImpatient = patience === 0 ? !waiter.isPromised : d.now - waiter.since >= patience
    if (isFull) {
      const groupUnclaimed = Option.getOrElse(HashMap.get(unclaimedInGroup, group), () => groupPlaces(d, group).closing)
      // The group is full, so only the close of a session of this group makes room.
      const isEvicted = (groupUnclaimed === 0 || isImpatient) && evictFor(d, waiter, group)
      const left = isEvicted ? groupUnclaimed : Math.max(0, groupUnclaimed - 1)
      unclaimedInGroup = HashMap.set(unclaimedInGroup, group, left)
      if (isEvicted || groupUnclaimed === 0) continue
    }
    // The waiter counts on a place of the pool: a free one, or a closing one that no earlier waiter counts on. In a full group, the
    // group's closing place is also a place of the pool.
    if (isFree || (unclaimed > 0 && (isFull || !isImpatient))) unclaimed--
    // The pool is full and no session is idle, so no later waiter can be served either.
    else if (!evictFor(d, waiter, undefined)) return
  }
}

/** Evicts an idle session for a waiter, which counts on its place from now on. Returns false if no session is idle. */
const evictFor = <K, A, E>(d: Draft<K, A, E>, waiter: Waiter<K, A, E>, group: unknown): boolean => {
  const live = leastRecentlyUsed(d, group)
  if (live === undefined) return false
  const { launch } = waiter
  // The session is under the waiter's own key. Then the waiter is a `set`, and replaces the session, so it is not an eviction.
  const isReplaced = d.slot(launch) === live
  retire(d, live, isReplaced ? "Replaced" : "Evicted")
  const history = isReplaced ? historyOf(live) : waiter.history
  const served = { ...waiter, history, since: d.now, isPromised: true }
  d.state.waiting = Ordered.insert(Ordered.remove(d.state.waiting, launch.id), launch.id, served)
  return true
}

/** Gives a free place to a waiter: its lookup starts, or its connection of `set` is put in. */
const grant = <K, A, E>(d: Draft<K, A, E>, { history, launch }: Waiter<K, A, E>): void => {
  const { adopts, group } = launch
  const slot = d.slot(launch)
  const callers = adopts === undefined && slot?._tag === "Waiting" ? slot.callers : 1
  dequeue(d, launch, callers, 0)
  takePlace(d, group)
  if (adopts === undefined) startLaunch(d, launch, callers)
  else putAdopted(d, launch, adopts.value, history)
}

/** Starts the lookup of a launch that has its place. */
export const startLaunch = <K, A, E>(d: Draft<K, A, E>, launch: Launch<K, A, E>, callers: number): void => {
  d.setSlot(launch, { _tag: "Launching", launch, callers })
  d.state.launching++
  d.actions.push({ _tag: "Launch", launch })
}

/**
 * Puts a connection of `set`, which has its place, under its key, and retires a live session there.
 *
 * If a lookup of the key waits or runs, its callers get this connection. They will release it under the id of the launch that they joined,
 * so the session gets that id. A lookup that runs is discarded, and leaves under the other id: the id of the launch of `set`, which no
 * caller uses. So the two ids are swapped, and stay unique.
 */
export const putAdopted = <K, A, E>(
  d: Draft<K, A, E>,
  launch: Launch<K, A, E>,
  value: A,
  inherited: History | undefined
): void => {
  const slot = d.slot(launch)
  const history = slot?._tag === "Live" ? historyOf(slot) : inherited
  let { id } = launch
  let callers = 0
  if (slot?._tag === "Failed") forget(d, slot)
  if (slot?._tag === "Live") retire(d, slot, "Replaced")
  if (slot?._tag === "Waiting" || slot?._tag === "Launching") {
    id = slot.launch.id
    callers = slot.callers
    if (slot._tag === "Waiting") {
      dequeue(d, slot.launch, callers, 0)
    } else {
      d.state.launching--
      // The other half of the swap: `leaving` is keyed by id, and the session has the id of this launch now.
      discard(d, { ...slot.launch, id: launch.id })
    }
    d.complete(slot.launch.done, Exit.succeed(value))
  }
  const session = sessionOf({ ...launch, id }, value, d.now, history?.createdAt ?? d.now)
  d.emit({ _tag: "Adopted", key: session.key, id })
  putOpened(d, session, callers, (history?.requestCount ?? 0) + callers, history?.errorCount ?? 0)
  d.complete(launch.done, Exit.succeed(value))
}

/** What a session of `set` inherits from the live session that it replaces. */
export const historyOf = <K, A>({ errorCount, requestCount, session: { createdAt } }: Live<K, A>): History => ({
  createdAt,
  requestCount,
  errorCount
})

/** The session that a launch opened. */
export const sessionOf = <K, A, E>(
  { group, hash, id, idleTimeToLive, key, lifetime, scope }: Launch<K, A, E>,
  value: A,
  now: number,
  createdAt: number
): Session<K, A> => ({
  id,
  key,
  hash,
  group,
  scope,
  idleTimeToLive,
  value,
  createdAt,
  openedAt: now,
  expiresAt: now + lifetime
})

/** Puts an open session into its slot, with one lease for each caller that waited for it. */
export const putOpened = <K, A, E>(
  d: Draft<K, A, E>,
  session: Session<K, A>,
  leases: number,
  requestCount: number,
  errorCount: number
): void => {
  const opened: Live<K, A> = {
    _tag: "Live",
    session,
    lastUsedAt: d.now,
    requestCount,
    errorCount,
    leases: 0,
    validatedAt: d.now,
    check: undefined,
    ticket: 0
  }
  d.state.live++
  d.actions.push({ _tag: "Watch", session })
  putUsed(d, opened, { ...opened, leases })
}
