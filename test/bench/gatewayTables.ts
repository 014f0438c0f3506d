/** Prints a case as two tables: the medians, and the ratios within a round. */
import type { Case, Figures } from "./gatewayCases.ts"
import { measures } from "./gatewayCases.ts"
import * as Gateways from "./gateways.ts"
import { format, spreadOf } from "./spread.ts"

/** The rounds of a case, each with the figures of every gateway by its name. */
export type Rounds = ReadonlyArray<ReadonlyMap<string, Figures>>

type Measure = keyof typeof measures
const names: ReadonlyArray<Measure> = ["cpu", "rate", "rateOfBytes", "p50", "p99", "resident", "residentPerSession"]
const counts: ReadonlyArray<Measure> = ["errors", "crossings"]

export const table = ({ description, subjects = Gateways.subjects }: Case, rounds: Rounds): string => {
  const has = (measure: Measure) => rounds.some((round) => [...round.values()].some((figures) => measure in figures))
  const shown = [...names, ...counts].filter(has)
  const values = (subject: string, measure: Measure) => rounds.flatMap((round) => round.get(subject)?.[measure] ?? [])
  const cell = (subject: string, measure: Measure) => {
    const found = values(subject, measure)
    if (found.length === 0) return "–"
    return counts.includes(measure) ? String(found.reduce((a, b) => a + b)) : figure(spreadOf(found).median)
  }
  const compared = names.filter(has)
  const others = subjects.filter((subject) => subject !== Gateways.ours)
  return [
    `### ${description}`,
    "",
    row(["", ...shown.map((measure) => measures[measure])]),
    row(Array.from({ length: shown.length + 1 }, () => "---")),
    ...subjects.map(({ name }) => row([name, ...shown.map((measure) => cell(name, measure))])),
    "",
    ...(others.length === 0 ? [] : [
      row(["ratio, median (min–max)", ...compared.map((measure) => measures[measure])]),
      row(Array.from({ length: compared.length + 1 }, () => "---")),
      ...others.map((other) => {
        const isLimit = other === Gateways.limit || other === Gateways.floor
        const [over, under] = isLimit ? [Gateways.ours, other] : [other, Gateways.ours]
        return row([
          `${over.name} / ${under.name}`,
          ...compared.map((measure) => spread(ratios(rounds, over.name, under.name, measure)))
        ])
      }),
      ""
    ])
  ].join("\n")
}

const row = (cells: ReadonlyArray<string>): string => `| ${cells.join(" | ")} |`

const ratios = (rounds: Rounds, over: string, under: string, measure: Measure): ReadonlyArray<number> =>
  rounds.flatMap((round) => {
    const [a, b] = [round.get(over)?.[measure], round.get(under)?.[measure]]
    return a === undefined || b === undefined ? [] : [a / b]
  })

const spread = (values: ReadonlyArray<number>): string => values.length === 0 ? "–" : format(spreadOf(values))

const figure = (value: number): string =>
  value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)
