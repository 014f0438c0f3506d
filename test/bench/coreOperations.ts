/** Shared by the subjects of the library's benchmark: the connection, the keys, the work, and the type of an operation. */
import type { Scope } from "effect"
import { Effect } from "effect"

/** The connection of every session. It is one constant, so the measured memory is the subject's own. */
export const connection = { open: true }
export type Connection = typeof connection

export const idleTimeToLive = "30 minutes"

/** An operation on the key with a number, as an effect, a promise or a plain call. */
export type Operation =
  | { readonly kind: "effect"; readonly run: (key: number) => Effect.Effect<unknown> }
  | { readonly kind: "promise"; readonly run: (key: number) => Promise<unknown> }
  | { readonly kind: "call"; readonly run: (key: number) => unknown }

export interface Subject {
  /** Opens a session under each key of `keys`. */
  readonly fill: Operation
  readonly operations: Readonly<Record<string, Operation>>
  /** Undoes what `launch` did to a key, outside the measurement. */
  readonly forget?: (key: number) => Effect.Effect<unknown>
}

export type MakeSubject = (keys: ReadonlyArray<string>) => Effect.Effect<Subject, never, Scope.Scope>

export const effect = (run: (key: number) => Effect.Effect<unknown, unknown>): Operation => ({
  kind: "effect",
  run: (key) => Effect.orDie(run(key))
})

/** The user's work in each `use`. */
export const work = (_: Connection): Effect.Effect<void> => Effect.void
/** Work that yields, so that the leases of concurrent fibers overlap. */
export const overlapping = (_: Connection): Effect.Effect<void> => Effect.yieldNow

/** The session part of a key, as a request would carry it. */
export const session = (key: number) => `2f6e8c1a-77d0-4c55-9a53-${key.toString(16).padStart(12, "0")}`
export const backend = "everything"
/** A string key of realistic length: 47 characters. */
export const keyOf = (key: number): string => `${backend}/${session(key)}`

/** The idle time of the session with a number: every hundredth expires at once, the others not during the run. */
export const sweptTimeToLive = (key: number): number => key % 100 === 0 ? 1 : 3_600_000
