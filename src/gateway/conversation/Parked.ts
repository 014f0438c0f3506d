/**
 * Calls that wait for their client's input. Each keeps its lane until the client comes back with the input, for at most
 * `parkedTimeToLive`.
 *
 * The client gets a sealed state for its call. It names the call, the owner, the back end, the request and the expiry,
 * so it is valid only for that retry. It is valid once: the retry removes the call from here.
 */
import { Clock, Duration, Effect, Fiber, Option } from "effect"
import { randomUUID } from "node:crypto"
import type * as RequestState from "../protocol/RequestState.ts"
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
  readonly timer: Fiber.Fiber<void>
}

export interface Parked {
  /** Parks a call. Returns the state that its client has to send back, or the limit that was reached. */
  readonly park: (
    call: RunningCall,
    owner: Owner,
    timeToLive: Duration.Duration
  ) => Effect.Effect<
    { readonly _tag: "Parked"; readonly requestState: string } | { readonly _tag: "TooMany"; readonly limit: number }
  >
  /** Removes the call that a state names and returns it, or the reason why the state is refused. */
  readonly take: (
    requestState: string,
    owner: Owner
  ) => Effect.Effect<
    { readonly _tag: "Taken"; readonly call: RunningCall } | { readonly _tag: "Refused"; readonly reason: string }
  >
  /** The replica where a state's call is parked, if the state says so. */
  readonly replicaOf: (requestState: string) => string | undefined
  /** Cancels all parked calls. */
  readonly cancelAll: (reason: string) => Effect.Effect<void>
  /** The number of parked calls of a back end. */
  readonly count: (backend: string) => number
}

export interface Limits {
  readonly maxParked: number
  readonly maxParkedPerKey: number
}

/** Keeps parked calls until the scope closes. One function, because its members share `entries` and `counts`. */
export const make = Effect.fnUntraced(function*(
  { maxParked, maxParkedPerKey }: Limits,
  seal: RequestState.Seal,
  /** The name of this replica. Empty if there is only one. */
  replica: string
) {
  const scope = yield* Effect.scope
  const clock = yield* Clock.Clock
  const run = Effect.runForkWith(yield* Effect.context<never>())
  const entries = new Map<string, Entry>()
  const counts = new Map<string, number>()

  const remove = (id: string): Entry | undefined => {
    const entry = entries.get(id)
    if (entry === undefined) return undefined
    entries.delete(id)
    const { principal } = entry.owner
    const left = (counts.get(principal) ?? 1) - 1
    if (left > 0) counts.set(principal, left)
    else counts.delete(principal)
    return entry
  }

  const drop = (id: string, reason: string) => {
    const entry = remove(id)
    entry?.timer.interruptUnsafe()
    entry?.call.cancel(reason)
  }

  const parked: Parked = {
    // Synchronous, so a call always belongs either to an HTTP request or to `entries`.
    park: (call, owner, timeToLive) =>
      Effect.sync(() => {
        // Removes calls that have ended meanwhile.
        for (const [id, entry] of entries) if (entry.call.isOver()) drop(id, "its client has not come back")
        const { principal } = owner
        const own = counts.get(principal) ?? 0
        if (own >= maxParkedPerKey) return { _tag: "TooMany", limit: maxParkedPerKey }
        if (entries.size >= maxParked) return { _tag: "TooMany", limit: maxParked }
        const id = randomUUID()
        const expire = Effect.sync(() =>
          remove(id)?.call.cancel(`the client sent no input within ${Duration.format(timeToLive)}`)
        )
        const timer = Fiber.runIn(run(Effect.delay(expire, timeToLive)), scope)
        entries.set(id, { call, owner, timer })
        counts.set(principal, own + 1)
        call.park()
        const expires = expiry(clock.currentTimeMillisUnsafe(), timeToLive)
        return {
          _tag: "Parked",
          requestState: seal.seal({ call: id, ...owner, expires, ...(replica === "" ? {} : { replica }) })
        }
      }),
    replicaOf: (requestState) => Option.getOrUndefined(seal.open(requestState))?.replica,
    take: (requestState, owner) =>
      Effect.sync(() => {
        const state = Option.getOrUndefined(seal.open(requestState))
        const wrong = fault(state, owner, clock.currentTimeMillisUnsafe())
        if (wrong !== undefined) return { _tag: "Refused", reason: wrong }
        const entry = state === undefined ? undefined : remove(state.call)
        if (entry === undefined) return { _tag: "Refused", reason: spent }
        entry.timer.interruptUnsafe()
        return { _tag: "Taken", call: entry.call }
      }),
    cancelAll: (reason) =>
      Effect.sync(() => {
        for (const id of entries.keys()) drop(id, reason)
      }),
    count: (backend) => [...entries.values()].filter(({ owner }) => owner.backend === backend).length
  }
  yield* Effect.addFinalizer(() => parked.cancelAll("the gateway is shutting down"))
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
