/**
 * Modern clients as the pool sees them. They have no sessions, so a key of the pool names a caller and one of its
 * lanes. A caller is the back end, the principal, the client's own info and its capabilities. Callers that cannot be
 * told apart share nothing: each call has a process of its own, which ends with the call.
 */
import type { Scope } from "effect"
import { Deferred, Effect, Ref } from "effect"
import { createHash, randomUUID } from "node:crypto"
import type { Change } from "../conversation/Lane.ts"
import * as Json from "../protocol/Json.ts"
import * as Modern from "../protocol/Modern.ts"
import { Key } from "./Key.ts"
import * as Lanes from "./Lanes.ts"

/** A caller of a back end. */
export interface Caller {
  readonly backend: string
  /** A digest of the client's key, or "" if the gateway asks for no keys. */
  readonly principal: string
  /** True if the caller can be told from others. */
  readonly known: boolean
  readonly client: Modern.Client
}

/** A caller, while it uses lanes or listens. */
export interface Profile {
  readonly id: string
  readonly backend: string
  readonly principal: string
  readonly client: Modern.Client
  readonly lanes: Ref.Ref<Lanes.Lanes>
  /** Called with each change that the caller's lanes report. */
  readonly listeners: Set<(change: Change) => void>
  users: number
}

export interface Callers {
  /** The caller's profile, which is kept for the scope. */
  readonly enter: (caller: Caller) => Effect.Effect<Profile, never, Scope.Scope>
  /** Claims a lane for the scope and returns its number. Waits while all lanes are taken. */
  readonly claim: (profile: Profile, exclusive: boolean, max: number) => Effect.Effect<number, never, Scope.Scope>
  /** The profile that a key of the pool belongs to, while the profile is in use. */
  readonly find: (key: Key) => Profile | undefined
  /** The number of calls that wait for a lane. */
  readonly waiting: Effect.Effect<number>
}

/** The pool's key of a lane. */
export const keyOf = ({ backend, id, principal }: Profile, lane: number): Key => new Key(backend, principal, id, lane)

/** Begins the ids of callers that cannot be told apart. Each call has one of its own. */
const loner = "once-"

/** True for the key of a caller that cannot be told apart. No other call can use its lane. */
export const isOfLoner = ({ id }: Key): boolean => id.startsWith(loner)

/** The id of a caller. Callers with the same id share their lanes. */
export const identify = ({ backend, client, known, principal }: Caller): string =>
  known
    ? createHash("sha256")
      .update(Json.stringify([backend, principal, client.info, Modern.legacyCapabilities(client.capabilities)]))
      .digest("hex").slice(0, 32)
    : `${loner}${randomUUID()}`

export const make = (): Callers => {
  const profiles = new Map<string, Profile>()

  const giveBack = (profile: Profile, lane: number, exclusive: boolean) =>
    Effect.flatMap(
      Ref.modify(profile.lanes, (lanes) => Lanes.release(lanes, lane, exclusive)),
      (waiting) => Effect.forEach(waiting, (waiter) => Deferred.succeed(waiter, undefined), { discard: true })
    )

  return {
    enter: (caller) =>
      Effect.acquireRelease(
        Effect.sync(() => {
          const id = identify(caller)
          const { backend, client, principal } = caller
          const known = profiles.get(id)
          const profile = known ??
            { id, backend, principal, client, lanes: Ref.makeUnsafe(Lanes.none), listeners: new Set(), users: 0 }
          profiles.set(id, profile)
          profile.users++
          return profile
        }),
        (profile) =>
          Effect.sync(() => {
            if (--profile.users === 0) profiles.delete(profile.id)
          })
      ),
    claim: (profile, exclusive, max) =>
      Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
        while (true) {
          const waiter = Deferred.makeUnsafe<void>()
          const claim = yield* Ref.modify(
            profile.lanes,
            (lanes) => Lanes.claim(lanes, exclusive, max, waiter)
          )
          if (claim._tag === "Claimed") {
            yield* Effect.addFinalizer(() => giveBack(profile, claim.lane, exclusive))
            return claim.lane
          }
          yield* Effect.onInterrupt(
            restore(Deferred.await(waiter)),
            () => Ref.update(profile.lanes, (lanes) => Lanes.leave(lanes, waiter))
          )
        }
      })),
    find: ({ id, lane }) => lane === undefined ? undefined : profiles.get(id),
    waiting: Effect.sync(() =>
      [...profiles.values()].reduce((sum, { lanes }) => sum + Ref.getUnsafe(lanes).waiting.length, 0)
    )
  }
}
