/**
 * The random half of the explorer: from a seed to a run, and from a run that breaks a promise to the smallest like it. The
 * systematic half is `scenarios.ts` under `systematically` of `schedule.ts`.
 */
import * as Random from "../random.ts"
import * as Plan from "./plan.ts"
import type { Chooser, Deviation, Verdict } from "./schedule.ts"
import { randomChooser, Recorder, Replay, shrink, systematically } from "./schedule.ts"

/** Odd seeds let time pass while tasks wait, as on a busy machine; even ones only when nothing else can run. */
const isPunctual = (seed: number) => seed % 2 === 0

/** Streams of their own for the plan, the odds and the schedule: from one, each would follow from the others. */
const randomPlan = (seed: number) => Plan.random(Random.ofCase(seed, 1))

const randomSchedule = (seed: number) =>
  randomChooser(Random.ofCase(seed, 3), {
    preempt: Random.ofCase(seed, 2).pick([0.01, 0.05, 0.2, 0.35]),
    timePasses: 0.05
  })

/** Runs the plan and the schedule of a seed. */
export const runSeed = (seed: number): Verdict => Plan.run(randomPlan(seed), randomSchedule(seed), isPunctual(seed))

export interface Failure {
  readonly seed: number
  readonly verdict: string
  readonly plan: Plan.Plan
  readonly deviations: ReadonlyArray<Deviation>
}

/**
 * The smallest plan and schedule found that break a promise as this seed's do: first what the seed did is thinned out and
 * made plainer, then the schedules of what is left are searched for one with at most two deviations.
 */
export const minimise = (seed: number): Failure | undefined => {
  const plan = randomPlan(seed)
  const punctual = isPunctual(seed)
  const recorder = new Recorder(randomSchedule(seed))
  const first = Plan.run(plan, recorder, punctual)
  if (first === undefined) return undefined
  const same = (verdict: Verdict): verdict is string => verdict !== undefined && kindOf(verdict) === kindOf(first)
  const fails = (plan: Plan.Plan, deviations: ReadonlyArray<Deviation>) =>
    same(Plan.run(plan, new Replay(deviations), punctual))
  let deviations: ReadonlyArray<Deviation> = recorder.deviations
  let smaller = plan
  for (let size = Infinity; size > sizeOf(smaller, deviations);) {
    size = sizeOf(smaller, deviations)
    const steps = smaller.fibers.flatMap((operations, fiber) => operations.map((operation) => ({ fiber, operation })))
    smaller = withSteps(smaller, shrink(steps, (steps) => fails(withSteps(smaller, steps), deviations)))
    for (let plainer: Plan.Plan | undefined = smaller; plainer !== undefined;) {
      smaller = plainer
      plainer = Plan.plainer(smaller).find((candidate) => fails(candidate, deviations))
    }
    deviations = shrink(deviations, (deviations) => fails(smaller, deviations))
  }
  for (const bound of [0, 1, 2]) {
    const run = (chooser: Chooser) => {
      const verdict = Plan.run(smaller, chooser, punctual)
      return same(verdict) ? verdict : undefined
    }
    const found = deviations.length > bound ? systematically(run, bound, 2000).failure : undefined
    if (found !== undefined) deviations = found.deviations
  }
  return { seed, verdict: Plan.run(smaller, new Replay(deviations), punctual) ?? first, plan: smaller, deviations }
}

/** Runs what was found once more. */
export const replay = ({ deviations, plan, seed }: Failure): Verdict =>
  Plan.run(plan, new Replay(deviations), isPunctual(seed))

/** The promise that was broken, without the numbers. */
const kindOf = (verdict: string) => verdict.replaceAll(/\d+/g, "").slice(0, 40)

const sizeOf = ({ fibers }: Plan.Plan, deviations: ReadonlyArray<Deviation>) =>
  fibers.reduce((sum, operations) => sum + operations.length, deviations.length)

const withSteps = (
  plan: Plan.Plan,
  steps: ReadonlyArray<{ readonly fiber: number; readonly operation: Plan.Operation }>
): Plan.Plan => ({
  ...plan,
  fibers: plan.fibers.map((_, i) => steps.filter(({ fiber }) => fiber === i).map(({ operation }) => operation))
})

/** What a person needs to understand a failure and to see it again. What a plan does not say is plain. */
export const report = ({ deviations, plan, seed, verdict }: Failure): string =>
  [
    `seed ${seed} breaks a promise: ${verdict}`,
    `replay it with: npm run explore -- --seed ${seed}`,
    "the smallest run found that does the same:",
    `  options: ${print(plan.options, Plan.plainOptions)}`,
    ...plan.lookups.map((lookup, i) => `  launch ${i + 1}: ${print(lookup, Plan.plainLookup)}`),
    ...plan.fibers.flatMap((operations, i) =>
      operations.length === 0 ? [] : [
        `  fiber ${i + 1}: ${
          operations.map((operation) => print(operation, { ...Plan.operation(operation.kind), kind: "", key: "" }))
            .join(
              ", then "
            )
        }`
      ]
    ),
    plan.endsEarly ? "  the pool ends while they run" : "  the pool ends after them",
    `  away from the undisturbed schedule at ${deviations.length} points: ${
      deviations.map(({ option, point }) => `${point}→${option}`).join(" ")
    }`
  ].join("\n")

const print = (value: object, plain: object): string => {
  const usual = new Map(Object.entries(plain))
  const parts = Object.entries(value).filter(([name, value]) => usual.get(name) !== value)
    .map(([name, value]) => name === "kind" || name === "key" ? value : `${name}=${value}`)
  return parts.length === 0 ? "plain" : parts.join(" ")
}
