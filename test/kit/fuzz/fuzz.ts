/** The fuzz as a whole: so many cases of each kind, from a seed. */
import * as FuzzConfig from "./config.ts"
import * as FuzzHttp from "./http.ts"

export interface Report {
  readonly cases: number
  readonly failures: ReadonlyArray<string>
}

/** Configurations that are read in this process. */
export const configurations = (seed: number, from: number, count: number): Report & { readonly valid: number } => {
  const failures: Array<string> = []
  let valid = 0
  for (let index = from; index < from + count && failures.length <= 20; index++) {
    const test = FuzzConfig.make(seed, index)
    const { failure, isValid } = FuzzConfig.check(test)
    if (isValid) valid++
    if (failure !== undefined) failures.push(`configuration case ${index}: ${failure}\n  ${test.text.slice(0, 2000)}`)
  }
  return { cases: count, failures, valid }
}

export const http = FuzzHttp.run
