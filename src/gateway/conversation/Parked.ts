/**
 * Calls that wait for their client's input. Each keeps its lane until the client comes back with the input, for at most
 * `parkedTimeToLive`.
 *
 * The client gets a sealed state for its call. It names the call, the owner, the back end, the request and the expiry,
 * so it is valid only for that retry. It is valid once: the retry removes the call from here.
 */
import type { Fiber } from "effect"
import { Duration, Effect, Option, Result } from "effect"
import { randomUUID } from "node:crypto"
import type * as RequestState from "../protocol/RequestState.ts"
import type { Background } from "./InFlight.ts"
import { background } from "./InFlight.ts"
import type { RunningCall } from "./LaneCalls.ts"

/** The owner of a parked call, and the request that it is for. */
export interface Owner {
  /** The id of the principal. */
  readonly principal: string
  readonly backend: string
  /** A digest of the request's method and arguments. */
  readonly digest: string
}

/** A call that has been parked. */
export interface ParkedCall {
  /** The state that its client has to send back. */
  readonly requestState: string
  /** Cancels the call. A no-op once it is parked no longer. */
  readonly cancel: (reason: string) => void
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
   * Parks a call. Fails with the limit that was reached. Synchronous, so a call always belongs either to its client's exchange or to the
   * parked calls.
   */
  park(call: RunningCall, owner: Owner, timeToLive: Duration.Duration): Result.Result<ParkedCall, number> {
    const { maxParked, maxParkedPerKey } = this.#limits
    for (const [id, entry] of this.#entries) if (entry.call.isOver()) this.#drop(id, "its client has not come back")
    const own = [...this.#entries.values()].filter((entry) => entry.owner.principal === owner.principal)
    if (own.length >= maxParkedPerKey) return Result.fail(maxParkedPerKey)
    if (this.#entries.size >= maxParked) return Result.fail(maxParked)
    const id = randomUUID()
    const expire = Effect.sync(() => this.#drop(id, `the client sent no input within ${Duration.format(timeToLive)}`))
    const timer = this.#background.fork(Effect.delay(expire, timeToLive))
    this.#entries.set(id, { call, owner, timer })
    call.park()
    const expires = expiry(this.#background.now(), timeToLive)
    const replica = this.#replica === "" ? {} : { replica: this.#replica }
    return Result.succeed({
      requestState: this.#seal.seal({ call: id, ...owner, expires, ...replica }),
      cancel: (reason) => this.#drop(id, reason)
    })
  }

  /** Removes the call that a state names. Succeeds with the call, or fails with the reason why the state is refused. */
  take(requestState: string, owner: Owner): Result.Result<RunningCall, string> {
    const state = Option.getOrUndefined(this.#seal.open(requestState))
    if (state === undefined) return Result.fail("this gateway did not make it, or it was changed")
    const wrong = fault(state, owner, this.#background.now())
    if (wrong !== undefined) return Result.fail(wrong)
    const call = this.#remove(state.call)?.call
    return call === undefined ? Result.fail(spent) : Result.succeed(call)
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
const fault = (state: RequestState.State, owner: Owner, now: number): string | undefined => {
  if (state.principal !== owner.principal) return "it belongs to another caller"
  if (state.backend !== owner.backend || state.digest !== owner.digest) return "it belongs to another request"
  return state.expires <= now ? "it has expired; make the call again" : undefined
}
