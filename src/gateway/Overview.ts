/** What an operator sees: the back ends, the live sessions, and how it went in the last hour. */
import { Clock, Effect, Ref, Schedule } from "effect"
import * as SessionKey from "../SessionKey.ts"
import * as SessionPool from "../SessionPool.ts"
import * as Masking from "./Masking.ts"
import * as ProcessStats from "./ProcessStats.ts"
import type { Sessions } from "./Sessions.ts"

/** One point of the history: what happened in the ten seconds before it. */
export interface Point {
  readonly at: number
  readonly sessions: number
  readonly requests: number
  readonly errors: number
  readonly launches: number
  readonly closes: number
  readonly p50Ms: number | null
  readonly p95Ms: number | null
}

const interval = "10 seconds"
const points = 360

/** Keeps the history for as long as the scope is open. */
export const history = Effect.fnUntraced(function*(sessions: Sessions["Service"]) {
  const kept: Array<Point> = []
  let before = yield* SessionPool.stats(sessions.pool)
  const sample = Effect.gen(function*() {
    const stats = yield* SessionPool.stats(sessions.pool)
    const { recent } = sessions
    const millis = recent.millis.toSorted((a, b) => a - b)
    kept.push({
      at: yield* Clock.currentTimeMillis,
      sessions: stats.idle + stats.active,
      requests: recent.requests,
      errors: recent.errors,
      launches: stats.launches - before.launches,
      closes: total(stats.closes) - total(before.closes),
      p50Ms: quantile(millis, 0.5),
      p95Ms: quantile(millis, 0.95)
    })
    if (kept.length > points) kept.shift()
    before = stats
    Object.assign(recent, { requests: 0, errors: 0, millis: [] })
  })
  yield* Effect.forkScoped(Effect.repeat(sample, Schedule.spaced(interval)))
  return (): ReadonlyArray<Point> => kept
})

/** Everything at once, as JSON has it. Ids of sessions are shortened: whoever has one may use the session. */
export const snapshot = Effect.fnUntraced(function*(
  sessions: Sessions["Service"],
  history: () => ReadonlyArray<Point>,
  draining: boolean
) {
  const now = yield* Clock.currentTimeMillis
  const stats = yield* SessionPool.stats(sessions.pool)
  const asleep = yield* sessions.asleep
  const live = yield* sessions.live
  const pids = new Set(live.flatMap(({ activity }) => activity.pid ?? []))
  const usage = yield* ProcessStats.usage(pids)
  const backends = yield* Effect.forEach(
    [...sessions.running().values()],
    Effect.fnUntraced(function*(running) {
      const { backend, counts, spares } = running
      const cooldown = yield* Ref.get(running.cooldown)
      const cooling = cooldown.until > now
      const own = live.filter(({ info }) => SessionKey.backend(info.key) === backend.name)
      return {
        name: backend.name,
        kind: backend.target._tag === "Stdio" ? "stdio" : "http",
        url: `/mcp/${backend.name}`,
        state: cooling ? "cooling down" : "ok",
        retryInSeconds: cooling ? Math.ceil((cooldown.until - now) / 1000) : null,
        lastFailure: cooldown.lastFailure ?? null,
        spares: spares.size(),
        sessions: own.length,
        asleep: Math.max(0, (asleep.get(backend.name) ?? 0) - own.length),
        launches: counts.launches,
        requests: counts.requests,
        errors: counts.errors
      }
    })
  )
  return {
    now,
    draining,
    backends,
    sessions: live.map(({ activity, info }) => {
      const used = activity.pid === undefined ? undefined : usage.get(activity.pid)
      return {
        id: info.id,
        backend: SessionKey.backend(info.key),
        session: Masking.shortId(SessionKey.session(info.key)),
        client: activity.client ?? null,
        state: info.state,
        ageSeconds: (now - info.openedAt) / 1000,
        idleSeconds: info.state === "idle" ? (now - info.lastUsedAt) / 1000 : 0,
        requests: activity.requests,
        errors: activity.errors,
        inFlight: activity.inFlight,
        streams: activity.streams,
        pid: activity.pid ?? null,
        memoryBytes: used?.memoryBytes ?? null,
        cpuSeconds: used?.cpuSeconds ?? null
      }
    }),
    launches: stats.launches,
    launchFailures: stats.launchFailures,
    closes: Object.fromEntries(Object.entries(stats.closes).filter(([, count]) => count > 0)),
    history: history()
  }
})

const total = (closes: Readonly<Record<string, number>>): number =>
  Object.values(closes).reduce((sum, count) => sum + count, 0)

const quantile = (sorted: ReadonlyArray<number>, q: number): number | null =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))] ?? null
