/** The figures of the operators' page: the back ends, the live sessions, and the history of the last hour. */
import { Clock, Deferred, Effect, FileSystem, Record, Schedule } from "effect"
import * as SessionPool from "../../SessionPool.ts"
import * as Cooldown from "../sessions/Cooldown.ts"
import * as Identity from "../sessions/Identity.ts"
import * as Launching from "../sessions/Launching.ts"
import type { Serving } from "../sessions/Serving.ts"
import type * as Sessions from "../sessions/Sessions.ts"
import * as Settings from "../settings/Settings.ts"
import * as GatewayMetrics from "../telemetry/GatewayMetrics.ts"
import * as ProcessStats from "./ProcessStats.ts"

const interval = "10 seconds"
const points = 360

/** Records the history and updates the gauges, for as long as the scope is open. */
export const make = Effect.fnUntraced(function*(serving: Serving) {
  const { draining, sessions, settings } = serving
  const fs = yield* FileSystem.FileSystem
  const history: Array<object> = []
  let before = { requests: 0, errors: 0, launches: 0, closes: 0 }
  /** The back ends whose gauges have been set. */
  const measured = new Set<string>()

  /** Adds a point to the history. It covers the ten seconds before `at`. */
  const sample = Effect.gen(function*() {
    const { active, closes, idle } = yield* SessionPool.stats(sessions.pool)
    const { errors, launches, millis, requests } = sessions.totals
    const total = { requests, errors, launches, closes: sum(Object.values(closes)) }
    const sorted = millis.splice(0).toSorted((a, b) => a - b)
    history.push({
      at: yield* Clock.currentTimeMillis,
      sessions: idle + active,
      ...Record.map(total, (count, name) => count - before[name]),
      p50Ms: quantile(sorted, 0.5),
      p95Ms: quantile(sorted, 0.95)
    })
    if (history.length > points) history.shift()
    before = total
  })

  const measure = Effect.gen(function*() {
    const { backends } = yield* look(serving)
    for (const name of backends.keys()) measured.add(name)
    for (const name of measured) yield* GatewayMetrics.setBackend(name, backends.get(name))
    const { waiting } = yield* SessionPool.stats(sessions.pool)
    const { maxSessions } = settings
    yield* GatewayMetrics.setTotals({ place: waiting, lane: yield* sessions.waitingForLane, maxSessions })
  })

  /** The whole overview, as `/sessions` returns it. */
  const snapshot = Effect.gen(function*() {
    const { backends, live, now } = yield* look(serving)
    const usage = yield* ProcessStats.usage(new Set(live.flatMap(({ activity }) => activity.pid ?? [])))
    const { launches, launchFailures } = sessions.totals
    return {
      now,
      draining: Deferred.isDoneUnsafe(draining),
      needsKey: Settings.needsKey(settings),
      backends: [...backends.values()],
      sessions: live.map((session) => sessionView(session, usage, now)),
      launches,
      launchFailures,
      closes: sessions.closes(),
      history
    }
  }).pipe(Effect.provideService(FileSystem.FileSystem, fs))

  yield* Effect.forkScoped(Effect.repeat(Effect.andThen(sample, measure), Schedule.spaced(interval)))
  return { measure, snapshot }
})

/** The live sessions and the back ends at this moment. */
const look = Effect.fnUntraced(function*({ parked, sessions }: Serving) {
  const now = yield* Clock.currentTimeMillis
  const live = yield* sessions.live
  const asleep = yield* sessions.asleep
  const byBackend = Map.groupBy(live, ({ info }) => info.key.backend)
  const backends = new Map(Array.from(sessions.running(), ([name, { backend, cooldown, counts, spares }]) => {
    const all = byBackend.get(name) ?? []
    const own = all.filter(({ info }) => !info.key.isLight)
    const { lastFailure = null, until } = cooldown
    const view = {
      name,
      kind: backend.kind,
      url: `/mcp/${name}`,
      state: Cooldown.stateOf(cooldown, now),
      retryInSeconds: now < until ? Math.ceil((until - now) / 1000) : null,
      lastFailure,
      sessions: own.length,
      light: all.length - own.length,
      inFlight: sum(own.map(({ activity }) => activity.inFlight)),
      asleep: Math.max(0, (asleep.get(name) ?? 0) - own.length),
      parked: parked.count(name),
      spares: spares.size(),
      ...counts
    }
    return [name, view]
  }))
  return { now, live, backends }
})

/** A session's entry. Its id is shortened, because the full id gives access to the session. */
const sessionView = (
  { activity, info }: Sessions.LiveSession,
  usage: ReadonlyMap<number, ProcessStats.Usage>,
  now: number
) => ({
  ...activity,
  id: info.id,
  backend: info.key.backend,
  session: Launching.labelOf(info.key),
  client: activity.client ?? null,
  principal: Identity.labelOf(info.key.principal) ?? null,
  light: info.key.isLight,
  state: info.state,
  ageSeconds: (now - info.openedAt) / 1000,
  // A session whose client only listens counts as idle, too.
  idleSeconds: activity.inFlight === 0 ? (now - info.lastUsedAt) / 1000 : 0,
  pid: activity.pid ?? null,
  memoryBytes: null,
  cpuSeconds: null,
  ...usage.get(activity.pid ?? 0)
})

const sum = (counts: ReadonlyArray<number>): number => counts.reduce((total, count) => total + count, 0)

const quantile = (sorted: ReadonlyArray<number>, q: number): number | null =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))] ?? null
