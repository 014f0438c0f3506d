/** What the subjects of the core's benchmark share: the connection, the keys, the work, and what an operation is. */
import type { Scope } from "effect"
import { Effect } from "effect"

/** The connection of every session: a constant, so that memory is what the subject itself needs. */
export const connection = { open: true }
export type Connection = typeof connection

export const idleTimeToLive = "30 minutes"

/** One operation on the key with this number, as an effect, a promise or a plain call. */
export type Operation =
  | { readonly kind: "effect"; readonly run: (key: number) => Effect.Effect<unknown> }
  | { readonly kind: "promise"; readonly run: (key: number) => Promise<unknown> }
  | { readonly kind: "call"; readonly run: (key: number) => unknown }

export interface Subject {
  /** Puts a session under each of the first `keys.length` keys. */
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
/** Work that lets other fibers in, so that the leases of concurrent fibers overlap. */
export const overlapping = (_: Connection): Effect.Effect<void> => Effect.yieldNow

/** The parts of a key, as a request would bring them. */
export const session = (key: number) => `2f6e8c1a-77d0-4c55-9a53-${key.toString(16).padStart(12, "0")}`
export const backend = "everything"
/** A string key of realistic length: 47 characters. */
export const keyOf = (key: number): string => `${backend}/${session(key)}`

/** Of the sessions that a sweep visits: every hundredth is to expire at once, the others never. */
export const sweptTimeToLive = (key: number): number => key % 100 === 0 ? 1 : 3_600_000
