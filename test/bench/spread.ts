/** The rounds of one measurement: the median, the least and the greatest. */
export interface Spread {
  readonly median: number
  readonly least: number
  readonly greatest: number
}

export const spreadOf = (values: ReadonlyArray<number>): Spread => {
  const sorted = values.toSorted((a, b) => a - b)
  const at = (position: number) => sorted[position] ?? Number.NaN
  const last = sorted.length - 1
  return {
    // For an even number of rounds, the mean of the two in the middle.
    median: (at(Math.floor(last / 2)) + at(Math.ceil(last / 2))) / 2,
    least: at(0),
    greatest: at(last)
  }
}

export const format = ({ greatest, least, median }: Spread): string =>
  `${median.toFixed(2)} (${least.toFixed(2)}–${greatest.toFixed(2)})`
