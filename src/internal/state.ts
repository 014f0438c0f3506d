/**
 * The data of a pool: one immutable `State` in one `Ref`. The functions in `transitions.ts` and `places.ts` make all changes.
 *
 * A key has at most one slot: `Waiting` (for a place) → `Launching` → `Live`, or `Failed` (a remembered failure). A session or launch
 * that lost its slot stays in `leaving` until it is closed.
 */
import type { Cause, Deferred, Exit, Scope, Tracer } from "effect"
import { HashMap, Option } from "effect"
import type { SessionPoolError } from "./errors.ts"
import type { Resolved } from "./options.ts"
import * as Ordered from "./ordered.ts"

/**
 * Why a session was retired.
 *
 * - It expired: `IdleTimeout`, `MaxLifetime`.
 * - It was broken: `Errors` (`maxErrorCount`), `Disconnected` (`closed`), `Invalid` (`validate`).
 * - Its place was needed (`Evicted`), or `set` put another connection under its key (`Replaced`).
 * - A call of `invalidate` or `invalidateAll`, or the end of the pool: `Invalidated`, `PoolClosed`.
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

/** The identity of one session: its id, its key, and the hash of the key. Hashing 47 characters takes 0.1 µs, so a key is hashed once. */
export interface Identity<out K> {
  readonly id: number
  readonly key: K
  readonly hash: number
}

/** The fields that a launch hands on to its session. */
export interface Opening<out K> extends Identity<K> {
  readonly group: unknown
  /** The scope of the session. Closing it runs the finalizers of the connection. */
  readonly scope: Scope.Closeable
  readonly idleTimeToLive: number
}

/**
 * A session that is not open yet. It is one of three things:
 *
 * - A lookup that runs: in the `Launching` slot of its key. Callers wait on `done`, which completes when the lookup ends.
 * - A lookup that waits for a place: in the `Waiting` slot of its key, and in the queue (`State.waiting`). It starts when it is granted.
 * - An open connection that `set` brought: `adopts` holds it. It runs no lookup and never has a slot. While it waits for a place, it is in
 *   the queue only. `done` completes when it is put in, so that `set` returns.
 *
 * The session gets the launch's `id`. The exception is `putAdopted` in `places.ts`, which may swap two ids.
 */
export interface Launch<in out K, in out A, in out E> extends Opening<K> {
  /** `maxLifetime` of the session, up to 10 % shorter at random. */
  readonly lifetime: number
  /** The result of the launch. All of its callers wait for it. */
  readonly done: Deferred.Deferred<A, E | SessionPoolError>
  /** The open connection that `set` brought; `undefined` for a lookup. */
  readonly adopts: { readonly value: A } | undefined
  /** The span of the caller that started the launch. */
  readonly span: Tracer.AnySpan | undefined
}

/** The fields of an open session that never change. */
export interface Session<in out K, in out A> extends Opening<K> {
  readonly value: A
  /** When the session was opened. A session of `set` keeps the time of the session that it replaces. */
  readonly createdAt: number
  readonly openedAt: number
  readonly expiresAt: number
}

/** A run of `validate` for one session. */
export interface Check {
  readonly isValid: Deferred.Deferred<boolean>
  /** True if `keepAlive` started the check and no caller waits for it. Once one caller waits, every later caller waits too. */
  readonly isBackground: boolean
}

/** The launch waits for a place, and its callers with it. `State.waiting` has the same launch under its id. */
export interface Waiting<in out K, in out A, in out E> {
  readonly _tag: "Waiting"
  readonly launch: Launch<K, A, E>
  readonly callers: number
}

/** The lookup runs. When it succeeds, each of its `callers` gets a lease. */
export interface Launching<in out K, in out A, in out E> {
  readonly _tag: "Launching"
  readonly launch: Launch<K, A, E>
  readonly callers: number
}

/** The session is open. It is idle without leases, and active with leases. */
export interface Live<in out K, in out A> {
  readonly _tag: "Live"
  readonly session: Session<K, A>
  readonly lastUsedAt: number
  readonly requestCount: number
  readonly errorCount: number
  readonly leases: number
  /** When the connection last worked for certain: when it was opened, and at each check that it passed. */
  readonly validatedAt: number
  /** The check that runs now. */
  readonly check: Check | undefined
  /** The ticket of the session among the idle sessions of a bounded pool. 0: it is active, or the pool is unbounded. */
  readonly ticket: number
}

/** The launch failed. Callers get its `cause` until `until`. It takes no place. */
export interface Failed<in out K, in out A, in out E> {
  readonly _tag: "Failed"
  readonly launch: Launch<K, A, E>
  readonly cause: Cause.Cause<E | SessionPoolError>
  readonly until: number
  readonly ticket: number
}

export type Slot<K, A, E> = Waiting<K, A, E> | Launching<K, A, E> | Live<K, A> | Failed<K, A, E>

/** The launch or session of a slot. Compare two openings by `scope`: after `putAdopted`, a session of `set` may have a launch's id. */
export const openingOf = <K, A, E>(slot: Slot<K, A, E>): Opening<K> => slot._tag === "Live" ? slot.session : slot.launch

/**
 * An opening without a slot that is not closed yet: no new caller can find it. It is one of three things:
 *
 * - A retired session: `reason` is set, and `holders` counts its leases. It closes when the last lease ends.
 * - An invalidated launch whose lookup still runs: `reason` is `undefined`, and `holders` counts its callers. They still get the session
 *   that it opens: `land` then sets `reason` to `Invalidated`, and each caller becomes a lease.
 * - A launch that opens no session, because it failed, was cancelled, was replaced by `set`, or is a connection that `set` could not put
 *   in: `reason` is `undefined`, `holders` is 0, and its scope is closing.
 */
export interface Leaving<in out K, in out A, in out E> {
  readonly opening: Session<K, A> | Launch<K, A, E>
  /** `undefined` for a launch. No session was opened, so its close emits no `Closed` event and counts in no total. */
  readonly reason: Reason | undefined
  /** Leases of the session, or callers of the launch. At zero it closes. */
  readonly holders: number
  /** False only for a connection that `set` could not put in, because it never had a place. */
  readonly hasPlace: boolean
}

/**
 * A launch in the queue for a place.
 *
 * A place wakes no caller. Callers wait on `launch.done`, which completes when the lookup ends (`land`), a connection of `set` is put in
 * (`putAdopted`), or the pool ends (`shutdown`). A caller also wakes by itself when its `patience` or `acquireTimeout` has passed
 * (`awaitPlace` in `leasing.ts`).
 */
export interface Waiter<in out K, in out A, in out E> {
  readonly launch: Launch<K, A, E>
  /** For a connection of `set`: what it inherits if the session that it replaces is retired before the connection is put in. */
  readonly history: History | undefined
  /** When the launch entered the queue. */
  readonly askedAt: number
  /** Start of its `patience`: when it entered the queue, or when `serve` last evicted a session for it. */
  readonly since: number
  /** True if a session was retired for this waiter, so that a place becomes free. */
  readonly isPromised: boolean
}

/** What a session of `set` inherits from the session that it replaces. */
export interface History {
  readonly createdAt: number
  readonly requestCount: number
  readonly errorCount: number
}

/** The places of a bounded pool, or of one group. */
export interface Places<in out K, in out A> {
  /** Places taken by launching, live and leaving openings. */
  readonly used: number
  /** Those of `used` whose finalizers run. Each becomes free without an eviction. */
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
  /** Calls that found no session and no launch, and so started a launch or waited for a place. */
  readonly misses: number
  /** Calls that joined the launch of another caller. */
  readonly joins: number
  /** Lookups that opened a session. */
  readonly launches: number
  /** Lookups that failed, died, interrupted themselves or took longer than `lookupTimeout`. Cancelled lookups do not count. */
  readonly launchFailures: number
  /** Errors counted against sessions, by `use` and `recordError`. */
  readonly errors: number
  /** Calls that waited for a place. A call does not count if an eviction made room at once. */
  readonly waited: number
  /** Calls that failed after `acquireTimeout`. */
  readonly timedOut: number
  /** Calls that failed at once, because `maxWaiting` callers were waiting. */
  readonly refused: number
  /** Sessions closed, by the reason of their retirement. */
  readonly closes: Readonly<Record<Reason, number>>
}

export const noTotals: Totals = {
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
  /** By the id of the opening. */
  readonly leaving: HashMap.HashMap<number, Leaving<K, A, E>>
  /** The queue for places, in the order in which the launches asked. */
  readonly waiting: Ordered.Ordered<Waiter<K, A, E>>
  /** Callers that wait for a place. Several callers may wait for one launch. */
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
  /** `undefined` while the pool is open. Completed when the pool has ended and `leaving` is empty. */
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
 * The events of the sessions of a pool, see `events`. Each event has the session's `key` and `id`. Times are in milliseconds.
 *
 * @category models
 * @since 0.1.0
 * @stability unstable
 */
export type Event<K, E> =
  & { readonly key: K; readonly id: number }
  & (
    /** A lookup opened a session. `duration`: how long the lookup ran. */
    | { readonly _tag: "Launched"; readonly duration: number }
    /**
     * A lookup failed, died, interrupted itself or timed out. A lookup that was cancelled, because no caller waited for it any more,
     * emits no event.
     */
    | {
      readonly _tag: "LaunchFailed"
      readonly duration: number
      readonly cause: Cause.Cause<E>
      readonly timedOut: boolean
    }
    /** `callers` callers left the queue for a place after a wait. They were served, timed out, or were interrupted. */
    | { readonly _tag: "Waited"; readonly duration: number; readonly callers: number }
    /** `set` put an open connection into the pool. */
    | { readonly _tag: "Adopted" }
    /** The session was retired. No further caller gets it. It closes when its last lease ends. */
    | { readonly _tag: "Retired"; readonly reason: Reason }
    /** The finalizers ended. `duration`: how long they ran. `exit`: how they ended. */
    | {
      readonly _tag: "Closed"
      readonly reason: Reason
      readonly duration: number
      readonly exit: Exit.Exit<void, unknown>
    }
    /** The finalizers run longer than `closeTimeout`. The session no longer counts against `capacity`. */
    | { readonly _tag: "CloseTimedOut"; readonly duration: number }
    /** A lease is held longer than `leakDetection`. `site`: the span that took it, and the stack of the call. */
    | { readonly _tag: "LeaseLeaked"; readonly duration: number; readonly site: string }
  )

/** An effect that a step decided on. The shell carries out the actions of a step after it, in order. */
export type Action<K, A, E> =
  | { readonly _tag: "Launch"; readonly launch: Launch<K, A, E> }
  /** The session was opened: run `closed`, to notice when its connection dies. */
  | { readonly _tag: "Watch"; readonly session: Session<K, A> }
  /** Run `validate`. */
  | { readonly _tag: "Check"; readonly session: Session<K, A>; readonly check: Check }
  /** Run the finalizers of a retired session, or of a launch that opens none. */
  | { readonly _tag: "Close"; readonly leaving: Leaving<K, A, E> }
  /** Wake the callers that wait for a launch or a check. */
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
 * The working copy of one step: a shallow copy of the state, whose fields the step replaces, and the actions that the step decides on.
 * The original state never changes.
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

  /** The live session with this id. `undefined` if it was retired, also if its key has a newer session. */
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
    // The signature checks that both types match. The action drops the types.
    this.actions.push({ _tag: "Complete", deferred: deferred as Deferred.Deferred<unknown, unknown>, exit })
  }
}

/** `HashMap.set` with a known hash. `HashMap` exports no such function. */
export const setHash = <K, V>(self: HashMap.HashMap<K, V>, key: K, hash: number, value: V): HashMap.HashMap<K, V> =>
  HashMap.modifyHash(self, key, hash, () => Option.some(value))
