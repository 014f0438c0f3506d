/** The figures of the operators' page: the back ends, the live sessions, and the history of the last hour. */
import { Clock, Deferred, Effect, FileSystem, Ref, Schedule } from "effect"
import * as SessionPool from "../../SessionPool.ts"
import type * as Parked from "../conversation/Parked.ts"
import * as Cooldown from "../sessions/Cooldown.ts"
import * as Launching from "../sessions/Launching.ts"
import type { RunningBackend } from "../sessions/RunningBackend.ts"
import type { LiveSession, Sessions } from "../sessions/Sessions.ts"
import type * as Settings from "../settings/Settings.ts"
import * as GatewayMetrics from "../telemetry/GatewayMetrics.ts"
import * as ProcessStats from "./ProcessStats.ts"

const interval = "10 seconds"
const points = 360

/** Records the history and updates the gauges, for as long as the scope is open. */
export const make = Effect.fnUntraced(function*(
  sessions: Sessions,
  parked: Parked.Parked,
  settings: Settings.GatewaySettings,
  draining: Deferred.Deferred<void>
) {
  const fs = yield* FileSystem.FileSystem
  const history: Array<ReturnType<typeof pointOf>> = []
  let closedBefore = 0
  /** Launches since the start, without those in `sessions.recent`. */
  const launched = { launches: 0, launchFailures: 0 }
  /** The back ends whose gauges have been set. */
  const measured = new Set<string>()

  const sample = Effect.gen(function*() {
    const { active, closes, idle } = yield* SessionPool.stats(sessions.pool)
    const { recent } = sessions
    const closed = sum(Object.values(closes))
    history.push(pointOf(yield* Clock.currentTimeMillis, idle + active, closed - closedBefore, recent))
    if (history.length > points) history.shift()
    closedBefore = closed
    launched.launches += recent.launches
    launched.launchFailures += recent.launchFailures
    Object.assign(recent, GatewayMetrics.recent())
  })

  const measure = Effect.gen(function*() {
    const { backends } = yield* look(sessions, parked)
    for (const name of backends.keys()) measured.add(name)
    for (const name of measured) yield* GatewayMetrics.setBackend(name, backends.get(name))
    const { waiting } = yield* SessionPool.stats(sessions.pool)
    const { maxSessions } = settings
    yield* GatewayMetrics.setTotals({ place: waiting, lane: yield* sessions.waitingForLane, maxSessions })
  })

  /** The whole overview, as `/sessions` returns it. */
  const snapshot = Effect.gen(function*() {
    const { backends, live, now } = yield* look(sessions, parked)
    const usage = yield* ProcessStats.usage(new Set(live.flatMap(({ activity }) => activity.pid ?? [])))
    return {
      now,
      draining: Deferred.isDoneUnsafe(draining),
      needsKey: settings.keys.length > 0,
      backends: Array.from(backends.values(), (backend) => backendView(backend, now)),
      sessions: live.map((session) => sessionView(session, usage, now)),
      launches: launched.launches + sessions.recent.launches,
      launchFailures: launched.launchFailures + sessions.recent.launchFailures,
      closes: sessions.closes(),
      history
    }
  }).pipe(Effect.provideService(FileSystem.FileSystem, fs))

  yield* Effect.forkScoped(Effect.repeat(Effect.andThen(sample, measure), Schedule.spaced(interval)))
  return { measure, snapshot }
})

/** The live sessions and the back ends at this moment. */
const look = Effect.fnUntraced(function*(sessions: Sessions, parked: Parked.Parked) {
  const now = yield* Clock.currentTimeMillis
  const live = yield* sessions.live
  const asleep = yield* sessions.asleep
  const byBackend = Map.groupBy(live, ({ info }) => info.key.backend)
  const backends = new Map<string, SeenBackend>()
  for (const [name, running] of sessions.running()) {
    const own = byBackend.get(name) ?? []
    const cooldown = yield* Ref.get(running.cooldown)
    const figures = {
      sessions: own.length,
      inFlight: sum(own.map(({ activity }) => activity.inFlight)),
      asleep: Math.max(0, (asleep.get(name) ?? 0) - own.length),
      parked: parked.count(name),
      spares: running.spares.size()
    }
    backends.set(name, { running, figures, cooldown, state: Cooldown.stateOf(cooldown, now) })
  }
  return { now, live, backends }
})

interface SeenBackend {
  readonly running: RunningBackend
  readonly figures: GatewayMetrics.Figures
  readonly cooldown: Cooldown.Cooldown
  readonly state: GatewayMetrics.BackendState
}

const backendView = ({ cooldown, figures, running: { backend, counts }, state }: SeenBackend, now: number) => {
  const { asleep, parked, sessions, spares } = figures
  return {
    name: backend.name,
    kind: backend.kind,
    url: `/mcp/${backend.name}`,
    state,
    retryInSeconds: state === "cooling down" ? Math.ceil((cooldown.until - now) / 1000) : null,
    lastFailure: cooldown.lastFailure ?? null,
    spares,
    sessions,
    asleep,
    parked,
    ...counts
  }
}

/** A session's entry. Its id is shortened, because the full id gives access to the session. */
const sessionView = (
  { activity, info }: LiveSession,
  usage: ReadonlyMap<number, ProcessStats.Usage>,
  now: number
) => {
  const used = activity.pid === undefined ? undefined : usage.get(activity.pid)
  return {
    id: info.id,
    backend: info.key.backend,
    session: Launching.labelOf(info.key),
    client: activity.client ?? null,
    state: info.state,
    ageSeconds: (now - info.openedAt) / 1000,
    // A session whose client only listens counts as idle, too.
    idleSeconds: activity.inFlight === 0 ? (now - info.lastUsedAt) / 1000 : 0,
    requests: activity.requests,
    errors: activity.errors,
    inFlight: activity.inFlight,
    streams: activity.streams,
    pid: activity.pid ?? null,
    memoryBytes: used?.memoryBytes ?? null,
    cpuSeconds: used?.cpuSeconds ?? null
  }
}

/** One point of the history. It covers the ten seconds before `at`. */
const pointOf = (at: number, sessions: number, closes: number, recent: GatewayMetrics.Recent) => {
  const millis = recent.millis.toSorted((a, b) => a - b)
  return {
    at,
    sessions,
    requests: recent.requests,
    errors: recent.errors,
    launches: recent.launches,
    closes,
    p50Ms: quantile(millis, 0.5),
    p95Ms: quantile(millis, 0.95)
  }
}

const sum = (counts: ReadonlyArray<number>): number => counts.reduce((total, count) => total + count, 0)

const quantile = (sorted: ReadonlyArray<number>, q: number): number | null =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))] ?? null
