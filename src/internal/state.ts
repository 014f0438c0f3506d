/**
 * The data of a pool, which its one `Ref` holds. Every value is immutable; `transitions.ts` and `places.ts` have all changes.
 *
 * The slot of a key is `Waiting` (for a place) → `Launching` → `Live`, or `Failed` (a remembered failure). A session or launch that has
 * lost its slot and is not closed yet is in `leaving`.
 */
import type { Cause, Deferred, Exit, Scope, Tracer } from "effect"
import { HashMap, Option } from "effect"
import type { SessionPoolError } from "./errors.ts"
import type { Resolved } from "./options.ts"
import * as Ordered from "./ordered.ts"

/**
 * Why a session was retired: its time was over (`IdleTimeout`, `MaxLifetime`), it was broken (`Errors`, `Disconnected`, `Invalid`),
 * its place or key was needed (`Evicted`, `Replaced`), or someone ended it (`Invalidated`, `PoolClosed`).
 *
 * @category models
 * @since 0.1.0
 * @stability unstable
 */
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

/** What names one session: the id, and the key with its hash. Hashing a key of 47 characters takes 0.1 µs, so it is done once. */
export interface Identity<out K> {
  readonly id: number
  readonly key: K
  readonly hash: number
}

/** The fields that a launch and its session share. */
export interface Opening<out K> extends Identity<K> {
  readonly group: unknown
  /** Closing it releases what the lookup acquired. */
  readonly scope: Scope.Closeable
  readonly idleTimeToLive: number
}

/** One run of the lookup, the wait for its place, or a connection of `set`. Its `id` becomes the id of the session. */
export interface Launch<in out K, in out A, in out E> extends Opening<K> {
  /** `maxLifetime` of the session, with jitter. */
  readonly lifetime: number
  /** The result that all callers of this launch wait for. */
  readonly done: Deferred.Deferred<A, E | SessionPoolError>
  /** The open connection that `set` brought: such a launch runs no lookup. */
  readonly adopts: { readonly value: A } | undefined
  /** The span of the caller that caused the launch. */
  readonly span: Tracer.AnySpan | undefined
}

/** What never changes in a session. */
export interface Session<in out K, in out A> extends Opening<K> {
  readonly value: A
  /** A session that `set` puts in keeps the time of the one that it replaces. */
  readonly createdAt: number
  readonly openedAt: number
  readonly expiresAt: number
}

/** A check of the connection that runs now. */
export interface Check {
  readonly isValid: Deferred.Deferred<boolean>
  /** False once a caller waits for the check: then every later caller waits for it too. */
  readonly isBackground: boolean
}

/** Callers wait for a place. `State.waiting` holds the same launch, under its id. */
export interface Waiting<in out K, in out A, in out E> {
  readonly _tag: "Waiting"
  readonly launch: Launch<K, A, E>
  readonly callers: number
}

/** The lookup runs. Each of the `callers` that wait for it becomes a lease when it succeeds. */
export interface Launching<in out K, in out A, in out E> {
  readonly _tag: "Launching"
  readonly launch: Launch<K, A, E>
  readonly callers: number
}

/** The session is open: idle without leases, active with some. */
export interface Live<in out K, in out A> {
  readonly _tag: "Live"
  readonly session: Session<K, A>
  readonly lastUsedAt: number
  readonly requestCount: number
  readonly errorCount: number
  readonly leases: number
  /** When the connection was last known to work: at its launch, then at each check that it passed. */
  readonly validatedAt: number
  readonly check: Check | undefined
  /** Its ticket among the idle sessions of a bounded pool; 0: none. */
  readonly ticket: number
}

/** A launch failed, and is remembered until `until`. It takes no place. */
export interface Failed<in out K, in out A, in out E> {
  readonly _tag: "Failed"
  readonly launch: Launch<K, A, E>
  readonly cause: Cause.Cause<E | SessionPoolError>
  readonly until: number
  readonly ticket: number
}

export type Slot<K, A, E> = Waiting<K, A, E> | Launching<K, A, E> | Live<K, A> | Failed<K, A, E>

/** The launch or session of a slot. Compare openings by `scope`, because a session of `set` may take over the id of a launch. */
export const openingOf = <K, A, E>(slot: Slot<K, A, E>): Opening<K> => slot._tag === "Live" ? slot.session : slot.launch

/**
 * An opening that lost its slot and is not closed yet: a retired session (with a `reason`), or a launch (without). A launch with
 * `holders` was invalidated, and its callers still get its session. A launch without holders is cancelled or failed.
 */
export interface Leaving<in out K, in out A, in out E> {
  readonly opening: Session<K, A> | Launch<K, A, E>
  readonly reason: Reason | undefined
  /** Leases, or callers of the launch. It closes when none is left. */
  readonly holders: number
  /** False for a connection that `set` could not put in: it never had a place. */
  readonly hasPlace: boolean
}

/** A launch in the queue for a place. Its callers wait on `launch.done`, which completes when it lands, not when it gets its place. */
export interface Waiter<in out K, in out A, in out E> {
  readonly launch: Launch<K, A, E>
  /** Inherited by a connection of `set` if the session that it replaces is gone before it is put in. */
  readonly history: History | undefined
  readonly askedAt: number
  /** Since when it may count on closing places: since it asked, or since a session was evicted for it. */
  readonly since: number
  /** A session was retired for it: its place is on its way. */
  readonly isPromised: boolean
}

/** The time and counts that `set` carries over from the session that it replaces. */
export interface History {
  readonly createdAt: number
  readonly requestCount: number
  readonly errorCount: number
}

/** The places of a bounded pool, or of one group. */
export interface Places<in out K, in out A> {
  /** Everything that exists and is not closed: launching, live and leaving. */
  readonly used: number
  /** Those of `used` whose finalizers run: each comes free without an eviction. */
  readonly closing: number
  /** The idle sessions, the least recently used one first. */
  readonly idle: Ordered.Ordered<Session<K, A>>
}

export const noPlaces = <K, A>(): Places<K, A> => ({ used: 0, closing: 0, idle: Ordered.empty })

/**
 * Counts since the pool was made.
 *
 * @category models
 * @since 0.1.0
 * @stability unstable
 */
export interface Totals {
  /** Calls that found no session, and launched or waited for a place. */
  readonly misses: number
  /** Callers that joined the launch of another. */
  readonly joins: number
  /** Lookups that opened a session. */
  readonly launches: number
  /** Lookups that failed, died, interrupted themselves or took longer than `lookupTimeout`; not those that were cancelled. */
  readonly launchFailures: number
  /** Errors counted against sessions, by `use` and `recordError`. */
  readonly errors: number
  /** Acquisitions that waited for a place. One that an eviction makes room for at once does not wait. */
  readonly waited: number
  /** Acquisitions that failed after `acquireTimeout`. */
  readonly timedOut: number
  /** Acquisitions that failed at once, because `maxWaiting` callers were waiting. */
  readonly refused: number
  /** Sessions closed, by the reason of their retirement. */
  readonly closes: Readonly<Record<Reason, number>>
}

const noTotals: Totals = {
  misses: 0,
  joins: 0,
  launches: 0,
  launchFailures: 0,
  errors: 0,
  waited: 0,
  timedOut: 0,
  refused: 0,
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

export interface State<in out K, in out A, in out E> {
  readonly slots: HashMap.HashMap<K, Slot<K, A, E>>
  readonly leaving: HashMap.HashMap<number, Leaving<K, A, E>>
  readonly waiting: Ordered.Ordered<Waiter<K, A, E>>
  /** Callers that wait for a place: several may wait for one launch. */
  readonly waiters: number
  readonly places: Places<K, A>
  readonly groups: HashMap.HashMap<unknown, Places<K, A>>
  /** Remembered failures in the order in which they expire. */
  readonly failures: Ordered.Ordered<Failed<K, A, E>>
  /** The last ticket given to an idle session or a failure. Waiters use the ids of their launches. */
  readonly ticket: number
  readonly launching: number
  readonly live: number
  /** Live sessions with leases. */
  readonly active: number
  /** Leases held now, those of retired sessions included. */
  readonly leases: number
  readonly hits: number
  readonly totals: Totals
  /** Set when the pool ends; completed when nothing is left. */
  readonly ending: Deferred.Deferred<void> | undefined
}

export const make = <K, A, E>(): State<K, A, E> => ({
  slots: HashMap.empty(),
  leaving: HashMap.empty(),
  waiting: Ordered.empty,
  waiters: 0,
  places: noPlaces(),
  groups: HashMap.empty(),
  failures: Ordered.empty,
  ticket: 0,
  launching: 0,
  live: 0,
  active: 0,
  leases: 0,
  hits: 0,
  totals: noTotals,
  ending: undefined
})

/**
 * What happens to the sessions of a pool, for `events`. Each event has the session's `key` and `id`; times are in milliseconds.
 *
 * @category models
 * @since 0.1.0
 * @stability unstable
 */
export type Event<K, E> =
  & { readonly key: K; readonly id: number }
  & (
    /** A lookup has opened a session; `duration`: how long it took. */
    | { readonly _tag: "Launched"; readonly duration: number }
    /** A lookup has failed, died, interrupted itself or timed out. A cancelled one, for which no caller waits any more, is not reported. */
    | {
      readonly _tag: "LaunchFailed"
      readonly duration: number
      readonly cause: Cause.Cause<E>
      readonly timedOut: boolean
    }
    /** So many callers have left the queue for a place after a wait: they were served, timed out, or were interrupted. */
    | { readonly _tag: "Waited"; readonly duration: number; readonly callers: number }
    /** `set` has put an open connection into the pool. */
    | { readonly _tag: "Adopted" }
    /** The session left the pool: no caller gets it any more. It closes when its last lease ends. */
    | { readonly _tag: "Retired"; readonly reason: Reason }
    /** The finalizers have run; `duration`: how long they took; `exit`: how they ended. */
    | {
      readonly _tag: "Closed"
      readonly reason: Reason
      readonly duration: number
      readonly exit: Exit.Exit<void, unknown>
    }
    /** The finalizers run longer than `closeTimeout`, and no longer count against `capacity`. */
    | { readonly _tag: "CloseTimedOut"; readonly duration: number }
    /** A lease is held longer than `leakDetection`; `site`: the span that took it, and the stack that asked for it. */
    | { readonly _tag: "LeaseLeaked"; readonly duration: number; readonly site: string }
  )

/** What a step wants done after it, in this order. */
export type Action<K, A, E> =
  | { readonly _tag: "Launch"; readonly launch: Launch<K, A, E> }
  /** The session is open: watch for the death of its connection. */
  | { readonly _tag: "Watch"; readonly session: Session<K, A> }
  | { readonly _tag: "Check"; readonly session: Session<K, A>; readonly check: Check }
  | { readonly _tag: "Close"; readonly leaving: Leaving<K, A, E> }
  | {
    readonly _tag: "Complete"
    readonly deferred: Deferred.Deferred<unknown, unknown>
    readonly exit: Exit.Exit<unknown, unknown>
  }
  | { readonly _tag: "Emit"; readonly event: Event<K, E | SessionPoolError> }

// -----------------------------------------------------------------------------
// Steps
// -----------------------------------------------------------------------------

type Mutable<T> = { -readonly [P in keyof T]: T[P] }

/**
 * What one step works on: a copy of the state whose fields it replaces, and the actions that it decides. The state that the copy was
 * made of never changes.
 */
export class Draft<in out K, in out A, in out E> {
  readonly state: Mutable<State<K, A, E>>
  readonly actions: Array<Action<K, A, E>> = []
  readonly options: Resolved<K, A>
  readonly now: number

  constructor(state: State<K, A, E>, options: Resolved<K, A>, now: number) {
    this.state = { ...state }
    this.options = options
    this.now = now
  }

  slot({ hash, key }: { readonly key: K; readonly hash: number }): Slot<K, A, E> | undefined {
    return Option.getOrUndefined(HashMap.getHash(this.state.slots, key, hash))
  }

  /** The session with this id, if it is live; its key may have another by now. */
  live(identity: Identity<K>): Live<K, A> | undefined {
    const slot = this.slot(identity)
    return slot?._tag === "Live" && slot.session.id === identity.id ? slot : undefined
  }

  setSlot({ hash, key }: Identity<K>, slot: Slot<K, A, E>): void {
    this.state.slots = setHash(this.state.slots, key, hash, slot)
  }

  removeSlot({ key }: Identity<K>): void {
    this.state.slots = HashMap.remove(this.state.slots, key)
  }

  count(total: Exclude<keyof Totals, "closes">, times = 1): void {
    this.state.totals = { ...this.state.totals, [total]: this.state.totals[total] + times }
  }

  emit(event: Event<K, E | SessionPoolError>): void {
    this.actions.push({ _tag: "Emit", event })
  }

  complete<B, F>(deferred: Deferred.Deferred<B, F>, exit: Exit.Exit<B, F>): void {
    // The types above fit each other; the action forgets them.
    this.actions.push({ _tag: "Complete", deferred: deferred as Deferred.Deferred<unknown, unknown>, exit })
  }
}

/** `HashMap.set` with the hash, which `HashMap` does not export. */
export const setHash = <K, V>(self: HashMap.HashMap<K, V>, key: K, hash: number, value: V): HashMap.HashMap<K, V> =>
  HashMap.modifyHash(self, key, hash, () => Option.some(value))
