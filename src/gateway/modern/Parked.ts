/**
 * Calls that wait for their client's input: kept with their lane until the client comes back with it, for a while.
 *
 * What the client is given for one is sealed and says which call, whose, of which back end and request, and until when; so
 * it is good for that retry alone, and the call is gone from here once it has been used.
 */
import { Clock, Duration, Effect, Fiber, Option } from "effect"
import { randomUUID } from "node:crypto"
import type { Principal } from "../sessions/Registry.ts"
import type { RunningCall } from "./Lane.ts"
import type * as RequestState from "./RequestState.ts"

/** Whose a parked call is, and what it is. */
export interface Owner {
  readonly principal: Principal
  readonly backend: string
  /** Of its method and arguments. */
  readonly digest: string
}

interface Entry {
  readonly call: RunningCall
  readonly owner: Owner
  readonly timer: Fiber.Fiber<void>
}

export interface Parked {
  /** Parks a call; what its client has to send back, or why it cannot be parked. */
  readonly park: (
    call: RunningCall,
    owner: Owner,
    timeToLive: Duration.Duration
  ) => Effect.Effect<
    { readonly _tag: "Parked"; readonly requestState: string } | { readonly _tag: "TooMany"; readonly limit: number }
  >
  /** The call that a state is for, which it is good for once; or what is wrong with it. */
  readonly take: (
    requestState: string,
    owner: Owner
  ) => Effect.Effect<
    { readonly _tag: "Taken"; readonly call: RunningCall } | { readonly _tag: "Refused"; readonly reason: string }
  >
  /** The replica where the call is parked that a state is for, if it says so. */
  readonly replicaOf: (requestState: string) => string | undefined
  /** Cancels all of them. */
  readonly cancelAll: (reason: string) => Effect.Effect<void>
  /** How many there are of a back end. */
  readonly count: (backend: string) => number
}

export interface Limits {
  readonly maxParked: number
  readonly maxParkedPerKey: number
}

/** Keeps calls until the scope closes. One function, for what it gives shares the entries and the counts at its head. */
export const make = Effect.fnUntraced(function*(
  { maxParked, maxParkedPerKey }: Limits,
  seal: RequestState.Seal,
  /** The name of this replica; empty where there is but one. */
  replica: string
) {
  const scope = yield* Effect.scope
  const clock = yield* Clock.Clock
  const run = Effect.runForkWith(yield* Effect.context<never>())
  const entries = new Map<string, Entry>()
  const counts = new Map<Principal, number>()

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

  const parked: Parked = {
    // Synchronous: a call is either the client's connection's or here.
    park: (call, owner, timeToLive) =>
      Effect.sync(() => {
        // Those that have ended meanwhile wait for nobody.
        for (const [id, entry] of entries) if (entry.call.isOver()) remove(id)?.timer.interruptUnsafe()
        const { principal } = owner
        const own = counts.get(principal) ?? 0
        if (own >= maxParkedPerKey) return { _tag: "TooMany", limit: maxParkedPerKey }
        if (entries.size >= maxParked) return { _tag: "TooMany", limit: maxParked }
        const id = randomUUID()
        const expire = Effect.sync(() => remove(id)?.call.cancel(`no input came within ${Duration.format(timeToLive)}`))
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
        for (const id of entries.keys()) {
          const entry = remove(id)
          entry?.timer.interruptUnsafe()
          entry?.call.cancel(reason)
        }
      }),
    count: (backend) => [...entries.values()].filter(({ owner }) => owner.backend === backend).length
  }
  yield* Effect.addFinalizer(() => parked.cancelAll("the gateway is shutting down"))
  return parked
})

const spent = "it has been used before, or its call has ended; make the call anew"

/** When a call ends that is parked now. JSON has no infinity. */
const expiry = (now: number, timeToLive: Duration.Duration): number =>
  Math.min(now + Duration.toMillis(timeToLive), Number.MAX_SAFE_INTEGER)

/** Why a state is not good for this request, if it is not. */
const fault = (state: RequestState.State | undefined, owner: Owner, now: number): string | undefined => {
  if (state === undefined) return "it was not made by this gateway, or has been changed"
  if (state.principal !== owner.principal) return "it belongs to somebody else"
  if (state.backend !== owner.backend || state.digest !== owner.digest) return "it belongs to another request"
  return state.expires <= now ? "it has expired; make the call anew" : undefined
}
