/** Fits a line through points by least squares, to tell whether a figure grows with time. */
export interface Line {
  readonly slope: number
  /** The standard error of the slope. */
  readonly standardError: number
  /** The mean of the values. */
  readonly mean: number
}

export const fit = (points: ReadonlyArray<readonly [x: number, y: number]>): Line => {
  const sum = (f: (x: number, y: number) => number) => points.reduce((total, [x, y]) => total + f(x, y), 0)
  const n = points.length
  const [meanX, mean] = [sum((x) => x) / n, sum((_, y) => y) / n]
  const spread = sum((x) => (x - meanX) ** 2)
  const slope = sum((x, y) => (x - meanX) * (y - mean)) / spread
  const residue = sum((x, y) => (y - mean - slope * (x - meanX)) ** 2)
  return { slope, standardError: Math.sqrt(residue / (n - 2) / spread), mean }
}
