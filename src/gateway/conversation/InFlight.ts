/**
 * The requests of one connection that are in flight, and their deadlines. A request without an answer gets a stream after `streamAfter`,
 * and times out after `requestTimeout`. One timer checks all of them.
 */
import type { Scope } from "effect"
import { Clock, Duration, Effect, Fiber } from "effect"
import type { RequestMetrics } from "../telemetry/GatewayMetrics.ts"
import * as Overdue from "./Overdue.ts"

/** How a connection's synchronous code starts effects and reads the time. */
export interface Background {
  /** Starts an effect. */
  readonly run: (effect: Effect.Effect<unknown>) => void
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

/** The deadlines of a request, in milliseconds. Infinity: none. */
export interface Times {
  readonly startedAt: number
  /** When the request gets a stream. */
  streamAt: number
  /** When the request times out. */
  dueAt: number
}

/** A request in flight. */
export interface Entry {
  readonly method: string
  readonly times: Times
  /** Runs once, when the request is over. */
  readonly release: Effect.Effect<void>
}

/** Called for each request that reaches a deadline. */
export interface Due<A> {
  /** The request has no answer yet, so it gets a stream. */
  readonly stream: (entry: A) => void
  readonly timeOut: (entry: A, reason: string) => void
}

const never = Number.POSITIVE_INFINITY

export class InFlight<A extends Entry> {
  readonly #background: Background
  readonly #metrics: RequestMetrics
  readonly #entries = new Set<A>()
  readonly #requestTimeout: number
  readonly #streamAfter: number
  readonly #startTimer: () => void
  #errors = 0

  constructor(background: Background, metrics: RequestMetrics, { requestTimeout, streamAfter }: Timeouts, due: Due<A>) {
    this.#background = background
    this.#metrics = metrics
    this.#requestTimeout = Duration.toMillis(requestTimeout)
    this.#streamAfter = Duration.toMillis(streamAfter)
    const reason = `no answer within ${Duration.format(requestTimeout)}; the gateway has cancelled the request`
    this.#startTimer = Overdue.make({
      interval: Overdue.interval(1000, this.#requestTimeout, this.#streamAfter),
      look: () => this.#look(due, reason),
      isNeeded: () => this.#entries.size > 0,
      fork: background.fork
    })
  }

  get size(): number {
    return this.#entries.size
  }

  /** How many requests ended with an error. */
  get errors(): number {
    return this.#errors
  }

  /** The requests, the oldest first. */
  entries(): ReadonlyArray<A> {
    return [...this.#entries]
  }

  /** Times that start now. A request with `isEndless` has no timeout. */
  times(isEndless: boolean): Times {
    const startedAt = this.#background.now()
    const dueAt = isEndless ? never : startedAt + this.#requestTimeout
    return { startedAt, streamAt: startedAt + this.#streamAfter, dueAt }
  }

  add(entry: A): void {
    this.#entries.add(entry)
    this.#startTimer()
  }

  /** Stops the times of a request, until `restart`. */
  stop({ times }: A): void {
    times.streamAt = never
    times.dueAt = never
  }

  /** Starts the times of a stopped request again. */
  restart({ times }: A): void {
    const { dueAt, streamAt } = this.times(false)
    times.streamAt = streamAt
    times.dueAt = dueAt
  }

  /** Restarts the timeout of a request, unless it is stopped or endless. */
  progressed({ times }: A): void {
    if (times.dueAt < never) times.dueAt = this.#background.now() + this.#requestTimeout
  }

  /** Lets a request end within these milliseconds, without a stream. */
  endWithin({ times }: A, millis: number): void {
    times.streamAt = never
    times.dueAt = Math.min(times.dueAt, this.#background.now() + millis)
  }

  /** Removes a request that is over. Call it once. */
  end(entry: A, failed: boolean): void {
    this.#entries.delete(entry)
    if (failed) this.#errors++
    const { method, release, times } = entry
    this.#metrics.request(method, failed ? "error" : "ok", this.#background.now() - times.startedAt)
    this.#background.run(release)
  }

  #look(due: Due<A>, reason: string): void {
    const now = this.#background.now()
    for (const entry of this.#entries) {
      const { times } = entry
      if (now >= times.dueAt) due.timeOut(entry, reason)
      else if (now >= times.streamAt) {
        times.streamAt = never
        due.stream(entry)
      }
    }
  }
}
