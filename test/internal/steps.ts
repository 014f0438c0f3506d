/**
 * Runs the steps of the core with plain values, without a pool. After each step, `assertCounted` compares every counter of the state
 * with what the state holds.
 *
 * The group of a key is its first letter. A key that begins with `-` has no group.
 */
import { assert } from "@effect/vitest"
import { Cause, Deferred, Effect, Exit, Hash, HashMap, Option, Scope } from "effect"
import { SessionPoolError } from "../../src/internal/errors.ts"
import type { Options } from "../../src/internal/options.ts"
import { resolveUnsafe } from "../../src/internal/options.ts"
import * as Ordered from "../../src/internal/ordered.ts"
import type { Shortage } from "../../src/internal/places.ts"
import type * as State from "../../src/internal/state.ts"
import { Draft, make, openingOf } from "../../src/internal/state.ts"
import * as Transitions from "../../src/internal/transitions.ts"

type S = State.State<string, string, string>
type D = Draft<string, string, string>
export type Slot = State.Slot<string, string, string>
type Launch = State.Launch<string, string, string>
type Leaving = State.Leaving<string, string, string>
type Live = State.Live<string, string>
export type Action = State.Action<string, string, string>
export type Given = Partial<Options<string, string, string, Scope.Scope>>

const defaults = {
  lookup: Effect.succeed<string>,
  groupBy: (key: string) => key.startsWith("-") ? undefined : key.slice(0, 1),
  idleTimeToLive: 100
}

export const newCheck = (isBackground = false): State.Check => ({ isValid: Deferred.makeUnsafe(), isBackground })

/** Carries a state through steps, and keeps the actions of the last one. Launches and sessions are named by their ids: 1, 2, … */
export class Steps {
  state: S = make()
  actions: ReadonlyArray<Action> = []
  now = 0
  /** Whether each step ends with `assertCounted`. Turn it off for thousands of steps. */
  recounts = true
  readonly launches: Array<Launch> = []
  /** The sessions and launches that a step has begun to close, by id. */
  readonly closes = new Map<number, Leaving>()
  readonly options: D["options"]

  constructor(given: Given = {}) {
    this.options = resolveUnsafe<string, string, string, Scope.Scope, never>({ ...defaults, ...given })
  }

  step<R>(change: (d: D) => R): R {
    const d = new Draft<string, string, string>(Object.freeze(this.state), this.options, this.now)
    const result = change(d)
    this.goOn(d.state, d.actions)
    return result
  }

  goOn(state: S, actions: ReadonlyArray<Action>): void {
    this.state = state
    this.actions = actions
    for (const action of actions) {
      if (action._tag === "Close") this.closes.set(action.leaving.opening.id, action.leaving)
    }
    if (this.recounts) assertCounted(this.options, state)
  }

  newLaunch(key: string, adopts?: Launch["adopts"], lifetime = Infinity): Launch {
    const launch: Launch = {
      id: this.launches.length + 1,
      key,
      hash: Hash.hash(key),
      group: this.options.groupBy(key),
      scope: Scope.makeUnsafe(),
      idleTimeToLive: this.options.idleTimeToLive(key),
      lifetime,
      done: Deferred.makeUnsafe(),
      adopts,
      span: undefined
    }
    this.launches.push(launch)
    return launch
  }

  /** The launch or adoption with this id. */
  of(id: number): Launch {
    return this.launches[id - 1] ?? assert.fail(`there is no launch ${id}`)
  }

  at(now: number): this {
    this.now = now
    return this
  }

  /** Acquires as a caller does. With `null` for `launch` it never launches, with `null` for `check` it trusts the session. */
  ask(key: string, launch: Launch | null = this.newLaunch(key), check: State.Check | null = newCheck()) {
    const identity = { key, hash: Hash.hash(key) }
    return this.step((d) => Transitions.acquire(d, identity, launch ?? undefined, check ?? undefined))
  }

  /** Runs a step about the launch or session with this id. */
  on<R, Args extends Array<unknown>>(id: number, change: (d: D, launch: Launch, ...args: Args) => R, ...args: Args): R {
    return this.step((d) => change(d, this.of(id), ...args))
  }

  land(id: number, exit: Exit.Exit<string, string> = Exit.succeed(`value ${id}`)): void {
    this.on(id, Transitions.land, exit, 5, false)
  }

  release(id: number, how: Transitions.Outcome = "neither"): void {
    this.on(id, Transitions.release, how)
  }

  /** Opens a session for each key, leased by one caller. */
  open(...keys: ReadonlyArray<string>): this {
    for (const key of keys) {
      this.ask(key)
      this.land(this.launches.length)
    }
    return this
  }

  /** Opens a session for each key, and releases it. */
  idle(...keys: ReadonlyArray<string>): this {
    for (const key of keys) this.open(key).release(this.launches.length)
    return this
  }

  /** Launches, and fails. */
  fail(key: string): void {
    this.ask(key)
    this.land(this.launches.length, Exit.fail("refused"))
  }

  /** Adopts an open connection, as `set` does. */
  set(key: string): Shortage | undefined {
    const launch = this.newLaunch(key, { value: "adopted" })
    return this.step((d) => Transitions.adopt(d, launch, "adopted"))
  }

  hit(key: string, lease: 0 | 1) {
    const [session, state] = Transitions.hit(Object.freeze(this.state), this.options, key, this.now, lease)
    this.goOn(state, [])
    return session
  }

  invalidate(id: number): boolean {
    return this.on(id, Transitions.invalidate, () => true)
  }

  /** Ends a close, or lets it time out. */
  closed(id: number, timesOut = false): void {
    const leaving = this.closes.get(id) ?? assert.fail(`${id} is not closing`)
    this.step((d) => Transitions.closed(d, leaving, 7, timesOut ? undefined : Exit.void))
  }

  end(): void {
    this.step((d) => Transitions.shutdown(d, Deferred.makeUnsafe()))
  }

  slot(key: string): Slot | undefined {
    return Option.getOrUndefined(HashMap.get(this.state.slots, key))
  }

  live(key: string): Live {
    const slot = this.slot(key)
    return slot?._tag === "Live" ? slot : assert.fail(`${key} is not live`)
  }

  /** Runs a step, and compares its actions. */
  tells<R>(change: () => R, ...told: ReadonlyArray<string>): R {
    const result = change()
    assert.deepStrictEqual(this.actions.map(describe), told)
    return result
  }
}

const outcome = (exit: Exit.Exit<unknown, unknown>): string => {
  if (Exit.isSuccess(exit)) return String(exit.value)
  const error = Cause.squash(exit.cause)
  return error instanceof SessionPoolError ? error.reason._tag : String(error)
}

export const describe = (action: Action): string => {
  switch (action._tag) {
    case "Launch":
      return `launch ${action.launch.id}`
    case "Close":
      return `close ${action.leaving.opening.id}`
    case "Complete":
      return `complete: ${outcome(action.exit)}`
    case "Emit": {
      const { event } = action
      const facts = "reason" in event ? [event.reason] : []
      return [event._tag, event.id, ...facts, ..."duration" in event ? [event.duration] : []].join(" ")
    }
    default:
      return `${action._tag.toLowerCase()} ${action.session.id}`
  }
}

// -----------------------------------------------------------------------------
// Recounting
// -----------------------------------------------------------------------------

const sum = (counts: ReadonlyArray<number>): number => counts.reduce((x, y) => x + y, 0)

const shown = ({ closing, idle, used }: State.Places<string, string>) => ({
  used,
  closing,
  idle: Array.from(Ordered.values(idle), ({ id }) => id)
})

/** Every counter agrees with what the state holds, no limit is exceeded, and every caller that can be served has been. */
export const assertCounted = ({ capacity, groupCapacity }: D["options"], state: S): void => {
  const slots = Array.from(HashMap.values(state.slots))
  const leaving = Array.from(HashMap.values(state.leaving))
  const waiters = Array.from(Ordered.values(state.waiting))
  const live = slots.filter((slot) => slot._tag === "Live")
  const launching = slots.filter((slot) => slot._tag === "Launching")
  const waiting = slots.filter((slot) => slot._tag === "Waiting")
  const failed = slots.filter((slot) => slot._tag === "Failed")
  assert.isTrue(Array.from(state.slots).every(([key, slot]) => openingOf(slot).key === key))
  assert.isTrue(Array.from(state.leaving).every(([id, { opening }]) => opening.id === id))

  const adopting = waiters.flatMap(({ launch }) => launch.adopts === undefined ? [] : launch.id)
  const retired = leaving.filter(({ reason }) => reason !== undefined)
  const queue = [...waiting.map(({ launch }) => launch.id), ...adopting]
  const { active, failures, launching: launches, leases, live: lives, waiters: callers } = state
  assert.deepStrictEqual({ active, launches, leases, lives, callers }, {
    active: live.filter((slot) => slot.leases > 0).length,
    launches: launching.length,
    leases: sum([...live.map((slot) => slot.leases), ...retired.map(({ holders }) => holders)]),
    lives: live.length,
    callers: sum(waiting.map((slot) => slot.callers)) + adopting.length
  })
  assert.deepStrictEqual(waiters.map(({ launch }) => launch.id), queue.toSorted((x, y) => x - y))
  assert.sameMembers(Array.from(Ordered.values(failures)), failed)
  assert.deepStrictEqual([state.waiting.size, failures.size], [waiters.length, failed.length])

  const occupants = [
    ...live.map((slot) => ({ group: slot.session.group, closing: false, idle: slot.leases === 0 ? [slot] : [] })),
    ...launching.map(({ launch: { group } }) => ({ group, closing: false, idle: [] })),
    ...leaving.filter(({ hasPlace }) => hasPlace)
      .map(({ holders, opening: { group } }) => ({ group, closing: holders === 0, idle: [] }))
  ]
  const counted = (inside: typeof occupants) => ({
    used: inside.length,
    closing: inside.filter(({ closing }) => closing).length,
    idle: inside.flatMap(({ idle }) => idle)
      .toSorted((x, y) => x.lastUsedAt - y.lastUsedAt || x.ticket - y.ticket)
      .map(({ session }) => session.id)
  })
  const all = counted(occupants)
  assert.deepStrictEqual(shown(state.places), counted(capacity === Infinity ? [] : occupants))
  assert.isAtMost(state.places.used, capacity)
  const groups = new Set(groupCapacity === Infinity ? [] : occupants.flatMap(({ group }) => group ?? []))
  assert.sameMembers(Array.from(HashMap.keys(state.groups)), Array.from(groups))
  for (const [group, places] of state.groups) {
    assert.deepStrictEqual(shown(places), counted(occupants.filter((other) => other.group === group)))
    assert.isAtMost(places.used, groupCapacity)
  }

  for (const { launch: { group } } of waiters) {
    const ofGroup = counted(occupants.filter((other) => group !== undefined && other.group === group))
    const limit = ofGroup.used >= groupCapacity ? ofGroup : all
    assert.isTrue(limit === ofGroup || all.used >= capacity, "a caller waits beside a free place")
    assert.isTrue(limit.closing > 0 || limit.idle.length === 0, "a caller waits beside an idle session")
  }
  if (groupCapacity === Infinity && all.idle.length > 0) assert.isAtMost(waiters.length, all.closing)
}
