/** The figures of the operators' page: the back ends, the live sessions, and the history of the last hour. */
import { Clock, Effect, Ref, Schedule } from "effect"
import * as SessionPool from "../../SessionPool.ts"
import type * as Parked from "../conversation/Parked.ts"
import * as Cooldown from "../sessions/Cooldown.ts"
import * as Launching from "../sessions/Launching.ts"
import type { RunningBackend } from "../sessions/RunningBackend.ts"
import type { LiveSession, Sessions } from "../sessions/Sessions.ts"
import type * as Settings from "../settings/Settings.ts"
import * as GatewayMetrics from "../telemetry/GatewayMetrics.ts"
import * as ProcessStats from "./ProcessStats.ts"

/** One point of the history. It covers the ten seconds before `at`. */
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

/** Records the history and updates the gauges, for as long as the scope is open. */
export const make = Effect.fnUntraced(function*(
  sessions: Sessions,
  parked: Parked.Parked,
  settings: Settings.GatewaySettings
) {
  const kept: Array<Point> = []
  let closedBefore = 0
  /** Launches since the start, without those in `sessions.recent`. */
  const launched = { launches: 0, launchFailures: 0 }
  /** The back ends whose gauges have been set. */
  const measured = new Set<string>()

  const sample = Effect.gen(function*() {
    const { active, closes, idle } = yield* SessionPool.stats(sessions.pool)
    const { recent } = sessions
    const closed = total(closes)
    kept.push(pointOf(yield* Clock.currentTimeMillis, idle + active, closed - closedBefore, recent))
    if (kept.length > points) kept.shift()
    closedBefore = closed
    launched.launches += recent.launches
    launched.launchFailures += recent.launchFailures
    Object.assign(recent, GatewayMetrics.recent())
  })

  const measure = Effect.gen(function*() {
    const { figures, now } = yield* look(sessions, parked)
    const running = sessions.running()
    for (const name of measured) {
      if (running.has(name)) continue
      yield* GatewayMetrics.setFigures(name, GatewayMetrics.noFigures)
      yield* GatewayMetrics.setState(name, undefined)
    }
    for (const [name, each] of running) {
      measured.add(name)
      yield* GatewayMetrics.setFigures(name, figures(each))
      yield* GatewayMetrics.setState(name, Cooldown.stateOf(yield* Ref.get(each.cooldown), now))
    }
    const { waiting } = yield* SessionPool.stats(sessions.pool)
    const { maxSessions } = settings
    yield* GatewayMetrics.setTotals({ place: waiting, lane: yield* sessions.waitingForLane, maxSessions })
  })

  /** The whole overview, as `/sessions` returns it. */
  const snapshot = Effect.fnUntraced(function*(draining: boolean) {
    const { figures, live, now } = yield* look(sessions, parked)
    const usage = yield* ProcessStats.usage(new Set(live.flatMap(({ activity }) => activity.pid ?? [])))
    return {
      now,
      draining,
      needsKey: settings.keys.length > 0,
      backends: yield* Effect.forEach(
        [...sessions.running().values()],
        (running) => backendView(running, figures(running), now)
      ),
      sessions: live.map((session) => sessionView(session, usage, now)),
      launches: launched.launches + sessions.recent.launches,
      launchFailures: launched.launchFailures + sessions.recent.launchFailures,
      closes: sessions.closes(),
      history: kept
    }
  })

  yield* Effect.forkScoped(Effect.repeat(Effect.andThen(sample, measure), Schedule.spaced(interval)))
  return { measure, snapshot }
})

/** The live sessions, and the figures of each back end computed from them. */
const look = Effect.fnUntraced(function*(sessions: Sessions, parked: Parked.Parked) {
  const now = yield* Clock.currentTimeMillis
  const live = yield* sessions.live
  const asleep = yield* sessions.asleep
  const ofBackend = new Map<string, Array<LiveSession>>()
  for (const session of live) {
    const name = session.info.key.backend
    const own = ofBackend.get(name)
    if (own === undefined) ofBackend.set(name, [session])
    else own.push(session)
  }
  const figures = (running: RunningBackend): GatewayMetrics.Figures => {
    const { name } = running.backend
    const own = ofBackend.get(name) ?? []
    return {
      sessions: own.length,
      inFlight: own.reduce((sum, { activity }) => sum + activity.inFlight, 0),
      asleep: Math.max(0, (asleep.get(name) ?? 0) - own.length),
      parked: parked.count(name),
      spares: running.spares.size()
    }
  }
  return { now, live, figures }
})

const backendView = Effect.fnUntraced(function*(
  { backend, cooldown, counts }: RunningBackend,
  { asleep, parked, sessions, spares }: GatewayMetrics.Figures,
  now: number
) {
  const cooled = yield* Ref.get(cooldown)
  const state = Cooldown.stateOf(cooled, now)
  return {
    name: backend.name,
    kind: backend.kind,
    url: `/mcp/${backend.name}`,
    state,
    retryInSeconds: state === "cooling down" ? Math.ceil((cooled.until - now) / 1000) : null,
    lastFailure: cooled.lastFailure ?? null,
    spares,
    sessions,
    asleep,
    parked,
    ...counts
  }
})

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

const pointOf = (at: number, sessions: number, closes: number, recent: GatewayMetrics.Recent): Point => {
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

const total = (closes: Readonly<Record<string, number>>): number =>
  Object.values(closes).reduce((sum, count) => sum + count, 0)

const quantile = (sorted: ReadonlyArray<number>, q: number): number | null =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))] ?? null
