/**
 * Broken variants of the pool: for each class of fault that other pools had, one transition, one move of a step or one
 * function of the shell is replaced by what those pools did. The explorer must find every one of them.
 */
import { Clock, Effect, Hash, HashMap, Option, Ref } from "effect"
import type { Scope } from "effect"
import type * as Draft from "../../../src/internal/draft.ts"
import type * as Leasing from "../../../src/internal/leasing.ts"
import type * as Shell from "../../../src/internal/pool.ts"
import * as Queue from "../../../src/internal/queue.ts"
import type { Inventory, Session, Slot } from "../../../src/internal/state.ts"
import { Launching, Live, State, Waiting } from "../../../src/internal/state.ts"
import type * as Sweeping from "../../../src/internal/sweeping.ts"
import type * as Transitions from "../../../src/internal/transitions.ts"

/** The real modules whose functions can be replaced. */
export interface Modules {
  readonly draft: typeof Draft
  readonly transitions: typeof Transitions
  readonly pool: typeof Shell
  readonly leasing: typeof Leasing
  readonly sweeping: typeof Sweeping
}

type Replacements = { readonly [M in keyof Modules]?: Partial<Modules[M]> }

export interface Variant {
  /** What the pool does wrong. */
  readonly name: string
  readonly replace: (real: Modules) => Replacements
}

const slotOf = <K, A, E>(state: State<K, A, E>, key: K): Slot<K, A, E> | undefined =>
  Option.getOrUndefined(HashMap.get(state.slots, key))

const withSlots = <K, A, E>(state: State<K, A, E>, slots: State<K, A, E>["slots"]) =>
  new State(slots, state.active, state.hits, state.inventory)

const withInventory = <K, A, E>(state: State<K, A, E>, change: Partial<Inventory<K, A, E>>) =>
  new State(state.slots, state.active, state.hits, { ...state.inventory, ...change })

const withLeases = <K, A>(live: Live<K, A>, leases: number, lastUsedAt = live.lastUsedAt) =>
  new Live(
    live.session,
    lastUsedAt,
    live.requestCount,
    live.errorCount,
    leases,
    live.validatedAt,
    live.validation
  )

/** Runs a move of a step while part of the queue is out of sight. */
const hidingQueue = <K, A, E>(d: Draft.Draft<K, A, E>, move: () => void): void => {
  const { queue } = d.inventory
  d.own.queue = Queue.empty
  move()
  d.own.queue = queue
}

export const variants: ReadonlyArray<Variant> = [
  {
    name: "lookup and touch are two steps: a delete between them is undone",
    replace: ({ leasing, pool, transitions }) => ({
      leasing: {
        get: (self, key) =>
          Effect.uninterruptible(Effect.flatMap(Ref.get(self.state), (seen) => {
            const slot = slotOf(seen, key)
            if (slot?._tag !== "Live" || slot.validation !== undefined) return leasing.get(self, key)
            const leased = withLeases(slot, slot.leases + 1)
            const active = slot.leases === 0 ? 1 : 0
            return Effect.as(
              Effect.andThen(
                Ref.update(self.state, (state) =>
                  new State(
                    HashMap.set(state.slots, key, leased),
                    state.active + active,
                    state.hits,
                    state.inventory
                  )),
                Effect.addFinalizer(() => releaseOf(pool, transitions, self, slot.session))
              ),
              slot.session.value
            )
          }))
      }
    })
  },
  {
    name: "the time is read before the step: a touch sets the last use back",
    replace: ({ pool }) => ({
      pool: {
        hit: (self, f) =>
          Effect.flatMap(Clock.currentTimeMillis, (early) => pool.hit(self, (state) => f(state, early))),
        step: (self, f) =>
          Effect.flatMap(Clock.currentTimeMillis, (early) => pool.step(self, (state) => f(state, early)))
      }
    })
  },
  {
    name: "a lease is counted before its release is registered",
    replace: ({ leasing, pool, transitions }) => ({
      leasing: {
        get: <K, A, E>(self: Shell.Pool<K, A, E>, key: K): Effect.Effect<A, E, Scope.Scope> =>
          Effect.flatMap(
            pool.hit(self, (state, now) => transitions.lease(state, self.options, key, Hash.hash(key), now)),
            (session) =>
              session === undefined ? leasing.get(self, key) : Effect.as(
                Effect.addFinalizer(() => releaseOf(pool, transitions, self, session)),
                session.value
              )
          )
      }
    })
  },
  {
    name: "what a step decided is lost when its caller is interrupted",
    replace: ({ pool }) => ({
      pool: {
        step: (self, f) =>
          Effect.interruptible(Effect.flatMap(Clock.Clock, (clock) =>
            Effect.map(
              Ref.modify(self.state, (state) => f(state, clock.currentTimeMillisUnsafe())),
              (outcome) => pool.perform(self, outcome)
            )))
      }
    })
  },
  {
    name: "a touch is not counted",
    replace: ({ transitions }) => ({
      transitions: { touch: (state, key, now) => [transitions.touch(state, key, now)[0], state] }
    })
  },
  {
    name: "a release finds its session by key instead of identity",
    replace: ({ transitions }) => ({
      transitions: {
        release: (state, limits, lease, now, how) => {
          const slot = slotOf(state, lease.key)
          return transitions.release(state, limits, slot?._tag === "Live" ? slot.session : lease, now, how)
        }
      }
    })
  },
  {
    name: "the last use is set when a request starts, and not when it ends",
    replace: ({ transitions }) => ({
      transitions: {
        release: (state, limits, lease, now, how) => {
          const { id, key } = lease
          const [outcome, next] = transitions.release(state, limits, lease, now, how)
          const [was, is] = [slotOf(state, key), slotOf(next, key)]
          return was?._tag !== "Live" || is?._tag !== "Live" || is.session.id !== id
            ? [outcome, next]
            : [outcome, withSlots(next, HashMap.set(next.slots, key, withLeases(is, is.leases, was.lastUsedAt)))]
        }
      }
    })
  },
  {
    name: "the longest life of a session is never read",
    replace: ({ transitions }) => ({
      transitions: {
        landed: (state, limits, launch, value, startedAt, now) =>
          transitions.landed(state, limits, launch, value, startedAt, now, Infinity)
      }
    })
  },
  {
    name: "a connection that has died stays",
    replace: () => ({
      transitions: { disconnected: (state) => [{ result: false, actions: [] }, state] }
    })
  },
  {
    name: "the cleanup stops for ever",
    replace: () => ({ sweeping: { cleanup: () => Effect.never } })
  },
  {
    name: "a set that is interrupted as it gets its place keeps it",
    replace: ({ transitions }) => ({
      transitions: {
        returnGrant: (state, limits, ticket, group) =>
          HashMap.has(state.inventory.queue.entries, ticket)
            ? transitions.returnGrant(state, limits, ticket, group)
            : [{ result: { scope: "pool", limit: 1, waiting: 0 }, actions: [] }, state]
      }
    })
  },
  {
    name: "a timer outlives the end",
    replace: ({ pool, sweeping }) => ({
      sweeping: {
        end: (self) => Effect.andThen(sweeping.end(self), Effect.sync(() => pool.fork(self, Effect.sleep(30_000))))
      }
    })
  },
  {
    name: "a place that comes free wakes nobody",
    replace: ({ draft }) => ({
      draft: { endClosing: (d, group, lingers) => hidingQueue(d, () => draft.endClosing(d, group, lingers)) }
    })
  },
  {
    name: "a session that becomes idle makes no room for those who wait",
    replace: ({ draft }) => ({
      draft: { becomeIdle: (d, key, group) => hidingQueue(d, () => draft.becomeIdle(d, key, group)) }
    })
  },
  {
    name: "a caller that comes to a full pool evicts nobody",
    replace: () => ({ draft: { serve: () => undefined } })
  },
  {
    name: "the newest waiter is served first",
    replace: ({ draft }) => ({
      draft: {
        endClosing: (d, group, lingers) => {
          const { queue } = d.inventory
          const newest = [...Queue.entries(queue)].at(-1)
          if (newest === undefined) return draft.endClosing(d, group, lingers)
          for (const [ticket] of Queue.entries(queue)) {
            if (ticket !== newest[0]) d.own.queue = Queue.remove(d.inventory.queue, ticket)
          }
          draft.endClosing(d, group, lingers)
          d.own.queue = Queue.size(d.inventory.queue) === 0 ? Queue.remove(queue, newest[0]) : queue
        }
      }
    })
  },
  {
    name: "a waiter is given a session after its interrupt",
    replace: ({ transitions }) => ({
      transitions: {
        abandon: (state, limits, key, id, now) =>
          slotOf(state, key)?._tag === "Waiting"
            ? [{ result: undefined, actions: [] }, state]
            : transitions.abandon(state, limits, key, id, now)
      }
    })
  },
  {
    name: "the first caller's interrupt ends the launch that others wait for",
    replace: ({ transitions }) => ({
      transitions: {
        abandon: (state, limits, key, id, now) => {
          const slot = slotOf(state, key)
          const [{ actions, result }, next] = transitions.abandon(state, limits, key, id, now)
          const launch = slot?._tag === "Launching" && slot.launch.id === id ? slot.launch : undefined
          return [{ result, actions: launch === undefined ? actions : [...actions, { _tag: "Cancel", launch }] }, next]
        }
      }
    })
  },
  {
    name: "a launch goes on that nobody wants",
    replace: ({ transitions }) => ({
      transitions: {
        abandon: (state, limits, key, id, now) => {
          const slot = slotOf(state, key)
          return slot?._tag === "Launching" && slot.launch.id === id
            ? [
              { result: undefined, actions: [] },
              withSlots(state, HashMap.set(state.slots, key, new Launching(slot.launch, slot.callers - 1)))
            ]
            : transitions.abandon(state, limits, key, id, now)
        }
      }
    })
  },
  {
    name: "two launches run for one key",
    replace: ({ transitions }) => ({
      transitions: {
        acquire: (state, limits, now, launch, validation) => {
          const { launching } = state.inventory
          const joins = slotOf(state, launch.key)?._tag === "Launching"
          return transitions.acquire(
            joins
              ? withInventory(withSlots(state, HashMap.remove(state.slots, launch.key)), { launching: launching - 1 })
              : state,
            limits,
            now,
            launch,
            validation
          )
        }
      }
    })
  },
  {
    name: "only the first of those who wait for a launch is counted as a lease",
    replace: ({ transitions }) => ({
      transitions: {
        landed: (state, limits, launch, value, startedAt, now, expiresAt) => {
          const slot = slotOf(state, launch.key)
          const counted = slot?._tag === "Launching" && slot.launch === launch
            ? withSlots(state, HashMap.set(state.slots, launch.key, new Launching(launch, 1)))
            : state
          return transitions.landed(counted, limits, launch, value, startedAt, now, expiresAt)
        }
      }
    })
  },
  {
    name: "what arrives late is kept by nobody",
    replace: ({ transitions }) => ({
      transitions: {
        landed: (state, limits, launch, value, startedAt, now, expiresAt) => {
          const step = transitions.landed(state, limits, launch, value, startedAt, now, expiresAt)
          const { group, id, idleTimeToLive, key, scope } = launch
          const session = {
            id,
            key,
            hash: launch.hash,
            group,
            value,
            scope,
            createdAt: now,
            openedAt: now,
            expiresAt,
            idleTimeToLive
          }
          return step[0].result === undefined ? [{ result: session, actions: [] }, state] : step
        }
      }
    })
  },
  {
    name: "the counter of launches drifts",
    replace: ({ transitions }) => ({
      transitions: {
        launchFailed: (state, limits, launch, failure, remember, now) => {
          const [outcome, next] = transitions.launchFailed(state, limits, launch, failure, remember, now)
          return [outcome, withInventory(next, { launching: state.inventory.launching })]
        }
      }
    })
  },
  {
    name: "a failed launch keeps its key",
    replace: ({ transitions }) => ({
      transitions: {
        launchFailed: (state, limits, launch, failure, remember, now) => {
          const [outcome, next] = transitions.launchFailed(state, limits, launch, failure, remember, now)
          return [outcome, withSlots(next, state.slots)]
        }
      }
    })
  },
  {
    name: "a failed launch keeps its place",
    replace: () => ({
      transitions: { launchClosed: (state) => [{ result: undefined, actions: [] }, state] }
    })
  },
  {
    name: "a retired session closes before its last release",
    replace: ({ draft }) => ({
      draft: { retire: (d, live, reason) => draft.retire(d, live, reason, 0) }
    })
  },
  {
    name: "set drops the session that it replaces, unclosed",
    replace: ({ transitions }) => ({
      transitions: {
        adopt: (state, limits, session, place, entry) => {
          const slot = slotOf(state, session.key)
          if (slot?._tag !== "Live") return transitions.adopt(state, limits, session, place, entry)
          const { live } = state.inventory
          const dropped = new State(
            HashMap.remove(state.slots, session.key),
            slot.leases > 0 ? state.active - 1 : state.active,
            state.hits,
            { ...state.inventory, live: live - 1 }
          )
          return transitions.adopt(dropped, limits, session, place, entry)
        }
      }
    })
  },
  {
    name: "the sweep does not look again at what it found",
    replace: ({ transitions }) => ({
      transitions: {
        expire: (state, limits, key, now) => {
          const slot = slotOf(state, key)
          if (slot?._tag !== "Live" || slot.leases === 0) return transitions.expire(state, limits, key, now)
          const idle = withSlots(state, HashMap.set(state.slots, key, withLeases(slot, 0)))
          return transitions.expire(
            new State(idle.slots, state.active - 1, state.hits, state.inventory),
            limits,
            key,
            now
          )
        }
      }
    })
  },
  {
    name: "the limit counts what is in use, idle sessions come on top",
    replace: () => ({
      draft: { hasRoom: (d) => d.active + d.inventory.launching < d.limits.capacity }
    })
  },
  {
    name: "a close that is over frees no place",
    replace: ({ transitions }) => ({
      transitions: {
        closed: (state, limits, close) => {
          const [outcome, next] = transitions.closed(state, limits, close)
          const { closing, used } = state.inventory.places
          const places = { ...next.inventory.places, closing: closing - 1, used }
          return [
            outcome,
            HashMap.has(state.inventory.retired, close.session.id) ? withInventory(next, { places }) : next
          ]
        }
      }
    })
  },
  {
    name: "the end forgets those who wait",
    replace: ({ transitions }) => ({
      transitions: {
        shutdown: (state, limits, refusal, phase) => {
          const [{ actions, result }, next] = transitions.shutdown(state, limits, refusal, phase)
          return [{ result, actions: actions.filter(({ _tag }) => _tag !== "Refuse" && _tag !== "Grant") }, next]
        }
      }
    })
  },
  {
    name: "a release after the end closes once more",
    replace: ({ transitions }) => ({
      transitions: { forceClose: (state, limits) => [transitions.forceClose(state, limits)[0], state] }
    })
  },
  {
    name: "a caller that gives up waiting is still counted",
    replace: ({ transitions }) => ({
      transitions: {
        giveUp: (state, limits, key, id) => {
          const slot = slotOf(state, key)
          if (slot?._tag !== "Waiting" || slot.callers < 2) return transitions.giveUp(state, limits, key, id)
          const [outcome, next] = transitions.giveUp(state, limits, key, id)
          const { callers, launch, ticket } = slot
          return [outcome, withSlots(next, HashMap.set(next.slots, key, new Waiting(launch, callers, ticket)))]
        }
      }
    })
  }
]

const releaseOf = <K, A, E>(
  pool: typeof Shell,
  transitions: typeof Transitions,
  self: Shell.Pool<K, A, E>,
  session: Session<K, A>
) => pool.step(self, (state, now) => transitions.release(state, self.options, session, now, "neither"))
