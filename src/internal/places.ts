/**
 * Places: a launch takes one, a close gives it back, and the longest waiter gets it next. An eviction needs the two moves that end a
 * session, so they are here too: `retire` takes a session out of its slot, `leave` closes a session or launch without holders.
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

/** Changes the places of the pool and of the group. Places without a limit are not counted. */
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

/** Gives back the place of a session or launch that has closed. */
export const returnPlace = <K, A, E>(d: Draft<K, A, E>, group: unknown): void =>
  changePlaces(d, group, (places) => ({ ...places, used: places.used - 1, closing: places.closing - 1 }))

/** Which limit a caller ran into: the group's if the group is full, else the pool's. */
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
 * Puts the next state of a session that is used now (touched, leased, released) into its slot, and keeps the counts and the order of
 * the idle sessions right: without leases it becomes the most recently used one.
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

/** The least recently used idle session to evict for this group: one of the group if the group is full, else any. */
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

/** Takes a live session out of its slot. It closes now if it has no leases, else with its last release. */
export const retire = <K, A, E>(d: Draft<K, A, E>, live: Live<K, A>, reason: Reason): void => {
  const { leases, session } = live
  d.removeSlot(session)
  removeIdle(d, live)
  d.state.live--
  if (leases > 0) d.state.active--
  d.emit({ _tag: "Retired", key: session.key, id: session.id, reason })
  leave(d, { opening: session, reason, holders: leases, hasPlace: true })
}

/** Moves an opening to `leaving`, and closes it if it has no holders. Its place then counts as closing. */
export const leave = <K, A, E>(d: Draft<K, A, E>, leaving: Leaving<K, A, E>): void => {
  const { hasPlace, holders, opening } = leaving
  d.state.leaving = HashMap.set(d.state.leaving, opening.id, leaving)
  if (holders > 0) return
  if (hasPlace) changePlaces(d, opening.group, (places) => ({ ...places, closing: places.closing + 1 }))
  d.actions.push({ _tag: "Close", leaving })
}

/** Closes what a launch acquired. The launch was cancelled, has failed, or was replaced by `set`: it opens no session. */
export const discard = <K, A, E>(d: Draft<K, A, E>, launch: Launch<K, A, E>): void =>
  leave(d, { opening: launch, reason: undefined, holders: 0, hasPlace: launch.adopts === undefined })

export const forget = <K, A, E>(d: Draft<K, A, E>, failed: Failed<K, A, E>): void => {
  d.removeSlot(failed.launch)
  d.state.failures = Ordered.remove(d.state.failures, failed.ticket)
}

// -----------------------------------------------------------------------------
// Waiters
// -----------------------------------------------------------------------------

/** Adds a launch to the queue. The ticket of a waiter is the id of its launch: ids are given in the order of asking. */
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

/** Takes callers of a launch out of the queue, and the launch too unless others wait for it. */
export const dequeue = <K, A, E>(
  d: Draft<K, A, E>,
  { id, key }: Launch<K, A, E>,
  callers: number,
  others: number
): void => {
  const duration = d.now - (Ordered.get(d.state.waiting, id)?.askedAt ?? d.now)
  d.state.waiters -= callers
  if (others === 0) d.state.waiting = Ordered.remove(d.state.waiting, id)
  // A place that an eviction freed at once took no wait.
  if (duration === 0) return
  d.count("waited", callers)
  d.emit({ _tag: "Waited", key, id, duration, callers })
}

/**
 * Hands every free place to the longest waiter that may use it. A waiter without one counts on a closing place that no earlier waiter
 * counts on. If there is none, or it has counted for as long as `patience`, an idle session is evicted for it.
 *
 * Runs in every step that frees a place, adds a waiter or makes a session idle: after each step, every caller that can be served has
 * been. A waiter that leaves frees nothing, so no step that only removes one needs this.
 */
export const serve = <K, A, E>(d: Draft<K, A, E>): void => {
  if (d.state.waiting.size === 0) return
  // Closing places that no earlier waiter counts on: of the pool, and of each group that is full.
  let unclaimed = d.state.places.closing
  let unclaimedInGroup = HashMap.empty<unknown, number>()
  for (const waiter of Ordered.values(d.state.waiting)) {
    const { launch: { group, id } } = waiter
    // An earlier grant may have put in a connection of `set`, which serves the callers of this launch.
    if (Ordered.get(d.state.waiting, id) === undefined) continue
    const isFree = d.state.places.used < d.options.capacity
    const isFull = isGroupFull(d, group)
    if (isFree && !isFull) {
      grant(d, waiter)
      continue
    }
    const { patience } = d.options
    // Without patience, a waiter counts only on the place of a session that was retired for it.
    const isImpatient = patience === 0 ? !waiter.isPromised : d.now - waiter.since >= patience
    if (isFull) {
      const groupUnclaimed = Option.getOrElse(HashMap.get(unclaimedInGroup, group), () => groupPlaces(d, group).closing)
      // Only a session of its own group can make room.
      const isEvicted = (groupUnclaimed === 0 || isImpatient) && evictFor(d, waiter, group)
      const left = isEvicted ? groupUnclaimed : Math.max(0, groupUnclaimed - 1)
      unclaimedInGroup = HashMap.set(unclaimedInGroup, group, left)
      if (isEvicted || groupUnclaimed === 0) continue
    }
    // A place that comes free in a full group is also one of the pool's. Nothing is evicted, unless an earlier waiter counts on it.
    if (isFree || (unclaimed > 0 && (isFull || !isImpatient))) unclaimed--
    // The pool is full and no session is idle, so all later waiters wait too.
    else if (!evictFor(d, waiter, undefined)) return
  }
}

/** Evicts an idle session for a waiter, which counts on that place from now on. Returns false if no session is idle. */
const evictFor = <K, A, E>(d: Draft<K, A, E>, waiter: Waiter<K, A, E>, group: unknown): boolean => {
  const live = leastRecentlyUsed(d, group)
  if (live === undefined) return false
  const { launch } = waiter
  // Only a waiting `set` has a live session under its key. That session has gone idle, and is replaced.
  const isReplaced = d.slot(launch) === live
  retire(d, live, isReplaced ? "Replaced" : "Evicted")
  const history = isReplaced ? historyOf(live) : waiter.history
  const served = { ...waiter, history, since: d.now, isPromised: true }
  d.state.waiting = Ordered.insert(Ordered.remove(d.state.waiting, launch.id), launch.id, served)
  return true
}

const grant = <K, A, E>(d: Draft<K, A, E>, { history, launch }: Waiter<K, A, E>): void => {
  const { adopts, group } = launch
  const slot = d.slot(launch)
  const callers = adopts === undefined && slot?._tag === "Waiting" ? slot.callers : 1
  dequeue(d, launch, callers, 0)
  takePlace(d, group)
  if (adopts === undefined) startLaunch(d, launch, callers)
  else putAdopted(d, launch, adopts.value, history)
}

/** Runs the lookup of a launch that has its place. */
export const startLaunch = <K, A, E>(d: Draft<K, A, E>, launch: Launch<K, A, E>, callers: number): void => {
  d.setSlot(launch, { _tag: "Launching", launch, callers })
  d.state.launching++
  d.actions.push({ _tag: "Launch", launch })
}

/**
 * Puts a connection of `set`, which has its place, under its key. A live session there is retired. Callers of a launch of the key get
 * this connection. The session takes the launch's id, because their claims name it.
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
      // The session has taken the launch's id, so the launch leaves under the id of the set.
      discard(d, { ...slot.launch, id: launch.id })
    }
    d.complete(slot.launch.done, Exit.succeed(value))
  }
  const session = sessionOf({ ...launch, id }, value, d.now, history?.createdAt ?? d.now)
  d.emit({ _tag: "Adopted", key: session.key, id })
  putOpened(d, session, callers, (history?.requestCount ?? 0) + callers, history?.errorCount ?? 0)
  d.complete(launch.done, Exit.succeed(value))
}

export const historyOf = <K, A>({ errorCount, requestCount, session: { createdAt } }: Live<K, A>): History => ({
  createdAt,
  requestCount,
  errorCount
})

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

/** Puts an open session into its slot; each of `leases` is a caller that waited for it. */
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
