/**
 * The requests of one connection that are in flight, and their deadlines. A request without an answer gets a stream after `streamAfter`,
 * and times out after `requestTimeout`. One timer checks all of them.
 */
import type { Scope } from "effect"
import { Clock, Duration, Effect, Fiber } from "effect"
import type { RequestMetrics } from "../telemetry/GatewayMetrics.ts"
import * as Overdue from "./Overdue.ts"
import type { Activity } from "./PooledConnection.ts"

/** How a connection's synchronous code starts effects and reads the time. */
export interface Background {
  /** Starts an effect. */
  readonly run: (effect: Effect.Effect<unknown>) => Fiber.Fiber<unknown>
  /** Starts an effect that ends with the connection. */
  readonly fork: (effect: Effect.Effect<unknown>) => Fiber.Fiber<unknown>
  readonly now: () => number
}

export const background: Effect.Effect<Background, never, Scope.Scope> = Effect.gen(function*() {
  const run = Effect.runForkWith(yield* Effect.context<never>())
  const scope = yield* Effect.scope
  const clock = yield* Clock.Clock
  return {
    run,
    fork: (effect) => Fiber.runIn(run(effect), scope),
    now: () => clock.currentTimeMillisUnsafe()
  }
})

export interface Timeouts {
  /** Longest time of a request. Progress restarts it. */
  readonly requestTimeout: Duration.Duration
  /** A request without an answer after this time gets a stream. */
  readonly streamAfter: Duration.Duration
}

/** A request in flight. */
export interface Entry {
  readonly method: string
  /** Runs once, when the request is over. */
  readonly release: Effect.Effect<void>
  readonly startedAt: number
  /** When the request gets a stream, in milliseconds. Infinity: never. */
  streamAt: number
  /** When the request times out, in milliseconds. Infinity: never. */
  dueAt: number
}

/** Called for each request that reaches a deadline. */
export interface Due<A> {
  /** The request has no answer yet, so it gets a stream. */
  readonly stream: (entry: A) => void
  readonly timeOut: (entry: A, reason: string) => void
}

/** The figures of a connection's requests. */
export type Figures = Pick<Activity, "inFlight" | "requests" | "errors">

const never = Number.POSITIVE_INFINITY

export class InFlight<A extends Entry> {
  readonly #background: Background
  readonly #metrics: RequestMetrics
  readonly #entries = new Set<A>()
  readonly #requestTimeout: number
  readonly #streamAfter: number
  readonly #startTimer: () => void
  #requests = 0
  #errors = 0

  constructor(background: Background, metrics: RequestMetrics, { requestTimeout, streamAfter }: Timeouts, due: Due<A>) {
    this.#background = background
    this.#metrics = metrics
    this.#requestTimeout = Duration.toMillis(requestTimeout)
    this.#streamAfter = Duration.toMillis(streamAfter)
    const reason = `no answer within ${Duration.format(requestTimeout)}; the gateway has cancelled the request`
    this.#startTimer = Overdue.make(
      Overdue.interval(1000, this.#requestTimeout, this.#streamAfter),
      () => this.#look(due, reason),
      background.fork
    )
  }

  get size(): number {
    return this.#entries.size
  }

  figures(): Figures {
    return { inFlight: this.size, requests: this.#requests, errors: this.#errors }
  }

  /** The requests, the oldest first. */
  entries(): ReadonlyArray<A> {
    return [...this.#entries]
  }

  /** The start and the deadlines of a request that starts now. A request with `isEndless` has no timeout. */
  times(isEndless: boolean): Pick<Entry, "startedAt" | "streamAt" | "dueAt"> {
    const startedAt = this.#background.now()
    const dueAt = isEndless ? never : startedAt + this.#requestTimeout
    return { startedAt, streamAt: startedAt + this.#streamAfter, dueAt }
  }

  /** Adds a request. `isOwn`: the gateway's own, which does not count. */
  add(entry: A, isOwn = false): void {
    if (!isOwn) this.#requests++
    this.#entries.add(entry)
    this.#startTimer()
  }

  /** Suspends the deadlines of a request, until `restart`. */
  stop(entry: A): void {
    entry.streamAt = never
    entry.dueAt = never
  }

  /** Sets the deadlines of a suspended request anew. */
  restart(entry: A): void {
    const { dueAt, streamAt } = this.times(false)
    entry.streamAt = streamAt
    entry.dueAt = dueAt
  }

  /** Restarts the timeout of a request, unless it is suspended or endless. */
  progressed(entry: A): void {
    if (entry.dueAt < never) entry.dueAt = this.#background.now() + this.#requestTimeout
  }

  /** Lets a request end within these milliseconds, without a stream. */
  endWithin(entry: A, millis: number): void {
    entry.streamAt = never
    entry.dueAt = Math.min(entry.dueAt, this.#background.now() + millis)
  }

  /** Removes a request that is over. Call it once. */
  end(entry: A, failed: boolean): void {
    this.#entries.delete(entry)
    if (failed) this.#errors++
    const { method, release, startedAt } = entry
    this.#metrics.request(method, failed ? "error" : "ok", this.#background.now() - startedAt)
    this.#background.run(release)
  }

  /** Times out the requests that are due, and starts the streams that are due. False if no request is left. */
  #look(due: Due<A>, reason: string): boolean {
    const now = this.#background.now()
    for (const entry of this.#entries) {
      if (now >= entry.dueAt) due.timeOut(entry, reason)
      else if (now >= entry.streamAt) {
        entry.streamAt = never
        due.stream(entry)
      }
    }
    return this.size > 0
  }
}
