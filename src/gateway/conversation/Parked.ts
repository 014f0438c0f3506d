/**
 * Calls that wait for their client's input. Each keeps its lane until the client comes back with the input, for at most
 * `parkedTimeToLive`.
 *
 * The client gets a sealed state for its call. It names the call, the owner, the back end, the request and the expiry,
 * so it is valid only for that retry. It is valid once: the retry removes the call from here.
 */
import type { Fiber } from "effect"
import { Duration, Effect, Option } from "effect"
import { randomUUID } from "node:crypto"
import type * as RequestState from "../protocol/RequestState.ts"
import type { Background } from "./InFlight.ts"
import { background } from "./InFlight.ts"
import type { RunningCall } from "./Lane.ts"

/** The owner of a parked call, and the request that it is for. */
export interface Owner {
  /** The id of the principal. */
  readonly principal: string
  readonly backend: string
  /** A digest of the request's method and arguments. */
  readonly digest: string
}

interface Entry {
  readonly call: RunningCall
  readonly owner: Owner
  readonly timer: Fiber.Fiber<unknown>
}

export interface Limits {
  readonly maxParked: number
  readonly maxParkedPerKey: number
}

type ParkResult =
  | { readonly _tag: "Parked"; readonly requestState: string }
  | { readonly _tag: "TooMany"; readonly limit: number }

type TakeResult =
  | { readonly _tag: "Taken"; readonly call: RunningCall }
  | { readonly _tag: "Refused"; readonly reason: string }

export class Parked {
  readonly #limits: Limits
  readonly #seal: RequestState.Seal
  /** The name of this replica. Empty if there is only one. */
  readonly #replica: string
  readonly #background: Background
  readonly #entries = new Map<string, Entry>()

  constructor(limits: Limits, seal: RequestState.Seal, replica: string, background: Background) {
    this.#limits = limits
    this.#seal = seal
    this.#replica = replica
    this.#background = background
  }

  /**
   * Parks a call. Returns the state that its client has to send back, or the limit that was reached. Synchronous, so a call always belongs
   * either to its client's exchange or to the parked calls.
   */
  park(call: RunningCall, owner: Owner, timeToLive: Duration.Duration): ParkResult {
    const { maxParked, maxParkedPerKey } = this.#limits
    for (const [id, entry] of this.#entries) if (entry.call.isOver()) this.#drop(id, "its client has not come back")
    const own = [...this.#entries.values()].filter((entry) => entry.owner.principal === owner.principal)
    if (own.length >= maxParkedPerKey) return { _tag: "TooMany", limit: maxParkedPerKey }
    if (this.#entries.size >= maxParked) return { _tag: "TooMany", limit: maxParked }
    const id = randomUUID()
    const expire = Effect.sync(() => this.#drop(id, `the client sent no input within ${Duration.format(timeToLive)}`))
    const timer = this.#background.fork(Effect.delay(expire, timeToLive))
    this.#entries.set(id, { call, owner, timer })
    call.park()
    const expires = expiry(this.#background.now(), timeToLive)
    const replica = this.#replica === "" ? {} : { replica: this.#replica }
    return { _tag: "Parked", requestState: this.#seal.seal({ call: id, ...owner, expires, ...replica }) }
  }

  /** Removes the call that a state names and returns it, or the reason why the state is refused. */
  take(requestState: string, owner: Owner): TakeResult {
    const state = Option.getOrUndefined(this.#seal.open(requestState))
    const wrong = fault(state, owner, this.#background.now())
    if (wrong !== undefined) return { _tag: "Refused", reason: wrong }
    const entry = state === undefined ? undefined : this.#remove(state.call)
    return entry === undefined ? { _tag: "Refused", reason: spent } : { _tag: "Taken", call: entry.call }
  }

  /** The replica where a state's call is parked, if the state says so. */
  replicaOf(requestState: string): string | undefined {
    return Option.getOrUndefined(this.#seal.open(requestState))?.replica
  }

  /** Cancels all parked calls. */
  cancelAll(reason: string): void {
    for (const id of this.#entries.keys()) this.#drop(id, reason)
  }

  /** The number of parked calls of a back end. */
  count(backend: string): number {
    return [...this.#entries.values()].filter(({ owner }) => owner.backend === backend).length
  }

  #drop(id: string, reason: string): void {
    this.#remove(id)?.call.cancel(reason)
  }

  #remove(id: string): Entry | undefined {
    const entry = this.#entries.get(id)
    this.#entries.delete(id)
    entry?.timer.interruptUnsafe()
    return entry
  }
}

/** Keeps parked calls until the scope closes. */
export const make = Effect.fnUntraced(function*(limits: Limits, seal: RequestState.Seal, replica: string) {
  const parked = new Parked(limits, seal, replica, yield* background)
  yield* Effect.addFinalizer(() => Effect.sync(() => parked.cancelAll("the gateway is shutting down")))
  return parked
})

const spent = "it was used before, or its call has ended; make the call again"

/** When a call that is parked now expires. Finite, because JSON has no infinity. */
const expiry = (now: number, timeToLive: Duration.Duration): number =>
  Math.min(now + Duration.toMillis(timeToLive), Number.MAX_SAFE_INTEGER)

/** Why a state is not valid for this request. `undefined` if it is. */
const fault = (state: RequestState.State | undefined, owner: Owner, now: number): string | undefined => {
  if (state === undefined) return "this gateway did not make it, or it was changed"
  if (state.principal !== owner.principal) return "it belongs to another key"
  if (state.backend !== owner.backend || state.digest !== owner.digest) return "it belongs to another request"
  return state.expires <= now ? "it has expired; make the call again" : undefined
}
