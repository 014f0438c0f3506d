/** All that the model needs to know, measured one after the other: nothing runs beside it but what is measured. */
import { Effect } from "effect"
import { readFileSync } from "node:fs"
import { getHeapStatistics } from "node:v8"
import * as Asleep from "./asleep.ts"
import * as Awake from "./awake.ts"
import * as Counting from "./counting.ts"
import * as Database from "./database.ts"
import * as Engine from "./engine.ts"
import type { Constants } from "./model.ts"
import * as Storage from "./storage.ts"
import * as Wire from "./wire.ts"

/** Of replicas, at which the engine and its storage are measured. */
const sizes = [10, 100, 1000]

/** The real replicas whose statements are counted. */
export const counted = { replicas: 2, seconds: 60, awake: 1200 }

export const measure = (rows: number, say: (what: string) => void) =>
  Effect.scoped(Effect.gen(function*() {
    const saying = (what: string) => Effect.sync(() => say(what))
    yield* saying("PostgreSQL starts")
    const database = yield* Database.make
    yield* saying(`statements of ${counted.replicas} replicas`)
    const sent = yield* Counting.count(database, counted)
    yield* saying("connections between replicas")
    const wire = yield* Wire.measure(database)
    yield* saying("sessions that are awake")
    const awake = yield* Awake.measure(database)
    const bySize: Array<Constants["bySize"][number]> = []
    for (const replicas of sizes) {
      yield* saying(`${replicas} replicas`)
      bySize.push({
        replicas,
        ...(yield* Storage.measure(database, replicas)),
        ...(yield* Engine.measure(replicas))
      })
    }
    yield* saying(`${rows} sleeping sessions`)
    const asleep = yield* Asleep.measure(database, rows)
    const [connections] = yield* database.query<{ readonly usable: number }>(`
      SELECT sum(CASE name WHEN 'max_connections' THEN setting::int ELSE -setting::int END)::int AS usable FROM pg_settings
      WHERE name IN ('max_connections', 'superuser_reserved_connections', 'reserved_connections')
    `)
    const constants: Constants = {
      bySize,
      asleep,
      awake,
      wire,
      maxConnections: connections?.usable ?? Number.NaN,
      maxHeapBytes: getHeapStatistics().heap_size_limit,
      // Node raises its limit to the hard one.
      maxFiles: Number(/Max open files\s+\d+\s+(\d+)/.exec(readFileSync("/proc/self/limits", "utf8"))?.[1])
    }
    return { constants, sent }
  }))
