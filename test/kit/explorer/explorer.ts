/** Explores every schedule of a plan with few deviations, or random schedules of random plans. A failure is a case that replays. */
import { Arbitrary, Effect, Schema } from "effect"
import { Plan } from "./plan.ts"
import { run } from "./run.ts"
import type { Run } from "./schedule.ts"
import { replaying, systematically } from "./schedule.ts"

/** One deviation as a number: eight times its point, plus its option, minus one. */
const Deviation = Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 8_000 }))
const Case = Schema.Struct({
  plan: Plan,
  schedule: Schema.Array(Deviation).check(Schema.isMaxLength(150)),
  /** If false, time may pass while tasks wait, as on a busy machine. */
  punctual: Schema.Boolean
})
export type Case = typeof Case.Type

export const runCase = ({ plan, punctual, schedule }: Case): Run =>
  run(plan, replaying(schedule.map((n) => ({ point: Math.floor(n / 8), option: 1 + n % 8 }))), punctual)

/** The broken promise, and the flag that replays the case. */
export const report = (failure: Case): string =>
  `${runCase(failure).verdict}; replay: --case '${JSON.stringify(failure)}'`

/** Runs every schedule of a plan with at most `bound` deviations. `onRun` is called before each. */
export const exploreAll = (plan: Plan, bound: number, onRun: () => void = () => {}) => {
  const { failure, schedules } = systematically((choose) => {
    onRun()
    return run(plan, choose, false)
  }, bound)
  const schedule = failure?.map(({ option, point }) => 8 * point + option - 1)
  return { schedules, failure: schedule && { plan, schedule, punctual: false } }
}

/** Runs random cases. The failure is the smallest found that breaks a promise. `onRun` is called before each. */
export const explore = (runs: number, seed: number, onRun: () => void = () => {}) => {
  const options = { runs, seed, size: 1_000, maxShrinks: 3_000 }
  const isKept = (drawn: Case) => {
    onRun()
    return runCase(drawn).verdict === undefined
  }
  return Effect.map(
    Arbitrary.checkEffect(Arbitrary.schema(Case), isKept, options),
    (result) => ({
      runs: result._tag === "ReplayMismatch" ? 0 : result.runs,
      failure: result._tag === "Falsified" ? result.shrunkInput : undefined
    })
  )
}
