/** Replicas that start at the same time make the tables one after the other: PostgreSQL's own IF NOT EXISTS races. */
import { Data, Duration, Effect, Predicate, Schedule } from "effect"
import type { Scope } from "effect"
import type { Connection } from "effect/sql/SqlConnection"
import type { SqlError } from "effect/sql/SqlError"

/** Any number will do, as long as nothing else in the database locks it. */
export const lock = 8420_2026
/** How often it is tried, and for how long: making the tables takes less than a second. */
const interval = "200 millis"
const patience = Duration.minutes(1)

/** Another replica, or a connection that was left over, has the lock for too long. */
export class TablesLocked extends Data.TaggedError("TablesLocked")<{}> {
  override get message(): string {
    return `Something else has been making the tables for ${
      Duration.format(patience)
    } (PostgreSQL's advisory lock ${lock}). ` +
      "Does a replica hang in its start? Stop it, or end its connection: " +
      `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = ${lock}`
  }
}

/** Takes the lock for the scope. It is tried, not waited for in the database, so that a signal is heard meanwhile. */
export const take = (
  connection: Pick<Connection, "execute" | "executeRaw">
): Effect.Effect<void, SqlError | TablesLocked, Scope.Scope> => {
  const attempt = Effect.map(
    connection.execute(`SELECT pg_try_advisory_lock(${lock}) AS locked`, [], undefined),
    ([row]: ReadonlyArray<unknown>) => Predicate.hasProperty(row, "locked") && row.locked === true
  )
  const release = connection.executeRaw(`SELECT pg_advisory_unlock(${lock})`, [])
  return Effect.gen(function*() {
    // Before it is tried: whoever is interrupted then may have it all the same.
    yield* Effect.addFinalizer(() => Effect.ignore(Effect.timeout(release, "2 seconds")))
    if (yield* attempt) return
    yield* Effect.logInfo("Another replica makes the tables; this one starts when that is done")
    yield* Effect.repeat(attempt, { until: (locked) => locked, schedule: Schedule.spaced(interval) })
  }).pipe(
    Effect.timeoutOrElse({ duration: patience, orElse: () => new TablesLocked() })
  )
}
