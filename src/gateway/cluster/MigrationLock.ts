/**
 * The lock under which a replica creates the tables. Replicas that start at the same time take turns, because IF NOT EXISTS of PostgreSQL
 * races.
 */
import { Duration, Effect, Predicate, Schedule } from "effect"
import type { Scope } from "effect"
import type { Connection } from "effect/sql/SqlConnection"
import type { SqlError } from "effect/sql/SqlError"
import * as Roster from "./Roster.ts"

/** The number of the advisory lock. Any number works that nothing else in the database locks. */
export const lock = 8420_2026
/** How often and for how long a replica tries to take the lock. Creating the tables takes less than a second. */
const interval = "200 millis"
const patience = Duration.minutes(1)

/** Another replica, or a connection that a stopped replica left open, has held the lock for too long. */
const heldTooLong =
  `Something else has been creating the tables for ${
    Duration.format(patience)
  } (PostgreSQL's advisory lock ${lock}). ` +
  "Does a replica hang while it starts? Stop it, or end its connection: " +
  `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = ${lock}`

/** Takes the lock for the scope. Polls for it instead of waiting in the database, so that a signal can interrupt the start. */
export const take = (
  connection: Pick<Connection, "execute" | "executeRaw">
): Effect.Effect<void, SqlError | Roster.CannotJoin, Scope.Scope> => {
  const attempt = Effect.map(
    connection.execute(`SELECT pg_try_advisory_lock(${lock}) AS locked`, [], undefined),
    ([row]: ReadonlyArray<unknown>) => Predicate.hasProperty(row, "locked") && row.locked === true
  )
  const release = connection.executeRaw(`SELECT pg_advisory_unlock(${lock})`, [])
  return Effect.gen(function*() {
    // Added before the first attempt: an interrupted attempt may have taken the lock.
    yield* Effect.addFinalizer(() => Effect.ignore(Effect.timeout(release, "2 seconds")))
    if (yield* attempt) return
    yield* Effect.logInfo("Another replica creates the tables; this one starts when the tables are ready")
    yield* Effect.repeat(attempt, { until: (locked) => locked, schedule: Schedule.spaced(interval) })
  }).pipe(
    Effect.timeoutOrElse({ duration: patience, orElse: () => new Roster.CannotJoin({ message: heldTooLong }) })
  )
}
