/**
 * The data of a pool: what the one `Ref` holds. Every value here is immutable; `transitions.ts` lists all changes.
 *
 * A key has a slot while something is known of it: `Waiting` (for a place) → `Launching` → `Live`, or `Failed` (a
 * remembered failure). What has left its slot but still holds a place is in `retired` (sessions) or `detached`
 * (launches). The closed pool is data too: its phase is `Closing`, its slots and its queue are empty.
 */
import type { Cause, Deferred, Exit, Scope } from "effect"
import { HashMap, HashSet } from "effect"
import * as Candidates from "./candidates.ts"
import * as Queue from "./queue.ts"

/**
 * Why a session was retired: its time was over (`IdleTimeout`, `MaxLifetime`), it was broken (`Errors`, `Disconnected`,
 * `Invalid`), its place or key was needed (`Evicted`, `Replaced`), or somebody ended it (`Invalidated`, `PoolClosed`).
 *
 * @category models
 * @since 0.1.0
 */
// One more reason goes here and into `closes` of `make` below; the transition that finds it hands it to `retire` (`draft.ts`). Events,
// metrics and counts follow by themselves. Then into the sentence above, README's list of `session_pool_retirements_total` and its
// picture of a session's life, `zeroCloses` of `test/api.test.ts` and the model (`test/kit/model/model.ts`).
export type Reason =
  | "IdleTimeout"
  | "MaxLifetime"
  | "Errors"
  | "Invalidated"
  | "Replaced"
  | "Evicted"
  | "Disconnected"
  | "Invalid"
  | "PoolClosed"

/**
 * What names one session or launch: its identity, and its key with the hash, which takes 0.1 µs for a long string. `hash`
 * is always `Hash.hash(key)`: with another the slot is not found.
 */
export interface Identity<out K> {
  readonly id: number
  readonly key: K
  readonly hash: number
}

/** One run of the lookup, or the wait for the place to run it. Its `id` becomes the id of the session. */
export interface Launch<in out K, in out A, in out E> extends Identity<K> {
  readonly group: unknown
  readonly idleTimeToLive: number
  /** The scope of the session to be: what the lookup acquires is released with it. */
  readonly scope: Scope.Closeable
  /** What all callers of this launch get. */
  readonly done: Deferred.Deferred<A, E>
  /** Completed by the step that takes the launch away from its last caller. */
  readonly cancelled: Deferred.Deferred<void>
}

/** What never changes in a session: its identity and its connection. */
export interface Session<in out K, in out A> extends Identity<K> {
  readonly group: unknown
  readonly value: A
  readonly scope: Scope.Closeable
  /** Of the entry: a session adopted by `set` keeps the time of the one that it replaces. */
  readonly createdAt: number
  readonly openedAt: number
  /** `openedAt` plus the jittered `maxLifetime`. */
  readonly expiresAt: number
  readonly idleTimeToLive: number
}

/** A check of the connection that runs now; everyone who wants the session waits for its result. */
export type Validation = Deferred.Deferred<boolean>

/** Callers wait for a place; `ticket` is their position in the queue. */
export class Waiting<in out K, in out A, in out E> {
  readonly _tag = "Waiting"
  readonly launch: Launch<K, A, E>
  readonly callers: number
  readonly ticket: number
  constructor(launch: Launch<K, A, E>, callers: number, ticket: number) {
    this.launch = launch
    this.callers = callers
    this.ticket = ticket
  }
}

/** The lookup runs; `callers` wait for it, and each becomes a lease when it succeeds. */
export class Launching<in out K, in out A, in out E> {
  readonly _tag = "Launching"
  readonly launch: Launch<K, A, E>
  readonly callers: number
  constructor(launch: Launch<K, A, E>, callers: number) {
    this.launch = launch
    this.callers = callers
  }
}

/** The session is open; idle without leases, active with some. */
export class Live<in out K, in out A> {
  readonly _tag = "Live"
  readonly session: Session<K, A>
  readonly lastUsedAt: number
  readonly requestCount: number
  readonly errorCount: number
  readonly leases: number
  /** When it was last found valid: the launch, then each successful validation. */
  readonly validatedAt: number
  readonly validation: Validation | undefined
  constructor(
    session: Session<K, A>,
    lastUsedAt: number,
    requestCount: number,
    errorCount: number,
    leases: number,
    validatedAt: number,
    validation: Validation | undefined
  ) {
    this.session = session
    this.lastUsedAt = lastUsedAt
    this.requestCount = requestCount
    this.errorCount = errorCount
    this.leases = leases
    this.validatedAt = validatedAt
    this.validation = validation
  }
}

/** A launch failed, and is remembered until `until`. It holds no place. */
export class Failed<out K, out E> {
  readonly _tag = "Failed"
  readonly key: K
  readonly cause: Cause.Cause<E>
  readonly until: number
  constructor(key: K, cause: Cause.Cause<E>, until: number) {
    this.key = key
    this.cause = cause
    this.until = until
  }
}

/** The key that a slot is under. */
export const keyOf = <K, A, E>(slot: Slot<K, A, E>): K =>
  slot._tag === "Live" ? slot.session.key : slot._tag === "Failed" ? slot.key : slot.launch.key

export type Slot<K, A, E> = Waiting<K, A, E> | Launching<K, A, E> | Live<K, A> | Failed<K, E>

/** A session that nobody can get any more. It closes when `leases` is 0. */
export interface Retired<in out K, in out A> {
  readonly session: Session<K, A>
  readonly leases: number
  readonly reason: Reason
  /** Its close lingers: nobody counts on its place any more, which it holds until it is over or `closeTimeout` has passed. */
  readonly lingers: boolean
}

/**
 * A launch that has lost its key. With callers: they still get its session, which is retired from the start
 * (`invalidate` while launching). Without: it was cancelled, failed or timed out, and what it acquired is being closed.
 */
export interface Detached<in out K, in out A, in out E> {
  readonly launch: Launch<K, A, E>
  readonly callers: number
  /** As in `Retired`. */
  readonly lingers: boolean
}

/** An entry of the queue for places: a `Waiting` slot, or (with `granted`) a caller of `set`. */
export interface Waiter<out K> {
  readonly key: K
  readonly group: unknown
  /** Completed with true when the place is theirs, with false when the pool closes. */
  readonly granted: Deferred.Deferred<boolean> | undefined
}

/** A connection that `set` was given. */
export interface Offered<out K> {
  readonly id: number
  readonly key: K
  readonly scope: Scope.Closeable
}

/** A session as it was found idle; one that has been used since has another `lastUsedAt`, or is in use. */
export interface FoundIdle<out K> {
  readonly key: K
  readonly id: number
  readonly lastUsedAt: number
}

/** The places of the pool, or of one group. */
export interface Places<out K> {
  /** Everything that exists and is not closed: launching, live, retired, detached, and places granted to `set`. */
  readonly used: number
  /** Those of `used` that come back by themselves soon, because they are being closed. */
  readonly closing: number
  /** Keys whose session may be idle. Every idle session is in it; one that is not idle is dropped when it is drawn. */
  readonly idle: Candidates.Candidates<K>
  /**
   * The least recently used ones that the last comparison of all found, the oldest first. Whatever was used since was used later
   * than all of them, and what was only validated since is put in again, so the first that is unchanged is the oldest of all.
   */
  readonly oldest: ReadonlyArray<FoundIdle<K>>
}

export const noPlaces: Places<never> = { used: 0, closing: 0, idle: Candidates.empty, oldest: [] }

export interface Totals {
  readonly misses: number
  readonly joins: number
  readonly launches: number
  readonly launchFailures: number
  readonly errors: number
  /** Sessions closed, by the reason of their retirement. */
  readonly closes: Readonly<Record<Reason, number>>
}

export type Phase = { readonly _tag: "Open" } | {
  readonly _tag: "Closing"
  /** Completed when nothing is left. */
  readonly ended: Deferred.Deferred<void>
}

/** What a step wants done after it, in this order. */
export type Action<K, A, E> =
  | { readonly _tag: "Launch"; readonly launch: Launch<K, A, E> }
  | { readonly _tag: "Cancel"; readonly launch: Launch<K, A, E> }
  | { readonly _tag: "Open"; readonly session: Session<K, A>; readonly startedAt: number }
  | { readonly _tag: "Adopt"; readonly session: Session<K, A> }
  | { readonly _tag: "Deliver"; readonly launch: Launch<K, A, E>; readonly value: A }
  | {
    readonly _tag: "TellFailed"
    readonly launch: Launch<K, A, E>
    readonly cause: Cause.Cause<E>
    readonly duration: number
    readonly timedOut: boolean
  }
  | { readonly _tag: "Refuse"; readonly launch: Launch<K, A, E>; readonly cause: Cause.Cause<E> }
  | { readonly _tag: "Grant"; readonly granted: Deferred.Deferred<boolean>; readonly place: boolean }
  | { readonly _tag: "Retire"; readonly session: Session<K, A>; readonly reason: Reason }
  | { readonly _tag: "Close"; readonly session: Session<K, A>; readonly reason: Reason }
  | {
    readonly _tag: "TellClosed"
    readonly session: Session<K, A>
    readonly reason: Reason
    readonly duration: number
    readonly exit: Exit.Exit<void, unknown>
  }
  | { readonly _tag: "Reject"; readonly offered: Offered<K> }
  | { readonly _tag: "End"; readonly ended: Deferred.Deferred<void> }

/** The part of the state that a hit does not change. */
export interface Inventory<in out K, in out A, in out E> {
  readonly phase: Phase
  readonly launching: number
  readonly live: number
  readonly retired: HashMap.HashMap<number, Retired<K, A>>
  readonly detached: HashMap.HashMap<number, Detached<K, A, E>>
  /** The ids of connections that `set` was given before the end began, and that are neither in the pool yet nor closed. */
  readonly offered: HashSet.HashSet<number>
  readonly queue: Queue.Queue<Waiter<K>>
  /** Callers that wait for a place. */
  readonly waiting: number
  readonly places: Places<K>
  readonly groups: HashMap.HashMap<unknown, Places<K>>
  /** State of the generator that draws eviction samples: data, so that a step is a function of its input. */
  readonly seed: number
  readonly totals: Totals
}

export class State<in out K, in out A, in out E> {
  readonly slots: HashMap.HashMap<K, Slot<K, A, E>>
  /** Live sessions with leases. */
  readonly active: number
  readonly hits: number
  readonly inventory: Inventory<K, A, E>
  constructor(
    slots: HashMap.HashMap<K, Slot<K, A, E>>,
    active: number,
    hits: number,
    inventory: Inventory<K, A, E>
  ) {
    this.slots = slots
    this.active = active
    this.hits = hits
    this.inventory = inventory
  }
}

export const make = <K, A, E>(seed: number): State<K, A, E> =>
  new State<K, A, E>(HashMap.empty(), 0, 0, {
    phase: { _tag: "Open" },
    launching: 0,
    live: 0,
    retired: HashMap.empty(),
    detached: HashMap.empty(),
    offered: HashSet.empty(),
    queue: Queue.empty,
    waiting: 0,
    places: noPlaces,
    groups: HashMap.empty(),
    seed,
    totals: {
      misses: 0,
      joins: 0,
      launches: 0,
      launchFailures: 0,
      errors: 0,
      closes: {
        IdleTimeout: 0,
        MaxLifetime: 0,
        Errors: 0,
        Invalidated: 0,
        Replaced: 0,
        Evicted: 0,
        Disconnected: 0,
        Invalid: 0,
        PoolClosed: 0
      }
    }
  })
