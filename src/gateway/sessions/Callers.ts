/**
 * Modern clients as the pool sees them. They have no sessions, so a key of the pool names a caller and one of its
 * lanes. A caller is the back end, the principal, the client's own info and its capabilities. Callers that cannot be
 * told apart share nothing: each call has a process of its own, which ends with the call. All light sessions of one
 * principal, client name and capabilities are one caller (`LightSession`).
 *
 * A lane is one process of a caller. A process does not say which call its questions and log messages belong to. So a
 * call that may cause either holds a lane exclusively until it is over. All other calls share the lowest lane that is
 * not held exclusively. So calls that follow one another meet the same process and its state.
 */
import { Deferred, Effect, Exit } from "effect"
import { createHash, randomUUID } from "node:crypto"
import type { Change } from "../conversation/LaneCalls.ts"
import * as Json from "../protocol/Json.ts"
import type * as Modern from "../protocol/Modern.ts"
import type { Identity } from "./Identity.ts"
import { Key } from "./Key.ts"

/** A caller of a back end. */
export interface Caller {
  readonly backend: string
  readonly principal: Identity
  /** True if the caller can be told from others. */
  readonly known: boolean
  /** True for light sessions. */
  readonly light?: boolean | undefined
  readonly client: Modern.Client
}

/** The use of a lane. */
interface LaneUse {
  readonly calls: number
  /** True if its only call holds it exclusively. */
  readonly exclusive: boolean
}

/** A caller, while it uses lanes or listens. */
export interface Profile extends Caller {
  readonly id: string
  /** The use of each lane, by number. */
  readonly lanes: Array<LaneUse>
  /** Completes when a call next gives its lane back. */
  freed: Deferred.Deferred<void>
  /** The number of calls that wait for a lane. */
  waiting: number
  /** Called with each change that the caller's lanes report. */
  readonly listeners: Set<(change: Change) => void>
  /** How many requests and listeners use the profile. It is forgotten at 0. */
  users: number
  /** How many of them count against `maxInFlight`: requests that run, wait for a lane, or are parked. */
  requests: number
}

/** The pool's key of a lane. */
export const keyOf = ({ backend, id, principal }: Profile, lane: number): Key => new Key(backend, principal, id, lane)

/** Prefix of the ids of callers that cannot be told apart. Each call gets its own id. */
const loner = "once-"

/** True for the key of a caller that cannot be told apart. No other call can use its lane. */
export const isOfLoner = ({ id }: Key): boolean => id.startsWith(loner)

/** The id of a caller. Callers with the same id share their lanes. A light session's client may be updated, so its version does not count. */
export const identify = ({ backend, client, known, light, principal }: Caller): string =>
  known
    ? createHash("sha256")
      .update(Json.canonical([
        backend,
        principal.id,
        light === true ? Json.field(client.info, "name") : client.info,
        client.capabilities
      ]))
      .digest("hex").slice(0, 32)
    : `${loner}${randomUUID()}`

export const make = () => {
  const profiles = new Map<string, Profile>()

  return {
    /** The caller's profile, which is kept for the scope. `counts` says whether the request counts against `maxInFlight`. */
    enter: (caller: Caller, counts = true) =>
      Effect.acquireRelease(
        Effect.sync(() => {
          const id = identify(caller)
          const profile = profiles.get(id) ?? {
            ...caller,
            id,
            lanes: [],
            freed: Deferred.makeUnsafe(),
            waiting: 0,
            listeners: new Set<(change: Change) => void>(),
            users: 0,
            requests: 0
          }
          profiles.set(id, profile)
          profile.users++
          profile.requests += Number(counts)
          return profile
        }),
        (profile) =>
          Effect.sync(() => {
            profile.requests -= Number(counts)
            if (--profile.users === 0) profiles.delete(profile.id)
          })
      ),
    /** Claims a lane for the scope and returns its number. Waits while all lanes are taken. */
    claim: (profile: Profile, exclusive: boolean, max: number) =>
      Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
        while (true) {
          const lane = claimNow(profile.lanes, exclusive, max)
          if (lane !== undefined) {
            yield* Effect.addFinalizer(() => Effect.sync(() => giveBack(profile, lane)))
            return lane
          }
          profile.waiting++
          yield* Effect.ensuring(restore(Deferred.await(profile.freed)), Effect.sync(() => profile.waiting--))
        }
      })),
    /** The profile that a key of the pool belongs to, while the profile is in use. */
    find: ({ id, lane }: Key) => lane === undefined ? undefined : profiles.get(id),
    /** The number of calls that wait for a lane. */
    waiting: Effect.sync(() => [...profiles.values()].reduce((sum, { waiting }) => sum + waiting, 0))
  }
}

/** Claims the lowest suitable lane, and returns its number. `undefined` if all `max` lanes are taken. */
const claimNow = (lanes: Array<LaneUse>, exclusive: boolean, max: number): number | undefined => {
  const found = lanes.findIndex((lane) => exclusive ? lane.calls === 0 : !lane.exclusive)
  const number = found >= 0 ? found : lanes.length
  if (number >= max) return undefined
  lanes[number] = { calls: (lanes[number]?.calls ?? 0) + 1, exclusive }
  return number
}

/** Gives a lane back. Wakes all waiters, and each claims again. */
const giveBack = (profile: Profile, number: number): void => {
  const { freed, lanes } = profile
  lanes[number] = { calls: (lanes[number]?.calls ?? 1) - 1, exclusive: false }
  profile.freed = Deferred.makeUnsafe()
  Deferred.doneUnsafe(freed, Exit.void)
}
