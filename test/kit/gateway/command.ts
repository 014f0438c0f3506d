/** The command in this process: as `Kit.run`, without the second that a start of Node and the command's modules takes. */
import { Console, Effect, Exit } from "effect"
import * as CommandLine from "../../../src/gateway/CommandLine.ts"

export interface Said {
  readonly exit: number
  readonly output: string
}

/** Runs the command to its end, for arguments with which it ends by itself. Not two at once: variables and exit code are the process's. */
export const said = async (args: ReadonlyArray<string>, variables: Record<string, string> = {}): Promise<Said> => {
  const lines: Array<string> = []
  const write = (...parts: ReadonlyArray<unknown>) => void lines.push(`${parts.join(" ")}\n`)
  const before = Object.keys(variables).map((name) => [name, process.env[name]] as const)
  const codeBefore = process.exitCode
  Object.assign(process.env, variables)
  try {
    const exit = await Effect.runPromiseExit(
      Effect.provideService(CommandLine.runWith(args), Console.Console, { ...console, log: write, error: write })
    )
    return { exit: Exit.isFailure(exit) ? 1 : Number(process.exitCode ?? 0), output: lines.join("") }
  } finally {
    process.exitCode = codeBefore
    for (const [name, value] of before) {
      if (value === undefined) delete process.env[name]
      else process.env[name] = value
    }
  }
}
