/** The random half of the explorer: from a seed to a run, and from a run that breaks a promise to the smallest like it. */
import * as Plan from "./plan.ts"
import * as Random from "./random.ts"
import type { Deviation, Verdict } from "./schedule.ts"
import { randomChooser, Recorder, Replay, shrink } from "./schedule.ts"

/** How a seed's schedule is made. Odd seeds let time pass while tasks wait; even ones only when nothing else can run. */
const chooser = (seed: number) => {
  const punctual = seed % 2 === 0
  const preempt = Random.make(seed).pick([0.01, 0.05, 0.2, 0.35])
  return { punctual, chooser: randomChooser(seed, { preempt, timePasses: punctual ? 0 : 0.05 }) }
}

/** Runs the plan and the schedule of a seed. */
export const runSeed = (seed: number, plan = Plan.random(seed)): Verdict => {
  const { chooser: random, punctual } = chooser(seed)
  return Plan.run(plan, random, punctual)
}

export interface Failure {
  readonly seed: number
  readonly verdict: string
  readonly plan: Plan.Plan
  readonly deviations: ReadonlyArray<Deviation>
}

/** The smallest plan and schedule found that break a promise as this seed's do. */
export const minimise = (seed: number, plan = Plan.random(seed)): Failure | undefined => {
  const { chooser: random, punctual } = chooser(seed)
  const recorder = new Recorder(random)
  const first = Plan.run(plan, recorder, punctual)
  if (first === undefined) return undefined
  const kind = kindOf(first)
  const fails = (plan: Plan.Plan, deviations: ReadonlyArray<Deviation>) => {
    const verdict = Plan.run(plan, new Replay(deviations), punctual)
    return verdict !== undefined && kindOf(verdict) === kind
  }
  let deviations: ReadonlyArray<Deviation> = recorder.deviations
  let smaller = plan
  for (let size = Infinity; size > sizeOf(smaller, deviations);) {
    size = sizeOf(smaller, deviations)
    const steps = smaller.fibers.flatMap((operations, fiber) => operations.map((operation) => ({ fiber, operation })))
    smaller = withSteps(smaller, shrink(steps, (steps) => fails(withSteps(smaller, steps), deviations)))
    deviations = shrink(deviations, (deviations) => fails(smaller, deviations))
  }
  return { seed, verdict: Plan.run(smaller, new Replay(deviations), punctual) ?? first, plan: smaller, deviations }
}

/** The promise that was broken, without the numbers. */
const kindOf = (verdict: string) => verdict.replace(/ \d.*$/, "").replaceAll(/\d+/g, "").slice(0, 40)

const sizeOf = ({ fibers }: Plan.Plan, deviations: ReadonlyArray<Deviation>) =>
  fibers.reduce((sum, operations) => sum + operations.length, deviations.length)

const withSteps = (
  plan: Plan.Plan,
  steps: ReadonlyArray<{ readonly fiber: number; readonly operation: Plan.Operation }>
): Plan.Plan => ({
  ...plan,
  fibers: plan.fibers.map((_, i) => steps.filter(({ fiber }) => fiber === i).map(({ operation }) => operation))
})

/** What a person needs to understand a failure and to see it again. */
export const report = ({ deviations, plan, seed, verdict }: Failure): string =>
  [
    `seed ${seed} breaks a promise: ${verdict}`,
    `replay it with: npm run explore -- --seed ${seed}`,
    "the smallest run found that does the same:",
    `  options: ${JSON.stringify(plan.options, (_, value) => value === Infinity ? "Infinity" : value)}`,
    ...plan.lookups.map((lookup, i) => `  launch ${i + 1}: ${print(lookup)}`),
    ...plan.fibers.flatMap((operations, i) =>
      operations.length === 0 ? [] : [`  fiber ${i + 1}: ${operations.map(print).join(", then ")}`]
    ),
    plan.endsEarly ? "  the pool ends while they run" : "  the pool ends after them",
    `  away from the undisturbed schedule at ${deviations.length} points: ${
      deviations.map(({ option, point }) => `${point}→${option}`).join(" ")
    }`
  ].join("\n")

const print = (value: object): string =>
  Object.entries(value).map(([name, value]) => name === "kind" || name === "key" ? value : `${name}=${value}`).join(" ")
