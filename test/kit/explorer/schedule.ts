/**
 * Runs an Effect program under a scheduler and a clock of its own, in which every point where fibers can interleave is a
 * numbered choice: whether the running fiber yields before its next operation, which of the runnable tasks comes next,
 * and whether time passes first. Option 0 is what an undisturbed run does; everything else is a deviation.
 *
 * A schedule is therefore the list of its deviations, a few numbers that replay exactly, whatever found it: a seed, or
 * the systematic search through all schedules with a bounded number of deviations.
 */
import { Clock, Context, Duration, Effect, Logger, Metric, References, Scheduler } from "effect"
import type { Exit, Fiber } from "effect"
import type * as Random from "../random.ts"

/** The option taken at a choice point, where that is not option 0. */
export interface Deviation {
  readonly point: number
  readonly option: number
}

/** Decides at the choice points of one run. */
export interface Chooser {
  /** Whether the fiber yields here. */
  readonly preempt: () => boolean
  /** Which of the tasks runs next, the oldest being 0; `tasks` itself, if `timers`: none, time passes first. */
  readonly pick: (tasks: number, timers: boolean) => number
}

/** Odds of a random schedule. A fiber that yields at more than some 0.4 of its operations makes no progress. */
export interface Odds {
  readonly preempt: number
  readonly timePasses: number
}

export const randomChooser = (random: Random.Random, odds: Odds): Chooser => ({
  preempt: () => random.chance(odds.preempt),
  pick: (tasks, timers) => timers && random.chance(odds.timePasses) ? tasks : tasks > 1 ? random.below(tasks) : 0
})

/** Replays deviations, and option 0 at every other point; counts the options of each point. */
export class Replay implements Chooser {
  /** How many options each point had. */
  readonly options: Array<number> = []
  private readonly chosen: ReadonlyMap<number, number>

  constructor(deviations: ReadonlyArray<Deviation>) {
    this.chosen = new Map(deviations.map(({ option, point }) => [point, option]))
  }

  readonly preempt = (): boolean => this.choose(2) === 1

  readonly pick = (tasks: number, timers: boolean): number => {
    const count = timers ? tasks + 1 : tasks
    return count === 1 ? 0 : this.choose(count)
  }

  private choose(count: number): number {
    const option = this.chosen.get(this.options.length) ?? 0
    this.options.push(count)
    return option < count ? option : 0
  }
}

/** Writes down what another chooser decides, as deviations. */
export class Recorder implements Chooser {
  readonly deviations: Array<Deviation> = []
  private readonly chooser: Chooser
  private points = 0

  constructor(chooser: Chooser) {
    this.chooser = chooser
  }

  readonly preempt = (): boolean => this.record(this.chooser.preempt() ? 1 : 0) === 1

  readonly pick = (tasks: number, timers: boolean): number => {
    const option = this.chooser.pick(tasks, timers)
    return tasks === 1 && !timers ? option : this.record(option)
  }

  private record(option: number): number {
    if (option > 0) this.deviations.push({ point: this.points, option })
    this.points++
    return option
  }
}

export interface Left {
  readonly tasks: number
  readonly timers: number
  readonly fibers: number
}

interface Timer {
  readonly at: number
  readonly resume: () => void
}

/** More tasks than any sound run takes: a run that gets here is stuck in a loop. */
const maxTasks = 5000

/** One run: the scheduler and the clock of all its fibers. */
export class Machine implements Scheduler.Scheduler, Clock.Clock {
  readonly executionMode = "async"
  /** Choices are asked for only while this is on: setting up and winding down run undisturbed. */
  exploring = false
  /** Fibers that have begun and not ended. */
  fibers = 0
  /** What there still was when the program had ended and nothing could run. */
  leftAtEnd: Left | undefined
  private now = 0
  private readonly tasks: Array<() => void> = []
  /** The next one first. */
  private readonly timers: Array<Timer> = []
  private readonly chooser: Chooser
  private readonly punctual: boolean

  /** `punctual`: time passes only when nothing else can run; else that is one of the choices. */
  constructor(chooser: Chooser, punctual: boolean) {
    this.chooser = chooser
    this.punctual = punctual
  }

  shouldYield(_fiber: Fiber.Fiber<unknown, unknown>): boolean {
    return this.exploring && this.chooser.preempt()
  }

  makeDispatcher(): Scheduler.SchedulerDispatcher {
    // Priorities do not count: any order is one that must do.
    return { scheduleTask: (task) => void this.tasks.push(task), flush: () => undefined }
  }

  currentTimeMillisUnsafe(): number {
    return this.now
  }
  currentTimeNanosUnsafe(): bigint {
    return BigInt(this.now) * 1_000_000n
  }
  monotonicTimeNanosUnsafe(): bigint {
    return this.currentTimeNanosUnsafe()
  }
  readonly currentTimeMillis = Effect.sync(() => this.now)
  readonly currentTimeNanos = Effect.sync(() => this.currentTimeNanosUnsafe())
  readonly monotonicTimeNanos = this.currentTimeNanos

  sleep(duration: Duration.Duration): Effect.Effect<void> {
    const millis = Duration.toMillis(duration)
    if (millis <= 0) return Effect.yieldNow
    if (millis === Infinity) return Effect.never
    return Effect.callback<void>((resume) => {
      const timer = { at: this.now + millis, resume: () => resume(Effect.void) }
      const later = this.timers.findIndex(({ at }) => at > timer.at)
      this.timers.splice(later < 0 ? this.timers.length : later, 0, timer)
      return Effect.sync(() => {
        const index = this.timers.indexOf(timer)
        if (index >= 0) this.timers.splice(index, 1)
      })
    })
  }

  private timePasses(): void {
    const timer = this.timers.shift()
    if (timer === undefined) return
    this.now = timer.at
    // A task, so that what the timers of one moment wake can run in any order.
    this.tasks.push(timer.resume)
    while (this.timers[0]?.at === this.now) this.tasks.push(this.timers.shift()?.resume ?? (() => undefined))
  }

  /**
   * Runs a program until nothing is left to run. `quiet` is called whenever only time can go on; it and the tasks end
   * the run early by making `stop` true. Without an exit: the program waits for ever, or runs in a circle.
   */
  run<A, E>(program: Effect.Effect<A, E>, quiet: () => void, stop: () => boolean): Exit.Exit<A, E> | undefined {
    const root = Effect.runForkWith(contextOf(this))(program)
    for (let count = 0; count < maxTasks && !stop(); count++) {
      if (this.tasks.length === 0) {
        if (root.pollUnsafe() !== undefined) this.leftAtEnd ??= this.left
        if (this.timers.length === 0) break
        quiet()
        this.timePasses()
        continue
      }
      const timers = !this.punctual && this.timers.length > 0
      const option = this.exploring ? this.chooser.pick(this.tasks.length, timers) : 0
      if (option === this.tasks.length) this.timePasses()
      else this.tasks.splice(option, 1)[0]?.()
    }
    return root.pollUnsafe()
  }

  /** What is left after a run: of each nothing, if the program cleans up. */
  get left(): Left {
    return { tasks: this.tasks.length, timers: this.timers.length, fibers: this.fibers }
  }
}

const contextOf = (machine: Machine): Context.Context<never> =>
  Context.make(Scheduler.Scheduler, machine).pipe(
    Context.add(Clock.Clock, machine),
    Context.add(Logger.CurrentLoggers, new Set()),
    Context.add(References.TracerEnabled, false),
    Context.add(Metric.FiberRuntimeMetrics, {
      recordFiberStart: () => machine.fibers++,
      recordFiberEnd: () => machine.fibers--
    })
  )

/** What one run showed: `undefined` if all promises were kept. */
export type Verdict = string | undefined

export interface Coverage {
  /** Schedules run. */
  readonly schedules: number
  /** The first one that broke a promise. */
  readonly failure: { readonly deviations: ReadonlyArray<Deviation>; readonly verdict: string } | undefined
}

/**
 * Runs every schedule with at most `bound` deviations: preemptions, tasks taken out of turn, or time that passes first.
 * Each is run once: its deviations are in order, and the next one is put at every later point of the run. Stops at the
 * first that breaks a promise, or after `most` schedules.
 */
export const systematically = (run: (chooser: Chooser) => Verdict, bound: number, most = Infinity): Coverage => {
  let schedules = 0
  const search = (deviations: ReadonlyArray<Deviation>): Coverage["failure"] => {
    if (schedules === most) return undefined
    schedules++
    const replay = new Replay(deviations)
    const verdict = run(replay)
    if (verdict !== undefined) return { deviations, verdict }
    if (deviations.length === bound) return undefined
    for (let point = (deviations.at(-1)?.point ?? -1) + 1; point < replay.options.length; point++) {
      for (let option = 1; option < (replay.options[point] ?? 0); option++) {
        const failure = search([...deviations, { point, option }])
        if (failure !== undefined) return failure
      }
    }
    return undefined
  }
  const failure = search([])
  return { schedules, failure }
}

/**
 * The smallest list found for which `fails` still says so: ever smaller pieces are left out for as long as that works
 * (delta debugging: Zeller and Hildebrandt, 2002).
 */
export const shrink = <T>(items: ReadonlyArray<T>, fails: (items: ReadonlyArray<T>) => boolean): ReadonlyArray<T> => {
  let smallest = items
  for (let size = Math.ceil(items.length / 2); size >= 1;) {
    let shrunk = false
    for (let start = 0; start < smallest.length;) {
      const candidate = smallest.toSpliced(start, size)
      if (fails(candidate)) {
        smallest = candidate
        shrunk = true
      } else start += size
    }
    if (!shrunk || size > 1) size = size === 1 ? 0 : Math.ceil(size / 2)
  }
  return smallest
}
