/** A back end that counts: every connection that a lookup opens must close exactly once. */
import { assert } from "@effect/vitest"
import { Effect } from "effect"
import type { Scope } from "effect"

export interface Connection {
  readonly key: string
  readonly id: number
}

export interface Backend {
  readonly opened: Array<Connection>
  readonly closed: Array<Connection>
  /** Opens a connection, which closes with the scope. */
  readonly open: (key: string) => Effect.Effect<Connection, never, Scope.Scope>
  /** Whether a connection is open now. */
  readonly isOpen: (connection: Connection) => boolean
  readonly openCount: () => number
  /** How often a connection was closed. */
  readonly closes: (connection: Connection) => number
  /** Every connection has closed exactly once. */
  readonly assertAllClosedOnce: () => void
}

export const make = (): Backend => {
  const opened: Array<Connection> = []
  const closed: Array<Connection> = []
  const closes = (connection: Connection) => closed.filter((other) => other === connection).length
  return {
    opened,
    closed,
    open: (key) =>
      Effect.acquireRelease(
        Effect.sync(() => {
          const connection = { key, id: opened.length + 1 }
          opened.push(connection)
          return connection
        }),
        (connection) => Effect.sync(() => closed.push(connection))
      ),
    isOpen: (connection) => closes(connection) === 0,
    openCount: () => opened.length - closed.length,
    closes,
    assertAllClosedOnce: () => {
      assert.deepStrictEqual(opened.map(closes), opened.map(() => 1))
    }
  }
}
