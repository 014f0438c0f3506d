/** The fuzz as a whole: so many cases of each kind, from a seed. */
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Command from "./command.ts"
import * as FuzzConfig from "./config.ts"
import * as Check from "./configCheck.ts"
import * as FuzzHttp from "./httpRun.ts"

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
    const reason = Check.check(test)
    if (reason !== undefined) failures.push(Check.describe(test, reason))
    if (test.paths?.length === 0) valid++
  }
  return { cases: count, failures, valid }
}

/** Configurations that the command is given. */
export const commands = async (seed: number, from: number, count: number): Promise<Report> => {
  const directory = mkdtempSync(join(tmpdir(), "gateway-"))
  const failures: Array<string> = []
  let done = 0
  // Only files: the options of a program have no command.
  for (let index = from; done < count; index++) {
    const test = FuzzConfig.make(seed, index)
    const strings = [...Object.values(test.flags), ...Object.values(test.environment)]
    // No process can be given a NUL character.
    if (test.kind === "options" || strings.some((value) => String(value).includes("\0"))) continue
    done++
    const reason = await Command.check(test, directory)
    if (reason !== undefined) failures.push(Check.describe(test, `the command: ${reason}`))
  }
  rmSync(directory, { recursive: true })
  return { cases: done, failures }
}

export const http = FuzzHttp.run
