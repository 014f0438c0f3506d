/**
 * Runs Effect programs under their own scheduler and clock. Every point where fibers can interleave is a numbered choice:
 * whether the running fiber yields, which task runs next, and whether time passes first. Option 0 is the undisturbed run.
 *
 * A schedule is the list of its deviations from option 0: a few numbers that replay exactly.
 */
import { Clock, Context, Duration, Effect, Logger, Metric, Random, References, Scheduler } from "effect"
import type { Fiber } from "effect"

/** Chooses an option at a point. `options` is the number of options there. */
export type Choose = (point: number, options: number) => number

export interface Deviation {
  readonly point: number
  readonly option: number
}

export const replaying = (deviations: ReadonlyArray<Deviation>): Choose => {
  const chosen = new Map(deviations.map(({ option, point }) => [point, option]))
  return (point, options) => Math.min(chosen.get(point) ?? 0, options - 1)
}

/** What one run showed. */
export interface Run {
  /** The first promise that was broken. */
  readonly verdict: string | undefined
  /** How many options each point had. */
  readonly options: ReadonlyArray<number>
}

/** The scheduler and the clock of all fibers of one run. */
export class Machine implements Scheduler.Scheduler, Clock.Clock {
  readonly executionMode = "async"
  /** False during set-up and at the end, when every choice is option 0. */
  exploring = false
  /** A limit above that of any sound run. A run that exceeds it is stuck in a loop. */
  tasksLeft = Infinity
  /** Fibers that have begun and not ended. */
  fibers = 0
  now = 0
  readonly options: Array<number> = []
  private readonly tasks: Array<() => void> = []
  private timers: ReadonlyArray<{ readonly at: number; readonly resume: () => void }> = []
  private readonly decide: Choose
  private readonly punctual: boolean

  /** `punctual`: time passes only when no task can run. Otherwise time may also pass before a task, as one of the choices. */
  constructor(decide: Choose = () => 0, punctual = true) {
    this.decide = decide
    this.punctual = punctual
  }

  private choose(options: number): number {
    if (!this.exploring || options === 1) return 0
    return this.decide(this.options.push(options) - 1, options)
  }

  makeDispatcher(): Scheduler.SchedulerDispatcher {
    // Priorities are ignored: the pool must work in any order.
    return { scheduleTask: (task) => void this.tasks.push(task), flush: () => undefined }
  }

  readonly shouldYield = (): boolean => this.choose(2) === 1
  readonly currentTimeMillisUnsafe = (): number => this.now
  readonly currentTimeNanosUnsafe = (): bigint => BigInt(this.now) * 1_000_000n
  readonly monotonicTimeNanosUnsafe = this.currentTimeNanosUnsafe
  readonly currentTimeMillis = Effect.sync(() => this.now)
  readonly currentTimeNanos = Effect.sync(this.currentTimeNanosUnsafe)
  readonly monotonicTimeNanos = this.currentTimeNanos

  sleep(duration: Duration.Duration): Effect.Effect<void> {
    const millis = Duration.toMillis(duration)
    if (millis <= 0) return Effect.yieldNow
    if (millis === Infinity) return Effect.never
    return Effect.callback<void>((resume) => {
      const timer = { at: this.now + millis, resume: () => resume(Effect.void) }
      this.timers = [...this.timers, timer]
      return Effect.sync(() => {
        this.timers = this.timers.filter((other) => other !== timer)
      })
    })
  }

  private get nextTimer(): number {
    return Math.min(...this.timers.map(({ at }) => at))
  }

  /** Advances to the next timer. All timers of one moment become tasks, which can run in any order. */
  private timePasses(): void {
    this.now = this.nextTimer
    for (const { at, resume } of this.timers) if (at === this.now) this.tasks.push(resume)
    this.timers = this.timers.filter(({ at }) => at > this.now)
  }

  fork<A, E>(effect: Effect.Effect<A, E>): Fiber.Fiber<A, E> {
    return Effect.runForkWith(contextOf(this))(effect)
  }

  /** Runs tasks until none is left, or `stop` returns true. */
  settle(stop = () => false): void {
    while (this.tasks.length > 0 && this.tasksLeft-- > 0 && !stop()) {
      const canWait = !this.punctual && this.timers.length > 0
      const option = this.choose(this.tasks.length + (canWait ? 1 : 0))
      if (option === this.tasks.length) this.timePasses()
      else this.tasks.splice(option, 1)[0]?.()
    }
  }

  /** Lets time pass up to `to`, or until no timer is left. Calls `quiet` before each advance. */
  advance(to: number, quiet = () => {}, stop = () => false): void {
    this.settle(stop)
    while (this.timers.length > 0 && this.nextTimer <= to && this.tasksLeft-- > 0 && !stop()) {
      quiet()
      this.timePasses()
      this.settle(stop)
    }
    if (to < Infinity) this.now = to
  }

  /** The result of an effect that never waits. */
  result<A>(effect: Effect.Effect<A>): A {
    const fiber = this.fork(effect)
    this.settle()
    const exit = fiber.pollUnsafe()
    if (exit?._tag !== "Success") throw new Error(`no result: ${exit}`)
    return exit.value
  }

  /** How many fibers, timers and tasks are left. */
  get left(): ReadonlyArray<number> {
    return [this.fibers, this.timers.length, this.tasks.length]
  }
}

const contextOf = (machine: Machine): Context.Context<never> =>
  Context.make(Scheduler.Scheduler, machine).pipe(
    Context.add(Clock.Clock, machine),
    // Fixes the random part of `maxLifetime`.
    Context.add(Random.Random, { nextDoubleUnsafe: () => 0.5, nextIntUnsafe: () => 0 }),
    Context.add(Logger.CurrentLoggers, new Set()),
    Context.add(References.TracerEnabled, false),
    Context.add(Metric.FiberRuntimeMetrics, {
      recordFiberStart: () => machine.fibers++,
      recordFiberEnd: () => machine.fibers--
    })
  )

/**
 * Runs every schedule with at most `bound` deviations. Adds deviations only after the last one, so no schedule runs twice. Stops at the
 * first schedule that breaks a promise.
 */
export const systematically = (run: (choose: Choose) => Run, bound: number) => {
  let schedules = 0
  const search = (deviations: ReadonlyArray<Deviation>): ReadonlyArray<Deviation> | undefined => {
    schedules++
    const { options, verdict } = run(replaying(deviations))
    if (verdict !== undefined) return deviations
    if (deviations.length === bound) return undefined
    for (let point = (deviations.at(-1)?.point ?? -1) + 1; point < options.length; point++) {
      for (let option = 1; option < (options[point] ?? 0); option++) {
        const failure = search([...deviations, { point, option }])
        if (failure !== undefined) return failure
      }
    }
    return undefined
  }
  return { failure: search([]), schedules }
}
